"""JSON from a file of a stranger: a strict reader, and what `manifest.schema.json` says of the values.

csrc/session/json.cpp is the same in C++; tests/files/test_manifests.py holds the two together.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

LONGEST = 4 << 20  # bytes of a manifest
DEEPEST = 64  # levels of objects and arrays

_IS_OF_TYPE = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def parse(text: bytes) -> Any:
    """The value of a JSON text (RFC 8259) in UTF-8.

    Raises:
        ValueError: the text is not JSON, longer than `LONGEST` or deeper than `DEEPEST`; an object has a name twice; a
            number is not finite as a double; or a text has the character NUL or half of a surrogate pair.
    """
    if len(text) > LONGEST:
        raise ValueError(f"JSON must have at most {LONGEST} bytes, got {len(text)}")
    try:
        value = json.loads(
            text.decode(),
            object_pairs_hook=_object,
            parse_int=lambda word: int(word) if _finite(word) else 0,
            parse_float=_finite,
            parse_constant=_finite,
        )
        _check_limits(value, 0)
    except RecursionError as error:
        raise ValueError(f"JSON must have at most {DEEPEST} levels") from error
    return value


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in members:
        if name in values:
            raise ValueError(f"JSON must have each member of an object once, got {name[:40]!r} again")
        values[name] = value
    return values


def _finite(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):
        raise ValueError(f"JSON must have finite numbers, got {word[:40]}")
    return number


def _check_limits(value, depth: int) -> None:
    """Also of the texts: what `json` lets pass, and other languages cannot hold."""
    if isinstance(value, str):
        value.encode()  # half of a surrogate pair is a UnicodeEncodeError, which is a ValueError
        if "\0" in value:
            raise ValueError("JSON must have texts without the character NUL")
    elif isinstance(value, (list, dict)):
        if depth == DEEPEST:
            raise ValueError(f"JSON must have at most {DEEPEST} levels")
        for item in value:
            _check_limits(item, depth + 1)
        for item in value.values() if isinstance(value, dict) else ():
            _check_limits(item, depth + 1)


@functools.cache
def _schema() -> dict:
    return json.loads(Path(__file__).with_name("manifest.schema.json").read_text("utf-8"))


def check(value, schema: dict | None = None, path: str = "") -> None:
    """Holds a value against the schema; the keywords below are those that it has.

    Raises:
        ValueError: "the manifest's outputs[0].shape must have at most 8 items, got 9".
    """
    schema = _schema() if schema is None else schema
    if "$ref" in schema:
        schema = _schema()["definitions"][schema["$ref"].rpartition("/")[2]]
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(_IS_OF_TYPE[name](value) for name in types):
        _fail(path, f"be of the type {' or '.join(types)}", value)
    if value not in schema.get("enum", [value]):
        _fail(path, f"be one of {', '.join(schema['enum'])}", value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value < schema.get("minimum", value):
            _fail(path, f"be at least {schema['minimum']}", value)
        if value > schema.get("maximum", value):
            _fail(path, f"be at most {schema['maximum']}", value)
    elif isinstance(value, str) and len(value) < schema.get("minLength", 0):
        _fail(path, "have a character", value)
    elif isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            _fail(path, f"have at least {schema['minItems']} items", len(value))
        if len(value) > schema.get("maxItems", len(value)):
            _fail(path, f"have at most {schema['maxItems']} items", len(value))
        for i, item in enumerate(value) if "items" in schema else ():
            check(item, schema["items"], f"{path}[{i}]")
    elif isinstance(value, dict):
        known = schema.get("properties", {})
        for name in schema.get("required", ()):
            if name not in value:
                _fail(path, f"have the member {name}", value)
        for name, item in value.items():
            if name in known:
                check(item, known[name], f"{path}.{name}" if path else name)
            elif not schema.get("additionalProperties", True):
                _fail(path, f"have no member but {', '.join(known)}", name)


def _fail(path: str, rule: str, value) -> None:
    got = {list: "an array", dict: "an object"}.get(type(value)) or repr(value)[:60]
    raise ValueError(f"the manifest{path and chr(39) + 's ' + path} must {rule}, got {got}")
