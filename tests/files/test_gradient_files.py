"""Files with gradient heads: maps on demand, the self-check of maps that amplify rounding, transformers."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util

import pytest
import torch
from torch import nn

import clipsight
import networks
from clipsight import (
    DeepTaylor,
    ExportError,
    GradCAM,
    GuidedBackprop,
    InputGradient,
    LRPEpsilon,
    SaliencyTube,
    SelectiveRelevance,
)
from clipsight.exporters.check import self_check
from clipsight.exporters.program import Program, random_inputs
from clipsight.manifest import read_manifest

SIZE = (8, 16, 16)
BOX = {"low": -3.0, "high": 3.0}


def explained(*heads, classes="predicted"):
    return clipsight.explain(networks.seeded(networks.ModulePool), heads, networks.clip(size=SIZE), classes)


# In make test, test_onnx_loop.py has a walk back on demand in ONNX.
@pytest.mark.parametrize(
    "file", ["plain.pt", *(pytest.param(file, marks=pytest.mark.full) for file in ("plain.onnx", "fused.onnx"))]
)
def test_maps_on_demand(tmp_path, file):
    """The walk back does not run where nobody wants its map."""
    if file.endswith(".onnx"):
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    heads = [GuidedBackprop(), SelectiveRelevance(of=DeepTaylor(**BOX), extras=("motion_share",))]
    model = explained(*heads, classes="input")
    clipsight.export(model, tmp_path / file, plugin=file.startswith("fused"), optional=True)
    loaded = clipsight.load(tmp_path / file)
    clip, classes = networks.clip(3, SIZE, seed=4), torch.tensor([[0, 1], [2, 3], [1, 0]])
    outputs = loaded(clip, classes, explain=torch.ones(3, dtype=torch.bool))
    with torch.inference_mode():
        expected = model(clip, classes)
    for got, want in zip(outputs, expected, strict=True):
        assert (got - want).norm() <= 1e-4 * want.norm()
    nothing = loaded(clip, classes, explain=torch.zeros(3, dtype=torch.bool))
    assert torch.allclose(nothing[0], expected[0], atol=1e-6)
    assert all(output.numel() == 0 for output in nothing[1:])


@pytest.mark.parametrize(
    "head, entries",
    [
        (GuidedBackprop(), {"session.disable_prepacking": "1"}),
        (GradCAM("body.0"), {}),
        pytest.param(GradCAM(), {}, marks=pytest.mark.full),
    ],
)
def test_a_walk_to_the_clip_keeps_weights_once(tmp_path, head, entries):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    path = tmp_path / "x.onnx"
    manifest = clipsight.export(explained(head), path, plain=tmp_path / "plain.onnx")
    assert manifest.session == entries
    assert read_manifest(tmp_path / "plain.onnx").session == {}
    options = clipsight.onnx_session(path).get_session_options()
    if entries:
        assert options.get_session_config_entry("session.disable_prepacking") == "1"
    else:
        with pytest.raises(RuntimeError, match="does not have"):
            options.get_session_config_entry("session.disable_prepacking")


class Changed:
    """A loaded file whose last output is something else."""

    def __init__(self, model, change) -> None:
        self.model, self.change = model, change

    def __call__(self, clip, **others):
        *outputs, last = self.model(clip)
        return (*outputs, self.change(last.clone()))


@pytest.mark.parametrize(
    "head", [GuidedBackprop(), LRPEpsilon(normalize="none"), GradCAM("body.0", relu=False)], ids=lambda head: head.name
)
def test_the_self_check_of_a_map_that_amplifies_rounding(head):
    model = explained(head)
    program = Program(model, (SIZE,), plugin=True)
    assert program.sensitive == {head.name}
    nudged = Changed(model, lambda map: map * (1 + 1e-6 * torch.randn(map.shape)))
    assert self_check(program, nudged)["clips"] == 3
    for wrong in (lambda map: 1.05 * map, lambda map: map.roll(1, -1), lambda map: map * (map < 0.9 * map.max())):
        with pytest.raises(ExportError, match=f"output '{head.name}' must agree with the eager model"):
            self_check(program, Changed(model, wrong))


@pytest.mark.parametrize(
    "head, amplifies",
    [
        (GradCAM("body.0"), True),
        (GradCAM("body.1", after_relu=True), True),
        (SelectiveRelevance(of=GradCAM("body.0")), True),
        (GradCAM("body.4"), False),  # behind the last gate
        (GradCAM("body.4", weights_over="hw"), False),
        (GradCAM(), False),
        (SaliencyTube(), False),
    ],
)
def test_gates_on_the_way_back_tell_which_maps_amplify_rounding(head, amplifies):
    """Also where another head of the same walk goes on to the clip."""
    program = Program(explained(head, InputGradient()), (SIZE,), plugin=True)
    assert program.sensitive == {*(head.outputs() if amplifies else ()), "input_gradient"}


class OneConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.fc = nn.Conv3d(3, 16, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(torch.relu(self.first(x)).mean((2, 3, 4)))


def test_a_runtime_that_rounds_otherwise_turns_the_gates_behind_an_inner_layer():
    """On the clip of the self-check each channel has a voxel that but for rounding is zero."""
    network, head = networks.seeded(OneConvolution), GradCAM("first", relu=False)
    attached = clipsight.explain(network, head, networks.clip(size=SIZE), [0])
    program = Program(attached, (SIZE,), plugin=True)
    with torch.inference_mode():
        network.first.bias -= network.first(random_inputs(program, SIZE, 2, 1000)["clip"])[0, :, 4, 5, 6]
    exact = clipsight.explain(copy.deepcopy(network).double(), head, networks.clip(size=SIZE).double(), [0])

    def loaded(clip):
        return tuple(output.float() for output in exact(clip.double()))

    assert self_check(program, loaded)["max_difference"]["grad_cam"] > 1e-4
    exact.model.fc.weight.data[0] += 0.01
    with pytest.raises(ExportError, match="must agree with the eager model"):
        self_check(program, loaded)


def test_the_self_check_sees_a_wrong_rule():
    """Even of the map that amplifies rounding most."""
    right, wrong = explained(LRPEpsilon()), explained(LRPEpsilon(epsilon=0.05))
    program = Program(right, (SIZE,), plugin=True)
    with pytest.raises(ExportError, match="must agree with the eager model"):
        self_check(program, Changed(wrong, lambda map: map))


def test_a_clip_that_is_not_finite_explains_nothing():
    model = explained(GuidedBackprop(normalize="none"), DeepTaylor(**BOX, normalize="none"), GradCAM())
    clip = networks.clip(2, SIZE)
    clip[1, 0, 3, 3, 3] = torch.nan
    for map in model(clip)[1:]:
        assert map[0].isfinite().all()
        assert map[1].isnan().all()


@pytest.fixture(scope="module")
def vision_transformer():
    """A small MViT: class token, pooling attention, relative positions added in place."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    from clipsight.models.beside_torchvision import import_torchvision

    import_torchvision()
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    common = {"kernel_q": [3, 3, 3], "kernel_kv": [3, 3, 3], "output_channels": 32}
    blocks = [
        MSBlockConfig(num_heads=1, input_channels=16, stride_q=[1, 1, 1], stride_kv=[1, 2, 2], **common),
        MSBlockConfig(num_heads=2, input_channels=32, stride_q=[1, 2, 2], stride_kv=[1, 1, 1], **common),
    ]
    options = {"residual_pool": True, "residual_with_cls_embed": False, "rel_pos_embed": True, "proj_after_attn": True}
    return networks.seeded(lambda: MViT((32, 32), 8, blocks, num_classes=5, **options))


