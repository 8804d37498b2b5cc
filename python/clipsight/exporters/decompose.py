"""What torch.onnx cannot write, op by op: a captured program is decomposed only where it has to be.

`ExportedProgram.run_decompositions` runs the whole graph twice more, op by op on tensors without values, and most of it
comes out as it went in: that took a third of an export. Here an op that must be replaced is traced by itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx

from ..dataflow import op_of, without_mutation, writes_through_view

aten = torch.ops.aten

Table = dict[torch._ops.OpOverload, Callable]

_NOTHING = ("detach", "detach_", "alias", "lift_fresh_copy")  # where nothing needs a gradient
_RESHAPES = ("view", "_unsafe_view", "reshape", "flatten", "unflatten")


def decompose_where_needed(program: ExportedProgram) -> ExportedProgram:
    """The same program, with another way to do what torch.onnx asks of it: `run_decompositions(table)`.

    A program with ops that write into a view, or that hold other graphs, goes torch's way.
    """
    graph = program.graph
    without_aliases(graph)
    _name_outputs(program)
    holds = torch._ops.HigherOrderOperator
    if not any(isinstance(node.target, holds) or writes_through_view(node) for node in graph.nodes):
        program.run_decompositions = lambda table: _decompose(program, table)
    return program


def without_aliases(graph: Graph) -> None:
    """Leaves out what gives its input."""
    for node in list(graph.nodes):
        if node.op == "call_function" and op_of(node) in _NOTHING:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _decompose(program: ExportedProgram, table: Table) -> ExportedProgram:
    graph, standard = program.graph, torch.export.default_decompositions()
    without_mutation(graph)
    values = (node.meta["val"] for node in graph.find_nodes(op="placeholder"))
    mode = next(value.fake_mode for value in values if isinstance(value, Tensor))
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if op_of(node) in _RESHAPES and (lengths := _one_free(node.meta["val"])):
            node.target, node.args, node.kwargs = aten.reshape.default, (node.args[0], lengths), {}
        elif op_of(node) in ("view", "_unsafe_view", "reshape"):
            node.target = aten.reshape.default
        elif node.target in table or (node.target not in standard and node.target._can_decompose()):
            _put(node, _parts_of(node, table, mode))
    _name_outputs(program)
    graph.eliminate_dead_code()
    graph.lint()
    program.graph_module.recompile()
    return program


def _name_outputs(program: ExportedProgram) -> None:
    output = next(iter(reversed(program.graph.nodes)))
    for spec, node in zip(program.graph_signature.output_specs, output.args[0], strict=True):
        spec.arg.name = node.name


def _one_free(tensor: Tensor) -> list[int]:
    """The lengths of its axes, -1 for one that is not known; none where that would not tell its shape."""
    lengths = [length if isinstance(length, int) else -1 for length in tensor.shape]
    return lengths if lengths.count(-1) <= 1 and 0 not in lengths else []


def expand(
    program: ExportedProgram,
    op: torch._ops.OpOverload,
    function: Callable,
    which: Callable[[Node], bool] = lambda node: True,
) -> None:
    """Puts in the place of nodes of an op what `function` does, which is traced once for all that are alike."""
    traced: dict[str, Graph] = {}
    for node in filter(which, program.graph.find_nodes(op="call_function", target=op)):
        alike = str(torch.fx.node.map_arg((node.args, node.kwargs), lambda read: _kind(read.meta["val"])))
        if alike not in traced:
            mode = node.all_input_nodes[0].meta["val"].fake_mode
            traced[alike] = _parts_of(node, {op: function}, mode, pre_dispatch=True)
        _put(node, traced[alike])
    _name_outputs(program)
    program.graph_module.recompile()


def _kind(value) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, Tensor) else str(value)


def _parts_of(node: Node, table: Table, mode, pre_dispatch: bool = False) -> Graph:
    """What a node's op is made of, as a graph of its own."""
    reads = node.all_input_nodes

    def alone(*given):
        known = dict(zip(reads, given, strict=True))
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
        return node.target(*args, **kwargs)

    with mode, torch.no_grad():
        return make_fx(alone, table, pre_dispatch=pre_dispatch)(*(read.meta["val"] for read in reads)).graph


def _put(node: Node, parts: Graph) -> None:
    """Puts parts in the place of a node."""
    graph, copies = node.graph, dict(zip(parts.find_nodes(op="placeholder"), node.all_input_nodes, strict=True))
    with graph.inserting_before(node):
        for part in parts.nodes:
            if part.op == "call_function":
                copies[part] = graph.node_copy(part, copies.__getitem__)
                copies[part].meta |= {key: node.meta[key] for key in ("nn_module_stack",) if key in node.meta}
            elif part.op == "output":
                result = torch.fx.node.map_arg(part.args[0], copies.__getitem__)
    _use(node, result)


def _use(node: Node, result) -> None:
    if isinstance(result, Node):
        node.replace_all_uses_with(result)
    else:  # several outputs, of which each has a node
        for user in list(node.users):
            user.replace_all_uses_with(result[user.args[1]])
            user.graph.erase_node(user)
    node.graph.erase_node(node)
