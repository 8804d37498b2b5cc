"""The ops of a network that are not linear, with their derivatives, transposed; as in :mod:`clipsight.backward.maps`.

An activation that has no line here is recorded from autograd as the factor by which it multiplies each value
(:mod:`clipsight.backward.traced`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from . import adjoints
from .maps import aten_name, broadcast, by_rows, is_pooling, sum_to
from .rules import Back, Local, Op
from .unrolled import attention_scale, attention_weights

# ---- Each value by itself -------------------------------------------------------------------------------------------


def _relu_back(at: Local, g: Tensor) -> Tensor:
    """A ReLU: where it lets its input through. Its output tells, which the next layer keeps anyway."""
    return torch.where(at.y > 0, g, 0.0)


def _relu6_back(at: Local, g: Tensor) -> Tensor:
    return torch.where((at.y > 0) & (at.y < 6), g, 0.0)


def _sigmoid_back(at: Local, g: Tensor) -> Tensor:
    return g * (at.y * (1 - at.y))


def _tanh_back(at: Local, g: Tensor) -> Tensor:
    return g * (1 - at.y * at.y)


def _silu_back(at: Local, g: Tensor) -> Tensor:
    gate = torch.sigmoid(at.x)
    return g * (gate * (1 + at.x * (1 - gate)))


def _hardswish_back(at: Local, g: Tensor) -> Tensor:
    x = at.x
    return g * torch.where(x <= -3, 0.0, torch.where(x < 3, x / 3 + 0.5, 1.0))


# ---- The largest ----------------------------------------------------------------------------------------------------


def _max_pool_back(at: Local, g: Tensor) -> Tensor:
    """To the largest of each window."""
    window = [at[name] for name in ("kernel_size", "stride", "padding", "dilation", "ceil_mode")]
    window[1] = window[1] or window[0]
    return by_rows(lambda g: adjoints.max_pool_adjoint(g, at.x, *window), g)


def _adaptive_max_pool_back(at: Local, g: Tensor) -> Tensor:
    size, out = at.op.shapes[0][2:], at.op.made_shape[2:]
    if all(n % o == 0 for n, o in zip(size, out, strict=True)):
        kernel = [n // o for n, o in zip(size, out, strict=True)]
        return by_rows(lambda g: adjoints.max_pool_adjoint(g, at.x, kernel), g)
    pool = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[len(size) - 1]
    return by_rows(lambda g: adjoints.to_winners(g, pool(at.x, out, return_indices=True)[1], size), g)


# ---- Products -------------------------------------------------------------------------------------------------------


def _product_back(at: Local, g: Tensor) -> tuple[Tensor | None, ...]:
    others = {"self": "other", "other": "self"}
    wants = zip(at.op.names, at.op.wanted, strict=True)
    return broadcast(at, [g * at[others[name]] if wanted else None for name, wanted in wants])


def _quotient_back(at: Local, g: Tensor) -> tuple[Tensor | None, ...]:
    above, below = at["self"], at["other"]
    sent = {"self": lambda: g / below, "other": lambda: -g * above / (below * below)}
    wants = zip(at.op.names, at.op.wanted, strict=True)
    return broadcast(at, [sent[name]() if wanted else None for name, wanted in wants])


# ---- Norms ----------------------------------------------------------------------------------------------------------


def _softmax_back(at: Local, g: Tensor) -> Tensor:
    weighted = g * at.y
    return weighted - at.y * weighted.sum(_from_behind(at), keepdim=True)


def _log_softmax_back(at: Local, g: Tensor) -> Tensor:
    return g - at.y.exp() * g.sum(_from_behind(at), keepdim=True)


def _from_behind(at: Local) -> int:
    rank = len(at.op.shapes[0])
    return at["dim"] % rank - rank


def _layer_norm_back(at: Local, g: Tensor) -> Tensor:
    g = g if at["weight"] is None else g * at["weight"]
    return _standardized_back(at.x, g, range(-len(at["normalized_shape"]), 0), at["eps"])


def _channel_norm_back(at: Local, g: Tensor) -> Tensor:
    """A batch norm on the statistics of this batch, or an instance norm, on those of each sample."""
    rank = len(at.op.shapes[0])
    samples = [] if "use_input_stats" in at.op.arguments else [-rank]
    return _standardized_back(at.x, _times_weight(at, g, rank), [*samples, *range(2 - rank, 0)], at["eps"])


def _group_norm_back(at: Local, g: Tensor) -> Tensor:
    x, rank, groups = at.x, len(at.op.shapes[0]), at["num_groups"]
    g = _times_weight(at, g, rank).unflatten(2, (groups, -1))
    return _standardized_back(x.unflatten(1, (groups, -1)), g, range(1 - rank, 0), at["eps"]).flatten(2, 3)


def _times_weight(at: Local, g: Tensor, rank: int) -> Tensor:
    return g if at["weight"] is None else g * at["weight"].view(-1, *[1] * (rank - 2))


def _standardized_back(x: Tensor, g: Tensor, axes: Sequence[int], eps: float) -> Tensor:
    """What `(x - mean) / sqrt(variance + eps)` over some axes sends back."""
    axes = list(axes)
    centred = x - x.mean(axes, keepdim=True)
    scale = (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    y = centred * scale
    return (g - g.mean(axes, keepdim=True) - y * (g * y).mean(axes, keepdim=True)) * scale


# ---- Attention ------------------------------------------------------------------------------------------------------


def taken_values(at: Local) -> Tensor:
    """What each query takes of each key's value, `[..., L, S]`."""
    return attention_weights(at["query"], at["key"], at["attn_mask"], at["is_causal"], at.get("scale"))


