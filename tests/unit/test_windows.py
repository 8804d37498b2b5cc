"""Sliding windows and the way back to the source: positions, weights and values against slow, obvious versions."""

import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("av")
pytest.importorskip("cv2")
import cv2
import torch

from clipsight.preprocessing import Preprocessing
from clipsight.video import VideoError
from clipsight.windows import Geometry, Track, minmax, sliding_windows, to_clip, to_gray, triangle

GEOMETRIES = {
    "kinetics": ((256, 340), (128, 171), (112, 112)),
    "short side": ((240, 320), 128, (112, 112)),
    "portrait": ((341, 193), 65, (64, 64)),
    "odd, non-square crop": ((97, 131), (61, 83), (49, 71)),
    "no resize": ((97, 131), None, (51, 64)),
    "whole frame": ((97, 131), (48, 64), (48, 64)),
    "enlarged": ((31, 45), (60, 88), (59, 61)),
}
all_geometries = pytest.mark.parametrize("case", GEOMETRIES.values(), ids=GEOMETRIES.keys())


def geometry(case):
    source, resize, crop = case
    return Geometry.of(Preprocessing(resize=resize, crop=crop), source)


def centres(geometry, axis):
    """Source coordinate of the centre of every crop pixel along one axis."""
    scale = geometry.source[axis] / geometry.resized[axis]
    return (np.arange(geometry.crop[axis]) + geometry.offset[axis] + 0.5) * scale - 0.5


@all_geometries
def test_region_is_what_the_network_saw(case):
    g = geometry(case)
    for axis, part in enumerate(g.region):
        scale = g.resized[axis] / g.source[axis]
        place = (np.arange(g.source[axis]) + 0.5) * scale - g.offset[axis]
        seen = np.flatnonzero((place >= 0) & (place <= g.crop[axis]))
        assert (part.start, part.stop - 1) == (seen[0], seen[-1])
    assert g.covers_frame == (g.crop == g.resized)


@all_geometries
def test_map_of_source_coordinates_comes_back_as_coordinates(case):
    """A linear map survives linear interpolation exactly, so every pixel must read its own coordinate."""
    g = geometry(case)
    y, x = np.meshgrid(centres(g, 0), centres(g, 1), indexing="ij")
    rows, columns = (np.arange(part.start, part.stop) for part in g.region)
    inside_rows = (rows >= y.min()) & (rows <= y.max())  # half a pixel at the border has nothing to interpolate with
    inside_columns = (columns >= x.min()) & (columns <= x.max())
    assert inside_rows.mean() > 0.9
    back_y, back_x = g.to_region(np.float32(y)), g.to_region(np.float32(x))
    assert back_y.shape == (len(rows), len(columns))
    # OpenCV places samples on a grid of 1/32 map pixel, which is at most source / resized source pixels wide
    bound = max(s / r for s, r in zip(g.source, g.resized, strict=True)) / 32 + 1e-3
    assert np.abs(back_y - rows[:, None])[inside_rows].max() < bound
    assert np.abs(back_x - columns)[:, inside_columns].max() < bound
    assert np.abs(back_x - columns - 1)[:, inside_columns].max() > bound, "a shift by one pixel must fail"


@all_geometries
def test_blob_comes_back_to_its_place(case):
    """Frame -> crop -> map -> source: the centre of a blob moves less than a pixel."""
    g = geometry(case)
    rows, columns = g.region
    centre = np.array([0.4 * rows.start + 0.6 * rows.stop, 0.55 * columns.start + 0.45 * columns.stop])
    y, x = np.mgrid[: g.source[0], : g.source[1]]
    width = 0.08 * (rows.stop - rows.start)
    blob = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * width**2))
    frame = np.repeat(np.uint8(255 * blob)[..., None], 3, axis=2)
    seen = g.crop_frame(frame)
    assert seen.shape == (*g.crop, 3)
    back = np.zeros(g.source)
    back[g.region] = g.to_region(np.float32(seen[..., 0]))
    found = np.array([(back * y).sum(), (back * x).sum()]) / back.sum()
    assert np.abs(found - centre).max() < 1


@all_geometries
def test_resize_and_crop_are_torchvisions(case):
    """torchvision's video presets resize bilinearly without antialiasing and crop at round((full - part) / 2)."""
    source, resize, crop = case
    g = geometry(case)
    if isinstance(resize, int):
        assert min(g.resized) == resize
        assert max(g.resized) == int(resize * max(source) / min(source))
    frame = np.random.default_rng(0).integers(0, 256, (*source, 3), dtype=np.uint8)
    tensor = torch.from_numpy(frame).permute(2, 0, 1)[None].double()
    resized = torch.nn.functional.interpolate(tensor, g.resized, mode="bilinear", align_corners=False)[0]
    top, left = round((g.resized[0] - crop[0]) / 2), round((g.resized[1] - crop[1]) / 2)
    expected = resized[:, top : top + crop[0], left : left + crop[1]].permute(1, 2, 0).numpy()
    assert np.abs(g.crop_frame(frame) - expected).max() <= 1.01
    assert np.abs(np.roll(g.crop_frame(frame), 1, 1) - expected).max() > 50


