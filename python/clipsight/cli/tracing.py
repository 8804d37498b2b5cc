"""`clipsight pyramid`: the clip is found, its classes are traced through the network, and all of it is written."""

from __future__ import annotations

import itertools
import json
import os
import warnings
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..labels import check_count
from ..pyramid import METHOD, Layer, Pyramid, Step
from ..pyramid import graph as graphs
from ..pyramid.page import write_page
from ..pyramid.pictures import Shot, write_graph, write_sheet, write_tubes
from ..staging import staging
from ..targets import Reading
from ..text import printable
from ..video import VideoReader
from ..windows import Geometry, Window, for_network, sliding_windows
from .explaining import Rows, label_of, tail_of
from .networks import CommandError, LiveModel, exported_preprocessing
from .request import Request

GRAPH_LIMIT = 300_000  # connections; more take minutes and gigabytes to write, and to read
MOST_FRAMES = 2**31
Classes = tuple[int, ...] | int  # or the k most probable ones


@dataclass
class Traced:
    """One clip's classes, traced.

    Attributes:
        probabilities: `[K]`, or scores; `reading` says which.
        pyramids: one for each class.
        names: for each class and layer, what its volumes show.
        options: of the method.
        activations: layer -> float32 `[channels, t, h, w]`, the features that it reads, as far as they are known.
    """

    probabilities: np.ndarray
    pyramids: list[Pyramid]
    names: list[list[list[str]]]
    options: dict[str, Any]
    reading: Reading
    activations: dict[str, np.ndarray] = field(default_factory=dict)


class LivePyramid:
    """Traces with a live model; the captured network is built at the first clip."""

    takes_frames = False
    fixed_classes = None

    def __init__(self, model: LiveModel, options: dict[str, Any], layers: tuple[str, ...], device: str):
        from .. import FeaturePyramid

        self.name, self.preprocessing, self.labels = model.name, model.preprocessing, model.labels
        self._module, self._device, self._explained = model.module.to(device), device, None
        self._channels, self._layout = model.channels, model.layout
        self._heads = [FeaturePyramid(**options, layers=layers)]
        if layers:  # the graph has all layers, only the pictures have some
            bare = {name: options[name] for name in ("theta", "depth") if name in options}
            self._heads.insert(0, FeaturePyramid(**bare, volumes="none"))
        self.notes: list[str] = []

    def logits(self, clip: np.ndarray) -> np.ndarray:
        return self._look(clip)[1][0][0].float().cpu().numpy()

    def trace(self, clip: np.ndarray, classes: tuple[int, ...]) -> Traced:
        import torch

        sized, seen = self._look(clip)
        with torch.inference_mode():
            chosen = torch.tensor([classes], device=self._device)
            maps = sized.maps(*seen, classes=chosen)
        names = self._explained.output_names
        outputs = dict(zip(names, [seen[0], *maps], strict=True))
        taps = sized.taps(seen)
        read = {name: taps[i][0] for name, i in sized.attached.route.reads.items()}
        traced = _traced(
            {name: tensor.cpu().numpy() for name, tensor in outputs.items()},
            self.reading,
            self._explained.bound[0].found,
            self._heads[-1].describe(),
            classes,
            classes,
            self.labels,
        )
        return replace(traced, activations={n: t.float().cpu().numpy() for n, t in read.items() if t.dim() == 4})

    @property
    def reading(self) -> Reading:
        """Of the logits, once there are some."""
        return self._explained.score.reading

    def _look(self, clip: np.ndarray):
        import torch

        from .. import explain

        tensor = torch.from_numpy(for_network(clip, self.preprocessing, self._channels, self._layout)).to(self._device)
        if self._explained is None:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self._explained = explain(self._module, self._heads, tensor, "input", layout=self._layout)
            said = (str(warning.message) for warning in caught)
            self.notes = list(dict.fromkeys(text for text in said if text.startswith("explain:")))
        sized = self._explained.at(self.preprocessing.size)
        with torch.inference_mode():
            return sized, sized.look(tensor)


