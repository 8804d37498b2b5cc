"""`clipsight pyramid`: a video in; graph, tables, pictures and a page out, and they tell what the head computed."""

import csv
import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("typer")
pytest.importorskip("networkx")
pytest.importorskip("matplotlib")
import networkx
import torch

import clipsight
import helpers
from clipsight import FeaturePyramid, Preprocessing, models, render
from clipsight.cli import tracing
from clipsight.cli.pyramid import _split
from clipsight.pyramid import Pyramid, graph
from clipsight.synthetic import MOTION_CLASSES, moving_shapes
from clipsight.targets import Reading
from clipsight.video import VideoReader
from clipsight.windows import to_clip
from helpers import write_video

RIGHT, LEFT = (MOTION_CLASSES.index(f"moves {side}") for side in ("right", "left"))
LAYERS = ("classifier", "features.4.0", "features.3.0")

FACTORY = """
import torch
from torch import nn
from clipsight import Preprocessing

class Net(nn.Module):
    preprocessing = Preprocessing(frames=8, resize=32, crop=(32, 32))
    labels = ["cat", "dog, big", "dog", "flying fish"]

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv3d(3, 8, 3, stride=2, padding=1)
        self.left, self.right = nn.Conv3d(8, 4, 1), nn.Conv3d(8, 4, 3, padding=1)
        self.grouped = nn.Conv3d(8, 8, 3, padding=1, groups=2)
        self.pool, self.fc = nn.AdaptiveAvgPool3d(1), nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.grouped(torch.cat([self.left(x), self.right(x)], 1)))
        return self.fc(self.pool(x).flatten(1))

class Broken(Net):
    def __init__(self):
        super().__init__()
        self.fc.bias.data.fill_(float("nan"))

class Attention(Net):
    def forward(self, x):
        x = torch.relu(self.grouped(torch.relu(self.stem(x))))
        return self.fc(self.pool(x * torch.sigmoid(x.mean((2, 3, 4), keepdim=True))).flatten(1))
"""


run = functools.partial(helpers.run, "pyramid")


def succeed(*arguments):
    return " ".join(helpers.succeed("pyramid", *arguments).output.split())


