"""`clipsight compare`: the temporal change by hand and by another road, what is common to two networks, the files."""

from __future__ import annotations

import json
import sys
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("typer")
import torch

from clipsight import render
from clipsight.cli import comparing
from clipsight.cli.compare import per_model
from clipsight.cli.networks import Answer, CommandError
from clipsight.cli.request import Request
from clipsight.metrics import temporal_change
from clipsight.preprocessing import Preprocessing
from clipsight.synthetic import MOTION_CLASSES, moving_shapes
from clipsight.video import VideoReader
from helpers import run, succeed, write_video

FACTORIES = """
import torch
from torch import nn
from clipsight import Preprocessing

class Deep(nn.Module):
    preprocessing = Preprocessing(frames=8, resize=32, crop=(32, 32), std=(0.3,) * 3)
    labels = ["cat", "dog", "flying fish"]

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.pool, self.fc = nn.Conv3d(3, 6, 3, padding=1), nn.AdaptiveAvgPool3d(1), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.pool(torch.relu(self.conv(x))).flatten(1))

class Flat(nn.Module):
    preprocessing = Preprocessing(frames=4, resize=30, crop=(24, 24), stride=2)
    labels = ["dog", "cat", "bird"]

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.pool, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Linear(6, 3)

    def forward(self, clip):
        x = clip.transpose(1, 2).flatten(0, 1)
        logits = self.fc(self.pool(torch.relu(self.conv(x))).flatten(1))
        return logits.view(-1, clip.shape[2], 3).mean(1)
"""
PAIR = "little_nets:Flat,little_nets:Deep"


def compare(video, out, *arguments) -> dict:
    succeed("compare", video, "--out", out, *arguments)
    return json.loads((out / "compare.json").read_text())


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """20 frames of 120x96 of a shape that moves right."""
    frames = moving_shapes(1, seed=4, frames=20, size=120, labels=[1]).frames[0, :, :96]
    return write_video(tmp_path_factory.mktemp("videos") / "shapes.mp4", frames)


