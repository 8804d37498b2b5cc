"""`clipsight explain`: a video goes through the network in windows, then it is decoded again and drawn."""

from __future__ import annotations

import json
import re
import time
import zipfile
from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from .. import render
from ..labels import check_count, named
from ..staging import whole_file
from ..targets import Reading
from ..text import file_names, printable
from ..video import VideoReader, VideoWriter, write_picture
from ..windows import Geometry, Track, minmax, sliding_windows
from .networks import CommandError

Progress = Callable[[int], None]
PICTURES = {"tube": ("heat", "focus"), "motion": ("motion",), "static": ("static",)}
SUFFIX = {"mp4": ".mp4", "gif": ".gif", "png": ""}


@dataclass
class Explained:
    """What the first pass over the video leaves.

    `maps` holds `[2, M, h, w]` per sampled frame: the relevance and the mask of motion. `low` and `high` `[M]` span it.
    """

    names: list[str]
    classes: list[int | None]
    maps: Track
    low: np.ndarray
    high: np.ndarray
    probabilities: np.ndarray
    motion_share: np.ndarray
    windows: list[dict]
    frame_count: int
    network_seconds: float
    reading: Reading
    notes: list[str] = field(default_factory=list)

    def title(self, index: int) -> str:
        """Name of a map and, where it is a class, the probability of that class in the whole video."""
        if (
            len(self.names) != len(self.classes)
            or self.classes[index] is None
            or self.names[index].startswith("feature ")
        ):
            return self.names[index]
        return f"{self.names[index]}   {self.reading.in_words(self.probabilities[self.classes[index]])}"

    def top(self, labels: Sequence[str] | None) -> list[dict]:
        """The most probable classes of the whole video."""
        return top_classes(self.probabilities, labels, self.reading.unit)


class Rows:
    """Rows of one length in one block of memory: a small array that stays from every window leaves the heap in pieces.

    Args:
        code: the type of the numbers, as `array` names it.
    """

    def __init__(self, code: str) -> None:
        self._numbers, self._count = array(code), 0

    def append(self, row: np.ndarray) -> np.ndarray:
        """Returns the row."""
        self._numbers.frombytes(row.astype(self._numbers.typecode).tobytes())
        self._count += 1
        return row

    def all(self) -> np.ndarray:
        """`[rows, length]`."""
        return np.frombuffer(self._numbers, self._numbers.typecode).reshape(self._count, -1)


def choose_classes(texts: list[str], labels: Sequence[str] | None) -> tuple[int, ...] | int:
    """Class indices as named by `--class`; or a number k for the k most probable ones of the whole video."""
    if not texts:
        return 1
    top = re.fullmatch(r"predicted|top(\d+)", texts[0])
    if len(texts) == 1 and top:
        return max(int(top[1] or 1), 1)
    return tuple(dict.fromkeys(choose_class(text, labels) for text in texts))


def choose_class(text: str, labels: Sequence[str] | None) -> int:
    """The index of a class by its name or number."""
    found = set(named(text, labels))
    if re.fullmatch(r"\d{1,9}", text) and not (found and int(text) >= len(labels)):
        found.add(int(text))
    if not found:
        near = [label for label in labels or () if text.lower() in label.lower()][:3]
        hint = f"; similar: {', '.join(near)}" if near else ("" if labels else "; names need --labels FILE")
        raise CommandError(f"class: {text!r} is no class of this model{hint}")
    if labels and max(found) >= len(labels):
        raise CommandError(f"class: index must lie in 0..{len(labels) - 1}, got {text}")
    if len(found) > 1:
        indices = " and ".join(map(str, sorted(found)))
        raise CommandError(f"class: {text!r} must mean one class, got the classes {indices}; name one by its index")
    return found.pop()


