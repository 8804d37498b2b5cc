"""One video through the methods: every measure of every clip."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import metrics
from ..explained import ExplainedModel, explain
from ..heads import METHODS, GradCAM, GuidedGradCAM, Head, SelectiveRelevance
from ..inputs import in_our_order, layout_of
from ..preprocessing import Preprocessing
from ..video import VideoReader
from ..windows import Geometry, Window, for_network, sliding_windows, to_clip
from .masks import Masks

PAPER_METHODS = ("deep_taylor", "grad_cam", "guided_backprop", "guided_grad_cam")

MEASURES = {
    "moving": "share of the voxels that move by optical flow: the precision of a map that is everywhere",
    "precision": "share of the relevant voxels that move by optical flow (Table 1)",
    "empty": "1 where no voxel of the map is relevant; its precision is then 0",
    "agreement": "relevant voxels that two methods share (Table 2)",
    "voxels": "relevant voxels of the selective map / of the whole one (Table 3)",
    "relevance": "sum of relevance over the relevant voxels, selective / whole (Table 3, in parentheses)",
    "motion_share": "share of the absolute relevance that is motion, without a floor",
    "ms": "milliseconds for network and explanation of one clip (Table 4)",
    "extra_ms": "milliseconds that the selective step adds",
    "insertion": "area under the class probability as the most relevant voxels appear first",
    "deletion": "area under the class probability as the most relevant voxels vanish first",
    "pointing": "1 where the most relevant voxel lies on the ground truth",
    "in_mask": "share of the relevant voxels that lie on the ground truth",
}


class Key(NamedTuple):
    """What a number is: a measure of a method's map, of its selective version, or of two methods."""

    measure: str
    method: str = ""
    n_sigma: float | None = None
    other: str = ""


@dataclass(frozen=True)
class Settings:
    """What is measured and how; every result states all of it.

    Args:
        methods: names of `clipsight.heads.METHODS`.
        layer: module path of the layer that the Grad-CAMs explain, in place of their own choice.
        n_sigma: threshold of the selective versions; the paper's tables use 4.
        sweep: thresholds for the curves over this hyper-parameter.
        floor: a voxel is relevant where its raw relevance exceeds this share of the clip's maximum, or `"quantile"`.
        flow: optical flow by `"dis"` or `"farneback"`, between the frames that the network sees.
        moving: flow in pixels a frame above which a voxel moves, or `"frame_std"`.
        agreement: `"iou"` of the relevant voxels, or `"first"`: the share of the first method's.
        repeats: timed runs of each video's first clip; 0 for no times.
        auc: voxel steps of the insertion and deletion curves; 0 for none, as they take that many runs of the network.
        auc_baseline: what a voxel shows where it is taken away, `"blur"` or `"zero"`.
        tolerance: pixels by which the pointing game may miss.
        step: sampled frames from one clip to the next; by default clips stand side by side, as in the paper.
        loop: repeat a video that is shorter than a clip.
        seed: of random weights.

    Raises:
        ValueError: an option is outside its range.
    """

    methods: tuple[str, ...] = PAPER_METHODS
    layer: str | None = None
    n_sigma: float = 4.0
    sweep: tuple[float, ...] = ()
    floor: float | str = 10 / 255
    flow: str = "dis"
    moving: float | str = 0.5
    agreement: str = "iou"
    repeats: int = 5
    auc: int = 0
    auc_baseline: str = "blur"
    tolerance: int = 0
    step: int | None = None
    loop: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        known = ", ".join(METHODS)
        if not self.methods:
            raise ValueError(f"evaluate: methods must name at least one of {known}, got none")
        for i, name in enumerate(self.methods):
            if name not in METHODS:
                raise ValueError(f"evaluate: methods must be of {known}, got {name!r}")
            if name in self.methods[:i]:
                raise ValueError(f"evaluate: methods must name each method once, got {name} twice")
        for name, values in {"n_sigma": (self.n_sigma,), "sweep": self.sweep}.items():
            if not all(math.isfinite(n) and n >= 0 for n in values):
                got = ", ".join(f"{n:g}" for n in values)
                raise ValueError(f"evaluate: {name} must be at least 0 and finite, got {got}")
        for name, word in {"floor": "quantile", "moving": "frame_std"}.items():
            value, top = getattr(self, name), {"floor": 1, "moving": math.inf}[name]
            if value != word and (isinstance(value, str) or not 0 <= value < top):
                below = " and below 1" if top == 1 else ""
                raise ValueError(f"evaluate: {name} must be at least 0{below}, or {word!r}, got {value!r}")
        choices = {"flow": ("dis", "farneback"), "agreement": ("iou", "first"), "auc_baseline": ("blur", "zero")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"evaluate: {name} must be one of {list(allowed)}, got {getattr(self, name)!r}")
        for name in ("repeats", "auc", "tolerance", "seed"):
            if not 0 <= (value := getattr(self, name)) < 2**63:
                rule = "at least 0" if value < 0 else "a number of 63 bits"
                raise ValueError(f"evaluate: {name} must be {rule}, got {value}")

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Every n_sigma that a selective map is made with."""
        return tuple(sorted({self.n_sigma, *self.sweep}))

    def heads(self) -> dict[str, Head]:
        """The methods. Their maps are raw: relevance is measured against zero, which no scaling must move."""
        made = {}
        for name in self.methods:
            options: dict[str, Any] = {"normalize": "none"}
            if self.layer is not None and issubclass(METHODS[name], GradCAM):
                options["layer"] = self.layer
            elif self.layer is not None and issubclass(METHODS[name], GuidedGradCAM):
                options["cam"] = GradCAM(layer=self.layer)
            made[name] = METHODS[name](**options)
        return made

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The methods whose agreement is measured."""
        both = [(a, b) for a in self.methods for b in self.methods if a != b]
        return both if self.agreement == "first" else [(a, b) for a, b in both if _before(self.methods, a, b)]