@pytest.fixture
def little_nets(tmp_path, monkeypatch):
    (tmp_path / "little_nets.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "little_nets", raising=False)


# ---- temporal_change ---------------------------------------------------------------------------------------


def volume(*values):
    """One pixel's values over time, as a volume [T, 1, 1]."""
    return np.array(values, np.float64)[:, None, None]


@pytest.mark.parametrize(
    "relevance, expected",
    [
        (volume(0.1, 0.1, 0.1), 0),  # still; 0.1 is no binary fraction
        (volume(0, 0, 0), 0),  # empty
        (volume(5), 0),  # a single frame
        (volume(1, 0, 1, 0), 1 / 2),  # alternates between something and nothing
        (volume(3, -3, 3, -3), 1),  # alternates between for and against
        (volume(1, 3), 1 - 4 / 5),  # mean 2, mean of squares 5
        (np.eye(5)[:, None], 1 - 1 / 5),  # one lit pixel that is somewhere else in each of 5 frames
        (np.stack([[[1.0, 1.0]], [[1.0, 0.0]]]), 1 - (1 + 1 / 4) / (1 + 1 / 2)),  # a still and a flashing pixel
    ],
)
def test_temporal_change_by_hand(relevance, expected):
    assert temporal_change(relevance) == pytest.approx(expected, abs=1e-15)
    assert expected != 0 or temporal_change(relevance) == 0, "exactly nothing"


def by_definition(relevance: np.ndarray) -> Fraction:
    """1 - sum_xy mean_t(R)^2 / sum_xy mean_t(R^2), pixel by pixel, in exact fractions."""
    frames, rows, columns = relevance.shape
    of_mean = of_all = Fraction(0)
    for y in range(rows):
        for x in range(columns):
            values = [Fraction(float(relevance[t, y, x])) for t in range(frames)]
            of_mean += (sum(values) / frames) ** 2
            of_all += sum(v * v for v in values) / frames
    return 1 - of_mean / of_all


def test_temporal_change_against_its_definition():
    rng = np.random.default_rng(0)
    for offset in (0, 1, 1000):
        relevance = (rng.normal(size=(2, 3, 7, 4, 5)) + offset).astype(np.float32)
        change = temporal_change(relevance)
        assert change.shape == (2, 3)
        assert change.dtype == np.float64
        expected = [[float(by_definition(relevance[i, j])) for j in range(3)] for i in range(2)]
        np.testing.assert_allclose(change, expected, rtol=1e-9)
        assert ((change >= 0) & (change <= 1)).all()


def test_temporal_change_knows_no_scale_but_an_offset():
    relevance = np.random.default_rng(1).normal(size=(6, 3, 3))
    change = temporal_change(relevance)
    for scale in (-2, 1e-200, 1e200):
        assert temporal_change(scale * relevance) == pytest.approx(change, rel=1e-12)
    assert temporal_change(relevance + 1) < 0.9 * change
    assert temporal_change(torch.from_numpy(relevance)) == change
    order = np.random.default_rng(2).permutation(6)
    assert temporal_change(relevance[order]) == pytest.approx(change, rel=1e-12)


@pytest.mark.parametrize(
    "relevance, message",
    [
        (np.zeros((3, 3)), r"must be \[..., T, H, W\], each at least 1, got \[3, 3\]"),
        (np.zeros((2, 0, 3, 3)), r"must be \[..., T, H, W\], each at least 1, got \[2, 0, 3, 3\]"),
        (volume(1, np.nan), "must be finite, got NaN or infinity"),
        (volume(1, np.inf), "must be finite"),
    ],
)
def test_temporal_change_of_what_is_no_volume(relevance, message):
    with pytest.raises(ValueError, match=f"temporal_change: relevance {message}"):
        temporal_change(relevance)


# ---- What two networks have in common -----------------------------------------------------------------------


class Painted:
    """A network whose map is painted on the source: still outside a square in the middle, blinking inside."""

    raw, feature, fixed_classes, has_motion, takes_frames, labels, notes = True, None, None, False, False, None, ()
    map = "saliency_tube"
    side = 48  # of the source

    def __init__(self, name: str, **preprocessing):
        self.name, self.preprocessing = name, Preprocessing(scale=1.0, **preprocessing)

    def __call__(self, clip, classes):
        """The frames carry their own number as their brightness, which the map takes as its time."""
        (top, left), (height, width) = self.offset, self.preprocessing.crop
        y, x = ((np.arange(n) + 0.5 + first) / self.resized for n, first in ((height, top), (width, left)))
        inside = (np.abs(y - 0.5) < 0.25)[:, None] & (np.abs(x - 0.5) < 0.25)
        times = clip[0, 0].mean((1, 2))
        maps = np.stack([np.where(inside, np.sin(t), 1.0) for t in times])[None].astype(np.float32)
        return Answer(np.array([1.0, 0.0], np.float32), maps, np.zeros(maps.shape, bool), np.full(1, np.nan))

    @property
    def resized(self) -> int:
        return self.preprocessing.resize or self.side

    @property
    def offset(self) -> tuple[int, int]:
        return tuple(round((self.resized - part) / 2) for part in self.preprocessing.crop)

    def describe(self):
        return {"name": self.name}


def painted_runs(tmp_path, *networks, count=40):
    frames = [np.full((Painted.side, Painted.side, 3), i, np.uint8) for i in range(count)]
    reader = VideoReader(write_video(tmp_path / "frames", frames))
    runs = []
    for network in networks:
        done = comparing.explaining.run_network(network, reader, 1)
        geometry = comparing.Geometry.of(network.preprocessing, reader.size)
        runs.append(comparing.Run(network.name, network, done, geometry))
    return runs


def test_the_number_is_taken_from_what_both_networks_saw(tmp_path):
    """One sees all of every second frame, the other the middle of every third: the numbers must agree all the same."""
    networks = (
        Painted("wide", frames=8, stride=2, resize=96, crop=(96, 96)),
        Painted("narrow", frames=4, stride=3, resize=144, crop=(96, 96)),
    )
    wide, narrow = painted_runs(tmp_path, *networks)
    common = comparing.Common.of([wide, narrow])
    assert common.frames == range(0, 37, 6)  # 20 and 14 sampled frames: up to 38 and 39
    assert common.grid == (144, 144)
    assert common.region == (slice(24, 120), slice(24, 120))
    assert common.source_region((48, 48)) == [[8, 40], [8, 40]]
    windows = common.measure([wide, narrow])
    # Frames 0, 6, .. 36 that lie in the longer windows: 8 frames of stride 2 from 0, 8, 16, 24; in 0..14 lie 0, 6, 12.
    assert windows == [[0, 12], [12, 18], [18, 30], [24, 36]]
    assert wide.change == pytest.approx(narrow.change, rel=0.05)
    assert wide.window_change == pytest.approx(narrow.window_change, rel=0.05)

    sines = np.sin(np.arange(0, 37, 6))
    blinking, still = 72 * 72, 96 * 96 - 72 * 72  # pixels of the grid
    expected = blinking * sines.var() / (blinking * np.square(sines).mean() + still)
    assert narrow.change == pytest.approx(expected, rel=0.05)
    everything = temporal_change(np.stack([wide.done.maps[i][0] for i in range(20)], axis=1))
    assert abs(everything - wide.change) > 0.2 * wide.change, "negative control: what one network alone saw differs"


def test_networks_without_common_frames(tmp_path):
    runs = painted_runs(
        tmp_path,
        Painted("a", frames=4, stride=5, crop=(48, 48)),
        Painted("b", frames=5, stride=7, crop=(48, 48)),
        count=34,
    )
    message = r"at least 2 of the same frames, got 1 \(a every 5, b every 7, up to frame 28\); give all .* one --stride"
    with pytest.raises(CommandError, match=message):
        comparing.Common.of(runs)


def test_maps_that_a_file_has_scaled_are_compared_with_scaled_ones(tmp_path, monkeypatch, video):
    networks = {name: Painted(name, frames=4, resize=48, crop=(48, 48)) for name in ("raw", "file")}
    networks["file"].raw = False
    monkeypatch.setattr(Request, "open", lambda self: networks[self.model])
    requests = [Request(model=name) for name in networks]
    report = comparing.compare(requests, video, tmp_path)
    assert report["measured_on"]["relevance"] == "scaled to 0..1 per window"
    assert "file: the file scales its maps per clip" in report["notes"][0]
    monkeypatch.setattr(networks["file"], "raw", True)
    raw = comparing.compare(requests, video, tmp_path)
    assert (raw["measured_on"]["relevance"], raw["notes"]) == ("raw", [])
    changes = [r["networks"][0]["maps"][0]["temporal_change"]["video"] for r in (report, raw)]
    assert changes[0] != pytest.approx(changes[1], rel=1e-3)


# ---- The command --------------------------------------------------------------------------------------------


def test_the_shipped_networks_side_by_side(video, tmp_path):
    """The numbers agree with those from `explain`, by the definition; the files decode."""
    options = ["--models", "movers2d,movers", "--class", "moves right", "--class", "grows"]
    report = compare(video, tmp_path / "out", *options)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"compare.png", "compare.mp4", "compare.json"}
    assert report["files"] == ["compare.png", "compare.mp4", "compare.json"]
    assert [n["name"] for n in report["networks"]] == ["movers2d", "movers"]
    assert report["networks"][1]["top"][0]["label"] == "moves right"
    assert report["measured_on"] == {
        "relevance": "raw",
        "frames": {"first": 0, "last": 19, "every": 1},
        "region": [[0, 96], [12, 108]],
        "grid": [64, 80],
        "windows": [[0, 15], [4, 19]],
    }
    for network in report["networks"]:
        succeed(
            "explain", video, "--model", network["name"], *options[2:], "--raw", "--out", tmp_path / network["name"]
        )
        raw = np.load(tmp_path / network["name"] / "maps.npz")["maps"].astype(np.float64)
        assert raw.shape == (2, 20, 64, 64)
        for row, name, volume in zip(network["maps"], ("moves right", "grows"), raw, strict=True):
            assert (row["name"], row["class"]) == (name, MOTION_CLASSES.index(name))
            for part, change in (
                (slice(None), row["temporal_change"]["video"]),
                (slice(0, 16), row["temporal_change"]["windows"][0]),
                (slice(4, 20), row["temporal_change"]["windows"][1]),
            ):
                expected = 1 - np.square(volume[part].mean(0)).sum() / np.square(volume[part]).mean(0).sum()
                assert change == pytest.approx(expected, abs=2e-6)

    reader = VideoReader(tmp_path / "out" / "compare.mp4")
    frames = list(reader)
    assert (len(frames), reader.fps) == (20, 10)
    board = frames[9].astype(int)
    assert board.shape[1] == 2 * 12 + 3 * 288 + 2 * 10
    panels = [board[60:250, 12 + i * 298 : 300 + i * 298] for i in range(3)]
    assert all(np.abs(a - b).mean() > 10 for a, b in ((panels[0], panels[1]), (panels[1], panels[2])))
    sheet = np.array(render.Image.open(tmp_path / "out" / "compare.png"))
    assert sheet.shape[0] > 5 * round(224 * 96 / 120), "input, and two networks for each of two classes"
    assert sheet.shape[1] > 6 * 224


