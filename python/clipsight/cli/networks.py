"""Where a network comes from: the shipped ones, torchvision, a factory in Python code, or an exported file."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import inspect
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from ..errors import user_code
from ..labels import as_labels
from ..layouts import OURS, shape_of
from ..manifest import FORMATS, weights_digest
from ..preprocessing import Preprocessing
from ..pyramid import METHOD as PYRAMID
from ..targets import BEST_OTHER, Reading, Target
from ..windows import for_network

MOST_THREADS, MOST_STRIDE = 4096, 10**6
OPTIONS = {"tau": "threshold", "n_sigma": "n-sigma"}  # input of an exported file -> option that sets it


class CommandError(ValueError):
    """A mistake on the command line, said in one line."""


@dataclass
class Answer:
    """What a network says about one clip: logits `[K]`, maps and mask of motion `[M, T, H, W]`, its share `[M]`.

    `reading`: how the logits are shown; where it says so they have time steps as well.
    """

    logits: np.ndarray
    maps: np.ndarray
    motion: np.ndarray
    motion_share: np.ndarray
    reading: Reading = field(default_factory=Reading)

    @property
    def probabilities(self) -> np.ndarray:
        """Float64 `[K]`."""
        return self.reading.probabilities(self.logits)


@dataclass
class LiveModel:
    """A network in Python, before it is explained."""

    name: str
    module: object  # torch.nn.Module
    preprocessing: Preprocessing
    labels: Sequence[str] | None
    channels: int = 3  # 1: it sees gray
    layout: str = OURS


class LiveNetwork:
    """Explains a live model; the modules for each choice of classes are built when first needed."""

    raw = True
    has_motion = True
    takes_frames = False

    def __init__(self, model: LiveModel, head, n_sigma: float, device: str, target: Target | None = None):
        from .. import SelectiveRelevance

        self._target = target
        self.fixed_classes = "predicted" if target and target.heads else None

        self.name, self.preprocessing, self.labels = model.name, model.preprocessing, model.labels
        self._module, self._device = model.module.to(device), device
        self._channels, self._layout = model.channels, model.layout
        self.map, self.feature = head.name, _feature_text(getattr(head, "channels", None))
        self.methods = [head, SelectiveRelevance(of=head, n_sigma=n_sigma, extras=("motion_share",))]
        self._explained: dict = {}
        self.notes: list[str] = []

    def __call__(self, clip: np.ndarray, classes: tuple[int, ...] | None) -> Answer:
        """Explains the clip `[1, 3, T, H, W]` for `classes`, or for the predicted one."""
        import torch

        from .. import explain

        tensor = torch.from_numpy(for_network(clip, self.preprocessing, self._channels, self._layout)).to(self._device)
        if classes not in self._explained:
            chosen = "predicted" if classes is None else list(classes)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                how = {"target": self._target, "layout": self._layout}
                self._explained[classes] = explain(self._module, self.methods, tensor, chosen, **how)
            said = (str(warning.message) for warning in caught)
            self.notes = list(dict.fromkeys([*self.notes, *(text for text in said if text.startswith("explain:"))]))
        with torch.inference_mode():
            logits, maps, motion, share = (o[0].float().cpu().numpy() for o in self._explained[classes](tensor))
        return Answer(logits, maps, motion != 0, share, self._explained[classes].score.reading)

    def describe(self) -> dict:
        described = {"name": self.name, "methods": [m.describe() for m in self.methods]}
        return described | (next(iter(self._explained.values())).score.describe_target() if self._explained else {})

    def digest(self) -> str:
        return f"{self.name} {weights_digest(self._module)}"


class ExportedNetwork:
    """Explains with an exported file, as it was exported, by its first map or the named one.

    `values` are for its inputs `tau` and `n_sigma`, if any; `probability` is another than the file says.
    """

    notes = ()

    def __init__(
        self,
        path: str,
        device: str,
        threads: int | None,
        values: dict,
        map: str | None,
        probability: str | None = None,
        **overrides,
    ):
        from .. import load

        self._loaded, self._path = load(path, device=device, threads=threads), Path(path)
        manifest = self._loaded.manifest
        self.reading = replace(manifest.reading, probability=probability or manifest.probability)
        self._target = manifest.target
        self._values = {name: value for name, value in values.items() if value is not None}
        for name in self._values.keys() - {option.name for option in manifest.option_inputs}:
            raise CommandError(
                f"{OPTIONS[name]}: is part of the exported file {path} and cannot be changed, got {values[name]}"
            )
        self.name, self.methods = Path(path).name, manifest.methods
        self.labels = manifest.labels
        self.preprocessing = exported_preprocessing(path, manifest, **overrides)
        self.takes_frames = manifest.input.takes_frames
        names = manifest.output_names
        single = [m for m in self.methods if m["method"] in names and m.get("colours") != "raw"]
        if (head := next((m for m in single if m["method"] == (map or m["method"])), None)) is None:
            raise CommandError(f"map: {path} must return {map or 'a map'}, its outputs are {', '.join(names)}")
        self.map = head["method"]
        self._index = {part: names.index(name) for part, name in _outputs_of(self.map, self.methods).items()}
        self.raw = head["normalize"] == "none" or head.get("size") == "features"
        self.feature = _feature_text(head.get("channels"))
        self._highest = 255.0 if manifest.outputs[self._index["map"]].dtype == "uint8" else 1.0
        choice = manifest.classes
        self._takes_classes = choice == "input"
        self.fixed_classes = None if self._takes_classes else choice

    def __call__(self, clip: np.ndarray, classes: tuple[int, ...] | None) -> Answer:
        def run(chosen: Sequence[int]):
            given = (np.array([chosen], np.int64),) if self._takes_classes else ()
            return [np.asarray(output[0], np.float32) for output in self._loaded(clip, *given, **self._values)]

        if not self.takes_frames:
            given = self._loaded.manifest.input
            clip = for_network(clip, self.preprocessing, given.channels, given.layout)
        outputs = run(classes or (0,))
        if classes is None and self._takes_classes:
            outputs = run((int(self.reading.scores(outputs[0]).argmax()),))
        maps = outputs[self._index["map"]] / self._highest
        if maps.shape[1:] != self.preprocessing.size:
            maps = _upsample(maps, self.preprocessing.size)
        motion = outputs[self._index["motion"]] != 0 if self.has_motion else np.zeros(maps.shape, bool)
        share = outputs[self._index["motion_share"]] if "motion_share" in self._index else np.full(len(maps), np.nan)
        return Answer(outputs[0], maps, motion, share, self.reading)

    @property
    def has_motion(self) -> bool:
        return "motion" in self._index

    def describe(self) -> dict:
        facts = {"probability": self.reading.probability, "target": self._target}
        return {"name": self.name, "methods": self.methods} | facts

    def digest(self) -> str:
        return hashlib.sha256(self._path.read_bytes()).hexdigest()


def _outputs_of(map: str, methods: Sequence[dict]) -> dict[str, str]:
    """The outputs that belong to one map: `"map"` and, where it is split, `"motion"` and `"motion_share"`."""
    splits = [m for m in methods if m["method"] == "selective_relevance" and m["of"]["method"] != PYRAMID]
    found = {"map": map}
    for part in ("motion", "motion_share"):  # of several, the second one is called motion_2
        own = [m["of"]["method"] for m in splits if part in (m["part"].replace("both", "motion"), *m["extras"])]
        if map in own:
            found[part] = f"{part}_{own.index(map) + 1}".removesuffix("_1")
    return found


def _feature_text(channels) -> str | None:
    return channels if channels is None or isinstance(channels, str) else ",".join(map(str, channels))


def _upsample(maps: np.ndarray, size: Sequence[int]) -> np.ndarray:
    import torch

    from .. import reference

    return reference.spline_upsample(torch.from_numpy(maps), list(size)).numpy()


def is_exported(spec: str) -> bool:
    return Path(spec).suffix.lower() in FORMATS or Path(spec).is_file()


def load_live(spec: str, checkpoint: str | None, random_weights: bool, **overrides) -> LiveModel:
    """A live model by its name or `package.module:factory`; `overrides` go into its preprocessing.

    Raises:
        CommandError: no such model, a checkpoint that does not fit, or a network that would have random weights.
    """
    from .. import models
    from ..inputs import layout_of

    if ":" in spec:
        live = _from_factory(spec, checkpoint)
    elif spec in models.names():
        if checkpoint is None and not (models.has_weights(spec) or random_weights):
            raise CommandError(
                f"model: {spec} comes without trained weights; give them with --checkpoint FILE, "
                "or use random ones with --random-weights"
            )
        module = models.load(spec, checkpoint=checkpoint, pretrained=not random_weights)
        live = LiveModel(spec, module, module.preprocessing, module.labels)
    else:
        near = difflib.get_close_matches(spec, models.names(), 1)
        raise CommandError(
            f"model: must be one of {', '.join(models.names())}, an exported file, or package.module:factory, "
            f"got {spec!r}" + (f"; did you mean {near[0]}?" if near else "")
        )
    with contextlib.suppress(NotImplementedError):  # of what torch.export made, which is as it was exported
        live.module.eval()
    preprocessing = _override(live.preprocessing, **overrides)
    layout = layout_of(live.module)
    channels = 1 if preprocessing.channels == 1 else _channels_of(live.module, preprocessing.size, layout)
    _check_channels(spec, channels)
    return replace(live, preprocessing=preprocessing, channels=channels, layout=layout)


def _channels_of(module, size: tuple[int, int, int], layout: str) -> int:
    """3, unless the first convolution and a trial show that the network takes clips or frames of other channels."""
    import torch
    from torch import nn

    first = next((layer for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Conv3d))), None)
    if first is None or first.in_channels == 3:
        return 3
    for channels in (3, 1, first.in_channels):
        clip = torch.zeros(shape_of(1, channels, size, layout))
        for example in (clip, clip.select(layout.index("T"), 0)):
            with contextlib.suppress(Exception), torch.inference_mode():
                module(example)
                return channels
    return 3


def _check_channels(model: str, channels: int) -> None:
    """Raises CommandError where no video has as many."""
    if channels not in (1, 3):
        raise CommandError(
            f"model: {model} must take clips of 3 channels, or of 1 (gray), as videos have them, got {channels} "
            "channels; in Python, clipsight.explain and clipsight.load take clips of any"
        )


def exported_preprocessing(path: str, manifest, **overrides) -> Preprocessing:
    """What an exported file wants, by its manifest or else frames at its first size, with `overrides` where given."""
    _check_channels(path, manifest.input.channels)
    size = manifest.sizes[0]
    plain = Preprocessing(frames=size[0], resize=min(size[1:]), crop=size[1:])
    result = _override(manifest.preprocessing or plain, **overrides)
    if result.size not in manifest.sizes:
        sizes = ", ".join(map(_text, manifest.sizes))
        raise CommandError(f"size: {path} takes clips of {sizes} (TxHxW), got {_text(result.size)}")
    return result


def _override(
    preprocessing: Preprocessing, frames: int | None, size: tuple[int, int] | None, stride: int | None
) -> Preprocessing:
    """The crop becomes `size`; the resize before it grows or shrinks in proportion."""
    changes: dict = {name: value for name, value in (("frames", frames), ("stride", stride)) if value is not None}
    if (stride or 1) > MOST_STRIDE:
        raise CommandError(f"stride: must be at most {MOST_STRIDE}, got {stride}")
    if size is not None:
        factors = [new / old for new, old in zip(size, preprocessing.crop, strict=True)]
        resize = preprocessing.resize
        if isinstance(resize, int):
            resize = round(resize * max(factors))
        elif resize is not None:
            resize = tuple(round(r * f) for r, f in zip(resize, factors, strict=True))
        changes |= {"crop": size, "resize": resize}
    try:
        changed = replace(preprocessing, **changes)
    except ValueError as error:
        raise CommandError(str(error)) from error
    gigabytes, memory = 12e-9 * math.prod(changed.size), 1e-9 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if gigabytes > memory / 4:  # and the network's features take many times that
        raise CommandError(
            f"size: a clip must take less than a quarter of the memory, {memory:.0f} GB, got {_text(changed.size)} "
            f"(TxHxW), {gigabytes:.0f} GB"
        )
    return changed


def _text(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _from_factory(spec: str, checkpoint: str | None) -> LiveModel:
    import torch

    from ..inputs import readable
    from ..models import Adapter, checkpoints

    module = _find(spec)
    if not isinstance(module, torch.nn.Module):
        if not callable(module):
            rule = f"model: {spec} must be a network, or a class or function that makes one"
            raise CommandError(f"{rule}, got {type(module).__name__}, not callable")
        if needed := _needed(module):
            raise CommandError(f"model: {spec} must be callable without arguments, got one that needs {needed}")
        try:
            module = module()
        except TypeError as error:
            if error.__traceback__.tb_next is not None:  # raised in there, not by the call
                raise
            raise CommandError(f"model: {spec} must be callable without arguments ({error})") from error
    module = readable(module, f"model: what {spec} returns")
    if checkpoint:
        checkpoints.load_into(module.network if isinstance(module, Adapter) else module, checkpoint)
    preprocessing = getattr(module, "preprocessing", None) or Preprocessing(resize=112)
    labels = as_labels(getattr(module, "labels", None), source=f"model: the labels of {spec}")
    return LiveModel(spec, module, preprocessing, labels)


def _find(spec: str) -> object:
    """What `package.module:factory` names. An error in that code is its own."""
    where, _, name = spec.partition(":")
    rule = f"model: {spec} must be package.module:factory that can be imported"
    is_path = where.endswith(".py") or not all(part.isidentifier() for part in where.split("."))
    if is_path or not name.isidentifier():
        stem = Path(where).name.removesuffix(".py")
        hint = f" (in its folder, {stem}:{name})" if is_path and stem.isidentifier() and name.isidentifier() else ""
        raise CommandError(f"{rule}, two names without a path{hint}, got {where!r} and {name!r}")
    top, here = where.partition(".")[0], os.getcwd()
    sys.path.insert(0, here)
    try:
        found = importlib.util.find_spec(top)
        if found is not None and top != "clipsight":
            user_code.update(map(os.path.realpath, found.submodule_search_locations or [found.origin or ""]))
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise  # what is missing is something that it imports
        raise CommandError(f"{rule} ({error})") from error
    except SystemExit as error:
        raise CommandError(f"{rule}, got one that ends Python when it is imported: is it a program?") from error
    finally:
        sys.path.remove(here)
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, dir(module), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise CommandError(f"{rule}, but the module has no {name}{hint}")
    return getattr(module, name)


def _needed(factory: Callable) -> str:
    """The arguments that a call must give."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (ValueError, TypeError):  # one in C that does not tell
        return ""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return ", ".join(p.name for p in parameters if p.default is p.empty and p.kind not in variable)


