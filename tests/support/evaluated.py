"""What the tests of `clipsight evaluate` run it on: small networks, and videos with known motion."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from clipsight.evaluation import Key
from helpers import write_video

FACTORIES = """
import torch
from torch import nn
from clipsight import Preprocessing

class Net(nn.Module):
    preprocessing = Preprocessing(frames=8, resize=32, crop=(32, 32), std=(0.3,) * 3)
    labels = ["cat", "dog", "flying fish"]

    def __init__(self, seed=0):
        super().__init__()
        if seed is not None:
            torch.manual_seed(seed)
        self.conv, self.pool, self.fc = nn.Conv3d(3, 6, 3, padding=1), nn.AdaptiveAvgPool3d(1), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.pool(torch.relu(self.conv(x))).flatten(1))

class Random(Net):
    def __init__(self):
        super().__init__(None)

class Unlabelled(Net):
    labels = None
"""
NET = ["--model", "evaluated_nets:Net"]


def moving_patch(frames: int, height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A textured patch that moves right over a still, textured background: uint8 `[T, H, W, 3]`, and its masks."""
    rng = np.random.default_rng(seed)
    texture = [cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), np.uint8), (0, 0), 3) for _ in range(2)]
    ground, patch = (np.uint8(np.clip((t.astype(float) - 127) * 4 + 127, 0, 255)) for t in texture)
    side, step = height // 3, 4 * height // 64
    clip, masks = np.stack([ground] * frames), np.zeros((frames, height, width), bool)
    for t in range(frames):
        x = (4 + t * step) % (width - side)
        clip[t, side : 2 * side, x : x + side] = patch[:side, :side]
        masks[t, side : 2 * side, x : x + side] = True
    return clip, masks


def write_videos(folder: Path) -> dict[str, Path]:
    """Three videos of other sizes and lengths: one clip; two clips side by side; two that overlap."""
    sizes = {"one": (8, 64, 64), "two": (16, 96, 96), "overlapping": (11, 80, 64)}
    paths = {}
    for seed, (name, size) in enumerate(sizes.items()):
        paths[name] = write_video(folder / f"{name}.{'gif' if name == 'one' else 'mp4'}", moving_patch(*size, seed)[0])
    return paths


def go_where_networks_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory, with a module of networks in it."""
    (folder / "evaluated_nets.py").write_text(FACTORIES)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "evaluated_nets", raising=False)


def load(out) -> dict:
    return json.loads((out / "evaluation.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def summary_of(report: dict) -> dict[Key, tuple]:
    return {Key(*(r[f] for f in Key._fields)): (r["average"], r["deviation"], r["videos"]) for r in report["summary"]}


def flat(result) -> str:
    return " ".join(result.output.split())
