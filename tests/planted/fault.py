"""A fault: one line of one source file, changed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

# A constant that only decides how fast something is cannot be seen by a test; nor, without a GPU, what CUDA does.
UNSEEN = re.compile(r"cuda|prefetch|reserve\(|alignas", re.I)
UNSEEN_CONSTANT = re.compile(r"chunk|workers|ahead|timeout|stacklevel|dpi|indent|maxsize", re.I)


@dataclass(frozen=True)
class Fault:
    file: str  # in the repository
    line: int
    kind: str
    old: str  # the lines, stripped
    new: str

    @property
    def key(self) -> str:
        """Says which fault it is, wherever its line has moved to."""
        return f"{self.file}: {self.old} -> {self.new}"

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"

    def applied(self, text: str) -> str:
        """The file's text with the fault in it."""
        lines = text.splitlines(keepends=True)
        before = lines[self.line - 1]
        assert before.strip() == self.old, f"{self.where} is {before.strip()!r}, not {self.old!r}"
        lines[self.line - 1] = before.replace(self.old, self.new)
        return "".join(lines)


def change(file: str, line: int, kind: str, text: str, start: int, end: int, new: str) -> Fault | None:
    """A fault from an edit of characters [start, end) of the line `text`; None where it is not worth planting."""
    old, changed = text.strip(), (text[:start] + new + text[end:]).strip()
    if changed == old or UNSEEN.search(old) or (kind == "off by one" and UNSEEN_CONSTANT.search(old)):
        return None
    return Fault(file, line, kind, old, changed)
