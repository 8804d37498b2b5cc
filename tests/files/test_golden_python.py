"""Files that earlier exporters wrote go on to open in Python, to say what they said and to give the same numbers."""

from __future__ import annotations

import re
import runpy
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import clipsight
import golden_files
from clipsight import LoadError
from clipsight.manifest import read_manifest
from golden_files import NAMES, assert_agree, is_at_home, runs_of
from helpers import run_python, succeed

COMPILED = [name for name in NAMES if name.endswith(".pt2")]
LABELS = ("walk", "run", "jump – high", '"quoted"\n', "emoji \U0001f3a5")
PLAIN = {"frames": None, "output": None, "optional": False, "half": None, "plugin": False}
FUSED = PLAIN | {"plugin": True}
ON_DEMAND = {"frames": "uint8", "optional": True}
TUBE = ("saliency_tube", "selective_relevance")
# kind, model, classes, methods, and how it was exported
FACTS = {
    "tube.onnx": ("onnx", "tiny", "predicted", TUBE, PLAIN),
    "network.onnx": ("onnx", "tiny", "predicted", (), PLAIN),
    "frames.onnx": ("onnx", "Video", "input", TUBE[1:], PLAIN | ON_DEMAND | {"output": "uint8"}),
    "image.onnx": ("onnx", "Image", [1, 3], TUBE[:1], PLAIN),
    "half.onnx": ("onnx", "TwoHeads", "predicted", TUBE[:1], PLAIN | {"half": "float16", "output": "float16"}),
    "double.onnx": ("onnx", "Image", "predicted", ("saliency_tube", "guided_backprop"), PLAIN),
    "gradients.onnx": (
        "onnx",
        "Video",
        "top2",
        ("grad_cam", "guided_backprop", "guided_grad_cam", "input_gradient"),
        PLAIN,
    ),
    "relevance.onnx": (
        "onnx",
        "Video",
        "predicted",
        ("deep_taylor", "lrp_epsilon", "integrated_gradients", "selective_relevance"),
        PLAIN,
    ),
    "pyramid.onnx": ("onnx", "Video", "predicted", ("feature_pyramid", "selective_relevance"), PLAIN),
    "fused.onnx": ("onnx", "Video", "predicted", (*TUBE, "grad_cam", "feature_pyramid"), FUSED | {"optional": True}),
    "fused_half.onnx": ("onnx", "Video", "predicted", TUBE[1:], FUSED | {"half": "float16", "output": "float16"}),
    "plain.pt": ("torchscript", "Video", "predicted", (*TUBE, "grad_cam", "deep_taylor"), PLAIN),
    "fused.pt": ("torchscript", "Video", "input", TUBE[1:], FUSED | ON_DEMAND | {"output": "float16"}),
    "half.pt": (
        "torchscript",
        "Video",
        "predicted",
        ("saliency_tube", "feature_pyramid"),
        FUSED | {"half": "bfloat16", "output": "uint8"},
    ),
    "double.pt": ("torchscript", "Video", "predicted", ("saliency_tube", "lrp_epsilon"), FUSED),
    "fused.pt2": ("aot", "Video", "predicted", TUBE, FUSED | {"optional": True}),
}
# Runs a file as a program of its own, which compiled code cannot take down the tests with.
PROGRAM = """
import sys, numpy as np, clipsight, golden_files
name, path = sys.argv[1:]
try:
    loaded = clipsight.load(path)
except clipsight.LoadError as error:
    print("refused:", error)
    sys.exit()
for inputs, outputs in golden_files.runs_of(name):
    clip = inputs.pop("clip")
    golden_files.assert_agree(loaded.manifest, loaded(clip, **inputs), outputs)
    if "explain" in inputs:
        assert all(m.size == 0 for m in loaded(clip, **inputs | {"explain": False})[1:])
print("agrees")
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return golden_files.unpack(tmp_path_factory.mktemp("golden"))


def load(path):
    if path.suffix == ".onnx":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    return clipsight.load(path)


def call(loaded, inputs: dict[str, np.ndarray], **changed) -> tuple:
    inputs = inputs | changed
    return loaded(inputs.pop(loaded.manifest.input.name), **inputs)


def test_every_file_is_tested():
    assert sorted(FACTS) == NAMES
    assert {runs.stem for runs in golden_files.FILES.glob("*.npz")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_it_says(files, name):
    manifest = read_manifest(files[name])
    kind, model, classes, methods, options = FACTS[name]
    assert (manifest.kind, manifest.model, manifest.classes, manifest.num_classes) == (kind, model, classes, 5)
    assert tuple(method["method"] for method in manifest.methods) == methods
    assert manifest.options | options == manifest.options
    assert (manifest.plugin.required, manifest.clipsight_version) == (options["plugin"], "0.1.0")
    labelled = name in ("tube.onnx", "network.onnx", "plain.pt", "fused.pt2")
    assert manifest.labels == (LABELS if labelled else None)
    assert (manifest.preprocessing is not None) == (labelled or options["frames"] is not None)
    if manifest.preprocessing:
        read = manifest.preprocessing
        assert (read.size, read.resize, read.stride, read.channel_order) == ((4, 10, 8), 12, 2, "BGR")
        assert (read.mean, read.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    for run in runs_of(name):
        assert [(p.name, p.dtype) for p in manifest.input_ports] == [(n, a.dtype) for n, a in run.inputs.items()]
        assert [(o.name, o.dtype) for o in manifest.outputs] == [(n, a.dtype) for n, a in run.outputs.items()]
        ports = [*manifest.input_ports, *manifest.outputs]
        for port, array in zip(ports, [*run.inputs.values(), *run.outputs.values()], strict=True):
            shape = getattr(port, "full_shape", None) or port.shape
            assert len(shape) == array.ndim, port
            assert all(d == n for d, n in zip(shape, array.shape, strict=True) if isinstance(d, int)), port


def test_info(files):
    for name in NAMES:
        assert FACTS[name][1] in succeed("info", files[name]).output


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(COMPILED)))
def test_numbers(files, name):
    loaded = load(files[name])
    for run in runs_of(name):
        assert_agree(loaded.manifest, call(loaded, run.inputs), run.outputs)
        if "explain" in run.inputs:
            logits, *maps = call(loaded, run.inputs, explain=False)
            assert_agree(loaded.manifest, [logits], {"logits": run.outputs["logits"]})
            assert all(m.size == 0 for m in maps)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(COMPILED)))
def test_rounding_is_within_the_tolerance_and_another_input_is_not(files, name):
    loaded = load(files[name])
    run = runs_of(name)[0]
    first = next(iter(run.inputs.values()))
    if first.dtype.kind == "f":
        nudge = 1 + 4 * np.finfo(first.dtype).eps * np.random.default_rng(0).choice([-1, 0, 1], first.shape)
        nudged = (first * nudge).astype(first.dtype)
        assert_agree(loaded.manifest, call(loaded, run.inputs, clip=nudged), run.outputs)
    backwards = np.ascontiguousarray(first[:, ::-1] if first.dtype == np.uint8 else first[:, :, ::-1])
    with pytest.raises(AssertionError):
        assert_agree(loaded.manifest, call(loaded, run.inputs, **{loaded.manifest.input.name: backwards}), run.outputs)


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_value_is_noticed(files, name):
    """In every output, alone: a flipped mask, a count, one value by a hundredth of the range (a tenth in half)."""
    manifest = read_manifest(files[name])
    part = 0.1 if manifest.options["half"] else 0.01
    for run in runs_of(name):
        assert_agree(manifest, list(run.outputs.values()), run.outputs)
        for output, want in run.outputs.items():
            changed = want.copy()
            step = {"b": True, "i": 1}.get(want.dtype.kind, part * float(want.max()))
            place = np.unravel_index(want.argmin(), want.shape)
            changed[place] = changed[place] ^ step if want.dtype.kind == "b" else changed[place] + step
            with pytest.raises(AssertionError, match=output):
                assert_agree(manifest, list((run.outputs | {output: changed}).values()), run.outputs)


# ---- Machine code: it belongs to a release of torch and to a kind of CPU ---------------------------------------------


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_numbers(files, name):
    said = run_python(PROGRAM, name, files[name])
    if is_at_home(files[name]):
        assert said == "agrees\n"
    else:
        built = read_manifest(files[name]).built_with["torch"]
        assert said == "agrees\n" or f"torch {built}" in said or "the CPU must" in said, said


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_code_that_does_not_open_names_its_torch(files, name, tmp_path):
    path = tmp_path / name
    with zipfile.ZipFile(files[name]) as old, zipfile.ZipFile(path, "w") as new:
        for item in old.namelist():
            new.writestr(item, b"no library" if item.endswith(".so") else old.read(item))
    built = read_manifest(path).built_with["torch"]
    with pytest.raises(LoadError, match=rf"could not read .*compiled by torch {re.escape(built)}; here is torch"):
        clipsight.load(path)


# ---- The script that wrote them --------------------------------------------------------------------------------------


def test_no_golden_file_is_written_again(tmp_path, monkeypatch):
    folder = Path(shutil.copytree(golden_files.FILES.parent, tmp_path / "golden"))
    before = {path: path.read_bytes() for path in folder.glob("files/*")}
    monkeypatch.setattr(sys, "argv", ["make.py", "tube.onnx"])
    with pytest.raises(SystemExit, match=r"never written again, got tube\.onnx\.xz, tube\.onnx\.npz, network"):
        runpy.run_path(str(folder / "make.py"), run_name="__main__")
    assert {path: path.read_bytes() for path in folder.glob("files/*")} == before
