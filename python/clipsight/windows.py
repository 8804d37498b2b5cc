"""A long video as overlapping clips, and the way back: from maps per clip to one map per source frame.

    source frames --every stride-th--> sampled frames --resize, crop--> windows [1, 3, T, H, W] --network--> raw maps
    source frames <--in time, linear-- one value range <--triangular weights-- sampled maps [M, H, W] <-----'

Sizes are `(height, width)` in pixels; maps stay at clip resolution until a frame is drawn.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .layouts import OURS, order
from .preprocessing import LUMA, Preprocessing
from .video import VideoError

IN_MEMORY = 4 << 20
"""Bytes of maps that are held without a file."""


@dataclass(frozen=True)
class Geometry:
    """Where the network's crop lies in the source frame."""

    source: tuple[int, int]
    resized: tuple[int, int]
    crop: tuple[int, int]

    @classmethod
    def of(cls, preprocessing: Preprocessing, source: tuple[int, int]) -> Geometry:
        """Raises `VideoError` where the crop is larger than the resized frame."""
        try:
            resized = preprocessing.resized(source)
        except ValueError as error:
            raise VideoError(str(error)) from error
        return cls(tuple(source), tuple(resized), tuple(preprocessing.crop))

    @property
    def offset(self) -> tuple[int, int]:
        """Top and left of the centre crop in the resized frame (rounded as torchvision does)."""
        return tuple(round((full - part) / 2) for full, part in zip(self.resized, self.crop, strict=True))

    @property
    def region(self) -> tuple[slice, slice]:
        """Rows and columns of the source whose pixel centres the network saw."""
        slices = []
        for full, resized, part, offset in zip(self.source, self.resized, self.crop, self.offset, strict=True):
            scale = full / resized
            first, last = math.ceil(offset * scale - 0.5), math.floor((offset + part) * scale - 0.5)
            slices.append(slice(max(first, 0), min(last, full - 1) + 1))
        return tuple(slices)

    @property
    def covers_frame(self) -> bool:
        return all(s.stop - s.start == full for s, full in zip(self.region, self.source, strict=True))

    def crop_frame(self, frame: np.ndarray) -> np.ndarray:
        """Source frame uint8 `[H, W, 3]` -> what the network sees, uint8 `[h, w, 3]`."""
        if self.resized != self.source:
            frame = cv2.resize(frame, self.resized[::-1], interpolation=cv2.INTER_LINEAR)
        top, left = self.offset
        return frame[top : top + self.crop[0], left : left + self.crop[1]]

    def to_region(self, map: np.ndarray) -> np.ndarray:
        """A map `[h, w]` at clip resolution, float32 or uint8 -> the same at source resolution, over `region`."""
        rows, columns = self.region
        # Pixel centres: crop coordinate = (source + 0.5) * resized / full - 0.5 - offset, linear in the source's.
        matrix = np.zeros((2, 3))
        for axis, part in ((0, columns), (1, rows)):
            scale = self.resized[1 - axis] / self.source[1 - axis]
            matrix[axis, axis] = scale
            matrix[axis, 2] = (part.start + 0.5) * scale - 0.5 - self.offset[1 - axis]
        size = (columns.stop - columns.start, rows.stop - rows.start)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(map, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)


