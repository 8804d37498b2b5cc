"""The table of :mod:`.onnx_ops` with what transformers and their relatives are made of: attention, norms, activations.

ONNX has an op for most of them; opset 18 has none for GELU and for attention, which are written in their maths form.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import torch

from . import onnx_ops
from .onnx_ops import need

aten = torch.ops.aten


def _layer_norm(w, x, shape, weight=None, bias=None, eps=1e-5, cudnn=True):
    need(x.dtype.is_floating_point())
    if weight is None:
        weight = w.constant(np.ones(shape, x.dtype.numpy()))
    inputs = [x, weight] if bias is None else [x, weight, bias]
    return w.op("LayerNormalization", *inputs, axis=-len(shape), epsilon=float(eps))


def _attention(w, query, key, value, mask=None, dropout=0.0, causal=False, scale=None, enable_gqa=False):
    need(not dropout and not causal and not enable_gqa and len(key.shape) == len(query.shape) > 1)
    forbids = mask is not None and mask.dtype == ir.DataType.BOOL
    need(mask is None or forbids or mask.dtype == query.dtype)
    width = query.shape[-1]
    need(isinstance(width, int))
    axes = [*range(len(key.shape))]
    turned = w.op("Transpose", key, perm=[*axes[:-2], axes[-1], axes[-2]])
    scaled = w.op("Mul", query, w.number(1 / math.sqrt(width) if scale is None else scale, query.dtype))
    scores = w.op("MatMul", scaled, turned)
    if forbids:
        scores = w.op("Where", mask, scores, w.number(-math.inf, query.dtype))
    elif mask is not None:
        scores = w.op("Add", scores, mask)
    weights = w.op("Softmax", scores, axis=-1)
    if forbids:  # a query without a key is 0, not 0 / 0
        weights = w.op("Where", mask, weights, w.number(0, query.dtype))
    return w.op("MatMul", weights, value)


def _gelu(w, x, approximate="none"):
    def number(value: float) -> ir.Value:
        return w.number(value, x.dtype)

    if approximate == "none":
        inner = w.op("Erf", w.op("Mul", x, number(math.sqrt(0.5))))
    else:
        cube = w.op("Mul", x, w.op("Mul", x, x))
        wide = w.op("Add", x, w.op("Mul", cube, number(0.044715)))
        inner = w.op("Tanh", w.op("Mul", wide, number(math.sqrt(2 / math.pi))))
    return w.op("Mul", w.op("Mul", x, number(0.5)), w.op("Add", inner, number(1.0)))


def _elu(w, x, alpha=1.0, scale=1, input_scale=1):
    need(scale == input_scale == 1)
    return w.op("Elu", x, alpha=float(alpha))


def _softmax(w, x, dim, half_to_float):
    need(not half_to_float)
    return w.op("Softmax", x, axis=dim)


def _added_product(w, bias, x, y, beta=1, alpha=1):
    need(beta == alpha == 1)
    return w.op("Gemm", x, y, bias)


def _between(w, x, low=-1, high=1):
    return w.op("Clip", x, w.number(low, x.dtype), w.number(high, x.dtype))


def _named(kind: str) -> Callable:
    return lambda w, *inputs: w.op(kind, *inputs)


TABLE: dict[Callable, Callable] = onnx_ops.TABLE | {
    **{getattr(aten, name).default: _named(name.capitalize()) for name in ("cos", "erf", "sin")},
    **dict.fromkeys((aten.bmm.default, aten.mm.default), _named("MatMul")),
    aten.addmm.default: _added_product,
    aten.layer_norm.default: _layer_norm,
    aten.scaled_dot_product_attention.default: _attention,
    aten._softmax.default: _softmax,
    aten.gelu.default: _gelu,
    aten.elu.default: _elu,
    aten.relu6.default: lambda w, x: _between(w, x, 0, 6),
    aten.hardswish.default: _named("HardSwish"),
    aten.hardsigmoid.default: lambda w, x: w.op("HardSigmoid", x, alpha=1 / 6, beta=0.5),
    aten.hardtanh.default: _between,
    aten.leaky_relu.default: lambda w, x, slope=0.01: w.op("LeakyRelu", x, alpha=float(slope)),
    aten.mish.default: lambda w, x: w.op("Mul", x, w.op("Tanh", w.op("Softplus", x))),
}
