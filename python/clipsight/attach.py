"""Finds where a network can be explained, and rewires its graph to give out the tensors that heads look at.

    clip -> ... -> features [N, C, t, h, w] -> the affine part -> logits [N, K]

What is found is read from one view of the captured dataflow (:mod:`clipsight.graph`): the score, the grid behind which
the network is affine, the convolutions in front of it, and the walks back from the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from .backward.walk import Backward, find_backward
from .convolutions import Route, find_route
from .dataflow import AttachError, follow_sizes, in_place_again, where, without_mutation
from .graph.affine import Features, find_grids, find_rows
from .graph.axes import Grid
from .graph.dataflow import Dataflow, Op, side_by_side
from .graph.early import pick_early
from .graph.logits import ENDINGS, Logits, candidates, choose_logits, strip_endings
from .graph.places import Place, Spot, find_place
from .targets import Target

if TYPE_CHECKING:
    from .heads import Head

aten = torch.ops.aten
ROWS = "_class_rows"


@dataclass(frozen=True)
class Attached:
    """What `attach` found, and which of the rewired graph's outputs is what.

    Attributes:
        heads: the network's outputs that are explained, one or, with a target's heads, several.
        names: of the outputs, in order: `"logits"`, `"features"` and `"rows"` where there are some, and the nodes of
            the tensors that routes and walks look at.
        features: the grid of a Saliency Tube, or `None`.
        source: what the class rows are applied to: the features, a layer that was named instead, or what a fully
            connected classifier reads; `None` where there is no such thing.
        route: through the convolutions that a class feature pyramid looks at, or `None`.
        backward: the walks back from the logits that heads asked for, or `None`.
        spots: where heads look, by place.
        linear: the features are averaged and weighted to give the logits, with nothing in between.
        head_classes: number of classes of each of the target's heads, whose logits stand side by side.
    """

    heads: tuple[Logits, ...]
    names: tuple[str | Node, ...]
    features: Features | None = None
    source: Op | None = None
    route: Route | None = None
    backward: Backward | None = None
    spots: Mapping[Place, Spot] = field(default_factory=dict)
    linear: bool = False
    head_classes: tuple[int, ...] = ()

    @property
    def logits(self) -> Logits:
        return self.heads[0]

    @property
    def ending(self) -> str | None:
        """What was taken off the end of the network: `"softmax"`, or its logarithm, or `"sigmoid"`; `"none"` where the
        logits are made of probabilities and are no logits of any."""
        return ENDINGS.get(self.logits.ends_in, self.logits.ends_in)

    @property
    def read(self) -> Grid | None:
        """How the source becomes `[N, C, t, h, w]`; `None` where it has no extent."""
        return None if self.source is None else self.source.grid

    def get(self, outputs: Sequence[Tensor], name: str | Node) -> Tensor | None:
        """One of the outputs of the rewired graph, or `None` where it does not give that."""
        return outputs[self.names.index(name)] if name in self.names else None


def attach(
    module: GraphModule,
    network: nn.Module,
    head: str | None,
    features: str | None,
    methods: Sequence[Head] = (),
    target: Target | None = None,
) -> Attached:
    """Rewires a captured network to return what heads look at, the logits first; see `Attached.names`.

    Args:
        module: what `capture` returned; changed in place.
        network: the network itself, for the names in error messages.
        head: module path of the classifier, where the network has several or the search does not find it.
        features: module path of the layer whose output is explained; by default the input of the first reduction.
        methods: the heads: whether they need a grid that the classifier's rows speak about; how deep a class feature
            pyramid goes; which walks back from the logits there are.
        target: what is explained: of several heads, or of logits per time step.

    Raises:
        AttachError: nothing fits; the message lists the candidates.
    """
    graph, name = module.graph, type(network).__name__
    without_mutation(graph)
    pick_early(graph)
    target = target or Target()
    endings = strip_endings(graph)
    chosen = choose_logits(Dataflow(graph), endings, name, target.heads or [head][: head is not None], _rank(target))
    scores, by_class = _scores(graph, chosen, target)
    flow = Dataflow(graph)
    score, logits = flow.ops[by_class], chosen[0]
    classifier = logits.classifier and flow.ops[logits.classifier.node]
    depths = [m.depth for m in methods if m.depth is not None]
    pooled = any(m.needs_pooling for m in methods)
    found = _features(module, flow, score, classifier, name, pooled)
    source, linear = None if found is None else side_by_side(graph, found.ops), found is not None
    if features is not None:
        source = _named_features(flow, features, found, score, logits.name, bool(pooled or depths))
        linear = found is not None and (source,) == found.ops
    if depths and source is None:
        source = _layer(flow, classifier, name).inputs[0]
    route = None
    if depths:
        classifier = _layer(flow, classifier, name)
        route = find_route(flow, source, classifier, "all" if "all" in depths else max(depths))
    walks = [walk for method in methods for walk in method.walks(linear)]
    places = dict.fromkeys((*(place for _, place in walks), *(place for m in methods for place in m.places())))
    grid = source if source is not None and source.grid is not None else None
    walked = {place for _, place in walks if grid is not None and grid.node not in flow.ops}  # it only ends at ops
    spots = {p: find_place(flow, p, flow.ops[scores], None if p in walked else grid) for p in places}
    stops = {place: spot.op.node for place, spot in spots.items()}
    backward = find_backward(graph, scores, walks, stops) if stops else None
    outputs: dict[str | Node, Node] = {"logits": scores}
    if source is not None and (pooled or depths or linear):
        outputs |= {"features": source.node, "rows": _rows(module, found, classifier)}
    outputs |= {
        node: node for node in (*(route.nodes if route else ()), *(backward.nodes.values() if backward else ()))
    }
    attached = Attached(
        heads=chosen,
        names=tuple(outputs),
        features=found,
        source=source,
        route=route,
        backward=backward,
        spots=spots,
        linear=linear and target.steps is None,
        head_classes=tuple(_classes(x.op.node, target) for x in chosen) if target.heads else (),
    )
    output = next(iter(reversed(graph.nodes)))
    output.args = (tuple(outputs.values()),)
    graph.eliminate_dead_code()
    in_place_again(graph)
    follow_sizes(graph)
    graph.lint()
    module.recompile()
    return attached


def _rank(target: Target) -> int:
    return len(target.layout or "NK")


def _classes(logits: Node, target: Target) -> int:
    return int(logits.meta["val"].shape[target.class_axis])


def _scores(graph: Graph, chosen: Sequence[Logits], target: Target) -> tuple[Node, Node]:
    """The logits, of several heads side by side; and what the class rows are about: their mean over time steps."""
    nodes = [logits.op.node for logits in chosen]
    shapes = [f"[{', '.join(['N', *map(str, node.meta['val'].shape[1:])])}]" for node in nodes]
    if any(node.meta["val"].dim() != _rank(target) for node in nodes):
        raise AttachError(
            f"explain: the logits must have shape [{', '.join(target.layout or 'NK')}]"
            f"{' by target.layout' if target.layout else ''}, got {', '.join(shapes)}; of logits per time "
            "step target=Target(steps='mean', layout='NKT') or 'NTK' says what is explained"
        )
    if len({logits.ends_in for logits in chosen}) > 1:
        raise AttachError(f"explain: target.heads must end alike, got {[x.ends_in or 'logits' for x in chosen]}")
    with graph.inserting_before(next(iter(reversed(graph.nodes)))):
        scores = nodes[0] if len(nodes) == 1 else _call(graph, aten.cat.default, nodes, target.class_axis)
        if target.steps is None:
            return scores, scores
        by_class = scores
        if target.layout == "NT":
            by_class = _call(graph, aten.unsqueeze.default, by_class, 1)
        return scores, _call(graph, aten.mean.dim, by_class, [1 if target.layout == "NTK" else 2])


def _call(graph: Graph, op, *args) -> Node:
    node = graph.call_function(op, args)
    values = torch.fx.node.map_arg(args, lambda n: n.meta["val"])
    node.meta["val"] = op(*values)
    return node


def _features(
    module: GraphModule, flow: Dataflow, score: Op, classifier: Op | None, name: str, needed: bool
) -> Features | None:
    try:
        return find_rows(module, flow, score, find_grids(flow, score, name), name)
    except AttachError as error:
        if not needed:
            return None
        raise AttachError(f"{error}{_others(flow, classifier)}{candidates(flow)}") from None


def _others(flow: Dataflow, classifier: Op | None) -> str:
    """What else is defined for a network without a grid behind which it is affine."""
    try:
        layer = _layer(flow, classifier, "")
        find_route(flow, layer.inputs[0], layer, "all")
    except AttachError:
        return "."
    return "; so does FeaturePyramid."


def _layer(flow: Dataflow, classifier: Op | None, name: str) -> Op:
    if classifier is None or classifier.kind.name not in ("linear", "conv"):
        raise AttachError(
            f"explain: FeaturePyramid needs logits that come from a linear layer or a 1x1x1 convolution; {name} ends "
            f"otherwise. Grad-CAM explains such networks{candidates(flow)}"
        )
    return classifier


def _named_features(flow: Dataflow, path: str, found: Features | None, score: Op, head: str, needed: bool) -> Op:
    """The output of a module, instead of the features that were found.

    The rows say something about it only if it has the same channels, in front of the features.
    """
    op = flow.output_of(path, "features")
    if op.grid is None:
        raise AttachError(
            f"explain: features must name a module with an output [N, C, t, h, w], {path!r} gives "
            f"{['N', *op.shape[1:]]}" + candidates(flow)
        )
    if needed and found is None:
        raise AttachError(
            f"explain: features={path!r} has no meaning here: the class scores are no weighted sum of any grid. "
            f"Grad-CAM explains such networks: GradCAM(layer={path!r})" + candidates(flow)
        )
    expected = found.channels if found else op.grid.channels
    if needed and (op.grid.channels != expected or op not in flow.ancestors(score)):
        raise AttachError(
            f"explain: the features {where(op.node)} must have the {expected} channels that the classifier "
            f"'{head}' reads, got {op.grid.channels} channels. Its weights say nothing about other layers; "
            "Grad-CAM is the method for those." + candidates(flow)
        )
    return op


def _rows(module: GraphModule, found: Features | None, classifier: Op) -> Node:
    """The node of the class rows: the classifier's own parameter where they are that, so that files hold it once."""
    if found is None:
        return classifier.node.args[1]
    if found.weight is not None:
        return found.weight
    like = next(iter(module.parameters()), found.rows)
    module.register_buffer(ROWS, found.rows.to(like.device), persistent=False)
    first = next(iter(module.graph.nodes))
    with module.graph.inserting_before(first):
        node = module.graph.get_attr(ROWS)
    node.meta["val"] = found.rows
    return node
