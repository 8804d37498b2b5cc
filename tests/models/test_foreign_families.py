"""A small network of each family that people bring, every method against hooks and autograd, in float64.

Those of the packages themselves are in tests/oracle/test_foreign_networks.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import clipsight
import foreign_oracles
from foreign_families import FAMILIES
from foreign_networks import ALL, NETWORKS, Foreign

BOUND = 1e-9


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore:explain. the features of")
def test_every_method(name):
    foreign_oracles.compare(foreign_oracles.Known(FAMILIES[name]), BOUND, zennit=False)


@pytest.mark.parametrize("name, method", [(n, m) for n, facts in FAMILIES.items() for m in facts.refused])
def test_a_method_that_is_not_defined_is_refused(name, method):
    known = foreign_oracles.Known(FAMILIES[name])
    with pytest.raises(clipsight.AttachError, match=known.facts.refused[method]):
        clipsight.explain(known.given, foreign_oracles.heads(known)[method], known.clip[:1])


def test_the_table_of_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "other-networks.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^## What is tested\n.*?^(\|.*?)\n\n", page, re.MULTILINE | re.DOTALL)
    assert table.splitlines() == [*HEADER, *(row(name, facts) for name, facts in NETWORKS.items())]


HEADER = (
    "| package | network | tube | Grad-CAM | guided | Deep Taylor | integrated gradients | pyramid | files |",
    "|---|---|---|---|---|---|---|---|---|",
)
FILES = {"onnx": "`.onnx`", "plugin": "`.onnx` with the plug-in", "pt": "`.pt`", "pt2": "`.pt2`"}


def row(name: str, facts: Foreign) -> str:
    """x: equal to hooks and autograd; z: to zennit too; no: refused, because it is not defined."""
    marks = [
        "no"
        if m in facts.refused
        else ""
        if m not in facts.heads
        else "z"
        if m == "deep_taylor" and facts.zennit
        else "x"
        for m in ALL
    ]
    cells = [facts.package, name, *marks, ", ".join(FILES[form] for form in facts.files)]
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)
