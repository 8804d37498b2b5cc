"""Finds where a network can be explained: features, global pooling, classifier, and the convolutions before them.

From the logits the search walks backwards through the captured dataflow (:mod:`clipsight.dataflow`):

    features [N, C, t, h, w] -> global pooling -> (flatten, dropout) -> linear or 1x1x1 convolution -> (mean) -> logits

and the graph is rewired to return `(logits, features, classifier weight)`, and behind them the tensors that a class
feature pyramid looks at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from .backward.places import Place, channels_first, find_place, token_grid
from .backward.walk import Backward, find_backward
from .convolutions import Route, find_route
from .dataflow import AttachError, follow_sizes, name_of, op_of, stack_of, where, without_mutation
from .targets import Target

if TYPE_CHECKING:
    from .heads import Head

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
    aten.dropout_.default,
    aten.feature_dropout.default,
    aten.to.dtype,
    aten._to_copy.default,
    aten.softmax.int,
    aten.log_softmax.int,
    aten.sigmoid.default,
    aten.select.int,
}
_CURVED = {aten.softmax.int, aten.log_softmax.int, aten.sigmoid.default}  # of these, those that are not linear
_LINEAR = {aten.linear.default}
_CONVOLUTION = {aten.conv3d.default, aten.conv2d.default, aten.conv1d.default, aten.convolution.default}
_ADAPTIVE_POOL = {aten.adaptive_avg_pool3d.default, aten.adaptive_avg_pool2d.default}
_WINDOW_POOL = {aten.avg_pool3d.default, aten.avg_pool2d.default}
_MEAN = {aten.mean.dim}
_AXES = {aten.permute.default}
_SWAPS = {aten.permute.default, aten.transpose.int}
_CUTS = {aten.select.int, aten.slice.Tensor}
_ENDINGS = {aten.softmax.int: "softmax", aten.log_softmax.int: "softmax", aten.sigmoid.default: "sigmoid"}
_POOL = _ADAPTIVE_POOL | _WINDOW_POOL | _MEAN


@dataclass(frozen=True)
class Classifier:
    """A linear layer, or a convolution with a kernel of one voxel, on the way to one of the network's outputs."""

    name: str  # module path, "" where it is called as a function
    logits: Node  # without the softmax or sigmoid that the network ends in
    node: Node
    ending: str | None = None  # which it was; "none" where one lies further inside


