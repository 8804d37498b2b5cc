"""The transposed derivative of an op that nobody wrote one for: autograd's own, recorded for that op alone.

What is recorded is a forward graph like all else. It repeats the op, and it knows of no classes: they go into the
batch, as further samples. That is right for an op that treats its samples one by one, whichever axis the batch is; on
random values it is tried whether this one does. An activation mixes nothing at all: of that one the factor is recorded
by which it multiplies a small change of each value.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from ..dataflow import AttachError, follow_sizes, free_batch, op_of, shape_of, where
from ..errors import first_line
from ..graph.table import Role
from . import adjoints, unrolled
from .maps import broadcast
from .rules import Back, Local, Op, Parameter, Tap

aten = torch.ops.aten

Reference = Tap | Parameter

_GATES = ("gt", "ge", "lt", "le", "eq", "ne", "max_pool", "threshold", "topk", "sort", "max", "min", "kthvalue")
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Record:
    """A recorded derivative.

    Attributes:
        module: (what arrives at the outputs, the tensors that are used) to what the wanted inputs receive; of an
            activation (those tensors) to factors.
        outputs: which of several outputs something arrives at.
        axes: of these, of the used tensors and of the results the axis that grows with the batch, `None` for none.
        used: which of the tensors that the op takes.
        elementwise: it is an activation's.
        gate: it compares, or looks for the largest.
    """

    module: GraphModule = field(repr=False)
    outputs: tuple[int, ...]
    axes: tuple[tuple[int | None, ...], ...]
    used: tuple[int, ...]
    elementwise: bool
    gate: bool

    def run(self, arrived: Sequence[Tensor], taken: Sequence[Tensor]) -> list[Tensor]:
        """`[M, ...]` of each output, and the used tensors, to `[M, ...]` of each wanted input."""
        classes = arrived[0].shape[0]
        of_outputs, of_taken, of_results = self.axes
        into = [g.movedim(0, axis).flatten(axis, axis + 1) for g, axis in zip(arrived, of_outputs, strict=True)]
        repeated = [_repeated(tensor, axis, classes) for tensor, axis in zip(taken, of_taken, strict=True)]
        sent = self.module(*into, *repeated)
        return [g.unflatten(axis, (classes, -1)).movedim(axis, 0) for g, axis in zip(sent, of_results, strict=True)]


def _repeated(tensor: Tensor, axis: int | None, classes: int) -> Tensor:
    """The same samples for every class."""
    if axis is None:
        return tensor
    sizes = [-1] * tensor.dim()
    return tensor.unsqueeze(axis).expand(*sizes[:axis], classes, *sizes[axis:]).flatten(axis, axis + 1)


class Recorder:
    """Records derivatives, those of ops that are alike once."""

    def __init__(self) -> None:
        self._known: dict[str, Record] = {}

    def back(
        self, node: Node, op: Op, nodes: Mapping[Reference, Node], outputs: tuple[int, ...]
    ) -> tuple[Back, list[Reference]]:
        """The transposed derivative of an op, and the tensors of the forward pass that it reads.

        Args:
            node: the op.
            op: the same.
            nodes: the tensors that it takes.
            outputs: of several outputs those that the logits depend on.

        Raises:
            AttachError: it cannot be recorded; the message says why.
        """
        kinds = [(list(n.meta["val"].shape), n.meta["val"].dtype) for n in nodes.values()]
        text = str((op.target, op.arguments, op.wanted, outputs, kinds))
        for i, reference in enumerate(nodes):
            text = text.replace(str(reference), f"tensor {i}")
        if text not in self._known:
            self._known[text] = _record(node, op, nodes, outputs)
        record = self._known[text]
        needed = [list(nodes)[i] for i in record.used]

        def function(at: Local, g: Tensor) -> tuple[Tensor | None, ...]:
            taken = [at.value(reference) for reference in needed]
            if record.elementwise:
                return broadcast(at, [g * factor for factor in record.module(*taken)])
            sent = iter(record.run([at.parts[i] for i in outputs] if op.parts else [g], taken))
            return tuple(next(sent) if wanted else None for wanted in op.wanted)

        return Back(function, gate=record.gate, several=True), needed


def _record(node: Node, op: Op, nodes: Mapping[Reference, Node], outputs: tuple[int, ...]) -> Record:
    made = [node.meta["val"][i] for i in outputs] if op.parts else [node.meta["val"]]
    fake = made[0].fake_mode
    wanted = [list(nodes).index(Tap(read)) for read, wants in zip(op.reads, op.wanted, strict=True) if wants]
    same_shape = (
        len(nodes) and len(op.reads) == 1 and not op.parts and shape_of(nodes[Tap(op.reads[0])]) == shape_of(node)
    )
    elementwise = op.kind.role in (Role.GATES, Role.CURVES) and same_shape

    def derivative(*tensors: Tensor) -> tuple[Tensor, ...]:
        arrived, taken = tensors[: len(made)], [*tensors[len(made) :]]
        for i in wanted:
            taken[i] = taken[i].detach().requires_grad_()
        result = unrolled.run(node, dict(zip(nodes.values(), taken, strict=True)))
        results = [result[i] for i in outputs] if op.parts else [result]
        sent = torch.autograd.grad(results, [taken[i] for i in wanted], arrived, allow_unused=True)
        return tuple(torch.zeros_like(taken[i]) if g is None else g for i, g in zip(wanted, sent, strict=True))

    def factors(*taken: Tensor) -> tuple[Tensor, ...]:
        return derivative(torch.ones_like(taken[wanted[0]]), *taken)

    taken = [_in_full(_fake(n.meta["val"], fake), fake) for n in nodes.values()]
    inputs = taken if elementwise else [*(_in_full(value, fake) for value in made), *taken]
    # torch knows how to write its backward ops as forward ones; what it lacks stands at the end of this file.
    known = torch._decomp.decomposition_table.items()
    table = {of: written for of, written in known if "backward" in str(of)} | _WRITTEN
    try:
        with torch.enable_grad(), torch.inference_mode(False), fake:
            module = make_fx(factors if elementwise else derivative, decomposition_table=table)(*inputs)
    except Exception as error:
        raise AttachError(
            f"explain: '{op_of(node)}' {where(node)} must have a derivative that can be recorded, got "
            f"{first_line(error)}"
        ) from error
    _must_be_free(node, [*made, *taken])
    graph = module.graph
    for copy in [n for n in graph.nodes if n.op == "call_function" and op_of(n) in ("detach", "alias")]:
        copy.replace_all_uses_with(copy.args[0])
    _sizes_from_batch(graph)
    free_batch(graph)
    follow_sizes(graph)
    holders = graph.find_nodes(op="placeholder")
    taken_by = holders if elementwise else holders[len(made) :]
    used = tuple(i for i, holder in enumerate(taken_by) if holder.users)
    for holder in [holder for holder in taken_by if not holder.users]:
        graph.erase_node(holder)
    module.recompile()
    gate = any(n.op == "call_function" and op_of(n).startswith(_GATES) for n in graph.nodes)
    if elementwise:
        return Record(module, outputs, ((), (), ()), used, True, gate)
    groups = (made, [taken[i] for i in used], [taken[i] for i in wanted])
    axes = tuple(tuple(_batch_axis(node, value) for value in group) for group in groups)
    if None in (*axes[0], *axes[2]):
        raise _mixes(node)
    record = Record(module, outputs, axes, used, False, gate)
    _try(node, record, made, groups[1])
    return record


def _fake(value: Tensor, fake) -> Tensor:
    return value if hasattr(value, "fake_mode") else fake.from_tensor(value, static_shapes=True)


def _in_full(value: Tensor, fake) -> Tensor:
    """Walks compute in float32 at least."""
    with fake:
        return value.float() if value.dtype in _HALF else value


def _must_be_free(node: Node, values: Sequence[Tensor]) -> None:
    sizes = [n for value in values for n in value.shape if isinstance(n, torch.SymInt)]
    bound = [n for n in sizes if n.node.expr.is_number]
    if bound:
        raise AttachError(
            f"explain: the gradient of '{op_of(node)}' {where(node)} must be that of any batch size, but torch binds "
            f"the batch there to {bound[0]}; a later layer may do"
        )


def _batch_axis(node: Node, value: Tensor) -> int | None:
    free = [i for i, n in enumerate(value.shape) if isinstance(n, torch.SymInt)]
    if len(free) > 1:
        raise _mixes(node)
    return free[0] if free else None


def _mixes(node: Node) -> AttachError:
    return AttachError(
        f"explain: there is no rule for '{op_of(node)}' {where(node)}, which must treat the samples of a batch one by "
        "one, and mixes them"
    )


def _try(node: Node, record: Record, made: Sequence[Tensor], taken: Sequence[Tensor]) -> None:
    """Two classes at once are one after the other, on random values.

    Raises:
        AttachError: they are not; the op mixes the samples, or the recorded graph runs at one batch size only.
    """
    generator = torch.Generator().manual_seed(0)

    def random(value: Tensor, *front: int) -> Tensor:
        lengths = [
            int(n.node.expr.subs(dict.fromkeys(n.node.expr.free_symbols, 2))) if isinstance(n, torch.SymInt) else n
            for n in value.shape
        ]
        uniform = torch.rand(*front, *lengths, generator=generator)
        if value.dtype.is_floating_point:
            return (0.1 + 0.8 * uniform).to(value.dtype)
        return (uniform > 0.5) if value.dtype == torch.bool else torch.zeros_like(uniform, dtype=value.dtype)

    with torch.no_grad(), torch.inference_mode(False):
        arrived, given = [random(value, 2) for value in made], [random(value) for value in taken]
        module, device = record.module, taken[0].device if taken else made[0].device
        try:
            arrived, given = [[t.to(device) for t in tensors] for tensors in (arrived, given)]
            together = record.run(arrived, given)
            alone = [
                torch.stack(parts)
                for parts in zip(*(module(*(g[m] for g in arrived), *given) for m in range(2)), strict=True)
            ]
        except Exception as error:
            raise AttachError(
                f"explain: the gradient of '{op_of(node)}' {where(node)} must be that of any batch size, got {error}"
            ) from error
    for ours, theirs in zip(together, alone, strict=True):
        if not (ours - theirs).abs().max() <= 1e-3 * theirs.abs().max():
            raise _mixes(node)


def _sizes_from_batch(graph: Graph) -> None:
    """Every size that is the batch, a multiple or a part of it, however it was computed, from one input's."""
    free = (
        (holder, axis, length.node.expr)
        for holder in graph.find_nodes(op="placeholder")
        for axis, length in enumerate(holder.meta["val"].shape)
        if isinstance(length, torch.SymInt)
    )
    holder, axis, batch = next(free, (None, 0, None))
    if holder is None:
        return
    first = next(n for n in graph.nodes if n.op != "placeholder")
    with graph.inserting_before(first):
        size = graph.call_method("size", (holder, axis))
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, torch.SymInt):
            times = value.node.expr / batch
            if times.is_Rational:
                with graph.inserting_before(node):
                    multiple = size if times.p == 1 else graph.call_function(operator.mul, (size, int(times.p)))
                    if times.q != 1:
                        multiple = graph.call_function(operator.floordiv, (multiple, int(times.q)))
                node.replace_all_uses_with(multiple)
    if not size.users:
        graph.erase_node(size)