def test_crop_larger_than_the_frame():
    with pytest.raises(
        VideoError, match="crop 112x112 must fit into the resized frame, got 80x60 from a source of 80x60"
    ):
        Geometry.of(Preprocessing(crop=(112, 112)), (60, 80))


def test_to_clip_normalises_per_channel_and_orders_channels():
    rng = np.random.default_rng(1)
    frames = [rng.integers(0, 256, (4, 5, 3), dtype=np.uint8) for _ in range(3)]
    options = {"crop": (4, 5), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 2.0)}
    for order in ("RGB", "BGR"):
        clip = to_clip(frames, Preprocessing(frames=3, channel_order=order, **options))
        assert clip.shape == (1, 3, 3, 4, 5)
        assert clip.dtype == np.float32
        for channel in range(3):
            plain = np.stack([f[..., channel if order == "RGB" else 2 - channel] for f in frames]) / 255
            expected = (plain - options["mean"][channel]) / options["std"][channel]
            assert np.abs(clip[0, channel] - expected).max() < 1e-6


def numbered(count):
    """Frames that carry their number in every pixel."""
    return (np.full((4, 4, 3), i, np.uint8) for i in range(count))


def preprocessing(frames, stride=1):
    return Preprocessing(frames=frames, stride=stride, crop=(4, 4), scale=1.0)


@settings(deadline=None)
@given(count=st.integers(1, 90), length=st.integers(1, 12), stride=st.integers(1, 4), data=st.data())
def test_windows_cover_every_sampled_frame(count, length, stride, data):
    step = data.draw(st.integers(1, length))
    sampled = list(range(0, count, stride))
    if len(sampled) < length:
        with pytest.raises(VideoError, match=f"a clip needs {length} frames.*got {len(sampled)}"):
            list(sliding_windows(numbered(count), preprocessing(length, stride), step))
        return
    windows = list(sliding_windows(numbered(count), preprocessing(length, stride), step))
    for window in windows:
        expected = sampled[window.start : window.start + length]
        assert window.clip[0, 0, :, 0, 0].tolist() == expected
        assert window.used == length
    starts = [w.start for w in windows]
    regular = list(range(0, len(sampled) - length + 1, step))
    assert starts == sorted({*regular, len(sampled) - length}), "every step, and the last one flush with the end"


@settings(deadline=None)
@given(count=st.integers(1, 60), length=st.integers(1, 12), data=st.data())
def test_blending_weights_sum_to_one(count, length, data):
    """A map of ones stays one everywhere, and each frame is the weighted mean of the windows that hold it."""
    length = min(length, count)
    step = data.draw(st.integers(1, length))
    track, values, weights = Track(), np.zeros(count), np.zeros(count)
    for i, window in enumerate(sliding_windows(numbered(count), preprocessing(length), step)):
        track.add(window.start, np.stack([np.ones((length, 2, 2)), np.full((length, 2, 2), i)]))
        values[window.start : window.start + length] += i * triangle(length)
        weights[window.start : window.start + length] += triangle(length)
    assert len(track) == count
    for i in range(count):
        ones, mean = track[i][:, 0, 0]
        assert ones == pytest.approx(1, abs=1e-6)
        assert mean == pytest.approx(values[i] / weights[i], rel=1e-5)


def test_triangle_is_symmetric_and_positive():
    assert triangle(1).tolist() == [1]
    assert triangle(4).tolist() == [1, 2, 2, 1]
    assert triangle(5).tolist() == [1, 2, 3, 2, 1]


def test_default_step_is_half_a_window():
    assert [w.start for w in sliding_windows(numbered(16), preprocessing(8))] == [0, 4, 8]
    assert [w.start for w in sliding_windows(numbered(3), preprocessing(1))] == [0, 1, 2]


def test_short_video_can_be_repeated():
    (window,) = sliding_windows(numbered(9), preprocessing(8, stride=2), loop=True)
    assert window.clip[0, 0, :, 0, 0].tolist() == [0, 2, 4, 6, 8, 0, 2, 4]
    assert (window.start, window.used) == (0, 5)
    assert [w.used for w in sliding_windows(numbered(9), preprocessing(8), loop=True)] == [8, 8]


