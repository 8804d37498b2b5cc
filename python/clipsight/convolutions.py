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

import torch
from torch import Tensor
from torch.fx import Graph, Node

from .dataflow import AttachError, name_of, op_of, shape_of, where
from .pyramid import Layer, Source

aten = torch.ops.aten

_CONVOLUTIONS = {aten.conv3d.default, aten.conv2d.default, aten.conv3d.padding, aten.conv2d.padding}
# Ops by name, whatever the overload: each gives a tensor with the channels of its first argument, in the same order.
_PASSES = {
    *("batch_norm", "instance_norm", "group_norm", "dropout", "feature_dropout", "alpha_dropout"),
    *("relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardtanh", "clamp"),
    *("clamp_min", "sigmoid", "tanh", "hardsigmoid", "hardswish", "softplus"),
    *("max_pool3d", "max_pool2d", "avg_pool3d", "avg_pool2d", "adaptive_avg_pool3d", "adaptive_avg_pool2d"),
    *("mean", "amax", "pad", "constant_pad_nd", "replication_pad3d"),
    *("upsample_nearest3d", "upsample_trilinear3d", "clone", "contiguous", "alias", "detach", "to", "_to_copy"),
    *("flatten", "view", "reshape", "_unsafe_view", "squeeze", "unsqueeze"),
}
_CAT = {aten.cat.default, aten.concat.default, aten.concatenate.default}
_SCALAR = {"add", "sub", "mul", "div"}  # with a number instead of a second tensor


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