def _attention_back(at: Local, g: Tensor) -> tuple[Tensor | None, ...]:
    """In its maths form, which every exporter can write."""
    taken, scale = taken_values(at), attention_scale(at["query"], at.get("scale"))
    by_score = g @ at["value"].transpose(-1, -2)
    by_score = taken * (by_score - (by_score * taken).sum(-1, keepdim=True))
    sent = {
        "query": lambda: by_score @ at["key"] * scale,
        "key": lambda: by_score.transpose(-1, -2) @ at["query"] * scale,
        "value": lambda: taken.transpose(-1, -2) @ g,
        "attn_mask": lambda: by_score,
    }
    shapes = dict(zip(at.op.names, at.op.shapes, strict=True))
    batch, made = at.op.made_shape[:-2], at.op.made_shape
    full = {name: (*batch, *shape[-2:]) for name, shape in shapes.items()}
    full["attn_mask"] = (*made[:-1], at.op.fixed)
    return tuple(
        sum_to(sent[name](), shapes[name], full[name]) if wanted else None
        for name, wanted in zip(at.op.names, at.op.wanted, strict=True)
    )


def _keys(node: Node) -> int | None:
    """The number of keys."""
    length = node.args[1].meta["val"].shape[-2]
    return length if isinstance(length, int) else None


def _is_plain(op: Op) -> bool:
    plain = aten_name(op) == "scaled_dot_product_attention" and not op.arguments.get("enable_gqa")
    return plain and not op.arguments["dropout_p"] and op.fixed is not None


NONLINEAR = {
    "relu": Back(_relu_back, "y", gate=True),
    "relu6": Back(_relu6_back, "y", gate=True),
    "sigmoid": Back(_sigmoid_back, "y"),
    "tanh": Back(_tanh_back, "y"),
    "silu": Back(_silu_back, "x"),  # they may stand in a network as products, which autograd knows nothing of
    "hardswish": Back(_hardswish_back, "x", gate=True),
    "max_pool": Back(_max_pool_back, "x", gate=True, fits=is_pooling),
    "max_pool_with_indices": Back(_max_pool_back, "x", gate=True, fits=is_pooling),
    "adaptive_max_pool": Back(_adaptive_max_pool_back, "x", gate=True, fits=is_pooling),
    "mul": Back(_product_back, "xc"),
    "div": Back(_quotient_back, "xc", fits=lambda op: op.arguments.get("rounding_mode") is None),
    "softmax": Back(_softmax_back, "y"),
    "log_softmax": Back(_log_softmax_back, "y"),
    "layer_norm": Back(_layer_norm_back, "xc", fits=lambda op: aten_name(op) == "layer_norm"),
    "group_norm": Back(_group_norm_back, "xc", fits=lambda op: aten_name(op) == "group_norm"),
    "instance_norm": Back(_channel_norm_back, "xc"),
    "batch_statistics": Back(_channel_norm_back, "xc"),
    "attention": Back(_attention_back, "xc", fits=_is_plain, fix=_keys),
}
