"""The score that is explained: the logits among what a network returns, and the layer that gives them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from ..dataflow import AttachError
from .dataflow import Dataflow, Op
from .table import KINDS, Role, op_name

ENDINGS = ("softmax", "log_softmax", "sigmoid")


@dataclass(frozen=True)
class Score:
    """Logits that a network returns.

    Attributes:
        logits: `[N, K]`, before the softmax or sigmoid that it ends in.
        classifier: the layer that gives them, if one does: what is behind it only averages, scales or moves.
        ending: `"softmax"`, `"log_softmax"` or `"sigmoid"`, where the network ends in one, which is left out here.
        output: which of the network's outputs that is, counted as torch's pytrees do.
    """

    logits: Op
    classifier: Op | None
    ending: str | None
    output: int

    @property
    def name(self) -> str:
        """Module path of the classifier, or of what makes the logits."""
        return (self.classifier or self.logits).path


def strip_endings(graph: Graph) -> dict[Node, str]:
    """Takes a softmax or sigmoid at the very end out of the graph: the score is what it reads.

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
            return result
        before = node.args[0]
        for step in reversed(behind):  # the same steps, on what the ending reads
            with graph.inserting_after(step):
                again = graph.call_function(step.target, (before, *step.args[1:]), step.kwargs)
            again.meta = dict(step.meta)
            before = again
        found[before] = kind
        return before

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


def find_scores(flow: Dataflow, endings: dict[Node, str]) -> list[Score]:
    """The outputs of a network that may be logits; those that a classifier gives, if there are such."""
    returned = tree_leaves(next(iter(reversed(flow.graph.nodes))).args)
    found = [
        Score(op, classifier_of(op), endings.get(op.node), returned.index(op.node))
        for op in flow.outputs
        if _may_be_logits(op)
    ]
    by_layer = {(score.classifier or score.logits).node: score for score in reversed(found)}
    found = [score for score in found if score in by_layer.values()]
    return [score for score in found if score.classifier] or found


def _may_be_logits(op: Op) -> bool:
    value = op.value
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2


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


def choose_score(flow: Dataflow, endings: dict[Node, str], network: str, head: str | None) -> Score:
    """The score that is explained.

    Args:
        flow: of the network.
        endings: from `strip_endings`.
        network: its name, for messages.
        head: module path of the classifier, or its last part, where the network has several.

    Raises:
        AttachError: there is none, or there are several.
    """
    found = find_scores(flow, endings)
    if head is not None:
        chosen = [s for s in found if s.name == head or s.name.rpartition(".")[2] == head]
        if len(chosen) != 1:
            raise AttachError(
                f"explain: head must name one classifier of the network, expected one of "
                f"{sorted(s.name for s in found)}, got {head!r}." + candidates(flow)
            )
        return chosen[0]
    if len(found) > 1:
        names = sorted(score.name for score in found)
        raise AttachError(f"explain: the network has {len(found)} classifiers; choose one with head=, one of {names}")
    if not found or found[0].logits.value.dim() != 2:
        got = f"{[list(op.shape) for op in flow.outputs]}" if flow.outputs else "none that depends on the clip"
        raise AttachError(
            f"explain: the logits must have shape [N, K], as a linear layer or a 1x1x1 convolution behind a global "
            f"pooling gives them; {network} returns {got}." + candidates(flow)
        )
    return found[0]


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
