"""What several test files share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from clipsight.models import beside_torchvision


def assert_same(got, expected) -> None:
    """Tensor by tensor: shape, type and every bit."""
    for a, b in zip(got, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert torch.equal(a, b)


def unaligned(array: np.ndarray) -> np.ndarray:
    """The same values, one byte off."""
    memory = np.empty(array.nbytes + 1, np.uint8)
    moved = memory[1:].view(array.dtype).reshape(array.shape)
    moved[:] = array
    assert moved.flags.aligned == (array.size == 0 or array.itemsize == 1)
    return moved


def import_torchvision():
    """torchvision, or a skip where it is absent."""
    try:
        return beside_torchvision.import_torchvision()
    except ImportError:
        pytest.skip("torchvision is not installed")


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


def onnxruntime_library() -> Path:
    """ONNX Runtime's shared library as the Python package brings it, or a skip where it does not."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    found = sorted((Path(runtime.__file__).parent / "capi").glob("libonnxruntime.so*"))
    if not found:
        pytest.skip("this onnxruntime package brings no libonnxruntime.so")
    return found[0]


def run(*arguments: object):
    """What `clipsight` does with these arguments: `exit_code`, `output`, `exception`."""
    from typer.testing import CliRunner

    from clipsight import cli

    return CliRunner().invoke(cli.app, [*map(str, arguments)])


def succeed(*arguments: object):
    """As `run`; an error there is an error here."""
    result = run(*arguments, "--debug")
    if result.exception:
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def write_video(path: Path, frames, fps: float = 10) -> Path:
    from clipsight.video import VideoWriter

    with VideoWriter(path, fps) as writer:
        for frame in frames:
            writer.write(frame)
    return path
