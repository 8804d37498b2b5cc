"""Rewrites CUDA sources as C++ for simt.h: `translate.py SOURCE TARGET` copies a tree of sources and headers.

Three things need more than a macro: launches `kernel<<<...>>>(...)`, `__shared__` variables, of which every block has
its own, and `extern __shared__`. Lines stay where they are.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

DYNAMIC = re.compile(r"extern\s+__shared__\s+([\w:]+)\s+(\w+)\s*\[\s*\]\s*;")
STATIC = re.compile(r"__shared__\s+([\w:<>]+)\s+(\w+)\s*((?:\[[^\]]*\])*)\s*;")


def bracket(text: str, start: int, pair: str) -> int:
    """Where the bracket at `start` has its other end; `pair` is both of them. From a closing one it goes backwards."""
    step, depth, at = (1 if pair[0] in "(<" else -1), 0, start
    while True:
        depth += {pair[0]: 1, pair[1]: -1}.get(text[at], 0)
        if depth == 0:
            return at
        at += step


def launches(text: str) -> str:
    while (at := text.find("<<<")) >= 0:
        begin = bracket(text, at - 1, "><") if text[at - 1] == ">" else at  # explicit template arguments
        while re.match(r"[\w:]", text[begin - 1]):
            begin -= 1
        end = text.index(">>>", at)
        kernel, config = text[begin:at], text[at + 3 : end]
        first = text.index("(", end)
        last = bracket(text, first, "()")
        arguments = text[first + 1 : last].strip()
        name = " ".join(kernel.split())
        call = f'simt::launch("{name}", {{{config}}}, [](auto... values) {{ {kernel}(values...); }}, {arguments}'
        text = text[:begin] + call.rstrip(", ") + text[last:]
    return text


def translated(text: str) -> str:
    text = DYNAMIC.sub(r"\1* \2 = static_cast<\1*>(simt::dynamic_shared());", text)
    text = STATIC.sub(
        r"using Simt_\2 = \1\3; static const char simt_\2 = 0; Simt_\2& \2 = simt::shared<Simt_\2>(&simt_\2);", text
    )
    return launches(text)


def main(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.suffix not in (".h", ".cu", ".cpp"):
            continue
        out = target / path.relative_to(source)
        out = out.with_name(out.name + ".cpp") if path.suffix == ".cu" else out
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(f'#line 1 "{source.name}/{path.relative_to(source)}"\n{translated(path.read_text())}')


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
