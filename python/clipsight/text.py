"""Texts from outside, such as labels, made fit for a terminal, for XML and for the names of files."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Sequence

JOINERS = "\u200c\u200d"  # within words of Persian and Hindi, and within emoji
LONGEST_NAME = 100
"""Bytes of a name that is made from a text; file systems take 255, and names of temporary files are longer."""


def printable(text: object) -> str:
    r"""One line in which whatever a terminal, XML or UTF-8 could trip over is written out: `\x1b`, `\n`, `\u202e`."""
    return "".join(c if _is_printable(c) else c.encode("unicode_escape").decode() for c in str(text))


def _is_printable(character: str) -> bool:
    return character.isprintable() or character in JOINERS or unicodedata.category(character) == "Zs"


def short_name(text: str) -> str:
    """A text as (part of) the name of a file: printable, without `/`, and at most `LONGEST_NAME` bytes long."""
    known = text.encode(sys.getfilesystemencoding(), errors="replace").decode(sys.getfilesystemencoding())
    pairs = zip(text, known, strict=True)  # where the locale is ASCII, another character has become "?"
    name = "".join(c if c == k and _is_printable(c) and c != "/" else "_" for c, k in pairs)
    return name.encode()[:LONGEST_NAME].decode(errors="ignore")


def file_names(texts: Sequence[str], also: str = "") -> list[str]:
    """A name for each text, of letters, digits, `_` and the characters in `also`.

    Those of differing texts differ, also where a file system takes `A` for `a`: by their position in front.
    """
    names = [short_name(re.sub(rf"[^\w{re.escape(also)}]+", "_", text)).strip("_") for text in texts]
    alike = [name.casefold() for name in names]
    numbered = [f"{i}-{name}" if name else str(i) for i, name in enumerate(names)]
    made = [
        name if name and alike.count(same) == 1 else longer
        for name, same, longer in zip(names, alike, numbered, strict=True)
    ]
    return made if len({name.casefold() for name in made}) == len(made) else numbered
