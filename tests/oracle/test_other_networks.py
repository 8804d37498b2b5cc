"""docs/other-networks.md does what it says: its table, its example, its commands, its limits."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import clipsight
import networks
from clipsight import SaliencyTube, SelectiveRelevance
from clipsight.models import Adapter

PAGE = (Path(__file__).parents[2] / "docs" / "other-networks.md").read_text(encoding="utf-8")
CALLS = dict(re.findall(r"^\| (.+?) \| `(lambda .+)` \|$", PAGE, re.MULTILINE))
PROGRAM, USE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(COMMANDS,) = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)


class FramesFirst(networks.ModulePool):
    def forward(self, frames):
        return {"logits": super().forward(frames.transpose(1, 2)), "frames": frames}


class Transformers(networks.ModulePool):
    def forward(self, pixel_values):
        return SimpleNamespace(logits=super().forward(pixel_values.transpose(1, 2)))


class DictTuple(networks.ModulePool):
    def forward(self, inputs):
        return super().forward(inputs["video"]), inputs["video"]


class TwoPathways(nn.Module):
    """The fast pathway joins the slow one in front of the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.slow, self.fast = networks.stages(), networks.stages(4)
        self.fc = nn.Linear(16, 5)

    def forward(self, pathways):
        slow, fast = self.slow(pathways[0]), self.fast(pathways[1])
        joined = torch.cat([slow, fast[:, :, ::4]], 1)
        return self.fc(joined.mean((2, 3, 4)))


class TwoStreams(nn.Module):
    """The features of RGB and flow are joined in front of the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.flow, self.fc = networks.stages(), networks.stages(4), nn.Linear(16, 5)
        self.flow[0] = nn.Conv3d(2, 8, 3, stride=(1, 2, 2), padding=1, bias=False)

    def forward(self, rgb, flow, mask=None):
        joined = torch.cat([self.rgb(rgb), self.flow(flow)], 1)
        return self.fc((joined if mask is None else joined * mask).mean((2, 3, 4)))


class ChannelsLast(networks.VerbNoun):
    def forward(self, clip):
        return super().forward(clip.permute(0, 4, 1, 2, 3))


# row of the table -> network; the same answer by hand
ROWS = {
    "frames first, an object (as in `transformers`)": (Transformers, lambda n, x: networks.ModulePool.forward(n, x)),
    "frames first, a dict": (FramesFirst, lambda n, x: networks.ModulePool.forward(n, x)),
    "a dict, a tuple": (DictTuple, lambda n, x: networks.ModulePool.forward(n, x)),
    "a list of pathways, slow and fast": (TwoPathways, lambda n, x: n([x[:, :, [0, 4, 8, 12]], x])),
    "two clips, RGB and flow, and a mask that may be left out": (TwoStreams, lambda n, x: n(x[:, :3], x[:, 3:])),
    "single frames, logits of each": (
        networks.Image,
        lambda n, x: torch.stack([n(x[:, :, t]) for t in range(x.shape[2])]).mean(0),
    ),
    "channels last, one of several heads": (ChannelsLast, lambda n, x: networks.VerbNoun.forward(n, x)["verb"]),
}


def test_the_table_has_these_rows():
    assert CALLS.keys() == ROWS.keys()


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_the_table(row, tmp_path):
    factory, by_hand = ROWS[row]
    network = networks.seeded(factory)
    model = Adapter(network, eval(CALLS[row])).eval()
    x = networks.clip(3, (16, 32, 32) if factory is TwoPathways else (8, 32, 32))
    if factory is TwoStreams:
        x = torch.cat([x, networks.clip(3, seed=2)[:, :2]], 1)
    explained = clipsight.explain(model, [SaliencyTube(), SelectiveRelevance()], x[:1])
    pytest.importorskip("onnxruntime")
    clipsight.export(explained, tmp_path / "x.onnx")
    with torch.inference_mode():
        logits, tube, motion = explained(x)
        torch.testing.assert_close(logits, by_hand(network, x))
        from_file = clipsight.load(tmp_path / "x.onnx")(x)
    for ours, exported in zip((logits, tube, motion), from_file, strict=True):
        torch.testing.assert_close(torch.as_tensor(exported), ours, rtol=1e-4, atol=1e-4)
    assert tube.shape == (3, 1, *x.shape[2:])
    assert (tube[0] - tube[1]).abs().max() > 1e-2


def test_a_map_for_each_input():
    """Gradient times input, by autograd with the network's own two inputs."""
    network = networks.seeded(TwoStreams)
    rgb, flow = networks.clip(2).requires_grad_(), networks.clip(2, seed=2)[:, :2].requires_grad_()
    call = CALLS["two clips, RGB and flow, and a mask that may be left out"]
    head = clipsight.InputGradient(colours="raw", normalize="none")
    clip = torch.cat([rgb, flow], 1).detach()
    logits, raw = clipsight.explain(Adapter(network, eval(call)).eval(), head, clip)(clip)
    gradients = torch.autograd.grad(network(rgb, flow).amax(1).sum(), (rgb, flow))
    for map, gradient, given in zip(raw.split((3, 2), 1), gradients, (rgb, flow), strict=True):
        torch.testing.assert_close(map, gradient * given)
    torch.testing.assert_close(logits, network(rgb, flow))


