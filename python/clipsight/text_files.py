"""Text files that people bring, as spreadsheets and other systems write them: decoded by their mark, or refused."""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
from pathlib import Path

# Byte order mark -> encoding. That of UTF-16 begins that of UTF-32, which is therefore looked for first.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
SEPARATORS = "\t;,"
_LINE_END = re.compile(r"\r*\n|\r")  # "\r\r\n": written twice as text on Windows
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def read_text(path: str | os.PathLike, what: str) -> str:
    r"""The text of a file, with `"\n"` behind its lines: UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    Args:
        path: the file.
        what: the option that it was given for, which begins the messages.

    Raises:
        ValueError: there is no such file, it is in another encoding, or has control characters; names the line.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{what}: {path} cannot be read ({error})") from error
    mark = next((mark for mark in _MARKS if data.startswith(mark)), b"")
    data, encoding = data[len(mark) :], _MARKS.get(mark, "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        before = _LINE_END.split(data[: error.start].decode(encoding, "replace"))
        line = _LINE_END.split(data.decode(encoding, "backslashreplace"))[len(before) - 1]
        raise ValueError(
            f"{what}: {path} must be text in UTF-8, or in UTF-16 with a byte order mark, got {line[:60]!r} in line "
            f"{len(before)}; save it as UTF-8 (in Excel: CSV UTF-8)"
        ) from error
    text = _LINE_END.sub("\n", text).replace("\ufeff", "")
    if found := _CONTROL.search(text):
        raise ValueError(
            f"{what}: {path} must be text in UTF-8, got the control character {found[0]!r} in line "
            f"{text.count(chr(10), 0, found.start()) + 1}"
        )
    return text


def is_json(path: str | os.PathLike, text: str) -> bool:
    """By the suffix, or because it begins as an object or as a list of texts, lists or objects."""
    return Path(path).suffix.lower() == ".json" or bool(re.match(r'\s*(\{|\[\s*["\[{\]])', text))


def read_json(text: str, source: str, object_pairs_hook=None):
    """The value of a JSON text. ValueError where it is none; `source` begins the message."""
    try:
        return json.loads(text, object_pairs_hook=object_pairs_hook)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} cannot be read as JSON ({error})") from error


def table(text: str, separator: str) -> list[list[str]]:
    """The rows of a table as a spreadsheet writes them, cells in quotes or not, without its empty rows.

    Raises:
        csv.Error: a cell of more than 131072 characters: behind a quote, say, that is not closed.
    """
    text = re.sub(r'^"?sep=.?"?\n', "", text)  # by which Excel is told the separator
    rows = csv.reader(text.splitlines(keepends=True), delimiter=separator)
    return [row for row in rows if any(cell.strip() for cell in row)]
