"""Guided backpropagation, alone and times Grad-CAM."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..backward.gradient import Guided
from ..backward.walk import Rules
from ..graph.places import CLIP, Place
from .base import Evidence, check_choice
from .grad_cam import GradCAM
from .pixels import PixelHead
from .relevance import Volume


@dataclass(frozen=True)
class GuidedBackprop(PixelHead):
    """Guided backpropagation (Springenberg et al., 2015): the gradient through positive paths only.

    Args:
        colours, normalize, dtype, extras: of a `PixelHead`.
    """

    colours: str = field(default="abs", kw_only=True)

    name: ClassVar[str] = "guided_backprop"
    meaning: ClassVar[str] = "gradient of the class score along positive paths"

    def walks(self, linear: bool) -> tuple[tuple[Rules, Place], ...]:
        return ((Guided(), CLIP),)

    def volume(self, evidence: Evidence) -> Tensor:
        return evidence.arrived(Guided(), CLIP)


@dataclass(frozen=True)
class GuidedGradCAM(PixelHead):
    """Guided backpropagation times Grad-CAM at the clip's size (Selvaraju et al., section 3.2).

    Args:
        cam: the Grad-CAM; its `normalize` says whether its map is scaled first.
        upsample: its up-sampling, `"spline"`, or `"nearest"` (captum's, which also leaves it unscaled).
        colours, normalize, dtype, extras: of a `PixelHead`.
    """

    colours: str = field(default="abs", kw_only=True)
    cam: GradCAM = field(default_factory=GradCAM)
    upsample: str = "spline"

    name: ClassVar[str] = "guided_grad_cam"
    meaning: ClassVar[str] = "gradient of the class score along positive paths, where Grad-CAM sees evidence"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("GuidedGradCAM", "upsample", self.upsample, ("spline", "nearest"))
        if not isinstance(self.cam, GradCAM) or self.cam.size != "clip" or self.cam.dtype != "float32":
            raise ValueError(
                f"GuidedGradCAM: cam must be a GradCAM with a float32 map of the clip's size, got {self.cam}"
            )

    def places(self) -> tuple[Place, ...]:
        return (CLIP, *self.cam.places())

    def walks(self, linear: bool) -> tuple[tuple[Rules, Place], ...]:
        return ((Guided(), CLIP), *self.cam.walks(linear))

    def describe(self) -> dict:
        return super().describe() | {"cam": self.cam.describe()}

    def volume(self, evidence: Evidence) -> Tensor:
        if self.upsample == "spline":
            cam = self.cam.map_of("", evidence)
        else:
            small = self.cam.relevance(evidence)[""].small(evidence.ops)
            cam = F.interpolate(small, size=evidence.size, mode="nearest")
            cam = Volume(cam, self.cam.normalize, "float32").tube(evidence.ops)
        return evidence.arrived(Guided(), CLIP) * cam.unsqueeze(2)
