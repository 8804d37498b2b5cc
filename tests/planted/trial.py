"""Runs tests against the package of the scratch tree until one fails."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from . import scratch
from .fault import REPOSITORY
from .parts import TESTS

_FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", re.MULTILINE)
_STARTED = re.compile(r"^(tests/\S+::\S+)", re.MULTILINE)
_LASTED = re.compile(r"^ *([\d.]+)s (?:setup|call|teardown) +(tests/\S+?)::", re.MULTILINE)
LOG = scratch.FOLDER / "pytest.log"


@dataclass(frozen=True)
class Outcome:
    seen_by: str | None  # the test that failed, as Markdown; None where all passed
    seconds: float


def run(tests: list[Path], limit: float | None = None) -> Outcome:
    """The first test that fails, crashes or takes too long."""
    options = ["-x", "-v", "-p", "no:cacheprovider", "--durations=0", "--durations-min=0"]
    if find_spec("xdist"):
        options += ["-n", "2", "--dist", "loadfile"]
    environment = scratch.environment() | {"HYPOTHESIS_STORAGE_DIRECTORY": str(scratch.TREE / "hypothesis")}
    start = time.perf_counter()
    with LOG.open("w") as log:  # a file: what a killed test leaves running would hold a pipe open
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *map(str, tests)],
            cwd=REPOSITORY,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code, late = process.wait(limit), False
        except subprocess.TimeoutExpired:
            code, late = None, True
        finally:
            _end(process)
    return Outcome(_seen_by(code, late, LOG.read_text(errors="replace")), time.perf_counter() - start)


def _end(process: subprocess.Popen) -> None:
    """Ends the tests and all that they started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _seen_by(code: int | None, late: bool, output: str) -> str | None:
    started, failed = _STARTED.findall(output), _FAILED.search(output)
    running = f" in `{started[-1]}`" if started else ""
    if late:
        return f"time-out{running}"
    if code == 0:
        return None
    if code < 0:
        return f"{signal.Signals(-code).name}{running}"
    if failed is None:
        raise RuntimeError(f"pytest ended with {code} and named no test that failed:\n{output[-3000:]}")
    crashed = "crash of a worker in " if "crashed while running" in output else ""
    return f"{crashed}`{failed[1]}`"


def green(tests: list[Path]) -> float:
    """Seconds that these tests take where nothing is planted; an error where one fails. Kept until a file changes."""
    path, state = scratch.FOLDER / "green.json", scratch.digest(TESTS, *(REPOSITORY / n for n in scratch.SOURCES))
    known = json.loads(path.read_text()) if path.exists() else {}
    if known.get("state") != state:
        known = {"state": state, "seconds": {}}
    seconds, names = known["seconds"], [str(test.relative_to(REPOSITORY)) for test in tests]
    new = [test for test, name in zip(tests, names, strict=True) if name not in seconds]
    if new:
        scratch.restore()
        outcome = run(new)
        if outcome.seen_by:
            raise SystemExit(f"planted: {outcome.seen_by} fails where nothing is planted, see {LOG}")
        seconds |= dict.fromkeys((str(test.relative_to(REPOSITORY)) for test in new), 0.0)
        for lasted, name in _LASTED.findall(LOG.read_text(errors="replace")):
            seconds[name] += float(lasted)
        path.write_text(json.dumps(known, indent=1))
    return sum(seconds[name] for name in names)
