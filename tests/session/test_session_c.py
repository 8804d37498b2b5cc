"""libclipsight.so through its C API: the same numbers as in Python, and an error for everything that does not fit."""

from __future__ import annotations

import ctypes
import json
import subprocess
from ctypes import byref, c_char_p, c_double, c_int, c_size_t, c_uint64
from functools import partial

import numpy as np
import pytest
import torch

import networks
from artifacts import HEADS
from building import compiler
from clipsight import load
from clipsight.manifest import read_manifest
from helpers import onnxruntime_library
from session_api import ABI, CError, Class, CSession, Options, Port, Tensor, load_library
from session_files import assert_message, bad_files, with_manifest

pytest.importorskip("onnx", reason="onnx is not installed")

LABELS = ["walk", "run", "jump – high", '"quoted"\n', "emoji \U0001f3a5"]
TOLERANCE = 1e-5
PREPROCESSING = {"frames": 8, "resize": 40, "crop": (32, 32), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}


@pytest.fixture(scope="module")
def files(artifact, tmp_path_factory):
    labelled = tmp_path_factory.mktemp("c") / "clip.onnx"
    export = partial(artifact, "ModulePool", HEADS, ".onnx")
    return {
        "clip": with_manifest(export(), labelled, labels=LABELS),
        "classes": export("input", sizes=[(8, 24, 40)]),
        "frames": export(frames="uint8", preprocessing=PREPROCESSING),
        "options": export(optional=True, inputs=("tau", "n_sigma")),
        "plugin": export(plugin=True),
    }


@pytest.fixture(scope="module")
def open_session(files):
    runtime = onnxruntime_library()
    return lambda name, **options: CSession(files[name], runtime, **options)


def clip(batch: int = 2, size=(8, 32, 32), seed: int = 5) -> np.ndarray:
    return networks.clip(batch, size, seed).numpy()


def assert_same(session: CSession, inputs, expected) -> None:
    got = session.run(*inputs)
    assert len(got) == len(expected)
    for mine, want in zip(got, expected, strict=True):
        assert mine.dtype == want.dtype
        np.testing.assert_allclose(mine, want, atol=TOLERANCE, rtol=0)


def assert_says(session: CSession, file) -> None:
    """Ports and manifest are the file's."""
    manifest = load(file).manifest
    assert session.ports("input") == [tuple(port) for port in manifest.input_ports], file
    assert [p[:2] for p in session.ports("output")] == [(o.name, o.dtype) for o in manifest.outputs]
    text = c_char_p()
    session.call("manifest", byref(text))
    assert json.loads(text.value) == json.loads(manifest.to_json())


# ---- The same numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clip", "plugin"])
def test_clips(files, open_session, name):
    session, loaded = open_session(name), load(files[name])
    for batch in (1, 3):
        assert_same(session, [clip(batch)], loaded(clip(batch)))
    other = loaded(clip(3, seed=6))
    with pytest.raises(AssertionError):  # another clip gives other numbers
        assert_same(session, [clip(3)], other)


def test_classes_and_sizes(files, open_session):
    session, loaded = open_session("classes"), load(files["classes"])
    for size in ((8, 32, 32), (8, 24, 40)):
        inputs = clip(2, size), np.array([[0, 4, 2], [1, 1, 3]])
        assert_same(session, inputs, loaded(*inputs))


def test_frames_of_any_size(files, open_session):
    session, loaded = open_session("frames"), load(files["frames"])
    for height, width in ((48, 64), (90, 50)):
        frames = np.random.default_rng(1).integers(0, 256, (2, 8, height, width, 3), np.uint8)
        assert_same(session, [frames], loaded(frames))


@pytest.mark.parametrize("plugin", [True, pytest.param(False, marks=pytest.mark.full)])
def test_frames_smaller_than_the_crop(artifact, plugin):
    preprocessing = PREPROCESSING | {"resize": None}
    file = artifact("ModulePool", HEADS, ".onnx", frames="uint8", preprocessing=preprocessing, plugin=plugin)
    session, frames = CSession(file, onnxruntime_library()), np.zeros((2, 8, 32, 40, 3), np.uint8)
    assert_says(session, file)
    assert_same(session, [frames], load(file)(frames))
    with pytest.raises(CError, match="the crop must fit into the resized frame, got 24 pixels for 32"):
        session.run(frames[:, :, :24])


