"""Grad-CAM (Selvaraju et al., ICCV 2017) for video: the features of a layer, weighted by the class's mean gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..backward.gradient import Gradient
from ..backward.walk import Rules
from ..graph.places import Place
from .base import EXTRAS, Evidence, check_choice, check_map_options
from .cam_head import CamHead
from .relevance import Cam


@dataclass(frozen=True)
class GradCAM(CamHead):
    """Where a layer's features speak for a class: `relu(sum_c w_c A_c)`, `w_c` the mean of `d(logit) / d(A_c)`.

    Only what comes behind the layer is walked back; in front of a global pooling and a linear layer, where the mean
    gradient is the classifier's weight over the number of voxels (Selvaraju et al., section 3.1), nothing is.

    Args:
        layer: module path; its output is explained: a grid, channels first or (Swin) last, or its tokens. By default
            the input of the last pooling that ends the grid; where the grid is flattened instead, the output of the
            last convolution (conv5b in C3D); or for a transformer the tokens that its last attention reads.
        after_relu: explain what a ReLU behind `layer` makes of it.
        weights_over: average the gradient over `"thw"`, or over `"hw"` for weights of every frame.
        score: explain the `"logit"`, or the `"softmax"` probability, which falls when another class rises.
        relu: keep positive evidence only (Eq. 2).
        order, normalize, size, dtype, extras: as in `SaliencyTube`.

    Raises:
        ValueError: an option is outside its range.
    """

    layer: str | None = None
    after_relu: bool = False
    weights_over: str = "thw"
    score: str = "logit"
    relu: bool = True
    order: int = 3
    normalize: str = "clip"
    size: tuple[int, int, int] | str = "clip"
    dtype: str = "float32"
    extras: tuple[str, ...] = ()

    name: ClassVar[str] = "grad_cam"
    needs_pooling: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_map_options(self)
        check_choice("GradCAM", "weights_over", self.weights_over, ("thw", "hw"))
        check_choice("GradCAM", "score", self.score, ("logit", "softmax"))

    def outputs(self) -> dict[str, str]:
        meaning = "raw cam of the class" if self.size == "features" else "evidence for the class at every voxel"
        return {self.name: meaning, **{f"{self.name}_{e}": EXTRAS[e][0] for e in self.extras}}

    @property
    def place(self) -> Place:
        return Place(self.layer, self.after_relu)

    def places(self) -> tuple[Place, ...]:
        return (self.place,)

    def walks(self, linear: bool) -> tuple[tuple[Rules, Place], ...]:
        return () if self._closed(linear) else ((Gradient(), self.place),)

    def _closed(self, linear: bool) -> bool:
        """Whether the mean gradient is known without a walk."""
        return linear and self.place == Place() and self.weights_over == "thw"

    def relevance(self, evidence: Evidence) -> dict[str, Cam]:
        features, weight = self._weighted(evidence)
        return {
            "": Cam(
                features=features,
                weight=weight,
                size=evidence.size if isinstance(self.size, str) else self.size,
                order=self.order,
                relu=self.relu,
                normalize=self.normalize,
                dtype=self.dtype,
            )
        }

    def _weighted(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Features `[N, C, t, h, w]` and their weights `[M, C]` or `[N, M, C]`."""
        if self._closed(evidence.linear):
            features, rows = evidence.features, evidence.rows
            if self.score == "softmax":
                rows = evidence.seed("softmax").transpose(0, 1) @ evidence.weight
            return features, rows / features[0, 0].numel()
        features = evidence.look_at(self.place)
        gradient = evidence.arrived(Gradient(), self.place, self.score)  # [N, M, C, t, h, w]
        if self.weights_over == "thw":
            return features, gradient.mean((3, 4, 5))
        cam = (gradient.mean((4, 5), keepdim=True) * features.unsqueeze(1)).sum(2)
        maps = torch.arange(cam.shape[1], device=cam.device)
        return cam, (maps.unsqueeze(-1) == maps).to(cam.dtype)
