"""Where walks back from the logits may end: the clip, or a layer that Grad-CAM looks at."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.fx import Graph, Node

from ..dataflow import AttachError, op_of, stack_of, where
from ..graph.table import KINDS, op_name
from .walk import ancestors


class Place(NamedTuple):
    """A tensor of the network, as a head names it.

    Attributes:
        layer: module path, of whose output the place is; `None` for the network's own features; `""` for the clip.
        after_relu: what a ReLU behind it makes of it.
    """

    layer: str | None = None
    after_relu: bool = False


CLIP = Place("")

_BY_VALUE = ("add", "mul", "dropout", "relu", "gelu", "silu", "sigmoid", "contiguous", "clone", "alias", "slice")


def find_place(graph: Graph, place: Place, features: Node, logits: Node) -> Node:
    """The node of a place.

    Args:
        graph: the captured network.
        place: what a head asks for.
        features: what the classifier's weights speak about: a grid, or what a fully connected classifier reads.
        logits: `[N, K]`.

    Raises:
        AttachError: the network runs no such module, it has no grid, no ReLU follows it, or the logits do not depend
            on it.
    """
    if place == CLIP:
        node = next(iter(graph.find_nodes(op="placeholder")))
    elif place.layer is not None:
        node = _output_of(graph, place.layer)
    elif features.meta["val"].dim() in (4, 5):
        node = features
    else:
        node = _last_grid(graph, ancestors(logits))
    if place.after_relu:
        relus = [user for user in node.users if op_of(user) == "relu"]
        if not relus:
            raise AttachError(f"explain: after_relu needs a ReLU behind {_named(place, node)}, which has none")
        node = relus[0]
    if place.layer and node.meta["val"].dim() > 3 and _has_channels_last(node):
        node = channels_first(graph, node)
    if node not in ancestors(logits):
        raise AttachError(
            f"explain: layer must be one that the class score depends on, on {_named(place, node)} it does not"
        )
    return node


def channels_first(graph: Graph, node: Node) -> Node:
    """A new node `[N, C, *size]` of one that is `[N, *size, C]`, between that and all that reads it."""
    rank = node.meta["val"].dim()
    moved = _permuted(graph, node, [0, rank - 1, *range(1, rank - 1)])
    back = _permuted(graph, moved, [0, *range(2, rank), 1])
    node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not moved)
    return moved


def _permuted(graph: Graph, node: Node, order: list[int]) -> Node:
    with graph.inserting_after(node):
        moved = graph.call_function(torch.ops.aten.permute.default, (node, order))
    moved.meta = {**node.meta, "val": node.meta["val"].permute(order)}
    return moved


def _has_channels_last(node: Node) -> bool:
    """Whether what made it works on the last axis, as linear layers and layer norms do; sums are what they are of."""
    op = op_of(node)
    if op in ("linear", "layer_norm"):
        return True
    return op in _BY_VALUE and any(_has_channels_last(read) for read in node.all_input_nodes if read.op != "get_attr")


def token_grid(graph: Graph, tokens: Node) -> tuple[int, int, int]:
    """Of tokens `[N, (1 +) t*h*w, C]`: `(t, h, w)`, that of a tensor of the network with as many voxels.

    Raises:
        AttachError: there is none.
    """
    length = tokens.meta["val"].shape[1]
    grids = [tuple(value.shape[2:]) for value in _values(graph) if value.dim() == 5]
    found = [g for g in grids if all(isinstance(n, int) for n in g) and math.prod(g) in (length, length - 1)]
    if not found:
        raise AttachError(
            f"explain: layer must have an output [N, C, t, h, w] or tokens of a grid that the network has, "
            f"got {length} tokens {where(tokens)}"
        )
    return found[-1]


def _output_of(graph: Graph, path: str) -> Node:
    inside = [n for n in graph.nodes if n.op == "call_function" and path in stack_of(n)]
    if not inside:
        paths = {path: None for n in graph.nodes if n.op == "call_function" for path in stack_of(n)[-1:] if path}
        raise AttachError(
            f"explain: layer must name a module that the network runs, got {path!r}. "
            f"Its last ones are {list(paths)[-12:]}"
        )
    value = inside[-1].meta["val"]
    if not hasattr(value, "dim") or value.dim() not in (3, 4, 5):
        raise AttachError(
            f"explain: layer must name a module with an output [N, C, t, h, w], {path!r} gives "
            f"{['N', *getattr(value, 'shape', ['N'])[1:]]}"
        )
    return inside[-1]


def _last_grid(graph: Graph, behind: set[Node]) -> Node:
    """The last convolution's output, behind its batch norm; of a transformer, what its last attention reads."""
    attention = [n for n in graph.nodes if n in behind and op_of(n) in ("softmax", "scaled_dot_product_attention")]
    attention = [n for n in attention if n.args[0].meta["val"].dim() > 2]
    if attention:
        read = ancestors(attention[-1])
        norms = [n for n in graph.nodes if n in read and op_of(n) == "layer_norm" and n.meta["val"].dim() == 3]
        outside = [n for n in norms if ".attn" not in stack_of(n)[-1]]
        if outside or norms:
            return (outside or norms)[-1]
    grids = [n for n in graph.nodes if n in behind and _kind(n) == "conv"]
    if not grids:
        raise AttachError("explain: GradCAM needs a layer with an output [N, C, t, h, w]; name it with layer=")
    node = grids[-1]
    users = list(node.users)
    return users[0] if len(users) == 1 and _kind(users[0]) == "batch_norm" else node


def _kind(node: Node) -> str:
    kind = KINDS.get(op_name(node))
    return kind.name if kind else ""


def _values(graph: Graph):
    return [n.meta["val"] for n in graph.nodes if hasattr(n.meta.get("val"), "dim")]


def _named(place: Place, node: Node) -> str:
    return repr(place.layer) if place.layer else f"'{op_of(node)}' {where(node)}"
