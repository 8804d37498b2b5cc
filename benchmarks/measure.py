"""How everything here is timed: both sides in one run, interleaved, so that a busy machine slows both alike."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

import clipsight
from clipsight.onnx_runtime import session_options


def open_session(
    model: Path | bytes, threads: int | None = None, spinning: bool = False
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session as the package opens them, but for its threads.

    They go on spinning after a run; here that would slow the other side's turn.
    """
    if isinstance(model, bytes):
        with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
            file.write(model)
            file.flush()
            return open_session(Path(file.name), threads, spinning)
    options = session_options(model)
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return clipsight.onnx_session(model, threads=threads, options=options)


def interleaved(ours: Callable, baseline: Callable, pairs: int = 40, warmup: int = 3) -> tuple[list, list]:
    """Milliseconds of each call; the two sides take turns, and take turns at going first."""
    for _ in range(warmup):
        ours()
        baseline()
    times: tuple[list, list] = ([], [])
    for pair in range(pairs):
        for side in (0, 1) if pair % 2 else (1, 0):
            start = time.perf_counter()
            (ours, baseline)[side]()
            times[side].append((time.perf_counter() - start) * 1e3)
    return times


def row(case: str, ours: list, baseline: list, name: str, bound: str = "", **more) -> dict:
    """A JSON row from two lists of milliseconds: medians, and their ratio baseline / ours (how many times faster).

    `bound` such as ">= 1000" is what the ratio must reach.
    """
    a, b = statistics.median(ours), statistics.median(baseline)
    numbers = {"case": case, "ours_ms": a, "baseline": name, "baseline_ms": b, "ratio": b / a}
    target = {"must_reach": bound, "met": b / a >= float(bound.removeprefix(">="))} if bound else {}
    return {k: _short(v) for k, v in numbers.items()} | target | more


def paired_overhead(ours: list, baseline: list, resamples: int = 4000) -> tuple[float, float, float]:
    """Median paired difference over the baseline's median, as 1 + x, with its 95 % bootstrap interval."""
    difference = np.subtract(ours, baseline)
    plain = np.median(baseline)
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(difference, (resamples, len(difference))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return tuple(float(1 + x / plain) for x in (np.median(difference), low, high))


def machine() -> dict:
    """What the numbers were measured on."""
    import torch

    from clipsight import build_info

    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "simd": build_info()["kernels"]["simd"],
    }


def _short(value):
    return float(f"{value:.4g}") if isinstance(value, float) else value
