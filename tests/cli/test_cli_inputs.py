"""Networks in another order of the axes, of gray clips, and of channels that no video has, on the command line."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("typer")
pytest.importorskip("onnx")

import clipsight
from clipsight import SaliencyTube, SelectiveRelevance
from helpers import run, succeed, write_video

FACTORY = """
import torch
from torch import nn
from clipsight import Preprocessing

class Net(nn.Module):
    preprocessing = Preprocessing(frames=4, resize=16, crop=(16, 18){more})
    layout = {layout!r}

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv3d({channels}, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        x = x.permute({axes})
        return self.fc(torch.relu(self.conv(x)).mean((2, 3, 4)))
"""


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    frames = np.random.default_rng(0).integers(0, 256, (5, 20, 26, 3), np.uint8)
    return write_video(tmp_path_factory.mktemp("videos") / "noise", frames)  # pictures: every colour as it is


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """Writes a module with a network; `package.module:factory`."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, layout="NCTHW", axes=(0, 1, 2, 3, 4), channels: int = 3, more: str = "") -> str:
        (tmp_path / f"{name}.py").write_text(FACTORY.format(**locals()))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return f"{name}:Net"

    return write


def maps(video, model, out: str) -> np.ndarray:
    succeed("explain", video, "--model", model, "--out", out, "--raw", "--format", "png", "--method", "tube")
    return np.load(f"{out}/maps.npz")["maps"]


def assert_near(got: np.ndarray, expected: np.ndarray, share: float = 1e-4) -> None:
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= share * np.ptp(expected)


@pytest.mark.parametrize(
    "layout, axes", [pytest.param("NTCHW", (0, 2, 1, 3, 4), marks=pytest.mark.full), ("NTHWC", (0, 4, 1, 2, 3))]
)
def test_a_network_in_its_own_order_and_its_file(video, factory, layout, axes):
    ours = maps(video, factory("ours"), "ours")
    model = factory("theirs", layout, axes)
    assert_near(maps(video, model, "live"), ours)
    succeed("export", "--model", model, "--class", "input", "--raw-maps", "--out", "net.pt")
    assert_near(maps(video, "net.pt", "file"), ours)
    assert f"], {layout}" in succeed("info", "net.pt").output
    with pytest.raises(AssertionError):  # another order of the colours would be seen
        assert_near(maps(video, factory("bgr", more=", channel_order='BGR'"), "bgr"), ours)


def test_the_other_commands_know_the_order_too(video, factory):
    model = factory("last", "NTHWC", (0, 4, 1, 2, 3))
    succeed("pyramid", video, "--model", model, "--depth", "all", "--out", "pyramid")
    succeed("evaluate", video, "--model", model, "--methods", "grad_cam", "--repeats", 0, "--out", "measured")


def test_a_network_of_gray_clips_says_so_by_one_mean(video, factory):
    more = ", mean=({0},{1}), std=({0},{1})"
    three = maps(video, factory("three", channels=1, more=more.format(0.4, "0.4, 0.4")), "three")
    model = factory("one", channels=1, more=more.format(0.4, ""))
    assert_near(maps(video, model, "one"), three)
    succeed("export", "--model", model, "--uint8-frames", "--raw-maps", "--class", "input", "--out", "gray.pt")
    assert_near(maps(video, "gray.pt", "file"), three, 1e-3)


def test_channels_that_no_video_has(video, factory, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    model = factory("flow", channels=2)
    network = importlib.import_module("flow").Net().eval()
    clip = torch.randn(1, 2, 4, 16, 18)
    heads = [SaliencyTube(), SelectiveRelevance(), clipsight.FeaturePyramid(depth=1)]
    clipsight.export(clipsight.explain(network, heads, clip), "flow.pt", clip, plugin=False)
    for command in ("explain", "pyramid"):
        for given in (model, "flow.pt"):
            result = run(command, video, "--model", given, "--out", "out")
            assert (result.exit_code, result.output.count("\n")) == (1, 1), result.output
            assert "must take clips of 3 channels, or of 1 (gray), as videos have them, got 2 channels" in result.output
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_read_is_said_in_one_line(video, factory, tmp_path):
    factory("plain")
    (tmp_path / "scripted.py").write_text(
        "import torch, plain\n\ndef net():\n    return torch.jit.script(plain.Net())\n"
    )
    result = run("explain", video, "--model", "scripted:net", "--out", "out")
    assert (result.exit_code, result.output.count("\n")) == (1, 1), result.output
    assert "pass the network that was scripted or traced" in result.output
