"""The graph of convolutions in front of a network's features, as a class feature pyramid walks it.

The captured dataflow (:mod:`clipsight.dataflow`) is read backwards from the features. Convolutions and linear layers
are the layers; everything between two layers must keep the channels apart: it passes them on (norms, activations,
pooling, dropout, padding), adds tensors of equal shape, or puts them side by side. What comes out is a `Route`: in
reverse topological order, how a set of selected channels travels from each tensor to those that it was made from.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor
from torch.fx import Node

from .dataflow import AttachError, shape_of
from .graph.dataflow import Dataflow, Op
from .graph.table import Role
from .pyramid import Layer, Source

# Each gives a tensor with the channels of its first input, in the same order, if the shapes allow it.
_PASSES = (Role.GATES, Role.CURVES, Role.SCALES, Role.POOLS)
_PASSING_KINDS = {
    *("identity", "dropout", "pad", "replicate pad", "reflect pad", "reshape", "flip"),
    *("max_pool", "max_pool_with_indices", "adaptive_max_pool", "amax"),
    *("group_norm", "instance_norm", "batch_statistics"),
}


@dataclass(frozen=True)
class Convolution:
    """A layer of the route: selected channels of the tensor `made` lead to channels of the tensor `read`."""

    layer: Layer
    weight: str  # parameter of the captured module
    made: int
    read: int

    def kernel_means(self, weight: Tensor) -> Tensor:
        """Mean of every kernel over its extent: `[C_out, C_in / groups, ...]` -> float32 `[C_out, C_in / groups]`.

        The kernel of a linear layer behind the flattening of a grid is as large as the grid.
        """
        width = self.layer.channels // self.layer.groups
        return weight.float().reshape(weight.shape[0], width, -1).mean(2)


@dataclass(frozen=True)
class Pass:
    """Channels `start` to `stop` of the tensor `made` are those of the tensor `read`, for each of the parts."""

    made: int
    parts: tuple[tuple[int, int, int], ...]  # read, start, stop


@dataclass(frozen=True)
class Route:
    """How selected channels travel from the features backwards.

    Attributes:
        steps: convolutions and passes; whoever makes a tensor comes after all that read it.
        features: number of the tensor that the classifier reads.
        head: the classifier as a layer; its depth is 1.
        taps: by tensor number, the position among `nodes` of the tensors that layers read.
        grids: by tensor number, the `(t, h, w)` of these tensors, or `None` where they have no extent.
        per_frame: numbers of those among them that a 2-D network made, `[N*T, C, ...]`.
        nodes: the graph's nodes of these tensors.
    """

    steps: tuple[Convolution | Pass, ...]
    features: int
    head: Layer
    taps: dict[int, int]
    grids: dict[int, tuple[int, int, int] | None]
    per_frame: frozenset[int]
    nodes: tuple[Node, ...] = field(repr=False)

    @functools.cached_property
    def convolutions(self) -> tuple[Convolution, ...]:
        """By depth, then in the order of the network."""
        found = [step for step in reversed(self.steps) if isinstance(step, Convolution)]
        return tuple(sorted(found, key=lambda step: step.layer.depth))

    @functools.cached_property
    def layers(self) -> tuple[Layer, ...]:
        return (self.head, *(step.layer for step in self.convolutions))

    @functools.cached_property
    def reads(self) -> dict[str, int]:
        """Layer name -> number of the tensor that it reads."""
        return {self.head.name: self.features} | {step.layer.name: step.read for step in self.convolutions}


def find_route(flow: Dataflow, features: Op, classifier: Op, depth: int | str) -> Route:
    """The route from the classifier's features down to a depth.

    Args:
        flow: of the network.
        features: what the class step looks at.
        classifier: the linear layer or convolution that gives the logits.
        depth: of the deepest layers, 1 for the classifier alone, or `"all"`.

    Raises:
        AttachError: an op cannot be followed, a layer runs twice, or the network is not so deep.
    """
    depths = _depths(flow, features)
    deepest = max(depths[op] + _is_layer(op) for op in depths)
    wanted = math.inf if depth == "all" else depth
    for op, reached in depths.items():
        if reached < wanted and not _is_known(op) and any(map(_is_layer, flow.ancestors(op) - {op})):
            raise AttachError(
                f"explain: FeaturePyramid cannot follow {op.where}: between convolutions and linear layers it knows "
                "norms, activations, pooling, dropout, sums and concatenations, which keep the channels apart. "
                f"Up to depth {reached} it is defined for this network"
            )
    if wanted > deepest and depth != "all":
        raise AttachError(
            f"explain: depth must be at most {deepest}, the number of layers on the longest path, got {depth}"
        )
    facts = _facts(flow, depths)
    walked = [op for op in sorted(depths, key=lambda op: -op.index) if op is not flow.clip]
    chosen = [op for op in walked if _is_layer(op) and depths[op] + 1 <= wanted]
    _check_used_once([classifier, *chosen])
    needed = _needed(walked, chosen)
    numbers = {op: i for i, op in enumerate([features, *(op for op in walked if op is not features)])}
    for op in chosen:
        numbers.setdefault(op.inputs[0], len(numbers))
    steps: list[Convolution | Pass] = []
    for op in walked:
        if op in chosen:
            read = op.inputs[0]
            layer = _layer(op, read, depths[op] + 1, facts)
            steps.append(Convolution(layer, op.node.args[1].target, numbers[op], numbers[read]))
        elif not _is_layer(op):
            parts = [(numbers[r], start, stop) for r, start, stop in _parts(op, facts) if r in needed]
            steps.extend([Pass(numbers[op], tuple(parts))] if parts else [])
    tapped = dict.fromkeys([features, *(op.inputs[0] for op in chosen)])
    return Route(
        steps=tuple(steps),
        features=numbers[features],
        head=_layer(classifier, features, 1, facts),
        taps={numbers[op]: i for i, op in enumerate(tapped)},
        grids={numbers[op]: facts[op].grid for op in tapped},
        per_frame=frozenset(numbers[op] for op in tapped if facts[op].per_frame),
        nodes=tuple(op.node for op in tapped),
    )


# ---- Reading the graph ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Facts:
    """Of a tensor: its channels, their grid, whether it has a row for each frame, and where the channels come from."""

    channels: int
    grid: tuple[int, int, int] | None
    sources: tuple[Source, ...] = ()
    branches: tuple[tuple[int, int], ...] = ()
    per_frame: bool = False


def _depths(flow: Dataflow, features: Op) -> dict[Op, int]:
    """The tensors that the walk meets: layers on the longest path from each to the logits, the classifier included."""
    depths = {features: 1}
    for op in reversed(list(flow)):
        if op in depths:
            for read in _reads(op):
                depths[read] = max(depths.get(read, 1), depths[op] + _is_layer(op))
    return depths


def _facts(flow: Dataflow, walked) -> dict[Op, _Facts]:
    facts: dict[Op, _Facts] = {}
    batch, _, frames = shape_of(flow.clip.node)[:3]
    for op in flow:
        if op not in walked:
            continue
        shape = [length for length in shape_of(op.node)[1:] if isinstance(length, int)]
        per_frame = len(shape) < 4 and shape_of(op.node)[0] != batch  # of a 2-D network
        grid = tuple([frames if per_frame else 1, *shape[1:], *[1] * per_frame * (3 - len(shape))][-3:])
        grid = grid if len(shape) > 1 or per_frame else None
        own = _Facts(shape[0], grid, per_frame=per_frame)
        if _is_layer(op):
            own = replace(own, sources=(Source(layer_name(op), 0, own.channels),))
        elif _is_sum(op):
            parts = [facts[read] for read in _reads(op)]
            own = replace(own, sources=tuple(dict.fromkeys(s for part in parts for s in part.sources)))
        elif _is_cat(op):
            starts = [start for _, start, _ in _parts(op, facts)]
            shifted = zip(starts, (facts[read] for read in _reads(op)), strict=True)
            own = replace(
                own,
                sources=tuple(
                    replace(s, start=s.start + start, stop=s.stop + start) for start, f in shifted for s in f.sources
                ),
                branches=tuple((start, stop) for _, start, stop in _parts(op, facts)),
            )
        elif _is_known(op) and _reads(op):
            before = facts[_reads(op)[0]]
            cells = math.prod((before.grid or ())[before.per_frame :])
            if len(shape) == 1 and before.channels * cells == own.channels:
                grid = before.grid  # a flattened grid, which lives on behind dropout and the like
            own = replace(before, grid=grid, per_frame=per_frame)
        facts[op] = own
    return facts


def _needed(walked: list[Op], chosen: list[Op]) -> set[Op]:
    """Tensors whose channels a chosen layer makes or reads, and those on the way to one."""
    needed = {*chosen, *(op.inputs[0] for op in chosen)}
    for op in reversed(walked):
        if not _is_layer(op) and any(read in needed for read in _reads(op)):
            needed.add(op)
    return needed


def _reads(op: Op) -> list[Op]:
    """The tensors that a known op takes its channels from."""
    if not _is_known(op):
        return []
    return list(op.inputs) if _is_cat(op) or _is_sum(op) else [op.inputs[0]]


def _parts(op: Op, facts: dict[Op, _Facts]) -> Iterator[tuple[Op, int, int]]:
    start = 0
    for read in _reads(op):
        channels = facts[read].channels
        yield read, start, start + channels
        start += channels if _is_cat(op) else 0


def _is_layer(op: Op) -> bool:
    """A convolution, or a linear layer whose channels are the second axis."""
    return op.kind.name == "conv" or (op.kind.name == "linear" and len(shape_of(op.node)) == 2)


def _is_sum(op: Op) -> bool:
    return op.kind.name == "add" and len(op.inputs) == 2 and len({shape_of(read.node) for read in op.inputs}) == 1


def _is_cat(op: Op) -> bool:
    axis = op.node.args[1] if len(op.node.args) > 1 else op.node.kwargs.get("dim", 0)
    return op.kind.name == "cat" and axis in (1, 1 - len(shape_of(op.node)))


def _is_known(op: Op) -> bool:
    if not op.inputs or not isinstance(op.value, Tensor):
        return False
    if _is_layer(op) or _is_sum(op) or _is_cat(op):
        return True
    passes = op.role in _PASSES or op.kind.name in _PASSING_KINDS or (op.kind.name == "add" and len(op.inputs) == 1)
    return passes and op.kind.name != "cumsum" and _keeps_channels(op)


def _keeps_channels(op: Op) -> bool:
    """The same channels behind the op as before, or all of the grid flattened into them."""
    before, after = shape_of(op.inputs[0].node), shape_of(op.node)
    if len(after) < 2 or before[0] != after[0] or any(isinstance(n, str) for n in (*before[1:], *after[1:])):
        return False
    return before[1] == after[1] or (len(after) == 2 and math.prod(before[1:]) == after[1])


def _check_used_once(layers: list[Op]) -> None:
    seen = set()
    for op in layers:
        weight = op.node.args[1]
        if weight.op != "get_attr":
            raise AttachError(
                f"explain: FeaturePyramid needs the weight of {op.where} as a parameter, got a computed one"
            )
        if weight.target in seen:
            raise AttachError(
                f"explain: FeaturePyramid needs a network that runs every layer once, '{layer_name(op)}' runs more "
                "than once, so that its kernels cannot be told apart; use a copy of the module for each place"
            )
        seen.add(weight.target)


def _layer(op: Op, read: Op, depth: int, facts: dict[Op, _Facts]) -> Layer:
    fact = facts[read]
    groups = 1
    if op.kind.name == "conv" and len(op.node.args) > 6:
        groups = op.node.args[6]
    return Layer(
        name=layer_name(op),
        depth=depth,
        kernels=int(op.shape[1]) if depth > 1 else int(op.node.args[1].meta["val"].shape[0]),
        channels=fact.channels,
        groups=groups,
        grid=fact.grid,
        sources=fact.sources,
        branches=fact.branches,
    )


def layer_name(op: Op) -> str:
    """Module path of a layer: its weight's name tells two layers of one module apart."""
    weight = op.node.args[1]
    target = weight.target if weight.op == "get_attr" else op.path
    return str(target).removesuffix(".weight").removeprefix("network.")
