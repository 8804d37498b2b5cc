"""The readers of manifests in Python and C++ come to one verdict, and so does another reader of the schema."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tracemalloc
from ctypes import byref, c_uint64
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipsight import schema
from clipsight.manifest import LoadError, Manifest, read_manifest
from hostile_manifests import BAD, GOOD, archive, cases, manifest, metadata, shells
from session_api import ABI, Options, load_library

CASES, SHELLS = cases(), shells()
SCHEMA = Path(schema.__file__).with_name("manifest.schema.json")


def of_python(path) -> str | None:
    """What is wrong with the manifest of a file, or None."""
    try:
        read_manifest(path)
    except LoadError as error:
        return str(error)
    return None


def of_cpp(path) -> str | None:
    library = load_library()
    session = c_uint64()
    options = Options(ABI, 0, b"cpu", b"", b"")
    # Any kind but this is refused after the manifest was read, and no shell has a graph.
    assert library.clipsight_open_as(b"onnx", str(path).encode(), byref(options), byref(session)) == 1
    message = library.clipsight_last_error().decode()
    of_the_manifest = ("the manifest", "must be a whole file")
    return message if any(text in message for text in of_the_manifest) else None


def rule(message: str) -> str | None:
    """Which rule of which member was broken, in either language; None where the text is not JSON."""
    found = re.search(r"wrote: (the manifest.*?)(, got|$)", message)
    return found and found[1]


@pytest.mark.parametrize("name", CASES)
def test_readers_agree_on_a_manifest(name, tmp_path):
    text, good = CASES[name]
    for file in (tmp_path / "x.onnx", tmp_path / "x.pt"):
        file.write_bytes(metadata(text) if file.suffix == ".onnx" else archive(text))
        python, cpp = of_python(file), of_cpp(file)
        assert (python is None, cpp is None) == (good, good), (python, cpp)
        if not good:
            assert rule(python) == rule(cpp), (python, cpp)
            assert len(python) < 500


@pytest.mark.parametrize("name", SHELLS)
def test_readers_agree_on_a_file(name, tmp_path):
    data, good = SHELLS[name]
    file = tmp_path / "x.onnx"
    file.write_bytes(data)
    tracemalloc.start()
    python = of_python(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (python is None, of_cpp(file) is None) == (good, good), (python, of_cpp(file))
    assert peak < 5 * schema.LONGEST


@pytest.mark.parametrize("name", [*GOOD, *BAD])
def test_another_reader_of_the_schema_agrees(name):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    validator = jsonschema.Draft4Validator(json.loads(SCHEMA.read_text()))
    value = (GOOD | BAD)[name]
    valid = validator.is_valid(value)
    assert valid == holds(value)
    assert valid or name in BAD


def holds(value) -> bool:
    try:
        schema.check(value)
    except ValueError:
        return False
    return True


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_value_in_any_place(data):
    """Nothing but a verdict comes of it, and that of another reader."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    value = json.loads(json.dumps(manifest()))
    place = value
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        inner = place[key]
        if not isinstance(inner, (dict, list)) or not inner or data.draw(st.booleans()):
            break
        place = inner
    place[key] = data.draw(VALUES)
    valid = jsonschema.Draft4Validator(json.loads(SCHEMA.read_text())).is_valid(value)
    assert holds(value) == valid
    try:
        read = Manifest.from_json(json.dumps(value))
    except LoadError:
        return
    assert valid
    assert Manifest.from_json(read.to_json()) == read


@given(st.binary(max_size=40), st.integers(0, 3), st.data())
@settings(max_examples=100, deadline=None)
def test_any_bytes(tmp_path_factory, noise, how, data):
    """A file of any bytes is read or refused; what C++ reads, Python does: it forgives more of a damaged archive."""
    text = json.dumps(manifest()).encode()
    whole = archive(text) if how % 2 else metadata(text)
    at = data.draw(st.integers(0, len(whole)))
    file = tmp_path_factory.mktemp("bytes") / "x.onnx"
    file.write_bytes(whole[:at] + noise + whole[at + (len(noise) if how > 1 else 0) :])
    assert of_cpp(file) is not None or of_python(file) is None, of_python(file)


def test_the_schema_is_one():
    """CMake writes the text for C++ from the file for Python."""
    header = Path(__file__).resolve().parents[2] / "csrc/session/manifest_schema.h"
    assert header.read_text().partition('R"json(')[2].partition(')json"')[0] == SCHEMA.read_text()


def test_what_is_written_can_be_read():
    """A figure that is not finite has no word in JSON."""
    read = Manifest.from_json(json.dumps(manifest()))
    for figure in (float("nan"), float("inf"), 1.0):
        check = {"max_difference": {"logits": figure}}
        text = dataclasses.replace(read, self_check=check).to_json()
        assert Manifest.from_json(text).self_check["max_difference"]["logits"] == (1.0 if figure == 1 else None)


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")  # to open it would be to wait for ever
    library, session = load_library(), c_uint64()
    for path in (tmp_path / "none.onnx", tmp_path, tmp_path / "pipe.onnx"):
        with pytest.raises(FileNotFoundError, match=r"load: path must name an exported file, got .*, which is no file"):
            read_manifest(path)
        assert library.clipsight_open(str(path).encode(), None, byref(session)) == 1
        assert b"open: path must name an exported file, got" in library.clipsight_last_error()
    with pytest.raises(FileNotFoundError):
        read_manifest("a\0b")
