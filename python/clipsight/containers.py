"""Whether the end of a video file is there, by what each format says of its own length."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av

UNKNOWN_SIZE = (0, 2**32 - 1)
"""Of a RIFF chunk that was never finished."""


def url(path: str | os.PathLike) -> str:
    """A path as FFmpeg takes it literally: no protocol, option or number pattern is read out of the name."""
    return f"file:{os.path.abspath(path)}"


def missing_end(path: Path, container: av.container.InputContainer, stream: av.VideoStream, packets: int) -> str | None:
    """What shows that the end of a file is not there, or None.

    Args:
        path: of the file.
        container, stream: opened, and read to the end.
        packets: how many the stream had, empty ones too.
    """
    name, size = container.format.name, path.stat().st_size
    with path.open("rb") as file:
        if name == "gif":
            return None if _gif_is_whole(file) else "the end mark of the GIF is missing"
        if name in ("mjpeg", "jpeg_pipe"):
            return None if _ends_with(file, b"\xff\xd9") else "the end mark of the last JPEG is missing"
        if "mp4" in name:  # the number of frames is no sign: an edit list may hide some
            end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
            end = max([end, *(end for kind, end in _boxes(file, size) if kind == b"moof")])
            return f"its index names {end} bytes, there are {size}" if end > size else None
        if "matroska" in name:
            end = _end_of_segment(file)
            if end is None or end <= size:
                return None
            duration = Fraction(container.duration or 0, av.time_base)
            if duration and _end_of_packets(path) > duration - 2 / (stream.average_rate or 25):
                return None  # only its index is missing
            return f"it should have {end} bytes, there are {size}"
        if name == "avi" and max(_riff_ends(file, size), default=0) <= size:
            return None
    # Others only promise a number of frames, and round it.
    short = packets < stream.frames - max(1, stream.frames // 50)
    return f"the file promises {stream.frames} frames" if short else None


def _ends_with(file: BinaryIO, mark: bytes) -> bool:
    file.seek(-min(4096, file.seek(0, os.SEEK_END)), os.SEEK_END)
    return file.read().rstrip(b"\0").endswith(mark)


def _gif_is_whole(file: BinaryIO) -> bool:
    """Whether its blocks lead to the end mark, whatever follows that."""

    def skip_table(flags: int) -> None:
        file.seek(3 << (flags % 8 + 1) if flags & 128 else 0, os.SEEK_CUR)

    skip_table(int.from_bytes(file.read(13)[10:11], "big"))
    while (block := file.read(1)) in (b",", b"!"):
        if block == b",":
            skip_table(int.from_bytes(file.read(9)[8:], "big"))
        file.read(1)  # the size of a code, or the kind of an extension
        while (length := file.read(1)) > b"\0":
            file.seek(length[0], os.SEEK_CUR)
    return block == b";" or (block != b"" and _ends_with(file, b";"))


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """Kind and end of each outer box of an MP4."""
    end = 0
    while end + 8 <= size:
        file.seek(end)
        length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        end = end + length if length >= 8 else size
        yield kind, end


def _end_of_segment(file: BinaryIO) -> int | None:
    """Where the segment of a Matroska file ends, None where the file does not say it."""
    head = file.read(4096)
    at = head.find(b"\x18\x53\x80\x67") + 4
    if at < 4 or at == len(head) or not head[at]:
        return None
    length = 9 - head[at].bit_length()  # of the number that follows: its first 1 bit tells
    unknown = (1 << 7 * length) - 1
    value = int.from_bytes(head[at : at + length], "big") & unknown
    return None if value == unknown else at + length + value


def _end_of_packets(path: Path) -> Fraction:
    """Seconds, over all streams."""
    end = Fraction(0)
    with av.open(url(path)) as container:
        for packet in container.demux():
            if packet.size and packet.pts is not None:
                end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
    return end


def _riff_ends(file: BinaryIO, size: int) -> Iterator[int]:
    """Where each outer chunk of an AVI ends; those of more than 1 GB have several."""
    end = 0
    while end + 8 <= size:
        file.seek(end + 4)
        length = int.from_bytes(file.read(4), "little")
        if length in UNKNOWN_SIZE:
            return
        end += 8 + length + length % 2
        yield end