@dataclass(frozen=True)
class Attached:
    """What `attach` found.

    Attributes:
        route: through the convolutions that a class feature pyramid looks at, or `None`.
        backward: the walks back from the logits that heads asked for, or `None`.
        linear: the features are averaged and weighted to give the logits, with nothing in between.
        tokens: `(t, h, w)` of the places where heads look at the tokens of a transformer.
        ending: what was taken off the end of the network: `"softmax"`, or its logarithm, or `"sigmoid"`; `"none"` where
            the logits are made of probabilities and are no logits of any.
        head_classes: number of classes of each of the target's heads, whose logits stand side by side.
    """

    route: Route | None = None
    backward: Backward | None = None
    linear: bool = False
    tokens: Mapping[Place, tuple[int, int, int]] = field(default_factory=dict)
    ending: str | None = None
    head_classes: tuple[int, ...] = ()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Of the tensors that the heads read besides the features: those of the route, then those of the walks."""
        return (*(self.route.nodes if self.route else ()), *(self.backward.nodes.values() if self.backward else ()))


def attach(
    module: GraphModule,
    network: nn.Module,
    head: str | None,
    features: str | None,
    methods: Sequence[Head] = (),
    target: Target | None = None,
) -> Attached:
    """Rewires a captured network to return `(logits [N, K], features, weight [K, C] or [K, C, 1, 1, 1], *nodes)`.

    The logits are what the network says, but in front of a softmax or sigmoid at its very end; those of logits per time
    step have three axes.

    Args:
        module: what `capture` returned; changed in place.
        network: the network itself, for the names in error messages.
        head: module path of the classifier, where the network has several or the search does not find it.
        features: module path of the layer whose output is explained; by default the input of the global pooling.
        methods: the heads: whether the features must be pooled over t, h, w in front of the classifier, or may be
            whatever it reads; how deep a class feature pyramid goes; which walks back from the logits there are.
        target: what is explained: of several heads, or of logits per time step.

    Returns:
        What the heads need to know; its nodes are the further outputs.

    Raises:
        AttachError: nothing fits; the message lists the candidates.
    """
    graph = module.graph
    depths = [m.depth for m in methods if m.depth is not None]
    pooled = any(m.needs_pooling for m in methods)
    if depths or any(m.places() for m in methods):
        without_mutation(graph)
    target = target or Target()
    classifiers = _choose_classifiers(graph, network, head, target)
    classifier = classifiers[0]
    source = _output_of(graph, features) if features else _features(graph, classifier, pooled)
    logits, weight = classifier.logits, classifier.node.args[1]
    if target.heads:
        if pooled:
            _check_same_features(classifiers)
        logits, weight = _side_by_side(graph, classifiers, target)
    channels, expected = source.meta["val"].shape[1], weight.meta["val"].shape[1]
    if channels != expected and (pooled or depths):
        raise AttachError(
            f"explain: the features {where(source)} must have the {expected} channels that the "
            f"classifier '{classifier.name}' reads, got {channels} channels. Its weights say nothing about other "
            f"layers; Grad-CAM is the method for those." + _candidates(graph)
        )
    route = find_route(graph, source, classifier.node, "all" if "all" in depths else max(depths)) if depths else None
    linear = (
        target.steps is None and source.meta["val"].dim() > 2 and all(_is_linear(c.logits, source) for c in classifiers)
    )
    walks = [walk for method in methods for walk in method.walks(linear)]
    places = dict.fromkeys((*(place for _, place in walks), *(place for m in methods for place in m.places())))
    stops = {place: find_place(graph, place, source, logits) for place in places}
    backward = find_backward(graph, logits, walks, stops) if stops else None
    tokens = {p: token_grid(graph, node) for p, node in stops.items() if node.meta["val"].dim() == 3}
    sizes = tuple(_classes_of(c, target) for c in classifiers) if target.heads else ()
    attached = Attached(route, backward, linear, tokens, classifier.ending, sizes)
    output = next(iter(reversed(graph.nodes)))
    output.args = ((logits, _as_grid(graph, source, classifier), weight, *attached.nodes),)
    graph.eliminate_dead_code()
    follow_sizes(graph)
    graph.lint()
    module.recompile()
    return attached


# ---- The classifier -------------------------------------------------------------------------------------------------


def _choose_classifiers(
    graph: torch.fx.Graph, network: nn.Module, head: str | None, target: Target
) -> tuple[Classifier, ...]:
    """The one that `head` names, or those of the target's heads, in their order."""
    outputs = [n for n in _leaves(next(iter(reversed(graph.nodes))).args) if isinstance(n, Node)]
    found = _once_each([c for c in (_classifier_of(graph, node) for node in outputs) if c is not None], target)
    if head is not None or target.heads:
        return tuple(_named(found, name, graph) for name in target.heads or (head,))
    if len(found) > 1:
        names = sorted(c.name for c in found)
        raise AttachError(
            f"explain: the network has {len(found)} classifiers; choose one with head=, one of {names}, or several "
            "with target=Target(heads=[...])"
        )
    if not found:
        raise AttachError(
            "explain: the logits must come from a linear layer or a 1x1x1 convolution behind a global pooling; "
            f"{type(network).__name__} ends otherwise, so Saliency Tubes are not defined for it. Grad-CAM explains "
            "such networks." + _candidates(graph)
        )
    return (found[0],)


def _named(found: Sequence[Classifier], head: str, graph: torch.fx.Graph) -> Classifier:
    chosen = [c for c in found if c.name == head or c.name.rpartition(".")[2] == head]
    if len(chosen) != 1:
        raise AttachError(
            f"explain: head must name one classifier of the network, expected one of "
            f"{sorted(c.name for c in found)}, got {head!r}." + _candidates(graph)
        )
    return chosen[0]


def _once_each(found: Sequence[Classifier], target: Target) -> list[Classifier]:
    """Of several outputs of one classifier, as logits and probabilities, the one that has the target's axes.

    What any of them ends in says how the logits are read.
    """
    rank = len(target.layout or "NK")
    by_node: dict[Node, list[Classifier]] = {}
    for classifier in found:
        by_node.setdefault(classifier.node, []).append(classifier)
    chosen = []
    for same in by_node.values():
        best = next((c for c in same if c.logits.meta["val"].dim() == rank), same[0])
        endings = [c.ending for c in same if c.ending and c.logits is best.logits]
        chosen.append(replace(best, ending=endings[0] if endings else None))
    return chosen