class ExportedPyramid:
    """Traces with an exported file, as it was exported."""

    notes = ()

    def __init__(self, path: str, layers: tuple[str, ...], device: str, threads: int | None, **overrides):
        from .. import load

        self._loaded = load(path, device=device, threads=threads)
        manifest = self._loaded.manifest
        self.name, self.labels, self.reading = Path(path).name, manifest.labels, manifest.reading
        self.preprocessing = exported_preprocessing(path, manifest, **overrides)
        found = [method["method"] for method in manifest.methods]
        if METHOD not in found:
            raise CommandError(f"model: {path} must have the method {METHOD}, it has {found}")
        self._method, self._drawn = manifest.methods[found.index(METHOD)], layers
        self._layers = [Layer.from_dict(layer) for layer in self._method["layers"]]
        for wanted in layers:
            if not any(layer.is_in(wanted) for layer in self._layers):
                names = [layer.name for layer in self._layers]
                raise CommandError(f"layer: must be one that {path} puts out, among {names}, got {wanted!r}")
        self.takes_frames = manifest.input.takes_frames
        self._takes_classes = manifest.classes == "input"
        self.fixed_classes = None if self._takes_classes else manifest.classes
        self._optional = any(option.name == "explain" for option in manifest.option_inputs)

    def logits(self, clip: np.ndarray) -> np.ndarray:
        return self._run(clip, (0,), {"explain": False} if self._optional else {})["logits"][0]

    def trace(self, clip: np.ndarray, classes: tuple[int, ...]) -> Traced:
        outputs = self._run(clip, classes, {})
        scores = self.reading.scores(outputs["logits"][0])
        given = classes if self._takes_classes else _most_probable(self.fixed_classes, scores)
        return _traced(outputs, self.reading, self._layers, self._method, given, classes, self.labels, self._drawn)

    def _run(self, clip: np.ndarray, classes: tuple[int, ...], options: dict) -> dict[str, np.ndarray]:
        given = (np.array([classes], np.int64),) if self._takes_classes else ()
        if not self.takes_frames:
            taken = self._loaded.manifest.input
            clip = for_network(clip, self.preprocessing, taken.channels, taken.layout)
        results = self._loaded(clip, *given, **options)
        return dict(zip(self._loaded.output_names, map(np.asarray, results), strict=True))


def open_network(request: Request, options: dict[str, Any], layers: tuple[str, ...]):
    """The network of a request, with labels.

    Args:
        request: its options that name a network and its input.
        options: of `FeaturePyramid`, those that were given.
        layers: those to draw, or all.

    Raises:
        CommandError, ValueError: an option does not fit.
    """
    return request.load(
        lambda live: LivePyramid(live, options, layers, request.device),
        lambda **size: ExportedPyramid(request.model, layers, request.device, request.threads, **size),
        **options,
    )


def _traced(outputs, reading, layers, options, given, classes, labels, drawn=()) -> Traced:
    """From the outputs for one clip, explained for the classes `given`, those of `classes`."""
    kept = {k: v for k, v in options.items() if k not in ("layers", "found")}
    traced = Traced(reading.probabilities(outputs["logits"][0]), [], [], kept, reading)
    for index in classes:
        position = list(given).index(index)
        whole = Pyramid.from_outputs(layers, outputs, index, printable(label_of(index, labels)), position=position)
        steps, names = [], []
        for step in whole:
            shown = []
            if step.volumes is not None and step.layer.is_in(*drawn):
                chosen = outputs.get(f"{step.layer.name}.chosen")
                if chosen is not None:
                    chosen = chosen[0].reshape(-1, len(step.volumes))[position]
                shown = _volumes(step, options, chosen)
            steps.append(replace(step, volumes=step.volumes[[i for i, _ in shown]] if shown else None))
            names.append([name for _, name in shown])
        traced.pyramids.append(replace(whole, steps=tuple(steps)))
        traced.names.append(names)
    return traced


def _volumes(step: Step, options: dict[str, Any], chosen: np.ndarray | None) -> list[tuple[int, str]]:
    """Position and name of a layer's volumes, without those of groups, kernels and channels that are not selected."""
    layer, kind = step.layer, options["volumes"]
    if not len(step.kernels) and isinstance(options["channels"], str):
        return []
    if kind == "layer":
        return [(0, layer.name)]
    if kind == "group":
        what = "group" if layer.groups > 1 else "branch"
        alone = len(layer.parts) == 1
        return [
            (i, layer.name if alone else f"{layer.name} {what} {i}")
            for i, (start, stop) in enumerate(layer.parts)
            if step.mask[start:stop].any()
        ]
    what = "kernel" if kind == "feature" else "channel"
    if chosen is None:
        return [
            (i, f"{layer.name} {what} {c}") for i, c in enumerate(c for n, c in options["channels"] if n == layer.name)
        ]
    if kind == "feature" and layer.depth == 1:
        return [(0, layer.name)]
    selected = step.edges.any(1) if kind == "feature" else step.mask
    return [(i, f"{layer.name} {what} {c}") for i, c in enumerate(chosen.tolist()) if selected[c]]


