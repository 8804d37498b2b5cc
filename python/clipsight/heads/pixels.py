"""Explanations of the clip itself: a value for each colour of each voxel, walked back from the class to the input."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar

from torch import Tensor

from ..graph.places import CLIP, Place
from .base import EXTRAS, Evidence, Head, check_choice, check_map_options
from .relevance import Volume


@dataclass(frozen=True, kw_only=True)
class PixelHead(Head):
    """Base class: what all of them can do with their volume `[N, M, 3, T, H, W]`.

    Args:
        colours: `"abs"`, the sum of the absolute values over RGB, `"sum"`, their signed sum, or `"raw"`, a map for
            each: `[N, M*3, T, H, W]`, class by class.
        normalize: min-max over the whole `"clip"`, over each `"frame"`, or `"none"` for the raw map.
        dtype: `"float32"`, `"float16"` or `"uint8"` (0..255) map.
        extras: further small outputs: `"per_frame"` `[N, M, T]`, `"peak_box"` `[N, M, 6]`.

    Raises:
        ValueError: an option is outside its range.
    """

    colours: str = "sum"
    normalize: str = "clip"
    dtype: str = "float32"
    extras: tuple[str, ...] = ()

    needs_pooling: ClassVar[bool] = False
    meaning: ClassVar[str]

    def __post_init__(self) -> None:
        check_map_options(self)
        check_choice(type(self).__name__, "colours", self.colours, ("abs", "sum", "raw"))

    def volume(self, evidence: Evidence) -> Tensor:
        """`[N, M, 3, T, H, W]`."""
        raise NotImplementedError

    def places(self) -> tuple[Place, ...]:
        return (CLIP,)

    def outputs(self) -> dict[str, str]:
        return {self.name: self.meaning, **{f"{self.name}_{e}": EXTRAS[e][0] for e in self.extras}}

    def compute(self, evidence: Evidence) -> dict[str, Tensor]:
        tube = self.map_of("", evidence)
        return {self.name: tube, **{f"{self.name}_{e}": EXTRAS[e][1](tube) for e in self.extras}}

    def maps(self) -> tuple[str, ...]:
        return ("",)

    def key(self) -> PixelHead:
        return replace(self, extras=())

    def relevance(self, evidence: Evidence) -> dict[str, Volume]:
        volume = self.shared_volume(evidence)
        if self.colours == "raw":
            raw = volume.flatten(1, 2)
        else:
            raw = (volume.abs() if self.colours == "abs" else volume).sum(2)
        return {"": Volume(raw, self.normalize, self.dtype)}

    def shared_volume(self, evidence: Evidence) -> Tensor:
        """Computed once for all heads that differ only in what they make of it."""
        own = {f.name for f in fields(PixelHead)}
        key = (type(self), *(getattr(self, f.name) for f in fields(self) if f.name not in own))
        if key not in evidence.computed:
            evidence.computed[key] = self.volume(evidence)
        return evidence.computed[key]
