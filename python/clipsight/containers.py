"""Whether a video file is all there, by what each format says of its own structure and length."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av

END_MARKS = {"mjpeg": b"\xff\xd9", "jpeg_pipe": b"\xff\xd9", "apng": b"IEND\xaeB`\x82"}
"""What files of these formats end with."""
UNFINISHED = (0, 2**32 - 1)
"""Size of a RIFF chunk to which the recorder did not come back."""
SEGMENT, CLUSTER, CHECK_SUM = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75", b"\xbf"
"""Elements of Matroska: all that follows the header; some seconds of frames; of what follows it in the same element."""
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
"""Marks the properties of a WMV file."""
OPEN = (SEGMENT, CLUSTER)
"""Live recordings do not give their sizes."""


def url(path: str | os.PathLike) -> str:
    """A path as FFmpeg takes it literally: no protocol, option or number pattern is read out of the name."""
    return f"file:{os.path.abspath(path)}"


def open_container(path: str | os.PathLike) -> av.container.InputContainer:
    """A file opened to be read, whatever its name is and in whatever encoding its title.

    Raises:
        av.FFmpegError, OSError: not a video.
    """
    return av.open(url(path), container_options={"pattern_type": "none"}, metadata_errors="replace")


def missing_part(
    path: Path, container: av.container.InputContainer, stream: av.VideoStream, packets: int
) -> str | None:
    """What shows that a part of a file is not there, or not readable; None where the video is all there.

    Args:
        path: of the file.
        container, stream: opened, and read to the end.
        packets: how many the stream had, without empty ones.
    """
    name, size = container.format.name, path.stat().st_size
    half_a_frame = 1 / (2 * (stream.average_rate or 25))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if name == "gif":
            return None if _gif_is_whole(data) else "the end mark of the GIF is missing"
        if name in END_MARKS:
            is_whole = data[-4096:].rstrip(b"\0").endswith(END_MARKS[name])
            return None if is_whole else "the end mark of the last picture is missing"
        if "matroska" in name:
            end, broken = _end_of_elements(data)
            if broken:
                return f"it is damaged at byte {end}"
            if end <= size or (container.duration and _reaches(path, container, half_a_frame)):
                return None  # at most its index is missing
            return f"it should have {end} bytes, there are {size}"
        if name == "asf":
            end = _end_of_asf(data)
            return f"it should have {end} bytes, there are {size}" if end > size else None
        if name == "flv":
            return None if _reaches(path, container, 0.5) else f"it should last {container.duration / 1e6:.1f} s"
        if "mp4" in name or name == "avi":
            # The promised number of frames is no sign: edit lists hide some, and empty packets repeat some.
            frames = sum(1 for entry in stream.index_entries if entry.size)
            if "mp4" in name:
                end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
                end = max(end, _end_of_fragments(data))
                if end > size:
                    return f"its index names {end} bytes, there are {size}"
            else:
                end = max(_ends_of_chunks(data), default=0)
            if packets < frames:
                return f"its index names {frames} frames, there are {packets}"
            if end <= size:
                return None
    # Others only promise a number of frames, and round it.
    short = packets < stream.frames - max(1, stream.frames // 50)
    return f"the file promises {stream.frames} frames" if short else None


def _reaches(path: Path, container: av.container.InputContainer, tolerance: float | Fraction) -> bool:
    """Whether the packets of all streams last as long as the file says, to some seconds; True where it says nothing."""
    end = Fraction(0)
    with contextlib.suppress(av.FFmpegError, IndexError), open_container(path) as again:
        for packet in again.demux():
            if packet.size and packet.pts is not None:
                end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
    return end > Fraction(container.duration or 0, av.time_base) - tolerance


def _gif_is_whole(data: mmap.mmap) -> bool:
    """Whether its blocks lead to the end mark, whatever follows that."""

    def table(flags: bytes) -> int:
        return 3 << (flags[0] % 8 + 1) if flags and flags[0] & 128 else 0

    at = 13 + table(data[10:11])
    while (block := data[at : at + 1]) in (b",", b"!", b"\0"):
        if block == b"\0":  # some leave one between blocks
            at += 1
            continue
        at += 10 + table(data[at + 9 : at + 10]) + 1 if block == b"," else 2
        while at < len(data) and data[at]:
            at += data[at] + 1
        at += 1
    return block == b";"


def _end_of_fragments(data: mmap.mmap) -> int:
    """Where the last index of a fragment ends in an MP4, 0 where it has none."""
    at = end = 0
    while at < len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if length == 1:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        at += length if length >= 8 else len(data)
        if kind == b"moof" or (end and not kind.isalnum()):
            end = at
    return end


def _ends_of_chunks(data: mmap.mmap) -> Iterator[int]:
    """Where each outer chunk of an AVI ends; those of more than 1 GB have several."""
    at = 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if length in UNFINISHED:
            return
        at += 8 + length + length % 2
        yield at


def _end_of_asf(data: mmap.mmap) -> int:
    """The size that a WMV says it has, 0 where it does not."""
    at = data.find(ASF_PROPERTIES, 0, 1 << 16)
    if at < 0 or data[at + 88 : at + 89] != b"\2":  # of its flags, that it can be sought in, and is no live stream
        return 0
    return int.from_bytes(data[at + 40 : at + 48], "little")


def _end_of_elements(data: mmap.mmap) -> tuple[int, bool]:
    """Where the elements of a Matroska file lead, and whether they are damaged there."""
    at, segment, cluster = 0, math.inf, math.inf
    while at < min(len(data), segment):
        cluster = cluster if at < cluster else math.inf
        head = data[at : at + 12].ljust(12, b"\xff")
        width = 9 - head[0].bit_length()  # of a number: its first 1 bit tells
        length = 9 - head[min(width, 4)].bit_length()
        kind, value = head[:width], int.from_bytes(head[width : width + length], "big")
        start = at + width + length
        unknown = (1 << 7 * length) - 1
        value &= unknown
        end = math.inf if value == unknown else start + value
        if start > len(data):
            return start, False
        if width > 4 or length > 8 or end > min(segment, cluster) or (end == math.inf and kind not in OPEN):
            return at, True
        is_checked = kind == CHECK_SUM and cluster <= len(data)
        if is_checked and zlib.crc32(data[end:cluster]) != int.from_bytes(data[start:end], "little"):
            return at, True
        if kind == SEGMENT:
            at, segment = start, end
        elif kind == CLUSTER:
            at, cluster = start, end
        else:
            at = end
    return max(end for end in (at, segment, cluster) if end < math.inf), False
