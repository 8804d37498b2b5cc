"""`clipsight compare`: several networks explain the same video; what all of them saw of it is measured and drawn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .. import render
from ..errors import error_text
from ..metrics.volumes import temporal_change, temporal_change_of
from ..render import FAINT, INK, PAPER
from ..text import printable
from ..video import VideoReader, VideoWriter, write_picture
from ..windows import Geometry, default_step, minmax
from . import explaining
from .networks import CommandError
from .request import Request

# Called with the network's name or "drawing", and how many windows or frames of it are done.
Progress = Callable[[str, int], None]


@dataclass
class Run:
    """One network on the video: its maps, where they lie, and how much each of them changes over time."""

    name: str
    network: object
    done: explaining.Explained
    geometry: Geometry
    change: np.ndarray | None = None  # [M], of the whole video
    window_change: np.ndarray | None = None  # [windows, M]

    @property
    def stride(self) -> int:
        return self.network.preprocessing.stride

    def heat(self, index: int) -> np.ndarray:
        """The maps of a source frame, `[M, h, w]` in 0..1 over the video."""
        return minmax(self.done.maps.at(index, self.stride)[0], self.done.low, self.done.high)

    def report(self) -> dict:
        done, network = self.done, self.network
        classes = done.classes if len(done.classes) == len(done.names) else [None] * len(done.names)
        maps = [
            {
                "class": k,
                "name": name,
                done.reading.unit: None if k is None else round(float(done.probabilities[k]), 6),
                "temporal_change": {"video": change, "windows": explaining.numbers(self.window_change[:, i])},
            }
            for i, (k, name, change) in enumerate(
                zip(classes, done.names, explaining.numbers(self.change), strict=True)
            )
        ]
        return {
            "name": self.name,
            "map": network.map,
            "model": network.describe() | {"preprocessing": network.preprocessing.to_dict()},
            "top": done.top(network.labels),
            "maps": maps,
            "windows": done.windows,
            "seconds": round(done.network_seconds, 4),
            "notes": [*done.notes, *network.notes],
        }


@dataclass(frozen=True)
class Common:
    """What every network saw of the video: the only frames and pixels on which their maps can be compared.

    Attributes:
        frames: source frames that went into every network.
        grid: height and width to which the maps are brought, those of the largest resized frame.
        region: rows and columns of the grid that lie in every network's crop.
    """

    frames: range
    grid: tuple[int, int]
    region: tuple[slice, slice]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Common:
        """Raises `CommandError` where there are fewer than two such frames, of which nothing could change."""
        last = min((len(run.done.maps) - 1) * run.stride for run in runs)
        frames = range(0, last + 1, math.lcm(*(run.stride for run in runs)))
        if len(frames) < 2:
            strides = ", ".join(f"{run.name} every {run.stride}" for run in runs)
            raise CommandError(
                f"compare: all networks must see at least 2 of the same frames, got {len(frames)} ({strides}, "
                f"up to frame {last}); give all of them one --stride"
            )
        grid = tuple(max(sides) for sides in zip(*(run.geometry.resized for run in runs), strict=True))
        regions = [_on_grid(run.geometry, grid).region for run in runs]
        region = tuple(
            slice(max(s.start for s in axis), min(s.stop for s in axis)) for axis in zip(*regions, strict=True)
        )
        return cls(frames, grid, region)

    def maps(self, run: Run, part: slice = slice(None)) -> Iterator[np.ndarray]:
        """A network's relevance in the common frames, or a part of them, and pixels: `[M, rows, columns]` each."""
        geometry = _on_grid(run.geometry, self.grid)
        inside = tuple(
            slice(part.start - own.start, part.stop - own.start)
            for part, own in zip(self.region, geometry.region, strict=True)
        )
        for index in self.frames[part]:
            yield np.stack([geometry.to_region(map)[inside] for map in run.done.maps.at(index, run.stride)[0]])

    def measure(self, runs: Sequence[Run]) -> list[list[int]]:
        """Sets the temporal change of every run; returns the windows, `[first, last]` source frame.

        The windows are those of the network that looks at the longest ones, and the same for all.
        """
        longest = max(runs, key=lambda run: (run.network.preprocessing.frames - 1) * run.stride)
        spans = (np.searchsorted(self.frames, (a, b + 1)) for a, b in (w["frames"] for w in longest.done.windows))
        parts = [slice(*span) for span in spans if span[1] - span[0] >= 2]
        for run in runs:
            run.change = temporal_change_of(partial(self.maps, run))
            changes = [temporal_change(np.stack([*self.maps(run, part)], axis=1)) for part in parts]
            run.window_change = np.array(changes).reshape(-1, len(run.change))
        return [[self.frames[part.start], self.frames[part.stop - 1]] for part in parts]

    def source_region(self, source: tuple[int, int]) -> list[list[float]]:
        """First and last edge of the region along rows and columns, in source pixels."""
        edges = zip(self.region, source, self.grid, strict=True)
        return [[round(edge * full / cells, 2) for edge in (part.start, part.stop)] for part, full, cells in edges]