def _convolution_back(g, x, weight, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, mask):
    if mask[1] or transposed:
        raise NotImplementedError("a convolution whose weights depend on the clip")
    sent = adjoints.conv_adjoint(g, weight, x.shape[2:], stride, padding, dilation, groups) if mask[0] else None
    return sent, None, None


def _max_pool_back(g, x, kernel, stride, padding, dilation, ceil_mode, indices):
    return _to_winners(g, x, indices)


def _to_winners(g, x, indices):
    sent = torch.zeros_like(x).flatten(2).scatter_add(2, indices.flatten(2), g.flatten(2))
    return sent.unflatten(2, x.shape[2:])


def _pad(x, amounts, value=0):
    """As torch does it, but that it does not read the batch size, which binds it."""
    for i in range(len(amounts) // 2):
        axis, margins = x.dim() - 1 - i, amounts[2 * i : 2 * i + 2]
        cut = [max(-margin, 0) for margin in margins]
        x = x.narrow(axis, cut[0], x.shape[axis] - sum(cut)) if any(cut) else x
        sides = [[*x.shape[:axis], max(margin, 0), *x.shape[axis + 1 :]] for margin in margins]
        before, after = ([x.new_full(side, value)] if side[axis] else [] for side in sides)
        x = torch.cat([*before, x, *after], axis) if before or after else x
    return x.clone()


_WRITTEN = {
    aten.constant_pad_nd.default: _pad,
    aten.convolution_backward.default: _convolution_back,
    aten.max_pool3d_with_indices_backward.default: _max_pool_back,
    aten.max_pool2d_with_indices_backward.default: _max_pool_back,
    aten.adaptive_max_pool3d_backward.default: _to_winners,
    aten.adaptive_max_pool2d_backward.default: _to_winners,
}