def test_options(files, open_session):
    session, loaded = open_session("options"), load(files["options"])
    given = {"tau": np.float32([0.1, -0.2]), "n_sigma": np.float32([1, 3])}
    for wanted in ([True, False], [True, True]):
        explain = np.array(wanted)
        assert_same(session, [clip(), explain, *given.values()], loaded(clip(), explain=explain, **given))
    skipped = session.run(clip(), np.zeros(2, bool), *given.values())
    expected = loaded(clip(), explain=False, **given)
    assert [s.shape for s in skipped] == [e.shape for e in expected]
    assert all(s.size == 0 for s in skipped[1:])
    np.testing.assert_allclose(skipped[0], expected[0], atol=TOLERANCE)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["clip", "plugin"])
@pytest.mark.usefixtures("cuda_provider")
def test_memory_of_the_gpu(files, open_session, name):
    """Inputs and outputs on the device, and mixed with the host's; the numbers are those of the CPU."""
    session, array = open_session(name, device=b"cuda"), clip()
    expected = load(files[name])(array)
    for on_device in ([True, True], [True, False], [False, True], [False, False]):
        devices = ["cuda" if there else "cpu" for there in on_device]
        given = torch.from_numpy(array).to(devices[0])
        outputs = [torch.full(e.shape, 77.0, device=devices[1]) for e in expected]
        torch.cuda.synchronize()
        views = (Tensor * len(outputs))(*map(Tensor.of_torch, outputs))
        session.call("run", byref(Tensor.of_torch(given)), 1, views, len(outputs))
        for i, (mine, want) in enumerate(zip(outputs, expected, strict=True)):
            apart = np.abs(mine.cpu().numpy() - want) > 2e-3  # convolutions in TF32
            assert apart.mean() <= (0.02 if i == 2 else 0), (
                i
            )  # motion: a voxel on the threshold may fall on either side


def test_what_the_file_says(files, open_session):
    for name in files:
        assert_says(open_session(name), files[name])


def test_top_classes(open_session):
    session = open_session("clip")
    logits = session.run(clip())[0]
    probabilities = torch.softmax(torch.from_numpy(logits), 1)
    for sample in range(2):
        top = (Class * 5)()
        session.call("top_classes", Tensor.of(logits), sample, top, 5)
        values, indices = probabilities[sample].sort(descending=True)
        assert [c.index for c in top] == indices.tolist()
        assert [c.label.decode() for c in top] == [LABELS[i] for i in indices]
        np.testing.assert_allclose([c.probability for c in top], values, atol=1e-6)
    half = logits.astype(np.float16)
    session.call("top_classes", Tensor.of(half), 1, top, 1)
    assert top[0].probability == pytest.approx(
        torch.softmax(torch.from_numpy(half[1]).float(), 0).max().item(), abs=1e-6
    )


def top_of(session: CSession, logits: np.ndarray, sample: int, count: int) -> tuple[list[int], list[float]]:
    top = (Class * count)()
    session.call("top_classes", Tensor.of(logits), sample, top, count)
    return [c.index for c in top], [c.probability for c in top]


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "none", None])
@pytest.mark.parametrize("classes", [5, 1])
def test_top_classes_by_what_the_file_says(files, tmp_path, name, classes):
    """`None`: a file of an earlier version."""
    path = with_manifest(files["clip"], tmp_path / "x.onnx", labels=None, num_classes=classes, probability=name)
    if name is None:
        path = with_manifest(files["clip"], path, labels=None, num_classes=classes, probability=..., target=...)
    session, value = CSession(path, onnxruntime_library()), c_int(7)
    session.call("probability", byref(value))
    name = name or ("softmax" if classes > 1 else "sigmoid")
    assert value.value == ["softmax", "sigmoid", "none"].index(name)
    logits = np.float32([[-9, 1, 0.5, -1, 3], [0.87, 0, 3, 3, 2]])[:, :classes]
    as_read = {"softmax": lambda x: x.softmax(0), "sigmoid": torch.sigmoid, "none": lambda x: x}[name]
    for dtype in (np.float32, np.float64):
        for sample, row in enumerate(torch.from_numpy(logits)):
            values, indices = as_read(row).sort(descending=True, stable=True)
            found = top_of(session, logits.astype(dtype), sample, classes)
            assert found[0] == indices.tolist()
            np.testing.assert_allclose(found[1], values, rtol=1e-6)
    in_python = read_manifest(path).reading.probabilities(logits[0])
    np.testing.assert_allclose(in_python, as_read(torch.from_numpy(logits[0])), rtol=1e-6)


