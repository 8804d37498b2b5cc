"""The manifest: what every exported file says about itself, as JSON inside the file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .layouts import OURS, shape_of
from .manifest_text import read_manifest_text
from .preprocessing import Preprocessing
from .schema import check, parse
from .targets import Reading, check_target, default_probability
from .text import printable

FORMAT_VERSION = 2
# A file is opened as what its suffix says it is: `.onnx` is data, the others are code.
FORMATS = {".pt": "torchscript", ".onnx": "onnx", ".pt2": "aot"}
LARGEST = 1 << 40  # elements of a tensor
VERSION = re.compile(r"([0-9]{1,6}\.[0-9]{1,6}\.[0-9]{1,6}([.+a-z-][0-9a-z.+-]{0,40})?)?")
# What a file with a walk back to the clip asks of an ONNX Runtime session: the walk reads the weights of a fully
# connected layer the other way round; packed for the processor, they would be in memory twice, and are not read any
# faster. No file may ask for more: other entries name files that ONNX Runtime would write, or load.
SESSION_OF_A_WALK = {"session.disable_prepacking": "1"}

# A dimension is a number, or the name of one that the caller chooses: "N" (batch), "M" (classes), "T", "H", "W".
Dim = int | str


class LoadError(RuntimeError):
    """A file is not what clipsight exported, is damaged, or needs something that this machine does not have."""


@dataclass(frozen=True)
class ClipInput:
    """The video input: `clip`, preprocessed, or `frames`, bytes of any height and width (layout NTHWC).

    `sizes` are the clip sizes `(T, H, W)` that the network accepts; the batch size is free. The axes of a clip are in
    the order of `layout`, one of `clipsight.layouts.LAYOUTS`.
    """

    sizes: tuple[tuple[int, int, int], ...]
    dtype: str
    channels: int = 3
    name: str = "clip"
    layout: str = OURS
    batch: str = "dynamic"

    @property
    def shape(self) -> tuple[Dim, ...]:
        t, h, w = (
            lengths[0] if len(set(lengths)) == 1 else axis
            for axis, lengths in zip("THW", zip(*self.sizes, strict=True), strict=True)
        )
        return shape_of("N", self.channels, (t, "H", "W") if self.takes_frames else (t, h, w), self.layout)

    @property
    def takes_frames(self) -> bool:
        return self.name == "frames"


@dataclass(frozen=True)
class ClassesInput:
    """The second input of a file that was explained with `classes="input"`: indices in `0..num_classes-1`."""

    num_classes: int
    name: str = "classes"
    shape: tuple[Dim, ...] = ("N", "M")
    dtype: str = "int64"


@dataclass(frozen=True)
class OptionInput:
    """A further input, one value per sample: `explain`, `tau` or `n_sigma`.

    `default` is what a caller who has no wish should feed; every default is a finite number or a boolean.
    """

    name: str
    dtype: str
    meaning: str
    default: bool | float
    shape: tuple[Dim, ...] = ("N",)


class Port(NamedTuple):
    """One input as a caller sees it; letters in the shape stand for lengths that the caller chooses."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class Output:
    """One result. `full_shape`: where the file may run without maps, the shape of a run with maps."""

    name: str
    shape: tuple[Dim, ...]
    dtype: str
    meaning: str
    full_shape: tuple[Dim, ...] | None = None


@dataclass(frozen=True)
class Plugin:
    """The native library whose ops the file calls, if any, and the first version of it that will do."""

    required: bool
    library: str = "clipsight_torch"
    minimum_version: str = ""


