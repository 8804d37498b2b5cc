"""What several test files share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

_declared: list[torch.library.Library] = []


def import_torchvision():
    """torchvision, or a skip where it is absent. Its wheel also imports beside a torch that it was not built for, such
    as the CPU one, once the two ops that it registers fake kernels for are declared."""
    if "torchvision" not in sys.modules and not _declared:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)  # the declarations live as long as this object
    return pytest.importorskip("torchvision", reason="torchvision is not installed")


def run_python(code: str, *arguments: object) -> str:
    """What `code` prints in a fresh process that has the same packages; an error there is an error here."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parent,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout
