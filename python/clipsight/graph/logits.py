"""The logits among what a network returns, and the layer that gives them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from ..dataflow import AttachError
from .dataflow import Dataflow, Op
from .table import KINDS, Role, op_name

ENDINGS = {"softmax": "softmax", "log_softmax": "softmax", "sigmoid": "sigmoid"}  # how logits are read


@dataclass(frozen=True)
class Logits:
    """One of the outputs of a network.

    Attributes:
        op: `[N, K]`, or with further axes, before the softmax or sigmoid that it ends in.
        classifier: the layer that gives them, if one does: what is behind it only averages, scales or moves.
        ends_in: `"softmax"`, `"log_softmax"` or `"sigmoid"`, where the network ends in one, which is left out here;
            `"none"` where one lies further inside, as in a mean of probabilities, which is no logit of any.
        output: which of the network's outputs that is, counted as torch's pytrees do.
    """

    op: Op
    classifier: Op | None
    ends_in: str | None
    output: int

    @property
    def name(self) -> str:
        """Module path of the classifier, or of what makes the logits."""
        return (self.classifier or self.op).path


def strip_endings(graph: Graph) -> dict[Node, str]:
    """Takes a softmax or sigmoid at the very end out of the graph: the logits are what it reads.

    A single logit without an axis of its own, `[N]`, gets one.

    Returns:
        By node of an output: what stood between it and what the network returned.
    """
    output = next(iter(reversed(graph.nodes)))
    found: dict[Node, str] = {}

    def stripped(result: Node) -> Node:
        node, behind = result, []
        while _keeps_all_values(node):
            behind.append(node)
            node = node.args[0]
        kind = KINDS[op_name(node)].name if node.op == "call_function" and op_name(node) in KINDS else ""
        if kind not in ENDINGS or not _over_classes(node, result):
            return wide(result)
        before = node.args[0]
        for step in reversed(behind):  # the same steps, on what the ending reads
            with graph.inserting_after(step):
                again = graph.call_function(step.target, (before, *step.args[1:]), step.kwargs)
            again.meta = dict(step.meta)
            before = again
        before = wide(before)
        found[before] = kind
        return before

    def wide(result: Node) -> Node:
        value = result.meta.get("val")
        if not isinstance(value, Tensor) or value.dim() != 1 or isinstance(value.shape[0], int):
            return result
        with graph.inserting_after(result):
            column = graph.call_function(torch.ops.aten.unsqueeze.default, (result, 1))
        column.meta = {**result.meta, "val": value.unsqueeze(1)}
        return column

    output.args = torch.fx.node.map_arg(output.args, stripped)
    return found


def _keeps_all_values(node: Node) -> bool:
    """An op that only rearranges what it reads, as a pooling of a single voxel does."""
    if node.op != "call_function" or op_name(node) not in KINDS or not isinstance(node.args[0], Node):
        return False
    kind = KINDS[op_name(node)]
    if kind.role not in (Role.MOVES, Role.POOLS) or kind.name in ("pad", "flip", "index", "expand", "unfold"):
        return False
    before, after = node.args[0].meta.get("val"), node.meta.get("val")
    return isinstance(before, Tensor) and isinstance(after, Tensor) and _count(before) == _count(after)


def _count(value: Tensor) -> int:
    """Of the values of one sample, or of one frame."""
    return math.prod(n for n in value.shape if isinstance(n, int))


def _over_classes(node: Node, result: Node) -> bool:
    """Whether an ending works on each value by itself, or along the axis of the classes."""
    if KINDS[op_name(node)].name == "sigmoid":
        return True
    classes = result.meta["val"].shape[1] if result.meta["val"].dim() > 1 else None
    return len(node.args) > 1 and node.meta["val"].shape[node.args[1]] == classes


def find_logits(flow: Dataflow, endings: dict[Node, str], rank: int = 2) -> list[Logits]:
    """The outputs of a network that may be logits; those that a classifier gives, if there are such.

    Of several outputs of one classifier, such as logits and probabilities, that with as many axes as `rank`.
    """
    returned = tree_leaves(next(iter(reversed(flow.graph.nodes))).args)
    found = [
        Logits(op, classifier_of(op), endings.get(op.node) or _made_of_probabilities(op), returned.index(op.node))
        for op in flow.outputs
        if _may_be_logits(op)
    ]
    by_layer: dict[Node, Logits] = {}
    for logits in sorted(found, key=lambda logits: logits.op.value.dim() != rank):
        by_layer.setdefault((logits.classifier or logits.op).node, logits)
    found = [logits for logits in found if logits in by_layer.values()]
    return [logits for logits in found if logits.classifier] or [x for x in found if x.op.value.dim() == rank] or found


def _may_be_logits(op: Op) -> bool:
    value = op.value
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2


def _made_of_probabilities(op: Op) -> str | None:
    while op.role.linear and len(op.inputs) == 1:
        op = op.inputs[0]
    return "none" if op.kind.name in ENDINGS else None


def classifier_of(op: Op) -> Op | None:
    """The linear layer, or convolution of single voxels, that an output comes from, with nothing but moves, scales
    and averages in between."""
    while op.inputs and op.role.linear:
        if op.role is Role.WEIGHS:
            return op if _is_classifier(op) else None
        if op.role is Role.ADDS and len(op.inputs) > 1:
            return None
        if op.kind.name in ("cat", "stack") and len(op.inputs) > 1:
            return None
        op = op.inputs[0]
    return None


def _is_classifier(op: Op) -> bool:
    if op.kind.name != "conv":
        return op.kind.name in ("linear", "matmul", "einsum")
    kernel = op.node.args[1].meta["val"].shape
    return all(n == 1 for n in kernel[2:]) and kernel[1] == op.node.args[0].meta["val"].shape[1]


def choose_logits(
    flow: Dataflow, endings: dict[Node, str], network: str, heads: Sequence[str], rank: int = 2
) -> tuple[Logits, ...]:
    """The logits that are explained.

    Args:
        flow: of the network.
        endings: from `strip_endings`.
        network: its name, for messages.
        heads: module paths of the classifiers that are wanted, or their last parts; the only one, where empty.
        rank: how many axes the logits have.

    Raises:
        AttachError: there are none, or several, or not such.
    """
    found = find_logits(flow, endings, rank)
    if heads:
        return tuple(_named(flow, found, head) for head in heads)
    if len(found) > 1:
        names = sorted(logits.name for logits in found)
        raise AttachError(
            f"explain: the network has {len(found)} classifiers; choose one with head=, one of {names}, or several "
            "with target=Target(heads=[...])"
        )
    if not found or found[0].op.value.dim() > 3:
        got = [list(op.shape) for op in flow.outputs] or "none that depends on the clip"
        raise AttachError(
            f"explain: the logits must have shape [N, K], as a linear layer or a 1x1x1 convolution behind a global "
            f"pooling gives them; {network} returns {got}." + candidates(flow)
        )
    return (found[0],)


def _named(flow: Dataflow, found: Sequence[Logits], head: str) -> Logits:
    chosen = [x for x in found if x.name == head or x.name.rpartition(".")[2] == head]
    if len(chosen) != 1:
        raise AttachError(
            f"explain: head must name one classifier of the network, expected one of "
            f"{sorted(x.name for x in found)}, got {head!r}." + candidates(flow)
        )
    return chosen[0]


def candidates(flow: Dataflow) -> str:
    """Names for people: what could be said for `head` and `features`."""
    heads, layers = {}, {}
    for op in flow:
        if op is flow.clip or not isinstance(op.value, Tensor) or not op.path:
            continue
        if op.role is Role.WEIGHS and _is_classifier(op) and op.kind.name in ("linear", "conv"):
            heads[op.path] = list(op.node.args[1].meta["val"].shape[:2])
        elif op.value.dim() in (4, 5):
            layers[op.path.rpartition(".")[0] or op.path] = ["N", *map(int, _known(op.value))]
    head_list = ", ".join(f"'{k}' {v}" for k, v in list(heads.items())[-6:]) or "none"
    layer_list = ", ".join(f"'{k}' {v}" for k, v in list(layers.items())[-8:]) or "none"
    return f"\n  candidates for head=: {head_list}\n  candidates for features=: {layer_list}"


def _known(value: Tensor) -> Iterator[int]:
    return (n for n in value.shape[1:] if isinstance(n, int))
