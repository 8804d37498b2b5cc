"""Files that earlier exporters wrote go on to open in C and in C++, and give the same numbers there."""

from __future__ import annotations

import json
import os
import subprocess
from ctypes import byref, c_char_p, c_double

import numpy as np
import pytest

import golden_files
from clipsight.manifest import read_manifest
from golden_files import NAMES, assert_agree, is_at_home, runs_of
from helpers import onnxruntime_library
from session_api import CError, CSession

TORCH = [name for name in NAMES if not name.endswith(".onnx")]
ONNX = sorted(set(NAMES) - set(TORCH))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return golden_files.unpack(tmp_path_factory.mktemp("golden"))


# ---- C ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_session(files):
    runtime = onnxruntime_library()
    return lambda name: CSession(files[name], runtime)


@pytest.mark.parametrize("name", ONNX)
def test_c(files, open_session, name):
    session, manifest = open_session(name), read_manifest(files[name])
    for run in runs_of(name):
        assert [port[:2] for port in session.ports("input")] == [(n, a.dtype) for n, a in run.inputs.items()]
        assert [port[:2] for port in session.ports("output")] == [(n, a.dtype) for n, a in run.outputs.items()]
        assert_agree(manifest, session.run(*run.inputs.values()), run.outputs)
    text = c_char_p()
    session.call("manifest", byref(text))
    assert json.loads(text.value)["weights_digest"] == manifest.weights_digest


def test_c_finds_the_region_of_the_map(open_session):
    region = (c_double * 4)()
    open_session("frames.onnx").call("map_region", 14, 20, region)  # the short side to 12, then 10 x 8 of 12 x 17
    np.testing.assert_allclose(region[:], [1 * 14 / 12, 4 * 20 / 17, 10 * 14 / 12, 8 * 20 / 17])


@pytest.mark.parametrize("name", TORCH)
def test_c_says_what_it_does_not_open(files, open_session, name):
    with pytest.raises(CError, match="clipsight::torch"):
        open_session(name)


# ---- C++: ONNX files by a program that has no torch, the others by one over LibTorch ---------------------------------


@pytest.fixture
def run_program(files, program, tmp_path):
    """`run_program(name, inputs)`: what the program prints, and the bytes of the outputs."""

    def run(name: str, inputs: dict[str, np.ndarray]) -> tuple[str, bytes]:
        kind = "session" if name.endswith(".onnx") else "torch_session"
        environment = os.environ | {"ONNXRUNTIME": str(onnxruntime_library()) if kind == "session" else ""}
        arguments = []
        for i, array in enumerate(inputs.values()):
            array.tofile(tmp_path / f"in{i}")
            arguments.append(f"{tmp_path / f'in{i}'}:{'x'.join(map(str, array.shape))}")
        command = [program(f"tests/programs/{kind}/session"), "outputs", files[name], tmp_path / "out", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=600)
        if done.returncode:
            raise RuntimeError(f"{done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout, (tmp_path / "out").read_bytes()

    return run


def in_arrays(data: bytes, like: dict[str, np.ndarray]) -> list[np.ndarray]:
    assert len(data) == sum(array.nbytes for array in like.values())
    ends = np.cumsum([array.nbytes for array in like.values()])
    parts = np.split(np.frombuffer(data, np.uint8), ends[:-1])
    return [part.view(array.dtype).reshape(array.shape) for part, array in zip(parts, like.values(), strict=True)]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_cpp(files, run_program, name):
    manifest = read_manifest(files[name])
    for run in runs_of(name):
        try:
            said, data = run_program(name, run.inputs)
        except RuntimeError as error:
            if not is_at_home(files[name]) and str(error).startswith("3: "):  # refused, but not crashed
                pytest.skip(f"{name} was compiled by another torch or for another CPU: {error}")
            raise
        ports = [f"{port} {array.dtype}" for arrays in run for port, array in arrays.items()]
        assert said.splitlines() == [f"{manifest.kind} {manifest.model}", *ports]
        assert_agree(manifest, in_arrays(data, run.outputs), run.outputs)


@pytest.mark.parametrize("name", ["tube.onnx", "plain.pt"])
def test_cpp_gives_other_numbers_for_another_clip(files, run_program, name):
    run = runs_of(name)[0]
    _, data = run_program(name, {"clip": np.ascontiguousarray(run.inputs["clip"][::-1])})
    with pytest.raises(AssertionError, match="logits"):
        assert_agree(read_manifest(files[name]), in_arrays(data, run.outputs), run.outputs)