def _on_grid(geometry: Geometry, grid: tuple[int, int]) -> Geometry:
    """The same crop of a source that has `grid` pixels."""
    return Geometry(grid, geometry.resized, geometry.crop)


@contextmanager
def _naming(model: str) -> Iterator[None]:
    """Errors say which network they are about."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise CommandError(f"{model}: {error_text(error)}") from error


def compare(
    requests: Sequence[Request],
    video: str,
    out: Path,
    format: str = "mp4",
    boxes: str | None = None,
    progress: Progress = lambda *_: None,
) -> dict:
    """Explains one video with every network (a request each); returns what compare.json in `out` says."""
    started = time.perf_counter()
    reader, found = requests[0].read(video), render.read_boxes(boxes) if boxes else {}
    networks = []
    for request in requests:
        with _naming(request.model):
            networks.append(request.open())
    # A file may hold maps that are scaled per clip. Only like can be compared: all are then.
    scaled = [network.name for network in networks if not network.raw]
    runs = []
    for name, request, network in zip(_unique([n.name for n in networks]), requests, networks, strict=True):
        with _naming(name):
            done = request.run(network, reader, bool(scaled), out, lambda n, name=name: progress(name, n))
            runs.append(Run(name, network, done, Geometry.of(network.preprocessing, reader.size)))
    common = Common.of(runs)
    windows = common.measure(runs)
    paths = draw(runs, reader, out, format, found, lambda n: progress("drawing", n))
    notes = []
    if scaled:
        notes.append(
            f"{', '.join(scaled)}: the file scales its maps per clip, so all maps were scaled to 0..1 per window "
            "before their change was measured; a file of --raw-maps, or the live model, needs no scaling"
        )
    if reader.cut_off:
        notes.append(f"the video is cut off or damaged: the {reader.decoded} frames that could be decoded were used")
    paths.append(out / "compare.json")
    report = {
        "video": {"path": str(reader.path), "frames": reader.decoded, "fps": reader.fps, "size": list(reader.size)},
        "options": {
            "classes": list(requests[0].classes) or ["predicted"],
            "steps": [
                r.step or default_step(run.network.preprocessing.frames) for r, run in zip(requests, runs, strict=True)
            ],
            "loop": requests[0].loop,
            "threshold": requests[0].threshold,
        },
        "measured_on": {
            "relevance": "scaled to 0..1 per window" if scaled else "raw",
            "frames": {"first": common.frames[0], "last": common.frames[-1], "every": common.frames.step},
            "region": common.source_region(reader.size),
            "grid": list(common.grid),
            "windows": windows,
        },
        "networks": [run.report() for run in runs],
        "seconds": round(time.perf_counter() - started, 4),
        "notes": notes,
        "files": [path.name for path in paths],
    }
    explaining.write_json(paths[-1], report)
    return report


def _unique(names: list[str]) -> list[str]:
    """Two checkpoints of one network get a number."""
    names = [printable(name) for name in names]
    return [f"{n} {names[: i + 1].count(n)}" if names.count(n) > 1 else n for i, n in enumerate(names)]


# ---- Pictures -------------------------------------------------------------------------------------------------------


def draw(
    runs: Sequence[Run],
    reader: VideoReader,
    out: Path,
    format: str = "mp4",
    boxes: dict | None = None,
    progress: Callable[[int], None] = lambda n: None,
    columns: int = 6,
) -> list[Path]:
    """Second pass over the video: every network's heat beside the input, as a video and as a contact sheet."""
    renderers = [render.Renderer(run.geometry, boxes or {}) for run in runs]
    shown, times = render.evenly_spaced(reader.decoded, columns), []
    # One row of panels per explained class: input, then each network's map of it.
    keys = [
        (run, i) for i in range(max(len(run.done.names) for run in runs)) for run in runs if i < len(run.done.names)
    ]
    sheet = {"input": [], **{_row_name(run, i): [] for run, i in keys}}
    video, picture = out / f"compare{explaining.SUFFIX[format]}", out / "compare.png"
    board = Board(runs, reader)
    with VideoWriter(video, reader.fps) as writer:
        for index, frame in enumerate(reader):
            heats = [run.heat(index) for run in runs]
            panels = [
                [renderer.draw_boxes(renderer.heat(frame, map), index) for map in maps]
                for renderer, maps in zip(renderers, heats, strict=True)
            ]
            plain = renderers[0].draw_boxes(frame.copy(), index)
            writer.write(board.draw(index, reader.span[0], plain, panels), reader.span)
            if index in shown:
                times.append(reader.span[0])
                sheet["input"].append(plain)
                for run, i in keys:
                    sheet[_row_name(run, i)].append(panels[runs.index(run)][i])
            progress(index + 1)
    title = " and ".join([", ".join(run.name for run in runs[:-1]), runs[-1].name])
    shown_maps = ", ".join(dict.fromkeys(run.network.map for run in runs))
    subtitle = (
        f"{printable(reader.path.name)} · {shown_maps} · change: the share of a map's energy that changes over time, "
        "0 where it stands still"
    )
    aspect = float(reader.pixel_aspect)
    write_picture(picture, render.contact_sheet(sheet, shown, times, title, subtitle, pixel_aspect=aspect))
    return [picture, video]


