"""Video files as streams of frames: reading MP4, AVI, GIF or a folder of pictures, writing MP4, GIF or pictures.

A frame is a uint8 array `[H, W, 3]`, RGB. Nothing here holds more than a few frames, except that a GIF is collected in
palette form until it is written. Every output file appears whole or not at all: it is written under a temporary name in
the same folder and renamed at the end.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from .staging import whole_file, whole_folder

try:
    import av
    import cv2
    from av.video.reformatter import ColorPrimaries, ColorRange, VideoReformatter
    from PIL import Image, ImageOps

    from .containers import missing_part, url
    from .decoding import Clock, Decoder, is_turned, open_film, to_rgb
except ImportError as error:  # pragma: no cover - depends on what is installed
    raise ImportError(
        f"clipsight.video needs the extra 'video' ({error}); install it with: pip install 'clipsight[video]'"
    ) from error

PICTURES = (".png", ".jpg", ".jpeg")
SYSTEM_FILES = r"\._.*|\.DS_Store|Thumbs\.db|desktop\.ini"
"""What macOS and Windows leave in folders that were looked at."""
MP4_HEADS = (b"ftyp", b"wide", b"mdat", b"free", b"skip")
"""Kinds of the first box of an MP4 or QuickTime file, at its byte 4."""
OTHER_HEADS = (b"RIFF", b"\x1aE\xdf\xa3", b"GIF8", b"FLV\x01", b"\x89PNG", b"\xff\xd8\xff")
"""First bytes of AVI, Matroska, GIF, FLV, PNG and JPEG."""
FOLDER_FPS = 25
"""Frame rate of a folder of pictures, which carries none."""
GIF_MAX_FPS = 50
"""Viewers slow a GIF down when a frame lasts less than 1/50 s; faster videos are thinned."""


class VideoError(ValueError):
    """A video that cannot be read or written; the message names the file, what was expected and what was found."""


class VideoReader:
    """Iterates over the frames of a video file or of a folder of pictures; each iteration starts at the first frame.

    Of several streams, covers and thumbnails are left out, and FFmpeg's choice is read. Frames are turned and mirrored
    as the file says, and lie over black where they have alpha. For their colors, see `decoding.to_rgb`.

    Args:
        path: a file that FFmpeg reads (MP4, AVI, GIF, ...), a PNG or JPEG picture, or a folder of those in natural
            order of their names; hidden files do not count.
        fps: overrides the frame rate and all time stamps; a folder without it plays at 25 frames/s.
        partial: use what can be decoded of a video that is cut off or damaged, instead of an error.

    Attributes:
        size: `(height, width)` in pixels, of the upright frame.
        fps: frames per second, a `Fraction` (the average one of a variable rate).
        frame_count: what the file promises, `None` where it promises nothing; good for a progress bar.
        decoded: frames of the latest iteration so far; after its end the true number of frames.
        span: when the latest frame starts and ends, in seconds from the start of the file, two `Fraction`.
        pixel_aspect: width / height of one pixel of the upright frame, kept for the MP4 that is written.
        cut_off: after an iteration with `partial`: whether frames were missing or damaged.

    Raises:
        VideoError: missing, empty, not a video, without a video stream, cut off or damaged, of high dynamic range, or
            frames of differing sizes.
    """

    def __init__(self, path: str | os.PathLike, fps: float | Fraction | None = None, partial: bool = False):
        self.path = Path(path)
        self.partial = partial
        self.cut_off = False
        self.decoded = 0
        self.pixel_aspect = Fraction(1)
        if fps is not None and not 0 < fps < math.inf:
            raise VideoError(f"video: fps must be positive, got {fps}")
        if not self.path.exists():
            raise VideoError(f"video: {self.path} does not exist")
        self._pictures = self._list_pictures()
        if self._pictures is not None:
            self.frame_count, own_fps = len(self._pictures), Fraction(FOLDER_FPS)
        else:
            own_fps = self._read_header()
        self._keeps_time = fps is None
        self.fps = Fraction(fps).limit_denominator(100_000) if fps else own_fps
        if not self.fps > 0:
            raise VideoError(f"video: fps must be at least 0.00001, got {fps}")
        with contextlib.closing(iter(self)) as frames:
            self.size: tuple[int, int] = next(frames).shape[:2]

    def __iter__(self) -> Iterator[np.ndarray]:
        size = None
        with contextlib.closing(self._decode_file() if self._pictures is None else self._read_pictures()) as frames:
            for index, (name, span, frame) in enumerate(frames):
                frame = over_black(frame) if frame.shape[2] == 4 else frame
                size = size or frame.shape[:2]
                if frame.shape[:2] != size:
                    raise VideoError(
                        f"video: all frames of {self.path} must have one size, {size[1]}x{size[0]} like the first, "
                        f"got {frame.shape[1]}x{frame.shape[0]} in {name or f'frame {index}'}"
                    )
                self.decoded = index + 1
                self.span = span if self._keeps_time else (index / self.fps, (index + 1) / self.fps)
                yield frame

    def _list_pictures(self) -> list[Path] | None:
        if not self.path.is_dir():
            return [self.path] if _is_still(self.path) else None
        try:
            found = list(self.path.iterdir())
        except OSError as error:
            raise VideoError(f"video: folder {self.path} cannot be read ({error.strerror})") from error
        pictures = [p for p in found if p.suffix.lower() in PICTURES and not p.name.startswith(".") and not p.is_dir()]
        if not pictures:
            raise VideoError(f"video: folder {self.path} must hold PNG or JPEG pictures, got none")
        return sorted(pictures, key=_natural)

    def _read_pictures(self):
        failed = []
        for index, path in enumerate(self._pictures):
            try:
                frame = read_picture(path)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                failed.append(f"{path.name} is not a readable picture ({error})")
                if not self.partial:
                    raise self._damaged(failed[0]) from error
            else:
                yield path.name, (index / self.fps, (index + 1) / self.fps), frame
        self._end(failed[0] if failed else None, len(self._pictures) - len(failed))

    def _open(self) -> tuple[av.container.InputContainer, av.VideoStream]:
        try:
            container, stream = open_film(self.path)
        except (av.FFmpegError, OSError) as error:
            try:
                with self.path.open("rb") as file:
                    head = file.read(8)
            except OSError as reason:
                raise VideoError(f"video: {self.path} cannot be read ({reason.strerror})") from error
            what = "is not a video"
            if head[4:] in MP4_HEADS:
                what = "is cut off: its index (moov), which stands at the end, is missing"
            elif head.startswith(OTHER_HEADS):
                what = "is cut off or damaged: 0 frames could be decoded"
            raise VideoError(f"video: {self.path} {what} ({getattr(error, 'strerror', error)})") from error
        if stream is None:
            container.close()
            raise VideoError(f"video: {self.path} has no video stream")
        return container, stream

    def _read_header(self) -> Fraction:
        container, stream = self._open()
        with container:
            self.frame_count = stream.frames or None
            if container.format.name == "gif" and stream.frames and stream.duration:
                # A GIF's delays are whole hundredths of a second: only their sum gives the rate (28/s, not 100/3).
                rate = stream.frames / (stream.duration * stream.time_base)
                return rate.limit_denominator(100 if rate > 1 else 100_000)
            return Fraction(stream.average_rate or stream.guessed_rate or FOLDER_FPS)

    def _decode_file(self):
        container, stream = self._open()
        with container:
            decoder, clock, reformatter = (
                Decoder(container, stream),
                Clock(container, stream, self.fps),
                VideoReformatter(),
            )
            decoded = 0
            for frame in decoder:
                if decoder.damage and not self.partial:
                    break
                if decoded == 0:
                    aspect = Fraction(stream.sample_aspect_ratio or 1)
                    self.pixel_aspect = 1 / aspect if is_turned(frame) else aspect
                try:
                    pixels = to_rgb(frame, reformatter)
                except (ValueError, av.FFmpegError) as error:
                    raise VideoError(f"video: {self.path} {error}") from error
                decoded += 1
                yield None, clock.span(frame), pixels
            damage = decoder.damage or missing_part(self.path, container, stream, decoder.packets)
        if damage and not self.partial:
            raise self._damaged(damage)
        self._end(damage, decoded)

    def _end(self, damage: str | None, decoded: int) -> None:
        self.cut_off = damage is not None
        if decoded == 0:
            raise VideoError(f"video: no frame of {self.path} can be decoded ({damage or 'the stream is empty'})")

    def _damaged(self, damage: str) -> VideoError:
        whole = sum(1 for _ in VideoReader(self.path, partial=True))
        return VideoError(
            f"video: {self.path} is cut off or damaged: {whole} frames could be decoded ({damage}); "
            "use what is there with --partial (Python: partial=True)"
        )


def _natural(path: Path) -> tuple[list, str]:
    """`frame9.png` comes before `Frame10.PNG`."""
    parts = re.split(r"([0-9]+)", path.name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], path.name


def _is_still(path: Path) -> bool:
    """Whether a file is one picture, or the two of a stereo camera; an animated one of any kind is a video."""
    if path.suffix.lower() not in PICTURES:
        return False
    try:
        with Image.open(path) as image:
            return image.format == "MPO" or not getattr(image, "is_animated", False)
    except (OSError, SyntaxError, ValueError):
        return False


def read_picture(path: str | os.PathLike) -> np.ndarray:
    """A picture upright, as its EXIF data say, of 8 bits: uint8 `[H, W, 3]`, RGB; `[H, W, 4]` where it has alpha.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: not a picture, cut off or damaged, or far too
            large.
    """
    with Image.open(path) as image:
        try:
            image.getexif()
        except (SyntaxError, ValueError, struct.error):
            pass  # damaged data say nothing
        else:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # grey of 16 bits, which Pillow would clip
            grey = np.uint8(np.asarray(image).clip(0, 65535) >> 8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))


class VideoWriter:
    """Context manager that writes frames `[H, W, 3]`, or `[H, W, 4]` with alpha, as one file that appears at the end.

    The suffix of `path` decides: `.mp4` (H.264, yuv420p), `.gif`, or none for a folder of PNG pictures. Only PNG keeps
    the alpha; the others show the frame over black. An odd height or width is padded by repeating the last row or
    column in MP4, which needs even sizes; `padded` tells. The colors of MP4 are those of BT.709, limited range, and
    say so.

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

    def write(self, frame: np.ndarray, span: tuple[Fraction, Fraction] | None = None) -> None:
        """Writes the next frame.

        Args:
            frame: uint8.
            span: when it starts and ends, in seconds; by default frame k starts at k / fps. Pictures carry no times.
        """
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
        self._put(frame, span or (self.count / self.fps, (self.count + 1) / self.fps))
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
        with av.open(url(temporary), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=writer.fps, options={"crf": "18", "preset": "veryfast"})
            stream.pix_fmt = "yuv420p"
            # A whole number of ticks for a constant rate, and short ones for any other.
            tick = stream.time_base = Fraction(1, writer.fps.numerator * -(-90_000 // writer.fps.numerator))
            stream.codec_context.time_base = tick
            stream.sample_aspect_ratio = writer.pixel_aspect
            for name in ("colorspace", "color_primaries", "color_trc"):
                setattr(stream.codec_context, name, ColorPrimaries.BT709)
            stream.codec_context.color_range = ColorRange.MPEG
            reformatter = VideoReformatter()

            def put(frame: np.ndarray, span: tuple[Fraction, Fraction]) -> None:
                bottom, right = frame.shape[0] % 2, frame.shape[1] % 2
                if bottom or right:
                    frame = cv2.copyMakeBorder(frame, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
                    writer.padded = True
                if writer.count == 0:
                    stream.height, stream.width = frame.shape[:2]
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                picture = reformatter.reformat(
                    picture, format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
                )
                picture.pts, picture.time_base = round(span[0] / tick), tick
                picture.duration = round((span[1] - span[0]) / tick)
                container.mux(stream.encode(picture))

            yield put
            container.mux(stream.encode(None))


@contextlib.contextmanager
def _gif_sink(writer: VideoWriter):
    pictures: list[Image.Image] = []
    starts: list[Fraction] = []
    end = Fraction(0)

    def put(frame: np.ndarray, span: tuple[Fraction, Fraction]) -> None:
        nonlocal end
        end = span[1]
        if not starts or span[0] - starts[-1] >= Fraction(1, GIF_MAX_FPS):
            starts.append(span[0])
            pictures.append(Image.fromarray(frame).quantize(256, method=Image.Quantize.FASTOCTREE, dither=0))

    with whole_file(writer.path) as temporary:
        yield put
        # A GIF counts hundredths of a second; rounding the times keeps the average rate.
        ends = [0, *(round(100 * start) for start in (*starts[1:], end))]
        durations = [10 * (b - a) for a, b in itertools.pairwise(ends)]
        pictures[0].save(temporary, save_all=True, append_images=pictures[1:], duration=durations, loop=0)


@contextlib.contextmanager
def _png_sink(writer: VideoWriter):
    target = writer.path
    names = os.listdir(target) if target.exists() else []
    foreign = [name for name in names if not re.fullmatch(rf"\d{{6,}}\.png|{SYSTEM_FILES}", name)]
    if foreign:
        raise VideoError(f"video: {target} must be a new folder or one of numbered PNG, got {foreign[0]} in it")
    with whole_folder(target) as temporary:
        yield lambda frame, span: (temporary / f"{writer.count:06d}.png").write_bytes(_png(frame))


def write_picture(path: str | os.PathLike, frame: np.ndarray) -> None:
    """Writes one RGB or RGBA frame as PNG, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(_png(frame))


def _png(frame: np.ndarray) -> np.ndarray:
    order = cv2.COLOR_RGBA2BGRA if frame.shape[2] == 4 else cv2.COLOR_RGB2BGR
    return cv2.imencode(".png", cv2.cvtColor(frame, order))[1]