def _classifier_of(graph: torch.fx.Graph, output: Node) -> Classifier | None:
    logits, ending = _without_ending(graph, output)
    node = logits
    passed = _TRANSPARENT | _POOL | (_SWAPS if _rank(logits) == 3 else set())
    while not _is_classifier(node):
        if node.target not in passed and not _keeps_values(node):
            return None
        if node.target in _CURVED:  # the mean of probabilities, say: to be read as it is
            ending = "none"
        node = node.args[0]
    if _rank(logits) == 1:  # one logit, without an axis for it
        logits = _with_axis(graph, logits)
    return Classifier(name_of(node), logits, node, ending)


def _without_ending(graph: torch.fx.Graph, output: Node) -> tuple[Node, str | None]:
    """The output as it is without a softmax over the classes, or a sigmoid, at the very end; and which of them."""
    node, shapes = output, []
    while _keeps_values(node):
        shapes.append(node)
        node = node.args[0]
    ending = _ENDINGS.get(node.target)
    rank = _rank(node) if ending else 0
    over_classes = ending == "sigmoid" or (ending and node.args[1] % rank in (1, rank - 1) and rank > 1)
    if not over_classes or not isinstance(node.args[0], Node):
        return output, None
    bare = node.args[0]
    for before, shape in zip([node, *reversed(shapes)], reversed(shapes), strict=False):
        with graph.inserting_after(shape):
            bare = graph.node_copy(shape, lambda n, before=before, bare=bare: bare if n is before else n)
    return bare, ending


def _with_axis(graph: torch.fx.Graph, logits: Node) -> Node:
    """`[N]` as `[N, 1]`: what it was, where it has lost an axis of one."""
    before = logits
    while _keeps_values(before):
        before = before.args[0]
        if _rank(before) == 2:
            return before
    with graph.inserting_after(logits):
        wide = graph.call_function(aten.unsqueeze.default, (logits, 1))
    wide.meta = {**logits.meta, "val": logits.meta["val"].unsqueeze(1)}
    return wide