def run_network(
    network,
    reader: VideoReader,
    classes: tuple[int, ...] | int,
    *,
    step: int | None = None,
    loop: bool = False,
    per_window: bool = False,
    folder: Path | None = None,
    progress: Progress = lambda n: None,
) -> Explained:
    """First pass over the video: windows through the network, maps blended; those of a long video lie in `folder`.

    Where `classes` asks for the k most probable ones, they are those of the whole video: if single windows predict
    others, a second round explains the same classes everywhere.
    """
    fixed = network.fixed_classes
    if (
        fixed is not None
        and classes != 1
        and fixed not in (f"top{classes}", list(classes) if isinstance(classes, tuple) else None)
    ):
        raise CommandError(f"class: the file was exported with classes={fixed!r} and cannot explain others")
    options = {"step": step, "loop": loop, "per_window": per_window or not network.raw}
    options |= {"folder": folder, "progress": progress}
    if isinstance(classes, tuple) or fixed is not None:
        done = _one_round(network, reader, classes if fixed is None else None, **options)
        if None in done.classes and not done.reading.head_classes:
            done.notes.append(f"the file explains the {fixed} class of each window, and they differ in this video")
    else:
        done = _one_round(network, reader, None, **options)
        top = tuple(int(i) for i in np.argsort(-done.probabilities, kind="stable")[:classes])
        if tuple(done.classes) != top:
            del done  # and with it the first round's maps
            done = _one_round(network, reader, top, **options)
            done.notes.append("explained in a second round, for the classes of the whole video")
    if not network.raw and not per_window:
        done.notes.append("the file scales its maps per clip, so every window has its own value range")
    return done


def _one_round(
    network, reader: VideoReader, classes: tuple[int, ...] | None, *, step, loop, per_window, folder, progress
) -> Explained:
    stride, labels = network.preprocessing.stride, network.labels
    track, probabilities, shares, windows, seconds = Track(folder), Rows("d"), Rows("f"), [], 0.0
    for window in sliding_windows(reader, network.preprocessing, step, loop, network.takes_frames):
        started = time.perf_counter()
        answer = network(window.clip, classes)
        seconds += time.perf_counter() - started
        if not (np.isfinite(answer.maps).all() and np.isfinite(answer.logits).all()):
            raise CommandError(f"model: the output must be finite, got NaN or infinity in window {len(windows)}")
        reading = answer.reading
        own = probabilities.append(answer.probabilities)
        check_count(labels, len(own))
        maps = answer.maps
        if per_window and network.raw:
            maps = minmax(maps, maps.min(axis=(-3, -2, -1))[:, None], maps.max(axis=(-3, -2, -1))[:, None])
        track.add(window.start, np.stack([maps, answer.motion])[:, :, : window.used])
        shares.append(answer.motion_share)
        windows.append(
            {
                "frames": [window.start * stride, (window.start + window.used - 1) * stride],
                "top": top_classes(own, labels, reading.unit),
                "motion_share": numbers(answer.motion_share),
            }
        )
        progress(len(windows))
    low, high = (limit[0] for limit in track.range())  # [relevance, mask] -> relevance
    if per_window:
        low, high = np.zeros_like(low), np.ones_like(high)
    several = bool(reading.head_classes)
    shown = list(classes or _classes_of_file(network.fixed_classes, probabilities.all(), several))
    return Explained(
        names=_map_names(shown, len(low), network.feature, labels),
        classes=shown,
        maps=track,
        low=low,
        high=high,
        probabilities=np.mean(probabilities.all(), axis=0),
        motion_share=np.mean(shares.all(), axis=0),
        windows=windows,
        frame_count=reader.decoded,
        network_seconds=seconds,
        reading=reading,
    )


def _classes_of_file(fixed: list | str | None, probabilities: np.ndarray, several: bool) -> list[int | None]:
    """The classes that were shown without being asked for; `None` where windows differ, or each is of several heads."""
    if isinstance(fixed, list):
        return [None] * len(fixed) if several else fixed
    count = int(fixed.removeprefix("top")) if fixed and fixed.startswith("top") else 1
    if several:
        return [None] * count
    ranks = {tuple(np.argsort(-p, kind="stable")[:count].tolist()) for p in probabilities}
    return list(ranks.pop()) if len(ranks) == 1 else [None] * count


