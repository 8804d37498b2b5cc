"""The dependency graph of a class feature pyramid: for networkx, and as JSON, GraphML and CSV.

A node is one kernel, `"layer/index"`; an edge leads from a kernel to each kernel that it takes its inputs from
(Class Feature Pyramids, section 3.2). What the pyramid does not step further back through is a leaf: kernels of deeper
layers, and the channels of the clip, `"clip/0"` to `"clip/2"`.
"""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..text import printable
from . import Layer, Pyramid, Step

if TYPE_CHECKING:
    import networkx

CLIP = "clip"
FORMAT = 1


def package(name: str) -> ModuleType:
    """A package of the extra `pyramid`. ImportError, with what to install, where it is absent."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"pyramid: {name} is needed ({error}): pip install 'clipsight[pyramid]'") from error


def origins(layer: Layer, channel: int, stepped: frozenset[str] | set[str]) -> list[tuple[str, int]]:
    """The kernels (layer, index) that one channel of what `layer` reads comes from.

    Behind a residual sum there are several. Those in layers that the pyramid steps through (`stepped`) count; where
    there is none of them, the first.
    """
    if not layer.sources:
        return [(CLIP, channel)]
    found = [(s.layer, s.first + channel - s.start) for s in layer.sources if s.start <= channel < s.stop]
    return [kernel for kernel in found if kernel[0] in stepped] or found[:1]


def build(pyramid: Pyramid) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The nodes with their attributes (see `to_networkx`), and the edges int64 `[E, 2]`: a kernel, and one it takes.

    An edge names its nodes by their positions; the kernels that are stepped through come first, by depth.
    """
    stepped = {step.layer.name for step in pyramid}
    nodes = [{**row, "pointed_at": 0, "stepped": True} for row in pyramid.table()]
    positions = {(node["layer"], node["index"]): i for i, node in enumerate(nodes)}
    parts = [np.empty((0, 2), np.int64)]
    for step in pyramid:  # channel by channel, for there may be millions of edges
        layer, rows = step.layer, step.layer.kernels // step.layer.groups
        own = np.array([positions.get((layer.name, kernel), -1) for kernel in range(layer.kernels)])
        for channel in range(layer.channels):
            group, column = divmod(channel, layer.channels // layer.groups)
            takers = own[group * rows : (group + 1) * rows][step.edges[group * rows : (group + 1) * rows, column]]
            for origin in origins(layer, channel, stepped) if len(takers) else ():
                if origin not in positions:
                    positions[origin] = len(nodes)
                    leaf = {"depth": 0, "layer": origin[0], "index": origin[1], "connections": 0}
                    nodes.append({**leaf, "pointed_at": 0, "stepped": False})
                node = nodes[positions[origin]]
                if not node["stepped"]:
                    node["depth"] = max(node["depth"], layer.depth + 1)
                parts.append(np.stack([takers, np.full_like(takers, positions[origin])], 1))
    edges = np.unique(np.concatenate(parts), axis=0)
    for node, count in zip(nodes, np.bincount(edges[:, 1], minlength=len(nodes)).tolist(), strict=True):
        node["pointed_at"] = count
    return nodes, edges


def node_name(node: Mapping[str, Any]) -> str:
    return f"{node['layer']}/{node['index']}"


def to_networkx(pyramid: Pyramid) -> networkx.DiGraph:
    """The graph, with a node `"layer/index"` for every selected kernel and every leaf.

    Attributes of a node: `layer`; `index`; `depth`, of a leaf one more than that of its deepest reader; `connections`,
    the number of channels that it takes (0 for a leaf); `pointed_at`, how many kernels take it; `stepped`, false for a
    leaf. The graph itself has `class_index` and `label`.

    Raises:
        ImportError: without networkx.
    """
    graph = package("networkx").DiGraph(class_index=pyramid.class_index, label=pyramid.label)
    nodes, edges = pyramid.graph
    names = [node_name(node) for node in nodes]
    graph.add_nodes_from(zip(names, nodes, strict=True))
    graph.add_edges_from((names[a], names[b]) for a, b in edges.tolist())
    return graph


def to_dict(pyramid: Pyramid, edges: bool = True, **facts: Any) -> dict[str, Any]:
    """All but the volumes, JSON-able, for `from_dict` and for readers in other languages.

    Args:
        pyramid: of one class.
        edges: leave them out where they are too many; the channels and the layers' sources say the same.
        facts: further entries, such as `clip` and `options`.

    Returns:
        `class`; `layers`, each with its description, the `selected` channels of what it reads, and the `multiplicity`
        of each; `kernels`: the nodes of `to_networkx`, those that were stepped through with the `channels` that they
        take; `edges`: pairs of positions in `kernels`, a kernel and one that it takes its inputs from.
    """
    nodes, pairs = pyramid.graph
    kernels = [{**node, "id": node_name(node)} for node in nodes]
    for kernel in kernels:
        if kernel["stepped"]:
            kernel["channels"] = pyramid[kernel["layer"]].connections(kernel["index"]).tolist()
    return {
        "format": FORMAT,
        "class": {"index": pyramid.class_index, "label": pyramid.label},
        **facts,
        "layers": [
            step.layer.to_dict()
            | {
                "selected": np.flatnonzero(step.mask).tolist(),
                "multiplicity": step.multiplicity[step.mask].tolist(),
            }
            for step in pyramid
        ],
        "kernels": kernels,
        **({"edges": pairs.tolist()} if edges else {}),
    }


def from_dict(values: Mapping[str, Any]) -> Pyramid:
    """The pyramid that `to_dict` described, without volumes.

    Raises:
        ValueError: the values are something else, or in a newer format.
    """
    try:
        if values["format"] > FORMAT:
            raise ValueError(f"its format must be at most {FORMAT}, got {values['format']}")
        steps = {}
        for entry in values["layers"]:
            own = {name: value for name, value in entry.items() if name not in ("selected", "multiplicity")}
            layer = Layer.from_dict(own)
            mask, multiplicity = np.zeros(layer.channels, bool), np.zeros(layer.channels, np.int64)
            mask[entry["selected"]], multiplicity[entry["selected"]] = True, entry["multiplicity"]
            edges = np.zeros((layer.kernels, layer.channels // layer.groups), bool)
            steps[layer.name] = Step(layer, mask, multiplicity, edges)
        for kernel in values["kernels"]:
            if kernel["stepped"]:
                step = steps[kernel["layer"]]
                taken = np.asarray(kernel["channels"], np.int64) - step.layer.reads(kernel["index"]).start
                step.edges[kernel["index"], taken] = True
        return Pyramid(values["class"]["index"], values["class"]["label"], tuple(steps.values()))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"pyramid: the graph must be what `clipsight pyramid` writes as JSON, got {error!r}"
        ) from error


def to_graphml(pyramid: Pyramid) -> str:
    """`to_networkx` as GraphML, whatever XML forbids written out. ImportError without networkx."""
    networkx, graph = package("networkx"), to_networkx(pyramid)
    for values in (graph.graph, *graph.nodes.values()):
        values |= {name: printable(value) for name, value in values.items() if isinstance(value, str)}
    return "\n".join(networkx.generate_graphml(networkx.relabel_nodes(graph, printable))) + "\n"


def to_csv(pyramid: Pyramid) -> str:
    """The table of the kernels: depth, layer, index, connections (the supplement of the paper)."""
    return _csv(["depth", "layer", "index", "connections"], (row.values() for row in pyramid.table()))


def compare_csv(pyramids: Sequence[Pyramid]) -> str:
    """Several classes side by side: of every channel that a layer reads, its multiplicity for each class.

    A channel that is selected for no class has no row; one that two classes share is positive in both columns.
    """
    rows = (
        (steps[0].layer.depth, steps[0].layer.name, int(channel), *(int(step.multiplicity[channel]) for step in steps))
        for steps in zip(*pyramids, strict=True)
        for channel in np.flatnonzero(np.any([step.mask for step in steps], axis=0))
    )
    return _csv(["depth", "layer", "channel", *(printable(pyramid.label) for pyramid in pyramids)], rows)


def _csv(header: list[str], rows) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