def _keeps_values(node: Node) -> bool:
    """An op that gives each sample's values as they are, in another shape at most; also a mean of one value each."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return False
    if node.target not in (_TRANSPARENT - _CURVED) | _CUTS | _MEAN | _ADAPTIVE_POOL:
        return False
    before, after = (n.meta["val"].shape[1:] for n in (node.args[0], node))
    return math.prod(before) == math.prod(after) and all(isinstance(n, int) for n in (*before, *after))


def _side_by_side(graph: torch.fx.Graph, classifiers: Sequence[Classifier], target: Target) -> tuple[Node, Node]:
    """The logits of several heads as one tensor, and their weights, as new nodes at the end of the graph."""
    axis = _class_axis(target)
    logits = [c.logits for c in classifiers]
    weights = [c.node.args[1] for c in classifiers]
    if any(_rank(n) != len(target.layout or "NK") for n in logits):
        shapes = [["N", *map(int, n.meta["val"].shape[1:])] for n in logits]
        raise AttachError(f"explain: the logits of target.heads must have the axes of target.layout, got {shapes}")
    if len({c.ending for c in classifiers}) > 1:
        raise AttachError(f"explain: target.heads must end alike, got {[c.ending or 'logits' for c in classifiers]}")
    with graph.inserting_before(next(iter(reversed(graph.nodes)))):
        joined = graph.call_function(aten.cat.default, (logits, axis))
        rows = weights
        if len({n.meta["val"].shape[1] for n in weights}) == 1:  # else no tube asks for them
            rows = [graph.call_function(aten.flatten.using_ints, (n, 1)) for n in weights]
            for row, weight in zip(rows, weights, strict=True):
                row.meta = {"val": weight.meta["val"].flatten(1)}
            rows = [graph.call_function(aten.cat.default, (rows, 0))]
            rows[0].meta = {"val": torch.cat([n.meta["val"].flatten(1) for n in weights])}
    joined.meta = {**logits[-1].meta, "val": torch.cat([n.meta["val"] for n in logits], axis)}
    return joined, rows[0]


def _check_same_features(classifiers: Sequence[Classifier]) -> None:
    """Raises an AttachError where the rows of several heads are not those of one grid."""

    def read(classifier: Classifier) -> Node:
        node = classifier.node.args[0]
        while node.op == "call_function" and node.target in _TRANSPARENT:
            node = node.args[0]
        return node.args[0] if node.target in _POOL else node

    first = read(classifiers[0])
    for classifier in classifiers[1:]:
        if read(classifier) is not first:
            raise AttachError(
                f"explain: target.heads must read the same features for a Saliency Tube, got '{classifier.name}' with "
                f"others than '{classifiers[0].name}'; Grad-CAM with layer= explains such heads"
            )


def _class_axis(target: Target) -> int:
    return 2 if target.layout == "NTK" else 1


def _classes_of(classifier: Classifier, target: Target) -> int:
    return int(classifier.logits.meta["val"].shape[_class_axis(target)])


def _as_grid(graph: torch.fx.Graph, source: Node, classifier: Classifier) -> Node:
    """What a classifier of time steps reads, `[N, t, C]` or `[N, C, t]`, as `[N, C, t, 1, 1]`; all else as it is."""
    if _rank(source) != 3:
        return source
    with graph.inserting_before(next(iter(reversed(graph.nodes)))):
        if classifier.node.target in _LINEAR:
            source, value = graph.call_function(aten.permute.default, (source, [0, 2, 1])), source.meta["val"]
            source.meta = {"val": value.permute(0, 2, 1)}
        for _ in range(2):
            source, value = graph.call_function(aten.unsqueeze.default, (source, -1)), source.meta["val"]
            source.meta = {"val": value.unsqueeze(-1)}
    return source


def _rank(node: Node) -> int:
    return node.meta["val"].dim()


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


def _features(graph: torch.fx.Graph, classifier: Classifier, pooled: bool) -> Node:
    try:
        return _pooling_input(graph, classifier)
    except AttachError:
        if pooled:
            raise
        return classifier.node.args[0]


def _pooling_input(graph: torch.fx.Graph, classifier: Classifier) -> Node:
    node = classifier.node.args[0]
    while node.op == "call_function" and node.target in _TRANSPARENT:
        node = node.args[0]
    if node.target in _POOL:
        source = node.args[0]
        rank = source.meta["val"].dim()
        if rank in (4, 5) and node.target in _MEAN and _dims(node) == set(range(1, rank - 1)):
            return channels_first(graph, source)
        if node.target in _MEAN and _dims(node) != set(range(2, source.meta["val"].dim())):
            source = None
    elif classifier.node.target in _CONVOLUTION:
        source = node  # the pooling comes after the classifier: the same sum in the other order
    else:
        source = None
    if source is None or source.meta["val"].dim() not in (4, 5):
        raise AttachError(
            f"explain: a global average pooling over t, h, w must stand in front of the classifier "
            f"'{classifier.name}', got '{op_of(node)}' {where(node)}. Saliency Tubes are not defined for such a head "
            f"(fully connected, as in C3D, or on a class token, as in MViT); "
            f"{_others(graph, classifier)}. Where there is a pooling after all, name its input with features=."
            + _candidates(graph)
        )
    return source


def _others(graph: torch.fx.Graph, classifier: Classifier) -> str:
    """Which methods are defined for a network without a global pooling."""
    without_mutation(graph)
    try:
        find_route(graph, classifier.node.args[0], classifier.node, "all")
    except AttachError:
        return "Grad-CAM is"
    return "FeaturePyramid and Grad-CAM are"


def _is_linear(logits: Node, features: Node) -> bool:
    """Whether only averages and one layer's weights lie between the features and the logits."""
    node = logits
    while node is not features:
        if node.target in _CURVED or node.target not in _TRANSPARENT | _POOL | _LINEAR | _CONVOLUTION | _AXES:
            return False
        node = node.args[0]
    return True


def _output_of(graph: torch.fx.Graph, path: str) -> Node:
    inside = [n for n in graph.nodes if n.op == "call_function" and path in stack_of(n)]
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
        if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor) or not name_of(node):
            continue
        if _is_classifier(node):
            heads[name_of(node)] = list(node.args[1].meta["val"].shape[:2])
        elif node.meta["val"].dim() in (4, 5):
            layers[name_of(node).rpartition(".")[0] or name_of(node)] = ["N", *map(int, node.meta["val"].shape[1:])]
    head_list = ", ".join(f"'{k}' {v}" for k, v in list(heads.items())[-6:]) or "none"
    layer_list = ", ".join(f"'{k}' {v}" for k, v in list(layers.items())[-8:]) or "none"
    return f"\n  candidates for head=: {head_list}\n  candidates for features=: {layer_list}"


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
