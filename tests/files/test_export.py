"""Exported files: they say what the eager model says, in a process of their own, and a wrong one is never written."""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import artifacts
import clipsight
import networks
from artifacts import ALL_OUTPUTS as HEADS
from artifacts import OTHER_SIZE
from clipsight import ExportError, Manifest, Preprocessing, SaliencyTube, SelectiveRelevance, explain, export, exporters
from clipsight.manifest import read_manifest
from helpers import import_torchvision, run_python

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

FILES = {"plain.pt": False, "fused.pt": True, "plain.onnx": False}

# Programs that know nothing of clipsight: folders with inputs.npz in, the outputs or an error beside it out.
TORCHSCRIPT = """
import sys, numpy as np, torch
file, library, *folders = sys.argv[1:]
if library:
    torch.ops.load_library(library)
model = torch.jit.load(file)
for folder in folders:
    try:
        with torch.inference_mode():
            outputs = model(*map(torch.from_numpy, np.load(f"{folder}/inputs.npz").values()))
        np.savez(f"{folder}/outputs.npz", *(tensor.numpy() for tensor in outputs))
    except Exception as error:
        open(f"{folder}/error", "w").write(str(error))
assert not any(name.startswith("clipsight") for name in sys.modules)
"""
ONNX = """
import sys, numpy as np, onnxruntime
file, _, *folders = sys.argv[1:]
session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
for folder in folders:
    try:
        np.savez(f"{folder}/outputs.npz", *session.run(None, dict(np.load(f"{folder}/inputs.npz"))))
    except Exception as error:
        open(f"{folder}/error", "w").write(str(error))
assert not any(name in ("clipsight", "torch") for name in sys.modules)
"""


def run_alone(file, folder, *runs) -> list[list[np.ndarray] | str]:
    """What each run's inputs give, outputs or an error, in a fresh process with nothing but the file's runtime (and,
    for fused ops, the library)."""
    folders = [folder / f"run{i}" for i in range(len(runs))]
    for each, inputs in zip(folders, runs, strict=True):
        each.mkdir()
        np.savez(each / "inputs.npz", **{n: i.numpy() for n, i in zip(("clip", "classes"), inputs, strict=False)})
    library = clipsight.get_library_path("torch") if read_manifest(file).plugin.required else ""
    run_python(ONNX if file.suffix == ".onnx" else TORCHSCRIPT, file, library, *folders)
    errors = [(each / "error") for each in folders]
    return [
        error.read_text() if error.exists() else list(np.load(each / "outputs.npz").values())
        for error, each in zip(errors, folders, strict=True)
    ]


def assert_agree(names, got, expected) -> None:
    """Logits within 1e-4 of the largest, maps within 1e-4; in masked maps 0.1 % of the voxels may be on the border."""
    assert len(got) == len(expected) == len(names)
    for name, a, b in zip(names, got, map(np.asarray, expected), strict=True):
        assert a.shape == b.shape, name
        assert a.dtype == b.dtype, name
        difference = np.abs(a.astype(np.float64) - b)
        bound = {"logits": 1e-4 * np.abs(b).max(), "motion_share": 1e-3, "saliency_tube_peak_box": 1}.get(name, 1e-4)
        share = 1e-3 if name in ("motion", "static") else 0
        assert (difference > bound).mean() <= share, (name, difference.max())


def changed(explained, change):
    """The explained model whose plain variant, the one that is exported, is changed: what a broken export would do."""

    class Changed(nn.Module):
        def __init__(self, whole):
            super().__init__()
            self.whole = whole

        def forward(self, clip, classes=None):
            return change(self.whole, clip, classes)

    original = explained.at
    explained.at = lambda size, plugin=True: original(size, plugin) if plugin else Changed(original(size, plugin))
    return explained


def with_map(outputs, new) -> tuple:
    return (outputs[0], new, *outputs[2:])


@pytest.fixture(scope="module")
def explained():
    return explain(networks.seeded(networks.ModulePool), HEADS, networks.clip())


