"""The built libraries link and export what they should and nothing else; one place states the version."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import clipsight
from clipsight import _library
from helpers import run_python

FOLDER = Path(_library.build_info()["torch_library"]["path"]).parent
TORCH_LIBRARIES = sorted(FOLDER.glob("libclipsight_torch*.so"))
LIBRARIES = sorted([*Path(clipsight.__file__).parent.glob("_kernels*.so"), *FOLDER.glob("lib*.so")])
SYSTEM = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
SYSTEM |= {"libdl.so.2", "libpthread.so.0", "librt.so.1"}  # of a C library older than 2.34
TORCH = {"libtorch.so", "libtorch_cpu.so"}
# What a library gives away (a regular expression of its symbols), and what it may need beside the system's libraries.
INTENDED = {
    "_kernels": (r"PyInit__kernels", set()),
    "libclipsight_torch": (None, TORCH),
    "libclipsight_torch_cuda": (None, TORCH | {"libtorch_cuda.so"}),
    "libclipsight_onnxruntime": (r"RegisterCustomOps", set()),
    "libclipsight": (r"clipsight_\w+|_Z\w*N?K?9clipsight\w+", set()),
}
ROOT = Path(__file__).parents[2]


def lines_of(*command: object) -> list[str]:
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed (binutils)")
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout.splitlines()


def exported(path: Path) -> set[str]:
    return {line.split()[-1] for line in lines_of("nm", "-D", "--defined-only", path)}


def undefined(path: Path) -> set[str]:
    return {line.split()[-1].partition("@")[0] for line in lines_of("nm", "-D", "--undefined-only", path)}


def needed(path: Path) -> set[str]:
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", "\n".join(lines_of("readelf", "-d", path))))


def audit(path: Path) -> dict:
    pytest.importorskip("torch_abi_audit", reason="torch-abi-audit is not installed (it needs Python 3.11)")
    command = [Path(sys.executable).with_name("torch-abi-audit"), str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    (library,) = report["extensions"] + report["bundled_libs"]
    return library["torch"]


every_library = pytest.mark.parametrize("path", LIBRARIES, ids=lambda p: p.name.partition(".")[0])


def test_every_library_is_known():
    assert {path.name.partition(".")[0] for path in LIBRARIES} <= set(INTENDED)
    assert {"_kernels", "libclipsight_torch"} <= {path.name.partition(".")[0] for path in LIBRARIES}


@every_library
def test_only_the_intended_symbols_are_exported(path):
    pattern, _ = INTENDED[path.name.partition(".")[0]]
    symbols = exported(path)
    assert bool(symbols) == (pattern is not None)
    assert [symbol for symbol in sorted(symbols) if not re.fullmatch(pattern, symbol)] == []


@every_library
def test_only_the_intended_libraries_are_needed(path):
    _, others = INTENDED[path.name.partition(".")[0]]
    assert others & TORCH <= needed(path) <= SYSTEM | others


@every_library
def test_only_the_numpy_module_needs_python(path):
    python = {symbol for symbol in undefined(path) if re.match(r"_?Py[A-Z_]", symbol)}
    assert bool(python) == path.name.startswith("_kernels"), python


@pytest.mark.parametrize("path", TORCH_LIBRARIES, ids=lambda p: p.name)
def test_torch_libraries_use_the_stable_abi_only(path):
    result = audit(path)
    assert result["uses_torch"]
    assert result["stable"], result
    assert result["min_torch_version"] == "2.11.0"  # what pyproject.toml promises


def test_the_audit_can_fail():
    import torch

    result = audit(Path(torch.__file__).parent / "lib" / "libtorch_python.so")
    assert not result["stable"]


def test_kernels_and_the_onnx_route_do_without_torch():
    code = """
import sys
import numpy as np
import clipsight
from clipsight import _kernels, runtime
_kernels.spline_upsample(np.zeros((2, 3, 3), np.float32), (4, 6, 6))
clipsight.load
print("torch" in sys.modules)
"""
    assert run_python(code).strip() == "False"


def test_the_package_ships_its_network():
    weights = FOLDER.parent / "clipsight" / "models" / "weights" / "movers.safetensors"
    assert 0 < weights.stat().st_size <= 2_000_000


def test_one_file_states_the_version():
    stated = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    again = re.compile(rf"(?<![\d.]){re.escape(stated)}(?![\d.])")
    assert again.search(f'project(clipsight VERSION "{stated}")')
    files = [ROOT / name for name in ("CMakeLists.txt", "Makefile", "README.md")]
    for folder in ("benchmarks", "cmake", "csrc", "examples", "python"):
        files += [
            f
            for f in (ROOT / folder).rglob("*")
            if f.suffix in {".c", ".cmake", ".cpp", ".h", ".in", ".py", ".sh", ".txt"}
        ]
    built = ROOT / "python" / "clipsight" / "lib"  # what `make dev` configured
    assert [str(f) for f in files if built not in f.parents and again.search(f.read_text("utf-8"))] == []


def test_every_part_is_of_that_version():
    stated = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert clipsight.__version__ == stated
    assert clipsight.build_info()["kernels"]["version"] == stated
