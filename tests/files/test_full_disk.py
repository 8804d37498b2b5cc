"""A disk that is full while a file is written: one line says so, and nothing is left behind."""

from __future__ import annotations

import resource

import pytest
import torch
from torch import nn

import networks
from artifacts import HEADS
from clipsight import ExportError, explain, export
from clipsight.exporters import aot, onnx, torchscript

pytest.importorskip("onnx", reason="onnx is not installed")

ROOM = 4096  # bytes


@pytest.fixture
def full():
    """`full()`: from there on no file grows beyond ROOM bytes; writing on fails, as on a full disk."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda *_: resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, most[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, most)


@pytest.mark.parametrize("suffix", [".onnx", ".pt"])
def test_export(tmp_path, full, suffix):
    path = tmp_path / f"x{suffix}"
    explained = explain(networks.seeded(networks.ModulePool), HEADS, networks.clip())
    with pytest.raises(ExportError, match=f"^export: '{path}' could not be written: File too large$"):
        export(explained, path, plugin=False, progress=lambda phase, _: full() if phase == "write" else None)
    assert not [*tmp_path.iterdir()]


class Facts:
    def to_json(self):
        return "{}"


def compiled():
    package = aot.Package()
    package.folder.mkdir()
    weights = package.folder / "weights.so"
    weights.write_bytes(bytes(2 * ROOM))
    package.files["size0"] = [str(weights)]
    return package


@pytest.mark.parametrize(
    "format, make, suffix",
    [
        (torchscript, lambda: torchscript.convert(nn.Linear(64, 64), torch.ones(1, 64)), ".pt"),
        (aot, compiled, ".pt2"),
        (onnx, lambda: bytes(2 * ROOM), ".onnx"),
    ],
)
def test_the_writer_of_each_format_raises(tmp_path, full, format, make, suffix):
    """Torch's own aborts the process."""
    made = make()
    full()
    with pytest.raises(OSError, match="File too large"):
        format.save(made, tmp_path / f"x{suffix}", Facts())
