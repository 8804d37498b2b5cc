"""The same measures on real clips, where what moves is known from estimated optical flow alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from clipsight import metrics, models
from clipsight.video import VideoReader
from clipsight.windows import Geometry, to_clip

from . import measures
from .generated import CHEAT, MOTION, NETWORKS

VIDEOS = ("cricket_rgb.gif", "arm_wrestling.mp4", "test.mp4")
FLOWS = {"cricket_rgb.gif": "cricket_flow.gif"}  # a published flow of the same frames, as colours
FLOW_RANGE = 20.0  # pixels per frame at either end of a channel of that picture (clipped there)
THRESHOLD = 0.5  # pixels per frame of the source, above which a pixel moves


def coloured_flow(frames: np.ndarray) -> np.ndarray:
    """Flow [T, H, W, 2] from its picture uint8 [T, H, W, 3]: x in red, y in green, +-20 pixels over 0..255.

    The commonest colour is taken for no motion: a palette of 256 colours moves all of them a little.
    """
    colours, counts = np.unique(frames.reshape(-1, 3), axis=0, return_counts=True)
    still = colours[counts.argmax(), :2].astype(np.float32)
    return (frames[..., :2] - still) * (2 * FLOW_RANGE / 255)


def windows(path: Path) -> tuple[np.ndarray, torch.Tensor, dict[str, np.ndarray]]:
    """Frames [N, T, h, w, 3], clips [N, 3, T, h, w] and what moves, bool [N, T, h, w], of whole windows side by side.

    Flow is estimated, and its threshold meant, at the resolution of the source, inside the network's crop; a voxel of
    the clip moves if most of its pixels do.
    """
    wanted = models.load(MOTION).preprocessing
    frames = np.stack(list(VideoReader(path)))
    geometry = Geometry.of(wanted, frames.shape[1:3])
    rows, columns = geometry.region
    flows = {"flow": metrics.optical_flow(np.ascontiguousarray(frames[:, rows, columns]))}
    if path.name in FLOWS:
        published = np.stack(list(VideoReader(path.with_name(FLOWS[path.name]))))
        flows["published flow"] = coloured_flow(published)[:, rows, columns]
    count = len(frames) // wanted.frames * wanted.frames
    seen = np.stack([geometry.crop_frame(frame) for frame in frames[:count]])
    cut = seen.reshape(-1, wanted.frames, *seen.shape[1:])
    truths = {}
    for name, flow in flows.items():
        moving = metrics.moving(flow[:count], THRESHOLD).astype(np.float32)
        small = [cv2.resize(m, wanted.crop[::-1], interpolation=cv2.INTER_AREA) > 0.5 for m in moving]
        truths[name] = np.stack(small).reshape(cut.shape[:-1])
    return cut, torch.from_numpy(np.concatenate([to_clip(clip, wanted) for clip in cut])), truths


def study(
    folder: Path, seed: int, methods: Sequence[str], floor: float, batch: int, report: Callable[[str], None]
) -> dict[str, Any]:
    """Everything that the page says of real clips; each network explains the class that it names."""
    cut = {video: windows(folder / video) for video in VIDEOS}
    clips = torch.cat([clips for _, clips, _ in cut.values()])
    flow = np.concatenate([truths["flow"] for *_, truths in cut.values()])
    _, _, cricket = cut[VIDEOS[0]]
    count, values, published = len(cricket["flow"]), {}, {}
    for name in NETWORKS:
        network, values[name], published[name] = models.load(name), {}, {}
        classes = measures.logits(network, clips, batch).argmax(1)
        for method in methods:
            report(f"{name}: {method}, real clips")
            maps = measures.raw_maps(network, clips, classes, [method], batch)[method]
            values[name][method] = measures.measured(maps, {"flow": flow}, {}, floor)
            published[name][method] = measures.measured(maps[:count], cricket, {}, floor)
    return {
        "windows": {video: len(clips) for video, (_, clips, _) in cut.items()},
        "base rates": {"flow": float(flow.mean())} | {f"cricket, {k}": float(v.mean()) for k, v in cricket.items()},
        **measures.summary(values, MOTION, CHEAT, seed),
        "cricket": measures.summary(published, MOTION, CHEAT, seed)["means"],
    }