@pytest.fixture(scope="module")
def files(artifact):
    return {
        name: artifact("ModulePool", HEADS, Path(name).suffix, sizes=[OTHER_SIZE], plugin=plugin)
        for name, plugin in FILES.items()
    }


@pytest.mark.parametrize("name", FILES)
def test_file_in_fresh_process(files, explained, tmp_path, name):
    clips = networks.clip(seed=17), networks.clip(3, OTHER_SIZE, seed=17)
    *results, refused = run_alone(
        files[name], tmp_path, *((clip,) for clip in (*clips, networks.clip(size=(8, 48, 40))))
    )
    for clip, got in zip(clips, results, strict=True):
        with torch.inference_mode():
            assert_agree(explained.output_names, got, explained(clip))
    assert re.search(r"\[N, 3, 8, 32, 32\] or \[N, 3, 12, 48, 40\]|8x32x32_or_12x48x40", refused)


@pytest.mark.parametrize("name", FILES)
def test_manifest_in_file(files, explained, name):
    manifest = read_manifest(files[name])
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.kind == ("onnx" if name.endswith("onnx") else "torchscript")
    assert manifest.sizes == ((8, 32, 32), OTHER_SIZE)
    assert manifest.plugin.required == (name == "fused.pt")
    assert manifest.output_names == explained.output_names
    shapes = {output.name: output.shape for output in manifest.outputs}
    assert shapes["logits"] == ("N", 5)
    assert shapes["motion"] == ("N", 1, "T", "H", "W")
    assert shapes["saliency_tube_per_frame"] == ("N", 1, "T")
    assert manifest.methods == json.loads(json.dumps([head.describe() for head in HEADS]))
    assert manifest.temporal_resolution == 4
    assert manifest.self_check["max_difference"]["saliency_tube"] < 1e-4
    assert manifest.clipsight_version == clipsight.__version__


def test_manifest_of_the_callers_facts(explained, tmp_path):
    preprocessing = Preprocessing(frames=8, crop=(32, 32), resize=36, mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2))
    labels = {"b": 1, "a": 0, "c": 2, "e": 4, "d": 3}
    file = tmp_path / "x.pt"
    returned = export(
        explained, file, networks.clip(seed=5), plugin=False, labels=labels, preprocessing=preprocessing, name="net"
    )
    manifest = read_manifest(file)
    assert manifest == returned
    assert (manifest.labels, manifest.preprocessing, manifest.model) == (tuple("abcde"), preprocessing, "net")


def test_digest_follows_the_weights(explained, files):
    other = networks.seeded(networks.ModulePool)
    before = read_manifest(files["plain.pt"]).weights_digest
    assert clipsight.manifest.weights_digest(other) == before
    with torch.no_grad():
        other.fc.bias[0] += 1e-6
    assert clipsight.manifest.weights_digest(other) != before


class Wide(networks.ModulePool):
    """Half a megabyte of weights in one layer, so that a second copy would show in the file's size."""

    def __init__(self) -> None:
        super().__init__()
        self.body.append(nn.Conv3d(12, 400, 3, padding=1))
        self.fc = nn.Linear(400, 5)


@pytest.mark.parametrize("suffix", [".pt", ".onnx"])
def test_several_sizes_store_the_weights_once(tmp_path, suffix):
    model = networks.seeded(Wide)
    explained = explain(model, SaliencyTube(), networks.clip())
    file = tmp_path / f"x{suffix}"
    export(explained, file, plugin=False, sizes=[(8, 32, 40)], precheck=False)
    weights = sum(p.nbytes for p in model.parameters())
    assert weights > 500_000
    assert weights < os.path.getsize(file) < 1.25 * weights


def test_onnx_matches_a_low_opset_and_has_named_axes(files):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    model = onnx.load(files["plain.onnx"])
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [
        "N",
        3,
        "T",
        "H",
        "W",
    ]
    assert os.fsencode(os.getcwd()) not in (files["plain.onnx"]).read_bytes()


