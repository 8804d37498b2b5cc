"""Rows of a benchmark that a kernel may kill at any moment: what was measured before stays, what comes after follows.

The file is whole and valid JSON at any time. A case has its row before it is measured, which says that it did not
finish; the result then takes its place. So a process that dies leaves behind which case it died of, and the next one
goes on behind it. No torch here: a supervisor must not hold the device that its worker has broken.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

BROKEN = 3  # exit status of a worker whose process should not be used any longer


class Rows:
    """`{"machine": {...}, "rows": [{"case": ...}, ...]}` in a file, replaced as a whole at each change."""

    def __init__(self, path: Path):
        self.path = path
        content = json.loads(path.read_text()) if path.exists() else {"machine": {}, "rows": []}
        self.machine = content["machine"]
        self.of = {row["case"]: row for row in content["rows"]}

    def put(self, case: str, **values) -> None:
        row = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()}
        self.of[case] = {"case": case} | row
        self.write()

    def write(self) -> None:
        new = self.path.with_name(self.path.name + ".new")
        new.write_text(json.dumps({"machine": self.machine, "rows": [*self.of.values()]}, indent=1) + "\n")
        os.replace(new, self.path)


def work(rows: Rows, cases: Iterable[tuple[str, Callable[[], Iterable[dict]]]], seconds: int = 30) -> int:
    """Measures the cases that the file lacks; the exit status. A case is its name and a call for the parts of its row.

    Each part is written as it comes. After an exception the process counts as broken: an error of a kernel stays with
    its CUDA context. A call that takes longer than `seconds` kills it, without a handler: Python's would wait for the
    kernel.
    """
    for case, measure in cases:
        if case in rows.of:
            continue
        values, unfinished = {}, f"the process died, or took longer than {seconds} s"
        rows.put(case, error=unfinished)
        signal.alarm(seconds)
        try:
            for part in measure():
                values |= part
                rows.put(case, **values, error=unfinished)
            rows.put(case, **values)
        except Exception as error:
            rows.put(case, **values, error=f"{type(error).__name__}: {error}")
            return BROKEN
        finally:
            signal.alarm(0)
            print(json.dumps(rows.of[case]), flush=True)
    return 0


def supervise(worker: Sequence[str | Path], path: Path) -> bool:
    """Runs a worker that calls `work` on `path`, a new one where it breaks; whether every row is free of errors."""
    path.unlink(missing_ok=True)
    Rows(path).write()  # valid from the start
    before = 0
    while (status := subprocess.run(worker, check=False).returncode) != 0:
        done = len(Rows(path).of)
        if done == before:
            print(f"a worker must begin a case, got exit status {status} and no new row in {path}", flush=True)
            return False
        before = done
    return not any("error" in row for row in Rows(path).of.values())
