"""Numbers, tables and paragraphs as Markdown, and the sentence that an interval allows."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

Interval = Sequence[float]  # mean, low, high


def title(name: str) -> str:
    return name.replace("_", " ")


def percent(entry: Interval | float) -> str:
    return f"{100 * (entry if isinstance(entry, float) else entry[0]):.1f}"


def with_interval(entry: Interval) -> str:
    return f"{entry[0]:.3f} [{entry[1]:.3f}, {entry[2]:.3f}]"


def points(entry: Interval) -> str:
    return f"{100 * entry[0]:+.1f} [{100 * entry[1]:+.1f}, {100 * entry[2]:+.1f}]"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return [*lines, ""]


def listed(names: Sequence[str]) -> str:
    names = [title(name) for name in names]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def sorted_out(entries: dict[str, Interval], middle: float, above: str, below: str, neither: str) -> str:
    """One sentence: which methods' intervals lie above, below, or on both sides of `middle`."""
    groups = {above: [], below: [], neither: []}
    for name, (_, low, high) in entries.items():
        groups[above if low > middle else below if high < middle else neither].append(name)
    parts = [f"{what} for {listed(names)}" for what, names in groups.items() if names]
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."


def wrapped(text: str) -> str:
    """Markdown with its paragraphs and lists filled to 120 columns; tables, headings, code and "
    "pictures as they are."""
    blocks = text.split("\n\n")
    for i, block in enumerate(blocks):
        if not block.startswith(("|", "#", "!", "`" * 3)):
            items = re.split(r"\n(?= *- )", block)
            blocks[i] = "\n".join(_filled(item) for item in items)
    return "\n\n".join(blocks)


def _filled(item: str) -> str:
    indent = " " * (len(item) - len(item.lstrip()))
    after = indent + "  " * item.lstrip().startswith("- ")
    return textwrap.fill(
        " ".join(item.split()),
        120,
        initial_indent=indent,
        subsequent_indent=after,
        break_long_words=False,
        break_on_hyphens=False,
    )
