"""torch's ops in ONNX ops, one rule each: what :mod:`clipsight.exporters.onnx_write` goes by."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import torch

from ..backward.convolve import each
from . import onnx_loop, onnx_plugin

aten = torch.ops.aten


class Unknown(Exception):
    """The table has no entry for an op, or not for such arguments or types."""


class _Types(dict):
    def __missing__(self, dtype):
        raise Unknown(dtype)


TYPES = _Types(
    {
        torch.float32: ir.DataType.FLOAT,
        torch.float64: ir.DataType.DOUBLE,
        torch.float16: ir.DataType.FLOAT16,
        torch.int64: ir.DataType.INT64,
        torch.int32: ir.DataType.INT32,
        torch.uint8: ir.DataType.UINT8,
        torch.bool: ir.DataType.BOOL,
    }
)
TORCH_TYPES = {kind: dtype for dtype, kind in TYPES.items()}


def need(holds: bool) -> None:
    if not holds:
        raise Unknown("arguments")


# ---- Rules: (writer, arguments of torch's op) -> its value, or a list of its values ----------------------------------


def _same(w, x, *_, **__):
    return x


def _node(kind: str) -> Callable:
    return lambda w, *inputs: w.op(kind, *w.alike(*inputs))


def _sum(kind: str) -> Callable:
    def rule(w, x, y, alpha=1):
        x, y = w.alike(x, y)
        return w.op(kind, x, y if alpha == 1 else w.op("Mul", *w.alike(y, alpha)))

    return rule


def _less_than_number(w, x, number, alpha=1):
    need(alpha == 1)
    return w.op("Sub", *w.alike(number, x))


def _opposite(w, x):
    need(x.dtype == ir.DataType.BOOL)
    return w.op("Not", x)


def _both(kind: str) -> Callable:
    def rule(w, x, y):
        need(x.dtype == y.dtype == ir.DataType.BOOL)
        return w.op(kind, x, y)

    return rule


def _divided(w, x, y):
    x, y = w.alike(x, y)
    need(x.dtype.is_floating_point())
    return w.op("Div", x, y)


def _power(w, x, exponent):
    return w.op("Pow", *w.alike(x, exponent))


def _square_root_below(w, x):
    return w.op("Reciprocal", w.op("Sqrt", x))


def _unequal(w, x, y):
    return w.op("Not", w.op("Equal", *w.alike(x, y)))


def _chosen(w, condition, x, y):
    x, y = (v if isinstance(v, ir.Value) else w.number(v, TYPES[w.made.dtype]) for v in (x, y))
    need(x.dtype == y.dtype)
    return w.op("Where", condition, x, y)


def _clamped(w, x, low=None, high=None):
    need(x.dtype.is_floating_point())
    return w.op("Clip", x, *(None if bound is None else w.number(bound, x.dtype) for bound in (low, high)))


def _reduced(kind: str) -> Callable:
    def rule(w, x, dim=None, keepdim=False, dtype=None):
        x = w.cast(x, TYPES[w.made.dtype])
        axes = [d % len(x.shape or w.made.shape) for d in dim] if dim else []
        return w.op(kind, x, *([w.ints(*sorted(axes))] if axes else []), keepdims=keepdim)

    return rule


def _largest(w, x, dim=None, keepdim=False):
    need(dim is not None)
    return w.op("ArgMax", x, axis=dim, keepdims=keepdim)


def _top(w, x, k, dim=-1, largest=True, sorted=True):
    return w.op("TopK", x, w.ints(k), outputs=2, axis=dim, largest=largest, sorted=sorted)


def _indexed(w, x, indices):
    at = [i for i, index in enumerate(indices) if index is not None]
    need(len(at) == 1 and indices[at[0]].dtype == ir.DataType.INT64)
    return w.op("Gather", x, indices[at[0]], axis=at[0])


def _picked(w, x, dim, indices):
    return w.op("Gather", x, indices, axis=dim % len(x.shape))


def _norm(w, x, ord=2, dim=None, keepdim=False, dtype=None):
    need(ord == 2 and dtype is None)
    return _reduced("ReduceL2")(w, x, dim, keepdim)


def _one_of(w, x, dim, index):
    need(isinstance(index, int))
    return w.op("Gather", x, w.constant(np.array(index, np.int64)), axis=dim % len(x.shape))


def _each_of(w, x, dim=0):
    return [_one_of(w, x, dim, i) for i in range(len(w.made))]


def _split(w, x, _, dim=0):
    sizes = [part.shape[dim] for part in w.made]
    need(all(isinstance(size, int) for size in sizes))
    parts = w.op("Split", x, w.ints(*sizes), outputs=len(sizes), axis=dim)
    return parts if len(sizes) > 1 else [parts]


def _part(w, x, dim=0, start=None, end=None, step=1):
    start, length = start or 0, x.shape[dim]
    end = 2**63 - 1 if end is None else end
    need(isinstance(start, int) and isinstance(end, int))
    if start == 0 and step == 1 and end >= (length if isinstance(length, int) else 2**63 - 1):
        return x
    return w.op("Slice", x, w.ints(start), w.ints(end), w.ints(dim % len(x.shape)), w.ints(step))


def _turned(w, x, dims):
    back = [-1] * len(dims)
    return w.op("Slice", x, w.ints(*back), w.ints(*[-(2**63)] * len(dims)), w.ints(*dims), w.ints(*back))


def _joined(w, tensors, dim=0):
    return w.op("Concat", *w.alike(*tensors), axis=dim) if len(tensors) > 1 else tensors[0]


def _stacked(w, tensors, dim=0):
    return w.op("Concat", *(w.op("Unsqueeze", tensor, w.ints(dim)) for tensor in w.alike(*tensors)), axis=dim)


def _padded(w, x, pad, mode="constant", value=None):
    need(mode in ("constant", "replicate", "reflect") and all(isinstance(length, int) for length in pad))
    if not any(pad):
        return x
    none = [0] * (len(x.shape) - len(pad) // 2)
    pads = w.ints(*none, *pad[-2::-2], *none, *pad[-1::-2])
    fill = [w.number(value or 0, x.dtype)] if mode == "constant" else []
    return w.op("Pad", x, pads, *fill, mode={"replicate": "edge"}.get(mode, mode))


def _constantly_padded(w, x, pad, value=0):
    return _padded(w, x, pad, value=value)


def _permuted(w, x, dims):
    return w.op("Transpose", x, perm=[d % len(dims) for d in dims])


def _transposed(w, x, first=0, second=1):
    axes = [*range(len(x.shape))]
    axes[first], axes[second] = axes[second], axes[first]
    return w.op("Transpose", x, perm=axes)


def _moved(w, x, source, destination):
    value = torch.empty([1] * len(x.shape)).as_strided([1] * len(x.shape), [*range(len(x.shape))])
    return w.op("Transpose", x, perm=list(value.movedim(source, destination).stride()))


def _expanded(w, x, sizes, implicit=False):
    if list(w.made.shape) == [*x.shape]:
        return x
    return w.op("Expand", x, w.shape([1 if isinstance(size, int) and size == -1 else size for size in sizes]))


def _shaped(w, x, lengths):
    """By the shape that is known, or else by the lengths that torch's op is given."""
    known = [length if isinstance(length, int) else -1 for length in w.made.shape]
    if known.count(-1) <= 1 and 0 not in known:
        lengths = known
    return w.op("Reshape", x, w.shape(lengths))