def map_head(name: str | None, feature: str | None, threshold: float | None, layer: str | None, normalize: str):
    """The head of a relevance map by its name, with those of its options that were given."""
    from ..heads import METHODS, GradCAM

    name = name or "saliency_tube"
    if name not in METHODS:
        raise CommandError(f"map: must be one of {', '.join(METHODS)}, got {name!r}")
    known = {field.name for field in fields(METHODS[name])}
    options: dict = {"normalize": normalize}
    given = {"feature": ("channels", feature), "threshold": ("threshold", threshold), "layer": ("layer", layer)}
    for flag, (option, value) in given.items():
        if value is None:
            continue
        if option == "layer" and "cam" in known:
            options["cam"] = GradCAM(layer=layer)
        elif option in known:
            options[option] = _channels(feature) if option == "channels" else value
        else:
            raise CommandError(f"{flag}: is no option of {name}, got {value}")
    return METHODS[name](**options)


def read_target(texts: Sequence[str], probability: str | None, class_of: Callable[[str], int]) -> Target | None:
    """The target of `--target OPTION=VALUE` (a `Target`'s options) and `--probability`, or `None` for the default.

    Args:
        class_of: the index of a class that is named.
    """
    options: dict = {} if probability is None else {"probability": probability}
    for text in texts:
        name, sign, value = (part.strip() for part in text.partition("="))
        if not (sign and value and name in ("against", "steps", "layout", "heads")):
            rule = "target: must be against=CLASS or best_other, steps=mean, max or a number, layout=NKT, NTK or NT"
            raise CommandError(f"{rule}, or heads=verb,noun, got {text!r}")
        if name in options:
            raise CommandError(f"target: must give {name} once, got {text!r} as well")
        if name == "against":
            options[name] = BEST_OTHER if value == BEST_OTHER else class_of(value)
        elif name == "heads":
            options[name] = tuple(part.strip() for part in value.split(","))
        else:
            options[name] = int(value) if re.fullmatch("-?[0-9]{1,9}", value) else value
    return Target(**options) if options else None


