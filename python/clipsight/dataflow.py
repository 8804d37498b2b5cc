"""A network's dataflow as a graph of ATen ops, and names in it that people know.

The network is captured once with `torch.export`, so what is read is the dataflow that really runs - functional calls
as well as modules - and nothing is hooked or changed on the network.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from .foreign import not_captured

aten = torch.ops.aten
_CAPTURING = threading.RLock()


class AttachError(ValueError):
    """The network has no features, pooling and classifier that a Saliency Tube could use, or they must be named."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, without what it was trained in: parallel modules, averaged ones and torch.compile's."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
    while True:
        inner = model.module if isinstance(model, wrappers) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


class FrameByFrame(nn.Module):
    """A 2-D network on a clip: every frame on its own, the logits averaged over the frames (segment consensus)."""

    def __init__(self, network: nn.Module, channels_last: bool = False) -> None:
        super().__init__()
        self.network, self.channels_last = network, channels_last

    def forward(self, clip: Tensor) -> Tensor:
        n, _, t = clip.shape[:3]
        frames = clip.transpose(1, 2).flatten(0, 1)
        logits = self.network(frames.permute(0, 2, 3, 1) if self.channels_last else frames)
        return logits.unflatten(0, (n, t)).mean(1)


@contextlib.contextmanager
def without_stacks() -> Iterator[None]:
    """Tracing without a note of Python's stack at every node, which takes a tenth of it. Torch before 2.13 makes it."""
    config, switch = torch.fx.config, "do_not_emit_stack_traces"
    before = getattr(config, switch, False)
    setattr(config, switch, True)
    try:
        yield
    finally:
        setattr(config, switch, before)


@torch.inference_mode(False)  # a caller's inference mode would make tensors that cannot be traced
def capture(network: nn.Module, shape: Sequence[int], like: dict) -> GraphModule:
    """The network's dataflow at one clip size as a graph of ATen ops, with a free batch size; parameters are shared.

    Args:
        network: in eval mode.
        shape: of one clip, `(channels, T, H, W)`.
        like: its `dtype` and `device`.
    """
    batch = torch.zeros(2, *shape, **like)
    free = torch.export.ShapesCollection()  # by tensor: `forward` may take `*args`
    free[batch] = {0: torch.export.Dim.AUTO}

    def export(strict: bool) -> torch.export.ExportedProgram:
        with torch.no_grad(), without_stacks(), _without_reports():
            return torch.export.export(network, (batch,), dynamic_shapes=free, strict=strict)

    try:
        program = export(strict=False)
    except Exception as error:
        raise AttachError(f"explain: {not_captured(network, shape, like, error)}") from error
    if _binds_batch(program):  # by len(x), say, which torch's strict tracing follows, but fewer networks let it
        with contextlib.suppress(Exception):
            program = export(strict=True)
    _check_signature(program, network)
    if any(writes_through_view(node) and not _is_constant(node) for node in program.graph.nodes):
        program = program.run_decompositions({})  # which only replaces what is written in place
    module = _unlifted(program)
    for node in module.graph.find_nodes(op="call_function", target=aten.copy.default):
        onto, what = node.args[:2]
        if onto.meta["val"].shape == what.meta["val"].shape and onto.meta["val"].dtype == what.meta["val"].dtype:
            node.replace_all_uses_with(what)
    free_batch(module.graph)
    module.graph.set_codegen(torch.fx.graph.CodeGen())
    # A module made anew: torch.export's own one checks its inputs in hooks that no tracer can follow.
    return GraphModule(module, module.graph, class_name=type(network).__name__)


@contextlib.contextmanager
def _without_reports() -> Iterator[None]:
    """Without the pages that torch writes before it raises an error: the graph so far, for whoever develops torch."""
    log, said = logging.getLogger("torch.fx.experimental.symbolic_shapes"), io.StringIO()
    with _CAPTURING:  # torch keeps what it captures in global variables
        level = log.level
        try:
            log.setLevel(logging.CRITICAL)
            with contextlib.redirect_stderr(said):
                yield
        finally:
            log.setLevel(level)
            sys.stderr.write(re.split(r"\n*def forward\(self", said.getvalue())[0])


def _check_signature(program: torch.export.ExportedProgram, network: nn.Module) -> None:
    """Clips of any batch in, at least one tensor out.

    Raises:
        AttachError: the network returns no tensor, or its code turned the batch into a plain number.
    """
    name, graph = type(network).__name__, program.graph
    returned = next(iter(reversed(graph.nodes))).args[0]
    if not any(isinstance(node, Node) and isinstance(node.meta.get("val"), Tensor) for node in returned):
        got = ", ".join(type(value).__name__ for value in returned) or "nothing"
        raise AttachError(f"explain: {name} must return its logits, a tensor [N, K], got {got}")
    if _binds_batch(program):
        raise AttachError(
            f"explain: {name} must take batches of any size, but its code turns the batch into a plain number, as "
            "len(x) and int(x.shape[0]) do, which binds it; use x.shape[0] or x.size(0), or -1 in a view"
        )


def _binds_batch(program: torch.export.ExportedProgram) -> bool:
    inputs = program.graph_signature.user_inputs
    taken = [node for node in program.graph.find_nodes(op="placeholder") if node.name in inputs]
    return bool(taken) and str(taken[0].meta["val"].shape[0]).isdigit()


