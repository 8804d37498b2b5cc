"""The motion study: its measures by hand, its maps against the heads', and a page that says what the numbers say."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import clipsight
from clipsight import SelectiveRelevance, heads, models
from clipsight.synthetic import moving_shapes

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))
matplotlib = pytest.importorskip("matplotlib")
pytest.importorskip("cv2")

from studies import figures, generated, markdown, measures, page, real  # noqa: E402

METHODS = ("saliency_tube", "input_gradient")  # one from the features, one from the pixels with two signs


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def drawn():
    return moving_shapes(4, seed=1, bias=1.0)


@pytest.fixture(scope="module")
def published() -> dict:
    return json.loads((ROOT / "docs" / "motion-study" / "results.json").read_text())


# ---- Numbers ---------------------------------------------------------------------------------------------------


def test_the_roc_area_is_the_share_of_pairs_in_the_right_order():
    stats = pytest.importorskip("scipy.stats")
    first, second = rng().normal(0.4, 1, 50).round(1), rng().normal(0, 1, 50).round(1)[::-1]  # with ties
    expected = stats.mannwhitneyu(first, second).statistic / 50**2
    area, low, high = measures.roc_area(first, second, rng())
    assert area == pytest.approx(expected, abs=1e-12)
    assert low < area < high
    assert measures.roc_area(second, first, rng())[0] == pytest.approx(1 - expected, abs=1e-12)
    assert measures.roc_area(first, first, rng()) == pytest.approx([0.5] * 3)  # a network against itself
    x, y = measures.roc_curve(first, second)
    assert (np.diff(x) * (y[1:] + y[:-1]) / 2).sum() == pytest.approx(expected, abs=1e-12)


@pytest.mark.full
def test_the_interval_of_a_roc_area_is_that_of_repeated_studies():
    """Each of 300 studies draws 60 clips anew; about 95 % of their intervals must hold the true area."""
    draw, inside = np.random.default_rng(1), 0
    true = 0.7602  # of two normal distributions one standard deviation apart
    for _ in range(300):
        _, low, high = measures.roc_area(draw.normal(1, 1, 60), draw.normal(0, 1, 60), draw)
        inside += low <= true <= high
    assert 0.90 <= inside / 300 <= 0.985


def test_the_interval_of_a_mean():
    values = rng().normal(3, 2, 400)
    mean, low, high = measures.mean_interval(values, rng())
    assert mean == pytest.approx(values.mean())
    error = 1.96 * values.std() / 20
    assert (mean - low, high - mean) == pytest.approx((error, error), rel=0.1)


def test_voxels_that_change_are_those_just_entered_or_about_to_be_left():
    masks = np.zeros((1, 4, 1, 5), bool)
    for t in range(4):
        masks[0, t, 0, t : t + 2] = True  # two voxels wide, one to the right in each frame
    expected = [[1, 0, 1, 0, 0], [1, 1, 1, 1, 0], [0, 1, 1, 1, 1], [0, 0, 1, 0, 1]]
    assert generated.changing(masks)[0, :, 0].astype(int).tolist() == expected
    masks[:] = masks[:, :1]
    assert not generated.changing(masks).any()


def test_measures_of_a_map_made_by_hand():
    """On the mover and on half of the still shape, which stands still: selective relevance keeps the mover."""
    mover, still = np.zeros((1, 8, 12, 12), bool), np.zeros((1, 8, 12, 12), bool)
    maps = np.zeros((1, 8, 12, 12), np.float32)
    for t in range(8):
        mover[0, t, 2:4, t : t + 2] = True
    still[0, :, 8:10, 4:8] = True
    maps[mover] = 2.0
    maps[0, :, 8:10, 4:6] = 1.0
    maps[0, :, 11, 11] = -9.0  # against the class: never relevant
    values = measures.measured(maps, {"mover": mover}, {"mover": mover, "still": still}, 10 / 255)
    assert values["precision, plain, mover"] == pytest.approx([0.5])  # 4 voxels a frame each
    assert values["mass, plain, mover"] == pytest.approx([8 / 12])
    assert values["mass, plain, still"] == pytest.approx([4 / 12])
    assert values["precision, 2 sigma, mover"] == pytest.approx([1.0])
    assert values["mass, 2 sigma, mover"] == pytest.approx([1.0])
    assert values["mass, 2 sigma, still"] == [0.0]
    kept = clipsight.ops.selective_relevance(torch.from_numpy(maps))[0][0, 2:6].numpy()
    assert values["middle share, 2 sigma"] == pytest.approx([np.abs(kept).sum() / np.abs(maps[0, 2:6]).sum()])
    assert 0.1 < values["middle share, 2 sigma"][0] < 1
    assert values["pointing, plain, mover"] == [1.0]
    assert values["pointing, plain, still"] == [0.0]
    assert 0 < values["selectivity, 2 sigma, voxels"] < values["selectivity, 2 sigma, relevance"] < 1
    assert values["empty, plain"] == [0.0]
    nothing = measures.measured(0 * maps, {"mover": mover}, {"still": still}, 10 / 255)
    assert nothing["empty, plain"] == nothing["empty, 4 sigma"] == [1.0]
    assert all(np.isfinite(x).all() for x in nothing.values())


def test_gains_are_taken_clip_by_clip():
    row = {"precision, plain, mover": np.array([0.2, 0.4]), "precision, 2 sigma, mover": np.array([0.5, 0.3])}
    rows = {"a": {"m": row | {"motion share, 2 sigma": np.array([1.0, 0.0])}}}
    rows["b"] = {"m": {key: values[::-1] for key, values in rows["a"]["m"].items()}}
    result = measures.summary(rows, "a", "b", 0)
    assert list(result["gains"]["a"]["m"]) == ["precision, 2 sigma, mover"]
    assert result["gains"]["a"]["m"]["precision, 2 sigma, mover"][0] == pytest.approx(0.1)
    assert result["areas"]["m"]["motion share, 2 sigma"][0] == 0.5
    assert result["shares"]["b"]["m"]["motion share, 2 sigma"] == [0.0, 1.0]


# ---- Maps ------------------------------------------------------------------------------------------------------


# One by one where a gradient is read: in another batch rounding may turn a ReLU at 0, and with it some gradients.
@pytest.mark.parametrize("method, batch", [("saliency_tube", 3), ("input_gradient", 1)])
def test_maps_and_shares_are_those_of_the_heads(drawn, method, batch):
    network, tensor = models.load("movers"), generated.to_clips(drawn.frames)
    maps = measures.raw_maps(network, tensor, drawn.labels, METHODS, batch)[method]
    values = measures.measured(maps, {"mover": drawn.masks}, {"still": drawn.still[:, None] & ~drawn.masks}, 10 / 255)
    for i, label in enumerate(drawn.labels):
        head = heads.METHODS[method](normalize="none")
        selective = SelectiveRelevance(of=head, extras=["motion_share"])
        explained = clipsight.explain(network, [head, selective], tensor[:1], [int(label)])
        _, map, motion, share = (x.detach().numpy() for x in explained(tensor[i : i + 1]))
        scale = np.abs(map).max()
        np.testing.assert_allclose(maps[i], map[0, 0], atol=1e-4 * scale)
        assert np.abs(maps[i] - maps[i - 1]).max() > 0.1 * scale, "negative control: another clip's map"
        assert values["motion share, 2 sigma"][i] == pytest.approx(share[0, 0], abs=2e-3)
        kept = motion[0, 0] > 10 / 255 * map.max()
        assert values["precision, 2 sigma, mover"][i] == pytest.approx(drawn.masks[i][kept].mean(), abs=5e-3)


def test_a_network_against_itself_is_a_coin(monkeypatch):
    monkeypatch.setattr(generated.models, "load", lambda name, load=models.load: load("movers"))
    result = generated.study(8, 5, METHODS, 10 / 255, 8, lambda text: None)
    for areas in result["areas"].values():
        assert areas["motion share, 2 sigma"] == pytest.approx([0.5] * 3, abs=0.5)
        assert areas["motion share, 2 sigma"][0] == pytest.approx(0.5)
    assert result["right"] == {"movers": 1.0, "movers_biased": 1.0}
    assert result["base rates"]["mover"] == pytest.approx(moving_shapes(8, 5).masks.mean())


# ---- Real clips ------------------------------------------------------------------------------------------------


def test_a_coloured_flow_is_read_back():
    flow = np.zeros((2, 6, 6, 2), np.float32)
    flow[:, 1, 1], flow[:, 2, 3] = (20, 0), (-5, 10)
    grey = np.array([126, 128])  # a palette's idea of the middle
    picture = np.concatenate([flow * 255 / 40 + grey, np.full((2, 6, 6, 1), 127)], -1)
    back = real.coloured_flow(picture.round().clip(0, 255).astype(np.uint8))
    assert np.abs(back - flow).max() < 0.1


@pytest.mark.full
def test_windows_of_a_real_clip(clips):
    frames, tensor, truths = real.windows(clips / "cricket_rgb.gif")
    assert frames.shape == (4, 16, 64, 64, 3)
    assert tensor.shape == (4, 3, 16, 64, 64)
    torch.testing.assert_close(tensor, generated.to_clips(frames))
    ours, theirs = truths["flow"].reshape(64, 64, 64), truths["published flow"].reshape(64, 64, 64)
    together = [(ours[4:-4] & theirs[4 + s : 60 + s]).sum() for s in (-4, 0, 4)]
    assert together[1] > max(together[0], together[2]), "flow and frames run side by side"


# ---- The page --------------------------------------------------------------------------------------------------


def test_the_page_is_what_its_results_say(published):
    assert page.page(published) == (ROOT / "docs" / "motion-study.md").read_text(encoding="utf-8")
    for name in ("maps", "roc", "bars", "where"):
        assert (ROOT / "docs" / "motion-study" / f"{name}.png").stat().st_size > 10_000


def test_other_numbers_make_other_sentences(published):
    text, other = page.page(published), copy.deepcopy(published)
    for area in other["generated"]["areas"].values():
        area["motion share, 2 sigma"] = [0.2, 0.1, 0.3]
    changed = page.page(other)
    (line,) = [x for x in changed.split("\n- ") if "motion share at 2 sigma tell" in x]
    assert "wrong way round" in line
    assert "as it should be" not in line
    other["accuracy"]["movers_biased"]["hue tells nothing"] = 0.9
    assert "still knows something of the motion" in " ".join(page.page(other).split())
    assert changed != text


def test_a_verdict_hangs_on_its_interval():
    entries = {"a_b": [0.6, 0.51, 0.7], "c": [0.6, 0.49, 0.7], "d": [0.4, 0.3, 0.49], "e": [0.9, 0.8, 1.0]}
    assert markdown.sorted_out(entries, 0.5, "up", "down", "neither") == "Up for a b and e; down for d; neither for c."


def test_the_published_numbers_are_of_every_method_and_complete(published):
    assert list(published["settings"]["methods"]) == list(heads.METHODS)
    count = published["settings"]["clips"]
    for rows in published["generated"]["shares"].values():
        for row in rows.values():
            assert all(len(values) == count for values in row.values())
    text = json.dumps(published)
    assert "NaN" not in text
    assert "Infinity" not in text


@pytest.mark.full
def test_figures_are_drawn(tmp_path, published):
    figures.clip_maps(tmp_path / "maps.png", 5, 1, METHODS)
    for draw in (figures.roc, figures.bars, figures.where):
        draw(tmp_path / f"{draw.__name__}.png", published["generated"], list(heads.METHODS))
    for name in ("maps", "roc", "bars", "where"):
        picture = matplotlib.image.imread(tmp_path / f"{name}.png")
        assert picture[..., :3].std() > 0.02
