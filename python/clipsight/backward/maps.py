"""The linear ops of a network, each transposed: what gradients and relevance are made from.

Every function takes a `Local` and what has arrived at the op's output, `[M, ...]`, and gives what goes to each varying
input, `[M, ...]` too. An op that has no line in `BACK` is recorded from autograd (:mod:`clipsight.backward.traced`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from ..dataflow import shape_of
from . import adjoints
from .convolve import convolve, each
from .rules import Back, Local, Op, Shape, norm_scale

# ---- Shapes ---------------------------------------------------------------------------------------------------------


def by_rows(function: Callable[[Tensor], Tensor], g: Tensor) -> Tensor:
    """A function of `[B, ...]` on `[M, B, ...]`."""
    return function(g.flatten(0, 1)).unflatten(0, (g.shape[0], -1))


def sum_to(g: Tensor, shape: Shape, from_shape: Shape) -> Tensor:
    """What a tensor that was broadcast receives: `[M, *from_shape]` -> `[M, *shape]`."""
    new = len(from_shape) - len(shape)
    if new:
        g = g.sum(tuple(range(1, 1 + new)))
    grown = [i + 1 for i, (n, of) in enumerate(zip(shape, from_shape[new:], strict=True)) if n == 1 and of != 1]
    return g.sum(grown, keepdim=True) if grown else g


def broadcast(at: Local, sent: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """As much to each input of an elementwise op, summed where it was broadcast."""
    pairs = zip(sent, at.op.shapes, strict=True)
    return tuple(None if part is None else sum_to(part, shape, at.op.made_shape) for part, shape in pairs)


def _known(shape: Shape) -> bool:
    return all(length is not None for length in shape)


def _axes(op: Op) -> list[int]:
    """Those that the argument `dim` names, all of them where it names none."""
    rank, value = len(op.shapes[0]), op.arguments.get("dim")
    value = list(range(rank)) if value is None or value == [] else value
    return sorted(d % rank for d in (value if isinstance(value, list) else [value]))


def aten_name(op: Op) -> str:
    return str(op.target).removeprefix("aten.").partition(".")[0]


def _axis(op: Op, rank: int = 0) -> int:
    """The one that the argument `dim` names."""
    return op.arguments.get("dim", 0) % (rank or len(op.shapes[0]))


def pad_axis(g: Tensor, axis: int, before: int, after: int) -> Tensor:
    return F.pad(g, [0, 0] * (g.dim() - 1 - axis) + [before, after]) if before or after else g


# ---- Layers with weights --------------------------------------------------------------------------------------------


def _convolve_back(at: Local, g: Tensor) -> Tensor:
    options = (at.op.shapes[0][2:], at["stride"], _padding(at), at["dilation"], at["groups"])
    return by_rows(lambda g: adjoints.conv_adjoint(g, at.weight, *options, exact=at.rules.divides), g)


def _padding(at: Local) -> list[int] | int:
    """In front, in numbers: of an even kernel `"same"` has one more behind."""
    padding = at["padding"]
    if not isinstance(padding, str):
        return padding
    kernel = at.weight.shape[2:]
    reach = [d * (k - 1) for d, k in zip(each(at["dilation"], len(kernel)), kernel, strict=True)]
    return [r // 2 for r in reach] if padding == "same" else 0


def _transposed_back(at: Local, g: Tensor) -> Tensor:
    """A transposed convolution goes back as the convolution that it is the transposed of."""
    size = at.op.shapes[0][2:]
    options = (at["stride"], at["padding"], at["dilation"], at["groups"])
    sent = by_rows(lambda g: convolve(g, at.weight, *options, exact=at.rules.divides), g)
    return sent[(..., *(slice(n) for n in size))]


def _is_layer(op: Op) -> bool:
    """Of `[B, C, *size]`, and only that depends on the clip."""
    name = aten_name(op)
    axes = int(name[-2]) if name.endswith("d") else len(op.arguments["stride"])
    return op.names == ("input",) and len(op.shapes[0]) == axes + 2 and _known(op.shapes[0][2:])


def _matrix_product_back(at: Local, g: Tensor) -> tuple[Tensor | None, ...]:
    other = "other" if "other" in at.op.arguments else "mat2"
    sent = {"self": lambda: g @ at[other].transpose(-1, -2), other: lambda: at["self"].transpose(-1, -2) @ g}
    return _broadcast_matrices(at, [sent[n]() if w else None for n, w in zip(at.op.names, at.op.wanted, strict=True)])


def _broadcast_matrices(at: Local, sent: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    batch = at.op.made_shape[:-2]
    pairs = zip(sent, at.op.shapes, strict=True)
    return tuple(None if part is None else sum_to(part, s, (*batch, *s[-2:])) for part, s in pairs)


def _are_matrices(op: Op) -> bool:
    """Of two axes or more, both."""
    return aten_name(op) in ("bmm", "mm") or (aten_name(op) == "matmul" and op.fixed)


def _matrix_ranks(node: Node) -> bool:
    return all(read.meta["val"].dim() >= 2 for read in node.args[:2] if isinstance(read, Node))


# ---- Poolings -------------------------------------------------------------------------------------------------------


def _pool_back(at: Local, g: Tensor) -> Tensor:
    return by_rows(lambda g: adjoints.avg_pool_adjoint(g, at.op.shapes[0][2:], *window(at)), g)


def window(at: Local) -> tuple:
    names = {"ceil_mode": False, "count_include_pad": True, "divisor_override": None}
    kernel = at["kernel_size"]
    return (kernel, at.get("stride") or kernel, at["padding"], *(at.get(n, value) for n, value in names.items()))


def _adaptive_back(at: Local, g: Tensor) -> Tensor:
    return by_rows(lambda g: adjoints.adaptive_avg_pool_adjoint(g, at.op.shapes[0][2:]), g)


def is_pooling(op: Op) -> bool:
    """Of `[B, C, *size]`; the number of axes stands in its name."""
    axes = int(aten_name(op).partition("pool")[2][0])
    return len(op.shapes[0]) == axes + 2 and _known(op.shapes[0][2:])


def _sum_back(at: Local, g: Tensor) -> Tensor:
    shape = at.op.shapes[0]
    if not at.get("keepdim"):
        for axis in _axes(at.op):
            g = g.unsqueeze(axis + 1)
    return g.expand(-1, *(-1 if n is None else n for n in shape))


def _mean_back(at: Local, g: Tensor) -> Tensor:
    return _sum_back(at, g / math.prod(at.op.shapes[0][axis] for axis in _axes(at.op)))


def _sums_known_axes(op: Op) -> bool:
    return all(op.shapes[0][axis] is not None for axis in _axes(op))


def _separable_back(at: Local, g: Tensor) -> Tensor:
    """An interpolation, or a padding with what is there: a matrix for each axis, transposed."""
    return by_rows(lambda g: adjoints.transposed_along_axes(g, at.op.fixed), g)


def _matrices(node: Node) -> list[list[list[float]] | None] | None:
    """For each axis behind the channels what each output takes of each input; `None` where that is the same one.

    None at all where a length of these axes is not known.
    """
    shape, made = node.args[0].meta["val"].shape[2:], node.meta["val"].shape[2:]
    if len(node.all_input_nodes) > 1 or not all(isinstance(n, int) for n in (*shape, *made)):
        return None
    found: list[list[list[float]] | None] = []
    for axis, n in enumerate(shape):
        columns = []
        for i in range(n):
            one = torch.zeros(1, 1, *shape, dtype=torch.float64)
            one.select(axis + 2, i).fill_(1)
            out = node.target(one, *node.args[1:], **node.kwargs)[0, 0]
            columns.append(out[tuple(slice(None) if other == axis else 0 for other in range(len(shape)))].tolist())
        rows = [list(row) for row in zip(*columns, strict=True)]
        same = rows == [[float(i == j) for j in range(n)] for i in range(n)]
        found.append(None if same else rows)
    return found


# ---- What moves values ----------------------------------------------------------------------------------------------


def _same(at: Local, g: Tensor) -> Tensor:
    return g


def _reshape_back(at: Local, g: Tensor) -> Tensor:
    return g.reshape(g.shape[0], *(-1 if length is None else length for length in at.op.shapes[0]))


def _permute_back(at: Local, g: Tensor) -> Tensor:
    order = _order(at)
    if sum(i != axis for i, axis in enumerate(order)) == 2:
        return g.transpose(*(1 + i for i, axis in enumerate(order) if i != axis))
    return g.permute(0, *(1 + order.index(axis) for axis in range(len(order))))


def _order(at: Local) -> list[int]:
    """The input's axis that each of the output's is."""
    rank = len(at.op.shapes[0])
    named = np.empty(tuple(range(rank)))  # the lengths are the axes' names
    if "dims" in at.op.arguments:
        moved = named.transpose([d % rank for d in at["dims"]])
    elif "source" in at.op.arguments:
        moved = np.moveaxis(named, at["source"], at["destination"])
    elif rank > 1:
        first, second = (at.get(f"dim{i}", at.get(f"axis{i}", i)) for i in range(2))
        moved = named.swapaxes(first, second)
    else:
        moved = named
    return list(moved.shape)


def _cat_back(at: Local, g: Tensor) -> tuple[Tensor, ...]:
    """To each part its own."""
    axis = _axis(at.op)
    of_axis = [length if isinstance(length, int) else at["tensors"][i].shape[axis] for i, length in at.op.fixed]
    if all(isinstance(length, int) for _, length in at.op.fixed):
        parts = g.split(of_axis, axis + 1)
    else:
        starts = [0, *itertools.accumulate(of_axis)]
        parts = [g.narrow(axis + 1, start, length) for start, length in zip(starts, of_axis, strict=False)]
    return tuple(parts[int(name.partition(".")[2])] for name in at.op.names)


def _cat_lengths(node: Node) -> list[tuple[int, int | None]]:
    values = [read.meta["val"] for read in node.args[0]]
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    lengths = [value.shape[axis] for value in values]
    return [(i, length if isinstance(length, int) else None) for i, length in enumerate(lengths)]


def _stack_back(at: Local, g: Tensor) -> tuple[Tensor, ...]:
    parts = g.unbind(_axis(at.op, len(at.op.made_shape)) + 1)
    return tuple(parts[int(name.partition(".")[2])] for name in at.op.names)


def _pad_back(at: Local, g: Tensor) -> Tensor:
    return F.pad(g, [-length for length in at["pad"]])


def _slice_back(at: Local, g: Tensor) -> Tensor:
    axis, n = _axis(at.op), at.op.shapes[0][_axis(at.op)]
    if at.op.fixed:
        return g
    if "length" in at.op.arguments:
        start, step, count = at["start"] % n, 1, at["length"]
    else:
        span = range(*slice(at.get("start"), at.get("end"), at.get("step", 1)).indices(n))
        start, step, count = span.start, span.step, len(span)
    if step > 1:
        apart = pad_axis(g.unsqueeze(axis + 2), axis + 2, 0, step - 1).flatten(axis + 1, axis + 2)
        g = apart.narrow(axis + 1, 0, (count - 1) * step + 1)
    return pad_axis(g, axis + 1, start, n - start - g.shape[axis + 1])


def _takes_all(node: Node) -> bool:
    return shape_of(node) == shape_of(node.args[0])


def _slices_known_axis(op: Op) -> bool:
    return op.fixed or _cuts_known_axis(op)


def _select_back(at: Local, g: Tensor) -> Tensor:
    axis = _axis(at.op)
    n = at.op.shapes[0][axis]
    return pad_axis(g.unsqueeze(axis + 1), axis + 1, at["index"] % n, n - 1 - at["index"] % n)


def _split_back(at: Local, g: Tensor) -> Tensor:
    """All parts side by side again, zeros for those that nothing has arrived at."""
    axis = _axis(at.op) + 1
    parts = at.parts
    unbound = len(at.op.parts[0]) < len(at.op.shapes[0])
    lengths = [1 if unbound else shape[axis - 1] for shape in at.op.parts]
    pieces, missed = [], 0
    for part, length in zip(parts, lengths, strict=True):
        if part is None:
            missed += length
            continue
        pieces.append(pad_axis(part.unsqueeze(axis) if unbound else part, axis, missed, 0))
        missed = 0
    pieces[-1] = pad_axis(pieces[-1], axis, 0, missed)
    return torch.cat(pieces, axis) if len(pieces) > 1 else pieces[0]


def _cuts_known_axis(op: Op) -> bool:
    return op.shapes[0][_axis(op)] is not None


def _expand_back(at: Local, g: Tensor) -> Tensor:
    return sum_to(g, at.op.shapes[0], at.op.made_shape)


def _flip_back(at: Local, g: Tensor) -> Tensor:
    rank = len(at.op.shapes[0])
    return g.flip([1 + d % rank for d in at["dims"]])


def _index_back(at: Local, g: Tensor) -> Tensor:
    """To the places that the indices name, which may be named several times."""
    zeros = torch.zeros_like(at.x).unsqueeze(0).expand(g.shape[0], *[-1] * at.x.dim())
    return torch.ops.aten.index_put(zeros, [None, *at["indices"]], g, True)


def _indexes_neighbours(node: Node) -> bool:
    """By numbers, and axes side by side: the axes of the result then stand where those were."""
    given = [i for i, index in enumerate(node.args[1]) if index is not None]
    types = [node.args[1][i].meta["val"].dtype for i in given]
    return torch.bool not in types and given[-1] - given[0] == len(given) - 1


# ---- Sums and scales ------------------------------------------------------------------------------------------------


def _add_back(at: Local, g: Tensor) -> tuple[Tensor, ...]:
    return broadcast(at, [times(g, factor) for factor in factors(at)])


def factors(at: Local) -> list[float]:
    """Of each varying input of a sum."""
    alpha = at.get("alpha", 1)
    by_name = {"sub": {"self": 1, "other": -alpha}, "rsub": {"self": -alpha, "other": 1}}
    return [by_name.get(aten_name(at.op), {"self": 1, "other": alpha})[argument] for argument in at.op.names]


def times(g: Tensor, factor: float) -> Tensor:
    return g if factor == 1 else -g if factor == -1 else g * factor


def _scale_back(at: Local, g: Tensor) -> tuple[Tensor, ...]:
    if "other" not in at.op.arguments:
        return broadcast(at, [-g])
    return broadcast(at, [g * at["self" if at.op.names == ("other",) else "other"]])


def _unscale_back(at: Local, g: Tensor) -> tuple[Tensor, ...]:
    return broadcast(at, [g / at["other"]])


def _norm_back(at: Local, g: Tensor) -> Tensor:
    """A batch norm in eval mode: a factor for each channel."""
    scale = norm_scale(*(at[name] for name in ("weight", "running_var", "eps")))
    return g * scale.view(-1, *[1] * (g.dim() - 3))


def _mask_back(at: Local, g: Tensor) -> tuple[Tensor, ...]:
    """Of what was put in the place of others by a mask."""
    if "condition" in at.op.arguments:
        mask, kept = at["condition"], [name == "self" for name in at.op.names]
    else:
        mask, kept = at["mask"], [name != "self" for name in at.op.names]
    return broadcast(at, [torch.where(mask, g, 0.0) if keep else torch.where(mask, 0.0, g) for keep in kept])


def _masks(op: Op) -> bool:
    return set(op.names) <= {"self", "other"}


def _others(op: Op) -> str:
    return "xc" if len(op.reads) > 1 else "c"


def _unknown_lengths(op: Op) -> str:
    return "xc" if any(length is None for _, length in op.fixed) else ""


LINEAR = {
    "conv": Back(_convolve_back, "c", fits=_is_layer),
    "conv_transpose": Back(_transposed_back, "c", fits=_is_layer),
    "linear": Back(lambda at, g: g @ at.weight, "c", fits=lambda op: op.names == ("input",)),
    "matmul": Back(_matrix_product_back, _others, fits=_are_matrices, fix=_matrix_ranks),
    "avg_pool": Back(_pool_back, fits=is_pooling),
    "adaptive_avg_pool": Back(_adaptive_back, fits=is_pooling),
    "mean": Back(_mean_back, fits=_sums_known_axes),
    "sum": Back(_sum_back, fits=_sums_known_axes),
    **dict.fromkeys(
        ("interpolate", "replicate pad", "reflect pad", "circular pad"),
        Back(_separable_back, fits=lambda op: op.fixed is not None, fix=_matrices),
    ),
    "reshape": Back(_reshape_back, fits=lambda op: op.shapes[0].count(None) <= 1),
    "permute": Back(_permute_back),
    "identity": Back(_same),
    "dropout": Back(_same),
    "cat": Back(_cat_back, _unknown_lengths, fix=_cat_lengths),
    "stack": Back(_stack_back),
    "pad": Back(_pad_back),
    "slice": Back(_slice_back, fits=_slices_known_axis, fix=_takes_all),
    "select": Back(_select_back, fits=_cuts_known_axis),
    "split": Back(_split_back, several=True, fits=_cuts_known_axis),
    "expand": Back(_expand_back),
    "flip": Back(_flip_back),
    "index": Back(_index_back, "xc", fits=lambda op: op.fixed, fix=_indexes_neighbours),
    "add": Back(_add_back),
    "scale": Back(_scale_back, "c"),
    "unscale": Back(_unscale_back, "c"),
    "batch_norm": Back(_norm_back, "c"),
    "mask": Back(_mask_back, "c", fits=_masks),
    "where": Back(_mask_back, "c", gate=True, fits=_masks),
}


# ---- What the rules of relevance do with layers ---------------------------------------------------------------------


def apply(at: Local) -> Tensor:
    """What a layer makes of its inputs without its bias."""
    if at.op.kind.name == "conv":
        return convolve(at.x, at.weight, at["stride"], at["padding"], at["dilation"], at["groups"])
    if at.op.kind.name == "linear":
        return F.linear(at.x, at.weight)
    arguments = {name: at[name] for name in at.op.arguments}
    without = {"bias": None, "beta": 0}
    return at.op.target(**arguments | {name: value for name, value in without.items() if name in arguments})


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0 or so small that it could not be told from it."""
    return a / torch.where(b.abs() > 1e-30, b, math.inf)
