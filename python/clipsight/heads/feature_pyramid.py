"""Class Feature Pyramids (Stergiou et al., ICCV-W 2019): the kernels at every depth that led to a class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..convolutions import Convolution, Route
from ..pyramid import METHOD, Layer
from .base import Evidence, Head, check_choice, top_count
from .relevance import Cam

PARTS = {
    "mask": "selected channels of the features that {} reads [N, M, C_in]",
    "multiplicity": "how many selected kernels point at each channel that {} reads [N, M, C_in]",
    "edges": "channels of its group that each selected kernel of {} takes [N, M, C_out, C_in / groups]",
    "volume": "{volumes} of {} [N, M, T, H, W]",
    "chosen": "which ones the volumes of {} show, the most pointed at first [N, M]",
}
VOLUMES = {
    "layer": "selected channels that it reads, averaged with multiplicity",
    "group": "selected channels that it reads, group by group (or branch by branch)",
    "feature": "mean of the selected channels that single kernels read",
    "channel": "single channels that it reads",
}


@dataclass(frozen=True)
class FeaturePyramid(Head):
    """Steps back from the class through the network's convolutions and selects, at each, the kernels that matter.

    The class step keeps the features `c` whose `mean(A[c]) * W[class, c]`, min-max scaled over the channels, reaches
    theta (Eq. 1-2, the sigmoid in its steep limit). Behind every selected kernel `i` of a convolution the channels `j`
    of its input are kept for which `mean(A_in[j]) * mean(K[i, j])`, scaled over the channels that feed `i`, does
    (Eq. 3). Sums hand a selection on to both of their parts, concatenations to the right branch. No gradients.

    Args:
        theta: in 0..1; higher selects less. The paper: 0.55 (ResNet-50), 0.6, 0.65 (I3D).
        depth: layers on the longest path, the classifier included; 1 is the class step alone, `"all"` goes down to the
            first convolution.
        volumes: what is put out at the clip's size for each layer that reads features with an extent: `"layer"`, the
            mean of the selected channels, weighted with their multiplicity; `"group"`, the same within each group of a
            grouped convolution, or else each branch of a concatenation; `"feature"`, for single kernels the mean of the
            channels that they take (for the classifier, always that of the explained class); `"channel"`, single
            channels by themselves; or `"none"`.
        channels: for `"feature"` and `"channel"`: `"top4"`, the 4 most pointed-at of each layer, or pairs
            `(layer, index)`.
        class_step: `"activation"` as above; `"weights"`, as the authors' script: the weights alone, scaled over all
            classes.
        layers: module paths of layers, or of blocks that hold some, to put out; by default all.
        order: 3, cubic B-spline, or 1, trilinear; both align corners.
        normalize: min-max of the volumes over the whole `"clip"`, each `"frame"`, or `"none"`.
        dtype: of the volumes, `"float32"`, `"float16"` or `"uint8"`.

    Raises:
        ValueError: an option is outside its range, or names a layer or channel that does not exist.
        AttachError: the network has an op that does not keep channels apart, runs a layer twice, or is less deep.
    """

    theta: float = 0.6
    depth: int | str = 3
    volumes: str = "layer"
    channels: str | tuple[tuple[str, int], ...] = "top4"
    class_step: str = "activation"
    layers: tuple[str, ...] = ()
    order: int = 3
    normalize: str = "clip"
    dtype: str = "float32"
    found: tuple[Layer, ...] | None = field(default=None, repr=False)  # the layers that are put out, from `bind`

    name: ClassVar[str] = METHOD
    needs_pooling: ClassVar[bool] = False

    def __post_init__(self) -> None:
        layers = (self.layers,) if isinstance(self.layers, str) else self.layers
        object.__setattr__(self, "layers", tuple(layers))
        if not isinstance(self.channels, str):
            object.__setattr__(self, "channels", tuple((str(layer), int(i)) for layer, i in self.channels))
        object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))
        if not 0 <= self.theta <= 1:
            raise ValueError(f"FeaturePyramid: theta must lie in 0..1, got {self.theta}")
        if self.depth != "all" and not (isinstance(self.depth, int) and self.depth >= 1):
            raise ValueError(f"FeaturePyramid: depth must be at least 1, or 'all', got {self.depth!r}")
        check_choice("FeaturePyramid", "volumes", self.volumes, (*VOLUMES, "none"))
        check_choice("FeaturePyramid", "class_step", self.class_step, ("activation", "weights"))
        check_choice("FeaturePyramid", "order", self.order, (1, 3))
        check_choice("FeaturePyramid", "normalize", self.normalize, ("clip", "frame", "none"))
        check_choice("FeaturePyramid", "dtype", self.dtype, ("float32", "float16", "uint8"))
        if self.dtype == "uint8" and self.normalize == "none":
            raise ValueError("FeaturePyramid: dtype 'uint8' needs normalised volumes, got normalize='none'")
        if isinstance(self.channels, str) and top_count(self.channels) < 1:
            raise ValueError(
                f"FeaturePyramid: channels must be pairs (layer, index) or 'top1', 'top2', ..., got {self.channels!r}"
            )

    # ---- what it puts out ----

    def bind(self, weight: Tensor, layers: tuple[Layer, ...]) -> FeaturePyramid:
        deepest = max(layer.depth for layer in layers) if self.depth == "all" else self.depth
        layers = tuple(layer for layer in layers if layer.depth <= deepest)
        for wanted in self.layers:
            if not any(layer.is_in(wanted) for layer in layers):
                raise ValueError(
                    f"FeaturePyramid: layers must name modules with convolutions of depth {deepest} at most, one of "
                    f"{[layer.name for layer in layers]}, got {wanted!r}"
                )
        found = tuple(layer for layer in layers if layer.is_in(*self.layers))
        by_name = {layer.name: layer for layer in found}
        for name, index in () if isinstance(self.channels, str) else self.channels:
            if name not in by_name:
                raise ValueError(f"FeaturePyramid: channels must name layers among {list(by_name)}, got {name!r}")
            count = by_name[name].kernels if self.volumes == "feature" else by_name[name].channels
            if not 0 <= index < count:
                raise ValueError(f"FeaturePyramid: channels of '{name}' must lie in 0..{count - 1}, got {index}")
        return replace(self, found=found)

    def describe(self) -> dict[str, Any]:
        """Name and all options; of a bound head `layers` are the layers themselves."""
        options = {name: value for name, value in asdict(self).items() if name != "found"}
        if self.found is not None:
            options["layers"] = [layer.to_dict() for layer in self.found]
        return {"method": self.name, **options}

    def outputs(self) -> dict[str, str]:
        parts = {}
        for layer in self._layers():
            names = ["mask", "multiplicity", "edges"]
            if self._shown(layer):
                names += ["volume", *["chosen"] * (self._picks and isinstance(self.channels, str))]
            for part in names:
                meaning = PARTS[part].format(layer.name, volumes=VOLUMES.get(self.volumes))
                parts[f"{layer.name}.{part}"] = meaning
        return parts

    def maps(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self._layers() if self._shown(layer))

    # ---- what it computes ----

    def compute(self, evidence: Evidence) -> dict[str, Tensor]:
        results = {}
        steps = self._steps(evidence)
        for layer in self._layers():
            edges, multiplicity = steps[layer.name]
            results[f"{layer.name}.mask"] = multiplicity > 0
            results[f"{layer.name}.multiplicity"] = multiplicity.long()
            results[f"{layer.name}.edges"] = edges
            if self._picks and self._shown(layer) and isinstance(self.channels, str):
                results[f"{layer.name}.chosen"] = self._top(layer, steps, evidence)[0].flatten(1)
        results |= {f"{name}.volume": self.map_of(name, evidence) for name in self.maps()}
        return {name: results[name] for name in self.outputs()}

    def relevance(self, evidence: Evidence) -> dict[str, Cam]:
        key = (self.key(), self.layers)
        if key not in evidence.computed:
            steps, shown = self._steps(evidence), [layer for layer in self._layers() if self._shown(layer)]
            evidence.computed[key] = {layer.name: self._arguments(layer, steps, evidence) for layer in shown}
        return evidence.computed[key]

    def _arguments(self, layer: Layer, steps: dict, evidence: Evidence) -> Cam:
        return Cam(
            features=evidence.read_by(layer.name),
            weight=self._rows(layer, steps, evidence).flatten(1, 2),
            size=evidence.size,
            threshold=None,
            order=self.order,
            relu=False,
            normalize=self.normalize,
            dtype=self.dtype,
        )

    def key(self) -> FeaturePyramid:
        return replace(self, layers=(), found=None)

    def _layers(self) -> tuple[Layer, ...]:
        if self.found is None:
            raise ValueError("FeaturePyramid: its outputs depend on the network; explain() binds them to it")
        return self.found

    @property
    def _picks(self) -> bool:
        """Whether the volumes are those of single kernels or channels."""
        return self.volumes in ("feature", "channel")

    def _shown(self, layer: Layer) -> bool:
        """Whether the layer has volumes."""
        named = isinstance(self.channels, str) or not self._picks or layer.name in dict(self.channels)
        return self.volumes != "none" and layer.grid is not None and named

    def _steps(self, evidence: Evidence) -> dict[str, tuple[Tensor, Tensor]]:
        """By layer: edges, and float32 multiplicity of the channels that it reads; computed once for all heads."""
        key = (self.name, self.theta, self.depth, self.class_step)
        if key not in evidence.computed:
            evidence.computed[key] = dict(_walk(evidence, self.theta, self.depth, self.class_step))
        return evidence.computed[key]

    # ---- the volumes, as weights of the channels `[N, M, V, C]` ----

    def _rows(self, layer: Layer, steps: dict, evidence: Evidence) -> Tensor:
        edges, multiplicity = steps[layer.name]
        if self.volumes == "layer":
            rows = multiplicity.unsqueeze(2)
        elif self.volumes == "group":
            rows = multiplicity.unsqueeze(2) * _parts(layer, multiplicity)
        elif isinstance(self.channels, str):
            index, real = self._top(layer, steps, evidence)
            rows = self._single(layer, edges, index) * real.unsqueeze(-1)
        else:
            index = torch.tensor([i for name, i in self.channels if name == layer.name], device=multiplicity.device)
            rows = self._single(layer, edges, index.expand(*multiplicity.shape[:2], -1))
        return rows / rows.sum(-1, keepdim=True).clamp_min(1)

    def _single(self, layer: Layer, edges: Tensor, index: Tensor) -> Tensor:
        """Rows of single kernels, or of single channels, by index `[N, M, V]`."""
        channels = torch.arange(layer.channels, device=index.device)
        if self.volumes == "channel":
            return (index.unsqueeze(-1) == channels).float()
        if layer.depth == 1:  # one kernel for each class, and only one of them is explained
            return edges.unsqueeze(2).float().expand(-1, -1, index.shape[2], -1)
        width = layer.channels // layer.groups
        rows = edges.gather(2, index.unsqueeze(-1).expand(-1, -1, -1, width)).float()
        group = index.div(layer.kernels // layer.groups, rounding_mode="floor").unsqueeze(-1)
        return rows.repeat(1, 1, 1, layer.groups) * (group == channels.div(width, rounding_mode="floor"))

    def _top(self, layer: Layer, steps: dict, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Index `[N, M, V]` of the kernels or channels with the largest multiplicity, and whether it is not 0."""
        pointed_at = steps[layer.name][1]
        if self.volumes == "feature":
            pointed_at = steps["made by", layer.name]
        count = pointed_at.shape[-1]
        # Runtimes break ties as they like: here the lower index comes first.
        order = torch.arange(count, device=pointed_at.device, dtype=torch.float64)
        top = (pointed_at.double() * count - order).topk(min(top_count(self.channels), count), -1).indices
        return top, pointed_at.gather(-1, top) > 0


