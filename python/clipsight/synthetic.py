"""Clips with known truth: one shape moves, a look-alike stands still, and the mover's mask is given for every frame.

The class is the motion alone. At the middle of the clip every class has the same distribution of positions, sizes,
angles and colours, so that no single frame tells the class; only what happens around the middle does. All lengths are
fractions of the frame's side, so that the same seed gives the same scene at every size.

With a bias the class has a second, still sign: the look-alike is no longer one, but has one of eight muted hues, one
for each class. A network may then name the class without having seen anything move.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# What changes in each class, as signs of (x, y, angle, log size); y points down, so a rising angle turns clockwise.
_MOTIONS = {
    "moves left": (-1, 0, 0, 0),
    "moves right": (1, 0, 0, 0),
    "moves up": (0, -1, 0, 0),
    "moves down": (0, 1, 0, 0),
    "turns clockwise": (0, 0, 1, 0),
    "turns anticlockwise": (0, 0, -1, 0),
    "grows": (0, 0, 0, 1),
    "shrinks": (0, 0, 0, -1),
}
MOTION_CLASSES = tuple(_MOTIONS)

# One muted hue for each class, float64 [8, 3], RGB: 45 degrees apart, and far from the corners of the RGB cube, near
# which every mover has its colour.
CUE_COLOURS = 128 + 70 * np.cos(2 * np.pi * (np.arange(8)[:, None] / 8 - np.arange(3) / 3))

# Ranges of the uniform draws. Travel, turn and growth are from the middle of the clip to its end.
_AREA = (0.028, 0.052)  # of the frame
_TRAVEL = (0.08, 0.13)  # of the frame's side
_TURN = (0.8, 1.4)  # radians
_GROWTH = (0.25, 0.4)  # natural log of the side's factor
_HUE_JITTER = 8  # largest change of a channel of a telling hue, of 255
_NOISE = 6  # largest change of one pixel from frame to frame, of 255


class Clips(NamedTuple):
    """A set of labelled clips."""

    frames: np.ndarray  # uint8 [N, T, H, W, 3], RGB
    labels: np.ndarray  # int64 [N], indices into MOTION_CLASSES
    masks: np.ndarray  # bool [N, T, H, W], True on the mover
    still: np.ndarray  # bool [N, H, W], True on the shape that stands still, where the mover may pass over it


def moving_shapes(
    count: int,
    seed: int,
    frames: int = 16,
    size: int = 64,
    labels: Sequence[int] | None = None,
    bias: float | None = None,
) -> Clips:
    """Draw `count` clips of moving shapes.

    Clip `i` depends on `seed`, `i`, its label, `frames`, `size` and `bias` alone, not on `count`; `bias` changes the
    colour of the shape that stands still and nothing else.

    Args:
        count: number of clips N.
        seed: non-negative; other seeds give other clips.
        frames: clip length T.
        size: height and width in pixels.
        labels: class index of every clip; by default clip `i` shows class `i % 8`.
        bias: probability p that the colour of the still shape tells the class. With p it has the class's own hue of
            `CUE_COLOURS`, otherwise any of the eight, so that the hue is right in p + (1 - p) / 8 of the clips: 1 tells
            every class, 0 tells nothing. `None`: no such hue at all, the still shape looks like the mover.

    Raises:
        ValueError: a count, size, label or bias out of range.
    """
    if count < 0 or frames < 2 or size < 16:
        raise ValueError(f"moving_shapes: count, frames, size must be at least 0, 2, 16, got {count}, {frames}, {size}")
    labels = np.arange(count) % len(MOTION_CLASSES) if labels is None else np.asarray(labels)
    if labels.shape != (count,) or not all(0 <= k < len(MOTION_CLASSES) for k in labels):
        raise ValueError(f"moving_shapes: labels must be {count} class indices in 0..7, got {labels.tolist()}")
    if bias is not None and not 0 <= bias <= 1:
        raise ValueError(f"moving_shapes: bias must be a probability or None, got {bias}")
    clips = Clips(
        np.empty((count, frames, size, size, 3), np.uint8),
        labels.astype(np.int64),
        np.empty((count, frames, size, size), bool),
        np.empty((count, size, size), bool),
    )
    for i, label in enumerate(labels):
        hue = None if bias is None else _hue(np.random.default_rng([seed, i, 1]), int(label), bias)
        scene = _clip(np.random.default_rng([seed, i]), int(label), frames, size, hue)
        clips.frames[i], clips.masks[i], clips.still[i] = scene
    return clips


def _hue(rng: np.random.Generator, label: int, bias: float) -> np.ndarray:
    """The colour of a still shape that tells the class with probability `bias`, float32 [3]."""
    told, chance = rng.random() < bias, rng.integers(len(CUE_COLOURS))
    return (CUE_COLOURS[label if told else chance] + rng.uniform(-_HUE_JITTER, _HUE_JITTER, size=3)).astype(np.float32)


def _clip(
    rng: np.random.Generator, label: int, frames: int, size: int, hue: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One clip uint8 [T, H, W, 3], the masks of its mover bool [T, H, W] and of its still shape bool [H, W]."""
    # Every amount is drawn for every class: what a class does not use must not shift its other draws.
    shape = _SHAPES[rng.integers(len(_SHAPES))]
    side, other_side = np.sqrt(rng.uniform(*_AREA, size=2))
    travel, turn, growth = rng.uniform(*_TRAVEL), rng.uniform(*_TURN), rng.uniform(*_GROWTH)
    angle, other_angle = rng.uniform(0, 2 * np.pi, size=2)
    margin = 0.6 * side + travel
    centre = rng.uniform(margin, 1 - margin, size=2)
    other_centre = _away_from(rng, centre, 0.8 * (side + other_side) + travel, margin=0.6 * other_side)

    amounts = np.multiply(_MOTIONS[MOTION_CLASSES[label]], (travel, travel, turn, growth))
    path = np.linspace(-1, 1, frames)[:, None] * amounts
    mover = _signed_distance(shape, centre + path[:, :2], angle + path[:, 2], side * np.exp(path[:, 3]), size)
    distractor = _signed_distance(shape, other_centre[None], np.array([other_angle]), np.array([other_side]), size)

    # Look-alikes: colours near the same corner of the RGB cube, away from the mid-grey background.
    colours = np.abs(rng.integers(0, 2, size=3) * 255 - rng.uniform(0, 60, size=(2, 3))).astype(np.float32)
    still = _paint(_background(rng, size), distractor[0], colours[1] if hue is None else hue)
    pixels = _paint(still, mover, colours[0])
    pixels += rng.integers(0, 2 * _NOISE + 1, size=pixels.shape, dtype=np.uint8)
    pixels -= _NOISE
    return np.clip(pixels, 0, 255, out=pixels).astype(np.uint8), mover < 0, distractor[0] < 0


