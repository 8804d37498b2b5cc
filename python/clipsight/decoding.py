"""A video stream as FFmpeg's player shows it: which stream, which frames, when, which way up, and in what colors."""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from av.format import Flags
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from .containers import open_container

COVER = Disposition.attached_pic | Disposition.timed_thumbnails
UNSPECIFIED = (2, 3)
"""AVColorSpace of frames that do not name their matrix."""
HDR = {16: "PQ", 18: "HLG"}
"""AVColorTransferCharacteristic of high dynamic range."""
TO_SDR = (
    "ffmpeg -i IN -vf zscale=t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=hable,"
    "zscale=t=bt709:m=bt709:r=tv,format=yuv420p OUT"
)
JUMP = 10
"""More seconds than that between two frames are a jump, as for the program ffmpeg."""
TURNS = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))
"""Display matrices of quarter turns, counter-clockwise."""
PROBED_PACKETS = 250
"""How far a file with several streams is read to see which of them move."""
DEMUXER_ERRORS = 100
"""The demuxer may fail so often in a row before the rest of a file is given up."""


def open_film(path: str | os.PathLike) -> tuple[av.container.InputContainer, av.VideoStream | None]:
    """The opened file, and the stream that FFmpeg's player would choose of those that are no cover and no thumbnails.

    Not every cover is marked as one: a stream of one picture beside one that moves is no film, either.

    Raises:
        av.FFmpegError, OSError: not a video.
    """
    container = open_container(path)
    films = [stream for stream in container.streams.video if not stream.disposition & COVER and stream.codec_context]
    if len(films) > 1:
        counts: Counter[int] = Counter()
        with contextlib.suppress(av.FFmpegError, IndexError), open_container(path) as probe:
            for packet in itertools.islice(probe.demux(probe.streams.video), PROBED_PACKETS):
                counts[packet.stream_index] += packet.size > 0
        films = [stream for stream in films if counts[stream.index] > 1] or films
    best = container.streams.best("video")
    if best in films:
        return container, best
    return container, max(films, key=lambda stream: stream.width * stream.height, default=None)


class Decoder:
    """Iterates over the frames of a stream; what is damaged is left out, and the next frames follow, as in a player.

    Attributes:
        packets: how many were read, without empty ones, which repeat a picture.
        damage: the first sign that something is damaged, or None. What comes before the first key frame is none: a
            recording may begin anywhere.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream):
        self.container, self.stream = container, stream
        self.packets = 0
        self.damage: str | None = None
        self._started = False

    def __iter__(self) -> Iterator[av.VideoFrame]:
        # Decoding frames at once, PyAV drops an error that follows a frame, and the frames that follow an error.
        self.stream.thread_type = "SLICE"
        for packet in self._demux():
            if packet.size:  # a decoder takes an empty packet for the end
                self.packets += 1
                self._started |= packet.is_keyframe
                if packet.is_corrupt and self.container.format.name != "mpegts":  # there, also where recordings meet
                    self._note("a part of a frame is missing")
                yield from self._decode(packet)
        yield from self._decode(None)

    def _demux(self) -> Iterator[av.Packet]:
        errors = 0
        while errors < DEMUXER_ERRORS:
            try:
                for packet in self.container.demux(self.stream):
                    errors = 0
                    yield packet
                return
            except IndexError:  # PyAV's, at the end of a file in which another stream turned up
                return
            except av.FFmpegError as error:
                self._started = True
                self._note(error.strerror)
                errors += 1

    def _decode(self, packet: av.Packet | None) -> Iterator[av.VideoFrame]:
        try:
            frames = self.stream.decode(packet)
        except av.FFmpegError as error:
            self._note(error.strerror)
            return
        for frame in frames:
            if frame.is_corrupt:
                self._note("a frame is damaged")
            yield frame

    def _note(self, damage: str) -> None:
        if self._started:
            self.damage = self.damage or damage


class Clock:
    """When each frame is shown, in seconds from the start of the file, from the time stamps of a stream.

    A stamp is rounded to whole ticks of the stream; within one, where it is short, of frame k of a constant rate it
    stands for k / fps. A frame without a stamp, or with one that is not later than the last, comes 1 / fps after that;
    so does what follows a jump in a format that allows for recordings in a row, as transport streams do.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream, fps: Fraction):
        self.fps, self.tick = fps, Fraction(stream.time_base)
        self.origin = Fraction(container.start_time or 0, av.time_base)
        self.may_jump = bool(container.format.flags & Flags.ts_discont.value)
        self.last: Fraction | None = None

    def span(self, frame: av.VideoFrame) -> tuple[Fraction, Fraction]:
        """Start and end of the next frame, in seconds."""
        stamp = frame.dts if frame.pts is None else frame.pts
        start = None if stamp is None else stamp * self.tick - self.origin
        if self.last is None:
            start = max(start or Fraction(0), Fraction(0))
            if start < 1 / self.fps:  # the sound may start a little earlier, by the delay of its codec
                self.origin += start
                start = Fraction(0)
        else:
            next_one = self.last + 1 / self.fps
            if self.may_jump and start is not None and abs(start - next_one) > JUMP:
                self.origin += start - next_one
                start = next_one
            if start is None or start <= self.last:
                start = next_one
        snapped, lasts = self._snap(start), (frame.duration or 0) * self.tick
        self.last = start = snapped if self.last is None or snapped > self.last else start
        return start, start + (self._snap(lasts) or lasts or 1 / self.fps)

    def _snap(self, seconds: Fraction) -> Fraction:
        regular = round(seconds * self.fps) / self.fps
        is_fine = self.tick < 1 / (4 * self.fps)  # else a tick says more than an average rate
        return regular if is_fine and abs(seconds - regular) < self.tick else seconds


def is_turned(frame: av.VideoFrame) -> bool:
    """Whether the frame is shown with its columns as rows."""
    a, b, c, d = _matrix(frame)
    return abs(b) + abs(c) > abs(a) + abs(d)


def to_rgb(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """The upright frame, uint8 `[H, W, 3]`, RGB; `[H, W, 4]` where it has alpha.

    The frame names its matrix and range. Where it names no matrix, that of BT.709 holds for HD (1280 columns or more,
    or more than 576 rows), that of BT.601 for less, as in players. Primaries are not converted.

    Args:
        frame: as it was decoded.
        reformatter: one for all frames of a stream, which is far quicker than one for each.

    Raises:
        ValueError: high dynamic range (PQ or HLG), whose values are no colors of a usual screen.
    """
    if frame.color_trc in HDR:
        raise ValueError(f"must have standard dynamic range, got {HDR[frame.color_trc]}; convert it with: {TO_SDR}")
    form = frame.format
    alpha = form.has_palette or any(component.is_alpha for component in form.components)
    is_hd = frame.width >= 1280 or frame.height > 576
    source = {"src_colorspace": "ITU709" if is_hd else "ITU601"} if frame.colorspace in UNSPECIFIED else {}
    colors = reformatter.reformat(frame, format="rgba" if alpha else "rgb24", **({} if form.is_rgb else source))
    pixels = colors.to_ndarray()
    a, b, c, d = _matrix(frame)
    if is_turned(frame):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """The linear part of the display matrix: a pixel (x, y) is shown at (a x + c y, b x + d y)."""
    try:
        stored = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # beside it there is something that PyAV does not know, as the EXIF data of a JPEG: no mirroring
        return TURNS[round(frame.rotation / 90) % 4]
    if stored is None:
        return 1, 0, 0, 1
    a, b, _, c, d = struct.unpack("5i", bytes(stored)[:20])
    return a, b, c, d
