"""Colouring and writing video, in milliseconds per frame at 340x256; the baseline is plain NumPy with matplotlib's jet.

python -m benchmarks.bench_render [VIDEO]
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from benchmarks.measure import interleaved, row
from matplotlib import colormaps

from clipsight.preprocessing import Preprocessing
from clipsight.render import Renderer
from clipsight.video import VideoReader, VideoWriter
from clipsight.windows import Geometry, Track, minmax

SIZE = (256, 340)
FRAMES = 150


def rows(video: str | None = None) -> Iterator[dict]:
    """One row per case; every result is compared with the baseline's before it is timed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(video) if video else _panning_video(Path(folder) / "pan.mp4")
        reader = VideoReader(path)
        geometry = Geometry.of(Preprocessing(resize=reader.size, crop=reader.size), reader.size)
        cropped = Geometry.of(Preprocessing(resize=(128, 171), crop=(112, 112)), reader.size)
        frame = next(iter(reader))
        rng = np.random.default_rng(0)
        small = minmax(cv2.resize(rng.random((5, 7), np.float32), (112, 112), interpolation=cv2.INTER_CUBIC), 0, 1)
        full = cv2.resize(small, reader.size[::-1], interpolation=cv2.INTER_LINEAR)

        renderer = Renderer(geometry)
        _check(renderer.heat(frame, full), _plain_heat(frame, full))
        times = interleaved(lambda: renderer.heat(frame, full), lambda: _plain_heat(frame, full), 60)
        yield _case("colour and blend a full-size map", *times, "NumPy + matplotlib jet", 1000)

        in_crop = Renderer(cropped)
        region = cropped.region
        inner = tuple(slice(s.start + 2, s.stop - 2) for s in region)
        expected = _plain_crop_heat(frame, small, cropped)
        _check(in_crop.heat(frame, small)[inner], expected[inner])
        times = interleaved(lambda: in_crop.heat(frame, small), lambda: _plain_crop_heat(frame, small, cropped), 60)
        yield _case("undo crop and resize, colour and blend", *times, "NumPy + matplotlib jet", 1000)

        track = Track()
        track.add(0, np.broadcast_to(small, (FRAMES, *small.shape)))

        def ours() -> int:
            return _write(Path(folder) / "ours.mp4", reader, lambda f, i: in_crop.heat(f, minmax(track.at(i, 2), 0, 1)))

        def baseline() -> int:
            return _write(Path(folder) / "plain.mp4", reader, lambda f, i: _plain_crop_heat(f, small, cropped))

        count = ours()
        assert count == baseline() == sum(1 for _ in reader)
        pair = zip(VideoReader(Path(folder) / "ours.mp4"), VideoReader(Path(folder) / "plain.mp4"), strict=True)
        for one, other in itertools.islice(pair, 0, None, 29):
            difference = np.abs(np.int16(one[inner]) - np.int16(other[inner])).mean()
            assert difference < 5, f"the decoded videos differ by {difference}"
        times = [[t / count for t in side] for side in interleaved(ours, baseline, 5, warmup=0)]
        yield _case("decode, colour, H.264", *times, "the same with NumPy + matplotlib jet", 200)


def _case(name: str, ours: list, baseline: list, what: str, must_reach: int) -> dict:
    result = row(f"{name} (ms per frame, {SIZE[1]}x{SIZE[0]})", ours, baseline, what)
    speed = round(1000 / result["ours_ms"])
    return result | {"must_reach": f">= {must_reach} frames/s", "met": speed >= must_reach, "frames_per_s": speed}


def _plain_heat(frame: np.ndarray, map: np.ndarray) -> np.ndarray:
    colours = colormaps["jet"](map)[..., :3] * 255
    return np.rint(0.5 * frame + 0.5 * colours).astype(np.uint8)


def _plain_crop_heat(frame: np.ndarray, map: np.ndarray, geometry: Geometry) -> np.ndarray:
    out = np.rint(0.55 * frame).astype(np.uint8)
    out[geometry.region] = _plain_heat(frame[geometry.region], geometry.to_region(map))  # placement: test_windows.py
    return out


def _check(ours: np.ndarray, expected: np.ndarray) -> None:
    """Entries of jet differ from their neighbours by up to 4 levels, blended by half; two entries are allowed."""
    difference = np.abs(np.int16(ours) - np.int16(expected))
    assert difference.max() <= 5, f"colours differ by up to {difference.max()} levels"
    assert difference.mean() < 1, f"colours differ by {difference.mean()} levels on average"


def _write(path: Path, reader: VideoReader, colour) -> int:
    with VideoWriter(path, reader.fps) as writer:
        for index, frame in enumerate(reader):
            writer.write(colour(frame, index))
    return writer.count


def _panning_video(path: Path) -> Path:
    """A smooth texture that pans, with some noise: about as hard to compress as filmed video."""
    rng = np.random.default_rng(1)
    coarse = cv2.resize(rng.random((40, 70, 3), np.float32), (680, 400), interpolation=cv2.INTER_CUBIC)
    with VideoWriter(path, 30) as writer:
        for i in range(FRAMES):
            view = coarse[i // 2 : i // 2 + SIZE[0], 2 * i : 2 * i + SIZE[1]]
            noisy = 255 * view + rng.normal(0, 2, view.shape)
            writer.write(noisy.clip(0, 255).astype(np.uint8))
    return path


if __name__ == "__main__":
    for result in rows(*sys.argv[1:2]):
        print(json.dumps(result), flush=True)
