"""The rules of gradients: of the class score with respect to a layer or the clip, and as guided backpropagation.

Each is the derivative of its op, transposed. Guided backpropagation (Springenberg et al., "Striving for Simplicity",
2015, section 3.4) differs at a ReLU, where it lets through what is positive on the way forward and on the way back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from . import adjoints
from .maps import by_rows
from .walk import Local, Rule, Rules, norm_scale


def transposed(at: Local) -> Tensor:
    """A linear op: its bias has no part in the gradient."""
    return at.adjoint(at.g)


def same(at: Local) -> Tensor:
    return at.g


def each(at: Local) -> tuple[Tensor, ...]:
    """A sum: to each of its parts alike."""
    alpha = at["alpha"]
    return (at.g, at.g if alpha == 1 else at.g * alpha)[: len(at.op.reads)]


def reshaped(at: Local) -> Tensor:
    return at.g.reshape(at.g.shape[0], -1, *at.op.shapes[0])


def permuted(at: Local) -> Tensor:
    rank = len(at.op.shapes[0]) + 1
    if "dims" in at.op.arguments:
        order = [d % rank for d in at["dims"]]
        return at.g.permute(0, *(1 + order.index(axis) for axis in range(rank)))
    return at.g.transpose(*(1 + at[name] % rank for name in ("dim0", "dim1")))


def parted(at: Local) -> tuple[Tensor, ...]:
    """A concatenation: to each part its own channels."""
    rank = len(at.op.shapes[0]) + 1
    axis = at["dim"] % rank
    return at.g.split([shape[axis - 1] for shape in at.op.shapes], axis + 1)


def cropped(at: Local) -> Tensor:
    return F.pad(at.g, [-length for length in at["pad"]])


def scaled(at: Local) -> Tensor:
    """A batch norm in eval mode: a factor for each channel."""
    names = ("weight", "running_var", "eps")
    scale = norm_scale({name: at[name] for name in names})
    return at.g * scale.view(-1, *[1] * (at.g.dim() - 3))


def times(at: Local) -> Tensor:
    return at.g * at["other"]


def divided(at: Local) -> Tensor:
    return at.g / at["other"]


def gated(at: Local) -> Tensor:
    """A ReLU: where it lets its input through. Its output tells, which the next layer keeps anyway."""
    return torch.where(at.y > 0, at.g, 0.0)


def guided(at: Local) -> Tensor:
    return torch.where(at.y > 0, at.g.clamp_min(0), 0.0)


def to_winner(at: Local) -> Tensor:
    """A max pooling: to the largest of each window."""
    window = [at[name] for name in ("kernel_size", "stride", "padding", "dilation", "ceil_mode")]
    window[1] = window[1] or window[0]
    return by_rows(lambda g: adjoints.max_pool_adjoint(g, at.x, *window), at.g)


PASSES = {
    "reshape": Rule(reshaped),
    "permute": Rule(permuted),
    "cat": Rule(parted),
    "pad": Rule(cropped),
    "identity": Rule(same),
    "dropout": Rule(same),
}

GRADIENT = PASSES | {
    "conv": Rule(transposed),
    "linear": Rule(transposed),
    "avg_pool": Rule(transposed),
    "adaptive_avg_pool": Rule(transposed),
    "mean": Rule(transposed),
    "batch_norm": Rule(scaled),
    "max_pool": Rule(to_winner, "x", gate=True),
    "relu": Rule(gated, "y", gate=True),
    "add": Rule(each),
    "scale": Rule(times),
    "unscale": Rule(divided),
}

GUIDED = GRADIENT | {"relu": Rule(guided, "y", gate=True)}


@dataclass(frozen=True)
class Gradient(Rules):
    """d(logit) / d(tensor)."""

    method: ClassVar[str] = "gradient"
    table: ClassVar[Mapping[str, Rule]] = GRADIENT
    derivative: ClassVar[bool] = True


@dataclass(frozen=True)
class Guided(Rules):
    """Guided backpropagation."""

    method: ClassVar[str] = "guided backpropagation"
    table: ClassVar[Mapping[str, Rule]] = GUIDED
