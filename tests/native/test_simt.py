"""The CUDA kernels on an emulator (tests/simt) beside the CPU's: results, barriers, bounds, races.

The emulator itself is tested with planted faults, and the fuzzer with kernels that lack one line (mutants.py).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from building import REPOSITORY

SIMT = REPOSITORY / "tests" / "simt"
OPS = ["channel_reduce", "back_step", "spline_upsample", "sobel_temporal", "selective_relevance", "tube", "convert"]
CASES = {"plain": 60, "fused": 30, "asan": 25, "tsan": 10}
ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": "exitcode=66",
}
FAULTS = {  # and the variant that must see it
    "barrier": "plain",
    "warp": "plain",
    "all_arrive": "plain",
    "written": "plain",
    "syncwarp": "plain",
    "inside": "asan",
    "atomic": "tsan",
    "last_block": "tsan",
}

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the emulator switches stacks with x86-64 instructions"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
]


def run(*command: str | Path) -> subprocess.CompletedProcess:
    environment = os.environ | ENVIRONMENT
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, env=environment)


@pytest.fixture
def built(shared_folder, once):
    """The folder of a variant."""

    def build(variant: str) -> Path:
        def compile_all(program: Path) -> None:  # it is linked last
            done = run(sys.executable, SIMT / "build.py", variant, program.parent)
            assert done.returncode == 0, done.stderr

        (shared_folder / f"simt-{variant}").mkdir(exist_ok=True)
        return once(f"simt-{variant}/selftest", compile_all).parent

    return build


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("variant", CASES)
def test_kernels_equal_those_of_the_cpu(built, variant, op):
    done = run(built(variant) / "fuzz", "1", str(CASES[variant]), op)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]


@pytest.mark.parametrize("variant", ["plain", "asan", "tsan"])
@pytest.mark.parametrize("name", [*FAULTS, "limits", "halves"])
def test_sound_kernels_pass(built, name, variant):
    done = run(built(variant) / "selftest", name)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_seen(built, name):
    assert run(built(FAULTS[name]) / "selftest", f"no_{name}").returncode != 0


@pytest.mark.parametrize("variant", ["plain", "asan", "tsan"])
def test_every_barrier_and_bound_is_needed(built, variant):
    done = run(sys.executable, SIMT / "mutants.py", variant, built(variant))
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert ": " in done.stdout, "no mutant was tried"
