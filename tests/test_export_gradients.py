"""Files with gradient heads say, in float32, what captum and zennit say in float64, to 1e-5 of the largest value.

One file has all heads. No ReLU of the small networks lies within rounding of its threshold, where a gradient jumps: the
first test looks, with no look at the package's own results.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import clipsight
import gradient_oracles
import networks
from clipsight import models
from clipsight.heads import IntegratedGradients
from gradient_networks import CLASSES, HEADS, NETWORKS, RAW, build, clip, off

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

BOUND = 1e-5
EXACT = 1e-8  # in float64
QUICK = {method: head for method, head in HEADS.items() if method != "integrated_gradients"}  # 50 networks in a file
# Here a sum divides relevance among parts that cancel (the frames' logits; what a batch norm, not a ReLU, reads), so
# that there is far more of it, of both signs, than the class had. zennit loses as much in float32 as we do; our files
# of networks in float64 lose nothing.
CANCELS = {"Frames", "MultiFiber", "Separable"}
ALWAYS = {("Plain", ".onnx"), ("Projection", ".onnx"), ("Frames", ".onnx"), ("Branches", ".pt"), ("Padded", ".pt")}


def files():
    for name in NETWORKS:
        for suffix in (".onnx", ".pt"):
            marks = () if (name, suffix) in ALWAYS else pytest.mark.all_sizes
            yield pytest.param(name, suffix, marks=marks, id=f"{name}{suffix}")
    yield pytest.param("Residual", ".pt2", marks=pytest.mark.all_sizes, id="Residual.pt2")


def exported(network: nn.Module, heads, path, x, classes, **options) -> list[torch.Tensor]:
    explained = clipsight.explain(network, heads, x[:1], classes="input")
    clipsight.export(explained, path, precheck=False, **options)
    return [torch.as_tensor(output) for output in clipsight.load(path)(x, classes[:, None])]


def own_errors(network: nn.Module, x: torch.Tensor, classes: torch.Tensor, expected: dict) -> dict[str, float]:
    """Four times what zennit itself loses in float32."""
    rounded = gradient_oracles.expected(network.float(), x.float(), classes, methods=gradient_oracles.ZENNIT)
    network.double()
    return {method: 4 * off(result, expected[method]) for method, result in rounded.items()}


# ---- Gates ----------------------------------------------------------------------------------------------------------


def gates_on_the_border(network: nn.Module, x: torch.Tensor, times: float = 1) -> int:
    """How many values in front of ReLUs are closer to 0 than the layer's rounding error in float32, `times` it."""
    precise, rounded = (inputs_of_relus(network.to(x.dtype), x) for x in (x.double(), x.float()))
    network.double()
    pairs = zip(precise, rounded, strict=True)
    return sum((p.abs() <= times * (r.double() - p).abs().max()).sum().item() for p, r in pairs)


def inputs_of_relus(network: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    module, found = gradient_oracles.modular(network, x), []
    for layer in module.modules():
        if isinstance(layer, nn.ReLU):
            layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    module(x)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_no_gate_of_the_small_networks_is_on_the_border(name):
    network = gradient_oracles.whole(name)[0]
    assert gates_on_the_border(network, clip()) == 0
    assert gates_on_the_border(network, clip(), 1e4) > 0  # there are gates


# ---- Files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, suffix", [*files()])
def test_a_file_equals_the_outside(name, suffix, tmp_path):
    x = clip(dtype=torch.float32)
    _, *results = exported(
        build(name, torch.float32), [*QUICK.values()], tmp_path / f"x{suffix}", x, CLASSES, plugin=False
    )
    expected, network = gradient_oracles.maps(name), gradient_oracles.whole(name)[0]
    own = own_errors(network, clip(), CLASSES, expected)
    assert name in CANCELS or max(own.values()) < BOUND
    for method, result in zip(QUICK, results, strict=True):
        bound = max(BOUND, own.get(method, 0))
        assert off(result, expected[method]) < bound, method
        assert off(result.flip(0), expected[method]) > max(1e-2, 2 * bound), method  # of the other clip and class


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "Frames" else pytest.mark.all_sizes) for n in sorted(CANCELS)]
)
def test_a_file_in_float64_is_exact_where_sums_cancel(name, tmp_path):
    heads = [HEADS[method] for method in gradient_oracles.ZENNIT]
    _, *results = exported(build(name), heads, tmp_path / "x.onnx", clip(), CLASSES)
    for method, result in zip(gradient_oracles.ZENNIT, results, strict=True):
        expected = gradient_oracles.maps(name)[method]
        assert off(result, expected) < EXACT, method
        assert off(result.float(), expected) > EXACT, method


def test_integrated_gradients_as_a_file(tmp_path):
    """The network stands in the file once for every chunk of steps."""
    head, network, x = IntegratedGradients(steps=4, chunk=2, **RAW), build("Grouped", torch.float32), clip()
    path = tmp_path / "x.pt"
    _, result = exported(network, head, path, x.float(), CLASSES, plugin=False)
    expected = gradient_oracles.integrated_gradients(build("Grouped"), x, CLASSES, steps=4)
    assert off(result, expected) < BOUND
    assert off(result, gradient_oracles.maps("Grouped")["integrated_gradients"]) > 1e-3  # of 50 steps


def test_epsilon_lrp_of_a_deep_network_as_a_file_in_float64(tmp_path):
    network = networks.seeded(lambda: models.load("r3d_18", pretrained=False, num_classes=7)).double()
    x = clip(1, (8, 32, 32)).float().double()
    classes = network(x).argmax(1)
    _, result = exported(network, HEADS["lrp_epsilon"], tmp_path / "x.onnx", x, classes)
    options = {"layer": "avgpool", "methods": ("lrp_epsilon",)}
    assert off(result, gradient_oracles.expected(network, x, classes, **options)["lrp_epsilon"]) < EXACT
    rounded = gradient_oracles.expected(network.float(), x.float(), classes, **options)["lrp_epsilon"]
    assert off(result, rounded.double()) > BOUND


@pytest.mark.all_sizes
@pytest.mark.parametrize("name, size", [("r3d_18", (8, 32, 32)), ("c3d", (16, 112, 112))])
def test_a_real_network_as_a_file_equals_the_outside(name, size, tmp_path):
    """Epsilon-LRP divides by values near 0 in a deep network: there the bound is zennit's own error in float32, and a
    file in float64 is exact."""
    network, x = networks.seeded(lambda: models.load(name, pretrained=False, num_classes=7)), clip(1, size).float()
    classes = network(x).argmax(1)
    _, *results = exported(network, [*QUICK.values()], tmp_path / "x.onnx", x, classes)
    layer = {"layer": "conv5b", "inputs": False} if name == "c3d" else {"layer": "avgpool"}
    expected = gradient_oracles.expected(network.double(), x.double(), classes, **layer, methods=tuple(QUICK))
    own = own_errors(network, x.double(), classes, expected)
    for method, result in zip(QUICK, results, strict=True):
        bound = max(BOUND, own["lrp_epsilon"] if method == "lrp_epsilon" else 0)
        assert off(result, expected[method]) < bound, method
        assert off(1.01 * result, expected[method]) > bound, method
