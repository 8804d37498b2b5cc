"""The moving shapes: same seed same clips, the class is in the motion and nowhere else, and the masks are true."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from scipy import ndimage

from clipsight.synthetic import CUE_COLOURS, MOTION_CLASSES, moving_shapes

CLASS = {name: index for index, name in enumerate(MOTION_CLASSES)}


@pytest.fixture(scope="module")
def clips():
    return moving_shapes(400, seed=5)


def test_shapes_dtypes_and_class_balance(clips):
    assert clips.frames.shape == (400, 16, 64, 64, 3)
    assert clips.masks.shape == (400, 16, 64, 64)
    assert clips.still.shape == (400, 64, 64)
    assert [array.dtype for array in clips] == [np.uint8, np.int64, bool, bool]
    assert np.bincount(clips.labels).tolist() == [50] * 8


def test_a_clip_depends_on_its_seed_and_index_alone(clips):
    again = moving_shapes(10, seed=5)
    for ours, theirs in zip(again, clips, strict=True):
        np.testing.assert_array_equal(ours, theirs[:10])
    assert not np.array_equal(moving_shapes(1, seed=6).frames, again.frames[:1])
    assert not np.array_equal(again.frames[0], again.frames[8])
    # On every platform the same, up to a rounding of cos and exp.
    assert clips.frames.mean() == pytest.approx(127.503, abs=0.01)
    assert clips.masks.mean() == pytest.approx(0.04088, abs=0.00002)


def test_frames_size_and_labels_are_arguments():
    clips = moving_shapes(3, seed=1, frames=9, size=40, labels=[6, 6, 0])
    assert clips.frames.shape == (3, 9, 40, 40, 3)
    assert clips.labels.tolist() == [6, 6, 0]
    assert moving_shapes(0, seed=1).frames.shape == (0, 16, 64, 64, 3)


def test_the_same_seed_is_the_same_scene_at_every_size():
    small, large = (moving_shapes(16, seed=3, size=size).masks for size in (64, 192))
    centres = large[:, :, 1::3, 1::3]
    assert (small & centres).sum() / (small | centres).sum() > 0.98


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"count": -1}, "at least 0, 2, 16, got -1, 16, 64"),
        ({"frames": 1}, "at least 0, 2, 16, got 1, 1, 64"),
        ({"size": 8}, "at least 0, 2, 16, got 1, 16, 8"),
        ({"labels": [8]}, r"labels must be 1 class indices in 0..7, got \[8\]"),
        ({"labels": [0, 1]}, r"labels must be 1 class indices in 0..7, got \[0, 1\]"),
        ({"bias": 1.1}, "bias must be a probability or None, got 1.1"),
        ({"bias": float("nan")}, "bias must be a probability or None, got nan"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        moving_shapes(**({"count": 1, "seed": 0} | arguments))


def test_the_mover_fills_two_to_eight_percent_of_each_clip(clips):
    share = clips.masks.mean(axis=(1, 2, 3))
    assert share.min() >= 0.02
    assert share.max() <= 0.08


def test_outside_the_mover_nothing_changes_but_noise(clips):
    frames = clips.frames[:40].astype(int)
    swept = ndimage.binary_dilation(clips.masks[:40].any(axis=1), np.ones((1, 3, 3)), iterations=2)
    change = np.ptp(frames, axis=1).max(axis=-1)
    assert change[~swept].max() <= 12
    assert np.median(change[swept]) > 12  # control: inside it does change


def test_each_clip_holds_a_static_look_alike(clips):
    for frames, mask in zip(clips.frames[:40], clips.masks[:40], strict=True):
        colour = np.median(frames[0][mask[0]], axis=0)
        alike = np.abs(frames.astype(int) - colour).max(axis=-1).max(axis=0) < 75
        swept = ndimage.binary_dilation(mask.any(axis=0), iterations=2)
        assert 0.01 < (alike & ~swept).mean() < 0.08


def _pose(masks):
    """Centroid x, y in pixels, log area and direction of the long axis (half turns unwrapped), each [N, T]."""
    area = masks.sum(axis=(2, 3))
    places = np.arange(masks.shape[-1])
    x, y = (masks.sum(axis=2) @ places) / area, (masks.sum(axis=3) @ places) / area
    dx, dy = places - x[..., None], places - y[..., None]
    xx, yy = (masks.sum(axis=2) * dx**2).sum(-1), (masks.sum(axis=3) * dy**2).sum(-1)
    xy = np.einsum("nty,ntyx,ntx->nt", dy, masks, dx)
    return x, y, np.log(area), np.unwrap(np.arctan2(2 * xy, xx - yy), axis=1) / 2


def test_masks_show_the_motion_that_the_class_names():
    clips = moving_shapes(80, seed=9, size=160)
    change = np.stack([values[:, -1] - values[:, 0] for values in _pose(clips.masks)], axis=1)
    x, y, growth, turn = 0, 1, 2, 3
    # From the first frame to the last: twice the ranges of the generator, the growth of an area twice that of a side.
    expected = {
        "moves left": (x, -0.26 * 160, -0.16 * 160),
        "moves right": (x, 0.16 * 160, 0.26 * 160),
        "moves up": (y, -0.26 * 160, -0.16 * 160),
        "moves down": (y, 0.16 * 160, 0.26 * 160),
        "turns clockwise": (turn, 1.6, 2.8),
        "turns anticlockwise": (turn, -2.8, -1.6),
        "grows": (growth, 1.0, 1.6),
        "shrinks": (growth, -1.6, -1.0),
    }
    for name, (which, low, high) in expected.items():
        values = change[clips.labels == CLASS[name]][:, which]
        slack = 0.15 * (high - low)  # pixels are discrete, and a corner may leave the frame
        assert values.min() > low - slack, name
        assert values.max() < high + slack, name


def _nearest_mean_accuracy(features, labels):
    """Learn a mean per class on the first half, name the second half: the share that is right."""
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    half = len(labels) // 2
    means = np.stack([features[:half][labels[:half] == k].mean(axis=0) for k in range(8)])
    guess = ((features[half:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)
    return (guess == labels[half:]).mean()


@pytest.mark.parametrize("count, most", [(800, 0.18), pytest.param(1600, 0.17, marks=pytest.mark.full)])
def test_a_single_frame_does_not_tell_the_class(count, most):
    clips = moving_shapes(count, seed=11)
    pose = np.stack(_pose(clips.masks), axis=-1)
    middle = clips.frames[:, 7, 2::4, 2::4].reshape(count, -1).astype(np.float32)
    # Chance is 1/8, and its standard deviation 0.017 on 400 clips, 0.012 on 800.
    assert _nearest_mean_accuracy(middle, clips.labels) < most
    assert _nearest_mean_accuracy(pose[:, 7, :3], clips.labels) < most  # even where the true mask is given
    assert _nearest_mean_accuracy(pose[:, -1] - pose[:, 0], clips.labels) > 0.9  # control: the motion does tell


def test_the_still_shape_is_where_its_mask_says():
    clips = moving_shapes(40, seed=5)
    edge = np.ones((1, 3, 3))
    swept = ndimage.binary_dilation(clips.masks.any(axis=1), edge, iterations=2)
    inside = ndimage.binary_erosion(clips.still, edge) & ~swept
    outside = ndimage.binary_dilation(clips.still, edge, iterations=2) & ~clips.still & ~swept
    for clip, core, rim in zip(clips.frames.astype(int), inside, outside, strict=True):
        assert np.ptp(clip[:, core], axis=(0, 1)).max() <= 12, "one colour, but for noise"
        assert not rim.any() or np.ptp(clip[:, core | rim], axis=(0, 1)).max() > 12, "negative control: the rim"
    assert 0.015 < clips.still.mean(axis=(1, 2)).min() < clips.still.mean(axis=(1, 2)).max() < 0.06


def test_a_bias_changes_the_colour_of_the_still_shape_and_nothing_else():
    plain = moving_shapes(40, seed=5)
    near = ndimage.binary_dilation(plain.still, np.ones((1, 3, 3)), iterations=2)[:, None]
    for bias in (0.0, 1.0):
        clips = moving_shapes(40, seed=5, bias=bias)
        for ours, theirs in zip(clips[1:], plain[1:], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        changed = (clips.frames != plain.frames).any(axis=-1)
        assert not (changed & ~near).any()
        assert (changed & clips.still[:, None] & ~clips.masks).sum() > 0.9 * (clips.still[:, None] & ~clips.masks).sum()


def _told(clips):
    """The class that the hue of each clip's still shape stands for, and how far the hue is from that of the table."""
    seen = clips.still & ~clips.masks.any(axis=1)
    colours = np.stack([np.median(f[:, s], axis=(0, 1)) for f, s in zip(clips.frames, seen, strict=True)])
    gaps = np.abs(colours[:, None] - CUE_COLOURS).max(axis=-1)
    return gaps.argmin(axis=1), gaps.min(axis=1)


