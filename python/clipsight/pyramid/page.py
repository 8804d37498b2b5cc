"""One HTML page of a class feature pyramid: pick a class, a layer and a channel, and walk to its parents and children.

The page is a single file without a library or any access to a network; a browser opens it from disk. Its frame is
`page.html` beside this module; everything that it shows is in one JSON element, arrays as base64 of bytes.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..render import JET
from ..staging import whole_file
from ..text import printable
from . import Layer, Pyramid, Step

FRAME_WIDTH = 256
"""Widest frame in pixels; wider ones are scaled down."""
SHRINK = 4
"""The volumes keep every frame and about one cell for 4 x 4 pixels."""
MAP_SIDE = 32
"""Activations keep their own grid up to this many cells in height and width."""


def write_page(
    path: str | os.PathLike,
    pyramids: Sequence[Pyramid],
    frames: np.ndarray,
    activations: Mapping[str, np.ndarray] | None = None,
    title: str = "",
    fps: float = 8.0,
    limit: int = 64,
) -> None:
    """Writes the page, whole or not at all: rows of layers over columns of frames as in Figure 1 of Stergiou et al.
    (2019), the tube of a layer, the maps of its channels, and the dependency graph to walk along.

    Args:
        path: of the HTML file.
        pyramids: of one clip, one for each class; their layers are the same.
        frames: uint8 `[T, H, W, 3]`, RGB: the clip as the network saw it, cropped, so that the maps cover it.
        activations: layer name -> float32 `[channels, t, h, w]`, the features that this layer reads; layers that are
            left out, or all where it is `None`, get no maps of single channels.
        title: headline, plain text.
        fps: frames per second of the playback.
        limit: channels per layer and class that the page keeps; it says how many there are. Of each kernel on the page
            it takes the channel of the largest multiplicity, then the next one, so that a walk down goes on.

    Raises:
        ValueError: no pyramid or pyramids of differing layers; frames, activations or volumes of another shape or
            not finite; volumes other than one per layer; a rate or limit that is not positive.
    """
    data = page_data(pyramids, frames, activations, fps, limit)
    parts = {
        "title": html.escape(printable(title) or "Class feature pyramid"),
        "data": json.dumps(data).replace("<", "\\u003c"),
    }
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    with whole_file(path) as temporary:
        temporary.write_text(re.sub("@(title|data)@", lambda match: parts[match[1]], template), encoding="utf-8")


def page_data(
    pyramids: Sequence[Pyramid],
    frames: np.ndarray,
    activations: Mapping[str, np.ndarray] | None = None,
    fps: float = 8.0,
    limit: int = 64,
) -> dict[str, Any]:
    """What the page shows, ready for JSON; arguments and errors as for :func:`write_page`.

    A grid of bytes is `{"shape", "low", "high", "data"}`: level `l` stands for `low + l / 255 * (high - low)`.
    """
    layers = [step.layer for step in pyramids[0]] if pyramids else []
    _check(pyramids, layers, frames, activations or {}, fps, limit)
    shown = [_choose(pyramid, limit) for pyramid in pyramids]
    maps = {}
    for layer in layers:
        channels = sorted(set().union(*(each[layer.name].tolist() for each in shown)))
        if channels and layer.name in (activations or {}):
            features = np.asarray(activations[layer.name])[channels]
            maps[layer.name] = {"channels": channels} | _grids(layer, _shrink(features, MAP_SIDE, MAP_SIDE))
    return {
        "fps": float(fps),
        "jet": _text(JET),
        "frames": [_text(_jpeg(frame)) for frame in frames],
        "layers": [layer.to_dict() for layer in layers],
        "maps": maps,
        "classes": [
            {
                "index": int(pyramid.class_index),
                "label": pyramid.label,
                "steps": [_step(step, pyramid, pyramids, own) for step in pyramid],
            }
            for pyramid, own in zip(pyramids, shown, strict=True)
        ],
    }


def _step(step: Step, pyramid: Pyramid, pyramids: Sequence[Pyramid], shown: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """One layer of one class: its totals, and what the page keeps of its channels, edges and volume."""
    channels, name = shown[step.layer.name], step.layer.name
    others = [other[name].mask[channels] for other in pyramids if other is not pyramid]
    volume = None
    if step.volumes is not None:
        rows, columns = (-(-side // SHRINK) for side in step.volumes.shape[2:])
        volume = _grids(step.layer, _shrink(step.volumes, rows, columns))
    taken = {int(kernel): step.connections(kernel) for kernel in step.kernels}
    pointed = np.bincount(np.concatenate([*taken.values(), np.empty(0, np.int64)]), minlength=step.layer.channels)
    kernels = _walkable(step, pyramid, shown)
    links = {k: (len(row), np.intersect1d(row, channels).tolist()) for k, row in taken.items() if k in kernels}
    return {
        "selected": int(step.mask.sum()),
        "kernels": len(taken),
        "edges": int(step.edges.sum()),
        "channels": channels.tolist(),
        "multiplicity": step.multiplicity[channels].tolist(),
        "pointed": pointed[channels].tolist(),  # kernels of this layer alone that point at each
        "shared": np.any(others, axis=0).tolist() if others else [],
        "links": links,  # kernel -> how many channels it takes, and which of those on show
        "volume": volume,
    }


def _choose(pyramid: Pyramid, limit: int) -> dict[str, np.ndarray]:
    """The channels of each layer that the page keeps, int64, those of the largest multiplicity first."""
    shown: dict[str, np.ndarray] = {}
    for step in pyramid:
        turn = np.full(step.layer.channels, step.layer.channels)  # in which a kernel on the page takes the channel
        for kernel in _walkable(step, pyramid, shown):
            row = step.connections(kernel)
            row = row[np.argsort(-step.multiplicity[row], kind="stable")]
            turn[row] = np.minimum(turn[row], np.arange(len(row)))
        channels = np.flatnonzero(step.mask)
        kept = channels[np.lexsort((-step.multiplicity[channels], turn[channels]))][:limit]
        shown[step.layer.name] = kept[np.lexsort((kept, -step.multiplicity[kept]))]
    return shown


def _walkable(step: Step, pyramid: Pyramid, shown: Mapping[str, np.ndarray]) -> set[int]:
    """Kernels of a layer that the page leads to: the class itself, or those that are a channel on show further up."""
    kernels = {pyramid.class_index} if step.layer.depth == 1 else set()
    for upper in (upper for upper in pyramid if upper.layer.name in shown):
        for source in (source for source in upper.layer.sources if source.layer == step.layer.name):
            inside = (j for j in shown[upper.layer.name].tolist() if source.start <= j < source.stop)
            kernels.update(j - source.start + source.first for j in inside)
    return kernels


def _grids(layer: Layer, values: np.ndarray) -> dict[str, Any]:
    """Float `[V, t, h, w]` as bytes, each of the V scaled from its own minimum and maximum; a constant one is 0."""
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"write_page: volumes and activations must be finite, got others in {layer.name}")
    low, high = values.min((1, 2, 3)), values.max((1, 2, 3))
    scale = np.divide(255, high - low, out=np.zeros_like(low), where=high > low)
    levels = np.rint((values - low[:, None, None, None]) * scale[:, None, None, None]).astype(np.uint8)
    return {"shape": values.shape[1:], "low": low.tolist(), "high": high.tolist(), "data": _text(levels)}


def _shrink(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """`[.., H, W]` -> at most `[.., rows, columns]`; corners stay corners, as in the up-sampling of the head."""
    for axis, size in ((-2, rows), (-1, columns)):
        n = values.shape[axis]
        if n > size:
            centres = np.linspace(0, n - 1, size)
            hats = 1 - np.abs(centres[:, None] - np.arange(n)) * max(size - 1, 1) / (n - 1)  # wide enough to skip none
            weights = np.clip(hats, 0, None)
            weights /= weights.sum(1, keepdims=True)
            values = np.moveaxis(np.tensordot(values, weights, (axis, 1)), -1, axis)
    return values


def _jpeg(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    if width > FRAME_WIDTH:
        size = FRAME_WIDTH, max(round(height * FRAME_WIDTH / width), 1)
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]


def _text(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values)).decode()


def _check(pyramids, layers, frames, activations, fps, limit) -> None:
    if not pyramids or any([step.layer for step in pyramid] != layers for pyramid in pyramids):
        raise ValueError(
            f"write_page: pyramids must be of the same layers, at least one, got {len(pyramids)} of "
            f"{[[step.layer.name for step in pyramid] for pyramid in pyramids]}"
        )
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ValueError(f"write_page: frames must be uint8 [T, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    if not (fps > 0 and limit >= 1):
        raise ValueError(f"write_page: fps and limit must be positive, got {fps}, {limit}")
    for name, values in activations.items():
        width = next((layer.channels for layer in layers if layer.name == name), None)
        if width is None or len(values) != width or np.ndim(values) != 4:
            expected = f"a layer of {[layer.name for layer in layers]}" if width is None else f"[{width}, t, h, w]"
            raise ValueError(f"write_page: activations[{name!r}] must be {expected}, got {list(np.shape(values))}")
    for step in (step for pyramid in pyramids for step in pyramid if step.volumes is not None):
        if step.volumes.ndim != 4 or len(step.volumes) != 1:
            raise ValueError(
                f'write_page: volumes must be one per layer, [1, T, H, W] (volumes="layer" of the head), '
                f"got {list(step.volumes.shape)} of {step.layer.name}"
            )
