"""`--target` and `--probability`, and what results show of networks that end in a softmax, a sigmoid or one number."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("typer")
import torch

import clipsight
from clipsight import SaliencyTube, Target
from clipsight.cli.networks import load_live
from clipsight.manifest import read_manifest
from clipsight.synthetic import moving_shapes
from clipsight.windows import to_clip
from helpers import run, succeed, write_video

FACTORIES = """
import torch
from torch import nn
from clipsight import Preprocessing

class Net(nn.Module):
    preprocessing = Preprocessing(frames=8, resize=32, crop=(32, 32), mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2))
    labels = ["cat", "dog", "flying fish"]

    def __init__(self, classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv3d(3, 6, 3, padding=1), nn.Linear(6, classes)
        self.fc.weight.data *= 5

    def logits(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3, 4)))

    def forward(self, x):
        return self.logits(x)

class Soft(Net):
    def forward(self, x):
        return self.logits(x).softmax(1)

class Sigmoid(Net):
    def forward(self, x):
        logits = self.logits(x)
        return {"logits": logits, "probabilities": torch.sigmoid(logits)}

class One(Net):
    labels = ["fight"]
    def __init__(self):
        super().__init__(1)
        self.fc.bias.data[:] = -9

    def forward(self, x):
        return self.logits(x)[:, 0]

class Heads(Net):
    labels = None
    def __init__(self):
        super().__init__()
        self.noun = nn.Linear(6, 4)

    def forward(self, x):
        features = torch.relu(self.conv(x)).mean((2, 3, 4))
        return self.fc(features), self.noun(features)
"""


@pytest.fixture(scope="module")
def frames():
    """One clip of the network's own size, so that nothing is resized or blended."""
    return moving_shapes(1, seed=4, frames=8, size=32, labels=[1]).frames[0]


@pytest.fixture
def video(frames, tmp_path, monkeypatch):
    (tmp_path / "target_nets.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "target_nets", raising=False)
    return write_video(tmp_path / "video", frames)  # PNG: lossless


def says(frames, name: str) -> np.ndarray:
    """What the network itself returns."""
    live = load_live(f"target_nets:{name}", None, False, frames=None, size=None, stride=None)
    with torch.inference_mode():
        output = live.module(torch.from_numpy(to_clip(frames, live.preprocessing)))
    return output["probabilities"] if isinstance(output, dict) else output


def shown(video, *options) -> list[dict]:
    succeed("explain", video, *options, "--out", "out", "--method", "tube", "--format", "png")
    result = json.loads(Path("out/result.json").read_text("utf-8"))
    assert result["top"] == result["windows"][0]["top"]
    return result["top"]


@pytest.mark.parametrize("name", ["Net", "Soft", "Sigmoid", "One"])
def test_what_is_shown_is_what_the_network_says(video, frames, name):
    own = says(frames, name).flatten()
    own = {"Net": lambda x: x.softmax(0), "One": torch.sigmoid}.get(name, lambda x: x)(own)
    top = shown(video, "--model", f"target_nets:{name}")
    values, indices = own.sort(descending=True)
    assert [row["class"] for row in top] == indices.tolist()
    assert [row["probability"] for row in top] == pytest.approx(values.tolist(), abs=2e-6)
    assert name != "One" or top[0]["probability"] < 0.01


def test_a_score_that_is_no_probability(video, frames):
    (row,) = shown(video, "--model", "target_nets:One", "--probability", "none")
    assert row == {"class": 0, "label": "fight", "score": pytest.approx(says(frames, "One").item(), abs=1e-5)}
    assert (
        f"{row['score']:.4g}" in succeed("explain", video, "--model", "target_nets:One", "--probability", "none").output
    )


def test_a_contrast_by_name(video, frames):
    shown(video, "--model", "target_nets:Net", "--class", "cat", "--target", "against=flying fish", "--raw")
    live = load_live("target_nets:Net", None, False, frames=None, size=None, stride=None)
    clip = torch.from_numpy(to_clip(frames, live.preprocessing))
    head = SaliencyTube(normalize="none")
    with np.load("out/maps.npz") as stored, torch.inference_mode():
        for against, same in ((2, True), (1, False)):
            explained = clipsight.explain(live.module, head, clip, [0], target=Target(against=against))
            assert np.allclose(stored["maps"][0], explained(clip)[1][0, 0], atol=1e-4) == same


def test_an_exported_file_says_what_it_explains(video, frames):
    options = ("--model", "target_nets:Soft", "--raw-maps", "--method", "tube")
    succeed("export", *options, "--target", "against=best_other", "--out", "soft.pt")
    manifest = read_manifest("soft.pt")
    assert manifest.target == {"against": "best_other", "stripped": "softmax"}
    text = " ".join(succeed("info", "soft.pt").output.split())
    assert "explains predicted: against the best other class" in text
    assert "probability softmax, the softmax at the end of the network was taken off" in text
    own = says(frames, "Soft")[0].sort(descending=True).values
    assert [row["probability"] for row in shown(video, "--model", "soft.pt")] == pytest.approx(own.tolist(), abs=2e-6)
    changed = shown(video, "--model", "soft.pt", "--probability", "sigmoid")
    assert sum(row["probability"] for row in changed) != pytest.approx(1, abs=1e-3)


def test_several_heads(video, frames):
    live = load_live("target_nets:Heads", None, False, frames=None, size=None, stride=None)
    with torch.inference_mode():
        parts = live.module(torch.from_numpy(to_clip(frames, live.preprocessing)))
    own = torch.cat([part[0].softmax(0) for part in parts]).sort(descending=True)
    options = ("--target", "heads=fc,noun")
    for top in (shown(video, "--model", "target_nets:Heads", *options), None):
        if top is None:
            succeed("export", "--model", "target_nets:Heads", *options, "--out", "heads.pt")
            top = shown(video, "--model", "heads.pt")
        assert [row["class"] for row in top] == own.indices[:5].tolist()
        assert [row["probability"] for row in top] == pytest.approx(own.values[:5].tolist(), abs=2e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        (("--target", "median"), "target: must be against=CLASS or best_other, steps=.*, or heads=.*, got 'median'"),
        (("--target", "against=bird"), "class: 'bird' is no class of this model"),
        (("--target", "against=cat", "--target", "against=dog"), "target: must give against once, got 'against=dog'"),
        (("--target", "steps=half"), "Target: steps must be an index, 'mean' or 'max', got 'half'"),
        (("--target", "steps=mean"), r"logits must have shape \[N, K, T\] by target.layout, got \[N, 3\]"),
        (("--target", "heads=a,b", "--class", "cat"), "class: must be left out where target names heads, got cat"),
        (("--probability", "percent"), "percent"),
    ],
)
def test_mistakes(video, options, message):
    result = run("explain", video, "--model", "target_nets:Net", *options, "--out", "out")
    assert result.exit_code != 0
    assert re.search(message, " ".join(result.output.split())), result.output
    assert not (video.parent / "out").exists()


def test_the_target_of_a_file_is_its_own(video):
    succeed("export", "--model", "target_nets:Net", "--out", "net.pt")
    result = run("explain", video, "--model", "net.pt", "--target", "against=dog", "--out", "out")
    assert "target: is part of the exported file net.pt, got against=dog" in " ".join(result.output.split())