def _away_from(rng: np.random.Generator, centre: np.ndarray, distance: float, margin: float) -> np.ndarray:
    """The first of some random places that is far enough from `centre`, or else the farthest."""
    places = rng.uniform(margin, 1 - margin, size=(16, 2))
    gaps = np.hypot(*(places - centre).T)
    return places[np.argmax(np.minimum(gaps, distance))]


def _signed_distance(
    shape: np.ndarray, centre: np.ndarray, angle: np.ndarray, side: np.ndarray, size: int
) -> np.ndarray:
    """Signed distance in pixels to a convex shape, float32 [T, size, size], negative inside.

    A convex shape is the largest of its edges' distances `n . (p - centre) - offset`, and each of them is a sum of a
    function of x and a function of y. `centre [T, 2]`, `angle [T]` and `side [T]` give the pose per frame.
    """
    pixels = (np.arange(size) + 0.5) / size
    distance = None
    for direction, offset in shape:
        normal_x, normal_y = np.cos(angle + direction), np.sin(angle + direction)
        shift = normal_x * centre[:, 0] + normal_y * centre[:, 1] + offset * side
        along_x = (size * normal_x[:, None] * pixels).astype(np.float32)
        along_y = (size * (normal_y[:, None] * pixels - shift[:, None])).astype(np.float32)
        edge = along_y[:, :, None] + along_x[:, None, :]
        distance = edge if distance is None else np.maximum(distance, edge, out=distance)
    return distance


def _paint(canvas: np.ndarray, distance: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """The canvas [.., H, W, 3] with an anti-aliased shape, given by its signed distance, in one colour."""
    coverage = np.clip(0.5 - distance, 0, 1)[..., None]
    return canvas + coverage * (colour - canvas)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A random texture, float32 [size, size, 3]: a colour, two octaves of smooth noise and some grain."""
    texture = rng.uniform(100, 155, size=3) + rng.normal(0, 5, size=(size, size, 1))
    for cells, contrast in ((5, 20.0), (13, 12.0)):
        places = np.linspace(0, cells - 1, size)
        weights = np.clip(1 - np.abs(places[:, None] - np.arange(cells)), 0, 1)  # linear interpolation
        grid = rng.normal(0, contrast, size=(cells, cells, 1)) + rng.normal(0, contrast / 2, size=(cells, cells, 3))
        texture += np.einsum("yi,xj,ijc->yxc", weights, weights, grid, optimize=True)
    return texture.astype(np.float32)


def _edges(*vertices: tuple[float, float]) -> np.ndarray:
    """A convex polygon as edges (direction of the outer normal, offset), its centroid at 0 and its area 1."""
    start = np.array(vertices)
    end = np.roll(start, -1, axis=0)
    cross = start[:, 0] * end[:, 1] - end[:, 0] * start[:, 1]
    area = cross.sum() / 2
    centroid = ((start + end) * cross[:, None]).sum(axis=0) / (6 * area)
    along = end - start
    directions = np.arctan2(-along[:, 0], along[:, 1])
    offsets = np.cos(directions) * (start - centroid)[:, 0] + np.sin(directions) * (start - centroid)[:, 1]
    return np.stack([directions, offsets / np.sqrt(area)], axis=1)


# Convex, without much rotational symmetry: a turn must be visible. Vertices run from x to y.
_SHAPES = (
    _edges((0, 0), (1.9, 0), (1.9, 1), (0, 1)),  # rectangle
    _edges((0, 0), (1.2, 0), (0.6, 1.6)),  # triangle
    _edges((0, 0), (1.9, 0), (1.4, 1), (0.5, 1)),  # trapezium
    _edges((0, 0), (0.6, 0.6), (0, 1.7), (-0.6, 0.6)),  # kite
)
