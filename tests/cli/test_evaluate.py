"""`clipsight evaluate`: the tables against numbers worked out from the raw maps, and files that agree."""

from __future__ import annotations

import csv
import itertools
import json

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("typer")
pytest.importorskip("matplotlib")
import cv2
import torch
from PIL import Image

import clipsight
from clipsight import metrics
from clipsight.evaluation import MEASURES, Evaluation, Evaluator, Key, Masks, Settings, find_masks
from clipsight.heads import METHODS, SelectiveRelevance
from clipsight.preprocessing import Preprocessing
from clipsight.synthetic import MOTION_CLASSES, moving_shapes
from clipsight.video import VideoReader
from clipsight.windows import Geometry
from evaluated import NET, flat, load, moving_patch, summary_of
from helpers import run, succeed, write_video

FLOOR = 10 / 255
METHOD_NAMES = ["grad_cam", "input_gradient", "guided_backprop"]
OPTIONS = [*NET, "--methods", ",".join(METHOD_NAMES), "--sweep", "n_sigma=3,1", "--n-sigma", "1.5", "--repeats", "1"]


# ---- The numbers --------------------------------------------------------------------------------------------


def as_clip(frames) -> torch.Tensor:
    """Frames uint8 `[h, w, 3]` -> what the network sees, to the last bit: a voxel may lie right on a threshold."""
    scaled = np.stack(frames).astype(np.float32) * np.float32(1 / 255) / np.float32(0.3)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(3, 0, 1, 2)[None]))


def explained(net, head, clip: torch.Tensor, class_index: int) -> np.ndarray:
    """The map `[T, H, W]` of one head alone."""
    with torch.inference_mode():
        return clipsight.explain(net, head, clip, [class_index])(clip)[1][0, 0].numpy()


