"""From the logits back to a tensor of the network, as ordinary forward ops: what autograd would do, without autograd.

A network's captured dataflow is read backwards from the logits. For each op a rule says how what has arrived at its
output - a gradient, or relevance - goes on to its inputs. The rules of one method are one table, from the kinds and the
roles of :mod:`clipsight.graph.table` to a `Rule`: :mod:`clipsight.backward.gradient` and
:mod:`clipsight.backward.relevance` have them. What they are all made from, an op's transposed derivative, stands once:
by hand in :mod:`clipsight.backward.maps` and :mod:`clipsight.backward.derivatives`, or else recorded from autograd for
that op alone (:mod:`clipsight.backward.traced`). They compute with the tensors of the forward pass, which the rewired
network gives out, and so the whole is a forward graph that can be traced and exported; nothing is hooked, and nothing
needs a gradient at run time.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, Node

from ..dataflow import AttachError, where
from ..graph.table import BY_THE_FIRST, Kind, Role, kind_of, op_name, valued_inputs, varying
from ..suspects import mixes_samples
from .derivatives import NONLINEAR
from .maps import LINEAR
from .rules import Local, Op, Parameter, Rules, Shape, Tap, each_read
from .traced import Recorder, Reference

__all__ = ["Backward", "Rules", "Walk", "ancestors", "find_backward", "one_hot"]

BACK = LINEAR | NONLINEAR


@dataclass(frozen=True)
class Walk:
    """The ops of one method in the order of the walk, and where it ends.

    Attributes:
        logits: number of the tensor where it starts.
        stops: the numbers of the tensors where it ends.
        wanted: numbers of the tensors that lead to a stop.
        taps: numbers of the tensors of the forward pass that the rules need.
    """

    rules: Rules
    ops: tuple[Op, ...]
    logits: int
    stops: tuple[int, ...]
    wanted: frozenset[int]
    taps: frozenset[int]

    def amplifies(self, stop: int) -> bool:
        """Whether what arrives at a stop has come through gates, or divisions by what may be tiny."""
        if self.rules.divides:
            return True
        leads = {stop}
        for op in reversed(self.ops):
            if leads.intersection(op.reads):
                if op.back is not None and op.back.gate:
                    return True
                leads.add(op.made)
        return False


class Backward(NamedTuple):
    """Every walk through a network, and the nodes whose tensors they need, by number.

    Attributes:
        mixes: an op behind the logits takes the samples of a batch together, such as a norm on their statistics: what
            is found for a batch is that of this batch, and copies of it have to be looked at one by one.
    """

    walks: dict[Rules, Walk]
    nodes: dict[int, Node]
    stops: dict[Hashable, int]
    mixes: bool = False

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
            What arrives at each stop, by number: `[M, ...]`.
        """
        walk = self.walks[rules]
        arrived: dict[int, Any] = {walk.logits: seed}
        for op in walk.ops:
            g = arrived.get(op.made) if op.made in walk.stops else arrived.pop(op.made, None)
            if g is None:
                continue
            if op.kind.name == PART:
                _add(arrived.setdefault(op.reads[0], {}), op.fixed, g)
                continue
            sent = op.rule.function(Local(op, g, rules, tensors, parameter))
            for read, wanted, part in zip(op.reads, op.wanted, each_read(sent), strict=True):
                if wanted and part is not None:
                    _add(arrived, read, part)
        return {stop: arrived[stop] if stop in arrived else _nothing(tensors[stop], seed) for stop in walk.stops}


def _add(sums: dict[int, Tensor], key: int, part: Tensor) -> None:
    sums[key] = sums[key] + part if key in sums else part


def _nothing(tensor: Tensor, seed: Tensor) -> Tensor:
    return torch.zeros_like(tensor).unsqueeze(0).expand(seed.shape[0], *[-1] * tensor.dim())


# ---- Planning -------------------------------------------------------------------------------------------------------