def _flattened(w, x, start=0, end=-1):
    start, end = start % len(x.shape), end % len(x.shape)
    return _shaped(w, x, [*[0] * start, -1, *_behind(w, x, end + 1)])  # 0: as it was


def _unflattened(w, x, dim, sizes):
    dim %= len(x.shape)
    return _shaped(w, x, [*[0] * dim, *sizes, *_behind(w, x, dim + 1)])


def _behind(w, x, axis):
    """The lengths from an axis on; a free one is asked for, where -1 stands for another already."""
    several = sum(not isinstance(length, int) for length in w.made.shape) > 1
    return [
        length if isinstance(length, int) else w.op("Shape", x, start=i, end=i + 1) if several else -1
        for i, length in enumerate(x.shape[axis:], axis)
    ]


def _squeezed(w, x, dim):
    axes = [d % len(x.shape) for d in (dim if isinstance(dim, (list, tuple)) else [dim])]
    axes = [axis for axis in axes if x.shape[axis] == 1]
    return w.op("Squeeze", x, w.ints(*axes)) if axes else x


def _unsqueezed(w, x, dim):
    return w.op("Unsqueeze", x, w.ints(dim % (len(x.shape) + 1)))


def _nearest(w, x, size, factors):
    """As torch does it: output voxel i is input voxel floor(i * in / out), in float32."""
    need(factors is None)
    for axis, (n, out) in enumerate(zip(x.shape[2:], size, strict=True), start=2):
        if n != out:
            at = np.floor(np.arange(out, dtype=np.float32) * np.float32(n / out)).astype(np.int64)
            x, shape = w.op("Gather", x, w.constant(np.minimum(at, n - 1)), axis=axis), x.shape
            x.shape = ir.Shape([*shape[:axis], out, *shape[axis + 1 :]])
    return x


