"""What a session or a loaded file takes it gives back: run after run, and open after close."""

from __future__ import annotations

import os

import pytest

import networks
from artifacts import HEADS
from clipsight import load, onnx_session
from helpers import onnxruntime_library
from memory import FLAT, kept
from session_api import CSession

pytest.importorskip("onnx", reason="onnx is not installed")

CLIP = networks.clip(1).numpy()
SOAK = 20_000
KINDS = {
    "plain.onnx": {"suffix": ".onnx"},
    "fused.onnx": {"suffix": ".onnx", "plugin": True},
    "plain.pt": {"suffix": ".pt", "plugin": False},
    "fused.pt": {"suffix": ".pt"},
}


@pytest.fixture
def file(artifact, request):
    return artifact("ModulePool", HEADS, **KINDS[request.param])


def c_session(file):
    return CSession(file, onnxruntime_library(), threads=1)


def loaded(file):
    return load(file, threads=1)


def run_c(session):
    return lambda: session.run(CLIP)


def run_loaded(loaded):
    return lambda: loaded(CLIP)


OPENERS = [
    *((loaded, run_loaded, kind) for kind in KINDS),
    *((c_session, run_c, kind) for kind in ("plain.onnx", "fused.onnx")),
]
every_opener = pytest.mark.parametrize(
    "open_file, runs, file", OPENERS, indirect=["file"], ids=[f"{o.__name__}-{kind}" for o, _, kind in OPENERS]
)


@every_opener
@pytest.mark.parametrize("times", [100, pytest.param(SOAK, marks=pytest.mark.full)])
def test_runs_keep_nothing(open_file, runs, file, times):
    assert kept(runs(open_file(file)), times, first=50) < FLAT


@every_opener
@pytest.mark.parametrize("times", [30, pytest.param(SOAK, marks=pytest.mark.full)])
def test_sessions_keep_nothing(open_file, runs, file, times):
    """But for what ONNX Runtime keeps of each of its own, some 35 bytes in 1.31."""

    def once():
        session = open_file(file)
        if open_file is c_session:
            session.call("close")

    once()
    descriptors = len(os.listdir("/proc/self/fd"))
    own = kept(lambda: onnx_session(file, threads=1), times, first=20) if file.suffix == ".onnx" else 0
    assert kept(once, times, first=20) < 1.5 * max(own, 0) + FLAT
    assert len(os.listdir("/proc/self/fd")) == descriptors
