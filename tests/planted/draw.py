"""Which faults are planted. A hash of the seed and the fault takes the place of dice: a change in one file leaves the
draw from every other file as it was."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from itertools import islice

from . import in_cpp, in_python
from .fault import REPOSITORY, Fault
from .parts import PARTS, Part, sources_of


def draw(count: int, seed: int, rejected: Collection[str] = ()) -> dict[str, list[Fault]]:
    """About `count` faults by the names of their parts, in proportion to size, at least two of each part.

    Args:
        rejected: keys of faults that make no sense; the next one of the same file takes the place of each.
    """
    numbers = _numbers(count)
    return {part.name: list(islice(_of_part(part, seed, rejected), numbers[part.name])) for part in PARTS}


def _numbers(count: int) -> dict[str, int]:
    size = {part.name: sum(len(_candidates(file)) for file in sources_of(part)) for part in PARTS}
    numbers = dict.fromkeys(size, min(2, max(1, count // len(PARTS))))
    for _ in range(count - sum(numbers.values())):
        numbers[max(size, key=lambda name: size[name] / numbers[name])] += 1
    return numbers


def _of_part(part: Part, seed: int, rejected: Collection[str]) -> Iterator[Fault]:
    """Files in turn, the larger ones likelier first."""

    def turn(file: str) -> float:
        return _chance(seed, file) ** (1 / len(_candidates(file)))

    files = sorted((file for file in sources_of(part) if _candidates(file)), key=turn, reverse=True)
    return _in_turn(_of_file(file, seed, rejected) for file in files)


def _of_file(file: str, seed: int, rejected: Collection[str]) -> Iterator[Fault]:
    """Kinds in turn, since constants and comparisons are many and checks are few."""
    by_kind: dict[str, list[Fault]] = {}
    for fault in sorted(_candidates(file), key=lambda fault: _chance(seed, fault.key)):
        if fault.key not in rejected:
            by_kind.setdefault(fault.kind, []).append(fault)
    kinds = sorted(by_kind, key=lambda kind: _chance(seed, file, kind))
    yield from filter(_parses, _in_turn(iter(by_kind[kind]) for kind in kinds))


def _parses(fault: Fault) -> bool:
    text = (REPOSITORY / fault.file).read_text(encoding="utf-8")
    return not fault.file.endswith(".py") or in_python.is_valid(fault.applied(text))


@cache
def _candidates(file: str) -> list[Fault]:
    language = in_python if file.endswith(".py") else in_cpp
    return language.faults(file, (REPOSITORY / file).read_text(encoding="utf-8"))


def _in_turn(iterators: Iterable[Iterator[Fault]]) -> Iterator[Fault]:
    """One of each until all are exhausted; asks none before its turn."""
    queue = deque(iterators)
    while queue:
        iterator = queue.popleft()
        for fault in islice(iterator, 1):
            yield fault
            queue.append(iterator)


def _chance(*what: object) -> float:
    """A number in (0, 1) that is always the same for the same things."""
    digest = hashlib.sha256(" | ".join(map(str, what)).encode()).digest()
    return (int.from_bytes(digest[:6], "big") + 1) / (2**48 + 1)
