"""The built libraries link what they should and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clipsight import _library
from helpers import run_python

FOLDER = Path(_library.build_info()["torch_library"]["path"]).parent
TORCH_LIBRARIES = sorted(FOLDER.glob("libclipsight_torch*.so"))


def audit(path: Path) -> dict:
    pytest.importorskip("torch_abi_audit", reason="torch-abi-audit is not installed (it needs Python 3.11)")
    command = [Path(sys.executable).with_name("torch-abi-audit"), str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    (library,) = report["extensions"] + report["bundled_libs"]
    return library["torch"]


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