@pytest.mark.full
def test_the_three_dimensional_network_knows_the_motion_and_the_other_cannot(tmp_path):
    """What is certain: the classes and the bounds. The order of the two numbers is printed, not promised."""
    for label in (0, 3, 4, 6):
        clip = write_video(tmp_path / f"{label}.mp4", moving_shapes(1, seed=label, size=128, labels=[label]).frames[0])
        flat, deep = compare(clip, tmp_path / str(label), "--models", "movers2d,movers")["networks"]
        assert deep["maps"][0]["class"] == label
        assert deep["maps"][0]["probability"] > 0.9
        assert flat["maps"][0]["probability"] < 0.6  # a motion and its opposite share what the frames tell
        changes = [n["maps"][0]["temporal_change"]["video"] for n in (flat, deep)]
        print(MOTION_CLASSES[label], changes)
        assert all(0 < change < 1 for change in changes)


def test_networks_of_other_sizes_and_strides_with_boxes(video, tmp_path, little_nets):
    (tmp_path / "boxes.csv").write_text("frame,x,y,w,h,label\n3,30,20,30,40,shape\n")
    options = ["--models", PAIR, "--class", "cat", "--boxes", tmp_path / "boxes.csv", "--format", "png"]
    report = compare(video, tmp_path / "out", *options)
    assert report["measured_on"]["frames"] == {"first": 0, "last": 18, "every": 2}
    assert report["measured_on"]["grid"] == [32, 40]
    rows, columns = report["measured_on"]["region"]
    # The middle 24 of 30 rows and of 37 columns, to half a pixel of the grid, which is 3 source pixels wide.
    assert np.abs(np.subtract(rows, [3 * 96 / 30, 27 * 96 / 30])).max() <= 1.5
    assert np.abs(np.subtract(columns, [6 * 120 / 37, 30 * 120 / 37])).max() <= 1.5
    assert [n["maps"][0]["class"] for n in report["networks"]] == [1, 0], "by name, where the index differs"
    assert [n["model"]["preprocessing"]["stride"] for n in report["networks"]] == [2, 1]
    picture = np.array(render.Image.open(tmp_path / "out" / "compare" / "000003.png")).astype(int)
    other = np.array(render.Image.open(tmp_path / "out" / "compare" / "000004.png")).astype(int)
    green = [(np.abs(p - render.BOX).sum(-1) < 60).sum() for p in (picture, other)]
    assert green[0] > 3 * 200 > green[1]


