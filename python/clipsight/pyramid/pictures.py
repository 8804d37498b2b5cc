"""Pictures of a class feature pyramid: its volumes over the frames, each as a video, and the dependency graph."""

from __future__ import annotations

import os
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from .. import render
from ..render import FAINT, INK
from ..staging import whole_file
from ..text import file_names, printable
from ..video import VideoWriter, write_picture
from ..windows import Geometry, Track, minmax
from . import Pyramid, Step
from .graph import CLIP, package


@dataclass
class Shot:
    """The explained clip as it lies in its video.

    Attributes:
        frames: its consecutive source frames, uint8 `[H, W, 3]`, RGB.
        spans: when each of them starts and ends in the video, in seconds.
        start: number of the first of them in the video.
        stride: source frames from one frame of the clip to the next.
        fps, pixel_aspect: of the video.
        geometry: where the network's crop lies in them.
    """

    frames: Sequence[np.ndarray]
    spans: Sequence[tuple[Fraction, Fraction]]
    start: int
    stride: int
    fps: Fraction
    pixel_aspect: Fraction
    geometry: Geometry

    def overlays(self, volumes: np.ndarray) -> Iterator[list[np.ndarray]]:
        """Of each source frame, the heat tubes of the volumes `[V, T, h, w]`, each scaled over the whole clip."""
        renderer, track = render.Renderer(self.geometry), Track()
        axes = (1, 2, 3)
        low, high = (np.asarray(limit(axis=axes))[:, None] for limit in (volumes.min, volumes.max))
        track.add(0, minmax(volumes, low, high))
        for index, frame in enumerate(self.frames):
            yield [renderer.heat(frame, map) for map in track.at(index, self.stride)]


def write_tubes(folder: Path, step: Step, names: Sequence[str], shot: Shot, tail: str = "") -> list[Path]:
    """One MP4 for each volume of a layer, `tube-<name><tail>.mp4`, at the source's size and rate; returns the paths."""
    paths = [folder / f"tube-{name}{tail}.mp4" for name in file_names(names, also=".-")]
    writers = [VideoWriter(path, shot.fps, shot.pixel_aspect) for path in paths]
    for index, writer in enumerate(writers):  # one encoder at a time: each holds many frames
        with writer:
            for pictures, (start, end) in zip(shot.overlays(step.volumes[index : index + 1]), shot.spans, strict=True):
                writer.write(pictures[0], (start - shot.spans[0][0], end - shot.spans[0][0]))
    return paths


def write_sheet(
    path: str | os.PathLike,
    pyramid: Pyramid,
    names: Sequence[Sequence[str]],
    shot: Shot,
    title: str,
    subtitle: str,
    columns: int = 6,
) -> None:
    """The pyramid as Figure 1 of the paper: layers from top to bottom, the clip below them, frames from left to right.

    Args:
        path: of the PNG.
        pyramid: its layers with volumes are shown.
        names: of each layer's volumes.
        shot: what they are drawn on.
        title, subtitle: lines on top.
        columns: number of frames.
    """
    shown = render.evenly_spaced(len(shot.frames), columns)
    rows: dict[str, list[np.ndarray]] = {}
    for step, own in zip(pyramid, names, strict=True):
        if step.volumes is not None:
            rows |= {_broken(name): [] for name in own}
            for index, pictures in enumerate(shot.overlays(step.volumes)):
                for name, picture in zip(own, pictures, strict=True):
                    if index in shown:
                        rows[_broken(name)].append(picture)
    renderer = render.Renderer(shot.geometry)
    rows["clip"] = [renderer.input(shot.frames[index]) for index in shown]
    numbers, aspect = [shot.start + index for index in shown], float(shot.pixel_aspect)
    times = [shot.spans[index][0] for index in shown]
    cell = 224 if len(rows) <= 8 else 144
    sheet = render.contact_sheet(rows, numbers, times, title, subtitle, cell, aspect)
    write_picture(path, sheet)


def _broken(name: str, width: int = 10) -> str:
    """A module path in lines that fit beside the pictures, broken behind its dots."""
    lines = [""]
    for part in re.findall(r"[^. ]*[. ]?", name):
        if lines[-1] and len(lines[-1] + part.strip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.strip() for line in lines)