PART = "one of several outputs"


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
    by_rules: dict[Rules, list[Node]] = {}
    for rules, stop in wanted:
        by_rules.setdefault(rules, []).append(stops[stop])
    planner = _Planner(graph, logits)
    walks = {rules: planner.walk(rules, list(dict.fromkeys(ends))) for rules, ends in by_rules.items()}
    clips = graph.find_nodes(op="placeholder")
    taps = {planner.numbers[node] for node in (*clips, *stops.values())}.union(*(walk.taps for walk in walks.values()))
    return Backward(
        walks=walks,
        nodes={number: node for node, number in planner.numbers.items() if number in taps},
        stops={place: planner.numbers[node] for place, node in stops.items()},
        mixes=bool(mixes_samples(graph)),
    )


class _Planner:
    """What all walks through a graph share.

    Attributes:
        numbers: of all nodes.
    """

    def __init__(self, graph: Graph, logits: Node) -> None:
        self.graph, self.logits = graph, logits
        self.numbers = {node: i for i, node in enumerate(graph.nodes)}
        self.behind = ancestors(logits)
        self.varying = varying(graph)
        self.kinds = {node: self._kind(node) for node in graph.nodes if node in self.varying}
        self.recorder = Recorder()

    def walk(self, rules: Rules, stops: list[Node]) -> Walk:
        leads = set().union(*(self._leads(stop) for stop in stops))
        first = self._first() if rules.folds else {}
        ops, taps, folded = [], set(), set()
        for node in reversed(self.graph.nodes):
            if node not in leads or (node in stops and not _passes(node, stops)) or node in folded:
                continue
            norm, made = None, node
            if rules.folds and self._folds(node):
                norm, node = node, node.args[0]
                folded.add(node)
            op = self._op(node, made, norm, leads, first.get(node))
            if op.kind.name != PART:
                op, needed = self._with_rule(rules, op, node, leads)
                taps |= needed
            ops.append(op)
        return Walk(
            rules=rules,
            ops=tuple(ops),
            logits=self.numbers[self.logits],
            stops=tuple(self.numbers[stop] for stop in stops),
            wanted=frozenset(self.numbers[node] for node in leads),
            taps=frozenset(taps),
        )

    def _leads(self, stop: Node) -> set[Node]:
        """All between a stop and the logits that has a derivative by it.

        Raises:
            AttachError: the logits have none.
        """
        leads, ends = {stop}, []
        for node in self.graph.nodes:
            if node in self.behind and node in self.varying and not leads.isdisjoint(valued_inputs(node)):
                if _is_float(node.meta["val"]) and self.kinds[node].role is not Role.COUNTS:
                    leads.add(node)
                else:
                    ends.append(node)
        if self.logits not in leads:
            behind = f"behind '{op_name(ends[-1])}' {where(ends[-1])}" if ends else "by what they are computed from"
            raise AttachError(
                f"explain: the logits must have a derivative by '{op_name(stop)}' {where(stop)}, {behind} they do not"
            )
        return leads

    def _kind(self, node: Node) -> Kind:
        if node.target is operator.getitem:
            return Kind(PART, Role.MOVES)
        return kind_of(node, self.varying) if node.op == "call_function" else Kind(node.op, Role.UNKNOWN)

    def _op(self, node: Node, made: Node, norm: Node | None, leads: set[Node], first: tuple[Node, bool] | None) -> Op:
        kind, reads, value = self.kinds[node], self._reads(node), node.meta["val"]
        outputs = value if isinstance(value, (tuple, list)) else ()
        if (own := self._gated_by_itself(node)) and all(read in leads for _, read in reads):
            kind, reads = own[0], [("self", own[1])]
        op = Op(
            kind=kind,
            target=node.target,
            name=where(node),
            made=self.numbers[made],
            reads=tuple(self.numbers[read] for _, read in reads),
            names=tuple(name for name, _ in reads),
            wanted=tuple(read in leads for _, read in reads),
            signals=self._signals([read for _, read in reads]),
            shapes=tuple(_shape(read.meta["val"]) for _, read in reads),
            made_shape=_shape(outputs[0] if outputs else value),
            arguments=self._arguments(node),
            norm=None if norm is None else self._arguments(norm),
            parts=tuple(map(_shape, outputs)),
        )
        if kind.name == PART:
            return replace(op, fixed=node.args[1])
        if kind.role is Role.WEIGHS:
            op = replace(op, weight=self._weight(node, op))
        if first is not None:
            clip, moved = first
            return replace(
                op, clip=self.numbers[clip], leading=reads[0][1] if reads[0][1] is not clip else None, moved=moved
            )
        return op

    def _with_rule(self, rules: Rules, op: Op, node: Node, leads: set[Node]) -> tuple[Op, set[int]]:
        """With the rule of a method, and the numbers of the tensors of the forward pass that it needs."""
        rule = rules.rule(op.kind)
        if rule is None:
            name = op.kind.name if " " in op.kind.name else op_name(node)
            raise AttachError(f"explain: {rules.method} has no rule for '{name}' {op.name}; {rules.describe_missing()}")
        needs, taps = set(rule.needs), set()
        op = replace(op, rule=rule)
        if "b" in needs:
            outputs = tuple(sorted({user.args[1] for user in node.users if user in leads})) if op.parts else ()
            back = BACK.get(op.kind.name)
            if back is not None:
                op = replace(op, back=back, fixed=back.fix(node) if back.fix else None)
            if back is None or not back.fits(op) or (any(outputs) and not back.several):
                back, references = self.recorder.back(node, op, self._tensors(node), outputs)
                op = replace(op, back=back)
                taps |= {reference.number for reference in references if isinstance(reference, Tap)}
            needs |= set(back.needs(op) if callable(back.needs) else back.needs)
        taps |= set(op.reads) if "x" in needs else set()
        taps |= {op.made} if "y" in needs else set()
        if "c" in needs:
            values = [*op.arguments.values(), *(op.norm or {}).values()]
            constant = [each for value in values for each in (value if isinstance(value, list) else [value])]
            taps |= {each.number for each in constant if isinstance(each, Tap)} - set(op.reads)
        return op, taps

    # ---- What an op reads --------------------------------------------------------------------------------------

    def _reads(self, node: Node) -> list[tuple[str, Node]]:
        """The tensors that it takes and that depend on the clip, by argument, one that is read twice two times."""
        if node.target is operator.getitem:
            return [("self", node.args[0])]
        found: list[tuple[str, Node]] = []
        valued = valued_inputs(node)
        arguments = list(_by_name(node).items())
        for name, value in arguments[:1] if op_name(node) in BY_THE_FIRST else arguments:
            values = enumerate(value) if isinstance(value, (list, tuple)) else [(None, value)]
            for i, each in values:
                if each in valued and each in self.varying and _is_float(each.meta["val"]):
                    found.append((name if i is None else f"{name}.{i}", each))
        return found

    def _reference(self, node: Node) -> Reference:
        return Parameter(str(node.target)) if node.op == "get_attr" else Tap(self.numbers[node])

    def _tensors(self, node: Node) -> dict[Reference, Node]:
        tensors = (read for read in node.all_input_nodes if isinstance(read.meta.get("val"), Tensor))
        return {self._reference(read): read for read in tensors}

    def _arguments(self, node: Node) -> dict[str, Any]:
        """By the names of the op's schema, tensors as what stands for them; a size that is computed is left out."""

        def plain(value):
            if isinstance(value, Node):
                return self._reference(value) if isinstance(value.meta.get("val"), Tensor) else None
            return value

        arguments = {} if node.target is operator.getitem else _by_name(node)
        return {
            name: [plain(each) for each in value] if isinstance(value, (list, tuple)) else plain(value)
            for name, value in arguments.items()
        }

    def _weight(self, node: Node, op: Op) -> str:
        """The argument of a layer that has its weights."""
        if "weight" in op.arguments:
            return "weight"
        bias = {"addmm": "self", "baddbmm": "self"}.get(op_name(node))
        for name, value in op.arguments.items():
            for i, each in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(each, (Tap, Parameter)) and name != bias:
                    full = name if i is None else f"{name}.{i}"
                    if full not in op.names:
                        return full
        return ""

    def _gated_by_itself(self, node: Node) -> tuple[Kind, Node] | None:
        """Of `x * sigmoid(x)`, which is a SiLU, and `x * hardsigmoid(x)`: its kind, and x."""
        if self.kinds[node].name == "mul":
            for gate, x in (node.args[:2], node.args[1::-1]):
                kind = {"sigmoid": "silu", "hardsigmoid": "hardswish"}.get(op_name(gate))
                if kind and gate.args[0] is x:
                    return Kind(kind, Role.CURVES), x
        return None

    def _signals(self, reads: list[Node]) -> tuple[float, ...]:
        """Of a product what share each factor has: none of it a gate or an attention, where others are none."""
        gates = [self._squashed(read) for read in reads]
        if all(gates):
            gates = [False] * len(reads)
        return tuple(0.0 if gate else 1 / gates.count(False) for gate in gates)

    def _squashed(self, node: Node) -> bool:
        """Whether it is what a sigmoid or a softmax gives, moved or scaled."""
        while node in self.kinds and self.kinds[node].role in (Role.MOVES, Role.SCALES):
            reads = self._reads(node)
            if len(reads) != 1:
                return False
            node = reads[0][1]
        return node in self.kinds and self.kinds[node].name in ("sigmoid", "hardsigmoid", "softmax")

    # ---- Layers ------------------------------------------------------------------------------------------------

    def _folds(self, node: Node) -> bool:
        """A batch norm behind a convolution whose output nothing else reads."""
        if self.kinds[node].name != "batch_norm" or node not in self.kinds:
            return False
        before = node.args[0]
        return before in self.kinds and self.kinds[before].name == "conv" and len(before.users) == 1

    def _first(self) -> dict[Node, tuple[Node, bool]]:
        """Layers with weights that read the clip through no other such layer, and which clip.

        The truth value is whether the ops between the two change values, one by one along a straight line, and do not
        only move them.
        """
        free = {clip: (clip, False) for clip in self.graph.find_nodes(op="placeholder")}
        first: dict[Node, tuple[Node, bool]] = {}
        for node, kind in self.kinds.items():
            reads = [read for _, read in self._reads(node)] if node.op == "call_function" else []
            if not reads or not all(read in free for read in reads) or len({free[read][0] for read in reads}) > 1:
                continue
            clip, moved = free[reads[0]][0], any(free[read][1] for read in reads)
            if kind.role is Role.WEIGHS or kind.name == "batch_norm":
                first[node] = (clip, moved)
            elif kind.role is Role.MOVES:
                free[node] = (clip, moved)
            elif kind.name in ("scale", "unscale") or (kind.role is Role.ADDS and len(reads) == 1):
                free[node] = (clip, True)
        return first


def _by_name(node: Node) -> dict[str, Any]:
    """An op's arguments by the names in its schema."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        raise AttachError(f"explain: no head knows how to go back through '{node.target}' {where(node)}")
    found = {}
    for i, argument in enumerate(schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        found[argument.name] = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name, default)
    return found


def _is_float(value: Any) -> bool:
    values = value if isinstance(value, (tuple, list)) else [value]
    return any(isinstance(each, Tensor) and each.is_floating_point() for each in values)


def _shape(value: Any) -> Shape:
    if isinstance(value, (tuple, list)):
        return ()
    return tuple(n if isinstance(n, int) else None for n in value.shape) if isinstance(value, Tensor) else ()


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


def one_hot(chosen: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """int64 `[...]` -> `[..., K]`, by a comparison, which every exporter can write."""
    return (chosen.unsqueeze(-1) == torch.arange(num_classes, device=chosen.device)).to(dtype)