@pytest.mark.parametrize(
    "heads, suffix, options",
    [
        (artifacts.HEADS, ".pt", {"plugin": False}),
        (artifacts.HEADS, ".onnx", {"sizes": [(8, 24, 40)]}),
        pytest.param(HEADS, ".pt", {"plugin": False}, marks=pytest.mark.full),
        pytest.param(HEADS, ".onnx", {"plugin": False}, marks=pytest.mark.full),
    ],
)
def test_classes_as_input(artifact, tmp_path, heads, suffix, options):
    explained = explain(networks.seeded(networks.ModulePool), heads, networks.clip(), "input")
    file = artifact("ModulePool", heads, suffix, "input", **options)
    assert read_manifest(file).classes_input.num_classes == 5
    clip, classes = networks.clip(2), torch.tensor([[4, 0, 1], [2, 2, 3]])
    (got,) = run_alone(file, tmp_path, (clip, classes))
    with torch.inference_mode():
        assert_agree(explained.output_names, got, explained(clip, classes))


def test_half_precision_torchscript(tmp_path):
    model = networks.seeded(networks.ModulePool).bfloat16()
    explained = explain(model, SaliencyTube(dtype="uint8"), networks.clip().bfloat16())
    manifest = export(explained, tmp_path / "x.pt", plugin=False)
    assert manifest.input.dtype == "bfloat16"
    assert [o.dtype for o in manifest.outputs] == ["bfloat16", "uint8"]


@pytest.mark.full
@pytest.mark.parametrize("name", ["x.pt", "x.onnx"])
def test_r3d_18(tmp_path, name):
    torchvision = import_torchvision()
    model = networks.seeded(torchvision.models.video.r3d_18)
    explained = explain(model, (SaliencyTube(), SelectiveRelevance()), networks.clip(size=(16, 32, 32)))
    export(explained, tmp_path / name)
    clip = networks.clip(2, (16, 32, 32), seed=23)
    (got,) = run_alone(tmp_path / name, tmp_path, (clip,))
    with torch.inference_mode():
        assert_agree(explained.output_names, got, explained(clip))


# ---- What must fail -------------------------------------------------------------------------------------------------

