"""What `clipsight explain` does to each video: the network, then the drawing, then result.json."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import __version__, render
from ..video import VideoReader
from ..windows import default_step
from . import explaining
from .networks import (
    CommandError,
    ExportedNetwork,
    LiveNetwork,
    is_exported,
    load_live,
    parse_size,
    read_labels,
    tube_options,
)

# Called with the stage ("network" or "drawing"), how much of it is done, and how much there is, where that is known.
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Request:
    """The options of `clipsight explain`: all but the videos, and where the results go. A process can send it."""

    model: str = "movers"
    checkpoint: str | None = None
    classes: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
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
        network = self._network()
        if self.labels:
            network.labels = read_labels(Path(self.labels))
        explaining.choose_classes(list(self.classes), network.labels)
        if not network.has_motion and set(self.methods) - {"tube"}:
            raise CommandError(f"method: {self.model} was exported without motion maps, so only tube can be shown")
        return network

    def _network(self):
        if self.threads is not None and self.threads < 1:
            raise CommandError(f"threads: must be at least 1, got {self.threads}")
        overrides = {"frames": self.frames, "size": parse_size(self.size), "stride": self.stride}
        if is_exported(self.model):
            for name in ("checkpoint", "feature"):
                if (value := getattr(self, name)) is not None:
                    raise CommandError(f"{name}: is part of the exported file {self.model}, got {value}")
            values = {"tau": self.threshold, "n_sigma": self.n_sigma}
            return ExportedNetwork(self.model, self.device, self.threads, values, **overrides)
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)
        live = load_live(self.model, self.checkpoint, self.random_weights, **overrides)
        n_sigma = 2.0 if self.n_sigma is None else self.n_sigma
        return LiveNetwork(live, tube_options(self.feature, self.threshold), n_sigma, self.device)

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
        return VideoReader(video, fps=self.fps, partial=self.partial)

    def explain(self, network, reader: VideoReader, out: Path, progress: Progress = lambda *_: None) -> dict:
        """Explains one video; returns what result.json in `out` says."""
        started = time.perf_counter()
        boxes = render.read_boxes(self.boxes) if self.boxes else {}
        methods = self.methods or (("tube", "motion") if network.has_motion else ("tube",))
        step = self.step or default_step(network.preprocessing.frames)
        windows = _estimate_windows(reader.frame_count, network.preprocessing, step)
        done = explaining.run_network(
            network,
            reader,
            explaining.choose_classes(list(self.classes), network.labels),
            step=self.step,
            loop=self.loop,
            per_window=self.normalize == "window",
            progress=lambda n: progress("network", n, max(windows or n, n)),
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
            done.notes.append(f"the video is cut off or damaged: its first {done.frame_count} frames were used")
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
            "options": {"methods": list(methods), "step": step, "normalize": self.normalize, "loop": self.loop},
            "top": explaining.top_classes(done.probabilities, network.labels),
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
