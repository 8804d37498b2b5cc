"""Names of classes in every form that people have: the right name for the index, or an error that says where."""

from __future__ import annotations

import codecs
import enum
import json
import re

import numpy as np
import pytest

from clipsight.labels import as_labels, named, read_labels

NAMES = ("archery", "2 hands", "cut, chop; slice", 'say "hi"', "crème brûlée", "3D printing", "crane", "crane")
PLAIN = "\n".join(NAMES)


def quoted(name: str) -> str:
    """A cell as RFC 4180 has it."""
    return '"' + name.replace('"', '""') + '"'


def rows(separator: str, header: str = "", turned: bool = False, quote=quoted) -> str:
    cells = [(str(i), quote(name)) for i, name in enumerate(NAMES)]
    return header + "".join(separator.join(reversed(row) if turned else row) + "\r\n" for row in cells)


FILES = {
    "a name a line": PLAIN,
    "CRLF and empty lines at the end": PLAIN.replace("\n", "\r\n") + "\r\n\r\n \r\n",
    "CR of old Macs": PLAIN.replace("\n", "\r") + "\r",
    "CRLF twice": PLAIN.replace("\n", "\r\r\n"),
    "marks of files that were joined": "\ufeff" + PLAIN.replace("\ncrane\n", "\n\ufeffcrane\n"),
    "white space": PLAIN.replace("\n", "\u00a0 \n\t"),
    "a column of cells in quotes": "\n".join(map(quoted, NAMES)),
    "commas": rows(","),
    "semicolons": rows(";", "class;name\r\n"),
    "tabs, a header of pandas": rows("\t", "\tname\r\n"),
    "commas, a separator stated": rows(",", "sep=,\r\n"),
    "spaces after commas": rows(", ", "class, name\n", quote=lambda name: name).replace('"', ""),
    "names without quotes": rows(",", quote=lambda name: name),
    "tabs, without quotes": rows("\t", quote=lambda name: name),
    "empty columns": rows(",").replace("\r\n", ",,\r\n"),
    "empty rows of cells": rows(",") + ",\r\n,\r\n",
    "any order": "\n".join(reversed(rows(",").split("\r\n"))),
    "zeros in front": "\n".join(f"{i:03d},{quoted(name)}" for i, name in enumerate(NAMES)),
    "floats": "\n".join(f"{i}.0,{quoted(name)}" for i, name in enumerate(NAMES)),
    "JSON list": json.dumps(NAMES),
    "JSON, index to name": json.dumps({str(i): name for i, name in reversed(list(enumerate(NAMES)))}, indent=1),
    "JSON, name to index": "{" + ", ".join(f"{json.dumps(name)}: {i}" for i, name in enumerate(NAMES)) + "}",
    "JSON, name to digits": "{" + ", ".join(f'{json.dumps(name)}: "{i}"' for i, name in enumerate(NAMES)) + "}",
    "JSON, quotes in the names": "{" + ", ".join(f"{json.dumps(quoted(n))}: {i}" for i, n in enumerate(NAMES)) + "}",
}


def expected(layout: str) -> tuple[str, ...]:
    return tuple(name.replace('"', "") for name in NAMES) if layout == "spaces after commas" else NAMES