@dataclass(frozen=True)
class Manifest:
    """What an exported file takes, gives and was made from.

    Attributes:
        kind: `"torchscript"`, `"onnx"` or `"aot"`.
        model: name of the explained network.
        input: the clip, or the frames that become one in the graph.
        classes_input: the second input, or `None` where the file chooses the classes by itself.
        outputs: in the order in which the file returns them. Letters stand for lengths that depend on the input; where
            `options["optional"]` is set, a run without maps returns them with zero length.
        methods: every method with all its options.
        classes: which classes are explained: `"predicted"`, `"topN"`, a list of indices (or of a list of one for each
            head), or `"input"`.
        num_classes: K; of all heads together.
        probability: what the logits are read as: `"softmax"`, `"sigmoid"` of each, or `"none"`.
        target: which score of the classes is explained: the options of `clipsight.Target` that were given; and
            `head_classes`, the number of classes of each head; `stripped`, what was taken off the network's end.
        head, features: the classifier and the layer that were named by hand, if any.
        feature_shape: `[C, t, h, w]` of what the first method explains, at the first size.
        temporal_resolution: t; its map cannot change faster. 1: constant in time.
        explains: for each method the layer whose output it explains, with its channels and its grid `[t, h, w]`.
        plugin: the native library that the file needs.
        preprocessing: how the network wants its frames, or `None` where export was not told.
        labels: name of each class, or `None`.
        weights_digest: `"sha256:..."` over all named parameters and buffers.
        built_with: versions of the packages that wrote the file.
        self_check: what export measured when it compared the file with the eager model.
        option_inputs: the inputs after the clip and the classes, in order.
        options: how the file was exported: `frames`, `output`, `optional`, `half`, `plugin`.
        session: configuration entries for an ONNX Runtime session of the file.
    """

    kind: str
    model: str
    input: ClipInput
    classes_input: ClassesInput | None
    outputs: tuple[Output, ...]
    methods: list[dict[str, Any]]
    classes: str | list[int] | list[list[int]]
    num_classes: int
    head: str | None
    features: str | None
    feature_shape: list[int]
    temporal_resolution: int
    plugin: Plugin
    preprocessing: Preprocessing | None
    labels: tuple[str, ...] | None
    weights_digest: str
    built_with: dict[str, str]
    clipsight_version: str
    self_check: dict[str, Any] | None = None
    option_inputs: tuple[OptionInput, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    session: dict[str, str] = field(default_factory=dict)
    probability: str = "softmax"
    target: dict[str, Any] = field(default_factory=dict)
    explains: list[dict[str, Any]] = field(default_factory=list)
    format_version: int = FORMAT_VERSION

    @property
    def input_ports(self) -> tuple[Port, ...]:
        """All inputs in the order in which the file takes them."""
        inputs = (self.input, *filter(None, [self.classes_input]), *self.option_inputs)
        return tuple(Port(i.name, i.dtype, i.shape) for i in inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(output.name for output in self.outputs)

    @property
    def reading(self) -> Reading:
        """How the file's logits are read as scores of classes and as probabilities."""
        return Reading.of(self)

    @property
    def sizes(self) -> tuple[tuple[int, int, int], ...]:
        return self.input.sizes

    @property
    def size(self) -> tuple[int, int, int]:
        """The first of the sizes: that of the example which was explained."""
        return self.input.sizes[0]

    def to_json(self) -> str:
        """The fields, and `inputs`: the same list for readers in other languages as `outputs` is for the results."""
        meanings = {i.name: i.meaning for i in self.option_inputs}
        meanings |= {"clip": "preprocessed video", "frames": "RGB bytes", "classes": "indices of the explained classes"}
        inputs = [port._asdict() | {"meaning": meanings.get(port.name, "")} for port in self.input_ports]
        inputs[0]["layout"] = self.input.layout
        return json.dumps(_standard(dataclasses.asdict(self) | {"inputs": inputs}), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Reads what `to_json` wrote; fields that a later release added within the same format are passed over.

        Raises:
            LoadError: the text is no manifest, or one in a newer format.
        """
        try:
            values = parse(text.encode() if isinstance(text, str) else text)
            _check_version(values)
            check(values)
            values |= {
                "input": _read(ClipInput, values["input"] | {"sizes": tuple(map(tuple, values["input"]["sizes"]))}),
                "classes_input": values["classes_input"] and _read(ClassesInput, values["classes_input"]),
                "outputs": tuple(_read(Output, output) for output in values["outputs"]),
                "option_inputs": tuple(_read(OptionInput, option) for option in values.get("option_inputs", ())),
                "plugin": _read(Plugin, values["plugin"]),
                "preprocessing": values["preprocessing"] and Preprocessing.from_dict(values["preprocessing"]),
                "labels": None if values["labels"] is None else tuple(values["labels"]),
            }
            values.setdefault("probability", default_probability(values["num_classes"]))  # files of earlier versions
            return _consistent(_read(cls, values))
        except ValueError as error:
            raise LoadError(f"load: a manifest must be one that clipsight wrote: {error}") from error


def _standard(value):
    """JSON has no word for what is not finite."""
    if isinstance(value, dict):
        return {name: _standard(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_standard(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_version(values) -> None:
    """First of all: a newer format may break any other rule."""
    version = values.get("format_version") if isinstance(values, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        by = printable(str(values.get("clipsight_version", "?"))[:40])
        raise LoadError(
            f"load: the manifest's format_version must be at most {FORMAT_VERSION}, got {min(version, 10**15)} "
            f"(written by clipsight {by}); upgrade clipsight to read this file"
        )


def _consistent(manifest: Manifest) -> Manifest:
    """The manifest, where its members fit each other: what a schema cannot say. csrc/session/manifest.cpp is the same.

    Raises:
        ValueError: they do not.
    """

    def need(holds: object, rule: str) -> None:
        if not holds:
            raise ValueError(f"the manifest's {rule}")

    clip, chosen, ports = manifest.input, manifest.classes_input, manifest.input_ports
    frames = clip.takes_frames
    need(not frames or clip.layout == "NTHWC", "input must be frames in the layout NTHWC, or a clip")
    need(not frames or clip.dtype == "uint8", "frames must be uint8")
    need(not frames or manifest.preprocessing is not None, "preprocessing must be there where the input is frames")
    need(chosen is None or chosen.num_classes == manifest.num_classes, "classes_input must have num_classes")
    need(manifest.labels is None or len(manifest.labels) == manifest.num_classes, "labels must be one for each class")
    check_target(manifest.target, manifest.num_classes, manifest.classes)
    need(VERSION.fullmatch(manifest.plugin.minimum_version), "plugin.minimum_version must be a version, or empty")
    for kind, names in (("inputs", [port.name for port in ports]), ("outputs", list(manifest.output_names))):
        need(len(set(names)) == len(names), f"{kind} must have different names")
    for option in manifest.option_inputs:
        flag = option.name == "explain"
        need(flag == (option.dtype == "bool") == isinstance(option.default, bool), f"{option.name} must have its type")
    for output in manifest.outputs:
        full = output.full_shape
        need(full is None or len(full) == len(output.shape), "full_shape must have the axes of shape")
    shapes = [port.shape for port in ports] + [(clip.channels, *size) for size in clip.sizes]
    shapes += [shape for output in manifest.outputs for shape in (output.shape, output.full_shape) if shape]
    for shape in shapes:
        elements = math.prod(n for n in shape if isinstance(n, int))
        need(elements <= LARGEST, f"shapes must have at most {LARGEST} elements")
    return manifest


def check_kind(op: str, path: str | os.PathLike, kind: str, stated: str | None = None) -> None:
    """Raises a LoadError where a file is not of the kind that its suffix says, or `stated` in its place.

    A file of another suffix may be data, but not code, which acts on the machine that opens it.
    """
    suffix = Path(path).suffix
    expected = stated or FORMATS.get(suffix, "onnx")
    if kind != expected:
        by = "kind=" if stated else f"its suffix {suffix!r}" if suffix in FORMATS else "a suffix that no export has"
        raise LoadError(
            f"{op}: '{path}' must be of the kind {expected!r} by {by}, got {kind!r}; a file that may run code is "
            f"opened under its own suffix, or with kind={kind!r} where you trust it"
        )


def _read(cls, values: dict):
    known = {field.name for field in dataclasses.fields(cls)}
    return cls(**{k: tuple(v) if k in ("shape", "full_shape") and v else v for k, v in values.items() if k in known})


def read_manifest(path: str | os.PathLike) -> Manifest:
    """The manifest of an exported file; neither torch nor ONNX Runtime is needed, and no weight is read.

    Raises:
        FileNotFoundError: no such file.
        LoadError: the file is truncated, no archive of torch's or ONNX model, carries no manifest, or a newer one.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"load: path must name an exported file, got '{path}', which is no file")
    try:
        text = read_manifest_text(path)
    except (OSError, ValueError) as error:
        raise LoadError(
            f"load: '{path}' must be a whole file that clipsight.export wrote, got something else or a damaged one: "
            f"{error}"
        ) from error
    return Manifest.from_json(text)


def weights_digest(model) -> str:
    """sha256 over name, type, shape and bytes of every parameter and buffer of a torch module, sorted by name."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted({**dict(model.named_parameters()), **dict(model.named_buffers())}.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()}"