def test_names_are_those_inside_the_network():
    model = networks.seeded(lambda: Adapter(networks.VerbNoun(), lambda network, clip: tuple(network(clip).values())))
    with pytest.raises(clipsight.AttachError, match=r"2 classifiers; .*\['noun', 'verb'\]"):
        clipsight.explain(model, SaliencyTube(), networks.clip())
    explained = clipsight.explain(model, SaliencyTube(), networks.clip(), head="noun", features="body.3")
    assert explained.num_classes == 7


class LateFusion(TwoPathways):
    def forward(self, pathways):
        pooled = [body(x).mean((2, 3, 4)) for body, x in zip((self.slow, self.fast), pathways, strict=True)]
        return self.fc(torch.cat(pooled, 1))


def test_pathways_that_meet_behind_their_poolings_do_not_fit():
    model = networks.seeded(lambda: Adapter(LateFusion(), eval(CALLS["a list of pathways, slow and fast"])))
    with pytest.raises(clipsight.AttachError, match=r"global average pooling.*Grad-CAM"):
        clipsight.explain(model, SaliencyTube(), networks.clip())


def test_the_example_and_its_commands(tmp_path, monkeypatch):
    pytest.importorskip("av")
    pytest.importorskip("typer")
    pytest.importorskip("onnxruntime")
    from typer.testing import CliRunner

    from clipsight import cli
    from clipsight.video import VideoWriter

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    assert PROGRAM.startswith("# my_networks.py\n")
    Path("my_networks.py").write_text(PROGRAM)
    network = networks.seeded(importlib.import_module("my_networks").FramesFirst, seed=5)
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, "actions.pth")
    noise = np.random.default_rng(0).integers(0, 256, (16, 48, 64, 3), np.uint8)
    with VideoWriter(Path("video.mp4"), 10) as writer:
        for frame in noise:
            writer.write(frame)

    for command in COMMANDS.splitlines():
        result = CliRunner().invoke(cli.app, [*shlex.split(command)[1:]])
        assert result.exit_code == 0, result.output
    reports = [Path(folder, "result.json").read_text() for folder in ("explained", "again")]
    assert all(label in report for report in reports for label in ("climb", "run", "swim"))
    manifest = clipsight.load("actions.onnx").manifest
    assert manifest.preprocessing.size == (8, 32, 32)

    found: dict = {}
    exec(USE, found)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in found["model"].network.state_dict().items())
    torch.testing.assert_close(found["logits"], network(found["clip"].transpose(1, 2))["logits"])
    assert found["logits"].shape == (2, 3)
    assert found["tube"].shape == found["motion"].shape == (2, 1, 8, 32, 32)


class MeanOverTokens(networks.ModulePool):
    def forward(self, x):
        return self.fc(self.body(x).flatten(2).transpose(1, 2).mean(1))


@torch.no_grad()
def test_a_mean_over_tokens_is_a_mean_over_the_grid():
    tokens, grid = (networks.seeded(factory) for factory in (MeanOverTokens, networks.ModulePool))
    x = networks.clip(2)
    expected = clipsight.explain(grid, SaliencyTube(), x)(x)
    torch.testing.assert_close(clipsight.explain(tokens, SaliencyTube(), x)(x), expected)