def _before(names: tuple[str, ...], a: str, b: str) -> bool:
    return names.index(a) < names.index(b)


class Evaluator:
    """Measures the methods on one video after another.

    Args:
        model: a classifier in eval mode, `[N, 3, T, H, W]` -> `[N, K]`, or in the order of its attribute `layout`.
        preprocessing: how it wants its frames.
        settings: what is measured.
        device: where it runs.
        channels: of the network's clips; 1 for one that sees gray.

    Raises:
        ValueError, AttachError: a method cannot explain the network.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        settings: Settings,
        device: str = "cpu",
        channels: int = 3,
    ):
        self.preprocessing, self.settings, self._channels = preprocessing, settings, channels
        self._model, self._device = in_our_order(model, layout_of(model)).to(device), device
        self.heads = settings.heads()
        heads = [
            part for head in self.heads.values() for part in (head, *(selective(head, n) for n in settings.thresholds))
        ]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self._explained = self._explain(heads)
        self._plain = self._explained.plain_at(preprocessing.size).eval()
        self.notes = list(dict.fromkeys(str(w.message) for w in caught if str(w.message).startswith("explain:")))
        self._timed: dict[str, tuple[ExplainedModel, ExplainedModel]] = {}

    @property
    def num_classes(self) -> int:
        return self._explained.num_classes

    def __call__(
        self,
        reader: VideoReader,
        class_index: int | None = None,
        masks: Masks | None = None,
        progress: Callable[[int, int | None], None] = lambda done, total: None,
    ) -> dict[str, Any]:
        """Measures one video.

        Args:
            reader: of the video.
            class_index: the class that is explained; by default the most probable one of the whole video.
            masks: the ground truth, if there is any.
            progress: called with the number of clips done, and of all where it is known.

        Returns:
            JSON-able: the video's facts, the `clips` as first and last source frame, and under `measures` a row for
            every `Key`, with a value for each clip (`None` where it was not measured in that one).

        Raises:
            VideoError, ValueError: the video is damaged, too short or too small; masks do not fit; clips of one frame.
        """
        if masks:
            masks.check(reader.size)
        total, probability = None, None
        if class_index is None:
            read = self._explained.score.reading.probabilities
            scores = [read(self.logits(self._tensor(frames)).numpy()) for _, frames in self._clips(reader)]
            mean = np.mean(scores, axis=0)
            class_index, total = int(mean.argmax()), len(scores)
            probability = float(mean[class_index])
        clips, found = [], []
        geometry, stride = Geometry.of(self.preprocessing, reader.size), self.preprocessing.stride
        for window, frames in self._clips(reader):
            sources = [(window.start + i) * stride for i in range(window.used)]
            truth = masks and masks.clip(sources, geometry)
            found.append(self._measure(frames, window.used, class_index, truth, timed=not found))
            clips.append([sources[0], sources[-1]])
            progress(len(found), total)
        if masks:
            masks.check(reader.size, reader.decoded)
        keys = dict.fromkeys(key for values in found for key in values)
        return {
            "video": str(reader.path),
            "frames": reader.decoded,
            "size": list(reader.size),
            "cut_off": reader.cut_off,
            "class": class_index,
            "probability": probability,
            "masks": masks and str(masks.path),
            "notes": self.notes,
            "clips": clips,
            "measures": [{**key._asdict(), "values": [values.get(key) for values in found]} for key in keys],
        }

    def logits(self, clip: Tensor) -> Tensor:
        """Class scores float32 `[K]`, on the CPU, of a clip `[1, 3, T, H, W]`. ValueError where they are not finite."""
        with torch.inference_mode():
            logits = self._plain(clip)[0].float().cpu()
        if not logits.isfinite().all():
            raise ValueError("evaluate: the network's output must be finite, got NaN or infinity")
        return logits

    def maps(self, clip: Tensor, class_index: int) -> tuple[dict[tuple[str, float | None], np.ndarray], dict]:
        """Raw relevance of a clip.

        Args:
            clip: `[1, 3, T, H, W]`.
            class_index: the explained class.

        Returns:
            Maps float32 `[T, H, W]` by method and n_sigma (`None`: the whole map); and the motion shares, by the same.
        """
        with torch.inference_mode():
            _, *outputs = self._explained(clip, torch.tensor([[class_index]], device=clip.device))
        rest = iter(output[0, 0].float().cpu().numpy() for output in outputs)
        maps, shares = {}, {}
        for name in self.heads:
            maps[name, None] = next(rest)
            for n in self.settings.thresholds:
                maps[name, n], shares[name, n] = next(rest), next(rest)
            if not np.isfinite(maps[name, None]).all():
                raise ValueError(f"evaluate: the map of {name} must be finite, got NaN or infinity")
        return maps, shares

    def _measure(
        self, frames: np.ndarray, used: int, class_index: int, truth: np.ndarray | None, timed: bool
    ) -> dict[Key, float]:
        """Every measure of one clip: its frames uint8 `[T, H, W, 3]`, of which the first `used` are no repetition."""
        settings, clip = self.settings, self._tensor(frames)
        maps, shares = self.maps(clip, class_index)
        moves = metrics.moving(metrics.optical_flow(frames[:used], settings.flow), settings.moving)
        found: dict[Key, Any] = {Key("moving"): moves.mean()}
        seen = {key: map[:used] for key, map in maps.items()}
        for (name, n), map in seen.items():
            whole = seen[name, None]  # what is negligible in the whole map is so in its selective part
            found[Key("precision", name, n)] = metrics.motion_precision(map, moves, settings.floor, of=whole)
            found[Key("empty", name, n)] = not metrics.relevant(map, settings.floor, of=whole).any()
            if n is not None:
                voxels, relevance = metrics.selectivity(map, whole, settings.floor)
                found |= {Key("voxels", name, n): voxels, Key("relevance", name, n): relevance}
                found[Key("motion_share", name, n)] = shares[name, n]
            if truth is not None and truth.any():
                found[Key("in_mask", name, n)] = metrics.motion_precision(map, truth, settings.floor, of=whole)
                found[Key("pointing", name, n)] = metrics.pointing_game(map, truth, settings.tolerance)
        for a, b in settings.pairs:
            agreement = metrics.agreement(seen[a, None], seen[b, None], settings.floor, settings.agreement)
            found[Key("agreement", a, None, b)] = agreement
        if settings.auc:
            found |= self._curves(clip, class_index, maps)
        if timed and settings.repeats:
            found |= self._times(clip, class_index)
        return {key: float(value) for key, value in found.items()}

    def _curves(self, clip: Tensor, class_index: int, maps: dict) -> dict[Key, float]:
        found = {}
        options = {"steps": self.settings.auc, "baseline": self.settings.auc_baseline}
        options["probability"] = self._explained.score.probability
        for (name, n), map in maps.items():
            if n in (None, self.settings.n_sigma):
                for measure in ("insertion", "deletion"):
                    curve = getattr(metrics, f"{measure}_auc")
                    (area,) = curve(self._plain, clip, map[None], np.array([class_index]), **options)
                    found[Key(measure, name, n)] = area
        return found

    def _times(self, clip: Tensor, class_index: int) -> dict[Key, float]:
        """Each method alone, with and without its selective step, in turns."""
        found, n = {}, self.settings.n_sigma
        classes = torch.tensor([[class_index]], device=clip.device)

        def run(explained: ExplainedModel) -> Callable[[], Any]:
            def once() -> None:
                with torch.inference_mode():
                    explained(clip, classes)[-1].cpu()  # waits for the device

            return once

        for name, head in self.heads.items():
            if name not in self._timed:
                self._timed[name] = self._explain(head), self._explain(selective(head, n, extras=()))
            without, with_ = (run(explained) for explained in self._timed[name])
            cost = metrics.overhead(with_, without, self.settings.repeats, warmup=1)
            found |= {Key("ms", name): cost["plain_ms"], Key("ms", name, n): cost["ms"]}
            found[Key("extra_ms", name, n)] = cost["ms"] - cost["plain_ms"]
        return found

    def _explain(self, heads: Head | list[Head]) -> ExplainedModel:
        clip = torch.zeros(1, self._channels, *self.preprocessing.size, device=self._device)
        return explain(self._model, heads, clip, "input")

    def _clips(self, reader: VideoReader) -> Iterator[tuple[Window, np.ndarray]]:
        """Each window with the frames that the network sees of it, uint8 `[T, H, W, 3]`."""
        preprocessing = self.preprocessing
        geometry = Geometry.of(preprocessing, reader.size)
        step = self.settings.step or preprocessing.frames
        for window in sliding_windows(reader, preprocessing, step, self.settings.loop, whole=True):
            yield window, np.stack([geometry.crop_frame(frame) for frame in window.clip[0]])

    def _tensor(self, frames: np.ndarray) -> Tensor:
        clip = for_network(to_clip(frames, self.preprocessing), self.preprocessing, self._channels)
        return torch.from_numpy(clip).to(self._device)


def selective(head: Head, n_sigma: float, extras: tuple[str, ...] = ("motion_share",)) -> SelectiveRelevance:
    return SelectiveRelevance(of=head, n_sigma=n_sigma, extras=extras)
