"""benchmarks/gpu_session.sh loses nothing: commands that hang, fail or die stand in for those that need a GPU."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from building import REPOSITORY

pytestmark = pytest.mark.full
SCRIPT = REPOSITORY / "benchmarks" / "gpu_session.sh"
PYTHON = """
case "$*" in
  *gpu_tests*) echo one passed; exec sleep 60 ;;
  *bench_gpu*) echo '{"rows": []}' >"${@: -1}" ;;
  *) echo 1 ;;
esac
"""
WORKER = """
import os, sys, time
from pathlib import Path
from benchmarks.gpu_rows import Rows, work

def wrong(parts=()):
    yield from parts
    raise RuntimeError("an illegal memory access")

cases = {"first": lambda: [{"ours_ms": 1.23456}], "raises": wrong,
         "raises later": lambda: wrong([{"ours_ms": 3.0}]), "killed": lambda: os.kill(os.getpid(), 9),
         "hangs": lambda: time.sleep(60), "last": lambda: [{"ours_ms": 2.0}]}
rows = Rows(Path(sys.argv[1]))
rows.machine = {"device": "none"}
sys.exit(work(rows, cases.items(), seconds=int(sys.argv[2])))
"""
SUPERVISOR = """
import sys
from pathlib import Path
from benchmarks.gpu_rows import supervise

