"""The command line with every relevance map: `--map` and `--layer` of explain, export and compare."""

import json
import sys

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("typer")
import torch

import clipsight
from clipsight import GradCAM, SaliencyTube, SelectiveRelevance
from clipsight.cli.networks import CommandError, ExportedNetwork, load_live, map_head
from clipsight.heads import METHODS
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

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.next = nn.Conv3d(3, 6, 3, padding=1), nn.Conv3d(6, 6, 3, padding=1)
        self.pool, self.fc = nn.AdaptiveAvgPool3d(1), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.pool(torch.relu(self.next(torch.relu(self.conv(x))))).flatten(1))

class Dense(Net):  # as C3D: no global pooling, so no saliency tube
    def __init__(self):
        super().__init__()
        self.pool, self.fc = nn.MaxPool3d(8), nn.Linear(6 * 16, 3)
"""
CAT, DOG = 0, 1


@pytest.fixture(scope="module")
def frames():
    """The 8 frames of one clip, of the network's own size, so that nothing is resized or blended."""
    return moving_shapes(1, seed=4, frames=8, size=32, labels=[1]).frames[0]


@pytest.fixture
def video(frames, tmp_path):
    return write_video(tmp_path / "video", frames)  # PNG: lossless


@pytest.fixture
def nets(tmp_path, monkeypatch):
    (tmp_path / "mapped_nets.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mapped_nets", raising=False)
    return "mapped_nets:Net"


def load(spec, frames):
    live = load_live(spec, None, False, frames=None, size=None, stride=None)
    return live, torch.from_numpy(to_clip(frames, live.preprocessing))


def explain(out, *arguments) -> tuple[np.ndarray, dict]:
    """The raw maps `[M, T, H, W]`, and the report."""
    succeed("explain", *arguments, "--out", out, "--raw", "--format", "png")
    return np.load(out / "maps.npz")["maps"], json.loads((out / "result.json").read_text())


def grad_cam(features: torch.Tensor, rest, index: int) -> np.ndarray:
    """relu(sum_c mean(d logit / d A_c) A_c), by autograd, at the features' size."""
    features = features.detach().double().requires_grad_()
    (gradient,) = torch.autograd.grad(rest(features)[0, index], features)
    return torch.relu((gradient.mean((2, 3, 4), keepdim=True) * features).sum(1)).detach().numpy()


@pytest.mark.parametrize("name", ["Net", "Dense"])
def test_grad_cam_is_that_of_autograd(nets, video, frames, tmp_path, name):
    """Of the layer that stands in front of the pooling or, where there is none, of the last convolution."""
    spec = f"mapped_nets:{name}"
    live, clip = load(spec, frames)
    net = live.module.double()
    before = net.next(torch.relu(net.conv(clip.double())))

    def head(after):
        return net.fc(net.pool(after).flatten(1))

    expected = {
        "default": grad_cam(torch.relu(before), head, DOG) if name == "Net" else None,
        "next": grad_cam(before, lambda a: head(torch.relu(a)), DOG),
    }
    if name == "Dense":
        expected["default"] = expected["next"]
    for layer, wanted in expected.items():
        options = [] if layer == "default" else ["--layer", layer]
        arguments = [video, "--model", spec, "--class", "dog", "--map", "grad_cam", *options]
        maps, report = explain(tmp_path / layer, *arguments)
        assert np.abs(maps - wanted).max() <= 1e-5 * wanted.max()
        assert report["options"]["map"] == "grad_cam"
        assert report["model"]["methods"][0]["layer"] == (None if layer == "default" else layer)
    others = [grad_cam(before, lambda a: head(torch.relu(a)), CAT)]
    others += [expected["default"]] if name == "Net" else []
    for other in others:
        assert np.abs(other - expected["next"]).max() > 1e-2 * expected["next"].max(), "another class, another layer"