# ---- The clip -------------------------------------------------------------------------------------------------------


def find_clip(network, reader: VideoReader, classes: Classes, start: int | None, loop: bool):
    """The clip of a video in which the classes are most probable, or the one that starts at a given source frame.

    Args:
        network: a `LivePyramid` or an `ExportedPyramid`.
        reader: of the video.
        classes: those to explain, or the number of the most probable ones of the video (of the clip, where `start` is
            given).
        start: source frame.
        loop: repeat a video that is shorter than a clip.

    Returns:
        The window, the shot, the classes, and how they were found, in words.

    Raises:
        CommandError, VideoError: the classes are not those of an exported file, or the video is too short.
    """
    preprocessing, labels = network.preprocessing, network.labels
    cut = {"preprocessing": preprocessing, "loop": loop, "whole": network.takes_frames}
    wanted, how = _wanted(network.fixed_classes, classes), "from --start on"
    if start is None:
        probabilities, starts = Rows("d"), []
        for window in sliding_windows(reader, **cut):
            probabilities.append(_probabilities(network, window))
            starts.append(window.start * preprocessing.stride)
        mean = np.mean(probabilities.all(), axis=0)
        wanted = wanted if isinstance(wanted, str) else _most_probable(wanted, mean)
        likely = _most_probable(wanted, mean)
        start = starts[int(np.argmax(probabilities.all()[:, likely].sum(1)))]
        named = " and ".join(label_of(c, labels) for c in likely)
        how = f"of {len(starts)} windows the one where {named} {'is' if len(likely) == 1 else 'are'} most probable"
        how = how if len(starts) > 1 else "all that the network takes"
    if not 0 <= start <= MOST_FRAMES:
        rule = "at least 0" if start < 0 else f"at most {MOST_FRAMES}"
        raise CommandError(f"start: must be {rule}, got {start}")
    span = (preprocessing.frames - 1) * preprocessing.stride + 1
    with closing(iter(reader)) as decoding:
        timed = [(frame.copy(), reader.span) for frame in itertools.islice(decoding, start, start + span)]
    frames = [frame for frame, _ in timed]
    if start and (not frames or (len(frames) < span and not loop)):
        last = max(reader.decoded - span, 0)
        raise CommandError(f"start: must be 0 to {last}, so that the {span} frames of a clip fit, got {start}")
    (window,) = sliding_windows(frames, **cut)
    geometry = Geometry.of(preprocessing, reader.size)
    shot = Shot(
        frames, [time for _, time in timed], start, preprocessing.stride, reader.fps, reader.pixel_aspect, geometry
    )
    return window, shot, _most_probable(wanted, _probabilities(network, window)), how


def _wanted(fixed: str | list[int] | None, classes: Classes) -> str | Classes:
    """What an exported file with its own choice, `fixed`, gives of the classes that are asked for."""
    if fixed is None:
        return classes
    if isinstance(fixed, list) and isinstance(classes, tuple) and set(classes) <= set(fixed):
        return classes
    if classes == 1 or fixed == f"top{classes}":
        return fixed if isinstance(fixed, str) else tuple(fixed)
    raise CommandError(f"class: the file was exported with classes={fixed!r} and cannot explain others")


def _most_probable(wanted: str | Classes | list[int], scores: np.ndarray) -> tuple[int, ...]:
    """Classes that were named, or the most probable ones of a number or of `"predicted"`, `"top3"`."""
    if isinstance(wanted, (tuple, list)):
        return tuple(wanted)
    count = 1 if wanted == "predicted" else int(str(wanted).removeprefix("top"))
    return tuple(np.argsort(-scores, kind="stable")[:count].tolist())


