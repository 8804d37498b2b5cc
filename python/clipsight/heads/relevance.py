"""What a head hands on as its relevance map: a small cam on the features' grid, or a volume of the clip's size."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..reference import normalised


class Cam(dict):
    """The arguments of `ops.saliency_tube` that give the map: nothing of the clip's size exists before it runs."""

    def small(self, ops: ModuleType) -> Tensor:
        """The raw cam on the features' grid, `[N, M, t, h, w]`."""
        cam = ops.channel_reduce(self["features"], self["weight"], self.get("threshold"))
        return torch.relu(cam) if self["relu"] else cam

    def tube(self, ops: ModuleType) -> Tensor:
        """The normalised map `[N, M, T, H, W]`."""
        return ops.saliency_tube(**self)

    def split(self, ops: ModuleType, **rule: Any) -> tuple[Tensor, Tensor, Tensor]:
        """(normalised map, the same where its raw values change in time, motion share `[N, M]`)."""
        if not rule.pop("prescale"):
            return ops.selective_tube(**self, **rule)
        raw = ops.saliency_tube(**self | {"normalize": "none", "dtype": "float32"})
        return Volume(raw, self["normalize"], self["dtype"]).split(ops, **rule, prescale=True)


@dataclass(frozen=True, eq=False)
class Volume:
    """A raw map `[N, M, T, H, W]`, and what is to be made of it."""

    raw: Tensor
    normalize: str
    dtype: str

    def tube(self, ops: ModuleType) -> Tensor:
        return normalised(self.raw, self.normalize, self.dtype)

    def split(self, ops: ModuleType, **rule: Any) -> tuple[Tensor, Tensor, Tensor]:
        tube = self.tube(ops)
        # The op gives the volume times the mask, where a voxel of exactly 0 would hide what the mask is there.
        lifted = torch.where(self.raw == 0, torch.finfo(self.raw.dtype).tiny, self.raw)
        kept, share = ops.selective_relevance(lifted, **rule)
        return tube, torch.where(kept != 0, tube, 0), share
