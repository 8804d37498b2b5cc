"""One typed view of a network's graph, read by everything that needs to know what the network does.

It is built once for each clip size, from what :mod:`clipsight.dataflow` captured. An `Op` is one step of the forward
pass that depends on the clip; what does not (parameters, and what is computed from them and from sizes alone) has no
op.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Graph, Node

from ..dataflow import AttachError, name_of, stack_of
from . import axes as labels
from .axes import Axes, Grid, grid_of
from .table import Kind, Role, kind_of, varying_inputs

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Op:
    """A step of the forward pass, and the tensor that it makes.

    Attributes:
        node: of the graph.
        index: its place in the order of the forward pass.
        kind: its row of the table.
        inputs: the ops whose tensors it reads; one that is read twice stands here twice.
        axes: what the axes of its tensor are, where that is known; of several tensors a tuple of axes.
    """

    node: Node = field(repr=False)
    index: int
    kind: Kind
    inputs: tuple[Op, ...] = field(repr=False)
    axes: Axes | tuple | None = field(repr=False)

    @property
    def role(self) -> Role:
        return self.kind.role

    @property
    def value(self) -> Tensor:
        """The tensor without its values: shape and type; the batch size is a symbol."""
        return self.node.meta["val"]

    @property
    def shape(self) -> tuple:
        return tuple(self.value.shape)

    @property
    def path(self) -> str:
        """Of the module that runs it."""
        return name_of(self.node)

    @property
    def where(self) -> str:
        """For messages."""
        return f"'{self.kind.name}' in '{self.path}'" if self.path else f"'{self.kind.name}' ({self.node.name})"

    @functools.cached_property
    def grid(self) -> Grid | None:
        """How its tensor becomes `[N, C, t, h, w]`; `None` where it has no voxels."""
        return grid_of(self.axes) if isinstance(self.value, Tensor) else None

    @property
    def voxels(self) -> int:
        """How many voxels its tensor has, 1 where it has none."""
        return self.grid.size[0] * self.grid.size[1] * self.grid.size[2] if self.grid else 1

    def reduces(self) -> bool:
        """Whether it takes places of the grid together, or some of them alone: time, rows or columns get fewer.

        A convolution with a stride gets fewer of them too, but each of its places looks at its own surroundings.
        """
        if not self.inputs or self.kind.name in ("conv", "conv_transpose", "interpolate", "reshape", "permute"):
            return False
        if self.role is Role.POOLS and self.kind.name != "cumsum" and self.inputs[0].grid:
            return True
        if self.kind.name in ("slice", "index") and self.grid:
            return False  # every second frame, say, all along the clip
        before, after = (op.axes for op in (self.inputs[0], self))
        if not _whole(before) or not _whole(after):
            return False
        was, is_ = labels.voxels_of(before), labels.voxels_of(after)
        return any(is_[label] < was[label] for label in was)


def _whole(axes) -> bool:
    return axes is not None and not any(not isinstance(axis, labels.Axis) for axis in axes)


class Dataflow:
    """The ops of a captured network, in the order of the forward pass.

    Attributes:
        graph: of the captured module, without in-place ops.
        ops: by node.
        clip: the op of the clip.
        outputs: of the tensors that the network returns.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.ops: dict[Node, Op] = {}
        depends: set[Node] = set()
        for index, node in enumerate(graph.nodes):
            value = node.meta.get("val")
            if node.op == "placeholder":
                depends.add(node)
                kind, reads, axes = Kind("clip", Role.MOVES), [], labels.of_clip(value)
            elif node.op == "call_function" and isinstance(value, (Tensor, tuple, list)):
                reads = varying_inputs(node, depends)
                if not reads:
                    continue
                depends.add(node)
                kind = kind_of(node, depends)
                axes = labels.axes_of(node, kind, self._axes_of)
                if node.target is operator.getitem:  # one of several outputs: what made them all made it
                    source = self.ops[node.args[0]]
                    self.ops[node] = Op(node, index, source.kind, source.inputs, axes)
                    continue
            else:
                continue
            self.ops[node] = Op(node, index, kind, tuple(self.ops[n] for n in reads), axes)
        self.clip = next(op for op in self.ops.values() if op.node.op == "placeholder")
        leaves: list[Node] = []
        torch.fx.node.map_arg(next(iter(reversed(graph.nodes))).args, leaves.append)
        self.outputs = tuple(self.ops[n] for n in dict.fromkeys(leaves) if n in self.ops)

    def _axes_of(self, node: Node) -> Axes | tuple | None:
        return self.ops[node].axes if node in self.ops else None

    def __iter__(self) -> Iterator[Op]:
        return iter(self.ops.values())

    def ancestors(self, *ops: Op) -> set[Op]:
        """The ops themselves, and all that they depend on."""
        found, waiting = set(ops), list(ops)
        while waiting:
            for before in waiting.pop().inputs:
                if before not in found:
                    found.add(before)
                    waiting.append(before)
        return found

    def leads_to(self, ops: Iterable[Op]) -> set[Op]:
        """The ops themselves, and all that depend on them."""
        found = set(ops)
        for op in self:
            if any(before in found for before in op.inputs):
                found.add(op)
        return found

    def trunk(self, end: Op) -> list[Op]:
        """The ops that every path from the clip to `end` goes through, in order: none is inside a branch."""
        on_the_way = sorted(self.ancestors(end), key=lambda op: op.index)
        last_read: dict[Op, int] = {}
        for op in on_the_way:
            for before in op.inputs:
                last_read[before] = op.index
        found, reach = [], 0
        for op in on_the_way:
            if op.index >= reach:
                found.append(op)
            reach = max(reach, last_read.get(op, 0))
        return found

    def output_of(self, path: str, argument: str) -> Op:
        """The last tensor that a module makes.

        Args:
            path: of the module.
            argument: whose value that is, for the message.

        Raises:
            AttachError: the network runs no such module, or nothing in it depends on the clip.
        """
        inside = [op for op in self if op is not self.clip and path in stack_of(op.node)]
        inside = [op for op in inside if isinstance(op.value, Tensor)]
        if not inside:
            paths = dict.fromkeys(op.path for op in self if op.path)
            raise AttachError(
                f"explain: {argument} must name a module that the network runs, got {path!r}. Its last ones are "
                f"{list(paths)[-12:]}"
            )
        return inside[-1]


def side_by_side(graph: Graph, ops: Sequence[Op]) -> Op:
    """Grids of one size as one tensor `[N, C, t, h, w]`, a new node of the graph; a single one as it is."""
    if len(ops) == 1:
        return ops[0]
    last = max(ops, key=lambda op: op.index)
    with graph.inserting_after(last.node):
        joined = graph.call_function(aten.cat.default, ([], 1))
    with graph.inserting_before(joined):
        joined.args = ([_as_grid(graph, op) for op in ops], 1)
    joined.meta = {"val": torch.cat([op.grid.of(op.value) for op in ops], 1)}
    axes = labels.of_clip(joined.meta["val"])
    return Op(joined, last.index, Kind("cat", Role.MOVES), tuple(ops), axes)


def _as_grid(graph: Graph, op: Op) -> Node:
    """What `Grid.of` does, as nodes of the graph."""
    grid, node = op.grid, op.node
    if grid.tokens is not None:
        node = graph.call_function(aten.slice.Tensor, (node, grid.tokens[0], grid.tokens[1]))
    node = graph.call_function(aten.reshape.default, (node, list(grid.split)))
    node = graph.call_function(aten.permute.default, (node, list(grid.order)))
    return graph.call_function(aten.reshape.default, (node, list(grid.out)))
