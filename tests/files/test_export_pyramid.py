"""Class feature pyramids in exported files: every format says what the eager model says, selections exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import clipsight
import networks
import pyramid_networks
from clipsight import ExportError, FeaturePyramid, Preprocessing, SaliencyTube, SelectiveRelevance
from clipsight.exporters.check import self_check
from clipsight.exporters.program import Program
from clipsight.heads import Evidence
from clipsight.manifest import read_manifest
from clipsight.pyramid import METHOD, Pyramid
from helpers import onnxruntime_library

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnx", reason="onnx is not installed")

FORMATS = {"fused.pt": True, "plain.pt": False, "fused.onnx": True, "plain.onnx": False, "fused.pt2": True}
PYRAMID = FeaturePyramid(theta=0.5, depth="all")
SIZE = (8, 12, 12)


def explained(name: str, *heads, classes="predicted"):
    return clipsight.explain(pyramid_networks.build(name), heads, networks.clip(size=SIZE), classes)


def compare(names, got, expected) -> None:
    for name, a, b in zip(names, got, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        if a.is_floating_point():
            outside = (a - b).abs() > 1e-4 * b.abs().max()
            assert outside.float().mean() <= (1e-3 if name.endswith("motion") else 0), name
        else:
            assert torch.equal(a, b), name


QUICK = {("Branches", "fused.onnx"), ("Branches", "fused.pt"), ("FullyConnected", "plain.onnx")}
QUICK |= {("FullyConnected", "plain.pt")}
CASES = [
    pytest.param(name, file, marks=[pytest.mark.full] * ((name, file) not in QUICK))
    for name in ("Branches", "FullyConnected")
    for file in FORMATS
]
WITH_AND_WITHOUT_PLUGIN = pytest.mark.parametrize("plugin", [True, pytest.param(False, marks=pytest.mark.full)])


@pytest.mark.parametrize("name, file", CASES)
def test_a_file_of_each_format_equals_eager(tmp_path, file, name):
    if file.endswith(".pt2") and name != "Branches":
        pytest.skip("compiling takes a minute, and one network shows it")
    heads = [PYRAMID, SelectiveRelevance(of=PYRAMID, extras=("motion_share",))]
    model = explained(name, *heads)
    manifest = clipsight.export(model, tmp_path / file, plugin=FORMATS[file])
    kinds = {output.name.rpartition(".")[2]: output.dtype for output in manifest.outputs}
    kinds.pop("logits")
    floats = dict.fromkeys(("volume", "motion", "motion_share"), "float32")
    assert kinds == {"mask": "bool", "multiplicity": "int64", "edges": "bool"} | floats
    clip = networks.clip(3, SIZE, seed=5)
    with torch.inference_mode():
        compare(manifest.output_names, clipsight.load(tmp_path / file)(clip), model(clip))


@pytest.mark.parametrize(
    "file",
    ["plain.pt", *(pytest.param(file, marks=pytest.mark.full) for file in ("fused.onnx", "plain.onnx", "fused.pt"))],
)
def test_a_file_with_every_option(file, tmp_path):
    """Classes as an input, maps on demand, bytes in and out, two clip lengths."""
    pyramid = FeaturePyramid(theta=0.4, depth=3, volumes="feature", channels="top2")
    model = explained("Residual", SaliencyTube(), pyramid, classes="input")
    preprocessing = Preprocessing(frames=8, resize=15, crop=SIZE[1:], mean=(0.5,) * 3, std=(0.25,) * 3)
    options = {"frames": "uint8", "output": "uint8", "optional": True, "sizes": [(12, *SIZE[1:])], "inputs": ["tau"]}
    manifest = clipsight.export(model, tmp_path / file, plugin=FORMATS[file], preprocessing=preprocessing, **options)
    edges = next(output for output in manifest.outputs if output.name == "conv3.edges")
    assert edges.full_shape[:2] == ("N", "M")
    loaded = clipsight.load(tmp_path / file)
    frames = torch.randint(0, 255, (2, 12, 20, 17, 3), dtype=torch.uint8)
    classes = torch.tensor([[1, 4], [2, 0]])
    got = dict(zip(loaded.output_names, loaded(frames, classes), strict=True))
    assert got["conv3.volume"].shape[:2] == (2, 4)
    assert got["conv3.chosen"].shape == (2, 4)
    assert got["conv3.volume"].dtype == torch.uint8
    swapped = dict(zip(loaded.output_names, loaded(frames, classes.flip(1)), strict=True))
    assert torch.equal(swapped["conv3.mask"], got["conv3.mask"].flip(1))
    nothing = loaded(frames, classes, explain=False)
    assert all(tensor.numel() == 0 for tensor in nothing[1:])


def test_half_precision(tmp_path):
    model = explained("Projection", PYRAMID)
    manifest = clipsight.export(model, tmp_path / "half.pt", plugin=True, half="bfloat16")
    assert set(manifest.self_check["max_difference"]) == set(model.output_names)


@WITH_AND_WITHOUT_PLUGIN
def test_the_manifest_makes_the_pyramid(plugin, tmp_path):
    """From a file alone: the layers of its manifest and its arrays are the pyramid that the eager model gives."""
    model = explained("Grouped", PYRAMID, classes=[3, 1])
    clipsight.export(model, tmp_path / "x.onnx", plugin=plugin)
    manifest = read_manifest(tmp_path / "x.onnx")
    (method,) = [m for m in manifest.methods if m["method"] == METHOD]
    assert method["theta"] == 0.5
    clip = networks.clip(1, SIZE, seed=9)
    arrays = dict(zip(manifest.output_names, clipsight.load(tmp_path / "x.onnx")(clip.numpy()), strict=True))
    pyramid = Pyramid.from_outputs(method["layers"], arrays, class_index=1, position=1)
    with torch.inference_mode():
        eager = dict(zip(model.output_names, (o.numpy() for o in model(clip)), strict=True))
    expected = Pyramid.from_outputs(model.bound[0].found, eager, class_index=1, position=1)
    assert pyramid.table() == expected.table()
    assert [step.layer for step in pyramid] == [step.layer for step in expected]
    for step, other in zip(pyramid, expected, strict=True):
        np.testing.assert_array_equal(step.multiplicity, other.multiplicity)
        for kernel in step.kernels:
            assert set(step.connections(kernel)) <= set(range(*step.layer.reads(kernel).indices(step.layer.channels)))
    assert not pyramid.compare(expected)[step.layer.name]["first"]


@WITH_AND_WITHOUT_PLUGIN
def test_the_c_session_runs_it(plugin, tmp_path):
    from session_api import CSession

    model = explained("Residual", FeaturePyramid(theta=0.5, depth=3))
    clipsight.export(model, tmp_path / "x.onnx", plugin=plugin)
    clip = networks.clip(2, SIZE, seed=3)
    outputs = CSession(tmp_path / "x.onnx", onnxruntime_library()).run(clip.numpy())
    with torch.inference_mode():
        compare(model.output_names, map(torch.from_numpy, outputs), model(clip))


class Planted:
    """A loaded file with an error in one of its outputs."""

    def __init__(self, model, output: str, change) -> None:
        self.model, self.output, self.change = model, output, change

    def __call__(self, clip, **others):
        results = dict(zip(self.model.output_names, self.model(clip), strict=True))
        results[self.output] = self.change(results[self.output].clone())
        return tuple(results.values())


@pytest.mark.parametrize("part", ["mask", "multiplicity", "edges", "volume"])
def test_the_self_check_sees_a_planted_error(part):
    def change(tensor):
        if part in ("mask", "edges"):
            tensor.view(-1)[7] ^= True
        else:
            tensor.view(-1)[7] += 1
        return tensor

    model = explained("Residual", FeaturePyramid(theta=0.5, depth=3))
    program = Program(model, (SIZE,), plugin=True)
    assert self_check(program, Planted(model, f"conv3.{part}", lambda tensor: tensor))["clips"] == 3
    with pytest.raises(ExportError, match=rf"output 'conv3\.{part}' must agree with the eager model"):
        self_check(program, Planted(model, f"conv3.{part}", change))


def test_only_what_rounding_can_turn_is_decided_by_the_file():
    scores = torch.tensor([[[0.0, 0.5, 0.50001, 0.499, 1.0], [2.0, 2.0, 2.0, 2.0, 2.0]]])
    low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
    kept = scores - low >= 0.5 * (high - low)
    evidence = Evidence(*[None] * 7, decisions={"x.edges": ~kept})
    decided = evidence.decide("x.edges", kept, scores, 0.5)
    assert decided.tolist() == [[[False, False, False, False, True], [True] * 5]]
    assert evidence.decide("y.edges", kept, scores, 0.5) is kept
