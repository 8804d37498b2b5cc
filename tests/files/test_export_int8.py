"""The example that quantises an exported file: int8 in the network, float in the head, and the manifest still there."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from artifacts import HEADS
from clipsight.manifest import read_manifest
from session_files import with_manifest

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("clipsight.windows", reason="the extra 'video' is not installed")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "quantise_int8.py"


def quantise(*arguments) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, EXAMPLE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_network_in_int8_and_head_in_float(artifact, tmp_path):
    from clipsight.exporters.onnx_graph import network_and_head

    source, target = artifact("movers", HEADS, ".onnx"), tmp_path / "int8.onnx"
    process = quantise(source, target, "--clips", 8)
    assert process.returncode == 0, process.stderr
    figures = {name: float(value) for name, value in re.findall(r"^(\S.*?)\s{2,}([\d.]+)", process.stdout, re.M)}
    assert figures["top-1 agreement"] >= 0.75
    assert 0 < figures["logits"] < 0.05
    assert 0 < figures["saliency_tube"] < 0.02
    assert 0 < figures["motion"] < 0.02
    assert read_manifest(target) == read_manifest(source)
    assert target.stat().st_size < 0.5 * source.stat().st_size
    before, after = (network_and_head(onnx.load(file).graph) for file in (source, target))
    ops = [[Counter(node.op_type for node in part) for part in parts] for parts in (before, after)]
    assert ops[1][0]["QuantizeLinear"] >= 5
    assert ops[1][1]["QuantizeLinear"] == 0
    assert ops[1][1] - Counter({"DequantizeLinear": ops[1][1]["DequantizeLinear"]}) == ops[0][1]


@pytest.mark.parametrize(
    "options, changes, message",
    [
        ({}, {"preprocessing": None}, "its preprocessing in the manifest"),
        ({"plugin": True}, {}, "plugin=False"),
        ({"optional": True, "inputs": ("tau", "n_sigma")}, {}, "whose only input is the clip"),
    ],
)
def test_files_that_it_does_not_take(artifact, tmp_path, monkeypatch, capsys, options, changes, message):
    source = with_manifest(artifact("ModulePool", HEADS, ".onnx", **options), tmp_path / "x.onnx", **changes)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(source), str(tmp_path / "int8.onnx")])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert message in capsys.readouterr().err
    assert not (tmp_path / "int8.onnx").exists()
