"""`export`: writes an explained model into one file that other programs load, after checking that file."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import __version__, runtime
from ..manifest import ClassesInput, ClipInput, Manifest, Output, Plugin, weights_digest
from ..preprocessing import Preprocessing
from .check import ExportError, random_inputs, self_check

FORMATS = {".pt": "torchscript", ".onnx": "onnx"}

__all__ = ["FORMATS", "ExportError", "export"]


@torch.inference_mode(False)  # a caller's inference mode would make tensors that cannot be traced
def export(
    explained,
    path: str | os.PathLike,
    example: torch.Tensor | None = None,
    *,
    plugin: bool | None = None,
    sizes: Sequence[tuple[int, int, int]] = (),
    labels: Sequence[str] | None = None,
    preprocessing=None,
    name: str | None = None,
    precheck: bool = True,
) -> Manifest:
    """Writes an explained model as TorchScript (`.pt`) or ONNX (`.onnx`), with a dynamic batch.

    The file is loaded again and compared with the eager model on new inputs before it appears at `path`; if anything
    fails, nothing appears there.

    Args:
        explained: what `clipsight.explain` returned.
        path: the file to write; its suffix chooses the format, its folder must exist.
        example: a real clip `[N, 3, T, H, W]` for the comparison, beside random ones.
        plugin: call the fused ops of clipsight's native library, which must then be loaded where the file runs
            (default for `.pt`), or use ops of plain torch or standard ONNX only (default for `.onnx`).
        sizes: clip sizes `(T, H, W)` that the file accepts besides that of the example that was explained.
        labels: name of each class.
        preprocessing: the `Preprocessing` that the network wants, or its fields as a dict.
        name: name of the network for the manifest; by default its class name.
        precheck: compare the file with the eager model before it appears.

    Returns:
        The manifest that the file carries.

    Raises:
        ExportError: the file cannot be made, or does not compute what the eager model computes.
        FileNotFoundError, ValueError, TypeError: an argument does not fit.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"export: path must end in one of {', '.join(FORMATS)} (TorchScript, ONNX), got '{path.name}'")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"export: the folder of path must exist, got '{path.parent}', which does not")
    if not hasattr(explained, "at"):
        raise TypeError(f"export: explained must come from clipsight.explain, got {type(explained).__name__}")
    sizes = _sizes(explained, sizes)
    if example is not None and (example.dim() != 5 or tuple(example.shape[2:]) not in sizes):
        raise ValueError(
            f"export: example must be a clip [N, 3, T, H, W] of a size in {list(sizes)}, got {list(example.shape)}"
        )
    preprocessing = _preprocessing(preprocessing, sizes)
    labels = _labels(labels, explained.num_classes)
    format = importlib.import_module(f".{FORMATS[path.suffix]}", __name__)
    plugin = format.DEFAULT_PLUGIN if plugin is None else plugin

    artifact = format.build(explained, sizes, plugin, explained.output_names)
    manifest = Manifest(
        kind=format.KIND,
        model=name or explained.model_name,
        input=ClipInput(
            sizes=sizes, channels=explained.channels, dtype=_name(random_inputs(explained, (1, 1, 1), 1, 0)[0].dtype)
        ),
        classes_input=ClassesInput(explained.num_classes) if explained.classes_input else None,
        outputs=_outputs(explained, sizes),
        **json.loads(json.dumps(explained.describe())),  # as it will be read back: lists, no tuples
        plugin=Plugin(required=plugin, minimum_version=__version__ if plugin else ""),
        preprocessing=preprocessing,
        labels=labels,
        weights_digest=weights_digest(explained.model),
        built_with={package: _version(package) for package in format.VERSIONS},
        clipsight_version=__version__,
    )
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        written = Path(folder) / path.name
        format.save(artifact, written, manifest)
        if precheck:
            figures = self_check(explained, runtime.load(written), sizes, preprocessing, example)
            manifest = dataclasses.replace(manifest, self_check=figures)
            format.save(artifact, written, manifest)
        os.replace(written, path)
    return manifest


def _sizes(explained, sizes) -> tuple[tuple[int, int, int], ...]:
    every = [tuple(explained.size)]
    for size in sizes:
        size = tuple(size)
        if len(size) != 3 or not all(isinstance(s, int) and s > 0 for s in size):
            raise ValueError(f"export: sizes must be triples (T, H, W) of positive integers, got {size}")
        if size not in every:
            every.append(size)
    return tuple(every)


def _preprocessing(preprocessing, sizes) -> Preprocessing | None:
    if preprocessing is None:
        return None
    if not isinstance(preprocessing, Preprocessing):
        preprocessing = Preprocessing.from_dict(dict(preprocessing))
    if preprocessing.size not in sizes:
        raise ValueError(
            f"export: preprocessing must give clips of one of the file's sizes {list(sizes)}, got {preprocessing.size}"
        )
    return preprocessing


def _labels(labels, num_classes: int) -> tuple[str, ...] | None:
    if labels is None:
        return None
    labels = tuple(map(str, labels))
    if len(labels) != num_classes:
        raise ValueError(f"export: labels must name each of the {num_classes} classes, got {len(labels)} names")
    return labels


def _outputs(explained, sizes) -> tuple[Output, ...]:
    """Name, type and shape of every output; axes that depend on the input have a letter instead of a number."""
    shapes = []
    for size in sizes:
        with torch.inference_mode():
            tensors = explained.at(size, plugin=False)(*random_inputs(explained, size, batch=2, seed=0))
        shapes.append([tensor.shape for tensor in tensors])
    outputs = []
    for i, (name, meaning) in enumerate(explained.output_meanings.items()):
        shape = [_axis(axis, [s[i][axis] for s in shapes], sizes) for axis in range(len(shapes[0][i]))]
        if explained.classes_input and i and len(shape) > 1:
            shape[1] = "M"
        outputs.append(Output(name, tuple(shape), _name(tensors[i].dtype), meaning))
    return tuple(outputs)


def _axis(axis: int, lengths: list[int], sizes) -> int | str:
    if axis == 0:
        return "N"
    if len(set(lengths)) == 1:
        return lengths[0]
    for letter, of_clip in zip("THW", zip(*sizes, strict=True), strict=True):
        if tuple(lengths) == of_clip:
            return letter
    return {2: "t", 3: "h", 4: "w"}.get(axis, f"d{axis}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _version(package: str) -> str:
    for name in (package, f"{package}-gpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
