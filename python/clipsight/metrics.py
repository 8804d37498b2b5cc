"""Numbers that sum up a volume of relevance."""

from __future__ import annotations

import numpy as np


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
    volume = np.asarray(relevance)
    if volume.ndim < 3 or 0 in volume.shape[-3:]:
        shape = list(volume.shape)
        raise ValueError(f"temporal_change: relevance must be [..., T, H, W], each at least 1, got {shape}")
    if not np.isfinite(volume).all():
        raise ValueError("temporal_change: relevance must be finite, got NaN or infinity")
    axes = (-3, -2, -1)
    largest = np.maximum(volume.max(axes).astype(np.float64), -volume.min(axes).astype(np.float64))
    scale = np.where(largest > 0, largest, 1)[..., None, None]  # keeps the squares away from overflow and underflow
    variance = energy = np.zeros(volume.shape[:-3])
    for row in np.moveaxis(volume, -2, 0):  # [..., T, W], one at a time: a long video in float64 is large
        row = row / scale
        energy = energy + np.square(row).mean(-2).sum(-1)
        # The numerator is the variance over time. Taken about the first frame it is exactly 0 for a still map.
        variance = variance + (row - row[..., :1, :]).var(-2).sum(-1)
    return np.minimum(variance / np.where(energy > 0, energy, 1), 1)