TARGETS = {
    "mean": ({"steps": "mean", "layout": "NKT"}, lambda x: x.mean(-1)),
    "max": ({"steps": "max", "layout": "NKT"}, lambda x: x.amax(-1)),
    "a step": ({"steps": 2, "layout": "NKT"}, lambda x: x[..., 2]),
    "a step from the end": ({"steps": -3, "layout": "NTK"}, lambda x: x[..., -3]),
    "max of the classes last": ({"steps": "max", "layout": "NTK"}, lambda x: x.amax(-1)),
    "steps of one logit": ({"steps": "mean", "layout": "NT"}, lambda x: x.mean(-1)),
}


@pytest.mark.parametrize("name", TARGETS)
def test_top_classes_of_steps(files, tmp_path, name):
    target, reduce = TARGETS[name]
    classes = 1 if target["layout"] == "NT" else 5
    facts = {"labels": None, "num_classes": classes, "probability": "sigmoid", "target": target}
    session = CSession(with_manifest(files["clip"], tmp_path / "x.onnx", **facts), onnxruntime_library())
    each = torch.randn(2, classes, 4, generator=torch.Generator().manual_seed(1))
    logits = {"NKT": each, "NTK": each.transpose(1, 2), "NT": each[:, 0]}[target["layout"]].contiguous().numpy()
    for sample in range(2):
        values, indices = reduce(each)[sample].sigmoid().sort(descending=True)
        found = top_of(session, logits, sample, classes)
        assert found[0] == indices.tolist()
        np.testing.assert_allclose(found[1], values, rtol=1e-6)
    with pytest.raises(CError, match=r"top_classes: logits must be floating \[N, .*T.*\] in the host's memory"):
        top_of(session, np.zeros((1, 2, 3, 4), np.float32), 0, 1)
    if "step from" in name:
        with pytest.raises(CError, match=r"logits must have the step -3 of the target, got \[1, 2, 5\]"):
            top_of(session, np.zeros((1, 2, 5), np.float32), 0, 1)


def test_top_classes_of_two_heads(files, tmp_path):
    target = {"heads": ["verb", "noun"], "head_classes": [2, 3]}
    path = with_manifest(files["clip"], tmp_path / "x.onnx", labels=LABELS, target=target)
    session, logits = CSession(path, onnxruntime_library()), np.float32([[4, 3, 0.5, -0.5, 2]])
    parts = torch.from_numpy(logits[0]).split([2, 3])
    values, indices = torch.cat([part.softmax(0) for part in parts]).sort(descending=True)
    found = top_of(session, logits, 0, 5)
    assert found[0] == indices.tolist()
    np.testing.assert_allclose(found[1], values, rtol=1e-6)
    with pytest.raises(CError, match="labels must be one for each of 4 classes, got 5"):
        top_of(session, logits[:, :4], 0, 1)


def test_map_region(files, open_session):
    from clipsight.windows import Geometry

    region = (c_double * 4)()
    session = open_session("frames")
    preprocessing = load(files["frames"]).manifest.preprocessing
    for source in ((48, 64), (90, 50), (41, 40)):
        session.call("map_region", *source, region)
        geometry = Geometry.of(preprocessing, source)
        scale = [full / resized for full, resized in zip(source, geometry.resized, strict=True)]
        expected = [o * s for o, s in zip(geometry.offset, scale, strict=True)] + [32 * s for s in scale]
        np.testing.assert_allclose(region[:], expected)
    with pytest.raises(CError, match=r"map_region: height and width must lie in 1\.\.2147483647, got 0 and 5"):
        session.call("map_region", 0, 5, region)


# ---- Errors --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken(files, tmp_path_factory):
    return bad_files(files["clip"], tmp_path_factory.mktemp("bad"))


def test_bad_files(broken):
    runtime = onnxruntime_library()
    for name, (path, plugin, message) in broken.items():
        with pytest.raises(CError) as caught:
            CSession(path, runtime, plugin)
        assert_message(f"{name}: {caught.value}", message)


def test_nothing_that_a_file_names_is_written_or_loaded(broken):
    """Behind `test_bad_files`, whose files name them."""
    folder = broken["a session entry that writes"][0].parent
    assert not [path for path in folder.iterdir() if path.name.startswith(("written", "evil"))]