@pytest.mark.parametrize("map", METHODS)
def test_every_map_is_that_of_its_head(nets, video, frames, tmp_path, map):
    live, clip = load(nets, frames)
    with torch.no_grad():
        _, expected = clipsight.explain(live.module, METHODS[map](normalize="none"), clip, [DOG])(clip)
    arguments = [video, "--model", nets, "--class", "dog", "--map", map, "--n-sigma", 1]
    maps, report = explain(tmp_path / "out", *arguments, "--method", "tube", "--method", "motion", "--method", "static")
    assert np.abs(maps - expected[0].numpy()).max() <= 1e-6 * expected.abs().max()
    assert {"heat", "focus", "motion", "static", "contact.png"} <= set(report["files"])
    assert report["model"]["methods"][0]["method"] == report["options"]["map"] == map
    mask = np.load(tmp_path / "out" / "maps.npz")["motion_mask"]
    share = np.abs(maps * mask).sum() / np.abs(maps).sum()
    assert report["maps"] == [{"name": "dog", "motion_share": pytest.approx(share, abs=1e-5)}]
    assert 0 < share < 1


def test_maps_differ(nets, video, frames):
    """What the test above could not see if the name were ignored: no two maps of this network agree."""
    live, clip = load(nets, frames)
    heads = [head(normalize="none") for head in METHODS.values()]
    with torch.no_grad():
        _, *maps = clipsight.explain(live.module, heads, clip, [DOG])(clip)
    scaled = [map / map.abs().max() for map in maps]
    for i, first in enumerate(scaled):
        for second in scaled[:i]:
            assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize(
    "map, suffix",
    [
        *((map, ".pt") for map in ("grad_cam", "guided_grad_cam", "deep_taylor", "lrp_epsilon")),
        pytest.param("guided_grad_cam", ".onnx", marks=pytest.mark.full),
    ],
)
def test_exported_map_looks_as_the_live_one(nets, video, tmp_path, map, suffix):
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    layer = ["--layer", "conv"] if "cam" in map else []
    file = tmp_path / f"net{suffix}"
    options = ["--map", map, *layer, "--model", nets, "--class", "dog"]
    succeed("export", *options, "--no-plugin", "--raw-maps", "--out", file)
    manifest = json.loads(succeed("info", file, "--json").stdout)
    assert [output["name"] for output in manifest["outputs"]] == ["logits", map, "motion", "motion_share"]
    live, report = explain(tmp_path / "live", video, *options)
    maps, of_file = explain(tmp_path / "file", video, "--model", file)
    assert np.abs(maps - live).max() <= 1e-4 * np.abs(live).max()
    assert of_file["options"]["map"] == map
    assert of_file["maps"][0]["motion_share"] == pytest.approx(report["maps"][0]["motion_share"], abs=1e-3)


def test_file_of_two_maps(nets, frames, tmp_path):
    """The first one is shown, or the one that is named, each with its own motion."""
    live, clip = load(nets, frames)
    tube, cam = SaliencyTube(normalize="none"), GradCAM(layer="conv", normalize="none")
    split = [
        SelectiveRelevance(of=tube, n_sigma=1, part="static"),
        SelectiveRelevance(of=cam, n_sigma=1, extras=("motion_share",)),
        SelectiveRelevance(of=tube, n_sigma=3, part="both", extras=("motion_share",)),
    ]
    explained = clipsight.explain(live.module, [*split, cam, tube], clip, [DOG])
    clipsight.export(explained, tmp_path / "two.pt", plugin=False)
    with torch.no_grad():
        outputs = dict(zip(explained.output_names, explained(clip), strict=True))
    named = {"grad_cam": ("motion", "motion_share"), "saliency_tube": ("motion_2", "motion_share_2")}
    for asked, shown in ((None, "grad_cam"), ("grad_cam", "grad_cam"), ("saliency_tube", "saliency_tube")):
        network = ExportedNetwork(str(tmp_path / "two.pt"), "cpu", None, {}, asked, frames=None, size=None, stride=None)
        answer = network(clip.numpy(), None)
        assert network.map == shown
        motion, share = (outputs[name][0] for name in named[shown])
        expected = outputs[shown][0].numpy()
        assert np.abs(answer.maps - expected).max() <= 1e-5 * np.abs(expected).max()
        moving = np.where(answer.motion, answer.maps, 0)  # where the map is 0, the mask does not matter
        assert (np.abs(moving - motion.numpy()) > 1e-5 * np.abs(expected).max()).mean() <= 1e-3
        assert answer.motion_share == pytest.approx(share.numpy(), abs=1e-3)
    assert (outputs["motion"] != 0).float().mean() != (outputs["motion_2"] != 0).float().mean()


