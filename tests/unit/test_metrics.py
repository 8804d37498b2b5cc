"""Measures of maps by hand, against a slow version over sets of voxels, and their laws; flow of known motion."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clipsight import metrics
from clipsight.metrics import (
    agreement,
    motion_precision,
    motion_share,
    moving,
    optical_flow,
    pointing_game,
    relevant,
    selectivity,
)
from clipsight.synthetic import moving_shapes

TENTH = 0.1


def row(*values, dtype=np.float64):
    """A volume [1, 1, W]."""
    return np.array(values, dtype)[None, None]


# ---- By hand ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "relevance, options, expected",
    [
        # 10/255 of 255 is 10, and "more than" is strict.
        (row(255, 10, 11, -200), {}, [True, False, True, False]),
        (row(255, 10, 11, 0, dtype=np.uint8), {}, [True, False, True, False]),
        (row(4, 2, 1, 0), {"floor": 0.5}, [True, False, False, False]),
        (row(4, 2, 1, -1), {"floor": 0}, [True, True, True, False]),
        (row(0, 0), {"floor": 0}, [False, False]),
        (row(-1, -2), {}, [False, False]),  # 10/255 of -1 would lie between
        # As part of a map whose maximum is 40, above 20.
        (row(4, 25, 0, 0), {"floor": 0.5, "of": row(40, 25, 4, 1)}, [False, True, False, False]),
        # Of five values, the one at (5 - 1) * 0.5 = 2 from below is the median, 3.
        (row(5, 1, 4, 2, 3), {"floor": "quantile", "quantile": 0.5}, [True, False, True, False, True]),
        # (5 - 1) * 0.6 = 2.4 has no value: the next one is 4.
        (row(5, 1, 4, 2, 3), {"floor": "quantile", "quantile": 0.6}, [True, False, True, False, False]),
        # (5 - 1) * 0.95 = 3.8: the largest, and everything equal to it.
        (row(7, 1, 7, 2, 3), {"floor": "quantile"}, [True, False, True, False, False]),
        # The median is 0: only what is positive.
        (row(5, 0, 0, 0, -1), {"floor": "quantile", "quantile": 0.5}, [True, False, False, False, False]),
        (row(0, 0, 0), {"floor": "quantile"}, [False] * 3),
    ],
)
def test_relevant_by_hand(relevance, options, expected):
    assert relevant(relevance, **options).tolist() == [[expected]]


def test_motion_precision_by_hand():
    # Above 0.1 * 10 = 1 lie 10, 9 and 2; of these 10 and 2 move: 2/3. The 0 moves too, but is not relevant.
    maps, moves = row(10, 9, 2, 1, 0), row(1, 0, 1, 0, 1, dtype=bool)
    assert motion_precision(maps, moves, TENTH) == 2 / 3
    # The last two alone, on the scale of the whole: 2 moves, 1 is negligible. On their own, 1 > 0.2 counts: 1/2.
    part = row(0, 0, 2, 1, 0)
    assert motion_precision(part, moves, TENTH, of=maps) == 1
    assert motion_precision(part, moves, TENTH) == 1 / 2
    assert motion_precision(0 * maps, moves) == 0


def test_agreement_by_hand():
    # a: 10, 9, 2 are relevant; b: the last three. Common: 2 alone, at index 2. Either: all five. Of a: one in three.
    a, b = row(10, 9, 2, 1, 0), row(0, 0, 50, 60, 70)
    assert agreement(a, b, TENTH) == 1 / 5
    assert agreement(a, b, TENTH, "first") == 1 / 3
    assert agreement(0 * a, b, TENTH) == agreement(a, 0 * b, TENTH) == agreement(0 * a, 0 * b, TENTH) == 0
    assert agreement(0 * a, b, TENTH, "first") == 0


def test_selectivity_by_hand():
    # Relevant above 1: 10, 8, 2, sum 20. Kept of these: 8 and 2, 2/3 of the voxels, 10/20 of the relevance. The 1 is
    # kept as well, but is negligible in the baseline.
    baseline, selective = row(10, 8, 2, 1, -5), row(0, 8, 2, 1, -5)
    assert selectivity(selective, baseline, TENTH) == (2 / 3, 1 / 2)
    assert selectivity(baseline, baseline) == (1, 1)
    assert selectivity(0 * baseline, baseline) == (0, 0)
    assert selectivity(selective, 0 * baseline) == (0, 0)


def test_motion_share_by_hand():
    # |R| sums to 10, under the mask to |-3| + 1 = 4.
    maps, mask = row(4, -3, 2, 1), row(0, 1, 0, 1, dtype=bool)
    assert motion_share(maps, mask) == motion_share(maps, maps * mask) == 4 / 10
    assert motion_share(0 * maps, mask) == motion_share(0 * maps, 0 * maps) == 0


def test_pointing_game_by_hand():
    maps, mask = np.zeros((2, 9, 9)), np.zeros((2, 9, 9), bool)
    maps[1, 2, 3], mask[1, 6, 6] = 1, True  # 4 rows and 3 columns apart: 5 pixels
    assert [bool(pointing_game(maps, mask, r)) for r in (0, 4.99, 5)] == [False, False, True]
    assert not pointing_game(maps, mask[::-1], 8), "the object of another frame"
    assert not pointing_game(0 * maps, mask | True), "an empty map points nowhere"
    assert not pointing_game(-1 - maps, mask | True)
    mask[1, 2, 3] = True
    assert pointing_game(maps, mask)
    maps[0, 8, 8] = 1  # of equals the first: the earlier frame, then the row above, then the column to the left
    assert not pointing_game(maps, mask)
    assert pointing_game(row(0, 2, 2), row(0, 1, 0, dtype=bool))


def test_moving_by_hand():
    # Lengths of the first frame: 5, 0, 0.5, 0; mean 1.375, mean square 25.25 / 4, std sqrt(6.3125 - 1.890625) = 2.103.
    # The second moves as a whole: std 0. The third stands still.
    flow = np.zeros((3, 1, 4, 2), np.float32)
    flow[0, 0, 0], flow[0, 0, 2, 1], flow[1] = (3, -4), 0.5, 0.1
    assert moving(flow)[:, 0].tolist() == [[True, False, False, False], [False] * 4, [False] * 4]
    assert moving(flow, 0.4)[0, 0].tolist() == [True, False, True, False]
    assert moving(flow, "frame_std")[:, 0].tolist() == [[True, False, False, False], [True] * 4, [False] * 4]
    flow[0, 0, 2, 1] = 2.2  # of 5, 0, 2.2, 0 the std is sqrt(29.84 / 4 - 1.8^2) = 2.055: above it
    assert moving(flow, "frame_std")[0, 0].tolist() == [True, False, True, False]


# ---- Against a slow version, and laws -----------------------------------------------------------------------

SHAPE = (2, 3, 2, 3, 4)  # two leading axes
maps = arrays(np.float32, SHAPE, elements=st.integers(-4, 8).map(float))  # small integers: many equals and zeros
masks = arrays(bool, SHAPE[1:])  # to be broadcast
floors = st.sampled_from([0, 10 / 255, 0.3, 0.5])


def chosen(volume, floor, of=None):
    """Set of the relevant voxels of one volume [T, H, W]."""
    largest = max((volume if of is None else of).ravel().tolist())
    return {i for i in np.ndindex(volume.shape) if largest > 0 and volume[i] > floor * largest}


def ratio(part, whole):
    return part / whole if whole else 0


def hit(volume, mask, tolerance):
    peak = max(np.ndindex(volume.shape), key=lambda i: volume[i])  # the first of equals
    near = [i for i in np.ndindex(mask.shape) if mask[i] and i[0] == peak[0]]
    return volume[peak] > 0 and any(np.hypot(i[1] - peak[1], i[2] - peak[2]) <= tolerance for i in near)


@settings(deadline=None, max_examples=25)
@given(maps, maps, masks, floors, st.sampled_from([0, 1, 1.5, 2]))
def test_every_measure_against_sets_of_voxels(a, b, mask, floor, tolerance):
    part = a * mask
    measured = {
        "precision": motion_precision(a, mask, floor),
        "iou": agreement(a, b, floor),
        "first": agreement(a, b, floor, "first"),
        "voxels": selectivity(part, a, floor)[0],
        "relevance": selectivity(part, a, floor)[1],
        "share": motion_share(a, mask),
        "pointing": pointing_game(a, mask, tolerance),
    }
    for i in np.ndindex(SHAPE[:2]):
        x, y, m = a[i], b[i], mask[i[1]]
        of_x, of_y, moves = chosen(x, floor), chosen(y, floor), {j for j in np.ndindex(m.shape) if m[j]}
        kept = chosen(part[i], floor, of=x)
        assert {j for j in np.ndindex(m.shape) if relevant(a, floor)[i][j]} == of_x
        expected = {
            "precision": ratio(len(of_x & moves), len(of_x)),
            "iou": ratio(len(of_x & of_y), len(of_x | of_y)),
            "first": ratio(len(of_x & of_y), len(of_x)),
            "voxels": ratio(len(kept), len(of_x)),
            "relevance": ratio(sum(float(x[j]) for j in kept), sum(float(x[j]) for j in of_x)),
            "share": ratio(sum(abs(float(x[j])) for j in moves), np.abs(x).sum(dtype=np.float64)),
            "pointing": hit(x, m, tolerance),
        }
        assert {name: values[i] for name, values in measured.items()} == expected
    assert all(v.shape == SHAPE[:2] for v in measured.values())
    assert {v.dtype for n, v in measured.items() if n != "pointing"} == {np.dtype(np.float64)}


@settings(deadline=None, max_examples=60)
@given(maps, masks, st.sampled_from([0, 0.3, "quantile"]), st.integers(-60, 60))
def test_scale_does_not_matter_and_parts_are_parts(a, mask, floor, power):
    scaled = a * np.float32(2) ** power  # exact
    assert (relevant(scaled, floor) == relevant(a, floor)).all()
    assert (motion_precision(scaled, mask, floor) == motion_precision(a, mask, floor)).all()
    assert (motion_share(scaled, mask) == motion_share(a, mask)).all()
    assert (pointing_game(scaled, mask) == pointing_game(a, mask)).all()
    for kept in selectivity(a * mask, a, floor):
        assert ((kept >= 0) & (kept <= 1)).all()
    either = motion_precision(a, mask, floor) + motion_precision(a, ~mask, floor)
    np.testing.assert_allclose(either, relevant(a, floor).any((-3, -2, -1)), atol=1e-15)
    assert (agreement(a, a, floor) == relevant(a, floor).any((-3, -2, -1))).all()


@pytest.mark.parametrize("percent", [1, 50, 90, 95, 99])
def test_the_quantile_takes_the_share_it_says(percent):
    for size in ((4, 5, 6), (1, 1, 7), (3, 16, 16)):
        values = np.random.default_rng(0).random(size)
        taken = relevant(values, "quantile", quantile=percent / 100)
        assert abs(taken.sum() - (1 - percent / 100) * values.size) <= 1
        assert values[taken].min() > values[~taken].max()


def test_tensors_and_other_number_types():
    values = np.random.default_rng(0).integers(0, 255, (2, 3, 4, 5)).astype(np.uint8)
    mask = np.random.default_rng(1).random((3, 4, 5)) < 0.5
    expected = motion_precision(values.astype(np.float64), mask), motion_share(values.astype(np.float64), mask)
    for given_ in (values, values.astype(np.float16), torch.from_numpy(values), torch.from_numpy(values).half()):
        assert (motion_precision(given_, torch.from_numpy(mask)) == expected[0]).all()
        assert (motion_share(given_, torch.from_numpy(mask)) == expected[1]).all()
    assert motion_precision(values[:0], mask).shape == pointing_game(values[:0], mask).shape == (0,)


def test_a_long_video_is_not_copied():
    volume = np.random.default_rng(0).random((256, 96, 96), np.float32)
    mask = volume > 0.5
    for measure in (motion_precision, motion_share, pointing_game, agreement, selectivity):
        tracemalloc.start()
        measure(volume, mask)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < volume.nbytes / 20, f"{measure.__name__} took {peak / volume.nbytes:.2f} times the volume"
    tracemalloc.start()
    (volume * 1).sum()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak > volume.nbytes / 2, "a copy would be seen"


# ---- Bad input ----------------------------------------------------------------------------------------------

GOOD, MASK = row(1, 2, 3), row(1, 0, 1, dtype=bool)
SECOND = {"agreement": GOOD, "selectivity": GOOD}  # what each measure takes beside the map
SECOND |= dict.fromkeys(("motion_precision", "motion_share", "pointing_game"), MASK)


@pytest.mark.parametrize("name", ["relevant", *SECOND])
@pytest.mark.parametrize(
    "bad, message",
    [
        (np.zeros((3, 3)), r"must be \[..., T, H, W\], each at least 1, got \[3, 3\]"),
        (np.zeros((0, 3, 3)), r"must be \[..., T, H, W\], each at least 1, got \[0, 3, 3\]"),
        (row(1, np.nan, 3), "must be finite, got NaN or infinity"),
        (row(1, -np.inf, 3), "must be finite, got NaN or infinity"),
    ],
)
def test_no_map(name, bad, message):
    with pytest.raises(ValueError, match=rf"{name}: (relevance|a|selective) {message}"):
        getattr(metrics, name)(bad, *([SECOND[name]] if name in SECOND else []))


@pytest.mark.parametrize("name", SECOND)
@pytest.mark.parametrize("shape", [(1, 1, 4), (1, 3), (3, 1, 1, 3)])
def test_what_does_not_fit_the_map(name, shape):
    kind = SECOND[name].dtype
    with pytest.raises(ValueError, match=rf"{name}: \w+ must (fit a map of shape|be \[..., T, H, W\])"):
        getattr(metrics, name)(np.ones((2, 1, 1, 3)), np.ones(shape, kind))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: motion_precision(GOOD, GOOD), TypeError, "motion_precision: moving must be bool, got float64"),
        (lambda: pointing_game(GOOD, GOOD), TypeError, "pointing_game: masks must be bool, got float64"),
        (lambda: pointing_game(GOOD, MASK, -1), ValueError, "pointing_game: tolerance must be .* got -1"),
        (lambda: pointing_game(GOOD, MASK, np.nan), ValueError, "pointing_game: tolerance must be .* got nan"),
        (lambda: relevant(GOOD, 1), ValueError, "relevant: floor must be 'quantile' or a share .* got 1"),
        (lambda: relevant(GOOD, np.nan), ValueError, "relevant: floor must be 'quantile' or a share .* got nan"),
        (lambda: agreement(GOOD, GOOD, "median"), ValueError, "agreement: floor must be .* got 'median'"),
        (
            lambda: selectivity(GOOD, GOOD, "quantile", quantile=1),
            ValueError,
            "selectivity: quantile must lie",
        ),
        (lambda: agreement(GOOD, GOOD, measure="dice"), ValueError, "agreement: measure must be .* got 'dice'"),
        (lambda: relevant(GOOD, of=row(1, 2)), ValueError, r"relevant: of must fit a map of shape \[1, 1, 3\]"),
        (lambda: selectivity(GOOD, row(1, np.nan, 1)), ValueError, "selectivity: baseline must be finite"),
        (lambda: motion_share(GOOD, row(1, np.nan, 1)), ValueError, "motion_share: motion must be finite"),
        (
            lambda: moving(np.zeros((2, 3, 3))),
            ValueError,
            r"moving: flow must be \[..., T, H, W, 2\], each",
        ),
        (lambda: moving(np.full((1, 1, 1, 2), np.nan)), ValueError, "moving: flow must be finite"),
        (lambda: moving(np.zeros((1, 1, 1, 2)), "std"), ValueError, "moving: threshold must be .* got 'std'"),
        (lambda: moving(np.zeros((1, 1, 1, 2)), -0.5), ValueError, "moving: threshold must be .* got -0.5"),
    ],
)
def test_options_that_do_not_fit(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---- Optical flow -------------------------------------------------------------------------------------------


def drifting(dx, dy, count=4, size=96):
    """A smooth random texture that moves by (dx, dy) whole pixels each frame."""
    from scipy.ndimage import gaussian_filter

    texture = gaussian_filter(np.random.default_rng(0).normal(size=(3 * size, 3 * size)), 3)
    texture = np.uint8(255 * (texture - texture.min()) / np.ptp(texture))
    starts = [(size - dy * t, size - dx * t) for t in range(count)]
    return np.stack([np.repeat(texture[y : y + size, x : x + size, None], 3, -1) for y, x in starts])


@pytest.mark.parametrize("method", ["dis", "farneback"])
@pytest.mark.parametrize("velocity", [(3, -1), (0, 2), (0, 0)])
def test_flow_of_a_known_motion(method, velocity):
    pytest.importorskip("cv2")
    frames = drifting(*velocity)
    flow = optical_flow(frames, method)
    assert flow.shape == (4, 96, 96, 2)
    assert flow.dtype == np.float32
    inner = flow[:, 16:-16, 16:-16]
    assert np.abs(inner - velocity).mean() < 0.1
    assert (flow[3] == flow[2]).all(), "the last frame has no next one"
    assert moving(inner).all() == any(velocity)
    assert moving(inner).any() == any(velocity)
    assert (optical_flow(np.stack([frames[::-1], frames]), method)[1] == flow).all(), "clip by clip"


def test_flow_finds_the_shape_that_moves():
    pytest.importorskip("cv2")
    clip = moving_shapes(2, seed=3, frames=8, size=128)  # to the left and to the right, faster than 0.5 pixels a frame
    flow = optical_flow(clip.frames)
    assert flow.shape == (2, 8, 128, 128, 2)
    for i, sign in enumerate((-1, 1)):
        inside, outside = flow[i][clip.masks[i]], flow[i][~clip.masks[i]]
        assert sign * np.median(inside[:, 0]) > 0.5
        assert np.median(np.hypot(*outside.T)) < 0.1
    # As relevance the mover's own mask moves; a still look-alike, here the mask of the other clip, does not.
    precision = motion_precision(clip.masks, moving(flow))
    assert (precision > 0.9).all()
    assert (motion_precision(clip.masks[::-1] & ~clip.masks, moving(flow)) < 0.5).all()


@pytest.mark.parametrize("method", ["dis", "farneback"])
def test_flow_of_a_real_clip_agrees_with_the_published_one(clips, method):
    """The picture of the cricket clip's TV-L1 flow is grey where nothing moves."""
    pytest.importorskip("av")
    from clipsight.video import VideoReader

    frames, published = (np.stack(list(VideoReader(clips / f"cricket_{x}.gif"))) for x in ("rgb", "flow"))
    part = slice(48, 72, 4)
    colours = np.abs(published[part] - np.median(published[part], (1, 2), keepdims=True)).sum(-1)
    flow = np.stack([optical_flow(frames[t : t + 2], method)[0] for t in range(48, 72, 4)])
    length = np.hypot(flow[..., 0], flow[..., 1])
    alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(length, colours, strict=True)]
    mirrored = [np.corrcoef(a.ravel(), b[:, ::-1].ravel())[0, 1] for a, b in zip(length, colours, strict=True)]
    assert min(alike) > 0.5
    assert max(mirrored) < 0.3
    assert 0.02 < moving(flow).mean() < 0.5, "some of it moves, not all"


@pytest.mark.parametrize(
    "frames, error, message",
    [
        (np.zeros((1, 32, 32, 3), np.uint8), ValueError, r"frames must be two or more, .* got \[1, 32, 32, 3\]"),
        (np.zeros((0, 32, 32, 3), np.uint8), ValueError, r"frames must be \[..., T, H, W, 3\]"),
        (np.zeros((4, 32, 32), np.uint8), ValueError, r"frames must be \[..., T, H, W, 3\], .* got \[4, 32, 32\]"),
        # OpenCV 5 crashes on frames of 9x40 pixels.
        (np.zeros((4, 9, 40, 3), np.uint8), ValueError, ".* H and W at least 16, got"),
        (np.zeros((4, 32, 32, 3), np.float32), TypeError, "frames must be uint8, got float32"),
    ],
)
def test_what_has_no_flow(frames, error, message):
    with pytest.raises(error, match=f"optical_flow: {message}"):
        optical_flow(frames)
    with pytest.raises(ValueError, match="optical_flow: method must be 'dis' or 'farneback', got 'raft'"):
        optical_flow(frames, "raft")
