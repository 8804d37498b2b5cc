"""Selective Relevance (Hiley et al., 2020): the part of a relevance map that changes in time, that is, motion."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor

from ..backward.walk import Rules
from ..graph.places import Place
from ..preprocessing import Preprocessing
from ..pyramid import Layer
from .base import Evidence, Head, check_choice
from .saliency_tube import SaliencyTube


@dataclass(frozen=True)
class SelectiveRelevance(Head):
    """Which part of a relevance map is motion.

    Voxels whose temporal Sobel derivative exceeds `n_sigma` standard deviations of that derivative over the clip are
    motion, the others static (section 3). The mask comes from the raw up-sampled map, before normalisation; what is
    returned is the normalised map times the mask.

    Args:
        of: the head whose map is split, or maps: a `FeaturePyramid` has one for each layer, and its outputs are
            named `<layer>.motion`.
        n_sigma: the threshold in standard deviations; a hyper-parameter. The paper's tables use 4.
        part: `"motion"`, its complement `"static"`, or `"both"`.
        padding: border rule of the Sobel operator, `"replicate"` (a still map selects nothing) or `"zeros"`.
        sign: which changes count: `"abs"`, `"rising"` or `"falling"`.
        sigma_of: standard deviation of the `"signed"` derivative or of its absolute value, `"abs"`.
        prescale: min-max the raw map to [0, 1] first where it has a negative value.
        extras: `"motion_share"` `[N, M]`: share of the relevance that is motion, sum |R| mask / sum |R|, raw map.

    Raises:
        ValueError: an option is outside its range.
    """

    of: Head = field(default_factory=SaliencyTube)
    n_sigma: float = 2.0
    part: str = "motion"
    padding: str = "replicate"
    sign: str = "abs"
    sigma_of: str = "signed"
    prescale: bool = False
    extras: tuple[str, ...] = ()

    name: ClassVar[str] = "selective_relevance"

    def __post_init__(self) -> None:
        object.__setattr__(self, "extras", tuple(self.extras))
        check_choice("SelectiveRelevance", "part", self.part, ("motion", "static", "both"))
        check_choice("SelectiveRelevance", "padding", self.padding, ("replicate", "zeros"))
        check_choice("SelectiveRelevance", "sign", self.sign, ("abs", "rising", "falling"))
        check_choice("SelectiveRelevance", "sigma_of", self.sigma_of, ("signed", "abs"))
        for extra in self.extras:
            check_choice("SelectiveRelevance", "extras", extra, ("motion_share",))
        if not isinstance(self.of, Head) or type(self.of).maps is Head.maps:
            raise TypeError(f"SelectiveRelevance: of must be a head with a relevance map, got {self.of!r}")
        if not self.n_sigma >= 0:
            raise ValueError(f"SelectiveRelevance: n_sigma must be at least 0, got {self.n_sigma}")

    @classmethod
    def paper(cls, **options: Any) -> SelectiveRelevance:
        """The paper's tables: 4 sigma, zeros beyond the border (first and last frames answer to a still map)."""
        return cls(**{"n_sigma": 4.0, "padding": "zeros", **options})

    @classmethod
    def script_2020(cls, **options: Any) -> SelectiveRelevance:
        """The authors' published script: falling relevance only, zeros border, negative maps scaled to [0, 1]."""
        return cls(**{"n_sigma": 4.0, "padding": "zeros", "sign": "falling", "prescale": True, **options})

    def outputs(self) -> dict[str, str]:
        texts = {
            "motion": "the map where its relevance changes in time, else 0",
            "static": "the map where its relevance stays, else 0",
        }
        parts = texts if self.part == "both" else {self.part: texts[self.part]}
        parts = parts | {extra: "share of the raw relevance that is motion [N, M]" for extra in self.extras}
        return {_named(map, part): meaning for map in self.of.maps() for part, meaning in parts.items()}

    @property
    def needs_pooling(self) -> bool:
        return self.of.needs_pooling

    @property
    def depth(self) -> int | str | None:
        return self.of.depth

    def thresholds(self) -> dict[str, float | None]:
        return self.of.thresholds() | {"n_sigma": self.n_sigma}

    def blank(self, evidence: Evidence) -> str:
        return self.of.blank(evidence)

    def with_maps_of(self, dtype: str) -> SelectiveRelevance:
        return replace(self, of=self.of.with_maps_of(dtype))

    def walks(self, linear: bool) -> tuple[tuple[Rules, Place], ...]:
        return self.of.walks(linear)

    def places(self) -> tuple[Place, ...]:
        return self.of.places()

    def for_clips(self, preprocessing: Preprocessing | None, channels: int) -> SelectiveRelevance:
        return replace(self, of=self.of.for_clips(preprocessing, channels))

    def bind(self, weight: Tensor, layers: tuple[Layer, ...] = ()) -> SelectiveRelevance:
        return replace(self, of=self.of.bind(weight, layers))

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"of": self.of.describe()}

    def compute(self, evidence: Evidence) -> dict[str, Tensor]:
        results = {}
        n_sigma = self.n_sigma if evidence.n_sigma is None else evidence.n_sigma
        rule = {"n_sigma": n_sigma, "padding": self.padding, "sign": self.sign, "sigma_of": self.sigma_of}
        for name, relevance in self.of.relevance(evidence).items():
            tube, motion, share = relevance.split(evidence.ops, **rule, prescale=self.prescale)
            evidence.computed[self.of.key(), name] = tube
            parts = {"motion": motion, "static": tube - motion, "motion_share": share}
            results |= {_named(name, part): tensor for part, tensor in parts.items()}
        return {name: results[name] for name in self.outputs()}


def _named(map: str, part: str) -> str:
    return f"{map}.{part}" if map else part
