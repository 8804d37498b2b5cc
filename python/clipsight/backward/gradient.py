"""The rules of gradients: of the class score with respect to a layer or the clip, and as guided backpropagation.

Each is the derivative of its op, transposed: by hand for most ops, and recorded from autograd for all others.

Guided backpropagation (Springenberg et al., "Striving for Simplicity", 2015, section 3.4) differs at a ReLU, where it
lets through what is positive on the way forward and on the way back. Here that is so at every activation that lets
positive values through and holds negative ones back, in whole or in part (ReLU6, leaky ReLU, ELU, GELU, SiLU, also as
`x * sigmoid(x)`, Mish, hardswish, clamps): `max(g, 0) f'(x)` where x > 0, else 0, which is the rule of 2015 at a ReLU.
What squashes both signs (sigmoid, tanh), norms, products and attentions have no such side: they go by the derivative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..graph.table import Role
from .rules import Local, Rule, Rules, Sent


def derivative(at: Local) -> Sent:
    return at.back()


def guided(at: Local) -> Sent:
    return at.back(at.g.clamp_min(0))


def guided_where_positive(at: Local) -> Sent:
    """The same at an activation whose derivative is not 0 for all negative values."""
    sent, *others = at.back(at.g.clamp_min(0))
    return torch.where(at.x > 0, sent, 0.0), *others


DERIVATIVE = Rule(derivative)
ALL_BUT_RANDOM = tuple(role for role in Role if role is not Role.DRAWS)

GRADIENT = dict.fromkeys(ALL_BUT_RANDOM, DERIVATIVE)

GUIDED: dict[str | Role, Rule | None] = {
    **dict.fromkeys((role for role in ALL_BUT_RANDOM if role not in (Role.REPEATS, Role.UNKNOWN)), DERIVATIVE),
    Role.GATES: Rule(guided_where_positive, "bx"),
    Role.CURVES: Rule(guided_where_positive, "bx"),
    **dict.fromkeys(("relu", "relu6"), Rule(guided)),
    **dict.fromkeys(("sigmoid", "hardsigmoid", "tanh"), DERIVATIVE),
    **dict.fromkeys(("softplus", "log_sigmoid", "function"), None),
}


@dataclass(frozen=True)
class Gradient(Rules):
    """d(logit) / d(tensor)."""

    method: ClassVar[str] = "gradient"
    table: ClassVar[Mapping[str | Role, Rule | None]] = GRADIENT


@dataclass(frozen=True)
class Guided(Rules):
    """Guided backpropagation."""

    method: ClassVar[str] = "guided backpropagation"
    table: ClassVar[Mapping[str | Role, Rule | None]] = GUIDED
