"""What a method is: a frozen set of options, and one function from the network's evidence to named tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..convolutions import Route
from ..pyramid import Layer

BORDER = 1e-4  # share of its range within which rounding may turn the gate of a feature pyramid, in float32


@dataclass
class Evidence:
    """What one forward pass of the network leaves for the heads.

    Attributes:
        features: `[N, C, t, h, w]`, the input of the global pooling.
        rows: `[M, C]` or `[N, M, C]`, float32: the classifier's weights of the explained classes.
        weight: `[K, C]`, float32: those of all classes.
        size: `(T, H, W)` of the clip.
        ops: `clipsight.ops` (fused kernels) or `clipsight.reference` (plain torch); both have the same functions.
        tau: float32 `[N]`, in place of the heads' thresholds (never NaN), or `None`.
        n_sigma: float32 `[N]`, in place of the heads' n_sigma, or `None`.
        computed: results that several heads share, by head.
        route: the convolutions in front of the features, where a head asked for them.
        taps: the tensors that these read, `[N, C, t, h, w]` or `[N, C]`, by the route's tensor number.
        parameters: the network's parameters, by name.
        decisions: outputs by name, of another run of the same graph on the same clips: where a gate hangs on rounding,
            that is within `border` of the range, this run decides as that one did.
    """

    features: Tensor
    rows: Tensor
    weight: Tensor
    size: tuple[int, int, int]
    ops: ModuleType
    tau: Tensor | None = None
    n_sigma: Tensor | None = None
    computed: dict[Any, Any] = field(default_factory=dict)
    route: Route | None = None
    taps: dict[int, Tensor] = field(default_factory=dict)
    parameters: Callable[[str], Tensor] | None = None
    decisions: dict[str, Tensor] | None = None
    border: float = BORDER

    def read_by(self, layer: str) -> Tensor:
        """The features that a layer of the route reads."""
        return self.taps[self.route.reads[layer]]

    def decide(self, name: str, kept: Tensor, scores: Tensor, theta: float) -> Tensor:
        """`kept`, but as the decisions have it where `scores` lie on the gate but for rounding."""
        if self.decisions is None or name not in self.decisions:
            return kept
        low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
        span = high - low
        rounding = self.border * span + 8 * torch.finfo(scores.dtype).eps * scores.abs().amax(-1, keepdim=True)
        border = ((scores - low - theta * span).abs() <= rounding) & (span > 0)
        return torch.where(border, self.decisions[name].to(kept.device), kept)


class Head:
    """Base class of the methods. A subclass is a frozen dataclass of options.

    It overrides `outputs` (name -> meaning, in order) and `compute` (the tensors, by the same names), `thresholds`
    where it has some, and `maps`, `relevance` and `key` where it has relevance maps that another head may split.
    """

    name: ClassVar[str]
    needs_pooling: ClassVar[bool] = True  # global, in front of the classifier
    depth: ClassVar[int | str | None] = None  # of the convolutions that it looks at

    def thresholds(self) -> dict[str, float | None]:
        """The options that `Evidence` may replace, `tau` and `n_sigma`, by name; without the head's own use, none."""
        return {}

    def outputs(self) -> dict[str, str]:
        raise NotImplementedError

    def compute(self, evidence: Evidence) -> dict[str, Tensor]:
        raise NotImplementedError

    def maps(self) -> tuple[str, ...]:
        """What its relevance maps are called, `""` for the only one: the names of their outputs start so."""
        raise NotImplementedError

    def relevance(self, evidence: Evidence) -> dict[str, dict]:
        """For each of `maps`, the arguments of `ops.saliency_tube` that give it."""
        raise NotImplementedError

    def map_of(self, name: str, evidence: Evidence) -> Tensor:
        """One of its relevance maps, normalised, at full size; computed once for all heads that use it."""
        if (self.key(), name) not in evidence.computed:
            evidence.computed[self.key(), name] = evidence.ops.saliency_tube(**self.relevance(evidence)[name])
        return evidence.computed[self.key(), name]

    def key(self) -> Head:
        """Equal for heads with the same relevance maps: what else they put out does not matter."""
        raise NotImplementedError

    def bind(self, weight: Tensor, layers: tuple[Layer, ...]) -> Head:
        """The head with every option that depends on the network made definite.

        Args:
            weight: the classifier's weights `[K, C]`.
            layers: the convolutions down to the deepest that any head wants, the classifier first.
        """
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


def top_count(text: str) -> int:
    """`"top3"` -> 3; 0 for another text."""
    digits = text.removeprefix("top")
    return int(digits) if text.startswith("top") and digits.isdigit() else 0


def check_choice(op: str, argument: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{op}: {argument} must be one of {list(allowed)}, got {value!r}")
