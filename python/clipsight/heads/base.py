"""What a method is: a frozen set of options, and one function from the network's evidence to named tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclass
class Evidence:
    """What one forward pass of the network leaves for the heads.

    Attributes:
        features: `[N, C, t, h, w]`, the input of the global pooling.
        rows: `[M, C]` or `[N, M, C]`, float32: the classifier's weights of the explained classes.
        size: `(T, H, W)` of the clip.
        ops: `clipsight.ops` (fused kernels) or `clipsight.reference` (plain torch); both have the same functions.
        tau: float32 `[N]`, in place of the heads' thresholds (never NaN), or `None`.
        n_sigma: float32 `[N]`, in place of the heads' n_sigma, or `None`.
        computed: results that several heads share, by head.
    """

    features: Tensor
    rows: Tensor
    size: tuple[int, int, int]
    ops: ModuleType
    tau: Tensor | None = None
    n_sigma: Tensor | None = None
    computed: dict[Any, Any] = field(default_factory=dict)


class Head:
    """Base class of the methods. A subclass is a frozen dataclass of options.

    It overrides `outputs` (name -> meaning, in order) and `compute` (the tensors, by the same names), and
    `thresholds` where it has some.
    """

    name: ClassVar[str]

    def thresholds(self) -> dict[str, float | None]:
        """The options that `Evidence` may replace, `tau` and `n_sigma`, by name; without the head's own use, none."""
        return {}

    def outputs(self) -> dict[str, str]:
        raise NotImplementedError

    def compute(self, evidence: Evidence) -> dict[str, Tensor]:
        raise NotImplementedError

    def bind(self, weight: Tensor) -> Head:
        """The head with every option that depends on the classifier's weights `[K, C]` turned into a number."""
        return self

    def with_maps_of(self, dtype: str) -> Head:
        """The head with maps of another type."""
        return replace(self, dtype=dtype)  # type: ignore[type-var]

    def describe(self) -> dict[str, Any]:
        """Name and all options, JSON-able."""
        return {"method": self.name, **asdict(self)}  # type: ignore[call-overload]


def per_frame(tube: Tensor) -> Tensor:
    """Mean saliency of each frame: `[N, M, T, H, W]` -> `[N, M, T]`."""
    return tube.float().mean((-2, -1))


def peak_box(tube: Tensor, level: float = 0.5) -> Tensor:
    """Smallest box that holds every voxel above `level` of the way from the map's minimum to its maximum.

    `[N, M, T, H, W]` -> int64 `[N, M, 6]`: first frame, row, column, and one past the last frame, row, column.
    A constant map gives zeros.
    """
    values = tube.float()
    low, high = values.amin((-3, -2, -1), True), values.amax((-3, -2, -1), True)
    inside = ((values > low + level * (high - low)) & (high > low)).float()
    starts, ends = [], []
    for axis in (-3, -2, -1):
        others = tuple(a for a in (-3, -2, -1) if a != axis)
        hit = inside.amax(others)
        n = hit.shape[-1]
        index = torch.arange(1, n + 1, device=hit.device, dtype=hit.dtype)
        ends.append((hit * index).amax(-1))
        starts.append((n - (hit * (n + 1 - index)).amax(-1)) * hit.amax(-1))
    return torch.stack(starts + ends, -1).long()


EXTRAS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "per_frame": ("mean saliency of each frame [N, M, T]", per_frame),
    "peak_box": ("box of the voxels above half the peak [N, M, 6]: t0, y0, x0, t1, y1, x1 (ends excluded)", peak_box),
}


def check_choice(op: str, argument: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{op}: {argument} must be one of {list(allowed)}, got {value!r}")
