"""A small network of each family that people bring, every method against hooks and autograd, in float64.

Those of the packages themselves are in tests/oracle/test_foreign_networks.py.
"""

from __future__ import annotations

import pytest

import clipsight
import foreign_oracles
from foreign_families import FAMILIES

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