def test_windows_of_whole_frames():
    frames = [np.full((6, 9, 3), i, np.uint8) for i in range(5)]
    windows = list(sliding_windows(frames, preprocessing(4, stride=2), loop=True, whole=True))
    assert [(w.start, w.used, w.clip.shape, w.clip.dtype) for w in windows] == [(0, 3, (1, 4, 6, 9, 3), np.uint8)]
    assert windows[0].clip[0, :, 0, 0, 0].tolist() == [0, 2, 4, 0]


def test_window_errors():
    with pytest.raises(VideoError, match=r"needs 8 frames = 22 source frames at stride 3, got 3; .*--loop"):
        list(sliding_windows(numbered(9), preprocessing(8, stride=3)))
    with pytest.raises(VideoError, match="got 0"):
        list(sliding_windows(numbered(0), preprocessing(8), loop=True))
    for step in (0, -1, 9):
        with pytest.raises(VideoError, match=f"step must be 1 to 8 .* got {step}"):
            list(sliding_windows(numbered(9), preprocessing(8), step))


def test_windows_are_a_stream():
    """The first window is there before the frames after it are read."""
    read = []

    def frames():
        for i, frame in enumerate(numbered(100)):
            read.append(i)
            yield frame

    assert next(sliding_windows(frames(), preprocessing(8))).start == 0
    assert read == list(range(8))


def test_skipped_frames_are_interpolated_in_time():
    track = Track()
    track.add(0, np.float32([0, 10, 40])[:, None, None] * np.ones((3, 2, 2), np.float32))
    expected = [0, 2.5, 5, 7.5, 10, 17.5, 25, 32.5, 40, 40, 40]  # stride 4; the last sampled frame stays
    assert [float(track.at(i, 4)[0, 0]) for i in range(11)] == expected


def test_a_long_track_lies_in_a_file_and_is_the_same(tmp_path, monkeypatch):
    rng, (length, step, count) = np.random.default_rng(3), (6, 2, 40)
    starts = range(0, count - length + 1, step)
    clips = {start: rng.normal(size=(2, length, 5, 4)).astype(np.float32) for start in starts}
    sums, weights = np.zeros((count, 2, 5, 4), np.float32), np.zeros(count, np.float32)
    for start, clip in clips.items():
        sums[start : start + length] += triangle(length)[:, None, None, None] * clip.swapaxes(0, 1)
        weights[start : start + length] += triangle(length)
    expected = sums / weights[:, None, None, None]
    for limit in (1 << 20, 1000):
        monkeypatch.setattr("clipsight.windows.IN_MEMORY", limit)
        folder = tmp_path / str(limit)
        track = Track(folder)
        for start, clip in clips.items():
            track.add(start, clip)
        assert len(track) == count
        assert (np.stack([track[i] for i in range(count)]) == expected).all()
        assert (track.range() == np.array([expected.min(axis=(0, 2, 3)), expected.max(axis=(0, 2, 3))])).all()
        assert folder.exists() == (limit == 1000)
        assert not folder.exists() or not [*folder.iterdir()], "nobody sees the file, and it goes with the track"


def test_no_room_for_the_maps_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("clipsight.windows.IN_MEMORY", 1000)
    track, most = Track(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    track.add(0, np.ones((1, 100, 50, 50), np.float32))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most[1]))  # beyond it writing fails, as on a full disk
    try:
        with pytest.raises(VideoError, match=f"windows: {tmp_path} must have room for the maps, 0.01 MB for each"):
            track.add(99, np.ones((1, 100, 50, 50), np.float32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)


def test_range_spans_the_whole_video_per_map():
    rng = np.random.default_rng(2)
    maps = rng.normal(size=(2, 7, 3, 4)).astype(np.float32)
    track = Track()
    track.add(0, maps)
    low, high = track.range()
    assert np.allclose(low, maps.min(axis=(1, 2, 3)))
    assert np.allclose(high, maps.max(axis=(1, 2, 3)))
    scaled = np.stack([minmax(track[i], low, high) for i in range(7)], 1)
    assert scaled.min(axis=(1, 2, 3)).tolist() == [0, 0]
    assert scaled.max(axis=(1, 2, 3)).tolist() == [1, 1]


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-8, 1e8])
def test_constant_map_is_zero_not_nan(value):
    maps = np.full((1, 3, 4), value, np.float32)
    assert not minmax(maps, maps.min(axis=(1, 2)), maps.max(axis=(1, 2))).any()


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_a_gray_network_sees_the_luma(order):
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), np.uint8)
    preprocessing = Preprocessing(frames=2, crop=(5, 6), scale=1.0, channel_order=order)
    gray = to_gray(to_clip(frames, preprocessing), preprocessing)
    assert (gray.shape, gray.dtype) == ((1, 1, 2, 5, 6), np.float32)
    expected = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    assert np.abs(gray[0, 0] - expected).max() <= 0.51, "but for OpenCV's rounding"
