"""Plants the faults of a draw one at a time and writes down which test saw each."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from . import scratch, trial
from .draw import draw
from .fault import Fault
from .parts import PARTS, tests_of
from .table import HERE, Row, Table, equivalent

NAMES = [part.name for part in PARTS]


def main() -> None:
    parser = argparse.ArgumentParser(prog="planted", description=__doc__)
    parser.add_argument("--count", type=int, default=40, help="faults in all, at least 2 of each part (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the draw (%(default)s)")
    parser.add_argument("--only", action="append", choices=NAMES, help="this part; repeat for several")
    parser.add_argument("--list", action="store_true", help="print the draw and stop")
    parser.add_argument("--resume", action="store_true", help="keep the rows of the table, and skip their faults")
    parser.add_argument("--missed", action="store_true", help="keep them, and plant again what was missed")
    parser.add_argument("--tests", nargs="+", help="names of test files (patterns), instead of the parts' shares")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of table.md and table.json")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the tests that run are ended, too

    parts = options.only or NAMES
    table = Table(options.out, f"Seed {options.seed}.")
    if not (options.resume or options.missed or options.list):
        table.clear(parts)
    if not options.list:
        print(f"planted: the sources are copied and built in {scratch.FOLDER}", flush=True)
        scratch.prepare()
    again = table.of("missed") if options.missed else set()
    while True:  # until nothing is left: a fault that does not compile is drawn again
        rejected = equivalent().keys() | table.of("not built")
        drawn = draw(options.count, options.seed, rejected)
        faults = [(name, fault) for name in parts for fault in drawn[name]]
        if options.list:
            return print(*(f"{name}\t{f.where}\t{f.kind}\t{f.old}\t{f.new}" for name, f in faults), sep="\n")
        left = [(name, f) for name, f in faults if (f.key in again if options.missed else f.key not in table.rows)]
        if not left:
            break
        name, fault = left[0]
        again.discard(fault.key)
        row = planted(name, fault, options.tests)
        table.add(row, NAMES)
        print(
            f"{name}: {fault.where} {fault.old} -> {fault.new}: {row.state} {row.by or ''} ({row.seconds:.0f} s)",
            flush=True,
        )
    table.write()


def planted(name: str, fault: Fault, patterns: list[str] | None) -> Row:
    share = next(part for part in PARTS if part.name == name).share
    tests = tests_of(tuple(patterns or share))
    limit = 60 + 3 * trial.green(tests)
    try:
        scratch.plant(fault)
    except scratch.NotBuiltError:
        return Row(name, fault, "not built")
    outcome = trial.run(tests, limit)
    return Row(name, fault, "seen" if outcome.seen_by else "missed", outcome.seen_by, round(outcome.seconds, 1))


if __name__ == "__main__":
    main()
