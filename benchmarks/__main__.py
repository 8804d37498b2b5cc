"""`make bench`: every benchmark of this machine's CPU, as a table and as benchmarks/results/cpu_SIMD.json.

python -m benchmarks [kernels|explain|pyramid|gradients|render|exports ...] [--check]
python -m benchmarks exports|gradients --rows NAME ...    some of its rows; the others stay as they were measured

--check exits with 1 where a target is missed
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

from benchmarks.measure import machine
from rich.console import Console
from rich.table import Table

SUITES = ("kernels", "explain", "pyramid", "gradients", "render", "exports")
NAMED = ("exports", "gradients")  # suites that can be asked for some of their rows
RESULTS = Path(__file__).with_name("results")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures this machine's CPU.")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"{', '.join(SUITES)}; by default all")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help=f"some rows of one suite: {' or '.join(NAMED)}")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    options = parser.parse_args(arguments)
    chosen = options.suites or list(SUITES)
    if unknown := sorted({*chosen} - {*SUITES}):
        parser.error(f"suites must be among {', '.join(SUITES)}, got {', '.join(unknown)}")
    if options.rows and (len(chosen) > 1 or chosen[0] not in NAMED):
        parser.error(f"--rows needs one suite, {' or '.join(NAMED)}, got {', '.join(chosen)}")
    path = RESULTS / f"cpu_{machine()['simd']}.json"
    results: list[dict] = []
    for suite in chosen:
        rows = importlib.import_module(f"benchmarks.bench_{suite}").rows
        for row in rows(options.rows) if options.rows else rows():
            print(json.dumps(row), flush=True)
            results.append({"suite": suite} | row)
            _write(path, results, whole=not options.rows)
    console = Console(width=160)
    console.print(_table(results))
    console.print(machine())
    console.print(f"written to {path}")
    missed = [row["case"] for row in results if not row.get("met", True)]
    if missed:
        console.print("[red]targets missed:[/red] " + "; ".join(missed))
    return int(bool(missed) and options.check)


def _write(path: Path, results: list[dict], whole: bool) -> None:
    """The file of this kind of machine, as rows come; what it has of others stays, if measured on the same machine.

    A row takes the place of all that its suite had, if that is measured as a `whole`, else of the one of the same case.
    """

    def place(row: dict) -> tuple[str, ...]:
        return (row["suite"],) if whole else (row["suite"], row["case"])

    taken = {place(row) for row in results}
    before = json.loads(path.read_text()) if path.exists() else {}
    kept = before["rows"] if before.get("machine") == machine() else []
    rows = [*(row for row in kept if place(row) not in taken), *results]
    rows.sort(key=lambda row: SUITES.index(row["suite"]))
    written = path.with_name(f"{path.name}.new")
    written.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    os.replace(written, path)


def _table(results: list[dict]) -> Table:
    table = Table("case", "threads", "ours, ms", "baseline", "baseline, ms", "ratio", "must reach", "")
    for row in results:
        ours = row.get("ours_ms", f"{row.get('ours_bytes')} B")
        cells = (row["case"], row.get("threads", ""), ours, row["baseline"], row.get("baseline_ms", ""))
        ratio = row.get("overhead", row["ratio"])
        mark = {True: "met", False: "[red]missed[/red]"}.get(row.get("met"), "")
        table.add_row(*map(str, cells), str(ratio), row.get("must_reach", ""), mark)
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
