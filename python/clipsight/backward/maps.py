"""The linear ops of a network, each with its transposed one: what the rules are made from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import adjoints
from .convolve import convolve, each

if TYPE_CHECKING:
    from .walk import Local


class Map(NamedTuple):
    """A linear op on `[B, ...]` without its bias, and its transposed on `[M, B, ...]`; both take another weight."""

    apply: Callable[[Local, Tensor, Tensor | None], Tensor]
    adjoint: Callable[[Local, Tensor, Tensor | None], Tensor]


def by_rows(function: Callable[[Tensor], Tensor], g: Tensor) -> Tensor:
    """A function of `[B, ...]` on `[M, B, ...]`."""
    return function(g.flatten(0, 1)).unflatten(0, (g.shape[0], -1))


def _convolve(at: Local, x: Tensor, weight: Tensor | None) -> Tensor:
    weight = at.weight if weight is None else weight
    return convolve(x, weight, at["stride"], at["padding"], at["dilation"], at["groups"])


def _convolve_back(at: Local, g: Tensor, weight: Tensor | None) -> Tensor:
    weight = at.weight if weight is None else weight
    options = (at.op.shapes[0][1:], at["stride"], _padding(at, weight), at["dilation"], at["groups"])
    return by_rows(lambda g: adjoints.conv_adjoint(g, weight, *options, exact=at.rules.divides), g)


def _padding(at: Local, weight: Tensor) -> list[int] | int:
    """In numbers: `"same"` and `"valid"` are for kernels of odd length here, as in most networks."""
    if not isinstance(at["padding"], str):
        return at["padding"]
    reach = [d * (k - 1) for d, k in zip(each(at["dilation"], weight.dim() - 2), weight.shape[2:], strict=True)]
    return [r // 2 for r in reach] if at["padding"] == "same" else 0


def _dense(at: Local, x: Tensor, weight: Tensor | None) -> Tensor:
    return F.linear(x, at.weight if weight is None else weight)


def _dense_back(at: Local, g: Tensor, weight: Tensor | None) -> Tensor:
    return g @ (at.weight if weight is None else weight)


def _pool(at: Local, x: Tensor, weight: None = None) -> Tensor:
    pool = F.avg_pool3d if x.dim() == 5 else F.avg_pool2d
    return pool(x, *_window(at))


def _pool_back(at: Local, g: Tensor, weight: None = None) -> Tensor:
    return by_rows(lambda g: adjoints.avg_pool_adjoint(g, at.op.shapes[0][1:], *_window(at)), g)


def _window(at: Local) -> tuple:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    window = {name: at[name] for name in names}
    return tuple((window | {"stride": window["stride"] or window["kernel_size"]}).values())


def _adaptive(at: Local, x: Tensor, weight: None = None) -> Tensor:
    pool = F.adaptive_avg_pool3d if x.dim() == 5 else F.adaptive_avg_pool2d
    return pool(x, at["output_size"])


def _adaptive_back(at: Local, g: Tensor, weight: None = None) -> Tensor:
    return by_rows(lambda g: adjoints.adaptive_avg_pool_adjoint(g, at.op.shapes[0][1:]), g)


def _mean(at: Local, x: Tensor, weight: None = None) -> Tensor:
    return x.mean(at["dim"], at["keepdim"])


def _mean_back(at: Local, g: Tensor, weight: None = None) -> Tensor:
    shape = at.op.shapes[0]
    axes = sorted(d % (len(shape) + 1) for d in at["dim"])
    if not at["keepdim"]:
        for axis in axes:
            g = g.unsqueeze(axis + 1)
    return (g / math.prod(shape[axis - 1] for axis in axes)).expand(-1, -1, *shape)


# By the kinds of `walk.Op`.
MAPS = {
    "conv": Map(_convolve, _convolve_back),
    "linear": Map(_dense, _dense_back),
    "avg_pool": Map(_pool, _pool_back),
    "adaptive_avg_pool": Map(_adaptive, _adaptive_back),
    "mean": Map(_mean, _mean_back),
}


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0 or so small that it could not be told from it."""
    return a / torch.where(b.abs() > 1e-30, b, math.inf)
