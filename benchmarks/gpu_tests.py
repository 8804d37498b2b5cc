"""Runs the tests marked `gpu`, each test function in a process of its own, several at a time.

python -m benchmarks.gpu_tests [PYTEST_ARGUMENTS]

An illegal access spoils every later call of its process and a kernel that hangs stops it: here either costs one
function. A line is printed for each as it ends, with pytest's output where it failed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

SECONDS = 80  # of one function
LINES = 80  # of the output of one that failed
JOBS = max(2, min(8, (os.cpu_count() or 1) // 2))
TESTS = Path("tests")


def pytest(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-m", "gpu", "-p", "no:cacheprovider", *arguments]
    environment = {"OMP_NUM_THREADS": "2"} | dict(os.environ)  # the float64 twins of several run beside each other
    to_pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    try:
        return subprocess.run(command, **to_pipe, timeout=SECONDS, check=False, env=environment)
    except subprocess.TimeoutExpired as late:
        return subprocess.CompletedProcess(command, 124, (late.stdout or b"").decode(errors="replace"))


def functions(arguments: list[str]) -> tuple[list[str], bool]:
    """The test functions, and whether every file could be read. Only files that hold the mark are looked at."""
    files = sorted(path for path in TESTS.rglob("test_*.py") if "mark.gpu" in path.read_text())
    found = pytest("--collect-only", "--continue-on-collection-errors", *arguments, *files)
    if found.returncode != 0:
        print(found.stdout)
    names = re.findall(r"^(\S+\.py::[^\[\s]+)", found.stdout, re.MULTILINE)
    return list(dict.fromkeys(names)), found.returncode == 0


def run(name: str, arguments: list[str]) -> tuple[str, int]:
    begin = time.monotonic()
    done = pytest(*arguments, name)
    seconds = time.monotonic() - begin
    lines = done.stdout.rstrip().splitlines() or [""]
    said = lines[-1].strip("= ")
    if done.returncode == 124:
        said = f"cut off after {SECONDS} s"
    elif done.returncode < 0:
        said = f"died of signal {-done.returncode}"
    text = f"{name}: {said} ({seconds:.0f} s with the start)"
    notes = [line for line in lines if line.startswith("SKIPPED")]
    return "\n".join([text, *(lines[-LINES:] if done.returncode else notes)]), done.returncode


def main(arguments: list[str]) -> int:
    names, complete = functions(arguments)
    failed = 0
    with ThreadPoolExecutor(JOBS) as pool:
        for future in as_completed([pool.submit(run, name, arguments) for name in names]):
            text, status = future.result()
            failed += status != 0
            print(text, flush=True)
    print(f"{len(names) - failed} of {len(names)} test functions passed or were skipped")
    return 0 if complete and names and not failed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