def write_graph(path: str | os.PathLike, pyramid: Pyramid, subtitle: str = "", limit: int | None = None) -> None:
    """The dependency graph as SVG (or what else the suffix says): a row for each layer, the class on top.

    Args:
        path: of the picture.
        pyramid: of one class.
        subtitle: small line under the label of the class.
        limit: kernels in a row, those that the most kernels on show point at; by default 32, of more than 12 layers 16.
            The picture says what it leaves out.

    Raises:
        ImportError: without matplotlib.
    """
    matplotlib, figure = package("matplotlib"), package("matplotlib.figure")
    nodes, edges = pyramid.graph
    limit = limit or (32 if len(pyramid.steps) <= 12 else 16)
    rows, totals = _graph_rows(nodes, edges, limit)
    width, height = 13.0, 1.75 + 0.95 * len(rows)
    fig = figure.Figure((width, height), facecolor="white")
    axes = fig.add_axes((0, 0.7 / height, 1, 1 - 1.75 / height))
    axes.set(xlim=(0, width), ylim=(0.5 - len(rows), 0.5))
    axes.axis("off")
    left, right = 2.75, width - 0.1  # inches; the names of the layers stand left of it
    place = np.full((len(nodes), 2), np.nan)
    for y, row in enumerate(rows.values()):
        place[row] = [(left + (right - left) * (i + 0.5) / len(row), -y) for i in range(len(row))]
    drawn = edges[np.isfinite(place[edges]).all((1, 2))]
    shades = matplotlib.colormaps["plasma"](np.linspace(0, 0.85, len(rows)))
    for y, (layer, row) in enumerate(rows.items()):
        _draw_edges(axes, place[drawn[_members(row, len(nodes))[drawn[:, 0]]]], shades[y])
        band = ("#f2f4f8", "#ffffff")[y % 2]
        axes.axhspan(-y - 0.5, -y + 0.5, color=band, lw=0, zorder=0)
        most = max(1, *(nodes[i]["pointed_at"] for i in row))
        sizes = [24 + 90 * nodes[i]["pointed_at"] / most for i in row]
        faces = [shades[y] if nodes[i]["stepped"] else band for i in row]
        axes.scatter(*place[row].T, sizes, faces, edgecolors=[shades[y]], zorder=4)
        for i, size in zip(row, sizes, strict=True):
            axes.annotate(
                str(nodes[i]["index"]),
                place[i],
                (0, -(size**0.5) / 2 - 2),
                textcoords="offset points",
                fontsize=6.5,
                color=INK,
                ha="center",
                va="top",
                bbox={"boxstyle": "square,pad=0.12", "fc": band, "ec": "none", "alpha": 0.8},
                zorder=3,
            )
        caption = printable(_row_caption(pyramid, layer, totals[layer]))
        own = {"parse_math": False, "fontweight": "bold", "color": INK, "va": "bottom"}
        axes.text(0.12, -y + 0.05, printable(_shortened(layer)), fontsize=10, **own)
        axes.text(0.12, -y - 0.07, caption, fontsize=8, color=FAINT, va="top", parse_math=False)
    for y, size, text in ((0.42, 17, pyramid.label), (0.72, 10, subtitle)):
        own = {"color": INK if size > 10 else FAINT, "parse_math": False}
        fig.text(0.12 / width, 1 - y / height, printable(text), fontsize=size, **own)
    note = _legend(rows, len(nodes), len(drawn), len(edges), limit)
    fig.text(0.12 / width, 0.53 / height, note, fontsize=8.5, color=FAINT, va="top", linespacing=1.5)
    # Text stays text, so that a kernel can be searched; the same pyramid gives the same bytes.
    options = {"svg.fonttype": "none", "svg.hashsalt": "clipsight"}
    with matplotlib.rc_context(options), warnings.catch_warnings(), whole_file(path) as temporary:
        warnings.filterwarnings("ignore", "Glyph")  # an SVG needs none of matplotlib's fonts
        fig.savefig(temporary, metadata={"Date": None} if temporary.suffix == ".svg" else None, dpi=150)


def _draw_edges(axes, edges: np.ndarray, shade) -> None:
    """Curves `[E, 2, (x, y)]` that leave and reach a kernel upright, fainter the more there are."""
    from matplotlib.collections import PathCollection
    from matplotlib.path import Path as Curve

    codes = [Curve.MOVETO, *[Curve.CURVE4] * 3]
    curves = [Curve([(x, y), (x, (y + v) / 2), (u, (y + v) / 2), (u, v)], codes) for (x, y), (u, v) in edges]
    alpha = float(np.clip(40 / max(len(edges), 1), 0.1, 0.6))
    axes.add_collection(PathCollection(curves, facecolors="none", edgecolors=[shade], linewidths=0.8, alpha=alpha))


def _graph_rows(nodes: list[dict], edges: np.ndarray, limit: int) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Layer -> its nodes on show by index, layers by depth; and layer -> number of all its nodes.

    A row shows those that the most kernels of the rows above it point at, so that every kernel hangs on another.
    """
    layers: dict[str, list[int]] = defaultdict(list)
    for i in sorted(range(len(nodes)), key=lambda i: nodes[i]["depth"]):
        layers[nodes[i]["layer"]].append(i)
    rows: dict[str, list[int]] = {}
    hold = np.zeros(len(nodes), np.int64)  # how many kernels on show point at a node

    def rank(i: int) -> tuple[int, int, int]:
        return -hold[i], -nodes[i]["pointed_at"], nodes[i]["index"]

    for layer, members in layers.items():
        rows[layer] = sorted(sorted(members, key=rank)[:limit], key=lambda i: nodes[i]["index"])
        hold += np.bincount(edges[_members(rows[layer], len(nodes))[edges[:, 0]], 1], minlength=len(nodes))
    return rows, {layer: len(members) for layer, members in layers.items()}


def _members(positions: list[int], count: int) -> np.ndarray:
    mask = np.zeros(count, bool)
    mask[positions] = True
    return mask


def _row_caption(pyramid: Pyramid, layer: str, count: int) -> str:
    known = next((step.layer for step in pyramid if step.layer.name == layer), None)
    if known is None:
        return f"{count:,} channels of the video" if layer == CLIP else f"{count:,} kernels"
    return f"depth {known.depth} · " + (
        pyramid.label if known.depth == 1 else f"{count:,} of {known.kernels:,} kernels"
    )


def _shortened(name: str, length: int = 26) -> str:
    return name if len(name) <= length else f"…{name[1 - length :]}"


def _legend(rows: dict[str, list[int]], kernels: int, drawn: int, edges: int, limit: int) -> str:
    text = (
        "A line leads from a kernel down to each kernel that it takes its inputs from. The more kernels point at one, "
        "the larger is its dot; it is hollow where the pyramid ends."
    )
    left_out = kernels - sum(map(len, rows.values()))
    if left_out:
        text += (
            f"\nDrawn: of each layer at most {limit} kernels, those that the most kernels above point at "
            f"({left_out:,} of {kernels:,} are left out), and {drawn:,} of {edges:,} connections."
        )
    return text
