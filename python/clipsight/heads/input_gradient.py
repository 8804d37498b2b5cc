"""Gradients with respect to the clip: gradient x input, and integrated gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from ..backward.chunks import sum_in_chunks
from ..backward.gradient import Gradient
from ..backward.walk import Rules
from ..graph.places import CLIP, Place
from .base import Evidence
from .pixels import PixelHead


@dataclass(frozen=True)
class InputGradient(PixelHead):
    """Gradient x input: the first-order part that each voxel has in the logit.

    Args:
        colours, normalize, dtype, extras: of a `PixelHead`.
    """

    name: ClassVar[str] = "input_gradient"
    meaning: ClassVar[str] = "gradient of the class score times the clip"

    def walks(self, linear: bool) -> tuple[tuple[Rules, Place], ...]:
        return ((Gradient(), CLIP),)

    def volume(self, evidence: Evidence) -> Tensor:
        return evidence.arrived(Gradient(), CLIP) * evidence.look_at(CLIP).unsqueeze(1)


@dataclass(frozen=True)
class IntegratedGradients(PixelHead):
    """Gradients along the straight line from zeros to the clip, times the clip (Sundararajan et al., ICML 2017, Eq. 1).

    The maps sum to the difference of the two logits. The network runs `steps` more times, so in an exported file it
    stands there `steps / chunk` times more, with the same weights; in an ONNX file once more, in a loop.

    Args:
        steps: of the Gauss-Legendre rule.
        chunk: how many of them are computed at once, which takes as many times the memory.
        colours, normalize, dtype, extras: of a `PixelHead`.
    """

    steps: int = 50
    chunk: int = 5

    name: ClassVar[str] = "integrated_gradients"
    meaning: ClassVar[str] = "integral of the gradient of the class score from zeros to the clip, times the clip"

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("steps", "chunk"):
            if not isinstance(getattr(self, option), int) or getattr(self, option) < 1:
                raise ValueError(f"IntegratedGradients: {option} must be at least 1, got {getattr(self, option)}")

    def walks(self, linear: bool) -> tuple[tuple[Rules, Place], ...]:
        return ((Gradient(), CLIP),)

    def volume(self, evidence: Evidence) -> Tensor:
        def part(clip: Tensor, chosen: Tensor, alphas: Tensor, shares: Tensor) -> Tensor:
            copies = alphas.shape[0]
            scaled = (alphas.view(-1, 1, 1, 1, 1, 1) * clip).flatten(0, 1)
            gradient = evidence.at(scaled, chosen, copies).arrived(Gradient(), CLIP)  # [copies * N, M, 3, T, H, W]
            rows = gradient.unflatten(0, (copies, -1)).flatten(1)
            return (shares @ rows).view(clip.shape[0], *gradient.shape[1:])

        places, weights = np.polynomial.legendre.leggauss(self.steps)
        steps, clip = np.stack([(places + 1) / 2, weights / 2], 1), evidence.look_at(CLIP)
        total = sum_in_chunks(part, evidence.network, clip, evidence.chosen, steps, self.chunk)
        return total * clip.unsqueeze(1)
