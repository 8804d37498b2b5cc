"""What makes a network's outputs worthless or its samples depend on each other: looked for when it is explained.

Nothing is run for it: the weights are read only where an output is no number, and the rest stands in the graph.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node

from .dataflow import op_of, where

# Ops that reduce or order along axes; of those that are given none, the last two take the last axis, the others all.
_ALONG = re.compile(
    r"_?(mean|sum|prod|a?max|a?min|arg(max|min)|any|all|(std|var)(_mean)?|(linalg_vector_)?norm|logsumexp|"
    r"(log_)?softmax|cum(sum|prod)|median|flip|roll|sort|topk)$"
)
_LAST_AXIS = ("sort", "topk")


def not_finite(network: nn.Module) -> str:
    """The first parameter, or buffer, that is not finite, as "'body.0.weight' holds NaN"; "" where all are.

    Infinity is a value that masks have, so of buffers only NaN counts.
    """
    for tensors, bad in (
        (network.named_parameters(), lambda t: ~t.isfinite()),
        (network.named_buffers(), lambda t: t.isnan()),
    ):
        for name, tensor in tensors:
            if tensor.is_floating_point() and bool(bad(tensor).any()):
                return f"'{name}' holds {'NaN' if bool(tensor.isnan().any()) else 'infinity'}"
    return ""


def first_not_finite(network: GraphModule, clip: Tensor) -> str:
    """The first op of a captured network that gives NaN or infinity for a clip: "'log' in 'stem'"; "" where none does.

    An op that gives minus infinity alone is passed over: masks do.
    """
    return _Watch(network).first(clip)


class _Watch(Interpreter):
    def first(self, clip: Tensor) -> str:
        self.found = ""
        self.run(clip)
        return self.found

    def run_node(self, n: Node):
        value = super().run_node(n)
        number = n.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point()
        if number and not self.found and bool((value.isnan() | value.isposinf()).any()):
            self.found = f"'{op_of(n)}' {where(n)}"
        return value


def mixes_samples(graph: Graph) -> str:
    """The first op that looks at several samples at once, as "'batch_norm' in 'body.1'", "" where none does.

    That is one that takes the statistics of its batch, or reduces or orders an axis whose length is the batch's.
    """
    return next((f"'{op_of(node)}' {where(node)}" for node in graph.nodes if _mixes(node)), "")


def _mixes(node: Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload) or not node.args:
        return False
    op, read = op_of(node), node.args[0]
    names = [argument.name for argument in node.target._schema.arguments]
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    if op.endswith(("batch_norm", "batch_norm_legit")):
        return given.get("training") is True
    if not _ALONG.match(op) or not isinstance(read, Node) or not isinstance(read.meta.get("val"), Tensor):
        return False
    shape = read.meta["val"].shape
    axes = given.get("dim", given.get("dims"))
    if axes is None or axes == []:
        axes = [-1] if op in _LAST_AXIS else range(len(shape))
    return any(not str(shape[axis]).isdigit() for axis in ([axes] if isinstance(axes, int) else axes))
