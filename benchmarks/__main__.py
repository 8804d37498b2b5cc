"""`make bench`: every benchmark of this machine's CPU, as a table and as benchmarks/results/cpu_SIMD.json.

python -m benchmarks [kernels|explain|pyramid|gradients|render ...] [--check]
--check exits with 1 where a target is missed
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from benchmarks.measure import machine
from rich.console import Console
from rich.table import Table

SUITES = ("kernels", "explain", "pyramid", "gradients", "render")
RESULTS = Path(__file__).with_name("results")


def main(arguments: list[str]) -> int:
    chosen = [a for a in arguments if not a.startswith("--")] or list(SUITES)
    results = []
    for suite in chosen:
        for row in importlib.import_module(f"benchmarks.bench_{suite}").rows():
            print(json.dumps(row), flush=True)
            results.append({"suite": suite} | row)
    console = Console(width=160)
    console.print(_table(results))
    console.print(machine())
    console.print(f"written to {_write(results, chosen)}")
    missed = [row["case"] for row in results if not row.get("met", True)]
    if missed:
        console.print("[red]targets missed:[/red] " + "; ".join(missed))
    return int(bool(missed) and "--check" in arguments)


def _write(results: list[dict], chosen: list[str]) -> Path:
    """The file of this kind of machine; what it has of other suites stays, if it was measured on the same one."""
    path = RESULTS / f"cpu_{machine()['simd']}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    kept = before["rows"] if before.get("machine") == machine() else []
    rows = [*(row for row in kept if row["suite"] not in chosen), *results]
    rows.sort(key=lambda row: SUITES.index(row["suite"]))
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    return path


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
