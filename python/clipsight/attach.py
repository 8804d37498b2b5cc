"""Finds where a network can be explained, and rewires its graph to give out the tensors that heads look at.

    clip -> ... -> features [N, C, t, h, w] -> the affine part -> logits [N, K]

What is found is read from one view of the captured dataflow (:mod:`clipsight.graph`): the score, the grid behind which
the network is affine, the convolutions in front of it, and the walks back from the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from .backward.walk import Backward, find_backward
from .convolutions import Route, find_route
from .dataflow import AttachError, follow_sizes, where, without_mutation
from .graph.affine import Features, find_grid, find_rows
from .graph.axes import Grid
from .graph.dataflow import Dataflow, Op
from .graph.places import Place, Spot, find_place
from .graph.score import Score, candidates, choose_score, strip_endings

if TYPE_CHECKING:
    from .heads import Head

ROWS = "_class_rows"


@dataclass(frozen=True)
class Attached:
    """What `attach` found, and which of the rewired graph's outputs is what.

    Attributes:
        score: what is explained.
        names: of the outputs, in order: `"logits"`, `"features"` and `"rows"` where there are some, and the nodes of
            the tensors that routes and walks look at.
        features: the grid of a Saliency Tube, or `None`.
        read: how what the classifier reads becomes `[N, C, t, h, w]`; `None` where it has no extent, or nobody asked.
        route: through the convolutions that a class feature pyramid looks at, or `None`.
        backward: the walks back from the logits that heads asked for, or `None`.
        spots: where heads look, by place.
        linear: the features are averaged and weighted to give the logits, with nothing in between.
    """

    score: Score
    names: tuple[str | Node, ...]
    features: Features | None = None
    read: Grid | None = None
    route: Route | None = None
    backward: Backward | None = None
    spots: Mapping[Place, Spot] = field(default_factory=dict)
    linear: bool = False

    def get(self, outputs: Sequence[Tensor], name: str | Node) -> Tensor | None:
        """One of the outputs of the rewired graph, or `None` where it does not give that."""
        return outputs[self.names.index(name)] if name in self.names else None


def attach(
    module: GraphModule,
    network: nn.Module,
    head: str | None,
    features: str | None,
    methods: Sequence[Head] = (),
) -> Attached:
    """Rewires a captured network to return what heads look at, the logits first; see `Attached.names`.

    Args:
        module: what `capture` returned; changed in place.
        network: the network itself, for the names in error messages.
        head: module path of the classifier, where the network has several or the search does not find it.
        features: module path of the layer whose output is explained; by default the input of the first reduction.
        methods: the heads: whether they need a grid that the classifier's rows speak about; how deep a class feature
            pyramid goes; which walks back from the logits there are.

    Raises:
        AttachError: nothing fits; the message lists the candidates.
    """
    graph, name = module.graph, type(network).__name__
    without_mutation(graph)
    endings = strip_endings(graph)
    flow = Dataflow(graph)
    score = choose_score(flow, endings, name, head)
    depths = [m.depth for m in methods if m.depth is not None]
    pooled = any(m.needs_pooling for m in methods)
    found = _features(module, flow, score, name, pooled)
    source, linear = None if found is None else found.op, found is not None
    if features is not None:
        source = _named_features(flow, features, found, score, bool(pooled or depths))
        linear = found is not None and source is found.op
    if depths and source is None:
        source = _read_by_classifier(flow, score, name)
    route = None
    if depths:
        classifier = _classifier(flow, score, name)
        route = find_route(graph, source.node, classifier.node, "all" if "all" in depths else max(depths))
    walks = [walk for method in methods for walk in method.walks(linear)]
    places = dict.fromkeys((*(place for _, place in walks), *(place for m in methods for place in m.places())))
    grid = source if source is not None and source.grid is not None else None
    spots = {place: find_place(flow, place, score.logits, grid) for place in places}
    stops = {place: spot.op.node for place, spot in spots.items()}
    backward = find_backward(graph, score.logits.node, walks, stops) if stops else None
    outputs: dict[str | Node, Node] = {"logits": score.logits.node}
    if source is not None and (pooled or depths or linear):
        outputs |= {"features": source.node, "rows": _rows(module, found, score)}
    outputs |= {
        node: node for node in (*(route.nodes if route else ()), *(backward.nodes.values() if backward else ()))
    }
    attached = Attached(
        score=score,
        names=tuple(outputs),
        features=found,
        read=None if source is None else source.grid,
        route=route,
        backward=backward,
        spots=spots,
        linear=linear,
    )
    output = next(iter(reversed(graph.nodes)))
    output.args = (tuple(outputs.values()),)
    graph.eliminate_dead_code()
    follow_sizes(graph)
    graph.lint()
    module.recompile()
    return attached


def _features(module: GraphModule, flow: Dataflow, score: Score, name: str, needed: bool) -> Features | None:
    try:
        start = find_grid(flow, score.logits, name)
        return find_rows(module, flow, score.logits, start, name)
    except AttachError as error:
        if not needed:
            return None
        raise AttachError(f"{error}{_others(flow, score)}{candidates(flow)}") from None


def _others(flow: Dataflow, score: Score) -> str:
    """What else is defined for a network without a grid behind which it is affine."""
    try:
        classifier = _classifier(flow, score, "")
        find_route(flow.graph, classifier.inputs[0].node, classifier.node, "all")
    except AttachError:
        return "."
    return "; so does FeaturePyramid."


def _classifier(flow: Dataflow, score: Score, name: str) -> Op:
    if score.classifier is None or score.classifier.kind.name not in ("linear", "conv"):
        raise AttachError(
            f"explain: FeaturePyramid needs logits that come from a linear layer or a 1x1x1 convolution; {name} ends "
            f"otherwise. Grad-CAM explains such networks{candidates(flow)}"
        )
    return score.classifier


def _read_by_classifier(flow: Dataflow, score: Score, name: str) -> Op:
    return _classifier(flow, score, name).inputs[0]


def _named_features(flow: Dataflow, path: str, found: Features | None, score: Score, needed: bool) -> Op:
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
    expected = found.grid.channels if found else op.grid.channels
    if needed and (op.grid.channels != expected or op not in flow.ancestors(score.logits)):
        raise AttachError(
            f"explain: the features {where(op.node)} must have the {expected} channels that the classifier "
            f"'{score.name}' reads, got {op.grid.channels} channels. Its weights say nothing about other layers; "
            "Grad-CAM is the method for those." + candidates(flow)
        )
    return op


def _rows(module: GraphModule, found: Features | None, score: Score) -> Node:
    """The node of the class rows: the classifier's own parameter where they are that, so that files hold it once."""
    if found is None:
        return score.classifier.node.args[1]
    if found.weight is not None:
        return found.weight
    like = next(iter(module.parameters()), found.rows)
    module.register_buffer(ROWS, found.rows.to(like.device), persistent=False)
    first = next(iter(module.graph.nodes))
    with module.graph.inserting_before(first):
        node = module.graph.get_attr(ROWS)
    node.meta["val"] = found.rows
    return node
