"""The faults that `make planted` plants: what each operator makes of a line, and what is left alone."""

from __future__ import annotations

import textwrap
from collections import Counter

import pytest

from planted import draw, in_cpp, in_python, parts, table, trial
from planted.fault import Fault


def changes(language, text: str, kind: str) -> set[str]:
    found = language.faults("some/file", textwrap.dedent(text))
    return {fault.new for fault in found if fault.kind == kind}


@pytest.mark.parametrize(
    "kind, line, expected",
    [
        ("flipped comparison", "y = a < b", {"y = a > b"}),
        ("flipped comparison", "y = a not in b", {"y = a in b"}),
        ("flipped comparison", "y = (a) is not None", {"y = (a) is None"}),
        ("boundary", "y = a >= b", {"y = a > b"}),
        ("boundary", "y = a == b", set()),
        ("off by one", "y = x[1]", {"y = x[2]"}),
        ("off by one", "y = x[:n]", {"y = x[:n - 1]"}),
        ("off by one", "y = x[: a + b]", {"y = x[: (a + b) - 1]"}),
        ("off by one", "y = range(a, b)", {"y = range(a, b - 1)"}),
        ("off by one", "y = range()", set()),
        ("off by one", "y = 'é', 3", {"y = 'é', 4"}),
        ("off by one", "y = True, 1.0, 0x10", set()),
        ("off by one", "chunk = 8", set()),
        ("dropped term", "y = (a - b) * c", {"y = (a - b)", "y = c", "y = (a) * c"}),
        ("dropped term", "y = 'a' + b", set()),
        ("swapped arguments", "y = f(a, b, c=d)", {"y = f(b, a, c=d)"}),
        ("swapped arguments", "y = f(a, *b) + max(a, b) + f(a, a)", set()),
        ("and/or", "y = a and b", {"y = a or b"}),
        ("negated condition", "y = a if b or c else d", {"y = a if not (b or c) else d"}),
        ("negated condition", "y = a if not b else d", {"y = a if b else d"}),
    ],
)
def test_a_line_of_python(kind, line, expected):
    assert changes(in_python, line, kind) == expected


def test_a_check_of_python_is_removed_and_not_negated():
    text = """\
    if a > 1:
        raise ValueError(f"a must be at most 1, got {a + 1}")
    """
    assert changes(in_python, text, "removed check") == {"if False:"}
    assert changes(in_python, text, "negated condition") == set()


def test_what_python_says_and_its_annotations_are_left_alone():
    text = '''
    """1 < 2 and a + b"""
    from typing import TYPE_CHECKING
    if TYPE_CHECKING:
        import numpy
    Name = Annotated[str, Option(1, 2)]
    @cached(size(1, 2))
    def f(a: Literal[1, 2], b: x[1] = None) -> x[2]:
        """f(1, 2)"""
        c: Literal[3]
        warnings.warn("a" + str(a + 1), stacklevel=2)
        raise ValueError(f"{a + 1}", f(1, 2))
    '''
    assert in_python.faults("some/file", textwrap.dedent(text)) == []


@pytest.mark.parametrize(
    "kind, line, expected",
    [
        ("flipped comparison", "x = a < b;", {"x = a > b;"}),
        ("flipped comparison", "std::vector<int> a;", set()),
        ("boundary", "x = a <= b;", {"x = a < b;"}),
        ("off by one", "x = y[1];", {"x = y[2];"}),
        ("off by one", "x = 1.5f + y<1>(z);", set()),
        ("off by one", "for (; i < n.size; ++i)", {"for (; i < n.size - 1; ++i)"}),
        ("dropped term", "x = a + b[i] * c;", {"x = a;", "x = a + b[i];"}),
        ("dropped term", "const int* x = &a;", set()),
        ("swapped arguments", 'f("a, b", c)', set()),
        ("swapped arguments", "f(a.b(), c->d, e)", {"f(c->d, a.b(), e)", "f(a.b(), e, c->d)"}),
        ("swapped arguments", "int a, b, c; std::min(a, b);", set()),
        ("and/or", "x = a && b;", {"x = a || b;"}),
        ("and/or", "void f(T&& a);", set()),
        ("negated condition", 'if (f(a) == "b") x();', {'if (!(f(a) == "b")) x();'}),
        ("removed check", 'if (a) fail("a");', {'if (false) fail("a");'}),
    ],
)
def test_a_line_of_cpp(kind, line, expected):
    assert changes(in_cpp, line, kind) == expected


