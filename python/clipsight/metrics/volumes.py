"""Measures of volumes of relevance `[..., T, H, W]`; nothing here makes a temporary copy of a whole volume."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

FLOOR = 10 / 255
"""Relevance up to this share of a map's largest is negligible (Hiley et al. mark such areas as zero)."""
QUANTILE = 0.95
_VOLUME = (-3, -2, -1)
_FRAME = (-2, -1)


def relevant(
    relevance: np.ndarray,
    floor: float | str = FLOOR,
    *,
    quantile: float = QUANTILE,
    of: np.ndarray | None = None,
) -> np.ndarray:
    """Which voxels are relevant: those with `R > floor * max R`, the maximum being that of the whole volume.

    A floor of 0 takes every positive voxel (`IR = R > 0` of Hiley et al., 2020, section 4.3.1), which on a map that
    is positive everywhere tells nothing. Positive scaling of a map changes nothing; negative relevance is never
    relevant; a map without a positive value has no relevant voxel.

    Args:
        relevance: R `[..., T, H, W]`, finite.
        floor: share of the maximum, in 0..1 without 1; or `"quantile"`: the voxels that are positive and not below
            the quantile of their volume. That is the share `1 - quantile` of the voxels to within one voxel; fewer
            where fewer are positive, more where several are equal to the quantile.
        quantile: for `floor="quantile"`, between 0 and 1.
        of: the volume `[..., T, H, W]` that gives the maximum or the quantile, by default R itself. For a part of a
            map, such as its motion, the whole map: what is negligible in the map is so in its parts.

    Returns:
        bool, of R's shape.

    Raises:
        ValueError: a shape or option that does not fit, or a value that is NaN or infinite.
    """
    relevance = _volume("relevant", "relevance", relevance)
    return relevance > _cut("relevant", relevance, floor, quantile, of)[..., None, None, None]


def motion_precision(
    relevance: np.ndarray,
    moving: np.ndarray,
    floor: float | str = FLOOR,
    *,
    quantile: float = QUANTILE,
    of: np.ndarray | None = None,
) -> np.ndarray:
    """The share of the relevant voxels that move: P of Hiley et al. (2020), section 4.3.1 and Table 1, in 0..1.

    Args:
        relevance: R `[..., T, H, W]`, finite.
        moving: bool `[..., T, H, W]`, from `moving` or the true mask of what moves; its leading axes are broadcast
            against those of R.
        floor, quantile, of: what counts as relevant, see `relevant`.

    Returns:
        float64 `[...]`; 0 for a map without relevant voxels.

    Raises:
        ValueError, TypeError: a shape, type or option that does not fit, or a value that is NaN or infinite.
    """
    op = "motion_precision"
    relevance = _volume(op, "relevance", relevance)
    moving = _fitting(op, "moving", moving, relevance, mask=True)
    cut = _cut(op, relevance, floor, quantile, of)[..., None, None]
    both = _sum(lambda r, m: (r > cut) & m, relevance, moving)
    return both / np.maximum(_sum(lambda r: r > cut, relevance), 1)


def agreement(
    a: np.ndarray, b: np.ndarray, floor: float | str = FLOOR, measure: str = "iou", *, quantile: float = QUANTILE
) -> np.ndarray:
    """How far two methods find the same voxels relevant (Hiley et al., 2020, Table 2), in 0..1.

    Args:
        a, b: maps `[..., T, H, W]`, finite, whose leading axes are broadcast; each has its own maximum.
        floor, quantile: what counts as relevant, see `relevant`.
        measure: `"iou"`, voxels relevant in both over voxels relevant in either; or `"first"`, in both over in `a`.

    Returns:
        float64 `[...]`; 0 where the denominator has no voxel, thus also for two empty maps.

    Raises:
        ValueError: a shape or option that does not fit, or a value that is NaN or infinite.
    """
    if measure not in ("iou", "first"):
        raise ValueError(f"agreement: measure must be 'iou' or 'first', got {measure!r}")
    a = _volume("agreement", "a", a)
    b = _fitting("agreement", "b", _volume("agreement", "b", b), a)
    cut_a, cut_b = (_cut("agreement", v, floor, quantile)[..., None, None] for v in (a, b))
    both = _sum(lambda x, y: (x > cut_a) & (y > cut_b), a, b)
    if measure == "first":
        return both / np.maximum(_sum(lambda x: x > cut_a, a), 1)
    return both / np.maximum(_sum(lambda x, y: (x > cut_a) | (y > cut_b), a, b), 1)


