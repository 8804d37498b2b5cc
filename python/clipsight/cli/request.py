"""What `clipsight explain` does to each video: the network, then the drawing, then result.json."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import __version__, render
from ..labels import read_labels
from ..targets import Target
from ..video import VideoReader
from ..windows import default_step
from . import explaining
from .networks import (
    CommandError,
    ExportedNetwork,
    LiveNetwork,
    check_machine,
    is_exported,
    load_live,
    map_head,
    parse_size,
    prepare_torch,
    read_target,
)

MIN_FPS, MAX_FPS = 0.001, 100_000

# Called with the stage ("network" or "drawing"), how much of it is done, and how much there is, where that is known.
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Request:
    """The options of `clipsight explain`: all but the videos, and where the results go. A process can send it."""

    model: str = "movers"
    checkpoint: str | None = None
    classes: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    map: str | None = None
    layer: str | None = None
    target: tuple[str, ...] = ()
    probability: str | None = None
    feature: str | None = None
    boxes: str | None = None
    labels: str | None = None
    stride: int | None = None
    step: int | None = None
    frames: int | None = None
    size: str | None = None
    normalize: str = "video"
    format: str = "mp4"
    raw: bool = False
    loop: bool = False
    partial: bool = False
    fps: float | None = None
    n_sigma: float | None = None
    threshold: float | None = None
    random_weights: bool = False
    device: str = "cpu"
    threads: int | None = None

    def open(self):
        """The network, once it is clear that the classes and methods fit it."""
        values = {"tau": self.threshold, "n_sigma": self.n_sigma}
        n_sigma = 2.0 if self.n_sigma is None else self.n_sigma
        network = self.load(
            lambda live: LiveNetwork(
                live,
                map_head(self.map, self.feature, self.threshold, self.layer, "none"),
                n_sigma,
                self.device,
                self._target(live.labels),
            ),
            lambda **size: ExportedNetwork(
                self.model, self.device, self.threads, values, self.map, self.probability, **size
            ),
            feature=self.feature,
            layer=self.layer,
            target=" ".join(self.target) or None,
        )
        explaining.choose_classes(list(self.classes), network.labels)
        if not network.has_motion and set(self.methods) - {"tube"}:
            raise CommandError(f"method: {self.model} was exported without motion maps, so only tube can be shown")
        return network

    def _target(self, labels: Sequence[str] | None) -> Target | None:
        labels = read_labels(self.labels) if self.labels else labels
        target = read_target(self.target, self.probability, lambda text: explaining.choose_class(text, labels))
        if target and target.heads and self.classes:
            raise CommandError(f"class: must be left out where target names heads, got {', '.join(self.classes)}")
        return target

    def load(self, live: Callable, exported: Callable, **fixed):
        """The network, with the labels that were given.

        Args:
            live: makes it of a `LiveModel`.
            exported: makes it of an exported file, with `frames`, `size` and `stride` where they were given.
            fixed: options that such a file brings with it; the checkpoint is one, too.
        """
        check_machine(self.device, self.threads)
        size = {"frames": self.frames, "size": parse_size(self.size), "stride": self.stride}
        if is_exported(self.model):
            for name, value in {"checkpoint": self.checkpoint, **fixed}.items():
                if value is not None:
                    raise CommandError(f"{name}: is part of the exported file {self.model}, got {value}")
            network = exported(**size)
        else:
            prepare_torch(self.device, self.threads)
            network = live(load_live(self.model, self.checkpoint, self.random_weights, **size))
        if self.labels:
            network.labels = read_labels(self.labels)
        return network

    def digest(self, network) -> str:
        """Over everything that a result depends on besides the video."""
        of_network = dict.fromkeys(("model", "checkpoint", "device", "threads"))  # its digest tells
        options = dataclasses.asdict(self) | of_network | {"labels": network.labels}
        described = [__version__, network.digest(), network.preprocessing.to_dict(), options]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def worker(self) -> Callable[[str, Path], dict]:
        """For `clipsight.many`: the network is loaded once, then explains one video after another."""
        network = self.open()
        return lambda video, folder: self.explain(network, self.read(video), folder)

    def read(self, video: str) -> VideoReader:
        if self.fps is not None and not MIN_FPS <= self.fps <= MAX_FPS:
            raise CommandError(f"fps: must be {MIN_FPS} to {MAX_FPS} frames a second, got {self.fps}")
        return VideoReader(video, fps=self.fps, partial=self.partial)

    def run(
        self, network, reader: VideoReader, per_window: bool, folder: Path, progress: Callable
    ) -> explaining.Explained:
        """The first pass over a video; see `explaining.run_network`."""
        classes = explaining.choose_classes(list(self.classes), network.labels)
        options = {"step": self.step, "loop": self.loop, "per_window": per_window}
        options |= {"folder": folder, "progress": progress}
        return explaining.run_network(network, reader, classes, **options)

    def explain(self, network, reader: VideoReader, out: Path, progress: Progress = lambda *_: None) -> dict:
        """Explains one video; returns what result.json in `out` says."""
        started = time.perf_counter()
        boxes = render.read_boxes(self.boxes) if self.boxes else {}
        methods = self.methods or (("tube", "motion") if network.has_motion else ("tube",))
        step = self.step or default_step(network.preprocessing.frames)
        windows = _estimate_windows(reader.frame_count, network.preprocessing, step)
        done = self.run(
            network, reader, self.normalize == "window", out, lambda n: progress("network", n, max(windows or n, n))
        )
        draw_started = time.perf_counter()
        paths = explaining.draw(
            done,
            reader,
            network,
            list(methods),
            out,
            format=self.format,
            boxes=boxes,
            progress=lambda n: progress("drawing", n, done.frame_count),
        )
        draw_seconds = time.perf_counter() - draw_started
        done.notes += network.notes
        if reader.cut_off:
            done.notes.append(
                f"the video is cut off or damaged: the {done.frame_count} frames that could be decoded were used"
            )
        if self.raw:
            paths.append(out / "maps.npz")
            explaining.write_raw(paths[-1], done, reader, network)
        paths.append(out / "result.json")
        report = {
            "video": {
                "path": str(reader.path),
                "frames": done.frame_count,
                "fps": reader.fps,
                "size": list(reader.size),
            },
            "model": network.describe() | {"preprocessing": network.preprocessing.to_dict()},
            "options": {
                "map": network.map,
                "methods": list(methods),
                "step": step,
                "normalize": self.normalize,
                "loop": self.loop,
            },
            "top": done.top(network.labels),
            "maps": [
                {"name": n, "motion_share": s}
                for n, s in zip(done.names, explaining.numbers(done.motion_share), strict=True)
            ],
            "windows": done.windows,
            "seconds": {
                "network": round(done.network_seconds, 4),
                "drawing": round(draw_seconds, 4),
                "all": round(time.perf_counter() - started, 4),
            },
            "notes": done.notes,
            "files": [path.name for path in paths],
        }
        explaining.write_json(paths[-1], report)
        return report


def _estimate_windows(frame_count: int | None, preprocessing, step: int) -> int | None:
    if not frame_count:
        return None
    sampled = -(-frame_count // preprocessing.stride)
    return 1 + max(0, -(-(sampled - preprocessing.frames) // step))
