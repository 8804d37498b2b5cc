"""Files with gradient heads say, in float32, what captum and zennit say in float64, to 1e-5 of the largest value.

One file has all heads. In no network does a value lie within rounding of where a map jumps (:mod:`borders`): the tests
look, with no look at the package's own results.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import borders
import clipsight
import gradient_oracles
from clipsight.heads import IntegratedGradients
from gradient_networks import CLASSES, HEADS, LARGE, NETWORKS, RAW, build, cam_layer, clip, off, real

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

BOUND = 1e-5
EXACT = 1e-8  # in float64
QUICK = {method: head for method, head in HEADS.items() if method != "integrated_gradients"}  # 50 networks in a file
CAPTUM = tuple(method for method in gradient_oracles.CAPTUM if method in QUICK)
ALWAYS = {("Plain", ".onnx"), ("Frames", ".pt"), ("Branches", ".pt")}


def files():
    for name in NETWORKS:
        for suffix in (".onnx", ".pt"):
            marks = () if (name, suffix) in ALWAYS else pytest.mark.full
            yield pytest.param(name, suffix, marks=marks, id=f"{name}{suffix}")
    yield pytest.param("Residual", ".pt2", marks=pytest.mark.full, id="Residual.pt2")


def exported(network: nn.Module, heads, path, x, classes, **options) -> list[torch.Tensor]:
    explained = clipsight.explain(network, heads, x[:1], classes="input")
    clipsight.export(explained, path, precheck=False, **options)
    return [torch.as_tensor(output) for output in clipsight.load(path)(x, classes[:, None])]


# ---- Networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_in_the_small_networks_is_on_the_border(name):
    network = gradient_oracles.whole(name)[0]
    assert borders.on_the_border(network, clip()) == 0
    assert borders.on_the_border(network, clip(), 1e4) > 0  # there are gates


# ---- Files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, suffix", [*files()])
def test_a_file_equals_the_outside(name, suffix, tmp_path):
    methods = CAPTUM if name == "MultiFiber" else tuple(QUICK)  # its relevance: below
    x, heads = clip(dtype=torch.float32), [HEADS[method] for method in methods]
    _, *results = exported(build(name, torch.float32), heads, tmp_path / f"x{suffix}", x, CLASSES, plugin=False)
    for method, result in zip(methods, results, strict=True):
        expected = gradient_oracles.maps(name)[method]
        assert off(result, expected) < BOUND, method
        assert off(result.flip(0), expected) > 1e-2, method  # of the other clip and class


@pytest.mark.full
def test_relevance_is_exact_in_float64_where_sums_cancel(tmp_path):
    """Batch norms, not ReLUs, read the sums of MultiFiber, so that relevance divides by sums of any size. In float32
    chance decides its error, zennit's as ours: between 3e-5 and 0.2 on 24 clips. In Positive no sum is near 0."""
    network, x, methods = build("MultiFiber"), clip(), gradient_oracles.ZENNIT
    _, *results = exported(network, [HEADS[method] for method in methods], tmp_path / "x.onnx", x, CLASSES)
    rounded = gradient_oracles.expected(network.float(), x.float(), CLASSES, methods=methods)
    for method, result in zip(methods, results, strict=True):
        expected = gradient_oracles.maps("MultiFiber")[method]
        assert off(result, expected) < EXACT, method
        assert off(result.float(), expected) > EXACT, method
        assert off(rounded[method], expected) > BOUND, method


@pytest.mark.parametrize("suffix", [pytest.param(".onnx", marks=pytest.mark.full), ".pt"])
def test_integrated_gradients_as_a_file(suffix, tmp_path):
    """The network stands in the file once for every chunk of steps."""
    head, network, x = IntegratedGradients(steps=4, chunk=2, **RAW), build("Grouped", torch.float32), clip()
    _, result = exported(network, head, tmp_path / f"x{suffix}", x.float(), CLASSES, plugin=False)
    expected = gradient_oracles.integrated_gradients(build("Grouped"), x, CLASSES, steps=4)
    assert off(result, expected) < BOUND
    assert off(result, gradient_oracles.maps("Grouped")["integrated_gradients"]) > 1e-3  # of 50 steps


@pytest.mark.full
def test_epsilon_lrp_of_a_deep_network_as_a_file_in_float64(tmp_path):
    network, x = real("r3d_18"), clip(1, (8, 32, 32))
    classes = network(x).argmax(1)
    _, result = exported(network, HEADS["lrp_epsilon"], tmp_path / "x.onnx", x, classes)
    options = {**cam_layer("r3d_18"), "methods": ("lrp_epsilon",)}
    assert off(result, gradient_oracles.expected(network, x, classes, **options)["lrp_epsilon"]) < EXACT
    rounded = gradient_oracles.expected(network.float(), x.float(), classes, **options)["lrp_epsilon"]
    assert off(result, rounded.double()) > BOUND


@pytest.mark.parametrize("methods", [CAPTUM, gradient_oracles.ZENNIT], ids=["captum", "zennit"])
@pytest.mark.parametrize(
    "name, size",
    [
        ("narrow_c3d", LARGE),
        ("r3d_18", (8, 32, 32)),
        ("c3d", LARGE),
    ],
)
@pytest.mark.full
def test_a_real_network_as_a_file_equals_the_outside(name, size, methods, tmp_path):
    network, x = real(name), clip(1, size)
    assert borders.on_the_border(network, x) > 0
    assert borders.on_the_border(borders.keep_off(network, x), x) == 0
    classes = network(x).argmax(1)
    expected = gradient_oracles.expected(network, x, classes, **cam_layer(name), methods=methods)
    _, *results = exported(network.float(), [HEADS[m] for m in methods], tmp_path / "x.onnx", x.float(), classes)
    for method, result in zip(methods, results, strict=True):
        assert off(result, expected[method]) < BOUND, method
        assert off(1.01 * result, expected[method]) > BOUND, method
