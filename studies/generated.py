"""Both networks on clips of the generator, where it is known what moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from clipsight import metrics, models
from clipsight.synthetic import moving_shapes

from . import measures

MOTION, CHEAT = NETWORKS = ("movers", "movers_biased")
SETS = {"hue tells the class": 1.0, "hue tells nothing": 0.0, "no hue, a look-alike": None}  # biases of the generator


def to_clips(frames: np.ndarray) -> torch.Tensor:
    """uint8 [N, T, H, W, 3] -> float32 [N, 3, T, H, W] as both networks want it."""
    wanted = models.load(MOTION).preprocessing
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (wanted.mean, wanted.std))
    return (torch.from_numpy(frames).permute(0, 4, 1, 2, 3) * wanted.scale - mean) / std


def changing(masks: np.ndarray) -> np.ndarray:
    """Voxels that the mover has just entered or is about to leave, bool [N, T, H, W]: there the picture changes."""
    change = masks[:, 1:] != masks[:, :-1]
    result = np.zeros_like(masks)
    result[:, 1:] |= change
    result[:, :-1] |= change
    return result


def accuracies(count: int, seed: int, batch: int) -> dict[str, dict[str, float]]:
    """Share of clips that each network names correctly, by set; the sets differ in the still shape's colour alone."""
    result = {name: {} for name in NETWORKS}
    for title, bias in SETS.items():
        clips = moving_shapes(count, seed, bias=bias)
        for name in NETWORKS:
            guess = measures.logits(models.load(name), to_clips(clips.frames), batch).argmax(1)
            result[name][title] = float((guess == clips.labels).mean())
    return result


def study(
    count: int, seed: int, methods: Sequence[str], floor: float, batch: int, report: Callable[[str], None]
) -> dict[str, Any]:
    """Everything that the page says of generated clips; both networks explain the true class of the same clips."""
    clips = moving_shapes(count, seed, bias=SETS["hue tells the class"])
    flow = np.stack([metrics.moving(metrics.optical_flow(frames)) for frames in clips.frames])
    truths = {"mover": clips.masks, "changing": changing(clips.masks), "flow": flow}
    regions = {"mover": clips.masks, "still": clips.still[:, None] & ~clips.masks}
    tensor, values = to_clips(clips.frames), {}
    for name in NETWORKS:
        network, values[name] = models.load(name), {}
        for method in methods:  # one after the other: a volume for every clip of every method is much
            report(f"{name}: {method}")
            maps = measures.raw_maps(network, tensor, clips.labels, [method], batch)[method]
            values[name][method] = measures.measured(maps, truths, regions, floor)
    return {
        "base rates": {name: float(truth.mean()) for name, truth in truths.items()}
        | {"still": float(np.broadcast_to(regions["still"], clips.masks.shape).mean())},
        "flow": {
            "precision": float((flow & clips.masks).sum() / max(flow.sum(), 1)),
            "recall": float((flow & clips.masks).sum() / clips.masks.sum()),
        },
        "right": {
            name: float((measures.logits(models.load(name), tensor, batch).argmax(1) == clips.labels).mean())
            for name in NETWORKS
        },
        **measures.summary(values, MOTION, CHEAT, seed),
    }
