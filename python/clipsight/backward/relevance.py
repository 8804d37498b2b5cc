"""The rules of relevance: deep Taylor decomposition, and layer-wise relevance propagation with epsilon.

Relevance starts as 1 at the explained logit, and every layer hands it on to its inputs, as much as arrives:

    layer                     deep Taylor decomposition                        epsilon
    convolution, linear       z+:  x+ K+^T (R / (K+ x+))                       x K^T (R / (z + eps sign z)), bias in z
    the first convolution     zB:  the same within the box of the clip's values
    matrix product of two     half by each rule to each factor, with the other as weights; all to the values of an
                              attention, none to what a sigmoid or a softmax made
    product of two            half to each factor; all to the signal and none to its gate, which a sigmoid or a softmax
                              made
    quotient                  all to the numerator
    batch norm                folded into the convolution in front of it; elsewhere it passes relevance on
    other norms, softmax      passed on
    sum, average, resizing    in proportion to the parts
    max pooling, largest      to the winner of each window, or in proportion
    activation, dropout       passed on
    slice, cat, index, ...    to where the values came from

0 / 0 is 0: what arrives where nothing positive has come in is lost, and so is what arrives at constants that a network
pads with or puts in the place of masked values. Where the parts of a sum are of opposite sign and nearly cancel, as
they may in front of a batch norm (MFNet-3D), their shares are far larger than what arrived, and float32 loses the sum.
A table in docs/relevance-rules.md has every kind of op. To teach a method one, add a line to its table.

Sources: G. Montavon et al., "Explaining nonlinear classification decisions with deep Taylor decomposition", Pattern
Recognition 65, 2017 (z+ and zB: Table 1); S. Bach et al., "On pixel-wise explanations ... by layer-wise relevance
propagation", PLoS ONE 10(7), 2015 (epsilon: Eq. 58); R. Achtibat et al., "AttnLRP", ICML 2024 (norms and
activations pass relevance on, a product of two halves it); L. Arras et al., "Explaining recurrent neural network
predictions in sentiment analysis", WASSA 2017 (a gate gets none); A. Ali et al., "XAI for transformers",
ICML 2022 (nor do the weights of an attention). The authors of layer-wise relevance propagation are said to
hold patents on it; whoever uses these two methods in a product should look into that. Nothing else depends on this
module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph.table import Role
from . import adjoints
from .convolve import convolve, each
from .derivatives import taken_values
from .gradient import DERIVATIVE
from .maps import apply, broadcast, by_rows, ratio, window
from .rules import Local, Rule, Rules, Sent

# ---- Layers with weights --------------------------------------------------------------------------------------------


def z_plus(at: Local) -> Tensor:
    """In proportion to the positive contributions: the weights' and the inputs' positive parts."""
    if at.op.clip is not None and at.op.kind.name == "conv":
        return z_box(at)
    plus = at.at(at.x.clamp_min(0), weight=at.weight.clamp_min(0))
    (sent,) = plus.back(ratio(at.g, apply(plus)))
    return plus.x * sent


def z_box(at: Local) -> Tensor:
    """x K - low K+ - high K-, in proportion: (x - low) K+ + (x - high) K-, where both terms are positive.

    The box is that of the clip's values; where a layer pads with zeros it is empty, and the differences are 0 there.
    """
    x, kernel = at.x, at.weight
    low, high = (at.along(bound) for bound in at.rules.box(at.clip))
    if at.op.moved:  # what multiplies by a negative number turns a box over
        low, high = torch.minimum(low, high), torch.maximum(low, high)
    above, below = at.at(x - low, weight=kernel.clamp_min(0)), at.at(x - high, weight=kernel.clamp_max(0))
    share = ratio(at.g, apply(above) + apply(below))
    (to_low,), (to_high,) = above.back(share), below.back(share)
    return above.x * to_low + below.x * to_high


def epsilon(at: Local) -> Tensor:
    """In proportion to the contributions, the bias's share left out, with a denominator kept away from 0."""
    (sent,) = at.back(at.g / _away_from_0(at, at.y))
    return at.x * sent


def _away_from_0(at: Local, z: Tensor) -> Tensor:
    return torch.where(z < 0, z - at.rules.epsilon, z + at.rules.epsilon)  # of numbers alone where would make float32


# ---- Products -------------------------------------------------------------------------------------------------------


def product(at: Local) -> tuple[Tensor | None, ...]:
    """Elementwise: to each factor its share."""
    return broadcast(at, [at.g * share if share else None for share in at.op.signals])


def quotient(at: Local) -> tuple[Tensor | None, ...]:
    return broadcast(at, [at.g if name == "self" else None for name in at.op.names])


def products_plus(at: Local) -> tuple[Tensor | None, ...]:
    """A product of matrices: to each factor its share by z+, where the other one is the weights."""
    plus = at.at(*(x.clamp_min(0) for x in at.inputs))
    return _shares(plus, plus.back(ratio(at.g, apply(plus))))


def products_epsilon(at: Local) -> tuple[Tensor | None, ...]:
    return _shares(at, at.back(at.g / _away_from_0(at, at.y)))