def _row_name(run: Run, index: int) -> str:
    return f"{run.name}\n{run.done.names[index]}\nchange {run.change[index]:.2f}"


class Board:
    """Lays the panels of one frame out on white, with captions; square pixels, and small videos enlarged."""

    margin, gap, caption = 12, 10, 42

    def __init__(self, runs: Sequence[Run], reader: VideoReader) -> None:
        height, width = reader.size[0], reader.size[1] * float(reader.pixel_aspect)
        scale = min(max(width, 288), 640) / width
        self.cell = (round(width * scale), round(height * scale))
        self.rows = max(len(run.done.names) for run in runs)
        self.large, self.small = (ImageFont.load_default(size) for size in (16, 13))
        right, bottom = self._corner(self.rows - 1, len(runs))
        size = (right + self.cell[0] + self.margin, bottom + self.cell[1] + self.margin)
        self.paper = Image.new("RGB", tuple(side + side % 2 for side in size), PAPER)  # H.264 wants even sizes
        pen = ImageDraw.Draw(self.paper)
        for column, run in enumerate(runs, 1):
            for row in range(len(run.done.names)):
                change = f"change {run.change[row]:.2f}"
                self._write(pen, row, column, run.name, change, run.done.title(row))

    def draw(self, index: int, time: float, frame: np.ndarray, panels: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
        """The board of frame `index` at `time` seconds, uint8 `[H, W, 3]`; `panels[network][map]` like `frame`."""
        board = self.paper.copy()
        self._write(ImageDraw.Draw(board), 0, 0, "input", f"{float(time):.2f} s", f"frame {index}")
        for column, pictures in enumerate([[frame], *panels]):
            for row, picture in enumerate(pictures):
                way = cv2.INTER_AREA if picture.shape[0] > self.cell[1] else cv2.INTER_CUBIC
                board.paste(
                    Image.fromarray(cv2.resize(picture, self.cell, interpolation=way)), self._corner(row, column)
                )
        return np.asarray(board)

    def _corner(self, row: int, column: int) -> tuple[int, int]:
        x = self.margin + column * (self.cell[0] + self.gap)
        return x, self.margin + self.caption + row * (self.cell[1] + self.gap + self.caption)

    def _write(self, pen: ImageDraw.ImageDraw, row: int, column: int, name: str, right: str, below: str) -> None:
        x, y = self._corner(row, column)
        room = self.cell[0] - pen.textlength(right, self.large) - self.gap
        pen.text((x, y - 25), _shortened(pen, name, self.large, room), INK, self.large, anchor="ls")
        pen.text((x + self.cell[0], y - 25), right, INK, self.large, anchor="rs")
        pen.text((x, y - 7), _shortened(pen, below, self.small, self.cell[0]), FAINT, self.small, anchor="ls")


def _shortened(pen: ImageDraw.ImageDraw, text: str, font, room: float) -> str:
    while len(text) > 1 and pen.textlength(text, font) > room:
        text = text[:-2] + "…"
    return text