def _probabilities(network, window: Window) -> np.ndarray:
    logits = network.logits(window.clip)
    if not np.isfinite(logits).all():
        raise CommandError(f"model: the output must be finite, got NaN or infinity in the clip at {window.start}")
    probabilities = network.reading.probabilities(logits)
    check_count(network.labels, len(probabilities))
    return probabilities


# ---- The files ------------------------------------------------------------------------------------------------------


def write(
    traced: Traced, shot: Shot, reader: VideoReader, network, how: str, out: Path
) -> tuple[list[Path], list[str]]:
    """Writes everything into the folder `out`, all of it or nothing; returns the paths, and what should be noted."""
    notes = list(network.notes)
    if reader.cut_off:
        notes.append(f"the video is cut off or damaged: it was read up to frame {reader.decoded - 1}")
    preprocessing, last = network.preprocessing, shot.start + len(shot.frames) - 1
    facts = {
        "clipsight": __version__,
        "model": network.name,
        "options": traced.options,
        "clip": {
            "video": str(reader.path),
            "size": list(reader.size),
            "fps": float(reader.fps),
            "frames": [shot.start, last],
            "chosen": how,
            "preprocessing": preprocessing.to_dict(),
        },
    }
    depth = max(step.layer.depth for step in traced.pyramids[0])
    options = f"theta {traced.options['theta']:g}, depth {depth}"
    about = printable(f"{reader.path.name} · frames {shot.start} to {last} · {network.name} · {options}")
    labels = [pyramid.label for pyramid in traced.pyramids]
    with staging(out / "pyramid" if out.is_dir() else out) as folder:
        folder.mkdir()
        for i, (pyramid, names) in enumerate(zip(traced.pyramids, traced.names, strict=True)):
            tail, probability = tail_of(labels, i), float(traced.probabilities[pyramid.class_index])
            own = {traced.reading.unit: round(probability, 6), **facts}
            count = sum(int(step.edges.sum()) for step in pyramid)
            values = graphs.to_dict(pyramid, count <= GRAPH_LIMIT, **own)
            (folder / f"graph{tail}.json").write_text(json.dumps(values) + "\n", "utf-8")
            if count <= GRAPH_LIMIT:
                (folder / f"graph{tail}.graphml").write_text(graphs.to_graphml(pyramid), "utf-8")
            else:
                notes.append(
                    f"{count:,} connections are more than {GRAPH_LIMIT:,}: no graph{tail}.graphml; graph{tail}.json "
                    "has them as channels of kernels; a higher --theta or a smaller --depth gives fewer"
                )
            (folder / f"kernels{tail}.csv").write_text(graphs.to_csv(pyramid), "utf-8")
            write_graph(folder / f"graph{tail}.svg", pyramid, about)
            title = f"{pyramid.label}   {traced.reading.in_words(probability)}"
            write_sheet(folder / f"pyramid{tail}.png", pyramid, names, shot, title, about)
            for step, own_names in zip(pyramid, names, strict=True):
                write_tubes(folder, step, own_names, shot, tail)
        if len(labels) > 1:
            (folder / "compare.csv").write_text(graphs.compare_csv(traced.pyramids), "utf-8")
            (folder / "compare.json").write_text(json.dumps(compare(traced.pyramids)) + "\n", "utf-8")
        seen = [shot.geometry.crop_frame(frame) for frame in shot.frames[:: shot.stride]]
        clip = np.stack([seen[i % len(seen)] for i in range(preprocessing.frames)])
        rate = float(reader.fps / shot.stride)
        write_page(folder / "pyramid.html", _for_page(traced), clip, traced.activations, about, rate)
        paths = sorted(folder.iterdir())
        out.mkdir(exist_ok=True)
        for path in paths:
            os.replace(path, out / path.name)
    return [out / path.name for path in paths], notes


def compare(pyramids: list[Pyramid]) -> list[dict[str, Any]]:
    """Each pair of classes: the channels that each layer reads for both of them, or for one alone."""
    return [
        {"first": first.label, "second": second.label, "layers": first.compare(second)}
        for first, second in itertools.combinations(pyramids, 2)
    ]


def _for_page(traced: Traced) -> list[Pyramid]:
    """The page shows a layer's tube where it is one."""
    if traced.options["volumes"] == "layer":
        return traced.pyramids
    return [replace(p, steps=tuple(replace(step, volumes=None) for step in p)) for p in traced.pyramids]