def test_networks_are_compared_by_any_map(nets, video, tmp_path):
    """The change of a map, by its definition on the maps that `explain` writes."""
    options = ["--class", "dog", "--map", "guided_backprop"]
    succeed("compare", video, "--models", "mapped_nets:Net,mapped_nets:Dense", *options, "--out", tmp_path / "both")
    report = json.loads((tmp_path / "both" / "compare.json").read_text())
    for name, row in zip(("Net", "Dense"), report["networks"], strict=True):
        assert row["map"] == "guided_backprop"
        (volume,), _ = explain(tmp_path / name, video, "--model", f"mapped_nets:{name}", *options)
        volume = volume.astype(np.float64)
        change = 1 - (volume.mean(0) ** 2).sum() / (volume**2).mean(0).sum()
        assert row["maps"][0]["temporal_change"]["video"] == pytest.approx(change, abs=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--map", "gradcam"], "map: must be one of saliency_tube, "),
        (["--map", "deep_taylor", "--layer", "conv"], "layer: is no option of deep_taylor, got conv"),
        (["--layer", "conv"], "layer: is no option of saliency_tube, got conv"),
        (["--map", "grad_cam", "--feature", "top2"], "feature: is no option of grad_cam, got top2"),
        (["--map", "grad_cam", "--threshold", "0.1"], "threshold: is no option of grad_cam, got 0.1"),
        (["--map", "grad_cam", "--layer", "con"], "layer must name a module that the network runs, got 'con'"),
        (["--model", "FILE", "--map", "grad_cam"], "must return grad_cam, its outputs are logits, saliency_tube"),
        (["--model", "FILE", "--layer", "conv"], "layer: is part of the exported file"),
    ],
)
def test_mistakes(nets, video, frames, tmp_path, options, message):
    if "FILE" in options:
        live, clip = load(nets, frames)
        explained = clipsight.explain(live.module, SaliencyTube(), clip)
        clipsight.export(explained, tmp_path / "net.pt", plugin=False, preprocessing=live.preprocessing)
        options = [str(tmp_path / "net.pt") if text == "FILE" else text for text in options]
    result = run("explain", video, "--model", nets, *options, "--out", tmp_path / "out")
    (line,) = result.output.strip().splitlines()
    assert (result.exit_code, line.startswith("error: "), message in line) == (1, True, True), line
    assert not (tmp_path / "out").exists()


def test_head_of_a_map_has_the_options_that_were_given():
    assert map_head(None, "3,1", 0.5, None, "none") == SaliencyTube(channels=(3, 1), threshold=0.5, normalize="none")
    cam = GradCAM(layer="conv")
    assert map_head("guided_grad_cam", None, None, "conv", "clip") == clipsight.heads.GuidedGradCAM(cam=cam)
    with pytest.raises(CommandError, match="feature: must be channel numbers"):
        map_head(None, "a", None, None, "none")


@pytest.mark.full
def test_c3d_in_windows(tmp_path):
    """A network without global pooling, which has no saliency tube; 24 frames in two windows."""
    video = write_video(tmp_path / "video", moving_shapes(1, seed=1, frames=24, size=128).frames[0])
    options = ["--model", "c3d", "--random-weights", "--class", 3, "--map", "grad_cam"]
    maps, report = explain(tmp_path / "out", video, *options)
    assert [window["frames"] for window in report["windows"]] == [[0, 15], [8, 23]]
    assert maps.shape == (1, 24, 112, 112)
    assert maps.max() > 0
    assert np.ptp(maps, axis=1).max() > 0, "it changes in time"
