"""Names of classes, from whatever form people have them in: one function for Python's and one for those in files."""

from __future__ import annotations

import ast
import csv
import itertools
import operator
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from .text_files import SEPARATORS, is_json, read_json, read_text, table

_NUMBERED = re.compile(r"(-?\d+)(?:\s*[:.)=|]\s*|\s+-\s+|\s+)(\S.*)")
_NAMED = re.compile(r"(\S.*?)\s*[:=|]\s*(\d+)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UNWRITABLE = re.compile(r"[\x00\ud800-\udfff]")  # in a manifest
_HEADERS = ("class", "classes", "class name", "class_name", "category", "label", "labels", "name")
_ADVICE = "where a number is part of a name, write a JSON list of the names"


def as_labels(
    labels: Iterable[str] | Mapping | str | os.PathLike | None,
    num_classes: int | None = None,
    source: str = "labels:",
) -> tuple[str, ...] | None:
    """The names of the classes 0..K-1, in this order.

    Args:
        labels: names in order; `{index: name}` or `{name: index}` in any order, indices as numbers or as digits; a file
            for `read_labels`; or `None`. White space around a name goes, and so do quotes around all of it.
        num_classes: K, where it is known.
        source: begins the messages, for example `"export: labels"`.

    Raises:
        ValueError: an index without a name, twice or out of range; an empty name, or one with NUL or half of a
            surrogate pair, in a file with any control character; another number of names than K.
        TypeError: something else than names.
    """
    if labels is None:
        return None
    if isinstance(labels, (str, os.PathLike)):
        names = read_labels(labels)
    elif isinstance(labels, (set, frozenset)):
        raise TypeError(f"{source} must be in the order of the classes, got a {type(labels).__name__}, which has none")
    elif isinstance(labels, Mapping) or (hasattr(labels, "keys") and hasattr(labels, "items")):  # a Series, too
        names = _by_index(_pairs(labels.items(), source), source, num_classes)
    elif not isinstance(labels, Iterable):
        raise TypeError(f"{source} must be a list of names or a dict, got {type(labels).__name__}")
    else:
        names = tuple(_name(name, i, source) for i, name in enumerate(labels))
    check_count(names, num_classes, source)
    return names


def check_count(labels: Sequence[str] | None, num_classes: int | None, source: str = "labels:") -> None:
    """Raises ValueError where there are labels, and not one for each class."""
    if labels is None or num_classes is None or len(labels) == num_classes:
        return
    header = len(labels) == num_classes + 1 and labels[0].lower() in _HEADERS
    raise ValueError(
        f"{source} must name {num_classes} classes like the model, got {len(labels)}"
        + (f"; the first one, {labels[0]!r}, looks like a header" if header else "")
    )


def read_labels(path: str | os.PathLike) -> tuple[str, ...]:
    """The names of the classes in a text file, in the order of their indices.

    The file is a list with a name in each line; a table (CSV and the like) or lines of index and name, where every line
    has the index of a class; or JSON: a list of names, `{index: name}` or `{name: index}`. See `read_text` for what its
    encoding may be. Where every line begins with a number, the numbers are taken for indices if 0 is among them.

    Raises:
        ValueError: the file cannot be read, a line is empty, an index is missing; see `as_labels`.
    """
    text, source = read_text(path, "labels"), f"labels: {path}"
    value: object
    if is_json(path, text) or text.lstrip().startswith("['"):
        try:
            value = read_json(text, source, _Pairs)
        except ValueError:
            value = _literal(text)
            if value is None:
                raise
        if not isinstance(value, list):
            raise ValueError(f"{source} must be a list of names, {{index: name}} or {{name: index}}, got {value!r:.60}")
        pairs = _pairs(value, source) if isinstance(value, _Pairs) else enumerate(value)
    elif not re.sub(rf"[\s{SEPARATORS}\"]", "", text):
        pairs = []
    else:
        pairs = _from_table(text, source) or _from_numbered(text, source) or _from_lines(text, source)
    try:
        names = _by_index(list(pairs), source)
    except TypeError as error:
        raise ValueError(str(error)) from error
    if not names:
        raise ValueError(f"{source} must name the classes, got a file without names")
    for index, name in enumerate(names):
        _check_characters(name, index, source, _CONTROL)  # in a file they are signs of another layout
    return names


def named(text: str, labels: Sequence[str] | None) -> list[int]:
    """The indices of the classes of this name: spelled alike, or else but for capitals and Unicode's variants."""

    def plain(name: str) -> str:
        return unicodedata.normalize("NFKC", name).casefold()

    same = [i for i, label in enumerate(labels or ()) if label == text]
    return same or [i for i, label in enumerate(labels or ()) if plain(label) == plain(text)]


def _literal(text: str) -> _Pairs | list | None:
    """A dict or list as Python prints it, None where the text is neither."""
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return _Pairs(value.items()) if isinstance(value, dict) else value if isinstance(value, list) else None


class _Pairs(list):
    """A JSON object, every entry of it: a dict would lose the first of two classes of one name."""


def _pairs(items: Iterable[tuple], source: str) -> list[tuple[int, object]]:
    """`(index, name)` from the entries of a dict, whichever of key and value is the index."""
    items = list(items)
    ways = [[(_index(key), value) for key, value in items], [(_index(value), key) for key, value in items]]
    fitting = [[i is not None and isinstance(name, (str, type(None))) for i, name in way] for way in ways]
    found = [way for way, fits in zip(ways, fitting, strict=True) if all(fits)]
    if not found:
        odd = next((item for item, *fits in zip(items, *fitting, strict=True) if not any(fits)), items[0])
        raise ValueError(f"{source} must be {{index: name}} or {{name: index}}, got {odd!r:.80}")
    if len(found) == 2 and sorted(found[0], key=repr) != sorted(found[1], key=repr):
        raise ValueError(f"{source} must have digits as its indices alone, got {items[0]!r:.80}; {_ADVICE}")
    return found[0]


def _index(value: object) -> int | None:
    """The integer that a key or a cell stands for, if any."""
    if isinstance(value, str):
        digits = re.fullmatch(r"\s*(-?\d{1,9})(\.0+)?\s*", value)
        return int(digits[1]) if digits else None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _by_index(pairs: Sequence[tuple[int, object]], source: str, num_classes: int | None = None) -> tuple[str, ...]:
    names: dict[int, object] = {}
    for index, name in pairs:
        if index < 0 or (num_classes is not None and index >= num_classes):
            last = "" if num_classes is None else f", the last one {num_classes - 1}"
            raise ValueError(f"{source} must have indices from 0 on{last}, got {index} for {name!r}")
        if index in names:
            raise ValueError(f"{source} must name each class once, got {names[index]!r} and {name!r} for {index}")
        names[index] = name
    count = max(names, default=-1) + 1 if num_classes is None else num_classes
    if missing := count - len(names):
        first = list(itertools.islice((i for i in range(count) if i not in names), 6))
        more = f" and {missing - 6} more" if missing > 6 else ""
        hint = f"; class indices begin with 0; {_ADVICE}" if first == [0] else ""
        raise ValueError(
            f"{source} must name every class up to {count - 1}, none for {', '.join(map(str, first))}{more}{hint}"
        )
    return tuple(_name(names[i], i, source) for i in range(count))


def _name(name: object, index: int, source: str) -> str:
    if name is None:
        raise ValueError(f"{source} must name every class, got None for class {index}")
    if not isinstance(name, str):
        raise TypeError(f"{source} must be text, got {type(name).__name__} {name!r} for class {index}")
    name = _unquoted(str.__str__(name))  # of a text that is a member of an enumeration its value
    if not name:
        raise ValueError(f"{source} must name every class, got an empty name for class {index}")
    _check_characters(name, index, source, _UNWRITABLE)
    return name


def _check_characters(name: str, index: int, source: str, forbidden: re.Pattern) -> None:
    if forbidden.search(name):
        raise ValueError(f"{source} must have no control characters in a name, got {name!r} for class {index}")


def _unquoted(name: str) -> str:
    """Without white space around it, nor quotes around all of it, as CSV writes them and some lists keep them."""
    name = name.strip()
    inner = name[1:-1]
    quoted = len(name) > 1 and name[0] == name[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"').strip() if quoted else name


def _from_table(text: str, source: str) -> list[tuple[int, str]] | None:
    """The rows of a table with a column of integers, first or last, and the names beside it."""
    for separator in SEPARATORS:
        try:
            rows = table(text, separator)
        except csv.Error:
            continue
        if not rows:
            continue
        while all(len(row) > 1 and not row[-1].strip() for row in rows):
            rows = [row[:-1] for row in rows]
        rows = rows[1:] if all(_index(cell) is None for cell in rows[0]) else rows  # without a header
        columns = min(map(len, rows), default=0)
        places = (0, *range(1, columns - 1), -1)
        numbered = [[row for row in rows if len(row) > 1 and _index(row[at]) is not None] for at in places]
        first, *middle, last = (2 * len(some) > len(rows) for some in numbered)
        if not (first or last or any(middle)):
            continue
        if columns > 2:
            raise ValueError(f"{source} must have two columns, index and name, got {columns}")
        if odd := next((row for row in rows if row not in numbered[0 if first else -1]), None):
            raise ValueError(f"{source} must have an index in every line, got {separator.join(odd)!r:.60}; {_ADVICE}")
        if first and last and any(row[0].strip() != row[-1].strip() for row in rows):
            raise ValueError(
                f"{source} must have indices in one column, got them in both, such as {rows[0]}; {_ADVICE}"
            )
        # A name with separators that is in no quotes lies in several cells.
        if first:
            return [(_index(row[0]), separator.join(row[1:])) for row in rows]
        return _distinct([(_index(row[-1]), separator.join(row[:-1])) for row in rows], source)
    return None


def _from_numbered(text: str, source: str) -> list[tuple[int, str]] | None:
    """Lines of index and name with a space between; numbers that cannot be indices are part of the names."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    found = [_NAMED.fullmatch(line) for line in lines]
    if all(found) and {int(match[2]) for match in found} == set(range(len(found))):
        return [(int(match[2]), match[1]) for match in found]
    found = [_NUMBERED.fullmatch(line) for line in lines]
    if not all(found):
        return None
    pairs = [(int(match[1]), match[2]) for match in found]
    indices = {index for index, _ in pairs}
    if len(indices) < len(pairs) or not indices & {0, 1} or (0 not in indices and max(indices) > len(pairs)):
        return None
    return _distinct(pairs, source)


def _from_lines(text: str, source: str) -> list[tuple[int, str]]:
    lines = text.rstrip().split("\n")
    if all(line.startswith("- ") for line in lines):  # a list of YAML
        lines = [line[2:] for line in lines]
    names = [_unquoted(line) for line in lines]
    if "" in names:
        line = names.index("") + 1
        raise ValueError(f"{source} must have a name in each line, line {line} is empty: a class without a name?")
    return list(enumerate(names))


def _distinct(pairs: list[tuple[int, str]], source: str) -> list[tuple[int, str]]:
    if len({name for _, name in pairs}) < len(pairs):
        raise ValueError(f"{source} must tell its classes apart without the numbers, got {pairs[:2]}; {_ADVICE}")
    return pairs