def selectivity(
    selective: np.ndarray, baseline: np.ndarray, floor: float | str = FLOOR, *, quantile: float = QUANTILE
) -> tuple[np.ndarray, np.ndarray]:
    """How much of a map its selective version keeps (Hiley et al., 2020, section 4.3.2 and Table 3).

    The relevant voxels of both maps are those above the baseline's floor (`relevant(selective, of=baseline)`): a
    voxel that is negligible in the baseline is so in its part, and both ratios of a part lie in 0..1.

    Args:
        selective: the part `[..., T, H, W]` of the baseline, zero elsewhere, on the baseline's scale.
        baseline: the whole map `[..., T, H, W]`; leading axes are broadcast.
        floor, quantile: what counts as relevant, see `relevant`.

    Returns:
        Relevant voxels of the selective map over those of the baseline, and the sum of their relevance over that of
        the baseline's (the number that the paper has in parentheses); float64 `[...]` each, 0 for an empty baseline.

    Raises:
        ValueError: a shape or option that does not fit, or a value that is NaN or infinite.
    """
    baseline = _volume("selectivity", "baseline", baseline)
    selective = _fitting("selectivity", "selective", _volume("selectivity", "selective", selective), baseline)
    cut = _cut("selectivity", baseline, floor, quantile)[..., None, None]
    kept, all_voxels = (_sum(lambda r: r > cut, v) for v in (selective, baseline))
    kept_sum, whole_sum = (_sum(lambda r: np.where(r > cut, r, 0), v) for v in (selective, baseline))
    return kept / np.maximum(all_voxels, 1), kept_sum / np.where(whole_sum > 0, whole_sum, 1)