def load(folder, name="graph.json"):
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Two seconds of a mover to the right, two of one to the left, each as long as a clip."""
    frames = np.concatenate([moving_shapes(1, 4, size=128, labels=[label]).frames[0] for label in (RIGHT, LEFT)])
    return write_video(tmp_path_factory.mktemp("videos") / "both.mp4", frames)


@pytest.fixture(scope="module")
def traced(video, tmp_path_factory):
    """What the command writes for the shipped network, and prints."""
    out = tmp_path_factory.mktemp("traced") / "out"
    printed = succeed(video, "--class", "moves left", "--depth", "all", "--out", out)
    return out, printed


@pytest.fixture
def factory(tmp_path, monkeypatch):
    (tmp_path / "little_pyramid.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "little_pyramid", raising=False)
    return "little_pyramid:Net"


def test_files_and_what_is_printed(traced):
    out, printed = traced
    layers = [*LAYERS, "features.2.0", "features.1.0", "features.0.0"]
    names = {"graph.json", "graph.graphml", "graph.svg", "kernels.csv", "pyramid.png", "pyramid.html"}
    assert {path.name for path in out.iterdir()} == names | {f"tube-{layer}.mp4" for layer in layers}
    assert [path.name for path in out.parent.iterdir()] == [out.name], "nothing is left beside it"
    pyramid = graph.from_dict(load(out))
    for step in pyramid:
        numbers = (step.layer.depth, step.layer.name, step.mask.sum(), step.layer.channels, f"{step.edges.sum():,}")
        assert " ".join(map(str, numbers)) in printed
    assert "frames 16 to 31, of 3 windows the one where moves left is most probable" in printed
    assert "<html" in (out / "pyramid.html").read_text()
    assert "moves left" in (out / "graph.svg").read_text()
    for layer in layers:
        reader = VideoReader(out / f"tube-{layer}.mp4")
        assert (reader.size, reader.fps, len(list(reader))) == ((128, 128), 10, 16)


def test_graph_is_what_the_head_computes_on_that_clip(traced, video):
    out, _ = traced
    values, network = load(out), models.load("movers")
    frames = [np.array(frame) for frame in VideoReader(video)][16:]
    shrunk = [render.cv2.resize(frame, (64, 64), interpolation=render.cv2.INTER_LINEAR) for frame in frames]
    clip = torch.from_numpy(to_clip(shrunk, network.preprocessing))
    explained = clipsight.explain(network, FeaturePyramid(depth="all"), clip, [LEFT])
    with torch.inference_mode():
        outputs = {n: t.numpy() for n, t in zip(explained.output_names, explained(clip), strict=True)}
    described = explained.describe()["methods"][0]
    expected = Pyramid.from_outputs(described["layers"], outputs, LEFT, "moves left")
    assert values["clip"]["frames"] == [16, 31]
    assert values["class"] == {"index": LEFT, "label": "moves left"}
    probability = torch.from_numpy(outputs["logits"]).softmax(1)[0, LEFT].item()
    assert values["probability"] == pytest.approx(probability, abs=1e-5)
    assert values["options"] == json.loads(json.dumps({k: v for k, v in described.items() if k != "layers"}))
    pyramid = graph.from_dict(values)
    for ours, theirs in zip(pyramid, expected, strict=True):
        assert ours.layer == theirs.layer
        assert (ours.edges == theirs.edges).all()
        assert (ours.multiplicity == theirs.multiplicity).all()
    with (out / "kernels.csv").open() as file:
        rows = [{**row} for row in csv.DictReader(file)]
    assert rows == [{key: str(value) for key, value in row.items()} for row in expected.table()]


def test_graphml_is_read_by_networkx_and_agrees_with_the_multiplicities(traced):
    out, _ = traced
    read, pyramid = networkx.read_graphml(out / "graph.graphml"), graph.from_dict(load(out))
    assert dict(read.nodes(data=True)) == dict(graph.to_networkx(pyramid).nodes(data=True))
    assert networkx.is_directed_acyclic_graph(read)
    nodes = read.nodes(data=True)
    for step in pyramid:
        before = step.layer.sources[0].layer if step.layer.sources else "clip"
        counts = {node["index"]: read.in_degree(name) for name, node in nodes if node["layer"] == before}
        assert counts == {i: n for i, n in enumerate(step.multiplicity.tolist()) if n}
    assert {node["layer"] for _, node in read.nodes(data=True) if not node["stepped"]} == {"clip"}


def test_the_tubes_lie_on_the_mover(traced, video):
    """The class step's tube is warm on the mover and cold on the look-alike that stands still."""
    out, _ = traced
    mask = moving_shapes(1, 4, size=128, labels=[LEFT]).masks[0]
    frames = np.stack(list(VideoReader(out / "tube-classifier.mp4"))).astype(int)
    warmth = frames[..., 0] - frames[..., 2]
    assert warmth[mask].mean() > warmth[~mask].mean() + 60
    assert mask[np.unravel_index(warmth.argmax(), mask.shape)]


