"""`explain`: a network that returns its logits and where it looked, in one forward pass."""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from .attach import Attached, attach
from .dataflow import AttachError, FrameByFrame, capture
from .foreign import in_words_of_ours, not_read, not_run
from .graph.places import Spot
from .heads import Head
from .inputs import as_we_call_it, check_clip, check_model, layout_of, one_of
from .layouts import OURS, size_of
from .scores import Choice, Score
from .sized import LogitsOnly, Size, SizedExplanation, channels_first
from .suspects import mixes_samples, not_finite
from .targets import Target


def explain(
    model: nn.Module,
    methods: Head | Sequence[Head],
    example: Tensor,
    classes: Choice = "predicted",
    *,
    target: Target | None = None,
    head: str | None = None,
    features: str | None = None,
    layout: str | None = None,
) -> ExplainedModel:
    """Makes a module that returns logits and one map per method; the model itself stays as it is.

    Args:
        model: a video classifier in eval mode, `[N, 3, T, H, W]` -> `[N, K]`. A `SaliencyTube` wants means and linear
            layers of one grid of features behind its last nonlinear op, a `FeaturePyramid` a linear layer at the end.
            Or an image classifier, which refuses a clip for its number of axes, and then sees every frame on its own.
            Wrappers for training (`DataParallel`, `DistributedDataParallel`, `AveragedModel`, `torch.compile`) are
            taken off.
        methods: one head or several, such as `SaliencyTube()`, `SelectiveRelevance(of=SaliencyTube())` and
            `FeaturePyramid()`.
        example: a clip `[N, 3, T, H, W]` of the size, dtype and device that the model takes.
        classes: what is explained, for each sample of the batch by itself: `"predicted"`, a list of class indices,
            `"top3"` (the three largest logits), or `"input"`: `forward` then takes an int64 tensor `[N, M]`.
        target: which score of the class: by default its logit, else one of several steps or heads, or against another
            class; and how logits are read as probabilities.
        head: module path of the classifier, for a network with several (verb and noun).
        features: module path of the layer to explain instead of the input of the first mean.
        layout: the order of the axes of the clips that the model takes, `"NCTHW"`, `"NTCHW"` or `"NTHWC"`; by default
            the model's own attribute `layout`, or `"NCTHW"`. The explained model and its files take clips in the same
            order; maps are `[N, M, T, H, W]`.

    Returns:
        A module with `forward(clip[, classes]) -> (logits [N, K], map [N, M, T, H, W], ...)`, named by its
        `output_names`. The logits are what the network says, but in front of a softmax or sigmoid that it ends in.

    Raises:
        AttachError: a head is not defined for the network, or has no rule for an op; or the network has several
            classifiers, of which one must be named; or it cannot run on the example.
        ValueError, TypeError: an argument does not fit; among them an example whose axes look like those of another
            layout, where none is given.
    """
    return ExplainedModel(model, methods, example, classes, target=target, head=head, features=features, layout=layout)


