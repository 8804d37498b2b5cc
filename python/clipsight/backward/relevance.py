"""The rules of relevance: deep Taylor decomposition, and layer-wise relevance propagation with epsilon.

Relevance starts as 1 at the explained logit, and every layer hands it on to its inputs, as much as arrives:

    layer                     deep Taylor decomposition                        epsilon
    convolution, linear       z+:  x+ K+^T (R / (K+ x+))                       x K^T (R / (z + eps sign z)), bias in z
    the first convolution     zB:  the same within the box of the clip's values
    batch norm                folded into the convolution in front of it; elsewhere it passes relevance on
    sum, average pooling      in proportion to the parts
    max pooling               to the winner of each window, or in proportion
    ReLU, dropout, shapes     passed on

0 / 0 is 0: what arrives where nothing positive has come in is lost. Where the parts of a sum are of opposite sign and
nearly cancel, as they may in front of a batch norm (MFNet-3D), their shares are far larger than what arrived, and
float32 loses the sum. To teach a method a layer, add a line to its table.

Sources: G. Montavon et al., "Explaining nonlinear classification decisions with deep Taylor decomposition", Pattern
Recognition 65, 2017 (z+ and zB: Table 1); S. Bach et al., "On pixel-wise explanations ... by layer-wise relevance
propagation", PLoS ONE 10(7), 2015 (epsilon: Eq. 58). The authors of layer-wise relevance propagation are said to hold
patents on it; whoever uses these two methods in a product should look into that. Nothing else depends on this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from . import adjoints
from .gradient import PASSES, same, to_winner
from .maps import by_rows, ratio
from .walk import Local, Rule, Rules


def z_plus(at: Local) -> Tensor:
    """In proportion to the positive contributions: the weights' and the inputs' positive parts."""
    if at.op.first and at.op.kind == "conv":
        return z_box(at)
    x, kernel = at.x.clamp_min(0), at.weight.clamp_min(0)
    return x * at.adjoint(ratio(at.g, at.apply(x, kernel)), kernel)


def z_box(at: Local) -> Tensor:
    """x K - low K+ - high K-, in proportion: (x - low) K+ + (x - high) K-, where both terms are positive.

    The box is that of the clip's values; where a layer pads with zeros it is empty, and the differences are 0 there.
    """
    x, kernel = at.x, at.weight
    low, high = (at.along(bound) for bound in at.rules.box(at.clip))
    above, below = x - low, x - high
    positive, negative = kernel.clamp_min(0), kernel.clamp_max(0)
    share = ratio(at.g, at.apply(above, positive) + at.apply(below, negative))
    return above * at.adjoint(share, positive) + below * at.adjoint(share, negative)


def epsilon(at: Local) -> Tensor:
    """In proportion to the contributions, the bias's share left out, with a denominator kept away from 0."""
    z = at.y
    z = torch.where(z < 0, z - at.rules.epsilon, z + at.rules.epsilon)  # of numbers alone where would make float32
    return at.x * at.adjoint(at.g / z)


def proportional(at: Local) -> Tensor:
    """A sum with equal weights, such as an average: in proportion to its parts."""
    return at.x * at.adjoint(ratio(at.g, at.y))


def shared(at: Local) -> tuple[Tensor, ...]:
    """A sum of tensors: to each its share."""
    if len(at.op.reads) == 1:
        return (at.g,)
    share, (first, second) = ratio(at.g, at.y), at.inputs
    return first * share, at["alpha"] * second * share


def pooled(at: Local) -> Tensor:
    """A max pooling, to its winners or, as the average pooling of the same window, in proportion."""
    if at.rules.max_pool == "winner":
        return to_winner(at)
    window = (at["kernel_size"], at["stride"] or at["kernel_size"], at["padding"], at["ceil_mode"])
    pool = F.avg_pool3d if at.x.dim() == 5 else F.avg_pool2d
    share = ratio(at.g, pool(at.x, *window, divisor_override=1))
    size = at.op.shapes[0][1:]
    return at.x * by_rows(lambda g: adjoints.avg_pool_adjoint(g, size, *window, divisor=1), share)


PROPORTIONAL = PASSES | {
    "relu": Rule(same),
    "batch_norm": Rule(same),
    "scale": Rule(same),
    "unscale": Rule(same),
    "avg_pool": Rule(proportional, "xy"),
    "adaptive_avg_pool": Rule(proportional, "xy"),
    "mean": Rule(proportional, "xy"),
    "add": Rule(shared, "xy"),
    "max_pool": Rule(pooled, "x"),
}

DEEP_TAYLOR = PROPORTIONAL | {"conv": Rule(z_plus, "x"), "linear": Rule(z_plus, "x")}

EPSILON = PROPORTIONAL | {"conv": Rule(epsilon, "xy"), "linear": Rule(epsilon, "xy")}


@dataclass(frozen=True)
class DeepTaylorRules(Rules):
    """z+ everywhere, and zB at the first convolution.

    Attributes:
        low, high: the least and the largest value that a clip can have, for each channel.
        max_pool: `"winner"` or `"proportional"`.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    max_pool: str = "winner"

    method: ClassVar[str] = "deep Taylor decomposition"
    table: ClassVar[Mapping[str, Rule]] = DEEP_TAYLOR
    folds: ClassVar[bool] = True
    divides: ClassVar[bool] = True

    def box(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Volumes like the clip of the least and largest values."""
        low, high = (clip.new_tensor(bound).view(-1, 1, 1, 1) for bound in (self.low, self.high))
        return low.expand_as(clip), high.expand_as(clip)


@dataclass(frozen=True)
class EpsilonRules(Rules):
    """Attributes:
    epsilon: the least denominator, in the units of a layer's output.
    """

    epsilon: float = 1e-6
    max_pool: str = "winner"

    method: ClassVar[str] = "epsilon-LRP"
    table: ClassVar[Mapping[str, Rule]] = EPSILON
    folds: ClassVar[bool] = True
    divides: ClassVar[bool] = True