def test_two_classes_are_compared(video, tmp_path):
    printed = succeed(video, "--class", "moves left, moves right", "--start", 0, "--out", tmp_path, "--theta", 0.5)
    tails = ("-moves_left", "-moves_right")
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"{stem}{tail}{suffix}" for tail in tails for stem, suffix in
          (("graph", ".json"), ("graph", ".graphml"), ("graph", ".svg"), ("kernels", ".csv"), ("pyramid", ".png"))),
        *(f"tube-{layer}{tail}.mp4" for layer in LAYERS for tail in tails),
        "compare.json", "compare.csv", "pyramid.html",
    }  # fmt: skip
    left, right = (graph.from_dict(load(tmp_path, f"graph{tail}.json")) for tail in tails)
    (pair,) = load(tmp_path, "compare.json")
    assert (pair["first"], pair["second"]) == ("moves left", "moves right")
    assert pair["layers"] == left.compare(right)
    assert any(parts["shared"] for parts in pair["layers"].values())
    assert any(parts["first"] or parts["second"] for parts in pair["layers"].values())
    for step, parts in zip(left, pair["layers"].values(), strict=True):
        assert " ".join(map(str, (step.layer.depth, step.layer.name, *map(len, parts.values())))) in printed
    with (tmp_path / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    for pyramid in (left, right):
        counts = {(row["layer"], int(row["channel"])): int(row[pyramid.label]) for row in rows}
        assert sum(counts.values()) == sum(int(step.multiplicity.sum()) for step in pyramid)
    assert "frames 0 to 15, from --start on" in printed
    assert load(tmp_path, "graph-moves_left.json")["options"]["theta"] == 0.5


def test_without_a_class_the_most_probable_one_of_the_video(video, tmp_path):
    succeed(video, "--class", "top2", "--depth", 1, "--out", tmp_path)
    labels = {load(tmp_path, path.name)["class"]["label"] for path in tmp_path.glob("graph-*.json")}
    assert labels == {"moves left", "moves right"}


TUBES = {
    "layers": ([], {"fc", "grouped", "left", "right"}),
    "some layers": (["--layer", "left", "--layer", "fc"], {"fc", "left"}),
    "groups and branches": (["--volumes", "group"], {"fc", "grouped_group_[01]", "left", "right"}),
    "channels": (["--channel", "grouped:5", "--channel", "left:7"], {"grouped_channel_5", "left_channel_7"}),
    "kernels": (["--volumes", "feature", "--channel", "right:3", "--layer", "right"], {"right_kernel_3"}),
    "top kernels": (["--volumes", "feature", "--layer", "grouped"], {"grouped_kernel_[0-7]"}),
    "top channels": (["--volumes", "channel", "--layer", "grouped"], {"grouped_channel_[0-7]"}),
}


@pytest.mark.parametrize("options, names", TUBES.values(), ids=TUBES.keys())
def test_volumes(options, names, video, tmp_path, factory):
    out = tmp_path / "out"
    succeed(video, "--model", factory, "--class", "dog, big", "--depth", 3, "--start", 2, "--out", out, *options)
    tubes = {path.name: path for path in out.glob("tube-*.mp4")}
    matched = {name: list(out.glob(f"tube-{name}.mp4")) for name in names}
    assert all(matched.values()), (names, tubes)
    assert set(tubes) == {path.name for paths in matched.values() for path in paths}
    values = load(out)
    assert {layer["name"] for layer in values["layers"]} == {"fc", "grouped", "left", "right"}, "the graph has them all"
    pyramid = graph.from_dict(values)
    selected = {"kernel": pyramid["grouped"].kernels, "channel": np.flatnonzero(pyramid["grouped"].mask)}
    for what, indices in selected.items():
        shown = [int(name.split("_")[-1][:-4]) for name in tubes if f"grouped_{what}" in name]
        if "--channel" not in options:
            assert set(shown) <= set(indices.tolist()), "only those that are selected"
            assert len(shown) in (0, min(4, len(indices)))


def test_a_branch_that_nothing_leads_to_has_no_pictures(video, tmp_path, factory):
    """At theta 1 the class takes one channel, its kernel one of its group: one of the two branches."""
    out = tmp_path / "out"
    printed = succeed(video, "--model", factory, "--theta", 1, "--start", 0, "--out", out)
    pyramid = graph.from_dict(load(out))
    (led,) = (name for name in ("left", "right") if len(pyramid[name].kernels))
    assert {path.name for path in out.glob("tube-*")} == {f"tube-{name}.mp4" for name in ("fc", "grouped", led)}
    other = pyramid[{"left": "right", "right": "left"}[led]]
    assert f"3 {other.layer.name} {other.mask.sum()} 8 0" in printed


def test_a_graph_too_large_for_a_list_of_edges_says_so(video, tmp_path, factory, monkeypatch):
    arguments = [video, "--model", factory, "--start", 0, "--layer", "fc"]
    succeed(*arguments, "--out", tmp_path / "whole")
    whole = load(tmp_path / "whole")
    count = len(whole["edges"])
    monkeypatch.setattr(tracing, "GRAPH_LIMIT", count - 1)
    printed = succeed(*arguments, "--out", tmp_path / "out")
    assert f"{count} connections are more than {count - 1}: no graph.graphml" in printed
    assert not (tmp_path / "out" / "graph.graphml").exists()
    assert load(tmp_path / "out") == {key: value for key, value in whole.items() if key != "edges"}
    monkeypatch.setattr(tracing, "GRAPH_LIMIT", count)
    assert "no graph.graphml" not in succeed(*arguments, "--out", tmp_path / "again")


def test_a_label_may_contain_a_comma():
    labels = ["cat", "Dog, big", "dog"]
    assert _split(["dog, big", "cat, dog"], labels) == ["dog, big", "cat", "dog"]
    assert _split(["3,4"], None) == ["3", "4"]


@pytest.mark.parametrize("suffix", [pytest.param(".onnx", marks=pytest.mark.full), ".pt"])
def test_an_exported_file_traces_like_the_live_network(suffix, video, tmp_path, factory):
    import little_pyramid

    file, clip = tmp_path / f"net{suffix}", torch.rand(1, 3, 8, 32, 32)
    net = little_pyramid.Net().eval()
    heads = [FeaturePyramid(theta=0.4, volumes="channel", channels="top2")]
    choice = "input" if suffix == ".onnx" else "top2"
    facts = {"labels": net.labels, "preprocessing": net.preprocessing, "name": "net", "plugin": suffix == ".onnx"}
    clipsight.export(clipsight.explain(net, heads, clip, choice), file, **facts)
    classes = "top2" if suffix == ".pt" else "cat,dog"
    options = ["--theta", 0.4, "--volumes", "channel"]
    succeed(video, "--model", factory, "--class", classes, "--start", 5, "--out", tmp_path / "live", *options)
    succeed(video, "--model", file, "--class", classes, "--start", 5, "--out", tmp_path / "file", "--layer", "fc")
    graphs = sorted(path.name for path in (tmp_path / "live").glob("graph-*.json"))
    assert graphs == sorted(path.name for path in (tmp_path / "file").glob("graph-*.json"))
    assert len(graphs) == 2
    for name in graphs:
        live, exported = load(tmp_path / "live", name), load(tmp_path / "file", name)
        for key in ("class", "layers", "kernels", "edges"):
            assert live[key] == exported[key]
    tubes = {path.name for path in (tmp_path / "file").glob("tube-*")}
    assert tubes
    assert all(name.startswith("tube-fc_channel_") for name in tubes)
    for more, message in (
        (["--theta", 0.3], "theta: is part of the exported file"),
        (["--layer", "stem"], "layer: must be one that"),
        (["--size", "64x64"], "takes clips of 8x32x32 (TxHxW), got 8x64x64"),
    ):
        result = run(video, "--model", file, "--out", tmp_path / "other", *more)
        assert (result.exit_code, message in result.output) == (1, True), result.output
    if suffix == ".pt":
        result = run(video, "--model", file, "--class", "cat", "--out", tmp_path / "other")
        assert "exported with classes='top2' and cannot explain others" in result.output


BAD_ARGUMENTS = {
    "missing video": (["no.mp4"], "video: no.mp4 does not exist"),
    "theta": (["VIDEO", "--theta", "1.01"], "theta must lie in 0..1, got 1.01"),
    "negative theta": (["VIDEO", "--theta", "-0.5"], "theta must lie in 0..1, got -0.5"),
    "depth beyond the network": (["VIDEO", "--depth", "5"], "depth must be at most 4"),
    "no depth": (["VIDEO", "--depth", "0"], "depth must be at least 1"),
    "depth in words": (["VIDEO", "--depth", "three"], "depth: must be a number of layers, or all, got 'three'"),
    "class": (["VIDEO", "--class", "cat,cow"], "class: 'cow' is no class of this model"),
    "class index": (["VIDEO", "--class", "4"], "index must lie in 0..3, got 4"),
    "layer": (["VIDEO", "--layer", "pool"], "got 'pool'"),
    "layer below the depth": (["VIDEO", "--layer", "stem"], "got 'stem'"),
    "channel": (["VIDEO", "--channel", "left:8"], "channels of 'left' must lie in 0..7, got 8"),
    "channel of no layer": (["VIDEO", "--channel", "pool:1"], "got 'pool'"),
    "channel without a layer": (["VIDEO", "--channel", "12"], "channel: must be LAYER:INDEX"),
    "channel of a layer's volume": (["VIDEO", "--channel", "left:1", "--volumes", "group"], "channel: goes with"),
    "start": (["VIDEO", "--start", "25"], "start: must be 0 to 24, so that the 8 frames of a clip fit, got 25"),
    "negative start": (["VIDEO", "--start", "-1"], "start: must be at least 0, got -1"),
    "too short": (["VIDEO", "--frames", "33"], "a clip needs 33 frames, got 32"),
    "threads": (["VIDEO", "--threads", "0"], "threads: must be at least 1, got 0"),
    "labels": (["VIDEO", "--labels", "labels.txt"], "labels: must name 4 classes like the model, got 2"),
    "not finite": (["VIDEO", "--model", "little_pyramid:Broken"], "must be finite"),
    "unknown block": (["VIDEO", "--model", "little_pyramid:Attention"], "cannot follow 'mul'"),
    "no method": (["VIDEO", "--model", "tube.pt"], "must have the method feature_pyramid, it has ['saliency_tube']"),
    "random weights": (["VIDEO", "--model", "r3d_18"], "give them with --checkpoint FILE"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_mistakes_are_one_line_and_leave_nothing(case, video, tmp_path, factory, request):
    arguments, message = case
    (tmp_path / "labels.txt").write_text("x\ny\n")
    if "tube.pt" in arguments:
        import little_pyramid

        explained = clipsight.explain(
            little_pyramid.Net().eval(), clipsight.SaliencyTube(), torch.rand(1, 3, 8, 32, 32)
        )
        clipsight.export(explained, "tube.pt", plugin=False)
    arguments = [str(video) if a == "VIDEO" else a for a in arguments]
    arguments += [] if "--model" in arguments else ["--model", factory]
    before = {path.name for path in tmp_path.iterdir()} | {"__pycache__"}
    result = run(*arguments, "--out", "out/here")
    assert result.exit_code == 1, result.output
    (line,) = (line for line in result.output.splitlines() if line.strip())
    assert line.startswith("error: ")
    assert message in line
    assert {path.name for path in tmp_path.iterdir()} | {"__pycache__"} == before


@pytest.mark.parametrize("package", ["networkx", "matplotlib"])
def test_without_the_extra_it_says_so_at_once(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    result = run("no.mp4")
    assert result.output.startswith(f"error: pyramid: {package} is needed")
    assert "pip install 'clipsight[pyramid]'" in result.output


def test_an_error_at_the_end_leaves_nothing(video, tmp_path, factory, monkeypatch):
    def fail(path, *_):
        Path(path).write_text("half")
        raise MemoryError("no more pages")

    monkeypatch.setattr(tracing, "write_page", fail)
    result = run(video, "--model", factory, "--start", 0, "--out", tmp_path / "new" / "out")
    assert result.output.strip() == "error: out of memory (no more pages); a smaller --size takes less"
    assert list((tmp_path / "new").iterdir()) == []


class Bright:
    """Its first class is the more probable, the brighter the clip."""

    preprocessing = Preprocessing(frames=4, stride=3, crop=(8, 8))
    labels, takes_frames, fixed_classes, reading = None, False, None, Reading()

    def logits(self, clip):
        return np.array([10 * clip.mean(), 0.0], np.float32)


def test_the_clip_begins_at_a_frame_of_the_source(tmp_path):
    frames = np.zeros((60, 8, 8, 3), np.uint8)
    frames[30:40] = 200  # of the sampled frames 0, 3, 6, ... those from 10 to 13
    reader = VideoReader(write_video(tmp_path / "flash.mp4", frames))
    _window, shot, classes, how = tracing.find_clip(Bright(), reader, (0,), None, False)
    assert (shot.start, len(shot.frames)) == (30, 10)
    assert [int(frame.mean()) for frame in shot.frames] == pytest.approx([200] * 10, abs=4)
    assert (classes, how) == ((0,), "of 9 windows the one where class 0 is most probable")


def test_short_video_on_request(video, tmp_path, factory):
    short = write_video(tmp_path / "short.mp4", list(VideoReader(video))[:5])
    result = run(short, "--model", factory, "--out", tmp_path / "a")
    assert "repeat the short video with --loop" in result.output
    succeed(short, "--model", factory, "--loop", "--out", tmp_path / "b")
    assert load(tmp_path / "b")["clip"]["frames"] == [0, 4]
    assert len(list(VideoReader(tmp_path / "b" / "tube-fc.mp4"))) == 5


def test_real_clip(clips, tmp_path):
    source = VideoReader(clips / "arm_wrestling.mp4")
    printed = succeed(source.path, "--stride", 4, "--start", 100, "--layer", "classifier", "--out", tmp_path)
    reader = VideoReader(tmp_path / "tube-classifier.mp4")
    assert (reader.size, reader.fps, len(list(reader))) == ((256, 340), 28, 61)
    assert reader.pixel_aspect == source.pixel_aspect
    assert "frames 100 to 160" in printed
    picture = render.Image.open(tmp_path / "pyramid.png")
    assert picture.size[0] > 6 * 224
