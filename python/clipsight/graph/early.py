"""Places that do not depend on the clip, known as such: a class token that is picked out of all tokens again.

    cat([token, patches], 1) -> + positions -> dropout -> [:, 0]        is        token -> + positions[:, 0]

Read op by op the token seems to come from the patches, and in TimeSformer, where it is picked from the first frames of
the batch, from those of other samples. So what is picked is picked early, where that ends in a part of a concatenation
that no clip changes.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from .table import KINDS, op_name, varying

aten = torch.ops.aten


def pick_early(graph: Graph) -> None:
    """Rewrites every `select` that ends in a part that does not depend on the graph's inputs."""
    depends = varying(graph)
    for node in list(graph.find_nodes(op="call_function", target=aten.select.int)):
        if node in depends and _ends_outside(node.args[0], node.args[1], node.args[2], depends):
            with graph.inserting_before(node):
                node.replace_all_uses_with(_picked(graph, node.args[0], node.args[1], node.args[2]))
            graph.erase_node(node)


def _kind(node: Node) -> str:
    known = node.op == "call_function" and op_name(node) in KINDS
    return KINDS[op_name(node)].name if known else ""


def _part(node: Node, index: int) -> tuple[Node, int] | None:
    """The part of a concatenation that a place lies in, and where in it."""
    axis = node.args[1] if len(node.args) > 1 else 0
    for part in node.args[0]:
        length = part.meta["val"].shape[axis]
        if not isinstance(length, int):
            return None
        if index < length:
            return part, index
        index -= length
    return None


def _axis(node: Node) -> int:
    """Of a slice or a concatenation, from the front."""
    axis = node.args[1] if len(node.args) > 1 else 0
    return axis % node.meta["val"].dim()


def _ends_outside(node: Node, dim: int, index: int, depends: set[Node]) -> bool:
    dim %= node.meta["val"].dim()
    while node in depends:
        kind = _kind(node)
        if kind in ("identity", "dropout") or (kind == "slice" and _axis(node) != dim):
            node = node.args[0]
        elif kind == "add" and _adds_alike(node, depends):
            node = next(read for read in node.args[:2] if read in depends)
        elif kind == "cat" and _axis(node) == dim and index >= 0 and (found := _part(node, index)):
            node, index = found
        else:
            return False
    return True


def _adds_alike(node: Node, depends: set[Node]) -> bool:
    """A sum of the tensor and one that does not depend on the clip, with as many axes."""
    reads = [read for read in node.args[:2] if isinstance(read, Node)]
    ranks = {read.meta["val"].dim() for read in reads}
    return len(reads) == 2 and len(ranks) == 1 and sum(read in depends for read in reads) == 1 and not node.kwargs


def _picked(graph: Graph, node: Node, dim: int, index: int) -> Node:
    """`select(node, dim, index)`, as far in front as it goes."""
    dim %= node.meta["val"].dim()
    kind = _kind(node)
    if kind in ("identity", "dropout"):
        return _again(graph, node, _picked(graph, node.args[0], dim, index), *node.args[1:])
    if kind == "slice" and _axis(node) != dim:
        axis = _axis(node) - (_axis(node) > dim)
        return _again(graph, node, _picked(graph, node.args[0], dim, index), axis, *node.args[2:])
    if kind == "add" and all(isinstance(read, Node) for read in node.args[:2]):
        wide = [0 if read.meta["val"].shape[dim] == 1 else index for read in node.args[:2]]
        return _again(graph, node, *(_picked(graph, r, dim, i) for r, i in zip(node.args[:2], wide, strict=True)))
    if kind == "cat" and _axis(node) == dim and index >= 0 and (found := _part(node, index)):
        return _picked(graph, found[0], dim, found[1])
    return _call(graph, aten.select.int, {}, node, dim, index)


def _again(graph: Graph, node: Node, *args) -> Node:
    return _call(graph, node.target, node.kwargs, *args, meta=node.meta)


def _call(graph: Graph, op, kwargs: dict, *args, meta=None) -> Node:
    node = graph.call_function(op, args, kwargs)
    node.meta = dict(meta or {})
    node.meta["val"] = op(*torch.fx.node.map_arg(args, lambda n: n.meta["val"]), **kwargs)
    return node
