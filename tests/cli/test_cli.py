"""The command line: real videos in, videos, pictures and JSON out; every mistake is one line and leaves nothing."""

import json
import subprocess
import sys
from fractions import Fraction
from importlib.util import find_spec

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("typer")
import torch

from clipsight import render
from clipsight.cli import explaining
from clipsight.cli.networks import Answer, CommandError, load_live
from clipsight.preprocessing import Preprocessing
from clipsight.synthetic import MOTION_CLASSES, moving_shapes
from clipsight.video import VideoReader, VideoWriter
from helpers import run, succeed, write_video

FACTORY = """
import torch
from torch import nn
from clipsight import Preprocessing

class Net(nn.Module):
    preprocessing = Preprocessing(frames=8, resize=32, crop=(32, 32))
    labels = ["cat", "dog", "flying fish"]

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.pool, self.fc = nn.Conv3d(3, 6, 3, padding=1), nn.AdaptiveAvgPool3d(1), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.pool(torch.relu(self.conv(x))).flatten(1))

number = 7
"""


@pytest.fixture(scope="module")
def truth():
    """Clip 3 of a fixed seed at twice the network's size, and its mask."""
    return moving_shapes(4, seed=5, size=128)


@pytest.fixture(scope="module")
def video(truth, tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("videos") / "shapes.mp4", truth.frames[3])


