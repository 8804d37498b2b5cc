"""Ground-truth masks of a video: which of its pixels belong to what the class is about."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..video import VideoReader
from ..windows import Geometry

SUFFIXES = (".npz", ".png", "")


class Masks:
    """The masks of one video, at its own resolution.

    Args:
        path: `.npz` with one array `[F, H, W]` (or `[H, W]`), non-zero where the object is; a PNG, which holds for
            every frame; or a folder of PNG pictures, one for each source frame, in natural order of their names.

    Raises:
        ValueError: not readable as that.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if self.path.is_dir():
            self.frames = np.stack([frame.any(-1) for frame in VideoReader(self.path)])
        elif self.path.suffix == ".npz":
            self.frames = _from_npz(self.path)
        else:
            self.frames = _from_picture(self.path)
        self.still = len(self.frames) == 1

    def check(self, size: Sequence[int], count: int | None = None) -> None:
        """Raises ValueError where they do not fit a video of `count` frames, if known, of `size` (height, width)."""
        right_count = count in (None, len(self.frames)) or self.still
        if self.frames.shape[1:] != tuple(size) or not right_count:
            expected = f"[{count or 'F'}, {size[0]}, {size[1]}] like the video's frames, or one frame of that size"
            raise ValueError(f"masks: {self.path} must be {expected}, got {list(self.frames.shape)}")

    def clip(self, source_frames: Sequence[int], geometry: Geometry) -> np.ndarray:
        """The masks of some source frames where the network looked: bool `[T, h, w]` at clip resolution."""
        last = len(self.frames) - 1
        chosen = (self.frames[min(index, last)] for index in source_frames)
        return np.stack([geometry.crop_frame(np.uint8(255) * mask) > 127 for mask in chosen])


def find_masks(folder: Path, video: str) -> Path | None:
    """The masks of a video in a folder of them: its name without the suffix, as `.npz`, `.png` or a folder."""
    paths = (folder / f"{Path(video).stem}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.exists()), None)


def _from_npz(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as file:
            names = file.files
            frames = file[names[0]] if len(names) == 1 else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"masks: {path} must be a whole .npz file ({error})") from error
    if frames is None or frames.ndim not in (2, 3) or not frames.size:
        got = f"arrays {names}" if frames is None else f"{list(frames.shape)}"
        raise ValueError(f"masks: {path} must hold one array [F, H, W] or [H, W], got {got}")
    return (frames if frames.ndim == 3 else frames[None]) != 0


def _from_picture(path: Path) -> np.ndarray:
    import cv2

    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(f"masks: {path} must be a readable picture")
    return picture.any(-1)[None]
