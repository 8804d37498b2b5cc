"""The golden files: exports of earlier days, with the inputs and outputs of the day when they were written."""

from __future__ import annotations

import lzma
import platform
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from clipsight.manifest import Manifest, read_manifest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "tests" / "golden").is_dir())
FILES = ROOT / "tests" / "golden" / "files"
NAMES = sorted(path.stem for path in FILES.glob("*.xz"))


class Run(NamedTuple):
    """Arrays by name, in the order of the manifest."""

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def unpack(folder: Path) -> dict[str, Path]:
    """Every golden file by name."""
    for name in NAMES:
        (folder / name).write_bytes(lzma.decompress((FILES / f"{name}.xz").read_bytes()))
    return {name: folder / name for name in NAMES}


def runs_of(name: str) -> list[Run]:
    with np.load(FILES / f"{name}.npz") as stored:
        arrays = dict(stored)
    runs: dict[str, Run] = {}
    for key, array in arrays.items():
        run, kind, port = key.split(".", 2)
        getattr(runs.setdefault(run, Run({}, {})), f"{kind}s")[port] = array
    return list(runs.values())


def tolerance(manifest: Manifest, dtype: np.dtype) -> float:
    """How far a value may be from the stored one, as a share of the output's largest; 0 for counts and masks.

    Half precision rounds at other places on other processors, and a rounded map may fall on either side of a step.
    """
    if dtype.kind in "bi":
        return 0
    step = {"uint8": 1 / 255, "float16": 2e-3, "float32": 1e-5, "float64": 1e-9}[dtype.name]
    return max(step, {"float16": 5e-3, "bfloat16": 3e-2}.get(manifest.options["half"], 0))


def assert_agree(manifest: Manifest, got, stored: dict[str, np.ndarray]) -> None:
    assert len(got) == len(stored)
    for mine, (name, want) in zip(got, stored.items(), strict=True):
        assert (mine.dtype, mine.shape) == (want.dtype, want.shape), name
        allowed = tolerance(manifest, want.dtype) * np.abs(want.astype(float)).max()
        np.testing.assert_allclose(mine.astype(float), want.astype(float), rtol=0, atol=allowed, err_msg=name)


def is_at_home(path: Path) -> bool:
    """Whether this machine and this torch must run it: compiled code is for those that it was compiled for."""
    manifest = read_manifest(path)
    release = torch.__version__.split(".")[:2] == manifest.built_with.get("torch", "").split(".")[:2]
    return manifest.kind != "aot" or (release and platform.machine() == "x86_64" and torch.cpu._is_avx2_supported())