path, seconds, worker = sys.argv[1:]
sys.exit(not supervise([sys.executable, "-c", worker, path, seconds], Path(path)))
"""

GPU_TESTS = f"""
import os, time, pytest
pytestmark = pytest.{"mark"}.gpu
def test_dies(): os.abort()
def test_hangs(): time.sleep(60)
def test_is_wrong(): assert 1 == 2
def test_has_no_device(): pytest.skip("one device only")
@pytest.mark.parametrize("n", [1, 2])
def test_is_right(n): pass
"""


@pytest.fixture
def start(tmp_path: Path):
    """Starts the script with stubs for every program it needs; `python` and so on are the bodies of other stubs."""
    processes = []

    def start_script(seconds: float, **stubs: str) -> subprocess.Popen:
        programs = {"python": PYTHON, "cmake": "", "nvidia-smi": "echo GPU", "compute-sanitizer": "exit 9"}
        for name, body in (programs | stubs).items():
            (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (tmp_path / name).chmod(0o755)
        environment = os.environ | {
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "PYTHON": str(tmp_path / "python"),
            "CLIPSIGHT_GPU_SECONDS": str(seconds),
        }
        command = ["bash", SCRIPT, tmp_path / "out"]
        to_pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **to_pipe))
        return processes[-1]

    yield start_script
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(true: Callable[[], bool]) -> None:
    for _ in range(200):
        if true():
            return
        time.sleep(0.05)
    pytest.fail("nothing came within ten seconds")


def steps(folder: Path) -> dict[str, str]:
    """How each step of summary.txt ended, without its times."""
    ends = re.findall(r"^(\w+): (exit \d+) after [\d.]+ s(.*)$", (folder / "summary.txt").read_text(), re.MULTILINE)
    return {name: code + rest for name, code, rest in ends}


def test_a_step_that_hangs_is_cut_off_and_the_next_ones_run(start, tmp_path):
    begin = time.monotonic()
    process = start(5)
    printed, _ = process.communicate(timeout=30)
    assert time.monotonic() - begin < 6.5
    assert process.returncode == 124, printed  # of the first step that failed
    out = tmp_path / "out"
    assert steps(out) == {
        "device": "exit 0",
        "build": "exit 0",
        "tests": "exit 124, cut off",
        "bench": "exit 0",
        "memcheck": "exit 9",
        "racecheck": "exit 9",
    }
    assert (out / "tests.log").read_text() == "one passed\n"
    assert json.loads((out / "bench_gpu.json").read_text()) == {"rows": []}
    assert len(list(out.iterdir())) == 8  # the logs of six steps, the summary, the rows


def test_nothing_runs_on_a_build_that_failed(start, tmp_path):
    process = start(60, cmake="echo no compiler; exit 7")
    assert "no compiler" in process.communicate(timeout=30)[0]
    assert process.returncode == 7
    assert steps(tmp_path / "out") == {"device": "exit 0", "build": "exit 7"}
    assert (
        "tests, bench, memcheck, racecheck: skipped, they need the build" in (tmp_path / "out/summary.txt").read_text()
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_is_left_when_the_script_is_killed(start, tmp_path, number):
    process, log, summary = start(20), tmp_path / "out/tests.log", tmp_path / "out/summary.txt"
    wait_for(lambda: log.exists() and log.read_text() == "one passed\n")
    process.send_signal(number)
    process.wait(timeout=5)
    assert list(steps(tmp_path / "out")) == ["device", "build"]
    last = summary.read_text().splitlines()[-1]
    assert last.startswith("stopped from outside" if number == signal.SIGTERM else "tests: begins")


def test_the_limits_leave_room_before_seven_minutes():
    text = SCRIPT.read_text()
    assert int(re.search(r"CLIPSIGHT_GPU_SECONDS:-(\d+)", text)[1]) <= 415
    shares = [int(share) for share in re.findall(r"step \w+ (\d+) ", text)]
    assert shares == sorted(shares)
    assert shares[-1] == 100


def test_each_row_is_written_whatever_becomes_of_the_next(tmp_path):
    path = tmp_path / "rows.json"
    command = [sys.executable, "-c", SUPERVISOR, path, "1", WORKER]
    assert subprocess.run(command, cwd=REPOSITORY, check=False).returncode == 1
    content = json.loads(path.read_text())
    died = "the process died, or took longer than 1 s"
    assert content["machine"] == {"device": "none"}
    assert content["rows"] == [
        {"case": "first", "ours_ms": 1.235},
        {"case": "raises", "error": "RuntimeError: an illegal memory access"},
        {"case": "raises later", "ours_ms": 3.0, "error": "RuntimeError: an illegal memory access"},
        {"case": "killed", "error": died},
        {"case": "hangs", "error": died},
        {"case": "last", "ours_ms": 2.0},
    ]


def test_the_rows_are_valid_when_all_is_killed(tmp_path):
    path = tmp_path / "rows.json"
    command = [sys.executable, "-c", SUPERVISOR, path, "60", WORKER]
    process = subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True)
    wait_for(lambda: path.exists() and "hangs" in path.read_text())
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    rows = json.loads(path.read_text())["rows"]
    assert [row["case"] for row in rows] == ["first", "raises", "raises later", "killed", "hangs"]
    assert rows[0]["ours_ms"] == 1.235


def test_a_worker_that_never_begins_is_not_started_for_ever(tmp_path):
    path = tmp_path / "rows.json"
    command = [sys.executable, "-c", SUPERVISOR, path, "1", "raise SystemExit(5)"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "a worker must begin a case, got exit status 5 and no new row" in done.stdout
    assert json.loads(path.read_text()) == {"machine": {}, "rows": []}


def test_a_test_that_kills_its_process_or_hangs_costs_no_other(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_one.py").write_text(GPU_TESTS)
    code = "import sys; from benchmarks import gpu_tests as g; g.SECONDS = 3; sys.exit(g.main([]))"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    ends = dict(re.findall(r"^tests/test_one.py::(\w+): (.*) \(\d+ s", done.stdout, re.MULTILINE))
    assert done.returncode == 1
    assert ends["test_hangs"] == "cut off after 3 s"
    assert "assert 1 == 2" in done.stdout
    assert "1 failed" in ends["test_is_wrong"]
    assert ends["test_dies"] == "died of signal 6"
    assert "1 skipped" in ends["test_has_no_device"]
    assert "one device only" in done.stdout
    assert "2 passed" in ends["test_is_right"]
    assert "2 of 5 test functions passed or were skipped" in done.stdout