def writes_through_view(node: Node) -> bool:
    """An in-place op on a view, such as `x[:, 1:] += y`: it changes a tensor that is not among its arguments."""
    if node.op != "call_function" or not op_of(node).endswith("_") or not isinstance(node.args[0], Node):
        return False
    before = node.args[0].target
    if not isinstance(before, torch._ops.OpOverload):
        return False
    alias = before._schema.returns[0].alias_info
    return alias is not None and not alias.is_write


def _is_constant(node: Node) -> bool:
    """No axis of the tensor grows with the batch: a mask, say, which stays what it is whoever looks at it."""
    return all(isinstance(length, int) for length in node.args[0].meta["val"].shape)


def free_batch(graph: Graph) -> None:
    """Lets tracers follow the batch size: they would bake the values of aten.sym_size and of symbolic view sizes."""
    for node in list(graph.nodes):
        if node.target in (aten.view.default, aten._unsafe_view.default, aten.reshape.default):
            node.target = aten.reshape.default  # strides differ between batches and runtimes
            sizes = [-1 if isinstance(size, Node) else size for size in node.args[1]]
            if sizes.count(-1) == 1:
                node.args = (node.args[0], sizes)
        elif node.op == "call_function" and "assert" in str(node.target) and not node.users:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.target is aten.sym_size.int:
            with graph.inserting_before(node):
                size = graph.call_method("size", node.args)
            size.meta = node.meta
            node.replace_all_uses_with(size)
            graph.erase_node(node)


# Tracers follow a computed size into these, and bake it in where the op behind them is called by its name.
_METHODS = {
    aten.reshape.default: "reshape",
    aten.unflatten.int: "unflatten",
    aten.expand.default: "expand",
    aten.new_zeros.default: "new_zeros",
    aten.new_full.default: "new_full",
}
_FUNCTIONS = {aten.zeros.default: torch.zeros, aten.full.default: torch.full, aten.ones.default: torch.ones}
_RANGES = (aten.arange.default, aten.arange.start, aten.arange.start_step)


def follow_sizes(graph: Graph) -> None:
    """The same for sizes that are computed; the last change of a graph, whose ops then have other names."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _RANGES and any(isinstance(a, Node) for a in node.args):
            kept = {name: value for name, value in node.kwargs.items() if name in ("dtype", "device")}
            node.target, node.kwargs = torch.arange, kept
        if node.op != "call_function" or not any(isinstance(a, (list, tuple)) for a in node.args):
            continue
        computed = any(isinstance(x, Node) for a in node.args if isinstance(a, (list, tuple)) for x in a)
        if computed and node.target in _METHODS:
            node.op, node.target, node.kwargs = "call_method", _METHODS[node.target], {}
        elif computed and node.target in _FUNCTIONS:
            kept = {name: value for name, value in node.kwargs.items() if name in ("dtype", "device")}
            node.target, node.kwargs = _FUNCTIONS[node.target], kept


def _unlifted(program: torch.export.ExportedProgram) -> GraphModule:
    try:
        return program.module(check_guards=False)
    except TypeError:  # torch before 2.9 has no guards to leave out
        return program.module()


def without_mutation(graph: Graph) -> None:
    """Replaces in-place ops: a tensor that the graph gives out must still be there at the end of the forward pass."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        name, _, overload = str(node.target).removeprefix("aten.").partition(".")
        twin = getattr(aten, name[:-1], None) if node.op == "call_function" and name.endswith("_") else None
        if twin is not None and overload in twin.overloads() and not writes_through_view(node):
            node.meta["in_place"] = node.target
            node.target, changed, result = getattr(twin, overload), node.args[0], node
            if _made(node) != node.meta["val"].dtype:  # in place a comparison, say, stays what the tensor is
                with graph.inserting_after(node):
                    result = graph.call_function(aten._to_copy.default, (node,), {"dtype": node.meta["val"].dtype})
                del node.meta["in_place"]
                result.meta = dict(node.meta)
                node.meta["val"] = node.meta["val"].to(_made(node))
                node.replace_all_uses_with(result, lambda user, own=result: user is not own)
                order[result] = order[node]
            for user in [user for user in changed.users if order[user] > order[node]]:
                user.replace_input_with(changed, result)


def in_place_again(graph: Graph) -> None:
    """Ops that were in place, where nothing else reads what they change: that saves memory, and its traffic."""
    for node in graph.nodes:
        before = node.args[0] if node.args else None
        target = node.meta.pop("in_place", None)
        if target is None or not isinstance(before, Node) or len(before.users) > 1 or before.op != "call_function":
            continue
        schema = getattr(before.target, "_schema", None)
        alias = schema.returns[0].alias_info if schema and schema.returns else None
        if schema and (alias is None or alias.is_write):
            node.target = target


def _made(node: Node) -> torch.dtype:
    """The type of what the node's op returns."""
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    with node.meta["val"].fake_mode:
        return node.target(*args, **kwargs).dtype


def stack_of(node: Node) -> list[str]:
    paths = (path for path, _ in (node.meta.get("nn_module_stack") or {}).values())
    return [path.removeprefix("network.") for path in paths]


def name_of(node: Node) -> str:
    stack = stack_of(node)
    return stack[-1] if stack else ""


def where(node: Node) -> str:
    return f"in '{name_of(node)}'" if name_of(node) else f"({node.name})"


def op_of(node: Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0]


def shape_of(node: Node) -> tuple[int | str, ...]:
    """Lengths of a tensor's axes; that of the batch is the name of a symbol."""
    return tuple(length if isinstance(length, int) else str(length) for length in node.meta["val"].shape)