def _channels(feature: str) -> str | tuple[int, ...]:
    if feature.startswith("top"):
        return feature
    try:
        return tuple(int(c) for c in feature.split(","))
    except ValueError as error:
        raise CommandError(f"feature: must be channel numbers such as 12,40, or top3, got {feature!r}") from error


def parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    sides = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text.lower())
    if sides is None:
        raise CommandError(f"size: must be HxW in pixels, such as 224x224, of 1 to 99999 each, got {text!r}")
    return int(sides[1]), int(sides[2])


def check_machine(device: str, threads: int | None) -> None:
    """Raises CommandError where these are no names of devices, or no numbers of threads."""
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,4})?", device):
        raise CommandError(f"device: must be cpu, cuda, or one of several such as cuda:1, got {device!r}")
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        rule = "at least 1" if threads < 1 else f"at most {MOST_THREADS}"
        raise CommandError(f"threads: must be {rule}, got {threads}")


def prepare_torch(device: str, threads: int | None) -> None:
    """Sets the threads of a live network. Raises CommandError where torch has no such device."""
    import torch

    check_machine(device, threads)
    kind, _, index = device.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if int(index or 0) >= count:
        known = ", ".join(f"cuda:{i}" for i in range(count)) or "none; clipsight doctor says more"
        raise CommandError(f"device: must be one that torch finds, got {device!r}; the CUDA devices are: {known}")
    if threads is not None:
        torch.set_num_threads(threads)
