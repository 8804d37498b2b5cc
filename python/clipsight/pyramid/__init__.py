"""A class feature pyramid (Stergiou et al., 2019) as NumPy arrays: which kernels, at every depth, led to a class.

`FeaturePyramid` (:mod:`clipsight.heads.feature_pyramid`) computes it inside the network; here its outputs, from the
network or from an exported file, become an object for tables, graphs and pictures. Nothing here needs torch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

METHOD = "feature_pyramid"
PARTS = ("mask", "multiplicity", "edges", "volume")  # of a layer: outputs are named "<layer>.<part>"


@dataclass(frozen=True)
class Source:
    """Channels `start` to `stop` (excluded) of what a layer reads are the kernels `first`, `first + 1`, ... of `layer`.

    Batch norm, activations, pooling and identity shortcuts in between keep the indices; a concatenation shifts them.
    """

    layer: str
    start: int
    stop: int
    first: int = 0


@dataclass(frozen=True)
class Layer:
    """A convolution (or fully connected layer) that the pyramid steps back through; the first one is the classifier.

    Attributes:
        name: module path.
        depth: 1 for the classifier (the class step), then one more for every convolution on the longest path.
        kernels: number of output channels; of the classifier, the number of classes.
        channels: number of channels of the features that it reads.
        groups: of the convolution. A kernel reads only the `channels / groups` channels of its own group.
        grid: `(t, h, w)` of the features that it reads, or `None` where they have no extent in space and time.
        sources: where the channels of these features come from; empty where they are the clip's.
        branches: `(start, stop)` of the parts that a concatenation put side by side in these features, if one did.
    """

    name: str
    depth: int
    kernels: int
    channels: int
    groups: int = 1
    grid: tuple[int, int, int] | None = None
    sources: tuple[Source, ...] = ()
    branches: tuple[tuple[int, int], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Layer:
        return cls(
            **values
            | {
                "grid": values["grid"] and tuple(values["grid"]),
                "sources": tuple(Source(**source) for source in values["sources"]),
                "branches": tuple(map(tuple, values["branches"])),
            }
        )

    @property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """`(start, stop)` of the groups of what it reads, or else of its branches; without either, all of it."""
        if self.groups == 1 and self.branches:
            return self.branches
        width = self.channels // self.groups
        return tuple((group * width, (group + 1) * width) for group in range(self.groups))

    def is_in(self, *modules: str) -> bool:
        """Whether it is one of these modules or lies in one; without any, it is."""
        return not modules or any(f"{self.name}.".startswith(f"{module}.") for module in modules)

    def reads(self, kernel: int) -> slice:
        """The channels in the group of one kernel."""
        width = self.channels // self.groups
        group = kernel // (self.kernels // self.groups)
        return slice(group * width, (group + 1) * width)


@dataclass(frozen=True)
class Step:
    """What one layer contributes to one class of one clip.

    Attributes:
        layer: which one.
        mask: bool `[channels]`, the selected channels of the features that it reads.
        multiplicity: int64 `[channels]`, how many selected kernels (of all layers that read them) point at each.
        edges: bool `[kernels, channels / groups]`, which channels of its own group each selected kernel takes.
        volumes: float32 `[V, T, H, W]`, the head's volumes of this layer, or `None`.
    """

    layer: Layer
    mask: np.ndarray
    multiplicity: np.ndarray
    edges: np.ndarray
    volumes: np.ndarray | None = None

    @property
    def kernels(self) -> np.ndarray:
        """Indices of the selected kernels."""
        return np.flatnonzero(self.edges.any(1))

    def connections(self, kernel: int) -> np.ndarray:
        """Indices of the channels that one kernel takes, among all channels that the layer reads."""
        return np.flatnonzero(self.edges[kernel]) + self.layer.reads(kernel).start


@dataclass(frozen=True)
class Pyramid:
    """The steps of one class of one clip, by depth, the class step first."""

    class_index: int
    label: str
    steps: tuple[Step, ...]

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __getitem__(self, name: str) -> Step:
        return next(step for step in self.steps if step.layer.name == name)

    @classmethod
    def from_outputs(
        cls,
        layers: Sequence[Layer | Mapping[str, Any]],
        outputs: Mapping[str, np.ndarray],
        class_index: int,
        label: str | None = None,
        sample: int = 0,
        position: int = 0,
    ) -> Pyramid:
        """From arrays by output name, `[N, M, ...]`.

        Args:
            layers: of the head, as `FeaturePyramid.describe()` and the manifest's `methods` list them.
            outputs: what the network or the exported file returned.
            class_index: the class that was explained at `position`.
            label: its name.
            sample: index into the batch.
            position: index into the explained classes M.
        """
        steps = []
        for layer in layers:
            layer = layer if isinstance(layer, Layer) else Layer.from_dict(layer)
            parts = {part: outputs.get(f"{layer.name}.{part}") for part in PARTS}
            mask, multiplicity, edges = (np.asarray(parts[part])[sample, position] for part in PARTS[:3])
            if layer.depth == 1:  # the class step: one kernel, that of the class
                rows = np.zeros((layer.kernels, layer.channels), bool)
                rows[class_index] = edges
                edges = rows
            volumes = parts["volume"]
            if volumes is not None:
                each = volumes.shape[1] // np.asarray(parts["mask"]).shape[1]
                volumes = np.asarray(volumes[sample, position * each : (position + 1) * each], np.float32)
            steps.append(Step(layer, mask, multiplicity, edges, volumes))
        return cls(class_index, label if label is not None else f"class {class_index}", tuple(steps))

    @functools.cached_property
    def graph(self) -> tuple[list[dict[str, Any]], np.ndarray]:
        """Nodes and edges of the dependency graph, see :func:`clipsight.pyramid.graph.build`; not to be changed."""
        from .graph import build

        return build(self)

    def table(self) -> list[dict[str, Any]]:
        """One row for each selected kernel: depth, layer, index, number of connections to the layer before."""
        return [
            {"depth": s.layer.depth, "layer": s.layer.name, "index": int(k), "connections": int(s.edges[k].sum())}
            for s in self.steps
            for k in s.kernels
        ]

    def compare(self, other: Pyramid) -> dict[str, dict[str, list[int]]]:
        """Layer -> channels selected for both classes (`"shared"`), or for one alone (`"first"`, `"second"`)."""
        result = {}
        for a, b in zip(self.steps, other.steps, strict=True):
            parts = {"shared": a.mask & b.mask, "first": a.mask & ~b.mask, "second": b.mask & ~a.mask}
            result[a.layer.name] = {name: np.flatnonzero(mask).tolist() for name, mask in parts.items()}
        return result