def _walk(evidence: Evidence, theta: float, depth: int | str, class_step: str) -> Iterator[tuple[Any, Any]]:
    """Layer name -> (edges, multiplicity of what it reads); `("made by", name)` -> multiplicity of what it makes."""
    route: Route = evidence.route
    edges = _class_step(evidence, theta, class_step)
    counts: dict[int, Tensor] = {route.features: edges.float()}  # of every tensor, how often its channels were selected
    every = {route.head.name: edges}
    for step in route.steps:
        if not isinstance(step, Convolution):
            for read, start, stop in step.parts:
                if step.made in counts:
                    _add(counts, read, counts[step.made][..., start:stop])
        elif depth == "all" or step.layer.depth <= depth:
            made = counts[step.made]
            yield ("made by", step.layer.name), made
            edges, count = _back_step(evidence, step, made > 0, theta)
            every[step.layer.name] = edges
            _add(counts, step.read, count)
    yield ("made by", route.head.name), edges.new_ones(edges.shape[:2], dtype=torch.float32).unsqueeze(-1)
    for layer, read in route.reads.items():
        if layer in every:
            yield layer, (every[layer], counts[read])


def _add(counts: dict[int, Tensor], tensor: int, more: Tensor) -> None:
    counts[tensor] = counts[tensor] + more if tensor in counts else more


