"""Finds where a network can be explained: features, global pooling, classifier.

The network is captured once with `torch.export`, so what is read is the dataflow that really runs - functional calls
as well as modules - and nothing is hooked or changed on the network. From the logits the search walks backwards:

    features [N, C, t, h, w] -> global pooling -> (flatten, dropout) -> linear or 1x1x1 convolution -> (mean) -> logits

and the captured graph is rewired to return `(logits, features, classifier weight)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

aten = torch.ops.aten

# Ops that only pass values on: the walk from the logits towards the features goes through them.
_TRANSPARENT = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.to.dtype,
    aten._to_copy.default,
    aten.softmax.int,
    aten.log_softmax.int,
    aten.sigmoid.default,
    aten.select.int,
}
_LINEAR = {aten.linear.default}
_CONVOLUTION = {aten.conv3d.default, aten.conv2d.default, aten.conv1d.default, aten.convolution.default}
_ADAPTIVE_POOL = {aten.adaptive_avg_pool3d.default, aten.adaptive_avg_pool2d.default}
_WINDOW_POOL = {aten.avg_pool3d.default, aten.avg_pool2d.default}
_MEAN = {aten.mean.dim}
_POOL = _ADAPTIVE_POOL | _WINDOW_POOL | _MEAN


class AttachError(ValueError):
    """The network has no features, pooling and classifier that a Saliency Tube could use, or they must be named."""


class FrameByFrame(nn.Module):
    """A 2-D network on a clip: every frame on its own, the logits averaged over the frames (segment consensus)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clip: Tensor) -> Tensor:
        n, _, t = clip.shape[:3]
        logits = self.network(clip.transpose(1, 2).flatten(0, 1))
        return logits.unflatten(0, (n, t)).mean(1)


@dataclass(frozen=True)
class Classifier:
    """A linear layer, or a convolution with a kernel of one voxel, on the way to one of the network's outputs."""

    name: str  # module path, "" where it is called as a function
    logits: Node
    node: Node


@torch.inference_mode(False)  # a caller's inference mode would make tensors that cannot be traced
def capture(network: nn.Module, shape: Sequence[int], like: dict) -> GraphModule:
    """The network's dataflow at one clip size as a graph of ATen ops, with a free batch size; parameters are shared.

    Args:
        network: in eval mode.
        shape: of one clip, `(channels, T, H, W)`.
        like: its `dtype` and `device`.
    """
    batch = torch.zeros(2, *shape, **like)
    try:
        with torch.no_grad():
            program = torch.export.export(network, (batch,), dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=False)
    except Exception as error:
        raise AttachError(
            f"explain: torch.export could not capture {type(network).__name__} on a clip of shape "
            f"[N, {', '.join(map(str, shape))}]: {error}"
        ) from error
    module = _unlifted(program)
    _free_batch(module.graph)
    module.graph.set_codegen(torch.fx.graph.CodeGen())
    # A module made anew: torch.export's own one checks its inputs in hooks that no tracer can follow.
    return GraphModule(module, module.graph, class_name=type(network).__name__)


def _free_batch(graph: torch.fx.Graph) -> None:
    """Lets tracers follow the batch size: they would bake the values of aten.sym_size and of symbolic view sizes."""
    for node in list(graph.nodes):
        if node.target in (aten.view.default, aten.reshape.default):
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


def _unlifted(program: torch.export.ExportedProgram) -> GraphModule:
    try:
        return program.module(check_guards=False)
    except TypeError:  # torch before 2.9 has no guards to leave out
        return program.module()


def attach(module: GraphModule, network: nn.Module, head: str | None, features: str | None) -> GraphModule:
    """Rewires a captured network to return `(logits [N, K], features, weight [K, C] or [K, C, 1, 1, 1])`.

    Args:
        module: what `capture` returned; changed in place.
        network: the network itself, for the names in error messages.
        head: module path of the classifier, where the network has several or the search does not find it.
        features: module path of the layer whose output is explained; by default the input of the global pooling.

    Raises:
        AttachError: nothing fits; the message lists the candidates.
    """
    graph = module.graph
    classifier = _choose_classifier(graph, network, head)
    source = _output_of(graph, features) if features else _pooling_input(graph, classifier)
    weight = classifier.node.args[1]
    channels, expected = source.meta["val"].shape[1], weight.meta["val"].shape[1]
    if channels != expected:
        raise AttachError(
            f"explain: the features {_where(source)} must have the {expected} channels that the "
            f"classifier '{classifier.name}' reads, got {channels} channels. Its weights say nothing about other "
            f"layers; Grad-CAM is the method for those." + _candidates(graph)
        )
    output = next(iter(reversed(graph.nodes)))
    output.args = ((classifier.logits, source, weight),)
    graph.eliminate_dead_code()
    graph.lint()
    module.recompile()
    return module


# ---- The classifier -------------------------------------------------------------------------------------------------