def _spatial(x, rank: int) -> int:
    """The number of axes behind the channels, which an op of images or clips has. For float64 see onnx_double.py."""
    need(len(x.shape) == rank + 2 and x.dtype != ir.DataType.DOUBLE)
    return rank


def _convolved(w, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    rank = _spatial(x, len(weight.shape) - 2)
    stride, dilation = each(stride, rank), each(dilation, rank)
    if isinstance(padding, str):
        reach = [d * (k - 1) * (padding == "same") for d, k in zip(dilation, weight.shape[2:], strict=True)]
        pads = [*(r // 2 for r in reach), *(r - r // 2 for r in reach)]
    else:
        pads = [*each(padding, rank)] * 2
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return w.op("Conv", *inputs, strides=stride, pads=pads, dilations=dilation, group=groups)


def _convolved_back(w, x, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    rank = _spatial(x, len(weight.shape) - 2)
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return w.op(
        "ConvTranspose",
        *inputs,
        strides=each(stride, rank),
        pads=[*each(padding, rank)] * 2,
        output_padding=each(output_padding, rank),
        dilations=each(dilation, rank),
        group=groups,
    )


def _normed(w, x, weight, bias, mean, variance, training, momentum, eps, cudnn):
    need(not training and mean is not None and variance is not None)
    kind, channels = x.dtype.numpy(), mean.shape[0]
    weight = w.constant(np.ones(channels, kind)) if weight is None else weight
    bias = w.constant(np.zeros(channels, kind)) if bias is None else bias
    return w.op("BatchNormalization", x, weight, bias, mean, variance, epsilon=float(eps))


def _max_pooled(w, x, kernel, stride=(), padding=0, dilation=1, ceil_mode=False):
    rank = len(x.shape) - 2
    need(not ceil_mode)
    kernel = each(kernel, rank)
    window = {"kernel_shape": kernel, "strides": each(stride, rank, kernel), "dilations": each(dilation, rank)}
    return w.op("MaxPool", x, pads=[*each(padding, rank)] * 2, **window)


def _mean_pooled(w, x, kernel, stride=(), padding=0, ceil_mode=False, count_include_pad=True, divisor=None):
    rank = _spatial(x, len(x.shape) - 2)
    need(not ceil_mode and divisor is None)
    kernel = each(kernel, rank)
    window = {"kernel_shape": kernel, "strides": each(stride, rank, kernel), "count_include_pad": count_include_pad}
    return w.op("AveragePool", x, pads=[*each(padding, rank)] * 2, **window)


def _globally_pooled(w, x, size):
    need({*each(size, len(x.shape) - 2)} == {1})
    return w.op("ReduceMean", x, w.ints(*range(2, len(x.shape))), keepdims=True)


def _linear(w, x, weight, bias=None):
    if len(x.shape) == 2:
        return w.op("Gemm", *((x, weight) if bias is None else (x, weight, bias)), transB=1)
    product = w.op("MatMul", x, w.op("Transpose", weight, perm=[1, 0]))
    return product if bias is None else w.op("Add", product, bias)


def _softmax(w, x, dim, dtype=None):
    return w.op("Softmax", x, axis=dim)


def _cast(w, x, *_, **__):
    return w.cast(x, TYPES[w.made.dtype])


def _not_dropped(w, x, p, train):
    need(not train)
    return x


def _range(w, *bounds, **_):
    need(all(isinstance(bound, int) for bound in bounds))
    return w.constant(np.arange(*bounds, dtype=TYPES[w.made.dtype].numpy()))


def _filled(value: float | None = None, at: int = 1) -> Callable:
    """A tensor of one number; `at` is the place of the number among the arguments, behind which stand the lengths."""

    def rule(w, *args, **_):
        lengths, number = args[at - 1], args[at] if value is None else value
        like = lengths if isinstance(lengths, ir.Value) else None
        lengths = lengths if like is None else [*w.made.shape]
        kind = TYPES[w.made.dtype]
        if isinstance(number, ir.Value):  # a length
            need(like is None)
            number = w.cast(number, kind)
            return w.op("Expand", number, w.shape(lengths)) if lengths else w.op("Squeeze", number)
        if all(isinstance(length, int) for length in lengths) and math.prod(lengths) <= 1 << 10:
            return w.constant(np.full(lengths, number, kind.numpy()))
        shape = w.shape(lengths) if like is None else w.op("Shape", like)
        return w.op("Expand", w.number(number, kind), shape)

    return rule


def _repeated(w, x, repeats):
    need(len(repeats) == len(x.shape))
    return w.op("Tile", x, w.shape(repeats))


def _length(w, x, dim):
    return w.op("Shape", x, start=dim, end=dim + 1)


def _of_lengths(kind: str) -> Callable:
    return lambda w, *lengths: w.op(kind, *(w.ints(n) if isinstance(n, int) else n for n in lengths))


def _sum_of_chunks(w, clip, chosen, index):
    return w.op(onnx_loop.OP, clip, chosen, domain=onnx_loop.DOMAIN, index=index)


def _overloads(*ops) -> list:
    return [getattr(op, name) for op in ops for name in op.overloads()]


CHECKS = {aten._assert_tensor_metadata.default, aten._assert_scalar.default}
_UNARY = {
    **dict.fromkeys(("abs", "ceil", "exp", "floor", "log", "neg", "reciprocal", "relu", "round"), None),
    **dict.fromkeys(("sigmoid", "sign", "sqrt", "tanh"), None),
    "isnan": "IsNaN",
    "logical_not": "Not",
}

TABLE: dict[Callable, Callable] = {
    **{getattr(aten, name).default: _node(kind or name.capitalize()) for name, kind in _UNARY.items()},
    aten.maximum.default: _node("Max"),
    aten.minimum.default: _node("Min"),
    aten.logical_and.default: _node("And"),
    aten.logical_or.default: _node("Or"),
    **dict.fromkeys((aten.add.Tensor, aten.add.Scalar), _sum("Add")),
    **dict.fromkeys((aten.sub.Tensor, aten.sub.Scalar), _sum("Sub")),
    **dict.fromkeys((aten.mul.Tensor, aten.mul.Scalar), _node("Mul")),
    **dict.fromkeys((aten.div.Tensor, aten.div.Scalar), _divided),
    aten.pow.Tensor_Scalar: _power,
    **dict.fromkeys((aten.bitwise_and.Tensor, aten.__and__.Tensor), _both("And")),
    **dict.fromkeys((aten.bitwise_or.Tensor, aten.__or__.Tensor), _both("Or")),
    aten.rsub.Scalar: _less_than_number,
    aten.bitwise_not.default: _opposite,
    aten.square.default: lambda w, x: w.op("Mul", x, x),
    aten.rsqrt.default: _square_root_below,
    aten.matmul.default: _node("MatMul"),
    **dict.fromkeys((aten.gt.Tensor, aten.gt.Scalar), _node("Greater")),
    **dict.fromkeys((aten.ge.Tensor, aten.ge.Scalar), _node("GreaterOrEqual")),
    **dict.fromkeys((aten.lt.Tensor, aten.lt.Scalar), _node("Less")),
    **dict.fromkeys((aten.le.Tensor, aten.le.Scalar), _node("LessOrEqual")),
    **dict.fromkeys((aten.eq.Tensor, aten.eq.Scalar), _node("Equal")),
    **dict.fromkeys((aten.ne.Tensor, aten.ne.Scalar), _unequal),
    **dict.fromkeys(_overloads(aten.where), _chosen),
    aten.clamp.default: _clamped,
    aten.clamp_min.default: _clamped,
    aten.clamp_max.default: lambda w, x, high: _clamped(w, x, None, high),
    aten.sum.dim_IntList: _reduced("ReduceSum"),
    aten.sum.default: _reduced("ReduceSum"),
    aten.mean.dim: _reduced("ReduceMean"),
    aten.amax.default: _reduced("ReduceMax"),
    aten.amin.default: _reduced("ReduceMin"),
    aten.linalg_vector_norm.default: _norm,
    aten.argmax.default: _largest,
    aten.topk.default: _top,
    aten.index.Tensor: _indexed,
    aten.index_select.default: _picked,
    aten.select.int: _one_of,
    aten.unbind.int: _each_of,
    **dict.fromkeys((aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default), _split),
    aten.split.sizes: _split,
    aten.slice.Tensor: _part,
    aten.narrow.default: lambda w, x, dim, start, length: _part(w, x, dim, start, start + length),
    aten.gather.default: lambda w, x, dim, at, **_: w.op("GatherElements", x, at, axis=dim % len(x.shape)),
    aten.flip.default: _turned,
    aten.cat.default: _joined,
    aten.stack.default: _stacked,
    aten.pad.default: _padded,
    aten.constant_pad_nd.default: _constantly_padded,
    aten.permute.default: _permuted,
    aten.transpose.int: _transposed,
    **dict.fromkeys((aten.t.default, aten.numpy_T.default), _transposed),
    **dict.fromkeys((aten.movedim.int, aten.movedim.intlist), _moved),
    aten.expand.default: _expanded,
    aten.expand_as.default: lambda w, x, like: w.op("Expand", x, w.op("Shape", like)),
    **dict.fromkeys((aten.reshape.default, aten.view.default, aten._unsafe_view.default), _shaped),
    aten.flatten.using_ints: _flattened,
    aten.unflatten.int: _unflattened,
    **dict.fromkeys((aten.squeeze.dim, aten.squeeze.dims), _squeezed),
    aten.unsqueeze.default: _unsqueezed,
    **dict.fromkeys((aten.conv1d.default, aten.conv2d.default, aten.conv3d.default), _convolved),
    **dict.fromkeys((aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding), _convolved),
    **dict.fromkeys((aten.conv_transpose2d.input, aten.conv_transpose3d.input), _convolved_back),
    aten.batch_norm.default: _normed,
    **dict.fromkeys((aten.max_pool2d.default, aten.max_pool3d.default), _max_pooled),
    **dict.fromkeys((aten.avg_pool2d.default, aten.avg_pool3d.default), _mean_pooled),
    **dict.fromkeys((aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default), _globally_pooled),
    aten.linear.default: _linear,
    aten.upsample_nearest3d.vec: _nearest,
    aten.softmax.int: _softmax,
    aten.silu.default: lambda w, x: w.op("Mul", x, w.op("Sigmoid", x)),
    **dict.fromkeys([*_overloads(aten.to), aten._to_copy.default, aten.type_as.default], _cast),
    **dict.fromkeys((aten.clone.default, aten.contiguous.default), _same),
    **dict.fromkeys((aten.dropout.default, aten.feature_dropout.default), _not_dropped),
    **dict.fromkeys((aten.arange.default, aten.arange.start, aten.arange.start_step), _range),
    aten.full.default: _filled(),
    aten.new_full.default: _filled(at=2),
    aten.full_like.default: _filled(),
    **dict.fromkeys((aten.zeros.default, aten.zeros_like.default), _filled(0)),
    **dict.fromkeys((aten.ones.default, aten.ones_like.default), _filled(1)),
    aten.new_zeros.default: _filled(0, at=2),
    aten.new_ones.default: _filled(1, at=2),
    aten.scalar_tensor.default: lambda w, value, **_: w.constant(np.array(value, TYPES[w.made.dtype].numpy())),
    aten.repeat.default: _repeated,
    operator.getitem: lambda w, values, i: values[i],
    aten.sym_size.int: _length,
    operator.mul: _of_lengths("Mul"),
    operator.add: _of_lengths("Add"),
    operator.sub: _of_lengths("Sub"),
    operator.floordiv: _of_lengths("Div"),
    aten.promote_types.default: lambda w, one, other: torch.promote_types(one, other),
    torch.ops.clipsight_onnx.sum_of_chunks.default: _sum_of_chunks,
    **onnx_plugin.rules(),
}
