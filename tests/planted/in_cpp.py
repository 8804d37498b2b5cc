"""The faults that a C++ file could have, by patterns of tokens in lines of code.

Left alone: comments, strings, the preprocessor, what is said to the user (`throw`, `fail`), and blocks for CUDA. Binary
operators are told from templates, references and pointers by the spaces that the code has around them.
"""

from __future__ import annotations

import re

from .fault import Fault, change

_HIDDEN = re.compile(
    r"//[^\n]*|/\*.*?\*/"  # comments
    r"|(?<!\w)R\"\((?:.*?)\)\"|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])'"  # strings, characters
    r"|^[ \t]*#[ \t]*if[^\n]*CUDA.*?(?=^[ \t]*#[ \t]*(?:else|endif))"
    r"|^[ \t]*#(?:\\\n|[^\n])*"  # the preprocessor
    r"|\bstatic_assert\b[^;]*;",
    re.DOTALL | re.MULTILINE,
)
_SAID = re.compile(r"\b(?:throw|fail)\b[^;]*;")
_REFUSES = re.compile(r"\)\s*\{?\s*(?:throw|fail)\b")
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "!=", "!=": "=="}
_BOUNDARY = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
_OPERAND = r"[\w.]+(?:::\w+|->\w+|\[[^\[\]]*\]|\([^()]*\))*"
_SYMMETRIC = {"min", "max", "add", "mul", "if", "for", "while", "switch", "return", "sizeof", "decltype", "operator"}


def faults(file: str, text: str) -> list[Fault]:
    """Every fault of the file; which of them compile, only the compiler knows."""
    visible = _HIDDEN.sub(_blank, text)
    code = _SAID.sub(_blank, visible).splitlines()
    lines, visible = text.splitlines(), [*visible.splitlines(), ""]
    found = []
    for index, line in enumerate(lines):
        following = visible[index] + " " + visible[index + 1]
        edits = [*_edits(code[index], line), *_conditions(code[index], line, following)]
        found += [change(file, index + 1, kind, line, start, end, new) for kind, start, end, new in edits]
    return [fault for fault in found if fault]


def _blank(match: re.Match) -> str:
    return re.sub(r"[^\n]", " ", match[0])


def _edits(code: str, line: str):
    """(kind, start, end, new) of the faults of a line; `code`: the same line without what is left alone."""
    for m in re.finditer(r"(?<= )([<>=!]=|[<>])(?= )", code):
        yield "flipped comparison", *m.span(), _FLIPPED[m[0]]
        if m[0] in _BOUNDARY:
            yield "boundary", *m.span(), _BOUNDARY[m[0]]
    for m in re.finditer(r"(?<![\w.])\d+(?![\w.'>])", code):
        yield "off by one", *m.span(), str(int(m[0]) + 1)
    for m in re.finditer(r"(?<= < )([A-Za-z_][\w.]*)(?=;)", code):
        yield "off by one", *m.span(), f"{m[0]} - 1"
    for term in (rf"[-+] {_OPERAND}(?: [*/] {_OPERAND})*", rf"[*/] {_OPERAND}"):
        for m in re.finditer(rf"(?<=[\w)\]]) {term}(?=[;,)\]]| [-+*/<>=?:&|]|$)", code):
            yield "dropped term", *m.span(), ""
    for m in re.finditer(rf"(?:\b(\w+)\(|(?<=, ))({_OPERAND})(?=, ({_OPERAND})[,)])", code):
        called = m[1] or _called(code[: m.start()])
        if called and called not in _SYMMETRIC:
            left, right = line[slice(*m.span(2))], line[slice(*m.span(3))]
            yield "swapped arguments", m.start(2), m.end(3), f"{right}, {left}"
    for m in re.finditer(r"(?<= )(?:&&|\|\|)(?= |$)", code):
        yield "and/or", *m.span(), "||" if m[0] == "&&" else "&&"


def _called(before: str) -> str | None:
    """What the innermost bracket that is still open belongs to; None where there is none, as in a declaration."""
    while True:
        inner = re.sub(r"\([^()]*\)", "", before)
        if inner == before:
            break
        before = inner
    found = re.search(r"(\w+)\([^(]*$", before)
    return found and found[1]


def _conditions(code: str, line: str, following: str):
    """`following`: the line and the next one, with what they say."""
    for m in re.finditer(r"\bif \(", code):
        end = _closing(code, m.end())
        if end is None:
            continue
        if _REFUSES.match(following, end):
            yield "removed check", m.end(), end, "false"
        else:
            yield "negated condition", m.end(), end, f"!({line[m.end() : end]})"


def _closing(line: str, start: int) -> int | None:
    """Where the bracket that opened before `start` closes in this line."""
    depth = 1
    for index in range(start, len(line)):
        depth += {"(": 1, ")": -1}.get(line[index], 0)
        if depth == 0:
            return index
    return None