def to_clip(frames: Iterable[np.ndarray], preprocessing: Preprocessing, layout: str = OURS) -> np.ndarray:
    """Cropped RGB frames uint8 `[h, w, 3]` -> normalised clip float32 `[1, 3, T, h, w]`, or in another layout.

    One channel, their luma, where the preprocessing is that of gray clips.
    """
    clip = np.stack(list(frames)).transpose(3, 0, 1, 2)[None]
    if preprocessing.channels == 1:
        clip = _luma(clip, LUMA)
    elif preprocessing.channel_order == "BGR":
        clip = clip[:, ::-1]
    mean, std = (np.float32(v).reshape(1, -1, 1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    clip = (clip * np.float32(preprocessing.scale) - mean) / std
    return np.ascontiguousarray(clip.transpose(order(OURS, layout)))


def to_gray(clip: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """What a network of one channel sees of a clip `[1, 3, T, h, w]`: the luma of its channels `[1, 1, T, h, w]`."""
    return clip if clip.shape[1] == 1 else _luma(clip, LUMA if preprocessing.channel_order == "RGB" else LUMA[::-1])


def for_network(clip: np.ndarray, preprocessing: Preprocessing, channels: int, layout: str = OURS) -> np.ndarray:
    """A clip `[1, 3, T, h, w]` as a network of 3 channels, or of 1, takes it in its own layout."""
    clip = to_gray(clip, preprocessing) if channels == 1 else clip
    return np.ascontiguousarray(clip.transpose(order(OURS, layout)))


def _luma(clip: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    return np.tensordot(np.float32(weights), clip, (0, 1))[:, None]


@dataclass(frozen=True)
class Window:
    """One clip of a longer video.

    Attributes:
        start: index of its first frame among the sampled frames.
        used: how many of its T frames are real; fewer where a short video was repeated.
        clip: float32 `[1, 3, T, h, w]`, of `to_clip`; where whole frames were asked for, uint8 `[1, T, H, W, 3]`.
    """

    start: int
    used: int
    clip: np.ndarray


def sliding_windows(
    frames: Iterable[np.ndarray],
    preprocessing: Preprocessing,
    step: int | None = None,
    loop: bool = False,
    whole: bool = False,
    layout: str = OURS,
) -> Iterator[Window]:
    """Cuts a stream of source frames into windows of T sampled frames; only T cropped (or whole) frames are held.

    A window starts every `step` sampled frames (default: half a window), the last one ends with the last sampled frame.

    Args:
        frames: source frames, uint8 `[H, W, 3]`.
        preprocessing: clip length T, stride, geometry and normalisation.
        step: sampled frames from one window to the next, 1 to T.
        loop: repeat a video that is shorter than T sampled frames, instead of an error.
        whole: give the frames as they are, for a network that prepares them itself.
        layout: the order of the clip's axes, as in the manifest's `input.layout`.

    Raises:
        VideoError: too few frames, or `step` out of range.
    """
    length, stride = preprocessing.frames, preprocessing.stride
    step = default_step(length) if step is None else step
    if not 1 <= step <= length:
        raise VideoError(f"windows: step must be 1 to {length} (the clip's frames), got {step}")
    geometry, held, count, emitted = None, deque(maxlen=length), 0, 0

    def clip(chosen: Iterable[np.ndarray]) -> np.ndarray:
        return np.stack(list(chosen))[None] if whole else to_clip(chosen, preprocessing, layout)

    for index, frame in enumerate(frames):
        if index % stride:
            continue
        geometry = geometry or Geometry.of(preprocessing, frame.shape[:2])
        held.append((frame if whole else geometry.crop_frame(frame)).copy())
        count += 1
        if count >= length and (count - length) % step == 0:
            emitted = count
            yield Window(count - length, length, clip(held))
    if count == 0 or (count < length and not loop):
        source = f" = {(length - 1) * stride + 1} source frames at stride {stride}" if stride > 1 else ""
        raise VideoError(
            f"windows: a clip needs {length} frames{source}, got {count}; "
            "repeat the short video with --loop (Python: loop=True)"
        )
    if count < length:
        yield Window(0, count, clip(held[i % count] for i in range(length)))
    elif emitted < count:
        yield Window(count - length, length, clip(held))


def default_step(length: int) -> int:
    """Half a window of `length` frames: every frame but the first and last few is seen twice."""
    return max(length // 2, 1)


def triangle(length: int) -> np.ndarray:
    """Blending weights of a window's frames, highest in the middle, positive at both ends: float32 `[length]`."""
    index = np.arange(length)
    return np.float32(np.minimum(index + 1, length - index))


class Track:
    """Maps of all sampled frames, blended from overlapping windows with triangular weights.

    Frames that no later window reaches are held as bytes, at clip resolution; of a long video in a temporary file.

    Args:
        folder: where that file goes; it has no name, and vanishes with the track. By default that of the system.
    """

    def __init__(self, folder: str | os.PathLike | None = None) -> None:
        self._folder = Path(folder or tempfile.gettempdir())
        self._done = tempfile.SpooledTemporaryFile(dir=folder)  # noqa: SIM115 - closed with the track
        weakref.finalize(self, self._done.close)
        self._count = 0  # frames in there
        self._open: deque[np.ndarray] = deque()  # sums of those behind them
        self._weights: deque[float] = deque()
        self._range: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return self._count + len(self._open)

    def add(self, start: int, maps: np.ndarray) -> None:
        """Adds the maps `[..., T, h, w]` of the window that starts at sampled frame `start`, in the order of starts.

        Raises:
            VideoError: the folder has no room for the maps.
        """
        while self._count < start:
            self._close()
        maps = np.moveaxis(np.asarray(maps), -3, 0)
        for index, (weight, map) in enumerate(zip(triangle(len(maps)), maps, strict=True), start - self._count):
            if index == len(self._open):
                self._open.append(np.zeros(map.shape, np.float32))
                self._weights.append(0.0)
            self._open[index] += weight * map
            self._weights[index] += float(weight)

    def __getitem__(self, index: int) -> np.ndarray:
        """Blended maps `[..., h, w]` of one sampled frame, to be read only."""
        if not 0 <= index < len(self):
            raise IndexError(f"windows: a frame must be 0 to {len(self) - 1}, got {index}")
        if index >= self._count:
            index -= self._count
            return self._open[index] / np.float32(self._weights[index])
        like = self._open[0]
        self._done.seek(index * like.nbytes)
        return np.frombuffer(self._done.read(like.nbytes), np.float32).reshape(like.shape)

    def _close(self) -> None:
        """Moves the first open frame to the closed ones."""
        map = self[self._count]
        self._range = _wider(self._range, map)
        try:
            self._done.seek(0, os.SEEK_END)
            self._done.write(map.tobytes())
            if self._done.tell() > IN_MEMORY:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._done.rollover()
        except OSError as error:
            with contextlib.suppress(OSError):  # of what could not be written before either
                self._done.close()
            each, number = map.nbytes / 1e6, self._count
            raise VideoError(
                f"windows: {self._folder} must have room for the maps, {each:.2f} MB for each frame that the network "
                f"sees; it was full at frame {number} ({error})"
            ) from error
        self._count += 1
        self._open.popleft()
        self._weights.popleft()

    def at(self, source_frame: int, stride: int) -> np.ndarray:
        """Maps `[..., h, w]` of a source frame: linear in time between the sampled ones, constant after the last."""
        index, rest = divmod(source_frame, stride)
        if index >= len(self) - 1:
            return self[len(self) - 1]
        here = self[index]
        return here if rest == 0 else here + np.float32(rest / stride) * (self[index + 1] - here)

    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest value over the whole video, each `[...]` like one map without its h and w."""
        found = self._range
        for index in range(self._count, len(self)):
            found = _wider(found, self[index])
        return found


def _wider(found: tuple[np.ndarray, np.ndarray] | None, map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The range `found` that takes in a further map."""
    low, high = map.min(axis=(-2, -1)), map.max(axis=(-2, -1))
    return (low, high) if found is None else (np.minimum(found[0], low), np.maximum(found[1], high))


def minmax(maps: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Maps `[..., h, w]` scaled so that `low` is 0 and `high` is 1 (each `[...]`); a constant map gives zeros."""
    low, high = (np.asarray(v, np.float32)[..., None, None] for v in (low, high))
    constant = high - low <= 1e-6 * np.maximum(np.abs(low), np.abs(high))
    return np.where(constant, np.float32(0), np.clip((maps - low) / np.where(constant, 1, high - low), 0, 1))