def test_a_library_that_a_file_names_does_not_run(files, tmp_path):
    """Its constructor would; where it lies, the file says by a way out of the package's folder."""
    source, library, mark = tmp_path / "evil.c", tmp_path / "libevil.so", tmp_path / "ran"
    source.write_text(
        f'#include <stdio.h>\n__attribute__((constructor)) void f(void) {{ fclose(fopen("{mark}", "w")); }}'
    )
    subprocess.run([compiler("C"), "-shared", "-fPIC", source, "-o", library], check=True)
    outside = "/" + "../" * 20 + str(library.with_suffix("")).removeprefix("/")
    plugin = {"required": True, "library": outside}
    hostile = with_manifest(files["clip"], tmp_path / "hostile.onnx", plugin=plugin)
    with pytest.raises(CError, match=r"plugin\.library must be one of clipsight_torch, clipsight_onnxruntime"):
        CSession(hostile, onnxruntime_library())
    assert not mark.exists()
    ctypes.CDLL(str(library))  # negative control
    assert mark.exists()


def test_the_kind_may_be_stated(files, tmp_path):
    renamed = tmp_path / "movers.model"
    renamed.write_bytes(files["clip"].read_bytes())
    for options in ({}, {"kind": "onnx"}):
        assert_says(CSession(renamed, onnxruntime_library(), **options), files["clip"])
    with pytest.raises(CError, match="must be of the kind 'aot' by what open_as was told, got 'onnx'"):
        CSession(renamed, onnxruntime_library(), kind="aot")


def test_messages_are_text_without_control_characters():
    library = load_library()
    assert library.clipsight_open("caf\u00e9 \x1b[2J\u009b\n".encode() + b"\xff.onnx", None, byref(c_uint64())) == 1
    assert "got 'caf\u00e9 ?[2J?\n?.onnx'" in library.clipsight_last_error().decode()
    assert library.clipsight_open(b"x" * 4000, None, byref(c_uint64())) == 1
    assert len(library.clipsight_last_error()) == 2047


def test_bad_options(files, open_session):
    with pytest.raises(CError, match=r"compiled with headers of ABI version 2.*, got 3"):
        open_session("clip", abi=3)
    with pytest.raises(CError, match="device must be 'cpu', 'cuda' or 'cuda:<number>', got 'tpu'"):
        open_session("clip", device=b"tpu")
    with pytest.raises(CError, match="threads must be 0 or more, got -1"):
        open_session("clip", threads=-1)
    with pytest.raises(CError, match=r"ONNX Runtime must be where the loader finds it .*libnone\.so"):
        CSession(files["clip"], "libnone.so")
    with pytest.raises(CError, match="must be ONNX Runtime, got a library without OrtGetApiBase"):
        CSession(files["clip"], "libm.so.6")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_no_cuda(open_session):
    with pytest.raises(CError, match="open: ONNX Runtime could not"):
        open_session("clip", device=b"cuda")


def test_bad_inputs(open_session):
    session, good = open_session("classes"), clip()
    cases = [
        ([good], r"inputs must be 2 \(clip, classes\), got 1"),
        ([clip(2, (8, 32, 40)), None], r"\[N, 3, 8, 32, 32\] or \[N, 3, 8, 24, 40\], got \[2, 3, 8, 32, 40\]"),
        ([clip(0), None], r"clip must have at least one sample, got \[0, 3, 8, 32, 32\]"),
        ([good.astype(np.float16), None], "clip must be float32, got float16"),
        ([good, np.zeros((1, 1), np.int64)], r"classes must have shape \[N, M\], got \[1, 1\] beside 2 samples"),
        ([good, np.zeros((2, 0), np.int64)], r"classes must have shape \[N, M\], got \[2, 0\]"),
        ([good, np.full((2, 1), 5)], r"classes must lie in 0\.\.4, got 5"),
        ([good, np.full((2, 1), -1)], r"classes must lie in 0\.\.4, got -1"),
    ]
    for inputs, message in cases:
        inputs = [np.zeros((2, 1), np.int64) if i is None else i for i in inputs]
        with pytest.raises(CError, match=message):
            session.run(*inputs)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("data", None, "clip must not be null"),
        ("rank", 9, r"rank must lie in 0\.\.8, got 9"),
        ("rank", -1, r"rank must lie in 0\.\.8, got -1"),
        ("dtype", 7, "dtype must be one of .*, got 7"),
        ("device", 7, "device must be CLIPSIGHT_CPU or CLIPSIGHT_CUDA, got 7"),
        ("device", 1, "clip must lie in the host's memory or on the session's device cpu, got cuda:0"),
    ],
)
def test_bad_tensor(open_session, field, value, message):
    session, array = open_session("clip"), clip()
    tensor, outputs = Tensor.of(array), (Tensor * 4)()
    setattr(tensor, field, value)
    for call in ("output_shapes", "run"):
        with pytest.raises(CError, match=message):
            session.call(call, byref(tensor), 1, outputs, 4)