def by_hand(net, path, starts, explained_by) -> dict[tuple, float]:
    """Every number of the four tables but the times, of one video, in plain NumPy from frames and raw maps."""
    decoded = list(VideoReader(path))
    clips = []
    for start in starts:
        frames = []
        for frame in decoded[start : start + 8]:
            height, width = frame.shape[:2]
            scale = 32 / min(height, width)
            small = cv2.resize(frame, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_LINEAR)
            top = round((small.shape[0] - 32) / 2)
            frames.append(small[top : top + 32])
        clips.append(np.stack(frames))
    tensors = [as_clip(frames) for frames in clips]
    with torch.no_grad():
        predicted = int(torch.stack([net(t).softmax(1) for t in tensors]).mean(0).argmax())
    rows = []
    for frames, tensor in zip(clips, tensors, strict=True):
        dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        grey = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames]
        flow = [dis.calc(a, b, None) for a, b in itertools.pairwise(grey)]
        moves = np.linalg.norm(np.stack([*flow, flow[-1]]), axis=-1) > 0.5
        row, masks = {("moving", "", None, ""): moves.mean()}, {}
        for name, explanations in explained_by.items():
            with torch.inference_mode():
                maps = {n: e(tensor, torch.tensor([[predicted]]))[1] for n, e in explanations.items()}
            maps = {n: m[0, 0].double().numpy() for n, m in maps.items()}
            whole = maps.pop(None)
            masks[name] = whole > FLOOR * whole.max()
            row["precision", name, None, ""] = moves[masks[name]].mean()
            for n, part in maps.items():
                kept = part > FLOOR * whole.max()
                row["precision", name, n, ""] = moves[kept].mean() if kept.any() else 0
                row["empty", name, n, ""] = float(not kept.any())
                row["voxels", name, n, ""] = kept.sum() / masks[name].sum()
                row["relevance", name, n, ""] = whole[kept].sum() / whole[masks[name]].sum()
                row["motion_share", name, n, ""] = np.abs(whole[part != 0]).sum() / np.abs(whole).sum()
        for i, a in enumerate(METHOD_NAMES):
            for b in METHOD_NAMES[i + 1 :]:
                row["agreement", a, None, b] = (masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum()
        rows.append(row)
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def test_the_tables_equal_numbers_from_the_raw_maps(videos, tmp_path, nets):
    out = tmp_path / "out"
    result = succeed("evaluate", *videos.values(), *OPTIONS, "--out", out)
    report = load(out)
    import evaluated_nets

    net, thresholds = evaluated_nets.Net().eval(), (1, 1.5, 3)
    starts = {"one": [0], "two": [0, 8], "overlapping": [0, 3]}
    clips = [[[s, s + 7] for s in starts[name]] for name in videos]
    assert [video["clips"] for video in report["videos"]] == clips
    explained_by = {}
    for name in METHOD_NAMES:
        head = METHODS[name](normalize="none")
        alone = {n: SelectiveRelevance(of=head, n_sigma=n) for n in thresholds} | {None: head}
        clip = torch.zeros(1, 3, 8, 32, 32)
        explained_by[name] = {n: clipsight.explain(net, h, clip, "input") for n, h in alone.items()}
    hand = [by_hand(net, path, starts[name], explained_by) for name, path in videos.items()]
    summary = summary_of(report)
    others = {key for key in summary if key.measure in ("ms", "extra_ms") or key[::2] == ("empty", None)}
    assert set(summary) - others == set(hand[0])
    for key in hand[0]:
        values = [video[key] for video in hand]
        average, deviation, count = summary[Key(*key)]
        assert average == pytest.approx(np.mean(values), abs=1e-6), key
        assert deviation == pytest.approx(np.std(values, ddof=1), abs=1e-6), key
        assert count == 3
    assert all(0.02 < video["moving", "", None, ""] < 0.9 for video in hand), "there is motion to find"
    for name in METHOD_NAMES:
        kept = [summary[Key("voxels", name, n)][0] for n in thresholds]
        assert sorted(kept, reverse=True) == kept
        assert 0 < kept[0] < 1
        assert kept[0] > kept[-1]
        # Negative control: the numbers above would not pass for one another.
        assert abs(summary[Key("precision", name)][0] - summary[Key("precision", name, 1)][0]) > 1e-3

    printed = f"{100 * np.mean([v['precision', 'grad_cam', None, ''] for v in hand]):.2f}"
    assert "Table 1: motion precision" in result.output
    assert printed in result.output
    assert "3 videos, 5 clips" in result.output


def test_the_files_parse_and_agree(videos, tmp_path, nets):
    out = tmp_path / "out"
    succeed("evaluate", *videos.values(), *OPTIONS, "--out", out, "--seed", 3)
    report = load(out)
    pictures = {"precision.png", "agreement.png", "selectivity.png", "overhead.png", "sweep.png"}
    texts = {"evaluation.md", "evaluation.csv", "videos.csv", "evaluation.json"}
    assert {p.name for p in out.iterdir()} == pictures | texts | {"videos"}
    assert not [p for p in out.rglob(".*")], "no temporary file is left"

    summary = summary_of(report)
    rows = list(csv.DictReader((out / "evaluation.csv").open(newline="")))
    read = {Key(r["measure"], r["method"], float(r["n_sigma"]) if r["n_sigma"] else None, r["other"]): r for r in rows}
    assert set(read) == set(summary)
    assert {key.measure for key in summary} == set(MEASURES) - {"insertion", "deletion", "pointing", "in_mask"}
    for key, (average, deviation, count) in summary.items():
        assert (float(read[key]["average"]), float(read[key]["deviation"])) == (average, deviation)
        assert int(read[key]["videos"]) == count
    rows = list(csv.DictReader((out / "videos.csv").open(newline="")))
    of_voxels = [float(r["mean"]) for r in rows if (r["measure"], r["method"]) == ("precision", "grad_cam")][::4]
    assert np.mean(of_voxels) == pytest.approx(summary[Key("precision", "grad_cam")][0])

    runs = [report["run"], json.loads(rows[0]["run"])]
    runs += [json.loads(Image.open(out / name).info["Description"]) for name in pictures]
    runs += [json.loads(p.read_text())["run"] for p in (out / "videos").glob("*/result.json")]
    text = (out / "evaluation.md").read_text()
    runs.append(json.loads(text.split("```json\n")[1].split("```")[0]))
    assert len(runs) == 2 + 5 + 3 + 1
    assert all(run == runs[0] for run in runs)
    assert (runs[0]["seed"], runs[0]["floor"]) == (3, FLOOR)
    assert runs[0]["options"]["methods"] == METHOD_NAMES
    assert runs[0]["options"]["class"] == "predicted"
    assert runs[0]["model"]["name"] == "evaluated_nets:Net"
    assert runs[0]["model"]["weights"].startswith("sha256:")
    assert [m["normalize"] for m in runs[0]["methods"]] == ["none"] * 3
    assert runs[0]["versions"]["torch"] == torch.__version__.split("+")[0] or "+" in runs[0]["versions"]["torch"]

    cells = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    row = next(c for c in cells if c[0] == "selective input_gradient")
    average, deviation, _ = summary[Key("precision", "input_gradient", 1.5)]
    empty = summary[Key("empty", "input_gradient", 1.5)][0]
    assert row[1:] == [f"{100 * v:.2f}" for v in (average, deviation, empty)]
    assert all(f"({name})" in text for name in pictures)
    assert "10/255 of the clip's maximum" in text


def test_averages_and_deviations_by_hand():
    settings = Settings(methods=("grad_cam", "deep_taylor"), n_sigma=2, repeats=0)

    def video(name, clips, **values):
        rows = [
            Key("moving"),
            *(Key(m, a, n) for m in ("precision", "empty") for a in settings.methods for n in (None, 2.0)),
        ]
        rows += [Key(m, a, 2.0) for m in ("voxels", "relevance", "motion_share") for a in settings.methods]
        rows += [Key("agreement", "grad_cam", None, "deep_taylor")]
        filled = {key: [0.5] * clips for key in rows} | {Key("precision", "grad_cam"): values["precision"]}
        measures = [{**key._asdict(), "values": row} for key, row in filled.items()]
        return {"video": name, "class": 0, "clips": [[0, 7]] * clips, "masks": None, "notes": [], "cut_off": False} | {
            "measures": measures
        }

    both = [video("a", 2, precision=[0.25, 0.75]), video("b", 3, precision=[None, 0.8, None])]
    evaluation = Evaluation(settings, {"seed": 0}, both)
    average, deviation, videos = evaluation.summary[Key("precision", "grad_cam")]
    assert average == pytest.approx((0.5 + 0.8) / 2)
    assert deviation == pytest.approx(0.3 / np.sqrt(2))
    assert videos == 2
    precision, agreement, selectivity = evaluation.tables
    assert precision.rows[0] == ["grad_cam", "65.00", "21.21", "50.00"]
    assert [row[0] for row in precision.rows] == [
        "grad_cam",
        "selective grad_cam",
        "deep_taylor",
        "selective deep_taylor",
        "every voxel (base rate)",
    ]
    assert agreement.rows == [["grad_cam", "50.00 ± 0.00"]]
    assert selectivity.rows[1] == ["selective deep_taylor", *["50.00", "0.00"] * 3]

    alone = Evaluation(settings, {"seed": 0}, both[:1])
    assert alone.summary[Key("precision", "grad_cam")] == (0.5, None, 1)
    assert alone.tables[0].rows[0] == ["grad_cam", "50.00", "–", "50.00"]
    assert alone.tables[1].rows == [["grad_cam", "50.00"]]
    assert next(csv.DictReader(alone.to_csv().splitlines()))["deviation"] == ""


def test_agreement_with_the_first_method_has_both_directions(videos, tmp_path, nets):
    out = tmp_path / "out"
    options = [*NET, "--methods", "grad_cam,input_gradient", "--agreement", "first", "--repeats", 0, "--out", out]
    (tmp_path / "masks").mkdir()
    result = succeed("evaluate", videos["one"], *options, "--masks", "masks")
    assert "note: no video has masks in masks" in result.output
    summary = summary_of(load(out))
    there, back = (summary[Key("agreement", *pair)][0] for pair in (
        ("grad_cam", None, "input_gradient"), ("input_gradient", None, "grad_cam")
    ))  # fmt: skip
    assert there != back
    text = (out / "evaluation.md").read_text()
    assert f"| grad_cam | – | {100 * there:.2f} |" in text
    assert f"| input_gradient | {100 * back:.2f} | – |" in text
    assert "Table 4" not in text
    assert not (out / "overhead.png").exists()


def test_insertion_and_deletion_are_those_of_the_map(videos, tmp_path, nets):
    """Four steps to a zero clip, built voxel by voxel."""
    out = tmp_path / "out"
    options = [*NET, "--methods", "grad_cam", "--class", "dog", "--auc", "--auc-steps", 4, "--auc-baseline", "zero"]
    succeed("evaluate", videos["one"], *options, "--repeats", 0, "--out", out)
    summary = summary_of(load(out))
    import evaluated_nets

    net = evaluated_nets.Net().eval()
    frames = [cv2.resize(f, (32, 32), interpolation=cv2.INTER_LINEAR) for f in VideoReader(videos["one"])]
    clip = as_clip(frames)
    head = METHODS["grad_cam"](normalize="none")
    for n, of in ((None, head), (4.0, SelectiveRelevance(of=head, n_sigma=4))):
        relevance = explained(net, of, clip, 1).ravel()
        order = sorted(range(relevance.size), key=lambda i: -float(relevance[i]))
        for measure in ("insertion", "deletion"):
            scores = []
            for step in range(5):
                chosen = torch.zeros(relevance.size, dtype=torch.bool)
                chosen[order[: step * relevance.size // 4]] = True
                seen = chosen if measure == "insertion" else ~chosen
                with torch.no_grad():
                    scores.append(float(net(clip * seen.view(1, 1, 8, 32, 32)).softmax(1)[0, 1]))
            area = sum((a + b) / 8 for a, b in itertools.pairwise(scores))
            assert summary[Key(measure, "grad_cam", n)][0] == pytest.approx(area, abs=1e-5)
    assert "Insertion and deletion" in (out / "evaluation.md").read_text()


def test_the_shipped_network_by_true_masks(tmp_path):
    """A clip with known truth: relevance is much denser on the mover than the mover in the frame."""
    truth = moving_shapes(1, seed=4, frames=16, size=128, labels=[1])
    video = write_video(tmp_path / "shapes.mp4", truth.frames[0])
    (tmp_path / "masks").mkdir()
    np.savez(tmp_path / "masks" / "shapes.npz", masks=truth.masks[0])
    options = ["--methods", "deep_taylor,saliency_tube", "--masks", tmp_path / "masks", "--repeats", 0]
    succeed("evaluate", video, *options, "--n-sigma", 2, "--out", tmp_path / "out")
    report = load(tmp_path / "out")
    summary = summary_of(report)
    assert report["videos"][0]["class"] == MOTION_CLASSES.index("moves right")
    assert summary[Key("pointing", "deep_taylor")] == (1, None, 1)
    share = truth.masks.mean()
    assert summary[Key("in_mask", "deep_taylor", 2.0)][0] > summary[Key("in_mask", "deep_taylor")][0] > 4 * share
    assert "Ground truth" in (tmp_path / "out" / "evaluation.md").read_text()


def test_real_clips_of_other_sizes(clips, tmp_path, nets):
    files = [clips / "cricket_rgb.gif", clips / "test.avi"]
    options = ["--methods", "grad_cam", "--repeats", 0, "--stride", 8, "--out", tmp_path / "out"]
    succeed("evaluate", *files, *NET, *options)
    report = load(tmp_path / "out")
    assert [(v["frames"], v["size"]) for v in report["videos"]] == [(79, [224, 224]), (164, [240, 320])]
    assert [len(v["clips"]) for v in report["videos"]] == [2, 3]


# ---- Stated values ------------------------------------------------------------------------------------------


def test_empty_maps_have_stated_values(videos, tmp_path, nets, monkeypatch):
    """Maps of zeros, and ones that are negative everywhere."""

    def maps(self, clip, class_index):
        keys = [(name, n) for name in self.heads for n in (None, *self.settings.thresholds)]
        shape = clip.shape[2:]
        level = {"grad_cam": 0.0, "input_gradient": -1.0}
        return {k: np.full(shape, level[k[0]], np.float32) for k in keys}, {k: 0.0 for k in keys if k[1] is not None}

    monkeypatch.setattr(Evaluator, "maps", maps)
    out = tmp_path / "out"
    masks = tmp_path / "masks"
    masks.mkdir()
    write_mask(masks / "one.png", np.ones((64, 64), bool))
    options = ["--methods", "grad_cam,input_gradient", "--masks", masks, "--repeats", 0, "--out", out]
    succeed("evaluate", videos["one"], *NET, *options)
    for key, (average, _, _) in summary_of(load(out)).items():
        if key.measure != "moving":
            assert average == (1 if key.measure == "empty" else 0), key


def write_mask(path, mask):
    cv2.imwrite(str(path), np.uint8(255) * mask)


def test_masks_in_every_form_lie_where_the_network_looked(tmp_path):
    truth = np.zeros((5, 60, 80), bool)
    for t in range(5):
        truth[t, 10:40, 5 * t + 10 : 5 * t + 40] = True
    np.savez(tmp_path / "array.npz", truth)
    np.savez(tmp_path / "bytes.npz", mask=truth.astype(np.uint8) * 7)
    (tmp_path / "folder").mkdir()
    for t, mask in enumerate(truth):
        write_mask(tmp_path / "folder" / f"{t}.png", mask)
    write_mask(tmp_path / "still.png", truth[0])
    geometry = Geometry.of(Preprocessing(resize=30, crop=(30, 20)), (60, 80))
    # Half the size: columns 10..30 of 40 remain.
    expected = truth[:, ::2, ::2][:, :, 10:30]
    for name in ("array", "bytes", "folder"):
        masks = Masks(find_masks(tmp_path, f"videos/{name}.mp4"))
        masks.check((60, 80), 5)
        np.testing.assert_array_equal(masks.clip([0, 2, 4], geometry), expected[[0, 2, 4]])
    still = Masks(find_masks(tmp_path, "still.avi"))
    still.check((60, 80), 99)
    np.testing.assert_array_equal(still.clip([0, 2, 4], geometry), expected[[0, 0, 0]])
    assert find_masks(tmp_path, "other.mp4") is None
    for size, count in (((60, 81), 5), ((60, 80), 4)):
        with pytest.raises(
            ValueError, match=rf"masks: .*array.npz must be \[{count}, 60, 8.\] like .* got \[5, 60, 80\]"
        ):
            Masks(tmp_path / "array.npz").check(size, count)


def test_pointing_game_and_in_mask_only_where_there_are_masks(videos, tmp_path, nets):
    """Two videos, one of them with masks; where the object is not in the clip, nothing is measured."""
    masks = tmp_path / "masks"
    masks.mkdir()
    truth = moving_patch(16, 96, 96, 1)[1]
    truth[8:] = False
    np.savez(masks / "two.npz", truth)
    options = ["--methods", "grad_cam", "--repeats", 0, "--out", tmp_path / "out", "--masks", masks, "--tolerance", 2]
    succeed("evaluate", videos["one"], videos["two"], *NET, *options)
    report = load(tmp_path / "out")
    rows = {Key(*(r[f] for f in Key._fields)): r["values"] for r in report["videos"][1]["measures"]}
    assert rows[Key("pointing", "grad_cam")][0] in (0, 1)
    assert rows[Key("pointing", "grad_cam")][1] is None
    assert summary_of(report)[Key("pointing", "grad_cam")][2] == 1
    assert summary_of(report)[Key("precision", "grad_cam")][2] == 2

    import evaluated_nets

    net = evaluated_nets.Net().eval()
    frames = [cv2.resize(f, (32, 32), interpolation=cv2.INTER_LINEAR) for f in VideoReader(videos["two"])][:8]
    clip = as_clip(frames)
    relevance = explained(net, METHODS["grad_cam"](normalize="none"), clip, report["videos"][1]["class"])
    small = np.stack([cv2.resize(np.uint8(255) * m, (32, 32)) > 127 for m in truth[:8]])
    relevant = relevance > FLOOR * relevance.max()
    assert rows[Key("in_mask", "grad_cam")][0] == pytest.approx(small[relevant].mean(), abs=1e-6)
    t, y, x = np.unravel_index(relevance.argmax(), relevance.shape)
    near = [small[t, j, i] for j in range(32) for i in range(32) if (j - y) ** 2 + (i - x) ** 2 <= 4]
    assert rows[Key("pointing", "grad_cam")][0] == any(near)


def test_repeated_frames_of_a_short_video_are_not_measured(videos, tmp_path, nets, monkeypatch):
    short = write_video(tmp_path / "short.gif", list(VideoReader(videos["one"]))[:5])
    seen = []
    flow = metrics.optical_flow
    monkeypatch.setattr(
        metrics, "optical_flow", lambda frames, method: seen.append(len(frames)) or flow(frames, method)
    )
    options = [*NET, "--methods", "grad_cam", "--repeats", 0, "--out", tmp_path / "out"]
    result = run("evaluate", short, *options)
    assert "none of 1 videos could be measured; windows: a clip needs 8 frames, got 5" in flat(result)
    succeed("evaluate", short, *options, "--loop")
    assert seen == [5]
    assert load(tmp_path / "out")["videos"][0]["clips"] == [[0, 4]]
