"""Saliency Tubes (Stergiou et al., ICIP 2019): the class-weighted sum of the last features, at the clip's size."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..pyramid import Layer
from .base import EXTRAS, Evidence, check_choice, check_map_options, top_count
from .cam_head import CamHead
from .relevance import Cam


@dataclass(frozen=True)
class SaliencyTube(CamHead):
    """Where in space and time the network looked for a class.

    `cam = sum of W[class, c] * features[c]` over the channels with `W[class, c] >= threshold` (Eq. 1-2; raw weights,
    bias left out), up-sampled to the clip by a cubic spline and min-max normalised.

    Args:
        threshold: tau of Eq. 1; `None` keeps every channel.
        threshold_scale: `"raw"` compares tau with the weight itself, `"minmax"` with the weight min-max scaled over
            the classifier's whole `[K, C]` matrix.
        order: 3, cubic B-spline, or 1, trilinear; both align corners.
        relu: drop negative evidence before the up-sampling.
        normalize: min-max over the whole `"clip"`, over each `"frame"`, or `"none"` for the raw map.
        channels: explain single features instead of their sum (Fig. 1b): channel indices, giving
            `[N, len(channels), ...]`, or `"top3"`: the 3 channels that contribute most to each class, giving
            `[N, M*3, ...]`, class by class. The maps are the activations themselves, re-scaled.
        size: `"clip"`, `"features"` for the small un-normalised cam `[N, M, t, h, w]`, or `(T, H, W)`.
        dtype: `"float32"`, `"float16"` or `"uint8"` (0..255) map.
        extras: further small outputs: `"per_frame"` `[N, M, T]`, `"peak_box"` `[N, M, 6]`.

    Raises:
        ValueError: an option is outside its range; a channel or class does not exist.
    """

    threshold: float | None = None
    threshold_scale: str = "raw"
    order: int = 3
    relu: bool = False
    normalize: str = "clip"
    channels: tuple[int, ...] | str | None = None
    size: tuple[int, int, int] | str = "clip"
    dtype: str = "float32"
    extras: tuple[str, ...] = ()

    name: ClassVar[str] = "saliency_tube"

    def __post_init__(self) -> None:
        check_map_options(self)
        check_choice("SaliencyTube", "threshold_scale", self.threshold_scale, ("raw", "minmax"))
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ValueError(f"SaliencyTube: threshold must be a finite number or None, got {self.threshold}")
        if isinstance(self.channels, str) and top_count(self.channels) < 1:
            raise ValueError(f"SaliencyTube: channels must be indices or 'topN', got {self.channels!r}")
        if self.channels == ():
            raise ValueError("SaliencyTube: channels must name at least one channel, got an empty list")

    def outputs(self) -> dict[str, str]:
        what = "class" if self.channels is None else "feature"
        unit = "raw cam of the {}" if self.size == "features" else "saliency of the {} at every voxel"
        return {self.name: unit.format(what), **{f"{self.name}_{e}": EXTRAS[e][0] for e in self.extras}}

    def thresholds(self) -> dict[str, float | None]:
        return {"tau": self.threshold} if self.channels is None else {}

    def bind(self, weight: Tensor, layers: tuple[Layer, ...] = ()) -> SaliencyTube:
        channels = weight.shape[1]
        if isinstance(self.channels, tuple) and not all(0 <= c < channels for c in self.channels):
            raise ValueError(f"SaliencyTube: channels must lie in 0..{channels - 1}, got {list(self.channels)}")
        if isinstance(self.channels, str) and top_count(self.channels) > channels:
            raise ValueError(f"SaliencyTube: channels='topN' must ask for at most {channels}, got {self.channels!r}")
        if self.threshold is None or self.threshold_scale == "raw":
            return self
        low, high = weight.min().item(), weight.max().item()
        return replace(self, threshold=low + self.threshold * (high - low), threshold_scale="raw")

    def relevance(self, evidence: Evidence) -> dict[str, Cam]:
        return {
            "": Cam(
                features=self._features(evidence),
                weight=self.rows(evidence),
                size=evidence.size if isinstance(self.size, str) else self.size,
                threshold=self._threshold(evidence),
                order=self.order,
                relu=self.relu,
                normalize=self.normalize,
                dtype=self.dtype,
            )
        }

    def _features(self, evidence: Evidence) -> Tensor:
        """Places that no class score looks at, such as frames that a network leaves out, have no part in the sum."""
        found = evidence.attached.features
        if not evidence.linear or found.seen is None:
            return evidence.features
        return evidence.features * found.seen.to(evidence.features)

    def _threshold(self, evidence: Evidence) -> float | None:
        """What is left to the op: nothing where the rows' weights went through a gate already, or there is none."""
        return self.threshold if self.channels is None and evidence.tau is None else None

    def rows(self, evidence: Evidence) -> Tensor:
        """The weights of each map: the classes' own, or one channel each."""
        if self.channels is None:
            if evidence.tau is None:
                return evidence.rows
            tau = evidence.tau.view(-1, 1, 1)
            return torch.where(evidence.rows < tau, 0.0, evidence.rows)
        index = torch.arange(evidence.rows.shape[-1], device=evidence.rows.device)
        if isinstance(self.channels, tuple):
            chosen = torch.tensor(self.channels, device=evidence.rows.device)
            return (chosen.unsqueeze(-1) == index).to(evidence.rows.dtype)
        contribution = evidence.features.float().mean((2, 3, 4)).unsqueeze(1) * evidence.rows
        top = contribution.topk(top_count(self.channels), -1).indices.flatten(1)
        return (top.unsqueeze(-1) == index).to(evidence.rows.dtype)
