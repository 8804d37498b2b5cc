"""From the logits back to a tensor of the network, as ordinary forward ops: what autograd would do, without autograd.

A network's captured dataflow (:mod:`clipsight.dataflow`) is read backwards from the logits. For each op a rule says how
what has arrived at its output - a gradient, or relevance - goes on to its inputs. The rules of one method are one
table, op -> `Rule`: :mod:`clipsight.backward.gradient` and :mod:`clipsight.backward.relevance` have them. They compute
with the tensors of the forward pass, which the rewired network gives out, and so the whole is a forward graph that
can be traced and exported; nothing is hooked, and nothing needs a gradient at run time.

What arrives has M classes in front: `[M, B, ...]` for a tensor `[B, ...]`, so that rules read the tensors of the
forward pass as they are, once for all classes; B is the batch, or batch times frames in a 2-D network.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, Node

from ..dataflow import AttachError, op_of, shape_of, where
from . import maps
from .traced import Recorded, record

# Ops that are one to the rules.
_SAME = {
    **dict.fromkeys(("conv3d", "conv2d"), "conv"),
    **dict.fromkeys(("max_pool3d", "max_pool2d"), "max_pool"),
    **dict.fromkeys(("avg_pool3d", "avg_pool2d"), "avg_pool"),
    **dict.fromkeys(("adaptive_avg_pool3d", "adaptive_avg_pool2d"), "adaptive_avg_pool"),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"), "reshape"),
    **dict.fromkeys(("permute", "transpose", "movedim"), "permute"),
    **dict.fromkeys(("clone", "contiguous", "alias", "detach", "to", "_to_copy"), "identity"),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "native_dropout"), "dropout"),
    **dict.fromkeys(("cat", "concat", "concatenate"), "cat"),
    **dict.fromkeys(("pad", "constant_pad_nd"), "pad"),
}


class Rule(NamedTuple):
    """What an op's inputs receive, and which tensors of the forward pass that needs: "x" its inputs, "y" its output.

    The function takes a `Local` and gives a tensor `[M, B, ...]`, or one for each input.
    """

    function: Callable[[Local], Tensor | tuple[Tensor, ...]]
    needs: str = ""
    gate: bool = False  # lets through or holds back, by a comparison that rounding may turn


@dataclass(frozen=True)
class Rules:
    """Base class of the methods: a frozen dataclass of options, with a table of rules."""

    method: ClassVar[str]
    table: ClassVar[Mapping[str, Rule]]
    folds: ClassVar[bool] = False  # batch norms into the convolution in front of them
    divides: ClassVar[bool] = False  # by what may be tiny, and rounding errors around it are not
    derivative: ClassVar[bool] = False  # what the rules say is the derivative, so that autograd knows the rest

    def describe_missing(self) -> str:
        return f"{self.method} has rules for {', '.join(sorted(self.table))}; more can be added to its table"


@dataclass(frozen=True)
class Op:
    """One op of the network.

    Attributes:
        kind: its key in the tables.
        name: module path, for messages.
        made: number of the tensor that it gives.
        reads: numbers of the tensors that it takes, parameters left out; `None` for one that is of no interest.
        shapes: of these, without the batch axis.
        arguments: all others by the names of the op's schema; parameters by `Parameter`.
        norm: arguments of the batch norm that is folded into it.
        first: no other layer with weights stands between the clip and it.
    """

    kind: str
    name: str
    made: int
    reads: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    arguments: dict[str, Any]
    norm: dict[str, Any] | None = None
    first: bool = False


@dataclass(frozen=True)
class Parameter:
    name: str


@dataclass(frozen=True)
class Walk:
    """The ops of one method in the order of the walk, and where it ends.

    Attributes:
        logits: number of the tensor where it starts.
        stops: the numbers of the tensors where it ends.
        wanted: numbers of the tensors that lead to a stop.
        taps: numbers of the tensors of the forward pass that the rules need.
        leading: the ops between the clip and the first layer, which the clip's box of values goes through.
    """

    rules: Rules
    ops: tuple[Op, ...]
    logits: int
    stops: tuple[int, ...]
    wanted: frozenset[int]
    taps: frozenset[int]
    leading: tuple[Node, ...] = field(default=(), repr=False)

    def amplifies(self, stop: int) -> bool:
        """Whether what arrives at a stop has come through gates, or divisions by what may be tiny."""
        if self.rules.divides:
            return True
        leads = {stop}
        for op in reversed(self.ops):
            if leads.intersection(op.reads):
                if self.rules.table[op.kind].gate:
                    return True
                leads.add(op.made)
        return False


class Local:
    """What a rule sees: one op, what has arrived at its output, and the tensors of the forward pass around it."""

    def __init__(
        self, op: Op, g: Tensor, rules: Rules, tensors: Mapping[int, Tensor], parameter, clip, leading
    ) -> None:
        self.op, self.g, self.rules = op, g, rules
        self._tensors, self._parameter, self._clip, self._leading = tensors, parameter, clip, leading

    @property
    def x(self) -> Tensor:
        """The op's first input, `[B, ...]`."""
        return self.inputs[0]

    @property
    def inputs(self) -> list[Tensor]:
        return [self._tensors[read] for read in self.op.reads]

    @property
    def y(self) -> Tensor:
        """The op's output, behind the batch norm that is folded into it."""
        return self._tensors[self.op.made]

    def __getitem__(self, argument: str) -> Any:
        """An argument of the op by the name in its schema."""
        return self._value(self.op.arguments[argument])

    @property
    def weight(self) -> Tensor:
        """The layer's, times the scale of the batch norm that is folded into it."""
        weight = self["weight"]
        if self.op.norm is None:
            return weight
        scale = norm_scale({name: self._value(self.op.norm[name]) for name in ("weight", "running_var", "eps")})
        return weight * scale.view(-1, *[1] * (weight.dim() - 1))

    def _value(self, value: Any) -> Any:
        return self._parameter(value.name) if isinstance(value, Parameter) else value

    def apply(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """The op, if it is linear, on another input or with another weight, without its bias."""
        return maps.MAPS[self.op.kind].apply(self, x, weight)

    def adjoint(self, g: Tensor, weight: Tensor | None = None) -> Tensor:
        """The transposed op: `[M, B, ...]` of the output to `[M, B, ...]` of the input."""
        return maps.MAPS[self.op.kind].adjoint(self, g, weight)

    @property
    def clip(self) -> Tensor:
        return self._tensors[self._clip]

    def along(self, volume: Tensor) -> Tensor:
        """What the ops between the clip and the first layer make of a volume like the clip."""
        return self._leading(volume)


def norm_scale(arguments: Mapping[str, Any]) -> Tensor:
    """The factor of each channel in a batch norm in eval mode."""
    scale = (arguments["running_var"] + arguments["eps"]).rsqrt()
    return scale if arguments["weight"] is None else scale * arguments["weight"]


# ---- Planning -------------------------------------------------------------------------------------------------------


class Backward(NamedTuple):
    """Every walk through a network, and the nodes whose tensors they need, by number."""

    walks: dict[Rules, Walk | Recorded]
    nodes: dict[int, Node]
    stops: dict[Hashable, int]
    clip: int

    def amplifies(self, rules: Rules, place: Hashable) -> bool:
        """Whether a rounding error may become a larger one on the way back to a place."""
        return self.walks[rules].amplifies(self.stops[place])

    def run(
        self, rules: Rules, seed: Tensor, tensors: Mapping[int, Tensor], parameter: Callable[[str], Tensor]
    ) -> dict[int, Tensor]:
        """Walks back from the logits.

        Args:
            rules: of one of the walks.
            seed: what arrives at the logits, `[M, N, K]`.
            tensors: of the forward pass, by number.
            parameter: the network's parameters and buffers by name.

        Returns:
            What arrives at each stop, by number: `[M, B, ...]`.
        """
        walk = self.walks[rules]
        if isinstance(walk, Recorded):
            return walk.run(seed, tensors, parameter)

        def leading(volume: Tensor) -> Tensor:
            values = {self.nodes[self.clip]: volume}
            for node in walk.leading:
                args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
                values[node] = node.target(*args, **kwargs)
            return volume if not walk.leading else values[walk.leading[-1]]

        arrived = {walk.logits: seed}
        for op in walk.ops:
            g = arrived[op.made] if op.made in walk.stops else arrived.pop(op.made, None)
            if g is None:
                continue
            local = Local(op, g, rules, tensors, parameter, self.clip, leading)
            sent = rules.table[op.kind].function(local)
            for read, part in zip(op.reads, sent if isinstance(sent, tuple) else (sent,), strict=True):
                if read in walk.wanted:
                    arrived[read] = arrived[read] + part if read in arrived else part
        return {stop: arrived[stop] for stop in walk.stops}


def find_backward(
    graph: Graph, logits: Node, wanted: Iterable[tuple[Rules, Hashable]], stops: Mapping[Hashable, Node]
) -> Backward:
    """Plans the walks of all heads.

    Args:
        graph: without in-place ops.
        logits: `[N, K]`, where every walk starts.
        wanted: rules and the place of a stop, for each walk that a head wants.
        stops: the nodes of these places, on which the logits depend, and of all others whose tensors a head reads.

    Raises:
        AttachError: an op on the way has no rule.
    """
    numbers = {node: i for i, node in enumerate(graph.nodes)}
    by_rules: dict[Rules, list[Node]] = {}
    for rules, stop in wanted:
        by_rules.setdefault(rules, []).append(stops[stop])
    walks = {rules: _walk(graph, logits, rules, list(dict.fromkeys(ends)), numbers) for rules, ends in by_rules.items()}
    clip = next(iter(graph.find_nodes(op="placeholder")))
    taps = {numbers[node] for node in (clip, *stops.values())}.union(*(walk.taps for walk in walks.values()))
    return Backward(
        walks=walks,
        nodes={numbers[node]: node for node in graph.nodes if numbers[node] in taps},
        stops={place: numbers[node] for place, node in stops.items()},
        clip=numbers[clip],
    )


def _walk(graph: Graph, logits: Node, rules: Rules, stops: list[Node], numbers: dict[Node, int]) -> Walk | Recorded:
    try:
        return _plan(graph, logits, rules, stops, numbers)
    except AttachError:
        if not rules.derivative:
            raise
        return Recorded(tuple(record(graph, logits, stop, numbers) for stop in stops))


def _plan(graph: Graph, logits: Node, rules: Rules, stops: list[Node], numbers: dict[Node, int]) -> Walk:
    behind = ancestors(logits)
    leads = set(stops)  # nodes that depend on a stop
    for node in graph.nodes:
        moves = not isinstance(node.meta.get("val"), (int, torch.SymInt))  # a tensor's size is no way to it
        if moves and node in behind and any(read in leads for read in node.all_input_nodes):
            leads.add(node)
    before_first = _before_first(graph) if rules.folds else set()
    ops, taps, folded = [], set(), {}
    for node in reversed(graph.nodes):
        if node not in leads or node not in behind or (node in stops and not _passes(node, stops)):
            continue
        if node in folded:
            continue
        norm, made = None, node
        if rules.folds and _foldable(node):
            norm, node = node, node.args[0]
            folded[node] = made
        op = _op(node, made, norm, numbers, first=node in before_first)
        rule = rules.table.get(op.kind)
        if rule is None or not all(_has_batch(n) for n in (made, *_inputs(node))):
            raise AttachError(
                f"explain: {rules.method} has no rule for '{op.kind}' {where(node)}; " + rules.describe_missing()
            )
        taps |= set(op.reads) if "x" in rule.needs else set()
        taps |= {op.made} if "y" in rule.needs else set()
        ops.append(op)
    return Walk(
        rules=rules,
        ops=tuple(ops),
        logits=numbers[logits],
        stops=tuple(numbers[stop] for stop in stops),
        wanted=frozenset(numbers[node] for node in leads),
        taps=frozenset(taps),
        leading=tuple(_leading(graph, before_first)) if rules.folds else (),
    )


def _passes(node: Node, stops: list[Node]) -> bool:
    """Whether the walk goes on behind a stop, to another one."""
    return any(other is not node and other in ancestors(node) for other in stops)


def ancestors(node: Node) -> set[Node]:
    """A node, and all that it depends on."""
    found, waiting = {node}, [node]
    while waiting:
        for before in waiting.pop().all_input_nodes:
            if before not in found:
                found.add(before)
                waiting.append(before)
    return found


def _op(node: Node, made: Node, norm: Node | None, numbers: dict[Node, int], first: bool) -> Op:
    inputs = _inputs(node)
    return Op(
        kind=kind_of(node),
        name=where(node),
        made=numbers[made],
        reads=tuple(numbers[n] for n in inputs),
        shapes=tuple(tuple(n.meta["val"].shape[1:]) for n in inputs),
        arguments=_arguments(node),
        norm=None if norm is None else _arguments(norm),
        first=first,
    )


def _arguments(node: Node) -> dict[str, Any]:
    """By the names of the op's schema: parameters by name, tensors of the forward pass left out."""

    def plain(value):
        if isinstance(value, Node):
            return Parameter(value.target) if value.op == "get_attr" else None
        return value

    found = {}
    for i, argument in enumerate(node.target._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        value = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name, default)
        found[argument.name] = [plain(v) for v in value] if isinstance(value, (list, tuple)) else plain(value)
    return found


def _inputs(node: Node) -> list[Node]:
    """The tensors of the forward pass that an op takes."""
    found: list[Node] = []  # one that is read twice stands here twice
    if node.op == "call_function":
        torch.fx.node.map_arg((node.args, node.kwargs), found.append)
    return [n for n in found if n.op != "get_attr" and isinstance(n.meta.get("val"), Tensor)]


def _has_batch(node: Node) -> bool:
    """The first axis, and only that, grows with the batch."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dim() == 0 or not value.is_floating_point():
        return False
    first, *others = value.shape
    return not isinstance(first, int) and all(isinstance(length, int) for length in others)


def _foldable(node: Node) -> bool:
    """A batch norm behind a convolution whose output nothing else reads."""
    if op_of(node) != "batch_norm":
        return False
    before = node.args[0]
    return kind_of(before) == "conv" and len(before.users) == 1


_WITH_WEIGHTS = ("conv", "linear", "batch_norm")
_SHAPES_ONLY = ("pad", "reshape", "permute", "identity")


def kind_of(node: Node) -> str:
    """The key of an op in the tables of rules; what the rules of an op do not cover has another name."""
    if node.op != "call_function":
        return ""
    name = op_of(node)
    kind, inputs = _SAME.get(name, name), _inputs(node)
    if kind in ("add", "mul", "div"):
        if len(inputs) == 1 and inputs[0] is node.args[0]:
            return kind if kind == "add" else "scale" if kind == "mul" else "unscale"
        if kind == "add" and len({shape_of(n) for n in inputs}) > 1:
            return "broadcast add"
    if kind == "pad" and name == "pad" and (node.args[2:] or ("constant",))[0] != "constant":
        return f"{node.args[2]} pad"
    return kind


def _before_first(graph: Graph) -> set[Node]:
    """Layers with weights that read the clip through no other such layer."""
    free = set(graph.find_nodes(op="placeholder"))
    first = set()
    for node in graph.nodes:
        if node.op == "call_function" and any(read in free for read in node.all_input_nodes):
            if kind_of(node) in _WITH_WEIGHTS:
                first.add(node)
            elif kind_of(node) in _SHAPES_ONLY:
                free.add(node)
    return first


def _leading(graph: Graph, first: set[Node]) -> list[Node]:
    """The ops between the clip and the first layer, where there is one such layer."""
    if len(first) != 1:
        return []
    behind = ancestors(next(iter(first)))
    return [n for n in graph.nodes if n in behind and n not in first and n.op == "call_function"]


def one_hot(chosen: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """int64 `[...]` -> `[..., K]`, by a comparison, which every exporter can write."""
    return (chosen.unsqueeze(-1) == torch.arange(num_classes, device=chosen.device)).to(dtype)
