"""CUDA kernels: time on the device, bytes moved against the device's own copy speed, and the best plain torch way.

python -m benchmarks.bench_gpu --json FILE

Prints one JSON row per case and writes it to the file at once; what goes wrong with a case stands in its row. Results
are checked against the twins before the clock starts. Calls are timed as replays of a CUDA graph, so that launch gaps
of Python do not count, and go around several sets of inputs and outputs, larger together than the cache.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import torch
from benchmarks.gpu_cases import COPY, Case, cases
from benchmarks.gpu_rows import Rows, supervise, work

CALLS, REPEATS, WAITS, SETS = 10, 15, 200, 256  # calls a sample, samples, samples of a latency, most sets


def captured(call: Callable, sets: list[tuple]) -> torch.cuda.CUDAGraph:
    """A graph of one call on each set, after one on each outside of it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for arguments in sets:
            call(*arguments)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for arguments in sets:
            call(*arguments)
    return graph


def between_events(run: Callable, calls: int) -> float:
    """Milliseconds of one of the calls that `run` makes, as the device counts them."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / calls


def until_done(run: Callable) -> float:
    """Milliseconds that the host waits from the call to the end of its work on the device."""
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def clock(call: Callable, way: str, sets: list[tuple]) -> Callable[[], float]:
    """A function that measures the call once, in milliseconds; see `Case.timed`."""
    if way == "latency":
        return partial(until_done, captured(call, sets).replay)
    around = sets * math.ceil(CALLS / len(sets))
    if way == "graph":
        return partial(between_events, captured(call, around).replay, len(around))

    def run():
        for arguments in around:
            call(*arguments)

    return partial(between_events, run, len(around))


def check(case: Case, arguments: tuple) -> None:
    for got, want, bound in case.check(case.ours(*arguments), *arguments):
        got, want = got.double(), want.double()
        error = ((got - want).norm() / want.norm().clamp_min(1)).item()
        if not error <= bound:
            raise AssertionError(f"{case.name}: the result must match the twin to {bound}, got {error:.2e}")


def in_turns(clocks: list[Callable[[], float]], repeats: int) -> list[list[float]]:
    """The times of each clock; the first ones warm up."""
    rounds = [[one() for one in clocks] for _ in range(repeats + 3)]
    return [list(times) for times in zip(*rounds[3:], strict=True)]


def kernels(call: Callable, sets: list[tuple]) -> dict[str, float]:
    """Microseconds of each kernel and copy of one call, by name, in their order."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for arguments in sets:
            call(*arguments)
        torch.cuda.synchronize()
    times: dict[str, float] = {}
    for event in sorted(recorded.events(), key=lambda event: event.time_range.start):
        if event.device_type == torch.autograd.DeviceType.CUDA:
            name = event.name.replace("(anonymous namespace)::", "").removeprefix("void ").partition("(")[0]
            times[name] = times.get(name, 0.0) + event.time_range.elapsed_us() / len(sets)
    return {name: float(f"{time:.4g}") for name, time in times.items()}


def measure(case: Case, rows: Rows) -> Iterator[dict]:
    """The row in parts: ours, both in turns, kernels. So a baseline that fails costs no number of ours."""
    torch.manual_seed(0)
    sets = [case.make()]
    check(case, sets[0])
    if case.timed == "graph":
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        size = sum(tensor.nbytes for tensor in sets[0])
        sets += [case.make() for _ in range(min(math.ceil(3 * cache / size), SETS) - 1)]
    repeats = WAITS if case.timed == "latency" else REPEATS
    clocks = [clock(case.ours, case.timed, sets)]

    def ours(times: list[float]) -> dict:
        median = statistics.median(times)
        row = {"ours_ms": median, "timed": case.timed, "spread_ms": statistics.stdev(times), "sets": len(sets)}
        if case.timed != "latency":
            row["GB_s"] = case.moved / median / 1e6
            copy = rows.of.get(COPY, {}).get("GB_s")
            row |= {"of_copy_speed": row["GB_s"] / copy} if copy and case.name != COPY else {}
        return row

    yield ours(*in_turns(clocks, repeats))
    if case.plain is not None:
        clocks.append(clock(case.plain, case.plain_timed, sets))
        mine, plain = in_turns(clocks, repeats)
        row, baseline = ours(mine), statistics.median(plain)
        yield row | {
            "baseline": "plain torch",
            "baseline_ms": baseline,
            "baseline_timed": case.plain_timed,
            "ratio": baseline / row["ours_ms"],
        }
    if case.timed != "latency":
        yield {"kernels_us": kernels(case.ours, sets[:8])}


def printed(*command: str) -> str:
    """What a command prints, or why it does not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown: {error}"
    return done.stdout.strip() if done.returncode == 0 else f"unknown: {done.stderr.strip()}"


def machine() -> dict:
    properties = torch.cuda.get_device_properties(0)
    commit = os.environ.get("CLIPSIGHT_COMMIT") or printed("git", "describe", "--always", "--dirty", "--abbrev=40")
    return {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "cache_bytes": properties.L2_cache_size,
        "driver": printed("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="where the rows go")
    parser.add_argument("--worker", action="store_true", help="measure what the file lacks, in this process")
    arguments = parser.parse_args()
    if not arguments.worker:
        worker = [sys.executable, "-m", "benchmarks.bench_gpu", "--json", arguments.json, "--worker"]
        return 0 if supervise(worker, arguments.json) else 1
    rows = Rows(arguments.json)
    rows.machine = rows.machine or machine()
    return work(rows, ((case.name, partial(measure, case, rows)) for case in cases()))


if __name__ == "__main__":
    sys.exit(main())