@pytest.fixture
def factory(tmp_path, monkeypatch):
    (tmp_path / "little_net.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "little_net", raising=False)
    return "little_net:Net"


def test_explain_a_video_file_with_the_shipped_network(video, truth, tmp_path):
    succeed("explain", video, "--out", tmp_path / "out", "--raw")
    names = {"heat.mp4", "focus.mp4", "motion.mp4", "contact.png", "maps.npz", "result.json"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    for name in ("heat", "focus", "motion"):
        reader = VideoReader(tmp_path / "out" / f"{name}.mp4")
        assert (reader.size, reader.fps, len(list(reader))) == ((128, 128), 10, 16)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["top"][0]["label"] == MOTION_CLASSES[truth.labels[3]]
    assert result["maps"][0]["name"] == MOTION_CLASSES[truth.labels[3]]
    assert 0 < result["maps"][0]["motion_share"] < 1
    assert set(result["files"]) == names
    (window,) = result["windows"]
    assert window["frames"] == [0, 15]
    assert window["top"] == result["top"]
    assert sum(c["probability"] for c in result["top"]) == pytest.approx(1, abs=0.05)
    raw = np.load(tmp_path / "out" / "maps.npz")
    assert raw["maps"].shape == raw["motion_mask"].shape == (1, 16, 64, 64)
    assert (raw["low"], raw["high"]) == (raw["maps"].min(), raw["maps"].max())
    frame, y, x = np.unravel_index(raw["maps"][0].argmax(), (16, 64, 64))
    assert truth.masks[3][frame, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].any(), "the hottest voxel lies on the mover"


def test_long_video_in_windows(truth, tmp_path, factory):
    frames = np.concatenate([truth.frames[0], truth.frames[1], truth.frames[2]])[:43, :97, :121]
    video = write_video(tmp_path / "long.gif", frames)
    arguments = ["explain", video, "--model", factory, "--stride", 2, "--step", 3, "--out", tmp_path / "out"]
    succeed(*arguments, "--class", "flying fish", "--class", 0, "--format", "gif", "--raw")
    out = tmp_path / "out"
    kinds = [f"{kind}-{name}" for kind in ("heat", "focus", "motion", "contact") for name in ("flying_fish", "cat")]
    assert {p.stem for p in out.iterdir()} == {*kinds, "maps", "result"}
    assert VideoReader(out / "heat-cat.gif").size == (97, 121)
    result = json.loads((out / "result.json").read_text())
    assert [w["frames"] for w in result["windows"]] == [[s, s + 14] for s in (0, 6, 12, 18, 24, 28)]
    raw = np.load(out / "maps.npz")
    assert raw["names"].tolist() == ["flying fish", "cat"]
    assert raw["maps"].shape == (2, 22, 32, 32)
    assert raw["source_frames"].tolist() == list(range(0, 43, 2))
    assert raw["region"].tolist() == [[0, 97], [12, 112]]  # columns 4..36 of 39
    first = (out / "heat-cat.gif").read_bytes()
    succeed(*arguments, "--class", "flying fish", "--class", 0, "--format", "gif", "--normalize", "window")
    assert (out / "heat-cat.gif").read_bytes() != first


def test_features_static_part_boxes_and_pictures(video, tmp_path, factory):
    (tmp_path / "boxes.csv").write_text("frame,x,y,w,h,label\n3,10,20,30,40,shape\n")
    (tmp_path / "labels.txt").write_text("one\ntwo\nthree\n")
    arguments = ["explain", video, "--model", factory, "--format", "png", "--method", "tube", "--method", "static"]
    arguments += ["--boxes", tmp_path / "boxes.csv", "--labels", tmp_path / "labels.txt"]
    succeed(*arguments, "--feature", "4,1", "--out", tmp_path / "a")
    assert {p.name for p in (tmp_path / "a").iterdir()} == {
        *(f"{kind}-feature_{c}" for kind in ("heat", "focus", "static") for c in (1, 4)),
        *(f"contact-feature_{c}.png" for c in (1, 4)),
        "result.json",
    }
    focus = render.Image.open(tmp_path / "a" / "focus-feature_4" / "000003.png")
    assert focus.mode == "RGBA"
    heat = np.array(render.Image.open(tmp_path / "a" / "heat-feature_4" / "000003.png"))
    assert (heat[20, 10] == render.BOX).all()
    assert json.loads((tmp_path / "a" / "result.json").read_text())["top"][0]["label"] in ("one", "two", "three")
    succeed(*arguments, "--feature", "top2", "--class", "two", "--out", tmp_path / "b")
    assert (tmp_path / "b" / "heat-two_feature_1").is_dir()


def test_short_and_cut_off_videos_on_request(truth, video, tmp_path, factory):
    short = write_video(tmp_path / "short.mp4", truth.frames[0][:5])
    succeed("explain", short, "--model", factory, "--loop", "--out", tmp_path / "a")
    assert len(list(VideoReader(tmp_path / "a" / "heat.mp4"))) == 5
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(video.read_bytes()[: int(0.9 * video.stat().st_size)])
    succeed("explain", cut, "--model", factory, "--partial", "--out", tmp_path / "b")
    result = json.loads((tmp_path / "b" / "result.json").read_text())
    assert 8 <= result["video"]["frames"] < 16
    assert any("cut off" in note for note in result["notes"])


def test_variable_rate_keeps_its_times(truth, tmp_path, factory, monkeypatch):
    """1 s at 8/s, then 2/s, in the videos and in the captions."""
    starts = [Fraction(i, 8) if i < 8 else Fraction(i - 6, 2) for i in range(17)]
    with VideoWriter(tmp_path / "phone.mp4", 10) as writer:
        for frame, *span in zip(truth.frames[3], starts, starts[1:], strict=False):
            writer.write(frame, span)
    captions, draw = [], render.contact_sheet
    monkeypatch.setattr(render, "contact_sheet", lambda *a, **k: captions.append(a[1:3]) or draw(*a, **k))
    succeed("explain", "phone.mp4", "--model", factory, "--out", "a")
    succeed("compare", "phone.mp4", "--models", f"{factory},movers", "--random-weights", "--out", "b")
    for path in ("a/heat.mp4", "a/focus.mp4", "b/compare.mp4"):
        reader = VideoReader(path)
        assert np.abs(np.array([reader.span[0] for _ in reader], float) - np.array(starts[:16], float)).max() < 1e-3
    for frames, times in captions:
        assert np.allclose(np.array(times, float), np.array([starts[i] for i in frames], float), atol=1e-3)
    assert len(captions) == 2


def test_odd_size_says_what_was_padded(truth, tmp_path, factory):
    video = write_video(tmp_path / "odd.gif", truth.frames[0][:, :97, :121])
    succeed("explain", video, "--model", factory, "--out", tmp_path / "out")
    assert VideoReader(tmp_path / "out" / "heat.mp4").size == (98, 122)
    notes = json.loads((tmp_path / "out" / "result.json").read_text())["notes"]
    assert any("121x97 was padded" in note for note in notes)


def test_size_frames_and_checkpoint(video, tmp_path, factory):
    succeed("explain", video, "--model", factory, "--size", "48x40", "--frames", 6, "--raw", "--out", tmp_path / "a")
    raw = np.load(tmp_path / "a" / "maps.npz")
    assert raw["maps"].shape[2:] == (48, 40)
    import little_net

    torch.manual_seed(1)
    other = {f"module.{k}": torch.randn_like(v) for k, v in little_net.Net().state_dict().items()}
    torch.save({"state_dict": other}, tmp_path / "other.pth")
    probabilities = []
    for more in ([], ["--checkpoint", tmp_path / "other.pth"]):
        succeed("explain", video, "--model", factory, "--out", tmp_path / "b", *more)
        probabilities.append(json.loads((tmp_path / "b" / "result.json").read_text())["top"])
    assert probabilities[0] != probabilities[1]


BAD_ARGUMENTS = {
    "missing video": (["explain", "no.mp4"], "video: no.mp4 does not exist"),
    "not a video": (["explain", "little_net.py"], "is not a video"),
    "too short": (["explain", "VIDEO", "--frames", "17"], "a clip needs 17 frames, got 16"),
    "step": (["explain", "VIDEO", "--step", "20"], "step must be 1 to 16"),
    "stride": (["explain", "VIDEO", "--stride", "0"], "stride must be at least 1"),
    "size": (["explain", "VIDEO", "--size", "big"], "size: must be HxW in pixels"),
    "threads": (["explain", "VIDEO", "--threads", "0"], "threads: must be at least 1, got 0"),
    "crop too large": (
        ["explain", "VIDEO", "--model", "little_net:Bare"],
        "must fit into the resized frame, got 128x128",
    ),
    "no model": (["explain", "VIDEO", "--model", "mover"], "got 'mover'; did you mean movers?"),
    "no file": (["explain", "VIDEO", "--model", "gone.onnx"], "gone.onnx"),
    "no module": (["explain", "VIDEO", "--model", "gone:Net"], "No module named 'gone'"),
    "no network": (["explain", "VIDEO", "--model", "little_net:number"], "not callable"),
    "random weights": (["explain", "VIDEO", "--model", "r3d_18"], "give them with --checkpoint FILE"),
    "no checkpoint": (
        ["explain", "VIDEO", "--model", "little_net:Net", "--checkpoint", "x.pth"],
        "x.pth does not exist",
    ),
    "bad checkpoint": (
        ["explain", "VIDEO", "--model", "little_net:Net", "--checkpoint", "labels.txt"],
        "cannot be read",
    ),
    "other checkpoint": (
        ["explain", "VIDEO", "--model", "little_net:Net", "--checkpoint", "o.pth"],
        "3 missing, first conv.bias",
    ),
    "class name": (["explain", "VIDEO", "--class", "moves"], "similar: moves left"),
    "class index": (["explain", "VIDEO", "--class", "8"], "index must lie in 0..7, got 8"),
    "labels": (["explain", "VIDEO", "--labels", "labels.txt"], "labels: must name 8 classes like the model, got 2"),
    "no labels": (["explain", "VIDEO", "--labels", "gone.txt"], "labels: gone.txt cannot be read"),
    "boxes": (["explain", "VIDEO", "--boxes", "labels.txt"], "boxes: labels.txt must begin with a header"),
    "feature": (["explain", "VIDEO", "--feature", "red"], "feature: must be channel numbers"),
    "feature index": (["explain", "VIDEO", "--feature", "9999"], "channels must lie in"),
    "not finite": (["explain", "VIDEO", "--model", "little_net:Broken"], "must be finite"),
    "info": (["info", "gone.onnx"], "gone.onnx"),
    "info of something else": (["info", "labels.txt"], "labels.txt"),
    "export": (["export", "--out", "x.docx"], "x.docx"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_mistakes_are_one_line_and_leave_nothing(case, video, tmp_path, factory):
    arguments, message = case
    (tmp_path / "little_net.py").write_text(
        FACTORY + "class Bare(Net):\n    preprocessing = Preprocessing(frames=8, crop=(200, 200))\n\n"
        "class Broken(Net):\n    def __init__(self):\n        super().__init__()\n"
        "        self.conv.bias.data.fill_(float('inf'))\n"
    )
    (tmp_path / "labels.txt").write_text("x\ny\n")
    torch.save({"conv.weight": torch.zeros(6, 3, 3, 3, 3)}, tmp_path / "o.pth")
    arguments = [str(video) if a == "VIDEO" else a for a in arguments]
    if arguments[0] == "explain":
        arguments += ["--out", "out"]
    before = {p.name for p in tmp_path.iterdir()}
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    lines = [line for line in result.output.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert {p.name for p in tmp_path.iterdir()} - {"__pycache__"} == before


def test_debug_shows_the_traceback():
    result = run("explain", "no.mp4", "--debug")
    assert isinstance(result.exception, ValueError)
    assert "error:" not in result.output


def test_an_error_while_drawing_leaves_no_file(video, tmp_path, monkeypatch, factory):
    drawn = []

    def fail_late(self, frame, *maps):
        drawn.append(frame)
        if len(drawn) == 9:
            raise MemoryError("no more pictures")
        return frame

    monkeypatch.setattr(render.Renderer, "motion", fail_late)
    result = run("explain", video, "--model", factory, "--out", tmp_path / "out")
    assert result.output.strip() == "error: out of memory (no more pictures); a smaller --size takes less"
    assert list((tmp_path / "out").iterdir()) == []


def test_in_a_process_of_its_own(video, tmp_path):
    def clipsight(*arguments):
        command = [sys.executable, "-m", "clipsight", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = clipsight("explain", video, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "motion share of" in done.stderr
    assert (tmp_path / "heat.mp4").stat().st_size > 1000
    failed = clipsight("explain", tmp_path / "no.mp4")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: video: ")
    assert len(failed.stderr.splitlines()) == 1


@pytest.mark.parametrize("suffix", [".onnx", ".pt"])
def test_exported_file_explains_like_the_live_network(video, tmp_path, factory, suffix):
    file = tmp_path / f"net{suffix}"
    succeed("export", "--model", factory, "--class", "input", "--raw-maps", "--out", file)
    succeed("explain", video, "--model", factory, "--out", tmp_path / "live", "--raw")
    succeed("explain", video, "--model", file, "--out", tmp_path / "file", "--raw")
    live, exported = (np.load(tmp_path / name / "maps.npz") for name in ("live", "file"))
    assert exported["names"].tolist() == live["names"].tolist()
    span = live["maps"].max() - live["maps"].min()
    assert np.abs(exported["maps"] - live["maps"]).max() <= 1e-4 * span
    assert (exported["motion_mask"] != live["motion_mask"]).mean() <= 1e-3
    shares = [
        json.loads((tmp_path / n / "result.json").read_text())["maps"][0]["motion_share"] for n in ("live", "file")
    ]
    assert shares[0] == pytest.approx(shares[1], abs=1e-3)


def test_a_network_of_gray_clips_and_its_file(video, tmp_path, factory):
    (tmp_path / "gray_net.py").write_text(FACTORY.replace("nn.Conv3d(3,", "nn.Conv3d(1,"))
    succeed("export", "--model", "gray_net:Net", "--class", "input", "--raw-maps", "--out", "gray.onnx")
    for model, out in (("gray_net:Net", "live"), ("gray.onnx", "file")):
        succeed("explain", video, "--model", model, "--out", out, "--raw")
    live, file = (np.load(tmp_path / out / "maps.npz")["maps"] for out in ("live", "file"))
    assert np.abs(live - file).max() <= 1e-4 * np.ptp(live)
    succeed("evaluate", video, "--model", "gray_net:Net", "--methods", "grad_cam", "--repeats", 0, "--out", "measured")
    succeed("pyramid", video, "--model", "gray_net:Net", "--depth", "all", "--out", "pyramid")


def test_torchvision_network_brings_its_preprocessing_and_labels(tmp_path):
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    live = load_live("r3d_18", None, random_weights=True, frames=8, size=None, stride=2)
    expected = {"frames": 8, "stride": 2, "resize": (128, 171), "crop": (112, 112)}
    assert {k: getattr(live.preprocessing, k) for k in expected} == expected
    assert live.preprocessing.mean == (0.43216, 0.394666, 0.37645)
    assert (len(live.labels), live.labels[5]) == (400, "archery")
    assert not live.module.training
    state = {f"module.{k}": v for k, v in live.module.state_dict().items() if not k.endswith("num_batches_tracked")}
    state["module.fc.weight"], state["module.fc.bias"] = torch.ones(7, 512), torch.zeros(7)
    torch.save(state, tmp_path / "seven.pth")
    seven = load_live(
        "r3d_18", str(tmp_path / "seven.pth"), random_weights=False, frames=None, size=(56, 56), stride=None
    )
    assert (seven.module.fc.weight.shape[0], seven.labels) == (7, None)
    assert (seven.preprocessing.resize, seven.preprocessing.crop) == ((64, 86), (56, 56))


def test_a_factory_may_wrap_its_network_and_name_its_classes_in_any_form(tmp_path, factory):
    (tmp_path / "little_net.py").write_text(
        FACTORY + "class Mapped(Net):\n    labels = {'dog': 1, 'flying fish': 2, 'cat': 0}\n\n"
        "def wrapped():\n    return nn.DataParallel(Mapped())\n\n"
        "class Gap(Net):\n    labels = {0: 'cat', 2: 'flying fish'}\n"
    )
    state = {"conv.weight": torch.ones(6, 3, 3, 3, 3), "conv.bias": torch.ones(6)}
    state |= {"fc.weight": torch.ones(3, 6), "fc.bias": torch.ones(3)}
    torch.save({"state_dict": {f"net.{key}": value for key, value in state.items()}}, tmp_path / "x.ckpt")
    own = {"frames": None, "size": None, "stride": None}
    live = load_live("little_net:wrapped", str(tmp_path / "x.ckpt"), random_weights=False, **own)
    assert live.labels == ("cat", "dog", "flying fish")
    assert live.preprocessing.frames == 8
    assert type(live.module).__name__ == "Mapped"
    assert (live.module.fc.bias == 1).all()
    with pytest.raises(ValueError, match="labels of little_net:Gap must name every class up to 2, none for 1"):
        load_live("little_net:Gap", None, random_weights=False, **own)


def test_info_and_an_export_with_scaled_maps(video, tmp_path, factory):
    file = tmp_path / "net.pt"
    succeed("export", "--model", factory, "--class", "dog", "--method", "tube", "--out", file)
    manifest = json.loads(succeed("info", file, "--json").stdout)
    assert manifest["labels"] == ["cat", "dog", "flying fish"]
    assert [o["name"] for o in manifest["outputs"]] == ["logits", "saliency_tube"]
    table = succeed("info", file).output
    assert "torchscript" in table
    assert "flying fish" in table
    succeed("explain", video, "--model", file, "--out", tmp_path / "out")
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["maps"] == [{"name": "dog", "motion_share": None}]
    assert any("every window has its own value range" in note for note in result["notes"])
    assert "motion.mp4" not in result["files"]
    for more, message in (
        (["--class", "cat"], "exported with classes=[1]"),
        (["--method", "motion"], "without motion maps"),
        (["--size", "64x64"], "takes clips of 8x32x32 (TxHxW), got 8x64x64"),
        (["--feature", "1"], "feature: is part of the exported file"),
    ):
        result = run("explain", video, "--model", file, "--out", tmp_path / "other", *more)
        assert (result.exit_code, message in result.output) == (1, True), result.output


@pytest.mark.parametrize("suffix", [pytest.param(".onnx", marks=pytest.mark.full), ".pt"])
def test_export_with_everything_in_the_graph(video, tmp_path, factory, suffix):
    """Bytes in, bytes out, thresholds as inputs, maps on request; the video then looks as the live network shows it."""
    file = tmp_path / f"net{suffix}"
    options = ["--uint8-frames", "--output", "uint8", "--optional", "--input", "tau", "--input", "n_sigma"]
    more = ["--class", "input", "--no-plugin", "--plain", tmp_path / f"alone{suffix}", "--triton", tmp_path / "served"]
    succeed("export", "--model", factory, "--out", file, *options, *more)
    manifest = json.loads(succeed("info", file, "--json").stdout)
    assert [i["name"] for i in manifest["inputs"]] == ["frames", "classes", "explain", "tau", "n_sigma"]
    assert {o["dtype"] for o in manifest["outputs"]} == {"float32", "uint8"}
    table = succeed("info", file).output
    for text in ("frames uint8 [N, 8, H, W, 3]", "n_sigma float32 [N], default 2", "frames uint8, output uint8"):
        assert text in table
    assert (tmp_path / "served" / "net" / "1" / f"model{suffix}").read_bytes() == file.read_bytes()
    alone = json.loads(succeed("info", tmp_path / f"alone{suffix}", "--json").stdout)
    assert [o["name"] for o in alone["outputs"]] == ["logits"]

    thresholds = ["--threshold", 0.05, "--n-sigma", 1]
    succeed(
        "explain", video, "--model", file, "--out", tmp_path / "file", "--normalize", "window", "--raw", *thresholds
    )
    succeed(
        "explain", video, "--model", factory, "--out", tmp_path / "live", "--normalize", "window", "--raw", *thresholds
    )
    succeed("explain", video, "--model", file, "--out", tmp_path / "other", "--normalize", "window", "--raw")
    maps, live, other = (np.load(tmp_path / name / "maps.npz") for name in ("file", "live", "other"))
    assert maps["names"].tolist() == live["names"].tolist()
    assert np.abs(maps["maps"] - live["maps"]).max() <= 2 / 255
    assert (maps["motion_mask"] != live["motion_mask"]).mean() <= 0.02
    assert (maps["motion_mask"] != other["motion_mask"]).mean() > 0.02, "negative control: the inputs matter"


@pytest.mark.parametrize("suffix", [pytest.param(".onnx", marks=pytest.mark.full), ".pt"])
def test_export_of_several_sizes_in_half_precision(tmp_path, factory, suffix):
    file = tmp_path / f"net{suffix}"
    succeed("export", "--model", factory, "--out", file, "--size", "32x32", "--size", "40x48", "--half", "float16")
    manifest = json.loads(succeed("info", file, "--json").stdout)
    assert manifest["input"]["sizes"] == [[8, 32, 32], [8, 40, 48]]
    table = succeed("info", file).output
    assert "8x32x32 or 8x40x48" in table
    assert "half float16" in table


def test_export_refuses_early_what_triton_would_not_take(tmp_path, factory):
    (tmp_path / "served" / "net").mkdir(parents=True)
    for out, message in (
        ("net.onnx", "must not have the model yet"),
        ("my net.onnx", "the model's name must consist of"),
    ):
        result = run("export", "--model", factory, "--out", out, "--triton", tmp_path / "served")
        assert (result.exit_code, message in result.output) == (1, True), result.output
        assert not (tmp_path / out).exists()
    result = run("export", "--model", factory, "--out", "net.pt2", "--triton", tmp_path / "models")
    assert (result.exit_code, "triton: the file must be" in result.output) == (1, True), result.output
    assert not (tmp_path / "net.pt2").exists()


class FakeNetwork:
    """Predicts the class that is written into the clip's pixels; its map is the class that it was asked for."""

    name, map, raw, feature, fixed_classes, has_motion = "fake", "saliency_tube", True, None, None, True
    labels, takes_frames = ("zero", "one", "two"), False
    preprocessing = Preprocessing(frames=4, crop=(8, 8), scale=1.0)

    def __init__(self):
        self.asked = []

    def __call__(self, clip, classes):
        self.asked.append(classes)
        predicted = int(clip.mean() > 100)
        maps = np.stack([np.full(clip.shape[2:], c, np.float32) for c in classes or [predicted]])
        return Answer(np.eye(3, dtype=np.float32)[predicted], maps, maps > 0, np.full(len(maps), 0.5))


def frames_of(*values):
    return [np.full((8, 8, 3), v, np.uint8) for v in values]


def test_windows_that_disagree_are_explained_for_the_class_of_the_video(tmp_path):
    network = FakeNetwork()
    reader = VideoReader(write_video(tmp_path / "v", frames_of(*[0] * 4, *[200] * 8)))
    done = explaining.run_network(network, reader, 1, step=4)
    assert (done.names, done.classes) == (["one"], [1])
    assert network.asked == [None] * 3 + [(1,)] * 3
    assert [float(done.maps[i][0].max()) for i in range(12)] == [1] * 12, "one class everywhere"
    assert any("second round" in note for note in done.notes)
    assert [w["top"][0]["class"] for w in done.windows] == [0, 1, 1], "what each window predicts is still told"


def test_windows_that_agree_need_one_round(tmp_path):
    network = FakeNetwork()
    reader = VideoReader(write_video(tmp_path / "v", frames_of(*[200] * 12)))
    done = explaining.run_network(network, reader, 1, step=4)
    assert (done.names, network.asked, done.notes) == (["one"], [None] * 3, [])
    assert done.frame_count == 12
    assert explaining.run_network(network, reader, 2, step=4).classes == [1, 0]


def test_file_that_chooses_per_window_says_so(tmp_path):
    network = FakeNetwork()
    network.fixed_classes = "predicted"
    reader = VideoReader(write_video(tmp_path / "v", frames_of(*[0] * 4, *[200] * 8)))
    done = explaining.run_network(network, reader, 1, step=4)
    assert (done.names, done.classes) == (["prediction 1"], [None])
    assert any("they differ in this video" in note for note in done.notes)
    with pytest.raises(CommandError, match="exported with classes='predicted' and cannot explain others"):
        explaining.run_network(network, reader, (2,), step=4)


def test_one_range_per_window_on_request(tmp_path):
    class Loud(FakeNetwork):
        def __call__(self, clip, classes):
            answer = super().__call__(clip, (0,))
            ramp = np.linspace(0, clip.max(), clip[0, 0].size, dtype=np.float32).reshape(1, *clip.shape[2:])
            answer.maps[:] = ramp
            return answer

    reader = VideoReader(write_video(tmp_path / "v", frames_of(*[100] * 4, *[200] * 4)))
    for per_window, highest in ((False, [100, 200]), (True, [1, 1])):
        done = explaining.run_network(Loud(), reader, (0,), step=4, per_window=per_window)
        assert [float(done.maps[i][0].max()) for i in (3, 7)] == pytest.approx(highest)
        assert (float(done.low[0]), float(done.high[0])) == (0, highest[1])


def test_choose_classes():
    labels = ["cat", "Dog", "flying fish"]
    choose = explaining.choose_classes
    assert choose([], labels) == choose(["predicted"], labels) == 1
    assert choose(["top3"], None) == 3
    assert choose(["dog", "0", "DOG"], labels) == (1, 0)
    assert choose(["7"], None) == (7,)
    with pytest.raises(CommandError, match="similar: flying fish"):
        choose(["fish"], labels)
    with pytest.raises(CommandError, match="names need --labels FILE"):
        choose(["fish"], None)
    birds = ["heron", "crane", "Crane", "3", "crane"]  # ImageNet has two classes of this name
    assert choose(["Crane", "heron", "4"], birds) == (2, 0, 4)
    with pytest.raises(CommandError, match="'crane' must mean one class, got the classes 1 and 4; name one by its"):
        choose(["crane"], birds)
    with pytest.raises(CommandError, match="got the classes 3 and 4"):
        choose(["3"], ["a", "b", "c", "d", "3"])
    assert choose(["12"], ["a", "12"]) == (1,)


@pytest.mark.full
def test_real_clip(clips, tmp_path):
    succeed("explain", clips / "arm_wrestling.mp4", "--stride", 4, "--out", tmp_path)
    reader = VideoReader(tmp_path / "heat.mp4")
    assert (reader.size, reader.fps, reader.frame_count) == ((256, 340), 28, 280)
    assert reader.pixel_aspect == VideoReader(clips / "arm_wrestling.mp4").pixel_aspect