@pytest.mark.parametrize("bias, right", [(1.0, 1.0), (0.5, 0.5 + 0.5 / 8), (0.0, 1 / 8)])
def test_the_hue_of_the_still_shape_tells_the_class_as_often_as_the_bias_says(bias, right):
    clips = moving_shapes(400, seed=7, bias=bias)
    told, gap = _told(clips)
    assert np.quantile(gap, 0.99) < 12  # jitter of 8 and a median over noise of 6: the hue is one of the eight
    share = (told == clips.labels).mean()
    assert abs(share - right) <= 4 * np.sqrt(right * (1 - right) / 400)
    assert np.bincount(told, minlength=8).min() > 25, "every hue occurs"


def test_telling_hues_are_far_from_each_other_and_from_every_mover():
    apart = np.abs(CUE_COLOURS[:, None] - CUE_COLOURS).max(axis=-1) + 255 * np.eye(8)
    assert apart.min() > 4 * 8
    to_corner = np.minimum(CUE_COLOURS, 255 - CUE_COLOURS).max(axis=1)  # of a mover, no channel is over 60
    assert to_corner.min() > 60 + 8


def test_without_a_bias_clips_are_those_of_the_first_release():
    """The checksum is of the masks: unlike the pixels, they do not hang on the last bit of a cosine."""
    clips = moving_shapes(8, seed=5, bias=None)
    sums = [26139974, 26095484, 25669541, 25445960, 24701901, 25083670, 27281834, 28012748]
    assert zlib.crc32(np.packbits(clips.masks).tobytes()) == 2450811103
    assert clips.frames.astype(np.int64).sum(axis=(1, 2, 3, 4)).tolist() == pytest.approx(sums, abs=200)
