"""`clipsight evaluate`: safe resume, and mistakes that it must say in one line."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("typer")
pytest.importorskip("matplotlib")
import torch

from clipsight.evaluation import Evaluator, Settings, measuring
from clipsight.heads import METHODS
from evaluated import NET, flat, load, moving_patch
from helpers import run, succeed, write_video


@pytest.fixture
def measured(monkeypatch):
    """The names of the videos that were really measured, in order."""
    names, call = [], Evaluator.__call__

    def counting(self, reader, *arguments):
        names.append(reader.path.stem)
        return call(self, reader, *arguments)

    monkeypatch.setattr(Evaluator, "__call__", counting)
    return names


# ---- Resume -------------------------------------------------------------------------------------------------


def test_a_second_run_measures_only_what_is_new(videos, tmp_path, nets, measured):
    films = tmp_path / "films"
    shutil.copytree(videos["one"].parent, films)
    paths = sorted(films.iterdir())
    out = tmp_path / "out"
    command = ["evaluate", *paths, *NET, "--methods", "grad_cam", "--repeats", 0, "--out", out]
    succeed(*command)
    assert measured == ["one", "overlapping", "two"]
    first = load(out)

    measured.clear()
    for path in paths:
        os.utime(path, (1, 1))  # the content counts
    result = succeed(*command)
    assert measured == []
    assert "3 of the videos measured before" in flat(result)
    assert load(out) == first

    (folder,) = (out / "videos").glob("two-*")
    whole = (folder / "result.json").read_text()
    for damaged in (whole[: len(whole) // 2], "\0" * len(whole), None):
        if damaged is None:
            (folder / "result.json").unlink()
        else:
            (folder / "result.json").write_text(damaged)
        succeed(*command)
        assert measured == ["two"], "a damaged result is made again, the others are not"
        assert load(out)["summary"] == first["summary"]
        measured.clear()

    write_video(films / "two.mp4", moving_patch(16, 96, 96, 77)[0])
    succeed(*command)
    assert measured == ["two"]
    assert load(out)["summary"] != first["summary"]
    assert len(load(out)["videos"]) == 3


@pytest.mark.parametrize(
    "changed",
    [
        ["--n-sigma", 3],
        ["--flow", "farneback"],
        ["--class", "cat"],
        *(pytest.param(more, marks=pytest.mark.full) for more in (["--floor", "0.1"], ["--seed", 1], ["--step", 4])),
    ],
    ids=str,
)
def test_other_options_do_not_mix(videos, tmp_path, nets, measured, changed):
    out = tmp_path / "out"
    command = ["evaluate", videos["one"], *NET, "--methods", "grad_cam", "--repeats", 0, "--out", out]
    succeed(*command)
    first = load(out)
    succeed(*command, *changed)
    assert measured == ["one", "one"]
    assert load(out)["run"] != first["run"]
    succeed(*command)
    assert measured == ["one", "one"], "the first run's numbers are still there"
    assert load(out) == first


def test_another_checkpoint_is_another_run(videos, tmp_path, nets, measured):
    import evaluated_nets

    out = tmp_path / "out"
    command = ["evaluate", videos["one"], *NET, "--methods", "grad_cam", "--repeats", 0, "--out", out]
    succeed(*command)
    other = {name: 1.5 * value for name, value in evaluated_nets.Net().state_dict().items()}
    torch.save(other, tmp_path / "other.pth")
    succeed(*command, "--checkpoint", tmp_path / "other.pth")
    assert measured == ["one", "one"]


def test_an_interrupted_run_goes_on(videos, tmp_path, nets, measured, monkeypatch):
    out = tmp_path / "out"
    command = ["evaluate", *videos.values(), *NET, "--methods", "grad_cam", "--repeats", 0]
    succeed(*command, "--out", tmp_path / "whole")
    measured.clear()
    call = Evaluator.__call__

    def interrupted(self, reader, *arguments):
        if reader.path.stem == "overlapping":
            raise KeyboardInterrupt
        return call(self, reader, *arguments)

    with monkeypatch.context() as context:
        context.setattr(Evaluator, "__call__", interrupted)
        result = run(*command, "--out", out)
    assert result.exit_code == 130
    assert measured == ["one", "two"]
    assert not (out / "evaluation.json").exists()
    succeed(*command, "--out", out)
    assert measured == ["one", "two", "overlapping"]
    assert load(out)["summary"] == load(tmp_path / "whole")["summary"]


def test_random_weights_are_those_of_the_seed(videos, tmp_path, nets):
    command = ["evaluate", videos["one"], "--model", "evaluated_nets:Random", "--methods", "grad_cam", "--repeats", 0]
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        succeed(*command, "--seed", seed, "--out", tmp_path / name)
        weights.append(load(tmp_path / name)["run"]["model"]["weights"])
    assert weights[0] == weights[1] != weights[2]


# ---- Errors -------------------------------------------------------------------------------------------------


def test_damaged_videos_are_reported_and_the_others_go_on(videos, tmp_path, nets, measured):
    bad, cut, small = tmp_path / "bad.mp4", tmp_path / "cut.gif", tmp_path / "small.gif"
    bad.write_bytes(b"no video")
    cut.write_bytes(videos["one"].read_bytes()[:-4000])
    write_video(small, moving_patch(3, 64, 64, 5)[0])
    out = tmp_path / "out"
    command = ["evaluate", bad, videos["two"], cut, small, *NET, "--methods", "grad_cam", "--repeats", 0, "--out", out]
    result = run(*command)
    assert result.exit_code == 1
    assert "error: evaluate: 3 of 4 videos failed; the same command tries only those again" in flat(result)
    report = load(out)
    assert [v["video"] for v in report["videos"]] == [str(videos["two"])]
    errors = {os.path.basename(row["video"]): row["error"] for row in report["failed"]}
    assert set(errors) == {"bad.mp4", "cut.gif", "small.gif"}
    assert "is not a video" in errors["bad.mp4"]
    assert "--partial" in errors["cut.gif"]
    assert "a clip needs 8 frames, got 3" in errors["small.gif"]
    text = (out / "evaluation.md").read_text()
    assert all(error in text for error in errors.values())
    assert text.startswith("# Evaluation\n\n1 video, 2 clips, 2 to 2 a video.")
    measured.clear()
    run(*command)
    assert "two" not in measured


BAD_ARGUMENTS = {
    "method": (["--methods", "grad_cam,gradcam"], f"methods must be of {', '.join(METHODS)}, got 'gradcam'"),
    "method twice": (["--methods", "grad_cam,grad_cam"], "must name each method once, got grad_cam twice"),
    "no method": (["--methods", ","], "methods must name at least one of saliency_tube, grad_cam"),
    "sweep name": (["--sweep", "sigma=1,2"], "sweep: must be n_sigma=NUMBER,NUMBER,..., such as n_sigma=1,2,3,4"),
    "sweep values": (["--sweep", "n_sigma=1,two"], "such as n_sigma=1,2,3,4, got 'n_sigma=1,two'"),
    "sweep without values": (["--sweep", "n_sigma"], "such as n_sigma=1,2,3,4, got 'n_sigma'"),
    "sweep range": (["--sweep", "n_sigma=1,-2"], "sweep must be at least 0 and finite, got 1, -2"),
    "n_sigma": (["--n-sigma", "nan"], "n_sigma must be at least 0 and finite, got nan"),
    "floor": (["--floor", "ten"], "floor: must be a number such as 0.5 or 10/255, or quantile, got 'ten'"),
    "floor by zero": (["--floor", "1/0"], "floor: must be a number"),
    "floor range": (["--floor", "1"], "floor must be at least 0 and below 1, or 'quantile', got 1.0"),
    "moving": (["--moving", "fast"], "moving: must be a number such as 0.5 or 10/255, or frame_std"),
    "moving range": (["--moving", "-1"], "moving must be at least 0, or 'frame_std', got -1.0"),
    "class": (["--class", "bird"], "class: 'bird' is no class of this model"),
    "classes": (["--class", "top2"], "class: must be one class, or predicted, got 'top2'"),
    "class index": (["--class", "3"], "class: index must lie in 0..2, got 3"),
    "class index, no labels": (["--model", "evaluated_nets:Unlabelled", "--class", "9"], "lie in 0..2, got 9"),
    "labels": (["--labels", "names.txt"], "labels: must name 3 classes like the model, got 2"),
    "auc": (["--auc", "--auc-steps", "0"], "auc-steps: must be at least 1, got 0"),
    "masks": (["--masks", "gone"], "masks: must be a folder, got gone"),
    "damaged masks": (["--masks", "damaged"], "masks: damaged/one.npz must be a whole .npz file"),
    "masks of another video": (
        ["--masks", "other"],
        "masks: other/one.npz must be [F, 64, 64] like the video",
    ),
    "too few masks": (["--masks", "few"], "masks: few/one.npz must be [8, 64, 64] like the video's frames"),
    "threads": (["--threads", "0"], "threads: must be at least 1, got 0"),
    "exported": (["--model", "file.onnx"], "model: must be a network in Python"),
    "random weights": (["--model", "r3d_18"], "give them with --checkpoint FILE"),
    "step": (["--step", "9"], "step must be 1 to 8 (the clip's frames), got 9"),
    "repeats": (["--repeats", "-1"], "repeats must be at least 0, got -1"),
    "one frame": (["--frames", "1"], "optical_flow: frames must be two or more"),
    "layer": (["--layer", "nowhere"], "nowhere"),
    "no video": (["gone.mp4"], "video: gone.mp4 does not exist"),
    "no match": (["*.webm"], "a pattern must match at least one file, got '*.webm'"),
}


@pytest.mark.parametrize("arguments, message", BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_mistakes_are_one_line_and_leave_nothing(videos, tmp_path, nets, arguments, message):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    for name in ("damaged", "other", "few"):
        (tmp_path / name).mkdir()
    (tmp_path / "damaged" / "one.npz").write_bytes(b"PK")
    np.savez(tmp_path / "other" / "one.npz", np.ones((8, 64, 65), bool))
    np.savez(tmp_path / "few" / "one.npz", np.ones((7, 64, 64), bool))
    command = ["evaluate", videos["one"], *NET, "--methods", "grad_cam", "--repeats", 0, "--out", tmp_path / "out"]
    result = run(*command, *arguments)
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


def test_a_network_whose_output_is_not_finite(videos, tmp_path, nets):
    import evaluated_nets

    weights = {name: torch.full_like(value, torch.nan) for name, value in evaluated_nets.Net().state_dict().items()}
    torch.save(weights, tmp_path / "nan.pth")
    options = ["--checkpoint", tmp_path / "nan.pth", "--methods", "grad_cam", "--out", tmp_path / "out"]
    result = run("evaluate", videos["one"], *NET, *options)
    assert "the network's output must be finite, got NaN or infinity" in flat(result)


def test_the_layer_of_the_grad_cams():
    heads = Settings(methods=("grad_cam", "guided_grad_cam", "deep_taylor"), layer="features.3").heads()
    assert heads["grad_cam"].layer == heads["guided_grad_cam"].cam.layer == "features.3"
    assert all(head.normalize == "none" for head in heads.values())
    assert Settings().methods == measuring.PAPER_METHODS