def test_null_pointers(open_session):
    session, array = open_session("clip"), clip()
    view, outputs = Tensor.of(array), (Tensor * 4)()
    handle, options = c_uint64(7), Options(2, 0, None, None, None)
    calls = {
        "path must not be null": partial(session.call, "open", None, byref(options), byref(handle), handle=False),
        "session must not be null": partial(session.call, "open", b"x", None, None, handle=False),
        "json must not be null": partial(session.call, "manifest", None),
        "port must not be null": partial(session.call, "input", 0, None),
        "region must not be null": partial(session.call, "map_region", 9, 9, None),
        "inputs must not be null": partial(session.call, "run", None, 1, outputs, 4),
        "outputs must not be null": partial(session.call, "run", byref(view), 1, None, 4),
        "logits must not be null": partial(session.call, "top_classes", None, 0, (Class * 1)(), 1),
        "probability must not be null": partial(session.call, "probability", None),
        "classes must not be null": partial(session.call, "top_classes", byref(view), 0, None, 1),
        "logits must not be null, got a null": partial(session.call, "run", byref(view), 1, named(session), 4),
    }
    for message, call in calls.items():
        with pytest.raises(CError, match=message):
            call()
    session.call("counts", None, None, None)


def named(session: CSession):
    """Outputs of the right shapes whose memory is missing."""
    outputs, array = (Tensor * 4)(), clip()
    session.call("output_shapes", byref(Tensor.of(array)), 1, outputs, 4)
    return outputs


def test_bad_counts(open_session):
    session, array = open_session("clip"), clip()
    with pytest.raises(CError, match=r"outputs must be 4 .*, got 3"):
        session.call("run", byref(Tensor.of(array)), 1, (Tensor * 4)(), 3)
    with pytest.raises(CError, match="inputs must be at most 32 tensors, got 33"):
        session.call("run", (Tensor * 33)(), 33, (Tensor * 4)(), 4)
    with pytest.raises(CError, match="index must be below 1, got 1"):
        session.call("input", 1, byref(Port()))
    logits = session.run(array)[0]
    with pytest.raises(CError, match="count must be at most the number of classes, got 6"):
        session.call("top_classes", Tensor.of(logits), 0, (Class * 6)(), 6)


def test_closed_handle(open_session):
    session, array = open_session("clip"), clip()
    other = open_session("clip")
    session.call("close")
    for _ in range(3):  # the slot is used again, but the number is another
        again = open_session("clip")
        assert again.handle.value != session.handle.value
        calls = [
            partial(session.call, "close"),
            partial(session.call, "counts", None, None, None),
            partial(session.call, "input", 0, byref(Port())),
            partial(session.call, "run", byref(Tensor.of(array)), 1, (Tensor * 4)(), 4),
        ]
        for call in calls:
            with pytest.raises(CError, match=r"session must be an open one, got .* closed or never opened"):
                call()
        again.call("close")
    for never in (0, 2**64 - 1, 2**32, 12345):
        session.handle = c_uint64(never)
        with pytest.raises(CError, match="never opened"):
            session.call("close")
    assert other.run(array)


def test_version():
    library = load_library()
    import clipsight

    assert library.clipsight_version().decode() == clipsight.__version__
    assert library.clipsight_abi_version() == ABI


def test_the_message_belongs_to_the_thread(open_session):
    import threading

    library = load_library()
    library.clipsight_close(0)
    seen = []
    worker = threading.Thread(target=lambda: seen.append(library.clipsight_last_error()))
    worker.start()
    worker.join()
    assert seen == [b""]
    assert b"never opened" in library.clipsight_last_error()


def test_sizes_of_the_structures():
    """As a C compiler lays them out on a 64-bit machine."""
    assert [ctypes.sizeof(s) for s in (Options, Tensor, Port, Class)] == [32, 88, 88, 24]
    assert ctypes.sizeof(c_size_t) == 8