def _map_names(classes: list[int | None], count: int, feature: str | None, labels: Sequence[str] | None) -> list[str]:
    """One name per map: the class, or the feature for `--feature`."""
    if feature is not None and not feature.startswith("top"):
        return [f"feature {c}" for c in feature.split(",")]
    names = [f"prediction {i + 1}" if c is None else printable(label_of(c, labels)) for i, c in enumerate(classes)]
    if feature is None:
        return names
    return [f"{name} feature {i + 1}" for name in names for i in range(count // len(names))]


def draw(
    done: Explained,
    reader: VideoReader,
    network,
    methods: list[str],
    out: Path,
    *,
    format: str = "mp4",
    boxes: dict | None = None,
    progress: Progress = lambda n: None,
    columns: int = 6,
) -> list[Path]:
    """Second pass over the video: writes heat, focus, motion and the contact sheet of every map."""
    renderer = render.Renderer(Geometry.of(network.preprocessing, reader.size), boxes or {})
    kinds = [kind for method in methods for kind in PICTURES[method]]
    shown = render.evenly_spaced(done.frame_count, columns)
    sheets, times = [{kind: [] for kind in ("input", *kinds)} for _ in done.names], []
    files = {(i, k): out / (k + tail_of(done.names, i) + SUFFIX[format]) for i in range(len(done.names)) for k in kinds}
    with ExitStack() as stack:  # an error in one of them leaves none of them behind
        writers = {
            key: stack.enter_context(VideoWriter(path, reader.fps, reader.pixel_aspect)) for key, path in files.items()
        }
        for index, frame in enumerate(reader):
            relevance, mask = done.maps.at(index, network.preprocessing.stride)
            relevance = minmax(relevance, done.low, done.high)
            for i, sheet in enumerate(sheets):
                pictures = {kind: _picture(renderer, kind, frame, relevance[i], mask[i]) for kind in kinds}
                if index in shown:
                    pictures["input"] = renderer.input(frame)
                for kind, picture in pictures.items():
                    renderer.draw_boxes(picture, index)
                    if kind != "input":
                        writers[i, kind].write(picture, reader.span)
                    if index in shown:
                        sheet[kind].append(picture)
            if index in shown:
                times.append(reader.span[0])
            progress(index + 1)
    paths = list(files.values())
    for i, sheet in enumerate(sheets):
        share, aspect = done.motion_share[i], float(reader.pixel_aspect)
        subtitle = printable(f"{reader.path.name} · {network.name} · {network.map}") + (
            f" · motion share {100 * share:.0f} %" if share == share else ""
        )
        paths.append(out / f"contact{tail_of(done.names, i)}.png")
        picture = render.contact_sheet(sheet, shown, times, done.title(i), subtitle, pixel_aspect=aspect)
        write_picture(paths[-1], picture)
    if any(writer.padded for writer in writers.values()):
        size = f"{reader.size[1]}x{reader.size[0]}"
        done.notes.append(f"MP4 needs an even width and height: {size} was padded by repeating its last column or row")
    return paths


def _picture(renderer: render.Renderer, kind: str, frame: np.ndarray, relevance: np.ndarray, mask: np.ndarray):
    if kind in ("heat", "focus"):
        return getattr(renderer, kind)(frame, relevance)
    return renderer.motion(frame, relevance, mask if kind == "motion" else 1 - mask)


def write_raw(path: Path, done: Explained, reader: VideoReader, network) -> None:
    """Blended maps as they left the network, with all that is needed to place them: see the names in the file."""
    geometry = Geometry.of(network.preprocessing, reader.size)
    count, (_, *shape) = len(done.maps), done.maps[0].shape
    arrays = {
        "names": np.array(done.names),
        "low": done.low,
        "high": done.high,
        "source_frames": np.arange(count) * network.preprocessing.stride,
        "region": np.array([[s.start, s.stop] for s in geometry.region]),  # rows, columns of the source frame
        "source_size": np.array(reader.size),
    }
    header = {"descr": "<f4", "fortran_order": False, "shape": (shape[0], count, *shape[1:])}  # [M, S, h, w], S sampled
    with whole_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        # As np.savez_compressed does, which wants each array as a whole.
        for part, name in enumerate(("maps", "motion_mask")):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                for map in range(shape[0]):
                    file.writelines(done.maps[i][part, map].tobytes() for i in range(count))
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def write_json(path: Path, report: dict) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2, default=_plain) + "\n", encoding="utf-8")


def top_classes(
    probabilities: np.ndarray, labels: Sequence[str] | None, unit: str = "probability", count: int = 5
) -> list[dict]:
    """The classes with the highest values, which stand under `unit`, see `Reading`."""
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [{"class": int(i), "label": label_of(i, labels), unit: round(float(probabilities[i]), 6)} for i in order]


def label_of(index: int, labels: Sequence[str] | None) -> str:
    return labels[index] if labels and index < len(labels) else f"class {index}"


def tail_of(names: list[str], index: int) -> str:
    """Nothing for a single map, else `-name`, fit for a file name and unique."""
    return "" if len(names) == 1 else f"-{file_names(names)[index]}"


def numbers(values: np.ndarray) -> list[float | None]:
    return [round(float(v), 6) if np.isfinite(v) else None for v in values]


def _plain(value):
    if isinstance(value, Fraction):
        return float(value)
    if isinstance(value, np.ndarray):
        return numbers(value)
    if isinstance(value, np.generic):
        return value.item()
    return str(value)