@pytest.mark.parametrize("name", ["deep.pt", pytest.param("deep.onnx", marks=pytest.mark.full)])
def test_two_checkpoints_of_one_network_and_a_file(name, video, tmp_path, little_nets):
    succeed("export", "--model", "little_nets:Deep", "--class", "input", "--raw-maps", "--out", tmp_path / name)
    import little_nets

    torch.manual_seed(5)
    other = {key: torch.randn_like(value) for key, value in little_nets.Deep().state_dict().items()}
    torch.save(other, tmp_path / "other.pt")
    torch.save(little_nets.Deep().state_dict(), tmp_path / "same.pt")
    options = ["--models", "little_nets:Deep,little_nets:Deep", "--class", "dog"]
    report = compare(
        video, tmp_path / "a", *options, "--checkpoint", tmp_path / "same.pt", "--checkpoint", tmp_path / "other.pt"
    )
    assert [n["name"] for n in report["networks"]] == ["little_nets:Deep 1", "little_nets:Deep 2"]
    first, second = (n["maps"][0]["temporal_change"]["video"] for n in report["networks"])
    assert first != pytest.approx(second, rel=1e-3)
    options = ["--model", tmp_path / name, "--model", "little_nets:Deep", "--class", "dog"]
    report = compare(video, tmp_path / "b", *options, "--labels", write_labels(tmp_path))
    assert [n["name"] for n in report["networks"]] == [name, "little_nets:Deep"]
    file, live = (n["maps"][0]["temporal_change"] for n in report["networks"])
    assert file["video"] == pytest.approx(live["video"], abs=1e-5)
    assert file["windows"] == pytest.approx(live["windows"], abs=1e-5)
    assert first == pytest.approx(live["video"], abs=1e-6)