def test_a_check_of_cpp_may_throw_in_the_next_line():
    text = """\
    if (a > 0) return;
    if (a > 1) {
      throw Error("a must be at most 1, got " + to_string(a + 1));
    }
    """
    assert changes(in_cpp, text, "removed check") == {"if (false) {"}
    assert changes(in_cpp, text, "negated condition") == {"if (!(a > 0)) return;"}
    assert changes(in_cpp, text, "dropped term") == set()


def test_comments_strings_macros_and_cuda_are_left_alone_in_cpp():
    text = """
    #define F(a, b) a < b
    // a < b
    /* a < b
       a + 1; */
    const char* text = "a < b";
    static_assert(a < 2);
    #ifdef CLIPSIGHT_WITH_CUDA
    x = a < b;
    #endif
    if (device == cuda) return;
    """
    assert in_cpp.faults("some/file", textwrap.dedent(text)) == []


def test_every_source_belongs_to_one_part_and_every_part_has_tests():
    placed = Counter(file for part in parts.PARTS for file in parts.sources_of(part))
    assert placed == Counter(parts.sources())
    for part in parts.PARTS:
        assert part.tests(), part.name
        for pattern in part.share:
            assert list(parts.TESTS.rglob(pattern)), f"{part.name}: {pattern} was renamed"


def test_a_draw_is_the_same_twice_and_a_rejected_fault_is_replaced_in_its_file():
    first = draw.draw(40, seed=1)
    assert first == draw.draw(40, seed=1) != draw.draw(40, seed=2)
    assert sum(map(len, first.values())) == 40
    assert min(map(len, first.values())) == 2
    rejected = first["kernels"][0]
    second = draw.draw(40, 1, {rejected.key})
    assert second["kernels"][0] != rejected
    assert second["kernels"][0].file == rejected.file
    assert second["kernels"][1:] == first["kernels"][1:]
    assert second["walks"] == first["walks"]


def test_a_fault_is_planted_in_its_line():
    fault = Fault("f", 2, "boundary", "a < b", "a <= b")
    assert fault.applied("a < b\n  a < b\n") == "a < b\n  a <= b\n"
    with pytest.raises(AssertionError, match="f:1"):
        Fault("f", 1, "boundary", "a > b", "a >= b").applied("a < b\n")


@pytest.mark.parametrize(
    "code, late, output, expected",
    [
        (0, False, "", None),
        (1, False, "tests/a.py::t FAILED\nFAILED tests/a.py::t[x y] - assert 1 == 2", "`tests/a.py::t[x y]`"),
        (2, False, "ERROR tests/a.py - ImportError", "`tests/a.py`"),
        (-11, False, "tests/a.py::t PASSED\ntests/a.py::u ", "SIGSEGV in `tests/a.py::u`"),
        (None, True, "tests/a.py::t ", "time-out in `tests/a.py::t`"),
    ],
)
def test_what_pytest_says_names_the_test(code, late, output, expected):
    assert trial._seen_by(code, late, output) == expected


def test_the_table_remembers_what_was_missed_at_first(tmp_path):
    fault = Fault("f", 2, "and/or", "a | b", "a || b")
    table.Table(tmp_path, "").add(table.Row("heads", fault, "missed"), ["heads"])
    assert "**missed**" in (tmp_path / "table.md").read_text()
    again = table.Table(tmp_path, "")
    again.clear(["heads"])
    again.add(table.Row("heads", fault, "seen", "`test`", 1.0), ["heads"])
    text = (tmp_path / "table.md").read_text()
    assert "| `a \\| b` → `a \\|\\| b` | missed at first; now seen by `test` | 1 |" in text
    assert table.Table(tmp_path, "").rows[fault.key].missed_at_first
