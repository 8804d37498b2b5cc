"""How long an export to `.onnx` takes, its self-check included, and how large the file is.

Beside torch.onnx.export of the network alone: same opset, free batch, its default optimisation; a goal is an absolute
time. Each export runs in a process of its own, so that what torch imports and registers for the first one counts, as
for anybody who exports one file; the sides take turns. The time is that of `clipsight.export`, as for the earlier
numbers; the ratio counts `explain_s` too, which came before and imports what the other side imports within its time.
Networks have random weights and the clip size of their own. No time counts before the file has given the network's
logits.

python -m benchmarks.bench_exports [ROW ...]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.measure import row

RUNS = 3
LONG = 60.0  # seconds of an export that is run once
LONGEST = 600.0  # where a process is ended, and counts as that


@dataclass(frozen=True)
class Case:
    """An export: a network by name, heads by their name in `one_export`, and in words.

    Attributes:
        earlier: how long it took before exports were made faster, where that is known.
        limit: seconds that it may take.
    """

    network: str
    heads: str
    what: str
    earlier: str
    limit: float


CASES = {
    "r3d_18-motion": Case("r3d_18", "motion", "tube + motion + share", "11.5 s", 5),
    "r3d_18-guided_backprop": Case("r3d_18", "guided_backprop", "guided backprop", "31 s", 10),
    "r3d_18-deep_taylor": Case("r3d_18", "deep_taylor", "Deep Taylor", "46 s", 14),
    "r3d_18-gradients": Case("r3d_18", "gradients", "six gradient heads", "245 s", 40),
    "r3d50-six": Case("r3d50", "six", "tube, gradient heads, pyramid", "over 480 s of CPU", 90),
    "r3d152-tube": Case("r3d152", "tube", "tube", "", 20),
}


def rows(names: Sequence[str] = tuple(CASES)) -> Iterator[dict]:
    """One row for each case."""
    if unknown := [name for name in names if name not in CASES]:
        raise ValueError(f"exports: rows must be among {list(CASES)}, got {unknown}")
    for name in names:
        yield measure(CASES[name])


def measure(case: Case) -> dict:
    """The row of one case: the run of median time, and the medians of both sides."""
    ours: list[dict] = []
    bare: list[dict] = []
    while len(ours) < RUNS and not (ours and ours[0]["seconds"] > LONG):
        ours.append(_in_fresh_process(case.network, case.heads))
        bare.append(_in_fresh_process(case.network, "bare"))
    times, theirs = ([1e3 * run["seconds"] for run in side] for side in (ours, bare))
    middle, plain = (sorted(side, key=lambda run: run["seconds"])[len(side) // 2] for side in (ours, bare))
    result = row(f"export, {case.network}, {case.what}", times, theirs, "torch.onnx.export of the network alone")
    seconds = middle["seconds"]
    overhead = (seconds + middle.get("explain_s", 0)) / plain["seconds"]
    result |= {"ratio": round(1 / overhead, 2), "overhead": round(overhead, 2)}
    once = f", once {case.earlier}" if case.earlier else ""
    result |= {"must_reach": f"<= {case.limit:g} s{once}", "met": seconds <= case.limit}
    result |= {key: value for key, value in middle.items() if key != "seconds"}
    result |= {f"baseline_{key}": plain[key] for key in ("nodes", "bytes") if key in plain}
    return result | {"runs": len(ours), "threads": torch.get_num_threads()}


def _in_fresh_process(network: str, heads: str) -> dict:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.one_export", network, heads, str(Path(folder) / "file.onnx")]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LONGEST)
        except subprocess.TimeoutExpired:
            return {"seconds": LONGEST, "stopped": True}
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed:\n{done.stderr or done.stdout}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.path.insert(0, "")
    for result in rows(sys.argv[1:] or tuple(CASES)):
        print(json.dumps(result), flush=True)
