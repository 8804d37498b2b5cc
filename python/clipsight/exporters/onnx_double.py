"""Convolutions and average poolings in float64, for which ONNX Runtime has no kernels on the CPU, in ops that it has.

For networks in float64, where relevance shall be exact rather than quick: epsilon-LRP divides by sums near zero, which
a forward pass in float32 does not know well enough. A convolution becomes one product of matrices for each tap.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable

import numpy as np
import torch

from ..backward.convolve import each


def translation_table() -> dict[Callable, Callable]:
    """For torch.onnx.export(custom_translation_table=...)."""
    aten = torch.ops.aten
    return {
        **dict.fromkeys((aten.conv1d.default, aten.conv2d.default, aten.conv3d.default), _convolution),
        aten.convolution.default: _convolution_or_transposed,
        **dict.fromkeys((aten.avg_pool2d.default, aten.avg_pool3d.default), _average_pooling),
    }


def _convolution(x, weight, bias=None, stride=1, padding=0, dilation=1, groups: int = 1):
    """`[N, C_in, *size]`, `[C_out, C_in / groups, *kernel]` -> `[N, C_out, *output_size]`."""
    channels, inner, *kernel = weight.shape
    stride, padding, dilation = (each(value, len(kernel)) for value in (stride, padding, dilation))
    matrices = _op().Reshape(weight, _ints(groups, channels // groups, inner, math.prod(kernel)))
    x, size = _padded(x, x.shape[2:], padding, padding)
    return _products(x, size, matrices, (groups, channels // groups, inner), kernel, stride, dilation, bias)


def _convolution_or_transposed(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups: int):
    """Transposed, `weight` is `[C_in, C_out / groups, *kernel]`: with zeros between voxels, and the kernel turned."""
    if not transposed:
        return _convolution(x, weight, bias, stride, padding, dilation, groups)
    channels, outer, *kernel = weight.shape
    axes, taps, size = len(kernel), math.prod(kernel), x.shape[2:]
    stride, padding, dilation, behind = (each(value, axes) for value in (stride, padding, dilation, output_padding))
    x = _op().Reshape(x, _ints(-1, channels, *itertools.chain(*((n, 1) for n in size))))
    x, _ = _padded(x, [0] * 2 * axes, [0] * 2 * axes, [*itertools.chain(*((0, s - 1) for s in stride))])
    size = [n * s for n, s in zip(size, stride, strict=True)]
    x = _op().Reshape(x, _ints(-1, channels, *size))
    before = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    after = [b + more - (s - 1) for b, more, s in zip(before, behind, stride, strict=True)]
    x, size = _padded(x, size, before, after)
    matrices = _op().Reshape(weight, _ints(groups, channels // groups, outer, taps))
    matrices = _op().Gather(_op().Transpose(matrices, perm=[0, 2, 1, 3]), _ints(*reversed(range(taps))), axis=3)
    return _products(x, size, matrices, (groups, outer, channels // groups), kernel, [1] * axes, dilation, bias)


def _average_pooling(
    x, kernel_size, stride=(), padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    """`[N, C, *size]` -> `[N, C, *output_size]`."""
    sizes = x.shape[2:]
    axes = len(sizes)
    kernel, padding = each(kernel_size, axes), each(padding, axes)
    stride = each(stride, axes, kernel)
    after, counts = [], []
    for n, k, s, p in zip(sizes, kernel, stride, padding, strict=True):
        out = -(-(n + 2 * p - k) // s) + 1 if ceil_mode else (n + 2 * p - k) // s + 1
        out -= (out - 1) * s >= n + p  # no window begins behind the last voxel
        first = np.arange(out) * s - p
        last = np.minimum(first + k, n + p)
        counts.append(last - first if count_include_pad else np.minimum(last, n) - np.maximum(first, 0))
        after.append((out - 1) * s + k - p - n)
    count = (
        np.full([len(c) for c in counts], divisor_override)
        if divisor_override
        else functools.reduce(np.multiply.outer, counts)
    )
    x, sizes = _padded(x, sizes, padding, after)
    parts, size = _seen(x, sizes, kernel, stride, [1] * axes)
    total = functools.reduce(_op().Add, parts)
    divisor = _op().Constant(value_floats=[float(c) for c in count.ravel()])
    return _op().Div(total, _op().Reshape(_op().CastLike(divisor, x), _ints(*size)))


def _products(x, size, matrices, shape: tuple[int, int, int], kernel, stride, dilation, bias):
    """`matrices` is `[groups, C_out / groups, C_in / groups, taps]`, `shape` its first three lengths."""
    op, (groups, outer, inner) = _op(), shape
    parts, size = _seen(x, size, kernel, stride, dilation)
    products = (
        op.MatMul(
            op.Gather(matrices, op.Constant(value_int=tap), axis=3),
            op.Reshape(part, _ints(-1, groups, inner, math.prod(size))),
        )
        for tap, part in enumerate(parts)
    )
    result = op.Reshape(functools.reduce(op.Add, products), _ints(-1, groups * outer, *size))
    return result if bias is None else op.Add(result, op.Reshape(bias, _ints(-1, *[1] * len(size))))


def _seen(x, size, kernel, stride, dilation):
    """What each tap of a kernel sees, in the kernel's order, `[N, C, *output_size]`, and the output's size."""
    axes = len(size)
    outs = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)]
    parts = []
    for place in itertools.product(*map(range, kernel)):
        first = [*map(operator.mul, place, dilation)]
        last = [f + s * (n - 1) + 1 for f, s, n in zip(first, stride, outs, strict=True)]
        parts.append(_op().Slice(x, _ints(*first), _ints(*last), _ints(*range(2, axes + 2)), _ints(*stride)))
    return parts, outs


def _padded(x, size, before, after):
    """Zeros around the axes behind the channels; fewer than none cuts. The result, and its size."""
    if any(before) or any(after):
        x = _op().Pad(x, _ints(0, 0, *before, 0, 0, *after))
    return x, [b + n + a for b, n, a in zip(before, size, after, strict=True)]


def _ints(*values: int):
    return _op().Constant(value_ints=[int(value) for value in values])


def _op():
    from onnxscript import opset18

    return opset18
