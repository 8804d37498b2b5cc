"""Exported files in which bytes were changed, removed or added: each runs or is refused, in Python and in C."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

import networks
from artifacts import HEADS
from clipsight import load
from clipsight.manifest import LoadError
from helpers import onnxruntime_library
from session_api import CError, CSession

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

SEEDS = [pytest.param(range(20)), pytest.param(range(20, 600), marks=pytest.mark.full)]


def mutated(data: bytes, seed: int) -> bytes:
    draw, result = random.Random(seed), bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 5])):
        at, length, how = draw.randrange(len(result)), draw.randrange(1, 20), draw.random()
        if how < 0.6:
            result[at] = draw.randrange(256)
        elif how < 0.8:
            del result[at : at + length]
        else:
            result[at:at] = draw.randbytes(length)
    return bytes(result)


def run_in_python(path, clip) -> str:
    try:
        return "ran" if load(path)(clip) else ""
    except LoadError as error:
        return "refused" if str(error).startswith("load: ") else str(error)


def run_in_c(path, clip) -> str:
    try:
        return "ran" if CSession(path, onnxruntime_library()).run(clip) else ""
    except CError as error:
        return "refused" if str(error).partition(": ")[0] in ("open", "run", "output_shapes") else str(error)


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("suffix, run", [(".pt", run_in_python), (".onnx", run_in_python), (".onnx", run_in_c)])
def test_mutated(artifact, tmp_path, suffix, run, seeds):
    whole = artifact("ModulePool", HEADS, suffix).read_bytes()
    clip = networks.clip().numpy().astype(np.float32)
    path, outcomes = tmp_path / f"x{suffix}", Counter()
    for seed in seeds:
        path.write_bytes(mutated(whole, seed))
        outcomes[run(path, clip)] += 1
    assert set(outcomes) == {"ran", "refused"}  # both happen: a changed weight is no fault of the file