def _choose_classifier(graph: torch.fx.Graph, network: nn.Module, head: str | None) -> Classifier:
    outputs = [n for n in _leaves(next(iter(reversed(graph.nodes))).args) if isinstance(n, Node)]
    found = [c for c in (_classifier_of(node) for node in outputs) if c is not None]
    if head is not None:
        chosen = [c for c in found if c.name == head or c.name.rpartition(".")[2] == head]
        if len(chosen) != 1:
            raise AttachError(
                f"explain: head must name one classifier of the network, expected one of "
                f"{sorted(c.name for c in found)}, got {head!r}." + _candidates(graph)
            )
        return chosen[0]
    if len(found) > 1:
        names = sorted(c.name for c in found)
        raise AttachError(f"explain: the network has {len(found)} classifiers; choose one with head=, one of {names}")
    if not found:
        raise AttachError(
            "explain: the logits must come from a linear layer or a 1x1x1 convolution behind a global pooling; "
            f"{type(network).__name__} ends otherwise, so Saliency Tubes are not defined for it. Grad-CAM explains "
            "such networks." + _candidates(graph)
        )
    return found[0]


def _classifier_of(logits: Node) -> Classifier | None:
    node = logits
    while True:
        if _is_classifier(node):
            return Classifier(_name(node), logits, node)
        if node.target not in _TRANSPARENT | _POOL:
            return None
        node = node.args[0]


def _is_classifier(node: Node) -> bool:
    if node.op != "call_function":
        return False
    if node.target in _LINEAR:
        return True
    if node.target not in _CONVOLUTION:
        return False
    kernel = node.args[1].meta["val"].shape
    return all(k == 1 for k in kernel[2:]) and kernel[1] == node.args[0].meta["val"].shape[1]


# ---- The features ---------------------------------------------------------------------------------------------------


def _pooling_input(graph: torch.fx.Graph, classifier: Classifier) -> Node:
    node = classifier.node.args[0]
    while node.op == "call_function" and node.target in _TRANSPARENT:
        node = node.args[0]
    if node.target in _POOL:
        source = node.args[0]
        if node.target in _MEAN and _dims(node) == set(range(1, source.meta["val"].dim() - 1)):
            return _channels_first(graph, source)
        if node.target in _MEAN and _dims(node) != set(range(2, source.meta["val"].dim())):
            source = None
    elif classifier.node.target in _CONVOLUTION:
        source = node  # the pooling comes after the classifier: the same sum in the other order
    else:
        source = None
    if source is None or source.meta["val"].dim() not in (4, 5):
        raise AttachError(
            f"explain: a global average pooling over t, h, w must stand in front of the classifier "
            f"'{classifier.name}', got '{_op(node)}' {_where(node)}. Saliency Tubes are not defined for such a head "
            f"(C3D and other fully connected heads); Grad-CAM is. Where there is a pooling after all, name its input "
            f"with features=." + _candidates(graph)
        )
    return source


def _channels_first(graph: torch.fx.Graph, source: Node) -> Node:
    rank = source.meta["val"].dim()
    order = [0, rank - 1, *range(1, rank - 1)]
    with graph.inserting_after(source):
        moved = graph.call_function(aten.permute.default, (source, order))
    moved.meta["val"] = source.meta["val"].permute(order)
    return moved


def _output_of(graph: torch.fx.Graph, path: str) -> Node:
    inside = [n for n in graph.nodes if n.op == "call_function" and path in _stack(n)]
    if not inside:
        raise AttachError(
            f"explain: features must name a module that the network runs, got {path!r}." + _candidates(graph)
        )
    value = inside[-1].meta["val"]
    if not isinstance(value, Tensor) or value.dim() not in (4, 5):
        raise AttachError(
            f"explain: features must name a module with an output [N, C, t, h, w], {path!r} gives "
            f"{list(getattr(value, 'shape', []))}." + _candidates(graph)
        )
    return inside[-1]


# ---- Names for people -----------------------------------------------------------------------------------------------


def _candidates(graph: torch.fx.Graph) -> str:
    heads, layers = {}, {}
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor) or not _name(node):
            continue
        if _is_classifier(node):
            heads[_name(node)] = list(node.args[1].meta["val"].shape[:2])
        elif node.meta["val"].dim() in (4, 5):
            layers[_name(node).rpartition(".")[0] or _name(node)] = ["N", *map(int, node.meta["val"].shape[1:])]
    head_list = ", ".join(f"'{k}' {v}" for k, v in list(heads.items())[-6:]) or "none"
    layer_list = ", ".join(f"'{k}' {v}" for k, v in list(layers.items())[-8:]) or "none"
    return f"\n  candidates for head=: {head_list}\n  candidates for features=: {layer_list}"


def _stack(node: Node) -> list[str]:
    paths = (path for path, _ in (node.meta.get("nn_module_stack") or {}).values())
    return [path.removeprefix("network.") for path in paths]


def _name(node: Node) -> str:
    stack = _stack(node)
    return stack[-1] if stack else ""


def _where(node: Node) -> str:
    return f"in '{_name(node)}'" if _name(node) else f"({node.name})"


def _op(node: Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0]


def _dims(node: Node) -> set[int]:
    rank = node.args[0].meta["val"].dim()
    return {d % rank for d in node.args[1]}


def _leaves(value):
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    else:
        yield value