def _shares(at: Local, sent: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    of_each = zip(at.inputs, sent, at.op.signals, strict=True)
    return tuple(None if g is None or not share else x * g * share for x, g, share in of_each)


def attended_plus(at: Local) -> tuple[Tensor | None, ...]:
    """All to the values, by z+: what is taken of each is a weight, and not negative."""
    taken, value = taken_values(at), at["value"].clamp_min(0)
    return _to_values(at, value, taken, ratio(at.g, taken @ value))


def attended_epsilon(at: Local) -> tuple[Tensor | None, ...]:
    return _to_values(at, at["value"], taken_values(at), at.g / _away_from_0(at, at.y))


def _to_values(at: Local, value: Tensor, taken: Tensor, share: Tensor) -> tuple[Tensor | None, ...]:
    sent = value * (taken.transpose(-1, -2) @ share)
    return tuple(sent if name == "value" else None for name in at.op.names)


# ---- Sums and poolings ----------------------------------------------------------------------------------------------


def passed(at: Local) -> tuple[Tensor, ...]:
    return broadcast(at, [at.g] * len(at.op.reads))


def same(at: Local) -> Tensor:
    return at.g


def proportional(at: Local) -> Sent:
    """A sum, of whatever: in proportion to its parts."""
    if at.op.kind.role is Role.ADDS and len(at.op.reads) == 1:  # a constant is a bias
        return passed(at)
    parts = at.back(ratio(at.g, at.y))
    return tuple(None if g is None else x * g for x, g in zip(at.inputs, parts, strict=True))


def pooled(at: Local) -> Sent:
    """A max pooling, to its winners or, as the average pooling of the same window, in proportion."""
    if at.rules.max_pool == "winner":
        return at.back()
    options, dilation, size = window(at)[:4], at["dilation"], at.op.shapes[0][2:]
    if len(size) == 1 or set(each(dilation, len(size))) != {1}:
        return _in_apart_windows(at)
    pool = F.avg_pool3d if len(size) == 3 else F.avg_pool2d
    share = ratio(at.g, pool(at.x, *options, divisor_override=1))
    return at.x * by_rows(lambda g: adjoints.avg_pool_adjoint(g, size, *options, divisor=1), share)


def _in_apart_windows(at: Local) -> Tensor:
    """The same for windows that no average pooling has: as a convolution with ones."""
    size, out = at.op.shapes[0][2:], at.op.made_shape[2:]
    kernel, stride, padding = (each(value, len(size)) for value in window(at)[:3])
    dilation = each(at["dilation"], len(size))
    ones = at.x.new_ones(1, 1, *kernel)
    last = [(o - 1) * s + d * (k - 1) for o, s, d, k in zip(out, stride, dilation, kernel, strict=True)]
    margins = [(p, max(m + 1 - p - n, 0)) for p, m, n in zip(padding, last, size, strict=True)]
    x = F.pad(at.x.flatten(0, 1).unsqueeze(1), [m for pair in reversed(margins) for m in pair])  # a row per channel
    z = convolve(x, ones, stride, 0, dilation)[(..., *(slice(o) for o in out))]
    share = ratio(at.g.flatten(1, 2), z.squeeze(1)).flatten(0, 1).unsqueeze(1)
    sent = adjoints.conv_adjoint(share, ones, size, stride, padding, dilation)
    return at.x * sent.view(-1, *at.x.shape)


PASSED = Rule(same, "")

COMMON: dict[str | Role, Rule | None] = {
    Role.MOVES: DERIVATIVE,
    Role.ADDS: Rule(proportional, "bxy"),
    Role.SCALES: Rule(passed, ""),
    Role.POOLS: Rule(proportional, "bxy"),
    Role.GATES: PASSED,
    Role.CURVES: PASSED,
    Role.CHOOSES: DERIVATIVE,
    Role.NORMALIZES: PASSED,
    "mask": DERIVATIVE,
    "max_pool": Rule(pooled, "bx"),
    "max_pool_with_indices": Rule(pooled, "bx"),
    "mul": Rule(product, ""),
    "div": Rule(quotient, ""),
    **dict.fromkeys(("softplus", "log_sigmoid", "function", "normalize"), None),
}

DEEP_TAYLOR: dict[str | Role, Rule | None] = {
    **COMMON,
    Role.WEIGHS: Rule(z_plus, "bxc"),
    Role.MULTIPLIES: Rule(products_plus, "bxc"),
    Role.ATTENDS: Rule(attended_plus, "xc"),
}

EPSILON: dict[str | Role, Rule | None] = {
    **COMMON,
    Role.WEIGHS: Rule(epsilon, "bxyc"),
    Role.MULTIPLIES: Rule(products_epsilon, "bxyc"),
    Role.ATTENDS: Rule(attended_epsilon, "xyc"),
}


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
    table: ClassVar[Mapping[str | Role, Rule | None]] = DEEP_TAYLOR
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
    table: ClassVar[Mapping[str | Role, Rule | None]] = EPSILON
    folds: ClassVar[bool] = True
    divides: ClassVar[bool] = True
