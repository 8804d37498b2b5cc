"""Unit tests are what is run between two edits: none of them exports, starts a process or compiles."""

from __future__ import annotations

import subprocess

import pytest
import torch


@pytest.fixture(autouse=True)
def nothing_but_units(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_, **__):
        pytest.fail("a unit test must not export or start a process; tests/README.md says where such tests lie")

    for owner, name in ((subprocess, "Popen"), (torch.export, "save"), (torch.jit, "trace"), (torch.onnx, "export")):
        monkeypatch.setattr(owner, name, refuse)
