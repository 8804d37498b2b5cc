"""Exported files that several test files read: each is made once in a run, by whoever asks first."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock

import clipsight
import networks
from clipsight import Preprocessing, SaliencyTube, SelectiveRelevance, models

HEADS = (SaliencyTube(), SelectiveRelevance(extras=("motion_share",)))
ALL_OUTPUTS = (
    SaliencyTube(extras=("per_frame", "peak_box")),
    SelectiveRelevance(part="both", extras=("motion_share",)),
)
OTHER_SIZE = (12, 48, 40)  # beside (8, 32, 32)


def made_once(folder: Path, network: str, heads, suffix: str, classes="predicted", **options) -> Path:
    """The path of an exported file, by default with labels and preprocessing in its manifest.

    Args:
        folder: of this test run.
        network: one that the package ships, or a class of :mod:`networks`, for clips of 8x32x32.
        options: of `clipsight.export`.
    """
    asked = repr((network, heads, suffix, classes, sorted(options.items())))
    path = folder / f"{network}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}{suffix}"
    folder.mkdir(exist_ok=True)

    def write(path: Path) -> None:  # it appears whole or not at all
        if models.has_weights(network):
            model = models.load(network)
            clip = torch.zeros(1, 3, *model.preprocessing.size)
            labels, preprocessing = model.labels, model.preprocessing
        else:
            model, clip = networks.seeded(getattr(networks, network)), networks.clip()
            labels, preprocessing = list("abcde"), Preprocessing(frames=8, resize=36, crop=(32, 32))
        facts = {"labels": labels, "preprocessing": preprocessing}
        clipsight.export(clipsight.explain(model, heads, clip, classes), path, **facts | options)

    return once(path, write)


def once(path: Path, write: Callable[[Path], object]) -> Path:
    """The path of a file, which `write(path)` makes where no other process of this run has made it."""
    with FileLock(f"{path}.lock"):
        if not path.exists():
            write(path)
    return path