def motion_share(relevance: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """The share of the relevance that is motion: `sum |R| mask / sum |R|`, in 0..1.

    It sums up Table 3 of Hiley et al. (2020) without any floor, and is what `SelectiveRelevance` has as its output
    `motion_share`.

    Args:
        relevance: R `[..., T, H, W]`, the raw map before any normalisation, finite.
        motion: the mask, bool `[..., T, H, W]`; or the selective map of the same raw map, which is zero outside the
            mask. (A normalised map is also zero where the raw one is smallest.) Leading axes are broadcast.

    Returns:
        float64 `[...]`; 0 for a map that is zero everywhere.

    Raises:
        ValueError: a shape that does not fit, or a value that is NaN or infinite.
    """
    relevance = _volume("motion_share", "relevance", relevance)
    motion = _fitting("motion_share", "motion", _volume("motion_share", "motion", motion), relevance)
    whole = _sum(_magnitude, relevance)
    return _sum(lambda r, m: _magnitude(r) * (m != 0), relevance, motion) / np.where(whole > 0, whole, 1)


def pointing_game(relevance: np.ndarray, masks: np.ndarray, tolerance: float = 0) -> np.ndarray:
    """Whether the most relevant voxel lies on the object (Zhang et al., 2016, section 5.2), over a whole clip.

    Args:
        relevance: R `[..., T, H, W]`, finite. Of several voxels with the largest value the first counts: the earliest
            frame, then the topmost row, then the leftmost column.
        masks: the object, bool `[..., T, H, W]`; leading axes are broadcast.
        tolerance: a hit may lie this far from the object, in pixels (Euclidean), in its own frame; Zhang et al. take
            15 for photographs.

    Returns:
        bool `[...]`; False for a map without a positive value, or where the frame does not show the object.

    Raises:
        ValueError, TypeError: a shape, type or tolerance that does not fit, or a value that is NaN or infinite.
    """
    relevance = _volume("pointing_game", "relevance", relevance)
    masks = _fitting("pointing_game", "masks", masks, relevance, mask=True)
    if not 0 <= tolerance < np.inf:
        raise ValueError(f"pointing_game: tolerance must be a number of pixels, at least 0, got {tolerance}")
    leading, size = relevance.shape[:-3], relevance.shape[-3:]
    peak = relevance.reshape(*leading, np.prod(size)).argmax(-1)
    t, y, x = (axis[..., None, None] for axis in np.unravel_index(peak, size))
    near = (np.arange(size[1])[:, None] - y) ** 2 + (np.arange(size[2]) - x) ** 2 <= tolerance**2
    shape = np.broadcast_shapes(leading, masks.shape[:-3])
    when = np.broadcast_to(t[..., None], (*shape, 1, 1, 1))
    shown = np.take_along_axis(np.broadcast_to(masks, (*shape, *size)), when, -3)[..., 0, :, :]
    return (shown & near).any(_FRAME) & (relevance.max(_VOLUME) > 0)


def temporal_change(relevance: np.ndarray) -> np.ndarray:
    """How much of a map's energy changes over time: what Fig. 3 of Saliency Tubes (section 4.2) shows, as a number.

    `1 - sum_xy mean_t(R)^2 / sum_xy mean_t(R^2)`: 0 for a map that stands still, 1 for one whose mean over time is
    nothing everywhere. A single lit voxel that is somewhere else in each of T frames gives `1 - 1/T`. The scale of the
    map does not matter; an offset does, so `R` is the raw map as it left the network, before any normalisation.

    Args:
        relevance: R `[..., T, H, W]`, NumPy or a tensor on the CPU, finite.

    Returns:
        The change of every volume, float64 `[...]`, in 0..1; 0 for a map that is zero everywhere.

    Raises:
        ValueError: not three or more axes, an axis without entries, or a value that is NaN or infinite.
    """
    volume = _volume("temporal_change", "relevance", relevance)
    return temporal_change_of(lambda: np.moveaxis(volume, -3, 0))


def temporal_change_of(frames: Callable[[], Iterable[np.ndarray]]) -> np.ndarray:
    """`temporal_change` of a volume too long to hold: `frames()` gives its frames `[..., H, W]`, three times over."""
    largest, count = np.float64(0), 0
    for frame in frames():
        frame = _volume("temporal_change", "relevance", np.asarray(frame)[..., None, :, :])
        largest, count = np.maximum(largest, np.abs(frame, dtype=np.float64).max(_VOLUME)), count + 1
    scale = np.where(largest > 0, largest, 1)[..., None, None]  # keeps the squares away from overflow and underflow
    # The numerator is the variance over time. Taken about the first frame it is exactly 0 for a still map.
    first, total, squares = None, 0, 0
    for frame in frames():
        frame = frame / scale
        first = frame if first is None else first
        total, squares = total + (frame - first), squares + np.square(frame)
    mean, spread = total / count, 0
    for frame in frames():
        spread = spread + np.square(frame / scale - first - mean)
    variance, energy = (np.sum(sums / count, axis=_FRAME) for sums in (spread, squares))
    return np.minimum(variance / np.where(energy > 0, energy, 1), 1)


def _volume(op: str, name: str, values: np.ndarray) -> np.ndarray:
    """The array, checked: `[..., T, H, W]`, each at least 1, and finite."""
    volume = np.asarray(values)
    if volume.ndim < 3 or 0 in volume.shape[-3:]:
        raise ValueError(f"{op}: {name} must be [..., T, H, W], each at least 1, got {list(volume.shape)}")
    # The extremes are NaN or infinite where any value is; no temporary of the volume's size.
    if not all(np.isfinite(extreme(volume, axis=_VOLUME)).all() for extreme in (np.max, np.min)):
        raise ValueError(f"{op}: {name} must be finite, got NaN or infinity")
    return volume


def _fitting(op: str, name: str, values: np.ndarray, volume: np.ndarray, mask: bool = False) -> np.ndarray:
    """The array, checked to have the T, H, W of `volume` and leading axes that can be broadcast; a mask is bool."""
    other = np.asarray(values)
    if mask and other.dtype != bool:
        raise TypeError(f"{op}: {name} must be bool, got {other.dtype}")
    try:
        np.broadcast_shapes(other.shape[:-3], volume.shape[:-3])
        fits = other.shape[-3:] == volume.shape[-3:]
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{op}: {name} must fit a map of shape {list(volume.shape)}, got {list(other.shape)}")
    return other


def _cut(
    op: str, relevance: np.ndarray, floor: float | str, quantile: float, of: np.ndarray | None = None
) -> np.ndarray:
    """What relevance must exceed to be relevant, float64 `[...]`."""
    if of is not None:
        relevance = _fitting(op, "of", _volume(op, "of", of), relevance)
    if floor != "quantile":
        if isinstance(floor, str) or not 0 <= floor < 1:
            raise ValueError(f"{op}: floor must be 'quantile' or a share of the maximum, 0 <= floor < 1, got {floor!r}")
        largest = relevance.max(_VOLUME).astype(np.float64)
        return np.where(largest > 0, floor * largest, np.inf)
    if not 0 < quantile < 1:
        raise ValueError(f"{op}: quantile must lie between 0 and 1, got {quantile}")
    leading = relevance.shape[:-3]
    rows = relevance.reshape(-1, np.prod(relevance.shape[-3:]))  # one volume at a time is sorted
    value = [np.quantile(row, quantile, method="higher") for row in rows]
    # Strictly above the next smaller number is: not below the value. "higher" is a value that the map has.
    return np.maximum(np.nextafter(np.array(value, np.float64), -np.inf), 0).reshape(leading)


def _magnitude(values: np.ndarray) -> np.ndarray:
    return np.abs(values, dtype=np.float64)


def _sum(term: Callable[..., np.ndarray], *volumes: np.ndarray) -> np.ndarray:
    """The sum of `term` over all voxels, float64 `[...]`; `term` sees one frame `[..., H, W]` at a time."""
    frames = range(volumes[0].shape[-3])
    return sum(term(*(v[..., t, :, :] for v in volumes)).sum(_FRAME, dtype=np.float64) for t in frames)