@pytest.mark.parametrize("layout", FILES)
def test_a_file_gives_every_name_its_index(layout, tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes(FILES[layout].encode())
    assert read_labels(path) == as_labels(path, len(NAMES)) == as_labels(str(path)) == expected(layout)


@pytest.mark.parametrize("layout", ["a name a line", "semicolons", "tabs, a header of pandas", "JSON list"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
def test_encodings_with_a_mark(layout, encoding, tmp_path):
    data = FILES[layout].encode(encoding)
    mark = {"utf-16-be": codecs.BOM_UTF16_BE, "utf-32-be": codecs.BOM_UTF32_BE}.get(encoding, b"")
    (tmp_path / "labels.csv").write_bytes(mark + data)
    assert read_labels(tmp_path / "labels.csv") == expected(layout)


def test_lines_of_index_and_name(tmp_path):
    def read(text: str) -> tuple[str, ...]:
        (tmp_path / "labels.txt").write_text(text)
        return read_labels(tmp_path / "labels.txt")

    for between in (" ", "  ", ": ", ". ", ") ", " = "):
        assert read(f"1{between}2 hands\n0{between}cut, chop\n\n2{between}clap\n") == ("cut, chop", "2 hands", "clap")
    assert read("archery,1\nclap,0\n") == ("clap", "archery")
    for between in (": ", "=", " | "):  # a table from name to index, as YAML writes it
        assert read(f"walk{between}1\nrun{between}0\n") == ("run", "walk")
    assert read("1|walk\n0|run\n") == read("1 - walk\n0 - run\n") == read("- run\n- walk\n") == ("run", "walk")
    assert read("{0: 'tench, Tinca tinca',\n 1: \"stork's\"}") == ("tench, Tinca tinca", "stork's")  # as Python prints
    assert read("['a b',\n 'c']") == ("a b", "c")
    assert read('name,index\n"cut, chop",0\n') == ("cut, chop",)
    # Numbers that are part of the names.
    for names in (["2 hands", "clap"], ["100 m", "200 m", "400 m"], ["2 up", "2 down", "0 up"], ["take 2", "take 1"]):
        assert read("\n".join(names)) == tuple(names)
    assert read("sep=;\n") == ("sep=;",)
    assert read("[noise]\n[silence]\n") == ("[noise]", "[silence]")
    assert read("lift, carry\ndrop, let go\n") == ("lift, carry", "drop, let go")
    assert read("action 0\naction 1\naction 2\n") == ("action 0", "action 1", "action 2")


def test_a_table_of_pandas_has_an_index():
    class Series:  # as far as it matters
        keys, items = (lambda self: [1, 0]), (lambda self: [(1, "run"), (0, "walk")])

        def __iter__(self):
            return iter(["run", "walk"])

    assert as_labels(Series(), 2) == ("walk", "run")


REFUSED = {
    "lists in JSON": ('[["walk", 0], ["run", 1]]', "must be text, got list"),
    "empty": ("", "must name the classes, got a file without names"),
    "white space alone": ("\n \n", "must name the classes"),
    "empty list": ("[]", "must name the classes"),
    "empty object": ("{}", "must name the classes"),
    "empty cells alone": (',,\n"",;\n', "must name the classes"),
    "a gap": ("a\n\nb\n", "line 2 is empty"),
    "an empty line first": ("\na\nb\n", "line 1 is empty"),
    "an index that is missing": ("0,a\n1,b\n3,c\n", "none for 2"),
    "many that are missing": ("0 a\n20 b\n", "up to 20, none for 1, 2, 3, 4, 5, 6 and 13 more"),
    "indices from 1 on": ("1 a\n2 b\n3 c\n", "none for 0; class indices begin with 0; .*a JSON list"),
    "indices from 1 on, in cells": ("1,a\n2,b\n", "class indices begin with 0"),
    "a negative index": ("-1,none\n0,a\n", "indices from 0 on, got -1 for 'none'"),
    "an index twice": ("0,a\n1,b\n1,c\n", "got 'b' and 'c' for 1"),
    "an index twice in JSON": ('{"0": "a", "0": "b"}', "got 'a' and 'b' for 0"),
    "a line without an index": ("0,a\n1,b\nc\n", "an index in every line, got 'c'"),
    "a cell without an index": ("0,a\n,b\n2,c\n", "an index in every line, got ',b'"),
    "a row without a name": ("0,a\n1,\n", "an empty name for class 1"),
    "three columns": ("id,key,count\n0,take,10\n1,put,20\n", "two columns, index and name, got 3"),
    "the index in the middle": ("a,0,x\nb,1,y\n", "two columns"),
    "both are numbers, alike": ("00,0\n01,1\n", "got them in both"),
    "both are numbers": ("0,1\n1,0\n", "got them in both"),
    "names of numbers alone": ("0 fingers\n1 fingers\n", "apart without the numbers.*JSON list"),
    "numbers behind the names": ("lift,0\nlift,1\n", "apart without the numbers"),
    "broken JSON": ('{"a": 0,', "cannot be read as JSON"),
    "deep JSON": ("[[" * 100_000, "cannot be read as JSON"),
    "other JSON": ('{"0": ["n01440764", "tench"]}', r"\{index: name\} or \{name: index\}, got \('0', \["),
    "nested JSON": ('{"labels": ["a", "b"]}', r"got \('labels', "),
    "digits for both": ('{"0": "1", "1": "2"}', "digits as its indices alone"),
    "numbers": ('["a", 1]', "must be text, got int 1 for class 1"),
    "null": ('["a", null]', "got None for class 1"),
    "null for an index": ('{"0": "a", "1": null}', "got None for class 1"),
    "an empty text": ('["a", " "]', "an empty name for class 1"),
    "NUL": ("a\nb\x00\n", r"control character '\\x00' in line 2"),
    "an escape": ("a\n\nb\x1b[31m\n", r"control character '\\x1b' in line 3"),
    "a line in JSON": (
        '["a", "b\\nc"]',
        r"no control characters in a name, got 'b\\nc' for class 1",
    ),
    "half a surrogate pair": ('["\\ud800"]', "no control characters"),
    "a line in a cell": ('0,"a\nb"\n1,c\n', r"no control characters in a name, got 'a\\nb'"),
    "a tab in a name": ("a\tb\nc\td\n", r"no control characters in a name, got 'a\\tb'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_unclear_is_refused(case, tmp_path):
    text, message = REFUSED[case]
    path = tmp_path / "labels.txt"
    path.write_bytes(text.encode())
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        read_labels(path)
    assert str(caught.value).startswith(f"labels: {path} ")


@pytest.mark.parametrize(
    "data, message",
    [
        ("archery\ncrème\n".encode("cp1252"), r"UTF-8.* got 'cr\\\\xe8me' in line 2; save it as UTF-8"),
        ("a\rb\rçà\r".encode("cp1252"), "in line 3"),
        ("стрельба\n".encode("cp1251"), "in line 1"),
        ("archery\nbowling\n".encode("utf-16-le"), r"control character '\\x00' in line 1"),
        (codecs.BOM_UTF16_LE + b"a\x00\n\x00b", "in line 2"),
        (b"\x89PNG\r\n\x1a\n\0\0", "must be text in UTF-8"),
    ],
)
def test_other_encodings_are_refused_with_the_line(data, message, tmp_path):
    (tmp_path / "labels.txt").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path / "labels.txt")


def test_files_that_are_none(tmp_path):
    for path in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(ValueError, match=re.escape(f"labels: {path} cannot be read")):
            read_labels(path)


class Action(str, enum.Enum):
    RUN = "run"
    SWIM = "swim"


def test_labels_in_python(tmp_path):
    want = ("a", "b", "c")
    for labels in (
        ["a", "b", "c"],
        ("a", "b", "c"),
        iter("abc"),
        np.array(["a", "b", "c"]),
        {2: "c", 0: "a", 1: "b"},
        {np.int64(i): name for i, name in enumerate("abc")},
        {"1": "b", "0": "a", "2": "c"},
        {"c": 2, "a": 0, "b": 1},
        {"c": "2", "a": "0", "b": "1"},
        [" a", '"b"', "c\n"],
    ):
        got = as_labels(labels, 3)
        assert got == want
        assert all(type(name) is str for name in got)
    assert as_labels(None, 3) is None
    assert as_labels({0: "7", 1: "0"}, 2) == ("7", "0"), "an integer is an index, whatever digits are beside it"
    assert as_labels(["crane", "crane"], 2) == as_labels({0: "crane", 1: "crane"}) == ("crane", "crane")
    assert as_labels(Action) == ("run", "swim")


@pytest.mark.parametrize(
    "labels, error, message",
    [
        (["a", "b"], ValueError, "must name 5 classes like the model, got 2"),
        (["Name", *"abcde"], ValueError, "got 6; the first one, 'Name', looks like a header"),
        (["a", "b", None, "d", "e"], ValueError, "got None for class 2"),
        (["a", "b", "", "d", "e"], ValueError, "an empty name for class 2"),
        ({0: "a", 1: "b", 4: "e"}, ValueError, "up to 4, none for 2, 3$"),
        ({0: "a", 1: "b", 2: "c"}, ValueError, "up to 4, none for 3, 4$"),
        ({"a": 0, "b": 0}, ValueError, "got 'a' and 'b' for 0"),
        ({0: "a", 5: "f"}, ValueError, "from 0 on, the last one 4, got 5 for 'f'"),
        ({-1: "z", 0: "a"}, ValueError, "got -1 for 'z'"),
        ({0: "a", "one": "b"}, ValueError, r"got \('one', 'b'\)"),
        ({0.5: "a"}, ValueError, r"got \(0.5, 'a'\)"),
        ({True: "a"}, ValueError, r"got \(True, 'a'\)"),
        ({}, ValueError, "up to 4, none for 0, 1, 2, 3, 4"),
        ({"a", "b"}, TypeError, "in the order of the classes, got a set"),
        ([0, 1, 2, 3, 4], TypeError, "must be text, got int 0 for class 0"),
        ([b"a"] * 5, TypeError, "got bytes b'a'"),
        (5, TypeError, "a list of names or a dict, got int"),
        (["a\0b"] * 5, ValueError, r"no control characters in a name, got 'a\\x00b'"),
        (["a\ud800b"] * 5, ValueError, r"no control characters in a name, got 'a\\ud800b'"),
    ],
)
def test_what_is_no_label_in_python(labels, error, message):
    with pytest.raises(error, match=message) as caught:
        as_labels(labels, 5, "export: labels")
    assert str(caught.value).startswith("export: labels must ")


def test_a_class_by_its_name():
    labels = ["Crane", "crane", "crane", "café", "Straße", "7"]
    assert named("Crane", labels) == [0]
    assert named("crane", labels) == [1, 2]
    assert named("CRANE", labels) == [0, 1, 2]
    assert named("cafe\u0301", labels) == [3]
    assert named("STRASSE", labels) == [4]
    assert named("heron", labels) == named("heron", None) == []