@pytest.fixture(scope="module")
def window_transformer():
    """A small Swin3D: attention in windows, shifted in every other block; channels last inside."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    from clipsight.models.beside_torchvision import import_torchvision

    swin = import_torchvision().models.video.SwinTransformer3d
    windows = {"patch_size": [2, 4, 4], "window_size": [2, 3, 3], "depths": [1, 2], "num_heads": [2, 2]}
    return networks.seeded(lambda: swin(embed_dim=12, num_classes=5, **windows))


def slow_grad_cam(network, layer: str, clip: torch.Tensor, classes: torch.Tensor, as_grid) -> torch.Tensor:
    """By autograd, without ReLU: `[N, M, t, h, w]`; `as_grid` makes `[N, C, t, h, w]` of the layer's output."""
    kept = {}
    hook = network.get_submodule(layer).register_forward_hook(lambda module, inputs, output: kept.update(x=output))
    logits = network(clip)
    hook.remove()
    cams = []
    for chosen in classes.unbind(1):
        score = logits.gather(1, chosen[:, None]).sum()
        gradient = as_grid(torch.autograd.grad(score, kept["x"], retain_graph=True)[0])
        cams.append((as_grid(kept["x"]) * gradient.mean((2, 3, 4), keepdim=True)).sum(1))
    return torch.stack(cams, 1).detach()