BROKEN = {
    "a baked-in map": (
        lambda whole, clip, classes: with_map(r := whole(clip), torch.linspace(0, 1, 32).expand_as(r[1]).clone()),
        "'saliency_tube' must change with the clip",
    ),
    "a wrong map": (
        lambda whole, clip, classes: with_map(r := whole(clip), 1 - r[1]),
        r"'saliency_tube' must agree with the eager model within 0\.0001 .* got a largest difference of",
    ),
    "a slightly wrong map": (
        lambda whole, clip, classes: with_map(r := whole(clip), r[1] + 3e-4),
        "'saliency_tube' must agree",
    ),
    "a blank map": (
        lambda whole, clip, classes: with_map(r := whole(clip), 0 * r[1]),
        "'saliency_tube' must agree",
    ),
    "wrong logits": (lambda whole, clip, classes: ((r := whole(clip))[0] * 1.001, *r[1:]), "'logits' must agree"),
    "the maps of the batch's first sample": (
        lambda whole, clip, classes: with_map(r := whole(clip), r[1][:1].expand_as(r[1])),
        "'saliency_tube' must",
    ),
    "a wrong mask": (
        lambda whole, clip, classes: (*(r := whole(clip))[:4], r[4] * (r[4] > 0.5), *r[5:]),
        r"'motion' must agree .* all but 0\.1% of the voxels",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_file_is_not_written(tmp_path, what):
    change, message = BROKEN[what]
    explained = changed(explain(networks.seeded(networks.ModulePool), HEADS, networks.clip()), change)
    file = tmp_path / "x.pt"
    file.write_bytes(b"an older file")
    with pytest.raises(ExportError, match=message):
        export(explained, file, plugin=False)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]
    assert file.read_bytes() == b"an older file"


def test_broken_onnx_is_not_written(tmp_path):
    change, message = BROKEN["a baked-in map"]
    explained = changed(explain(networks.seeded(networks.ModulePool), SaliencyTube(), networks.clip()), change)
    with pytest.raises(ExportError, match=message):
        export(explained, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_ignored_classes_input_is_an_error(tmp_path):
    model = explain(networks.seeded(networks.ModulePool), HEADS, networks.clip(), "input")
    explained = changed(model, lambda whole, clip, classes: whole(clip, torch.zeros_like(classes)))
    with pytest.raises(ExportError, match="'saliency_tube' must change with the input classes"):
        export(explained, tmp_path / "x.pt", plugin=False)
    assert not list(tmp_path.iterdir())


class OneFrame(networks.ModulePool):
    def __init__(self) -> None:
        super().__init__()
        self.body.append(nn.MaxPool3d((4, 1, 1)))


def test_still_maps_warn_but_do_not_fail(tmp_path):
    with pytest.warns(UserWarning, match="single frame"):
        explained = explain(networks.seeded(OneFrame), HEADS, networks.clip())
    with pytest.warns(UserWarning, match="motion had the same value everywhere"):
        manifest = export(explained, tmp_path / "x.pt", plugin=False)
    assert manifest.temporal_resolution == 1
    assert manifest.self_check["not_checked_to_follow_input"] == ["motion"]


def test_ops_of_the_library_are_refused_in_a_plain_file(explained, tmp_path, monkeypatch):
    fused = type(explained).at
    monkeypatch.setattr(type(explained), "at", lambda self, size, plugin=True: fused(self, size, True))
    with pytest.raises(ExportError, match="plain torch only"):
        export(explained, tmp_path / "x.pt", plugin=False)


@pytest.mark.parametrize(
    "path, options, error, message",
    [
        ("x.tflite", {}, ValueError, r"path must end in one of \.pt, \.onnx, \.pt2 .* got 'x\.tflite'"),
        ("x", {}, ValueError, "path must end in one of"),
        ("no/such/x.pt", {}, FileNotFoundError, "the folder of path must exist"),
        ("x.pt", {"labels": ["a", "b"]}, ValueError, "export: labels must name 5 classes like the model, got 2"),
        ("x.pt", {"example": networks.clip(size=(8, 16, 16))}, ValueError, r"example must be .* \[1, 3, 8, 16, 16\]"),
        ("x.pt", {"sizes": [(8, 32)]}, ValueError, r"triples \(T, H, W\)"),
        ("x.pt", {"sizes": [(8, 32, 0)]}, ValueError, "positive integers"),
        ("x.pt", {"preprocessing": Preprocessing()}, ValueError, r"got \(16, 112, 112\)"),
    ],
)
def test_arguments(explained, tmp_path, path, options, error, message):
    with pytest.raises(error, match=message):
        export(explained, tmp_path / path, **options)
    assert not list(tmp_path.iterdir())


def test_only_explained_models(tmp_path):
    with pytest.raises(TypeError, match=r"must come from clipsight\.explain, got Linear"):
        export(nn.Linear(2, 2), tmp_path / "x.pt")


def test_onnx_size_limit(explained, tmp_path, monkeypatch):
    monkeypatch.setattr("clipsight.exporters.onnx.LARGEST", 1000)
    with pytest.raises(ExportError, match="less than 2 GiB"):
        export(explained, tmp_path / "x.onnx")


def test_failed_write_leaves_nothing(explained, tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(exporters.os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        export(explained, tmp_path / "x.pt", plugin=False, precheck=False)
    assert not list(tmp_path.iterdir())


def test_torchscript_archive_is_frozen(files):
    with zipfile.ZipFile(files["plain.pt"]) as archive:
        code = "".join(archive.read(n).decode() for n in archive.namelist() if n.endswith(".py"))
    assert "torch.batch_norm" not in code
    assert "clipsight" not in code