def find_route(graph: Graph, features: Node, classifier: Node, depth: int | str) -> Route:
    """The route from the classifier's features down to a depth.

    Args:
        graph: without in-place ops.
        features: what the class step looks at.
        classifier: the linear layer or convolution that gives the logits.
        depth: of the deepest layers, 1 for the classifier alone, or `"all"`.

    Raises:
        AttachError: an op cannot be followed, a layer runs twice, or the network is not so deep.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    depths = _depths(graph, features)
    deepest = max(depths[node] + _is_layer(node) for node in depths)
    wanted = math.inf if depth == "all" else depth
    for node, reached in depths.items():
        if reached < wanted and not _is_known(node) and any(map(_is_layer, _behind(node))):
            raise AttachError(
                f"explain: FeaturePyramid cannot follow '{op_of(node)}' {where(node)}: between convolutions and "
                "linear layers it knows norms, activations, pooling, dropout, sums and concatenations, which keep the "
                f"channels apart. Up to depth {reached} it is defined for this network"
            )
    if wanted > deepest and depth != "all":
        raise AttachError(
            f"explain: depth must be at most {deepest}, the number of layers on the longest path, got {depth}"
        )
    facts = _facts(graph, depths)
    walked = [node for node in sorted(depths, key=order.get, reverse=True) if node.op == "call_function"]
    chosen = [node for node in walked if _is_layer(node) and depths[node] + 1 <= wanted]
    _check_used_once([classifier, *chosen])
    needed = _needed(walked, chosen)
    numbers = {node: i for i, node in enumerate([features, *(n for n in walked if n is not features)])}
    for node in chosen:
        numbers.setdefault(node.args[0], len(numbers))
    steps: list[Convolution | Pass] = []
    for node in walked:
        if node in chosen:
            layer = _layer(node, node.args[0], depths[node] + 1, facts)
            steps.append(Convolution(layer, node.args[1].target, numbers[node], numbers[node.args[0]]))
        elif not _is_layer(node):
            parts = [(numbers[r], start, stop) for r, start, stop in _parts(node, facts) if r in needed]
            steps.extend([Pass(numbers[node], tuple(parts))] if parts else [])
    tapped = dict.fromkeys([features, *(node.args[0] for node in chosen)])
    return Route(
        steps=tuple(steps),
        features=numbers[features],
        head=_layer(classifier, features, 1, facts),
        taps={numbers[node]: i for i, node in enumerate(tapped)},
        grids={numbers[node]: facts[node].grid for node in tapped},
        per_frame=frozenset(numbers[node] for node in tapped if facts[node].per_frame),
        nodes=tuple(tapped),
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


def _depths(graph: Graph, features: Node) -> dict[Node, int]:
    """The tensors that the walk meets: layers on the longest path from each to the logits, the classifier included."""
    depths = {features: 1}
    for node in reversed(graph.nodes):
        if node in depths:
            for read in _reads(node):
                depths[read] = max(depths.get(read, 1), depths[node] + _is_layer(node))
    return depths


def _facts(graph: Graph, walked) -> dict[Node, _Facts]:
    facts: dict[Node, _Facts] = {}
    batch, _, frames = shape_of(next(iter(graph.find_nodes(op="placeholder"))))[:3]
    for node in graph.nodes:
        if node not in walked:
            continue
        shape = [length for length in shape_of(node)[1:] if isinstance(length, int)]
        per_frame = len(shape) < 4 and shape_of(node)[0] != batch  # of a 2-D network
        grid = tuple([frames if per_frame else 1, *shape[1:], *[1] * per_frame * (3 - len(shape))][-3:])
        grid = grid if len(shape) > 1 or per_frame else None
        own = _Facts(shape[0], grid, per_frame=per_frame)
        if _is_layer(node):
            own = replace(own, sources=(Source(layer_name(node), 0, own.channels),))
        elif _is_sum(node):
            parts = [facts[read] for read in _reads(node)]
            own = replace(own, sources=tuple(dict.fromkeys(s for part in parts for s in part.sources)))
        elif _is_cat(node):
            starts = [start for _, start, _ in _parts(node, facts)]
            shifted = zip(starts, (facts[read] for read in _reads(node)), strict=True)
            own = replace(
                own,
                sources=tuple(
                    replace(s, start=s.start + start, stop=s.stop + start) for start, f in shifted for s in f.sources
                ),
                branches=tuple((start, stop) for _, start, stop in _parts(node, facts)),
            )
        elif _is_known(node):
            before = facts[node.args[0]]
            cells = math.prod((before.grid or ())[before.per_frame :])
            if len(shape) == 1 and before.channels * cells == own.channels:
                grid = before.grid  # a flattened grid, which lives on behind dropout and the like
            own = replace(before, grid=grid, per_frame=per_frame)
        facts[node] = own
    return facts


def _needed(walked: list[Node], chosen: list[Node]) -> set[Node]:
    """Tensors whose channels a chosen layer makes or reads, and those on the way to one."""
    needed = {*chosen, *(node.args[0] for node in chosen)}
    for node in reversed(walked):
        if not _is_layer(node) and any(read in needed for read in _reads(node)):
            needed.add(node)
    return needed


def _reads(node: Node) -> list[Node]:
    """The tensors that a known op takes its channels from."""
    if not _is_known(node):
        return []
    if _is_cat(node):
        return list(node.args[0])
    if _is_sum(node):
        return [arg for arg in node.args[:2] if arg.op != "get_attr"]
    return [node.args[0]]


def _parts(node: Node, facts: dict[Node, _Facts]) -> Iterator[tuple[Node, int, int]]:
    start = 0
    for read in _reads(node):
        channels = facts[read].channels
        yield read, start, start + channels
        start += channels if _is_cat(node) else 0


def _is_layer(node: Node) -> bool:
    """A convolution, or a linear layer whose channels are the second axis."""
    return node.target in _CONVOLUTIONS or (node.target is aten.linear.default and len(shape_of(node)) == 2)


def _is_sum(node: Node) -> bool:
    tensors = [arg for arg in node.args[:2] if isinstance(arg, Node)]
    return node.target is aten.add.Tensor and len(tensors) == 2 and len({shape_of(arg) for arg in tensors}) == 1


def _is_cat(node: Node) -> bool:
    return node.target in _CAT and len(node.args) > 1 and node.args[1] in (1, 1 - len(shape_of(node)))


def _is_known(node: Node) -> bool:
    if node.op != "call_function":
        return False
    if _is_layer(node):
        return True
    if _is_sum(node) or _is_cat(node):
        return True
    name = op_of(node)
    if name in _SCALAR:
        return isinstance(node.args[0], Node) and not isinstance(node.args[1], Node)
    return name in _PASSES and _keeps_channels(node)


def _keeps_channels(node: Node) -> bool:
    """The same channels behind the op as before, or all of the grid flattened into them."""
    before, after = shape_of(node.args[0]), shape_of(node)
    if before[0] != after[0] or any(isinstance(length, str) for length in (*before[1:], *after[1:])):
        return False
    return before[1] == after[1] or (len(after) == 2 and math.prod(before[1:]) == after[1])


def _behind(node: Node) -> Iterator[Node]:
    """All nodes that a node depends on."""
    waiting, seen = [node], set()
    while waiting:
        for before in waiting.pop().all_input_nodes:
            if before not in seen:
                seen.add(before)
                waiting.append(before)
                yield before


def _check_used_once(layers: list[Node]) -> None:
    seen = set()
    for node in layers:
        if node.args[1].op != "get_attr":
            raise AttachError(
                f"explain: FeaturePyramid needs the weight of '{name_of(node)}' as a parameter, got a computed one"
            )
        if node.args[1].target in seen:
            raise AttachError(
                f"explain: FeaturePyramid needs a network that runs every layer once, '{layer_name(node)}' runs more "
                "than once, so that its kernels cannot be told apart; use a copy of the module for each place"
            )
        seen.add(node.args[1].target)


def _layer(node: Node, read: Node, depth: int, facts: dict[Node, _Facts]) -> Layer:
    fact = facts[read]
    groups = 1
    if node.target in _CONVOLUTIONS and len(node.args) > 6:
        groups = node.args[6]
    return Layer(
        name=layer_name(node),
        depth=depth,
        kernels=int(node.meta["val"].shape[1]) if depth > 1 else int(node.args[1].meta["val"].shape[0]),
        channels=fact.channels,
        groups=groups,
        grid=fact.grid,
        sources=fact.sources,
        branches=fact.branches,
    )


def layer_name(node: Node) -> str:
    """Module path of a layer: its weight's name tells two layers of one module apart."""
    target = node.args[1].target if node.args[1].op == "get_attr" else name_of(node)
    return str(target).removesuffix(".weight").removeprefix("network.")
