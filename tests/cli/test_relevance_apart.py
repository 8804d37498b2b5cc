"""Layer-wise relevance propagation stands apart: nothing else imports its two modules, all else works without."""

from __future__ import annotations

import pytest

import clipsight
from helpers import run_python

APART = ("clipsight.heads.deep_taylor", "clipsight.backward.relevance")
# Arguments: a folder, and the modules that are not there.
HIDE = """
import sys
from pathlib import Path
folder, *missing = sys.argv[1:]
sys.modules |= dict.fromkeys(missing)  # None: the import fails as if there were no file
import clipsight
from clipsight import cli
from typer.testing import CliRunner

def run(*arguments):
    return CliRunner().invoke(cli.app, [*map(str, arguments)]).output
"""
OTHERS = """
import torch
from clipsight import GradCAM, GuidedBackprop, InputGradient, SaliencyTube, SelectiveRelevance
from clipsight.evaluation import Settings
from clipsight.synthetic import moving_shapes
from clipsight.video import VideoWriter

heads = [SaliencyTube(), GradCAM(), GuidedBackprop(), InputGradient(), SelectiveRelevance(of=GradCAM())]
clip = torch.rand(1, 3, 16, 64, 64)
print(*clipsight.explain(clipsight.models.load("movers"), heads, clip).output_names)
print(*Settings(methods=("grad_cam", "saliency_tube")).heads())
with VideoWriter(Path(folder, "x.mp4"), 10) as writer:
    for frame in moving_shapes(1, 3, 16, 64).frames[0]:
        writer.write(frame)
run("explain", Path(folder, "x.mp4"), "--model", "movers", "--map", "saliency_tube", "--out", Path(folder, "out"))
run("evaluate", Path(folder, "x.mp4"), "--model", "movers", "--methods", "grad_cam", "--out", Path(folder, "table"))
print(*[name for name in ("explain", "export", "evaluate") if name in run("--help")])
"""
ASKED = """
for get in (
    lambda: clipsight.DeepTaylor,
    lambda: clipsight.heads.LRPEpsilon,
    lambda: clipsight.heads.METHODS["deep_taylor"],
):
    try:
        print(get().__name__)
    except ImportError as error:
        print(error)
"""
COMMAND = """
print(run("export", "--model", "movers", "--map", "deep_taylor", "--out", Path(folder, "x.onnx")))
"""


def test_all_else_works_without_them(tmp_path):
    printed = run_python(HIDE + OTHERS, tmp_path, *APART)
    assert printed.splitlines() == [
        "logits saliency_tube grad_cam guided_backprop input_gradient motion",
        "grad_cam saliency_tube",
        "explain export evaluate",
    ]
    assert (tmp_path / "out" / "result.json").is_file()
    assert list((tmp_path / "table").glob("*.json"))


@pytest.mark.parametrize("missing", APART)
def test_who_asks_for_them_is_told_what_is_missing(tmp_path, missing):
    lines = run_python(HIDE + ASKED + COMMAND, tmp_path, missing).splitlines()
    rule = f"the module {missing} must be installed, got an installation of clipsight without it"
    assert lines[:3] == [f"DeepTaylor: {rule}", f"LRPEpsilon: {rule}", f"DeepTaylor: {rule}"]
    assert lines[3] == f"error: DeepTaylor: {rule}"
    assert not list(tmp_path.iterdir())


def test_who_asks_for_them_gets_them():
    found = clipsight.DeepTaylor, clipsight.heads.LRPEpsilon, clipsight.heads.METHODS["deep_taylor"]
    assert [head.__name__ for head in found] == ["DeepTaylor", "LRPEpsilon", "DeepTaylor"]
