"""What the axes of a network's tensors are: batch, channels, time, rows, columns, however they are laid out.

Each axis is made of factors, the slowest first: `[N*T, C, h, w]` of a 2-D network has a first axis of the factors N and
T, or T and N where time is in front; tokens `[N, 1 + t*h*w, C]` have a second axis of t, h and w behind one place that
is no voxel. The labels start at the clip and go along every op; `Grid` takes a tensor of any layout to
`[N, C, t, h, w]`. What the rules here cannot follow has no labels, which is never a guess: every result is held
against the shape that the tensor really has.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from .table import Kind, Role

VOXEL = ("T", "H", "W")


class Factor(NamedTuple):
    """A part of an axis.

    Attributes:
        label: "N", "C", "T", "H" or "W"; "?" for what is none of them.
        length: a number, or a symbolic expression in the batch size.
        rank: of two factors of one label the slower one has the smaller rank.
        whole: 0; or, for a piece of an axis, the length of that axis, -1 if it can no longer be put together again.
    """

    label: str
    length: object
    rank: tuple[int, ...] = ()
    whole: int = 0


class Axis(NamedTuple):
    """Factors, the slowest first, behind places that are none of the grid's, such as a class token's."""

    factors: tuple[Factor, ...] = ()
    extra: int = 0

    @property
    def length(self):
        return self.extra + math.prod((f.length for f in self.factors), start=1) if self.factors else max(self.extra, 1)


Axes = tuple[Axis, ...]
BATCH, CHANNELS = "N", "C"


def of_clip(value: Tensor) -> Axes:
    return tuple(Axis((Factor(label, n),)) for label, n in zip("NCTHW", lengths(value), strict=False))


def lengths(value: Tensor) -> list:
    """Of a fake tensor: numbers, and expressions in the batch size."""
    return [n if isinstance(n, int) else n.node.expr for n in value.shape]


# ---- Grids ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """How a tensor becomes `[N, C, t, h, w]`.

    Attributes:
        size: `(t, h, w)`.
        channels: C.
        split: lengths of all factors in the tensor's own order, -1 for the batch.
        order: of these, for N, C, t, h, w.
        tokens: axis of the tensor with places that are no voxels, and how many are in front, or `None`.
    """

    size: tuple[int, int, int]
    channels: int
    split: tuple[int, ...]
    order: tuple[int, ...]
    tokens: tuple[int, int] | None = None

    def of(self, tensor: Tensor, leading: int = 0) -> Tensor:
        """`[*, N, C, t, h, w]` of a tensor with `leading` further axes in front."""
        if self.tokens is not None:
            axis, extra = self.tokens[0] + leading, self.tokens[1]
            tensor = tensor.narrow(axis, extra, tensor.shape[axis] - extra)
        front = tuple(tensor.shape[:leading])
        if tensor.dim() - leading != len(self.split):
            tensor = tensor.reshape(*front, *self.split)
        if self.order != tuple(range(len(self.split))):
            tensor = tensor.permute(*range(leading), *(leading + i for i in self.order))
        if len(self.split) != 5 or self.split[1:] != (self.channels, *self.size):
            tensor = tensor.reshape(*front, *self.out)
        return tensor

    @property
    def out(self) -> tuple[int, ...]:
        return (-1, self.channels, *self.size)


def grid_of(axes: Axes | None) -> Grid | None:
    """The grid of a tensor with these axes; `None` where it has no voxels, or not all of them, or no one batch axis."""
    if axes is None or sum(axis.extra > 0 for axis in axes) > 1:
        return None
    placed = [(f, a) for a, axis in enumerate(axes) for f in (axis.factors or (Factor("?", 1),))]
    if sum(f.label == BATCH for f, _ in placed) != 1 or not any(f.label in VOXEL for f, _ in placed):
        return None
    if any(f.label in VOXEL and f.whole for f, _ in placed):
        return None
    tokens = next(((a, axis.extra) for a, axis in enumerate(axes) if axis.extra), None)
    if tokens and not all(f.label in VOXEL for f in axes[tokens[0]].factors):
        return None
    if not all(f.label == BATCH or isinstance(f.length, int) for f, _ in placed):
        return None
    voxels = [_places(placed, label) for label in VOXEL]
    others = [i for i, (f, _) in enumerate(placed) if f.label not in (BATCH, *VOXEL)]
    batch = next(i for i, (f, _) in enumerate(placed) if f.label == BATCH)
    return Grid(
        size=tuple(math.prod(placed[i][0].length for i in places) for places in voxels),
        channels=math.prod(placed[i][0].length for i in others),
        split=tuple(-1 if f.label == BATCH else f.length for f, _ in placed),
        order=(batch, *others, *(i for places in voxels for i in places)),
        tokens=tokens,
    )


def _places(placed: Sequence[tuple[Factor, int]], label: str) -> list[int]:
    found = [i for i, (f, _) in enumerate(placed) if f.label == label]
    return sorted(found, key=lambda i: placed[i][0].rank)


def voxels_of(axes: Axes) -> dict[str, int]:
    """How long time, rows and columns are in a tensor."""
    found = dict.fromkeys(VOXEL, 1)
    for axis in axes:
        for factor in axis.factors:
            if factor.label in found:
                found[factor.label] *= factor.length
    return found


# ---- Along the ops --------------------------------------------------------------------------------------------------


def axes_of(node: Node, kind: Kind, known: Callable[[Node], Axes | tuple | None]) -> Axes | tuple | None:
    """The axes of what an op makes; of one with several outputs a tuple of axes, a `None` for each without.

    Args:
        node: of the captured graph.
        kind: its row of the table.
        known: the axes of the tensors that it reads.
    """
    value = node.meta.get("val")
    if node.target is operator.getitem:
        several = known(node.args[0])
        return several[node.args[1]] if isinstance(several, tuple) and len(several) > node.args[1] else None
    try:
        if isinstance(value, (list, tuple)):
            return _several(node, kind, known, value)
        return checked(_RULES.get(kind.name, _alike)(node, known, value), value)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError):
        return None  # an overload with other arguments


def checked(axes: Axes | None, value: Tensor) -> Axes | None:
    """Axes, if they are those of a tensor of this shape."""
    if axes is None or not isinstance(value, Tensor) or len(axes) != value.dim():
        return None
    return axes if all(a.length == n for a, n in zip(axes, lengths(value), strict=True)) else None


def _several(node: Node, kind: Kind, known, values) -> tuple:
    before = known(node.args[0]) if isinstance(node.args[0], Node) else None
    if kind.name == "split" and before is not None:
        axis = _argument(node, "dim", 0) % len(before)
        if str(node.target).startswith("aten.unbind"):
            return tuple((*before[:axis], *before[axis + 1 :]) for _ in values)
        pieces = (_piece(before[axis], int(v.shape[axis])) for v in values)
        return tuple(checked(_with(before, axis, piece), v) for piece, v in zip(pieces, values, strict=True))
    if kind.role is Role.REPEATS and before is not None:
        states = (None,) * (len(values) - 1)
        return (checked((*before[:-1], Axis((Factor(CHANNELS, lengths(values[0])[-1]),))), values[0]), *states)
    return tuple(
        _RULES.get(kind.name, _alike)(node, known, v) if isinstance(v, Tensor) and i < 1 else None
        for i, v in enumerate(values)
    )


def _argument(node: Node, name: str, default=None):
    """An argument of an op by its name in the schema."""
    for i, argument in enumerate(node.target._schema.arguments):
        if argument.name == name:
            given = node.args[i] if i < len(node.args) else node.kwargs.get(name)
            return given if given is not None else argument.default_value if default is None else default
    return default


def _with(axes: Axes, index: int, axis: Axis) -> Axes:
    return (*axes[:index], axis, *axes[index + 1 :])


def _alike(node: Node, known, value: Tensor) -> Axes | None:
    """Axis by axis what the inputs have there, aligned at the last one, as tensors of different shapes are added."""
    reads = [known(n) for n in node.all_input_nodes]
    reads = [axes for axes in reads if axes is not None and not _is_several(axes)]
    if not reads:
        return None
    wanted, found = lengths(value), []
    for back in range(1, len(wanted) + 1):
        fits = [axes[-back] for axes in reads if len(axes) >= back and axes[-back].length == wanted[-back]]
        fits.sort(key=_is_unnamed)
        found.append(fits[0] if fits else Axis((Factor("?", wanted[-back]),)))
    return tuple(reversed(found))


def _is_several(axes) -> bool:
    return any(not isinstance(axis, Axis) for axis in axes)


def _resized(axis: Axis, length: int) -> Axis:
    """An axis behind a window that slides along it, or an interpolation."""
    if axis.length == length:
        return axis
    if len(axis.factors) != 1 or axis.extra:
        return Axis((Factor("?", length),)) if length != 1 else Axis()
    (factor,) = axis.factors
    return Axis((factor._replace(length=length, whole=-1 if factor.whole else 0),))


def _windows(node: Node, known, value: Tensor) -> Axes:
    """Poolings and interpolations of the last axes."""
    before, wanted = known(node.args[0]), lengths(value)
    return tuple(_resized(a, n) if isinstance(n, int) else a for a, n in zip(before, wanted, strict=True))


def _convolved(node: Node, known, value: Tensor) -> Axes:
    axes = _windows(node, known, value)
    return _with(axes, 1, Axis((Factor(CHANNELS, int(value.shape[1])),)))


def _dense(node: Node, known, value: Tensor) -> Axes:
    return (*known(node.args[0])[:-1], Axis((Factor(CHANNELS, int(value.shape[-1])),)))


def _reduced(node: Node, known, value: Tensor) -> Axes:
    before = known(node.args[0])
    dims = _argument(node, "dim")
    dims = range(len(before)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    dims = {d % len(before) for d in dims}
    if _argument(node, "keepdim", False):
        return tuple(Axis() if i in dims else axis for i, axis in enumerate(before))
    return tuple(axis for i, axis in enumerate(before) if i not in dims)


def _permuted(node: Node, known, value: Tensor) -> Axes:
    before, name = known(node.args[0]), str(node.target)
    order = list(range(len(before)))
    if "permute" in name:
        order = [d % len(before) for d in node.args[1]]
    elif "movedim" in name or "moveaxis" in name:
        marks = torch.empty(*range(1, len(before) + 1), device="meta").movedim(*node.args[1:]).shape
        order = [n - 1 for n in marks]
    else:
        one, other = (node.args[1] % len(order), node.args[2] % len(order)) if len(node.args) > 2 else (0, 1)
        order[one], order[other] = order[other], order[one]
    return tuple(before[i] for i in order)


def _reshaped(node: Node, known, value: Tensor) -> Axes | None:
    """The factors, in their order, in other groups; one that is in two groups becomes two."""
    waiting: list[Axis | Factor] = []
    for axis in reversed(known(node.args[0])):
        whole = [axis] if axis.extra else [f for f in reversed(axis.factors) if f.length != 1]
        waiting.extend(whole)
    found: list[Axis] = []
    for wanted in lengths(value):
        group: list[Factor] = []
        length = 1
        while length != wanted:
            if not waiting:
                return None
            item = waiting.pop()
            if isinstance(item, Axis):
                if length != 1 or item.length != wanted:
                    return None
                found.append(item)
                break
            if not _divides(length * item.length, wanted):
                major = _quotient(wanted, length)
                if not isinstance(major, int) or not isinstance(item.length, int) or item.length % major:
                    return None
                waiting.append(item._replace(length=item.length // major, rank=(*item.rank, 1)))
                item = item._replace(length=major, rank=(*item.rank, 0))
            group.append(item)
            length = length * item.length
        else:
            found.append(Axis(_joined(group)))
    return None if waiting else tuple(found)


def _divides(part, whole) -> bool:
    return _quotient(whole, part) is not None


def _quotient(whole, part):
    """whole / part if that is a number, or an expression without a fraction; else `None`."""
    if isinstance(whole, int) and isinstance(part, int):
        return whole // part if whole % part == 0 else None
    ratio = whole / part
    if ratio.as_numer_denom()[1] != 1:
        return None
    return int(ratio) if ratio.is_Integer else ratio


def _joined(factors: Sequence[Factor]) -> tuple[Factor, ...]:
    """Neighbors that are the two parts of one factor are that factor again."""
    found: list[Factor] = []
    for factor in factors:
        last = found[-1] if found else None
        if (
            last
            and last.label == factor.label
            and last.rank[:-1] == factor.rank[:-1]
            and (last.rank, factor.rank)
            == (
                (*factor.rank[:-1], 0),
                (*factor.rank[:-1], 1),
            )
        ):
            found[-1] = factor._replace(length=last.length * factor.length, rank=factor.rank[:-1])
        else:
            found.append(factor)
    return tuple(found) if len(found) == len(factors) else _joined(found)


def _concatenated(node: Node, known, value: Tensor) -> Axes | None:
    parts = [(known(n), n.meta["val"]) for n in node.args[0]]
    first = next((axes for axes, _ in parts if axes is not None), None)
    if first is None:
        return None
    dim = _argument(node, "dim", 0) % len(first)
    total = lengths(value)[dim]
    labeled = [axes[dim].factors for axes, _ in parts if axes is not None and axes[dim].factors]
    factors = [f for group in labeled for f in group]
    labels = {f.label for f in factors}
    axis = Axis((Factor("?", total),))
    if labels == {CHANNELS} or labels == {CHANNELS, "?"}:
        axis = Axis((Factor(CHANNELS, total),))
    elif len(labels) == 1 and all(len(group) == 1 for group in labeled) and labels <= set(VOXEL):
        # Pieces of one axis, put together again or shifted; or, with other lengths, something else.
        whole = {f.whole for f in factors}
        extra = _places_in_front(parts, dim) if len(labeled) == 1 else 0
        if whole == {total} or (whole == {0} and len(labeled) == 1 and not extra):
            axis = Axis((factors[0]._replace(length=total, whole=0),))
        elif extra and whole == {0}:
            axis = Axis(labeled[0], extra)
    elif len(labeled) == 1:
        axis = Axis(labeled[0], _places_in_front(parts, dim))
    known_parts = [axes for axes, _ in parts if axes is not None and len(axes) == len(first)]
    best = (min((axes[i] for axes in known_parts), key=_is_unnamed) for i in range(len(first)))
    return _with(tuple(best), dim, axis)


def _is_unnamed(axis: Axis) -> bool:
    """Nothing is known of it."""
    return not axis.factors or any(f.label == "?" for f in axis.factors)


def _places_in_front(parts, dim: int) -> int:
    """How many places a concatenation puts in front of the one part with labels, if there are none behind it."""
    *front, (axes, _) = parts
    if axes is None or not axes[dim].factors or axes[dim].extra:
        return 0
    return sum(int(value.shape[dim]) for _, value in front)


def _stacked(node: Node, known, value: Tensor) -> Axes | None:
    first = next((axes for axes in map(known, node.args[0]) if axes is not None), None)
    dim = _argument(node, "dim", 0) % value.dim()
    return first and (*first[:dim], Axis((Factor("?", int(value.shape[dim])),)), *first[dim:])


def _piece(axis: Axis, length: int, all_of_it: bool = False) -> Axis:
    """Some places of an axis; `all_of_it` where they are spread over its whole length."""
    if axis.length == length:
        return axis
    if len(axis.factors) != 1 or axis.extra:
        return Axis((Factor("?", length),)) if length != 1 else Axis()
    (factor,) = axis.factors
    if factor.label not in VOXEL or all_of_it:
        return Axis((factor._replace(length=length),))
    return Axis((factor._replace(length=length, whole=factor.whole or factor.length),))


def _sliced(node: Node, known, value: Tensor) -> Axes:
    before = known(node.args[0])
    dim = _argument(node, "dim", 0) % len(before)
    axis, length = before[dim], lengths(value)[dim]
    if axis.length == length:
        return before
    start, step = (_argument(node, name) or default for name, default in (("start", 0), ("step", 1)))
    if axis.extra and step == 1 and start >= 0:
        if start == axis.extra and length == axis.length - start:
            return _with(before, dim, axis._replace(extra=0))
        if start + length <= axis.extra:
            return _with(before, dim, Axis((), length if length != 1 else 0))
    return _with(
        before, dim, _piece(axis, length, all_of_it=step > 1 and 0 <= start < step and _to_the_end(axis, node))
    )


def _to_the_end(axis: Axis, node: Node) -> bool:
    end = _argument(node, "end")
    return not isinstance(end, int) or (end < 0 and end == -1) or end >= axis.length


def _selected(node: Node, known, value: Tensor) -> Axes:
    before = known(node.args[0])
    dim = _argument(node, "dim", 0) % len(before)
    return (*before[:dim], *before[dim + 1 :])


def _index_selected(node: Node, known, value: Tensor) -> Axes:
    """`index_select` at places spread over the axis, as the slow one of two pathways has them."""
    before = known(node.args[0])
    if not str(node.target).startswith("aten.index_select"):
        raise ValueError
    dim = node.args[1] % len(before)
    return _with(
        before, dim, _piece(before[dim], lengths(value)[dim], all_of_it=_are_spread(node.args[2], before[dim]))
    )


def _are_spread(index: Node, axis: Axis) -> bool:
    places = _constant(index)
    if places is None or places.numel() == 0 or not isinstance(axis.length, int):
        return False
    step = axis.length / places.numel()
    rising = torch.equal(places, places.sort().values)
    return rising and int(places[0]) < step and int(places[-1]) >= axis.length - 1 - step


def _constant(node: Node) -> Tensor | None:
    """The value of what no clip changes: a constant of the network, or what simple ops make of one."""
    if node.op == "get_attr":
        value = operator.attrgetter(node.target)(node.graph.owning_module)
        return value.detach() if isinstance(value, Tensor) else None
    if node.op != "call_function":
        return None
    reads = {n: _constant(n) for n in node.all_input_nodes}
    if any(value is None for value in reads.values()):
        return None
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: reads[n])
    return node.target(*args, **kwargs)


def _multiplied(node: Node, known, value: Tensor) -> Axes | None:
    """A product of matrices: rows are the first factor's, columns the second's."""
    name = str(node.target).removeprefix("aten.").partition(".")[0]
    one, other = node.args[1:3] if name in ("addmm", "baddbmm") else node.args[:2]
    one, other = (known(n) if known(n) is not None else _unknown(n) for n in (one, other))
    if len(one) < 2 or len(other) < 2:
        return None
    batch = [
        next((axes[-back] for axes in (one, other) if len(axes) >= back and axes[-back].factors), Axis())
        for back in range(value.dim(), 2, -1)
    ]
    return (*batch, one[-2], other[-1])


def _unknown(node: Node) -> Axes:
    return tuple(Axis((Factor(CHANNELS, n),)) if n != 1 else Axis() for n in lengths(node.meta["val"]))


def _summed_by_letters(node: Node, known, value: Tensor) -> Axes:
    terms, _, result = node.args[0].replace(" ", "").partition("->")
    found: dict[str, Axis] = {}
    for letters, read in zip(terms.split(","), node.args[1], strict=True):
        axes = known(read)
        for letter, axis in zip(letters, axes if axes is not None else _unknown(read), strict=True):
            if axes is not None or letter not in found:
                found[letter] = axis
    return tuple(found[letter] for letter in result)


def _attended(node: Node, known, value: Tensor) -> Axes:
    query, last = known(node.args[0]), known(node.args[2])
    return (*query[:-1], last[-1])


def _expanded(node: Node, known, value: Tensor) -> Axes:
    before, wanted = known(node.args[0]), lengths(value)
    before = (Axis(),) * (len(wanted) - len(before)) + before
    return tuple(a if a.length == n else Axis((Factor("?", n),)) for a, n in zip(before, wanted, strict=True))


def _mirrored(node: Node, known, value: Tensor) -> Axes:
    """A flipped axis no longer lies over the clip's, as a part of it does not; a rolled one does when it is back."""
    before = known(node.args[0])
    if not str(node.target).startswith("aten.flip"):
        return before
    flipped = {d % len(before) for d in node.args[1]}
    turned = (Axis(tuple(f._replace(whole=-1) for f in axis.factors), axis.extra) for axis in before)
    return tuple(new if i in flipped else old for i, (old, new) in enumerate(zip(before, turned, strict=True)))


def _first(node: Node, known, value: Tensor) -> Axes:
    return known(node.args[0])


_RULES: dict[str, Callable[..., Axes | None]] = {
    **dict.fromkeys(("conv", "conv_transpose"), _convolved),
    **dict.fromkeys(("max_pool", "max_pool_with_indices", "avg_pool", "adaptive_avg_pool"), _windows),
    **dict.fromkeys(("adaptive_max_pool", "interpolate", "pad", "replicate pad", "reflect pad"), _windows),
    **dict.fromkeys(("mean", "sum", "amax", "max", "normalize"), _reduced),
    **dict.fromkeys(("layer_norm", "group_norm", "instance_norm", "batch_norm", "slice_scatter"), _first),
    "linear": _dense,
    "permute": _permuted,
    "reshape": _reshaped,
    "cat": _concatenated,
    "stack": _stacked,
    "slice": _sliced,
    "select": _selected,
    "index": _index_selected,
    "matmul": _multiplied,
    "einsum": _summed_by_letters,
    "attention": _attended,
    "expand": _expanded,
    "flip": _mirrored,
}
