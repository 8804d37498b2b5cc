"""Finds the manifest in an exported file without a library for its format, as csrc/session/manifest_text.cpp does."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO

from .schema import LONGEST

METADATA_KEY = "clipsight"  # in an ONNX model's metadata_props
EXTRA_FILE = "clipsight.json"  # among the extra files of a TorchScript archive or `.pt2` package
MOST_FIELDS = 100_000  # of an ONNX model; its graph is one of them


def read_manifest_text(path: str | os.PathLike) -> bytes:
    """The JSON in a TorchScript archive or `.pt2` package (zip) or an ONNX model (protobuf); the content decides which.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or has no manifest or several.
    """
    with open(path, "rb") as file:
        archive = file.read(2) == b"PK"
    text = _from_archive(path) if archive else _from_onnx(path)
    if text is None:
        raise ValueError(f"{'an archive' if archive else 'a model'} with no clipsight manifest")
    return text


def _from_archive(path: str | os.PathLike) -> bytes | None:
    try:
        with zipfile.ZipFile(path) as archive:
            if min((entry.header_offset for entry in archive.infolist()), default=1):
                raise ValueError("it does not begin with its first entry")
            entries = [e for e in archive.infolist() if f"/{e.filename}".endswith(f"/extra/{EXTRA_FILE}")]
            if len(entries) > 1:
                raise ValueError("an archive with 2 clipsight manifests or more")
            for entry in entries:
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise ValueError("its manifest must be stored uncompressed")
                if entry.file_size > LONGEST:
                    raise ValueError(f"a manifest of {entry.file_size} bytes")
            return archive.read(entries[0]) if entries else None
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, OverflowError) as error:
        raise ValueError(str(error) or type(error).__name__) from error  # RuntimeError: encrypted, or a newer zip


def _from_onnx(path: str | os.PathLike) -> bytes | None:
    """Of the metadata_props, found by walking over the top-level fields of the protobuf message."""
    text, read = None, 0
    with open(path, "rb") as file:
        for number, start, length in _fields(file, os.fstat(file.fileno()).st_size):
            if number == 14:  # ModelProto.metadata_props: StringStringEntryProto
                read += length
                if max(length - 64, read // 4) > LONGEST:
                    raise ValueError(f"metadata of {read} bytes")
                file.seek(start)
                entry = file.read(length)
                if _text(entry, 1) == METADATA_KEY.encode():
                    if text is not None:
                        raise ValueError("a model with 2 clipsight manifests or more")
                    text = _text(entry, 2)
            file.seek(start + length)
    return text


def _fields(file, size: int) -> Iterator[tuple[int, int, int]]:
    """(field number, offset, length) of each length-delimited field of a protobuf message; others are skipped."""
    if size == 0:
        raise ValueError("the file is empty")
    for _ in range(MOST_FIELDS):
        if file.tell() == size:
            return
        begin, tag = file.tell(), _varint(file)
        number, kind = tag >> 3, tag & 7
        if kind == 0 and number:
            _varint(file)
        elif kind == 2 and number:
            length = _varint(file)
            start = file.tell()
            if start + length > size:
                raise ValueError(f"a field of {length} bytes at offset {start} runs past the end of {size} bytes")
            yield number, start, length
        else:
            raise ValueError(f"no field of an ONNX model starts at offset {begin}")
    raise ValueError(f"more than {MOST_FIELDS} fields")


def _varint(file) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("a number runs past the end")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            if value >> 64:
                break
            return value
    raise ValueError("a number of more than 64 bits")


def _text(message: bytes, wanted: int) -> bytes:
    """The field of an entry, which must be there at most once."""
    file, found = BytesIO(message), []
    for number, start, length in _fields(file, len(message)):
        if number == wanted:
            found.append(message[start : start + length])
        file.seek(start + length)
    if len(found) > 1:
        raise ValueError("an entry of the metadata with two values")
    return found[0] if found else b""