def write_labels(folder):
    (folder / "labels.txt").write_text("pig\ndog\ncow\n")
    return folder / "labels.txt"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--models", "movers"], "models: must be two networks or more, such as movers2d,movers, got movers"),
        ([], "models: must be two networks or more, such as movers2d,movers, got none"),
        (["--models", "movers,movres"], "did you mean movers?"),
        (["--models", "movers,tsn"], "tsn: model: tsn comes without trained weights"),
        (["--models", "c3d,movers", "--random-weights"], "c3d: explain: "),
        (["--models", PAIR, "--class", "bird"], "little_nets:Deep: class: 'bird' is no class of this model"),
        (["--models", PAIR, "--class", "3"], "little_nets:Flat: class: index must lie in 0..2, got 3"),
        (["--models", PAIR, "--frames", "30"], "little_nets:Flat: windows: a clip needs 30 frames = 59 source frames"),
        (["--models", PAIR, "--stride", "0"], "frames and stride must be at least 1"),
        (["--models", PAIR, "--checkpoint", "x.pt"], "checkpoint: must be NAME=FILE once for a model (of little_nets"),
        (["--models", PAIR, "--checkpoint", "no.pt", "--checkpoint", "no.pt"], "little_nets:Flat: "),
        (["--models", "movers,movers2d", "--checkpoint", "mover=x.pt"], "got mover=x.pt"),
        (["--models", "movers,movers2d", "--checkpoint", "movers=labels.txt"], "movers: "),
        (["--models", PAIR, "--labels", "labels.txt", "--boxes", "no.csv"], "boxes: no.csv cannot be read"),
        (["--models", PAIR, "--size", "big"], "little_nets:Flat: size: must be HxW in pixels"),
    ],
)
def test_every_mistake_is_one_line_and_leaves_nothing(video, tmp_path, little_nets, arguments, message):
    write_labels(tmp_path)
    before = {p.name for p in tmp_path.iterdir()}
    result = run("compare", video, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 1, result.output
    lines = [line for line in result.output.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert {p.name for p in tmp_path.iterdir()} - {"__pycache__"} == before


def test_c3d_has_no_tube_and_the_error_names_what_has(video, tmp_path):
    result = run("compare", video, "--models", "c3d,movers", "--random-weights", "--out", tmp_path / "out")
    assert "Grad-CAM" in result.output
    assert "Traceback" not in result.output


def test_an_error_while_drawing_leaves_no_file(video, tmp_path, monkeypatch, little_nets):
    drawn = []

    def fail_late(self, frame, map):
        drawn.append(frame)
        if len(drawn) == 9:
            raise MemoryError("no more pictures")
        return frame

    monkeypatch.setattr(render.Renderer, "heat", fail_late)
    result = run("compare", video, "--models", PAIR, "--out", tmp_path / "out")
    assert result.output.strip() == "error: out of memory (no more pictures); a smaller --size takes less"
    assert list((tmp_path / "out").iterdir()) == []


def test_which_file_belongs_to_which_model():
    models = ("tsn", "r3d50")
    assert per_model("checkpoint", (), models) == [None, None]
    assert per_model("checkpoint", ("a.pt", "b=1.pt"), models) == ["a.pt", "b=1.pt"]
    assert per_model("checkpoint", ("r3d50=b=1.pt",), models) == [None, "b=1.pt"]
    assert per_model("checkpoint", ("r3d50=b.pt", "tsn=a.pt"), models) == ["a.pt", "b.pt"]
    for wrong in (("a.pt",), ("tsn=a.pt", "b.pt"), ("tsn=a.pt", "tsn=b.pt"), ("a", "b", "c")):
        with pytest.raises(CommandError, match=r"checkpoint: must be NAME=FILE once for a model \(of tsn, r3d50\)"):
            per_model("checkpoint", wrong, models)


@pytest.mark.full
def test_real_clip(clips, tmp_path):
    report = compare(clips / "arm_wrestling.mp4", tmp_path, "--models", "movers2d,movers", "--stride", 4)
    assert report["measured_on"]["region"] == [[0, 256], [40, 296]]  # columns 10..74 of 85
    assert report["measured_on"]["frames"] == {"first": 0, "last": 276, "every": 4}
    for network in report["networks"]:
        change = network["maps"][0]["temporal_change"]
        assert 0 < change["video"] < 1
        assert len(change["windows"]) == len(report["measured_on"]["windows"]) == len(network["windows"])
    reader = VideoReader(tmp_path / "compare.mp4")
    assert (reader.fps, len(list(reader))) == (28, 280)
    assert reader.pixel_aspect == 1
