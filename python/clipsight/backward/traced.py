"""The gradient through ops that have no rule: attention, layer norms, gated channels.

What autograd would do behind a layer is recorded once, op by op, and what is recorded is a forward graph like all
else. It repeats the part of the forward pass that it goes back through, so the rules of
:mod:`clipsight.backward.gradient`, which do not, come first.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from ..dataflow import AttachError, follow_sizes, free_batch, op_of, where
from ..errors import first_line
from . import adjoints

aten = torch.ops.aten

_GATES = ("gt", "ge", "lt", "le", "max_pool", "threshold")


@dataclass(frozen=True)
class Record:
    """The recorded gradient at one tensor.

    Attributes:
        stop: number of the tensor.
        module: (gradient at the logits `[B, K]`, activations, parameters) -> gradient at the stop.
        activations: numbers of the tensors of the forward pass that it takes, the stop first.
        batched: those among them that have a row for each sample.
        parameters: names of the parameters that it takes.
    """

    stop: int
    module: GraphModule = field(repr=False)
    activations: tuple[int, ...] = ()
    batched: frozenset[int] = frozenset()
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recorded:
    """Recorded gradients at some tensors: to its caller what a walk by rules is."""

    records: tuple[Record, ...]

    def amplifies(self, stop: int) -> bool:
        """As `Walk.amplifies`: whether what is recorded compares, or looks for the largest."""
        (module,) = (record.module for record in self.records if record.stop == stop)
        return any(op_of(node).startswith(_GATES) for node in module.graph.nodes if node.op == "call_function")

    @property
    def taps(self) -> frozenset[int]:
        """Numbers of the tensors of the forward pass that it needs."""
        return frozenset(number for record in self.records for number in record.activations)

    def run(self, seed: Tensor, tensors: Mapping[int, Tensor], parameter: Callable[[str], Tensor]) -> dict[int, Tensor]:
        """As `Backward.run`, for `[M, N, K]`."""
        classes, found = seed.shape[0], {}

        def each_class(tensor: Tensor) -> Tensor:
            return tensor.unsqueeze(0).expand(classes, *[-1] * tensor.dim()).flatten(0, 1)

        for record in self.records:
            read = [each_class(tensors[n]) if n in record.batched else tensors[n] for n in record.activations]
            gradient = record.module(seed.flatten(0, 1), *read, *map(parameter, record.parameters))
            found[record.stop] = gradient.unflatten(0, (classes, -1))
        return found


def record(graph: Graph, logits: Node, stop: Node, numbers: Mapping[Node, int]) -> Record:
    """Records the gradient of the logits at a tensor.

    Raises:
        AttachError: it cannot be recorded; the message has torch's reason.
    """
    part, activations, parameters = _between(graph, logits, stop)

    def gradient(seed, value, *others):
        value = value.detach().requires_grad_()
        return torch.autograd.grad(part(value, *others), value, seed)[0]

    inputs = [node.meta["val"] for node in (logits, *activations, *parameters)]
    fake = inputs[0].fake_mode
    inputs = [value if hasattr(value, "fake_mode") else fake.from_tensor(value, static_shapes=True) for value in inputs]
    # torch knows how to write its backward ops as forward ones; what it lacks stands at the end of this file.
    known = torch._decomp.decomposition_table.items()
    table = {op: written for op, written in known if "backward" in str(op)} | _WRITTEN
    try:
        with torch.enable_grad(), torch.inference_mode(False), fake:
            module = make_fx(gradient, decomposition_table=table)(*inputs)
    except Exception as error:
        raise AttachError(
            f"explain: the logits must have a derivative by '{op_of(stop)}' {where(stop)}, got {first_line(error)}"
        ) from error
    if inputs[0].shape[0].node.expr.is_number:
        raise AttachError(
            f"explain: the gradient by '{op_of(stop)}' {where(stop)} must be that of any batch size, but an op behind "
            f"it is one for which torch binds the batch to {inputs[0].shape[0]}; a later layer may do"
        )
    _sizes_from_batch(module.graph)
    free_batch(module.graph)
    follow_sizes(module.graph)
    module.recompile()
    return Record(
        stop=numbers[stop],
        module=module,
        activations=tuple(numbers[node] for node in activations),
        batched=frozenset(numbers[n] for n in activations if isinstance([*n.meta["val"].shape, 1][0], torch.SymInt)),
        parameters=tuple(str(node.target) for node in parameters),
    )


def _sizes_from_batch(graph: Graph) -> None:
    """Every size that is the batch or a multiple of it, however it was computed, from the batch itself."""
    first = next(iter(graph.find_nodes(op="placeholder")))
    batch = first.meta["val"].shape[0].node.expr
    with graph.inserting_before(next(n for n in graph.nodes if n.op != "placeholder")):
        size = graph.call_method("size", (first, 0))
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, torch.SymInt):
            times = value.node.expr / batch
            if times.is_Integer:
                with graph.inserting_before(node):
                    multiple = size if times == 1 else graph.call_function(operator.mul, (size, int(times)))
                node.replace_all_uses_with(multiple)


def _between(graph: Graph, logits: Node, stop: Node) -> tuple[GraphModule, list[Node], list[Node]]:
    """The network from the stop to the logits as a function of the stop, other activations, and parameters."""
    order = list(graph.nodes)
    order = order[: order.index(logits) + 1]
    leads = {stop}
    for node in order:
        if any(read in leads for read in node.all_input_nodes):
            leads.add(node)
    inside = [node for node in order if node in leads and node is not stop]
    outside = dict.fromkeys(read for node in inside for read in node.all_input_nodes if read not in leads)
    sizes = [node for node in outside if not isinstance(node.meta.get("val"), Tensor)]
    parameters = [node for node in outside if node.op == "get_attr"]
    activations = [stop, *(n for n in outside if n not in sizes and n not in parameters)]
    part, copies = Graph(), {}
    for node in (*activations, *parameters):
        copies[node] = part.placeholder(node.name)
        copies[node].meta = dict(node.meta)

    def copy_size(node: Node) -> Node:
        """The batch, which is that of the tensors here, or a multiple of it."""
        if node not in copies:
            batch = node.op == "call_method"
            copies[node] = part.call_method("size", (copies[stop], 0)) if batch else part.node_copy(node, copy_size)
        return copies[node]

    for node in sizes:
        copy_size(node)
    for node in inside:
        copies[node] = part.node_copy(node, lambda n: copies[n])
        if op_of(node).startswith("adaptive_avg_pool") and set(node.args[1]) == {1}:
            # Where channels come last in memory it sets strides, whose gradient no exporter has.
            axes = list(range(2, node.meta["val"].dim()))
            copies[node].target, copies[node].args = aten.mean.dim, (copies[node].args[0], axes, True)
    part.output(copies[logits])
    return GraphModule(torch.nn.Module(), part), activations, parameters


def _convolution_back(g, x, weight, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, mask):
    sent = adjoints.conv_adjoint(g, weight, x.shape[2:], stride, padding, dilation, groups) if mask[0] else None
    return sent, None, None


def _max_pool_back(g, x, kernel, stride, padding, dilation, ceil_mode, indices):
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
}