def _class_step(evidence: Evidence, theta: float, class_step: str) -> Tensor:
    """Bool `[N, M, C]`: the features of each class."""
    pooled = _pooled(evidence.read_by(evidence.route.head.name))
    rows = _each_channel(evidence.rows, pooled.shape[1])
    if class_step == "weights":
        weight = _each_channel(evidence.weight, pooled.shape[1])
        low, high = weight.min(), weight.max()
        kept = rows - low >= theta * (high - low)
        return kept.expand(len(pooled), -1, -1)
    scores = pooled.unsqueeze(1) * rows
    low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
    kept = scores - low >= theta * (high - low)
    name = f"{evidence.route.head.name}.edges"
    return evidence.decide(name, kept, scores, theta)


def _each_channel(weight: Tensor, channels: int) -> Tensor:
    """`[..., channels * cells]`, of a classifier behind the flattening of a grid, -> mean over the cells."""
    return weight if weight.shape[-1] == channels else weight.unflatten(-1, (channels, -1)).mean(-1)


def _back_step(evidence: Evidence, step: Convolution, selected: Tensor, theta: float) -> tuple[Tensor, Tensor]:
    pooled = _pooled(evidence.read_by(step.layer.name))
    kernel, groups = step.kernel_means(evidence.parameters(step.weight)), step.layer.groups
    edges, count = evidence.ops.back_step(pooled, kernel, selected, theta, groups)
    if evidence.decisions is not None:
        scores = pooled.unflatten(1, (groups, 1, -1)) * kernel.unflatten(0, (groups, -1))
        scores = scores.flatten(1, 2).unsqueeze(1)
        edges = evidence.decide(f"{step.layer.name}.edges", edges, scores, theta) & selected.unsqueeze(-1)
        count = edges.unflatten(2, (groups, -1)).sum(3).flatten(2).float()
    return edges, count


def _pooled(features: Tensor) -> Tensor:
    """Mean over t, h, w: `[N, C, t, h, w]` or `[N, C]` -> float32 `[N, C]`."""
    return features.float().mean((2, 3, 4)) if features.dim() == 5 else features.float()


def _parts(layer: Layer, like: Tensor) -> Tensor:
    """`[V, C]`: 1 where a channel belongs to a group, or else a branch."""
    channels = torch.arange(layer.channels, device=like.device)
    starts, stops = torch.tensor(layer.parts, device=like.device).unsqueeze(-1).unbind(1)
    return ((channels >= starts) & (channels < stops)).to(like.dtype)
