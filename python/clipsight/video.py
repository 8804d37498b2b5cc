"""Video files as streams of frames: reading MP4, AVI, GIF or a folder of pictures, writing MP4, GIF or pictures.

A frame is a uint8 array `[H, W, 3]`, RGB. Nothing here holds more than a few frames, except that a GIF is collected in
palette form until it is written. Every output file appears whole or not at all: it is written under a temporary name in
the same folder and renamed at the end.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

try:
    import av
    import cv2
    from PIL import Image
except ImportError as error:  # pragma: no cover - depends on what is installed
    raise ImportError(
        f"clipsight.video needs the extra 'video' ({error}); install it with: pip install 'clipsight[video]'"
    ) from error

PICTURES = (".png", ".jpg", ".jpeg")
FOLDER_FPS = 25
"""Frame rate of a folder of pictures, which carries none."""
GIF_MAX_FPS = 50
"""Viewers slow a GIF down when a frame lasts less than 1/50 s; faster videos are thinned."""


class VideoError(ValueError):
    """A video that cannot be read or written; the message names the file, what was expected and what was found."""


class VideoReader:
    """Iterates over the frames of a video file or of a folder of pictures; each iteration starts at the first frame.

    Args:
        path: a file that FFmpeg reads (MP4, AVI, GIF, ...), or a folder of PNG or JPEG pictures in natural order of
            their names.
        fps: overrides the frame rate; a folder without it plays at 25 frames/s.
        partial: use what can be decoded of a video that is cut off, instead of an error at its end.

    Attributes:
        size: `(height, width)` in pixels, after the rotation that phones note in the file.
        fps: frames per second, a `Fraction` (the average one of a variable rate).
        frame_count: what the file promises, `None` where it promises nothing; good for a progress bar.
        decoded: frames of the latest iteration so far; after its end the true number of frames.
        pixel_aspect: width / height of one pixel, kept for the MP4 that is written.
        cut_off: after an iteration with `partial`: whether frames were missing.

    Raises:
        VideoError: missing, empty, not a video, without a video stream, cut off, or frames of differing sizes.
    """

    def __init__(self, path: str | os.PathLike, fps: float | Fraction | None = None, partial: bool = False):
        self.path = Path(path)
        self.partial = partial
        self.cut_off = False
        self.decoded = 0
        self.pixel_aspect = Fraction(1)
        if fps is not None and not fps > 0:
            raise VideoError(f"video: fps must be positive, got {fps}")
        if not self.path.exists():
            raise VideoError(f"video: {self.path} does not exist")
        self._pictures = self._list_pictures() if self.path.is_dir() else None
        if self._pictures is not None:
            self.frame_count, own_fps = len(self._pictures), Fraction(FOLDER_FPS)
        else:
            own_fps = self._read_header()
        self.fps = Fraction(fps).limit_denominator(100_000) if fps else own_fps
        with contextlib.closing(iter(self)) as frames:
            self.size: tuple[int, int] = next(frames).shape[:2]

    def __iter__(self) -> Iterator[np.ndarray]:
        size = None
        with contextlib.closing(self._decode_pictures() if self._pictures else self._decode_file()) as frames:
            for index, (name, frame) in enumerate(frames):
                size = size or frame.shape[:2]
                if frame.shape[:2] != size:
                    raise VideoError(
                        f"video: all frames of {self.path} must have one size, {size[1]}x{size[0]} like the first, "
                        f"got {frame.shape[1]}x{frame.shape[0]} in {name or f'frame {index}'}"
                    )
                self.decoded = index + 1
                yield frame

    def _list_pictures(self) -> list[Path]:
        pictures = [p for p in self.path.iterdir() if p.suffix.lower() in PICTURES]
        if not pictures:
            raise VideoError(f"video: folder {self.path} must hold PNG or JPEG pictures, got none")
        return sorted(pictures, key=lambda p: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", p.name)])

    def _decode_pictures(self):
        for path in self._pictures:
            frame = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if frame is None:
                raise VideoError(f"video: {path} is not a readable picture")
            yield path.name, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def _open(self) -> av.container.InputContainer:
        try:
            container = av.open(str(self.path))
        except (av.FFmpegError, OSError) as error:
            with self.path.open("rb") as file:
                is_mp4 = file.read(12)[4:8] == b"ftyp"
            what = "is cut off: its index (moov), which stands at the end, is missing" if is_mp4 else "is not a video"
            raise VideoError(f"video: {self.path} {what} ({getattr(error, 'strerror', error)})") from error
        if not container.streams.video:
            container.close()
            raise VideoError(f"video: {self.path} has no video stream")
        return container

    def _read_header(self) -> Fraction:
        with self._open() as container:
            stream = container.streams.video[0]
            self.frame_count = stream.frames or None
            self.pixel_aspect = Fraction(stream.sample_aspect_ratio or 1)
            if container.format.name == "gif" and stream.frames and stream.duration:
                # A GIF's delays are whole hundredths of a second: only their sum gives the rate (28/s, not 100/3).
                return (stream.frames / (stream.duration * stream.time_base)).limit_denominator(100)
            return Fraction(stream.average_rate or stream.guessed_rate or FOLDER_FPS)

    def _decode_file(self):
        packets = decoded = 0
        damage = None
        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            try:
                for packet in container.demux(stream):
                    packets += packet.size > 0
                    for frame in packet.decode():
                        decoded += 1
                        yield None, _upright(frame)
            except av.FFmpegError as error:
                damage = f"{error.strerror}"
            damage = damage or self._missing_part(container, stream, packets)
        self.cut_off = damage is not None
        if decoded == 0:
            raise VideoError(f"video: no frame of {self.path} can be decoded ({damage or 'the stream is empty'})")
        if self.cut_off and not self.partial:
            raise VideoError(
                f"video: {self.path} is cut off or damaged: {decoded} frames could be decoded ({damage}); "
                "use what is there with --partial (Python: partial=True)"
            )

    def _missing_part(self, container, stream, packets: int) -> str | None:
        """What shows that the end of the file is not there, by the means of each format."""
        if container.format.name == "gif":
            return None if _ends_with_gif_trailer(self.path) else "the end mark of the GIF is missing"
        if "mp4" in container.format.name:  # the number of frames is no sign: an edit list may hide some
            end, size = max((e.pos + e.size for e in stream.index_entries), default=0), self.path.stat().st_size
            return f"its index names {end} bytes, there are {size}" if end > size else None
        # Others only promise a number of frames, and round it.
        short = packets < stream.frames - max(1, stream.frames // 50)
        return f"the file promises {stream.frames}" if short else None


def _upright(frame: av.VideoFrame) -> np.ndarray:
    pixels = frame.to_ndarray(format="rgb24")
    turns = round((frame.rotation or 0) / 90) % 4  # FFmpeg's rotation is counter-clockwise, like numpy's
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _ends_with_gif_trailer(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-min(64, path.stat().st_size), os.SEEK_END)
        return file.read().rstrip(b"\0").endswith(b";")


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block ends well, and vanishes when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class VideoWriter:
    """Context manager that writes frames `[H, W, 3]`, or `[H, W, 4]` with alpha, as one file that appears at the end.

    The suffix of `path` decides: `.mp4` (H.264, yuv420p), `.gif`, or none for a folder of PNG pictures. Only PNG keeps
    the alpha; the others show the frame over black. An odd height or width is padded by repeating the last row or
    column in MP4, which needs even sizes; `padded` tells.

    Raises:
        VideoError: another suffix, an impossible frame rate, a frame of another size than the first, or no frame.
    """

    def __init__(self, path: str | os.PathLike, fps: float | Fraction, pixel_aspect: Fraction = Fraction(1)):
        self.path = Path(path)
        self.fps = Fraction(fps).limit_denominator(100_000)
        self.pixel_aspect = pixel_aspect
        self.padded = False
        self.count = 0
        self._shape: tuple[int, ...] | None = None
        sinks = {".mp4": _mp4_sink, ".gif": _gif_sink, "": _png_sink}
        if self.path.suffix.lower() not in sinks:
            raise VideoError(f"video: {self.path} must end in .mp4 or .gif, or have no suffix (a folder of PNG)")
        if not self.fps > 0:
            raise VideoError(f"video: fps must be positive, got {fps}")
        self._sink = sinks[self.path.suffix.lower()](self)

    def __enter__(self) -> VideoWriter:
        self._put = self._sink.__enter__()
        return self

    def write(self, frame: np.ndarray) -> None:
        shape = self._shape or frame.shape
        if frame.ndim != 3 or frame.shape[2] not in (3, 4) or frame.dtype != np.uint8 or 0 in frame.shape:
            raise VideoError(f"video: a frame must be uint8 [H, W, 3 or 4], got {frame.dtype} {list(frame.shape)}")
        if frame.shape != shape:
            raise VideoError(
                f"video: all frames must have the shape of the first, {list(shape)}, got {list(frame.shape)}"
            )
        self._shape = shape
        if frame.shape[2] == 4 and self.path.suffix:
            frame = over_black(frame)
        self._put(frame)
        self.count += 1

    def __exit__(self, kind, error, trace) -> None:
        if kind is None and self.count == 0:
            kind, error = VideoError, VideoError(f"video: no frame was written to {self.path}")
            with contextlib.suppress(VideoError):
                self._sink.__exit__(kind, error, None)
            raise error
        self._sink.__exit__(kind, error, trace)


def over_black(frame: np.ndarray) -> np.ndarray:
    """A frame with alpha `[H, W, 4]` over black `[H, W, 3]`."""
    alpha = cv2.merge([frame[..., 3]] * 3)
    return cv2.multiply(np.ascontiguousarray(frame[..., :3]), alpha, scale=1 / 255)


@contextlib.contextmanager
def _mp4_sink(writer: VideoWriter):
    # faststart: the index stands in front, so that a browser can start to play while it loads
    with whole_file(writer.path) as temporary:  # noqa: SIM117 - the file is renamed after the container is closed
        with av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=writer.fps, options={"crf": "18", "preset": "veryfast"})
            stream.pix_fmt = "yuv420p"
            stream.time_base = 1 / writer.fps
            stream.sample_aspect_ratio = writer.pixel_aspect

            def put(frame: np.ndarray) -> None:
                bottom, right = frame.shape[0] % 2, frame.shape[1] % 2
                if bottom or right:
                    frame = cv2.copyMakeBorder(frame, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
                    writer.padded = True
                if writer.count == 0:
                    stream.height, stream.width = frame.shape[:2]
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                picture.pts, picture.time_base = writer.count, 1 / writer.fps
                container.mux(stream.encode(picture))

            yield put
            container.mux(stream.encode(None))


@contextlib.contextmanager
def _gif_sink(writer: VideoWriter):
    keep_every = -(-writer.fps // GIF_MAX_FPS)
    pictures: list[Image.Image] = []

    def put(frame: np.ndarray) -> None:
        if writer.count % keep_every == 0:
            pictures.append(Image.fromarray(frame).quantize(256, method=Image.Quantize.FASTOCTREE, dither=0))

    with whole_file(writer.path) as temporary:
        yield put
        # A GIF counts hundredths of a second; rounding the end times keeps the average rate.
        ends = [round(100 * keep_every * i / writer.fps) for i in range(len(pictures) + 1)]
        durations = [10 * (b - a) for a, b in itertools.pairwise(ends)]
        pictures[0].save(temporary, save_all=True, append_images=pictures[1:], duration=durations, loop=0)


@contextlib.contextmanager
def _png_sink(writer: VideoWriter):
    target = writer.path
    foreign = [p.name for p in target.iterdir() if not re.fullmatch(r"\d{6,}\.png", p.name)] if target.exists() else []
    if foreign:
        raise VideoError(f"video: {target} must be a new folder or one of numbered PNG, got {foreign[0]} in it")
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        yield lambda frame: write_picture(temporary / f"{writer.count:06d}.png", frame)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_picture(path: str | os.PathLike, frame: np.ndarray) -> None:
    """Writes one RGB or RGBA frame as PNG, whole or not at all."""
    order = cv2.COLOR_RGBA2BGRA if frame.shape[2] == 4 else cv2.COLOR_RGB2BGR
    data = cv2.imencode(".png", cv2.cvtColor(frame, order))[1]
    with whole_file(path) as temporary:
        temporary.write_bytes(data)
