"""Relevance that is conserved on its way to the clip: deep Taylor decomposition, and epsilon-LRP.

The rules are in :mod:`clipsight.backward.relevance`, with their sources and a note on patents.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..backward.relevance import DeepTaylorRules, EpsilonRules
from ..backward.walk import Rules
from ..graph.places import CLIP, Place
from ..preprocessing import Preprocessing
from .base import Evidence, check_choice
from .pixels import PixelHead


@dataclass(frozen=True)
class DeepTaylor(PixelHead):
    """Deep Taylor decomposition (Montavon et al., 2017): how much of the class score each voxel is responsible for.

    Relevance starts as 1 at the logit and is conserved: the raw map sums to 1, but for what is lost where a layer has
    no positive input. The rules are in :mod:`clipsight.backward.relevance`, with a note on patents.

    Args:
        low, high: least and largest value that a clip can have, after its preprocessing: a number, or one for each
            channel. By default those of black and white by the network's own `preprocessing`; a network without one
            must be told.
        max_pool: to the `"winner"` of each window, or `"proportional"`.
        colours, normalize, dtype, extras: of a `PixelHead`.
    """

    low: float | tuple[float, ...] | None = None
    high: float | tuple[float, ...] | None = None
    max_pool: str = "winner"

    name: ClassVar[str] = "deep_taylor"
    meaning: ClassVar[str] = "share of the class score that each voxel is responsible for"

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("low", "high"):
            value = getattr(self, option)
            if value is not None:
                value = tuple(value) if isinstance(value, (list, tuple)) else (float(value),)
                object.__setattr__(self, option, tuple(map(float, value)))
        check_choice("DeepTaylor", "max_pool", self.max_pool, ("winner", "proportional"))
        if self.low is not None and self.high is not None:
            pairs = zip(self.low, self.high, strict=False)
            if not all(low <= 0 <= high and low < high for low, high in pairs):
                raise ValueError(f"DeepTaylor: low and high must enclose 0, got {self.low} and {self.high}")

    def for_clips(self, preprocessing: Preprocessing | None, channels: int) -> DeepTaylor:
        low, high = self.low, self.high
        if preprocessing is None and (low is None or high is None):
            raise ValueError(
                "DeepTaylor: low and high must be given, the least and largest values of a preprocessed clip: the "
                "network has no attribute 'preprocessing' that tells"
            )
        if low is None:
            low = _value(0, preprocessing)
        if high is None:
            high = _value(255, preprocessing)
        for name, bound in (("low", low), ("high", high)):
            if len(bound) not in (1, channels):
                raise ValueError(
                    f"DeepTaylor: {name} must have 1 or {channels} values, one a channel, got {len(bound)}"
                )
        return replace(self, low=low, high=high)

    def walks(self, linear: bool) -> tuple[tuple[Rules, Place], ...]:
        return ((self._rules, CLIP),)

    @property
    def _rules(self) -> DeepTaylorRules:
        return DeepTaylorRules(self.low, self.high, self.max_pool)

    def volume(self, evidence: Evidence) -> Tensor:
        return evidence.arrived(self._rules, CLIP)


@dataclass(frozen=True)
class LRPEpsilon(PixelHead):
    """Layer-wise relevance propagation with the epsilon rule (Bach et al., 2015, Eq. 58), batch norms folded.

    Relevance starts as 1 at the logit; biases take their share of it.

    Args:
        epsilon: what keeps denominators away from 0, in the units of a layer's output.
        max_pool: to the `"winner"` of each window, or `"proportional"`.
        colours, normalize, dtype, extras: of a `PixelHead`.
    """

    epsilon: float = 1e-6
    max_pool: str = "winner"

    name: ClassVar[str] = "lrp_epsilon"
    meaning: ClassVar[str] = "share of the class score that each voxel contributes, with its sign"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("LRPEpsilon", "max_pool", self.max_pool, ("winner", "proportional"))
        if not self.epsilon > 0:
            raise ValueError(f"LRPEpsilon: epsilon must be above 0, got {self.epsilon}")

    def walks(self, linear: bool) -> tuple[tuple[Rules, Place], ...]:
        return ((EpsilonRules(self.epsilon, self.max_pool), CLIP),)

    def volume(self, evidence: Evidence) -> Tensor:
        return evidence.arrived(EpsilonRules(self.epsilon, self.max_pool), CLIP)


def _value(pixel: int, preprocessing: Preprocessing) -> tuple[float, ...]:
    """What a pixel value 0..255 is in a clip, for each channel."""
    pairs = zip(preprocessing.mean, preprocessing.std, strict=True)
    return tuple((pixel * preprocessing.scale - mean) / std for mean, std in pairs)