def assert_grad_cam(network, layer: str | None, reads: str, as_grid, path) -> None:
    """Eager and as a file, at other batches than the one that it was attached with; the classes are told apart."""
    model = clipsight.explain(
        network, GradCAM(layer, size="features", relu=False), networks.clip(2, (8, 32, 32)), "top2"
    )
    for batch in (1, 2, 3):
        clip = networks.clip(batch, (8, 32, 32), seed=batch)
        logits, cam = model(clip)
        wanted = slow_grad_cam(network, reads, clip, logits.topk(2, 1).indices, as_grid)
        assert (cam - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        assert (cam.roll(1, 1) - wanted).abs().max() > 0.1 * wanted.abs().max()
    clipsight.export(model, path)
    for got, want in zip(clipsight.load(path)(clip), model(clip), strict=True):
        assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.full
def test_grad_cam_of_a_transformer(vision_transformer, tmp_path):
    """The tokens that the last attention reads, through the recorded gradient of attention."""

    def as_grid(tokens):
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 8, 8))

    assert_grad_cam(vision_transformer, None, "blocks.1.norm1", as_grid, tmp_path / "x.pt")


@pytest.mark.parametrize(
    "layer, file", [("features.0", "x.pt"), pytest.param("features.2.0.norm2", "x.onnx", marks=pytest.mark.full)]
)
def test_grad_cam_inside_a_transformer_of_windows(window_transformer, tmp_path, layer, file):
    """Where channels come last, as linear layers and layer norms leave them."""
    if file.endswith(".onnx"):
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    assert_grad_cam(window_transformer, layer, layer, lambda x: x.movedim(-1, 1), tmp_path / file)


class Waves(networks.ModulePool):
    def forward(self, x):
        return self.fc(torch.sin(self.body(x)).mean((2, 3, 4)))


def test_a_relevance_method_says_what_it_lacks():
    with pytest.raises(clipsight.AttachError, match=r"deep Taylor decomposition has no rule for 'sin'.*GradCAM"):
        clipsight.explain(networks.seeded(Waves), DeepTaylor(**BOX), networks.clip())


def test_options_reach_the_manifest(tmp_path):
    head = DeepTaylor(low=(-2.0,), high=(2.5,), max_pool="proportional")
    manifest = clipsight.export(explained(head), tmp_path / "x.pt", plugin=False)
    stated = manifest.methods[0]
    assert stated["method"] == "deep_taylor"
    assert {name: stated[name] for name in ("low", "high", "max_pool")} == {
        "low": [-2.0],
        "high": [2.5],
        "max_pool": "proportional",
    }
    assert set(stated) == {"method", *(field.name for field in dataclasses.fields(head))}