class ExplainedModel(nn.Module):
    """What `explain` returns. It works at any clip size that the model takes; see `at` for a single size.

    Attributes:
        output_names: names of the tensors that `forward` returns, in order.
        output_meanings: one line of text for each of them.
        size: `(T, H, W)` of the example.
        channels: of the clips; 3 for RGB.
        layout: the order of the clips' axes.
        num_classes: K.
        score: what is explained, and how the logits are read.
        maps: M, the number of explained classes; `None` where they are an input.
        classes_input: whether `forward` takes the classes as a second argument.
        median_weight: of the classifier's weights: as tau, it drops half of them.
        temporal_resolution: number of frames t of the feature grid; a map cannot change faster.
        model_name: the class name of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        methods: Head | Sequence[Head],
        example: Tensor,
        classes: Choice = "predicted",
        *,
        target: Target | None = None,
        head: str | None = None,
        features: str | None = None,
        layout: str | None = None,
    ) -> None:
        super().__init__()
        model = check_model(model)
        self.methods = (methods,) if isinstance(methods, Head) else tuple(methods)
        if not self.methods or not all(isinstance(m, Head) for m in self.methods):
            raise TypeError(f"explain: methods must be a head or a list of heads, got {methods!r}")
        self.layout = layout_of(model, layout)
        check_clip(example, self.layout, given=layout is not None or self.layout != OURS)
        self.model_name = type(model).__name__
        self.model = as_we_call_it(model, example, self.layout)
        self.size: Size = size_of(example.shape, self.layout)
        self.head, self.features = head, features
        self.target = _check_target(target, self.methods, head)
        self._sized: dict[tuple[Size, bool], SizedExplanation] = {}
        self._graphs: dict[Size, tuple[GraphModule, Attached]] = {}
        self.channels = example.shape[self.layout.index("C")]
        self._like = {"dtype": example.dtype, "device": example.device}
        self._outside: torch.dtype | None = None

        preprocessing = getattr(model, "preprocessing", None)
        self.methods = tuple(m.for_clips(preprocessing, self.channels) for m in self.methods)
        network, attached = self._graph(self.size)
        with torch.inference_mode(), in_words_of_ours(AttachError, not_run):
            seen = network(channels_first(one_of(example), self.layout))
        logits = seen[0]
        self.score = Score(self.target, classes, logits, attached.head_classes, attached.ending)
        self.num_classes = self.score.num_classes
        weight = rows_of(network, attached)
        self.median_weight = None if weight is None else weight.median().item()
        self.classes_input = self.score.input
        self.maps = self.score.count
        layers = attached.route.layers if attached.route else ()
        self.bound = tuple(m.bind(weight, layers) for m in self.methods)
        self.spots = tuple(_spot(m, attached) for m in self.methods)
        spot = self.spots[0]
        self.feature_shape = (spot["channels"], *spot["grid"])
        self.temporal_resolution = self.feature_shape[1]
        self.output_meanings = _outputs(self.score.meaning_of_logits(), self.bound)
        self.output_names = tuple(self.output_meanings)
        self._warn_of_suspects(network, logits)
        if example.numel() and bool(example.amax() > example.amin()):  # of a blank example nothing can be said
            self._warn_of_blank_maps(seen)
        if self.temporal_resolution == 1 and self.size[0] > 1 and any(m.needs_pooling for m in self.methods):
            warnings.warn(
                f"explain: the features of {self.model_name} have a single frame for a clip of {self.size[0]} frames, "
                "so its maps are constant in time and nothing in them is motion; use a longer clip, or Grad-CAM on an "
                "earlier layer",
                stacklevel=3,
            )

    def forward(
        self,
        clip: Tensor,
        classes: Tensor | None = None,
        tau: Tensor | None = None,
        n_sigma: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """clip `[N, 3, T, H, W]` (and int64 classes `[N, M]` where `classes="input"`) -> tensors by `output_names`.

        The clip's axes are in the order of `layout`.
        tau and n_sigma, float32 `[N]`, replace the thresholds of all methods, sample by sample.
        """
        check_clip(clip, self.layout)
        if clip.shape[self.layout.index("C")] != self.channels:
            where = "" if self.layout == OURS else f" (axes {self.layout})"
            raise ValueError(f"explain: clip must have {self.channels} channels{where}, got {list(clip.shape)}")
        if classes is not None:
            self.score.check(classes, clip.shape[0])
        return self.at(size_of(clip.shape, self.layout))(clip, classes, tau, n_sigma)

    def at(self, size: Size, plugin: bool = True) -> SizedExplanation:
        """The explained model at one clip size: a module fit for tracing and export.

        Args:
            size: `(T, H, W)` of the clips.
            plugin: use the fused kernels of `clipsight.ops`; `False` uses only ops of plain torch.
        """
        key = (tuple(size), plugin)
        if key not in self._sized:
            self._sized[key] = SizedExplanation(
                *self._graph(key[0]),
                self.bound,
                self.score,
                key[0],
                plugin,
                self._like["dtype"],
                self._outside,
                self.layout,
            )
        return self._sized[key]

    def plain_at(self, size: Size) -> nn.Module:
        """The network alone, captured the same way: what the explained model's cost is compared with."""
        return LogitsOnly(self.at(size, plugin=False))

    def given_logits(self, clip: Tensor) -> Tensor:
        """What the network says of a clip as `explain` was given it: its own code, no captured graph.

        An image classifier sees each frame in a call of its own. The clip is copied: code in place may change it.

        Returns:
            To be compared with `as_given` of the logits.
        """
        heads = self._graph(size_of(clip.shape, self.layout))[1].heads

        def said(network: nn.Module, images: Tensor) -> Tensor:
            leaves = torch.utils._pytree.tree_leaves(network(images))
            found = [leaves[head.output] for head in heads]
            found = [logits.unsqueeze(1) if logits.dim() == 1 else logits for logits in found]
            return found[0] if len(found) == 1 else torch.cat(found, self.target.class_axis)

        inside = channels_first(clip, self.layout).to(dtype=self._like["dtype"], copy=True)
        with torch.no_grad():
            if isinstance(self.model, FrameByFrame):
                logits = torch.stack([said(self.model, frame) for frame in inside.split(1, 2)]).mean(0)
            else:
                logits = said(self.model, inside)
        return logits.to(clip.dtype)

    def as_given(self, logits: Tensor) -> Tensor:
        """Logits with the softmax or sigmoid that the network ends in, and that the explained model leaves out."""
        attached, axis = self._graph(self.size)[1], self.target.class_axis
        ends_in = attached.logits.ends_in
        if ends_in in (None, "none"):
            return logits
        if ends_in == "sigmoid":
            return logits.sigmoid()
        function = torch.softmax if ends_in == "softmax" else torch.log_softmax
        parts = logits.split(attached.head_classes or logits.shape[axis], axis)
        return torch.cat([function(part, axis) for part in parts], axis)

    @property
    def input_dtype(self) -> torch.dtype:
        """Of the clips that `forward` takes."""
        return self._outside or self._like["dtype"]

    @property
    def compute_dtype(self) -> torch.dtype:
        """In which the network computes."""
        return self._like["dtype"]

    def in_half(self, dtype: torch.dtype) -> ExplainedModel:
        """A copy whose network has `dtype` weights and computes in it; clips and logits keep their type."""
        result = copy.deepcopy(self)
        result._outside = self.input_dtype
        return result.to(dtype)

    def with_maps_of(self, dtype: str) -> ExplainedModel:
        """The same model with maps of another type, `"float32"`, `"float16"` or `"uint8"`; it shares the weights."""
        result = copy.copy(self)
        result._graphs = self._graphs
        result.methods = tuple(m.with_maps_of(dtype) for m in self.methods)
        result.bound = tuple(m.with_maps_of(dtype) for m in self.bound)
        return result

    def describe(self) -> dict[str, Any]:
        """Methods with all options, classes and feature grid, as the manifest states them; JSON-able."""
        methods = zip(self.methods, self.bound, strict=True)
        return {
            "methods": [(m if m.depth is None else b).describe() for m, b in methods],
            "explains": list(self.spots),
            **self.score.describe(),
            "head": self.head,
            "features": self.features,
            "feature_shape": list(self.feature_shape),
            "temporal_resolution": self.temporal_resolution,
            "num_classes": self.num_classes,
        }

    def _graph(self, size: Size) -> tuple[GraphModule, Attached]:
        if size not in self._graphs:
            graph = capture(self.model, (self.channels, *size), self._like)
            with in_words_of_ours(AttachError, not_read):
                attached = attach(graph, self.model, self.head, self.features, self.methods, self.target)
            self._graphs[size] = graph, attached
        return self._graphs[size]

    def _warn_of_suspects(self, network: GraphModule, logits: Tensor) -> None:
        """Of what `export` would refuse."""
        if not bool(logits.isfinite().all()):
            weight = not_finite(self.model)
            warnings.warn(
                f"explain: the logits of {self.model_name} are not finite for the example: "
                + (weight or "its weights are, so is the example within its range?"),
                stacklevel=4,
            )
        if op := mixes_samples(network.graph):
            warnings.warn(
                f"explain: {op} of {self.model_name} looks at all samples of a batch, so that the logits and maps of "
                "one depend on the others; give it one sample at a time, or statistics that were learnt",
                stacklevel=4,
            )

    def _warn_of_blank_maps(self, seen: tuple[Tensor, ...]) -> None:
        """Of maps that are the same everywhere for the example, as far as they are known before they are up-sampled."""
        with torch.inference_mode():
            logits = seen[0]
            classes = self.score.by_class(logits).argmax(1, keepdim=True) if self.classes_input else None
            evidence = self.at(self.size, plugin=False).evidence(*seen, classes=classes)
            said = [(head, spot, head.blank(evidence)) for head, spot in zip(self.bound, self.spots, strict=True)]
        for head, spot, why in said:
            if why:
                where = f"'{spot['layer']}'" if spot["layer"] else f"the {spot['op']}"
                warnings.warn(
                    f"explain: the map of {head.name} is the same everywhere for the example: of {where}, {why}",
                    stacklevel=4,
                )

    def _apply(self, fn, recurse=True):  # .to(), .half(), .cuda(): the captured graphs hold tensors of their own
        result = super()._apply(fn, recurse)
        self._graphs.clear()
        self._sized.clear()
        probe = next((p for p in self.model.parameters() if p.is_floating_point()), None)
        if probe is not None:
            self._like = {"dtype": probe.dtype, "device": probe.device}
        return result

    def __getstate__(self) -> dict[str, Any]:  # a copy, or another process, captures the graphs anew
        return {**self.__dict__, "_graphs": {}, "_sized": {}}


