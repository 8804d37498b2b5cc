"""<clipsight/session.h> in C++ programs that are built against the installed package, outside of the source tree."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

import clipsight
import networks
from artifacts import HEADS
from clipsight import load
from clipsight.manifest import read_manifest
from clipsight.render import JET
from clipsight.synthetic import moving_shapes
from clipsight.targets import Reading
from clipsight.windows import Geometry
from helpers import onnxruntime_library
from session_files import assert_message, bad_files, with_manifest

pytest.importorskip("onnx", reason="onnx is not installed")


@pytest.fixture(scope="module")
def small(artifact) -> Path:
    return artifact("ModulePool", HEADS, ".onnx")


@pytest.fixture(scope="module")
def session(program) -> Path:
    return program("tests/programs/session/session")


def run(executable: Path, *arguments: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"ONNXRUNTIME": str(onnxruntime_library())}
    command = [executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)


def test_outputs(small, session, tmp_path):
    clip = networks.clip(3, seed=7).numpy()
    clip.tofile(tmp_path / "clip")
    done = run(session, "run", small, tmp_path / "clip", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    expected = np.concatenate([output.ravel() for output in load(small)(clip)])
    np.testing.assert_allclose(np.fromfile(tmp_path / "out", np.float32), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("plugin", [False, True])
def test_eight_threads_give_the_bits_of_one(session, artifact, plugin):
    done = run(session, "threads", artifact("ModulePool", HEADS, ".onnx", **{"plugin": True} if plugin else {}))
    assert done.returncode == 0, done


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "none"])
def test_top_classes_by_what_the_file_says(small, session, tmp_path, name):
    file = with_manifest(small, tmp_path / "x.onnx", probability=name, labels=list("abcde"))
    number, *lines = run(session, "top", file).stdout.splitlines()
    rows = [[part.split(":") for part in line.split()] for line in lines]
    reading, logits = read_manifest(file).reading, np.float32([0, -1, 2, -3, 4])
    ways = ["softmax", "sigmoid", "none"]
    assert ways[int(number)] == reading.probability == name
    assert [row[2] for row in rows[0]] == ["e", "c", "a"]
    for row, way in zip(rows, [name, "softmax", *ways], strict=True):
        assert [int(index) for index, _, _ in row] == [4, 2, 0]
        expected = Reading(way).probabilities(logits)[[4, 2, 0]]
        np.testing.assert_allclose([float(p) for _, p, _ in row], expected, rtol=1e-6)


def test_later_runs_allocate_nothing_of_ours(small, session):
    first, later, returned = map(int, run(session, "allocations", small).stdout.split())
    assert first > 0  # a thread's first run: the counter sees the library
    assert later == 0
    assert returned > 0


def test_wrong_inputs(small, session):
    lines = run(session, "inputs", small).stdout.splitlines()
    messages = dict(line.split(": ", 1) for line in lines)
    shape = "[N, 3, 8, 32, 32]"
    assert messages == {
        "size": f"run: clip must have shape {shape}, got [1, 3, 8, 32, 31]",
        "rank": f"run: clip must have shape {shape}, got [1, 3]",
        "channels": f"run: clip must have shape {shape}, got [1, 4, 8, 32, 32]",
        "empty batch": "run: clip must have at least one sample, got [0, 3, 8, 32, 32]",
        "type": "run: clip must be float32, got uint8",
        "null": "run: clip must not be null, got a null pointer",
        "device": "run: clip must lie in the host's memory or on the session's device cpu, got cuda:0",
        "no inputs": "run: inputs must be 1 (clip), got 0",
        "two inputs": "run: inputs must be 1 (clip), got 2",
        "null inputs": "run: inputs must not be null, got null",
        "output size": "run: saliency_tube must have shape [N, 1, 8, 32, 32], got [1, 1, 8, 32, 31]",
        "output type": "run: saliency_tube must be float32, got float16",
        "output null": "run: logits must not be null, got a null pointer",
        "output count": "run: outputs must be 4 (logits, saliency_tube, motion, motion_share), got 3",
        "nine axes": "Shape: rank must be at most 8, got 9",
        "labels": "top_classes: labels must be one for each of 5 classes, got 1",
        "sample": "top_classes: sample must be below 1, got 7",
        "moved": "run: session must be an open one, got one that was moved from",
        "abi": "open: the program must be compiled with headers of ABI version 2, "
        f"that of libclipsight.so {clipsight.__version__}, got 3",
        "device name": "open: device must be 'cpu', 'cuda' or 'cuda:<number>', got 'tpu'",
    }


def test_bad_files(small, session, tmp_path):
    for name, (path, plugin, message) in bad_files(small, tmp_path).items():
        done = run(session, "open", path, *filter(None, [plugin]))
        assert done.returncode == 3, (name, done)
        assert_message(f"{name}: {done.stdout}", message)
    assert run(session, "open", small).stdout == "opened ModulePool\n"


# ---- The example programs
# The numbers that they give are tested with the CMake package: here, what lies around them.


@pytest.fixture(scope="module", params=["cpp_onnxruntime", "c_api"])
def example(request, program) -> Path:
    return program(f"examples/{request.param}/explain")


@pytest.fixture(scope="module")
def movers(artifact) -> Path:
    """The shipped network for frames of any size."""
    return artifact("movers", HEADS, ".onnx", frames="uint8")


@pytest.mark.parametrize("height, width", [(100, 131), (90, 64), (64, 64)])
def test_the_heat_lies_where_the_crop_does(example, movers, tmp_path, height, width):
    frames = moving_shapes(1, 3, 16, 131).frames[0, :, :height, :width]
    np.ascontiguousarray(frames).tofile(tmp_path / "video")
    (tmp_path / "out").mkdir()
    done = run(example, movers, tmp_path / "video", tmp_path / "out", f"16x{height}x{width}")
    assert done.returncode == 0, done.stderr
    loaded = load(movers)
    tube = loaded(frames[None])[1][0, 0]
    geometry = Geometry.of(loaded.manifest.preprocessing, (height, width))
    pictures = sorted((tmp_path / "out").glob("*.ppm"))
    assert len(pictures) == 16
    for frame, path, map in zip(frames, pictures, tube, strict=True):
        expected = frame.astype(np.float32)
        levels = np.rint(255 * np.clip(geometry.to_region(map), 0, 1)).astype(int)
        expected[geometry.region] = (expected[geometry.region] + JET[levels]) / 2
        header = f"P6\n{width} {height}\n255\n".encode()
        data = path.read_bytes()
        assert data.startswith(header)
        picture = np.frombuffer(data[len(header) :], np.uint8).reshape(frame.shape)
        assert np.abs(picture - expected).max() <= 4  # colours in 256 steps there, without steps here
        assert np.abs(picture.astype(float) - frame).max() > 50


def test_the_c_example_takes_frames_only(program, small, tmp_path):
    np.zeros((8, 32, 32, 3), np.uint8).tofile(tmp_path / "video")
    done = run(program("examples/c_api/explain"), small, tmp_path / "video", tmp_path, "8x32x32")
    assert done.returncode == 1
    assert 'exported with frames="uint8"' in done.stderr


@pytest.mark.parametrize(
    "data, size, message",
    [
        (b"\0" * 100, "16x64x64", "must be PPM images of one size or"),
        (b"\0" * (3 * 64 * 64 * 3), "3x64x64", "frames"),
        (b"\0" * 100, "16x-1x64", "must be PPM images of one size or"),
        (b"\0" * 100, "nonsense", "must be PPM images of one size or"),
    ],
)
def test_examples_with_a_bad_video(example, movers, tmp_path, data, size, message):
    (tmp_path / "video").write_bytes(data)
    done = run(example, movers, tmp_path / "video", tmp_path, size)
    assert done.returncode == 1
    assert message in done.stderr