def rows_of(network: GraphModule, attached: Attached) -> Tensor | None:
    """The class rows, float32 `[K, C]`, where a head looks at some."""
    if "rows" not in attached.names:
        return None
    node = next(iter(reversed(network.graph.nodes))).args[0][attached.names.index("rows")]
    return operator.attrgetter(node.target)(network).detach().flatten(1).float()


def _spot(method: Head, attached: Attached) -> dict[str, Any]:
    """What a head explains: the layer, its channels and its grid `(t, h, w)`."""
    places = method.places()
    if not places and attached.read is not None:
        return Spot(attached.source, attached.read).describe()
    if not places:  # what a fully connected classifier reads
        classifier = attached.logits.classifier
        channels = int(classifier.node.args[1].meta["val"].shape[1])
        return {"layer": classifier.path, "op": classifier.kind.name, "channels": channels, "grid": [1, 1, 1]}
    return attached.spots[places[-1]].describe()


def _outputs(logits: str, methods: Sequence[Head]) -> dict[str, str]:
    outputs = {"logits": logits}
    for method in methods:
        for name, meaning in method.outputs().items():
            unique, copy_number = name, 2
            while unique in outputs:
                unique, copy_number = f"{name}_{copy_number}", copy_number + 1
            outputs[unique] = meaning
    return outputs


def _check_target(target: Target | None, methods: Sequence[Head], head: str | None) -> Target:
    if target is None:
        return Target()
    if not isinstance(target, Target):
        raise TypeError(f"explain: target must be a clipsight.Target, got {type(target).__name__}")
    if target.heads and head is not None:
        raise ValueError(f"explain: head must be left out where target names the heads {target.heads}, got {head!r}")
    rows = [m.name for m in methods if m.needs_pooling or m.depth is not None]
    if rows and target.steps not in (None, "mean"):
        raise ValueError(
            f"explain: target.steps must be 'mean' for {rows[0]}, which weighs all places alike, got {target.steps!r}; "
            "a step or the largest is explained by the methods that go back from the logits, such as Grad-CAM"
        )
    if any(m.depth is not None for m in methods) and target.heads:
        raise ValueError(f"explain: target.heads must be left out for a FeaturePyramid, got {target.heads}")
    return target
