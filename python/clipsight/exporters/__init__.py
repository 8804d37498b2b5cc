"""`export`: writes an explained model into one file that other programs load, after checking that file."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from .. import __version__, runtime
from ..errors import first_line
from ..foreign import depends_on_values, in_words_of_ours, op_in, root
from ..labels import as_labels
from ..layouts import in_words
from ..manifest import FORMATS, SESSION_OF_A_WALK, Manifest, Plugin, weights_digest
from ..preprocessing import Preprocessing
from ..staging import whole_file
from .check import ExportError, check_file, half_difference
from .program import THRESHOLDS, Program

OUTPUTS = ("float32", "float16", "uint8")
HALVES = ("float16", "bfloat16")
MAKERS = {  # of each format, and what to do where it fails
    ".pt": ("torch.jit", "'.onnx' and '.pt2' are made in other ways"),
    ".onnx": ("torch.onnx", "'.pt' and '.pt2' keep torch's own ops"),
    ".pt2": ("AOTInductor", "'.pt' and '.onnx' are made in other ways"),
}

__all__ = ["FORMATS", "ExportError", "export"]


@torch.inference_mode(False)  # a caller's inference mode would make tensors that cannot be traced
def export(
    explained,
    path: str | os.PathLike,
    example: torch.Tensor | None = None,
    *,
    plugin: bool | None = None,
    sizes: Sequence[tuple[int, int, int]] = (),
    labels: Sequence[str] | Mapping | str | os.PathLike | None = None,
    preprocessing=None,
    name: str | None = None,
    frames: str | None = None,
    output: str | None = None,
    optional: bool = False,
    half: bool | str = False,
    inputs: Sequence[str] = (),
    plain: str | os.PathLike | None = None,
    precheck: bool = True,
    progress: Callable[[str, Path], None] | None = None,
) -> Manifest:
    """Writes an explained model as TorchScript (`.pt`), ONNX (`.onnx`) or AOTInductor package (`.pt2`).

    The batch is dynamic. A network in float64 makes a file in float64; as ONNX in standard ops only, and slow: ONNX
    Runtime has no such convolutions on the CPU, so they become products of matrices.

    The file is loaded again and compared with the eager model on new inputs before it appears at `path`; if anything
    fails, nothing appears there.

    Args:
        explained: what `clipsight.explain` returned.
        path: the file to write; its suffix chooses the format, its folder must exist.
        example: a real clip, as the explained model takes it (or frames `[N, T, H, W, 3]`), for the comparison, beside
            random ones.
        plugin: call the fused ops of clipsight's native library, which must then be loaded where the file runs
            (default for `.pt` and `.pt2`), or use ops of plain torch or standard ONNX only (default for `.onnx`).
        sizes: clip sizes `(T, H, W)` that the file accepts besides that of the example that was explained.
        labels: name of each class: in order, as `{index: name}` or `{name: index}`, or a file of them; see
            `clipsight.labels`.
        preprocessing: the `Preprocessing` that the network wants, or its fields as a dict.
        name: name of the network for the manifest; by default its class name.
        frames: `"uint8"`: the file takes RGB bytes `[N, T, H, W, 3]` of any height and width, and resizes, crops and
            normalises them as `preprocessing` says, to the pixel as `clipsight.windows` does.
        output: type of the maps, `"float32"`, `"float16"` or `"uint8"`, instead of that of the methods.
        optional: a further input `explain`, bool `[N]`: where no sample of a batch wants maps the heads do not run, and
            their outputs have zero length.
        half: weights and arithmetic of the network in half precision, `"float16"` (or `True`) or `"bfloat16"`; clips,
            logits and maps keep their types. The manifest's `self_check["half_difference"]` states the error.
        inputs: thresholds that are inputs, float32 `[N]`, among `"tau"` (weights below it count as zero) and
            `"n_sigma"`.
        plain: another file, of the same format, for the network alone: what the explanation costs beside it.
        precheck: compare the file with the eager model before it appears.
        progress: called when a phase begins, with its name and the file that it is for: `"capture"` (the model becomes
            a graph), `"write"` (the graph becomes the file), `"check"` (with `precheck`); those of `plain` come first.

    Returns:
        The manifest that the file carries.

    Raises:
        ExportError: the file cannot be made or written, or does not compute what the eager model computes.
        FileNotFoundError, ValueError, TypeError: an argument does not fit.
    """
    path, plain = Path(path), None if plain is None else Path(plain)
    for file in filter(None, (path, plain)):
        if file.suffix not in FORMATS:
            raise ValueError(
                f"export: path must end in one of {', '.join(FORMATS)} (TorchScript, ONNX, AOTInductor), "
                f"got '{file.name}'"
            )
        if not file.parent.is_dir():
            raise FileNotFoundError(f"export: the folder of path must exist, got '{file.parent}', which does not")
        if file.is_dir():
            raise ValueError(f"export: path must be a file, got the folder '{file}'")
        if not os.access(file.parent, os.W_OK | os.X_OK):
            raise PermissionError(f"export: the folder of path must be one to write to, got '{file.parent}'")
    if plain is not None and (plain.suffix != path.suffix or plain == path):
        raise ValueError(f"export: plain must be another file of the format {path.suffix}, got '{plain.name}'")
    if not hasattr(explained, "at"):
        raise TypeError(f"export: explained must come from clipsight.explain, got {type(explained).__name__}")
    format = importlib.import_module(f".{FORMATS[path.suffix]}", __name__)
    sizes = _sizes(explained, sizes)
    preprocessing = _preprocessing(preprocessing, sizes, frames, explained.channels)
    labels = as_labels(labels, explained.num_classes, "export: labels")
    exact = explained if output is None else explained.with_maps_of(_choice("output", output, OUTPUTS))
    dtype = _choice("half", "float16" if half is True else half, HALVES) if half else None
    program = Program(
        exact.in_half(getattr(torch, dtype)) if dtype else exact,
        sizes,
        plugin=format.DEFAULT_PLUGIN if plugin is None else plugin,
        preprocessing=preprocessing,
        frames=frames is not None,
        optional=optional,
        thresholds=tuple(name for name in THRESHOLDS if name in _inputs(inputs)),
    )
    if example is not None and (example.dim() != 5 or program.sees(example) not in sizes):
        clip = in_words(explained.channels, "THW", explained.layout)
        want = "frames [N, T, H, W, 3]" if frames else f"a clip {clip}"
        raise ValueError(f"export: example must be {want} of a size in {list(sizes)}, got {list(example.shape)}")
    if example is not None and not bool(example.isfinite().all()):
        raise ValueError("export: example must hold finite values, got NaN or infinity among them")
    begin = progress or (lambda phase, file: None)
    options = {"frames": frames, "output": output, "optional": optional, "half": dtype, "plugin": program.plugin}
    facts = {"model": name or explained.model_name, "labels": labels, "options": options}
    if plain is not None:  # first, so that nothing is at `path` where this fails
        without = {"plugin": False, "optional": False}
        alone = dataclasses.replace(program, thresholds=(), alone=True, **without)
        _write(format, alone, plain, facts | {"options": options | without}, None, precheck, begin)
    return _write(format, program, path, facts, example, precheck, begin, exact if dtype else None)


def _write(format, program: Program, path: Path, facts, example, precheck: bool, begin, exact=None) -> Manifest:
    """One file; `exact` is the model in float32 where the program's is in half precision."""
    explained = program.explained
    described = json.loads(json.dumps(explained.describe()))  # as it will be read back: lists, no tuples
    told = functools.partial(_told, program, path.suffix)
    begin("capture", path)
    with told("follow the explained network"):
        captured = format.capture(program)
    begin("write", path)
    with told("write the explained network"):
        artifact = format.build(program, captured)
        ports = {"option_inputs": program.option_inputs(), "outputs": program.outputs}
    manifest = Manifest(
        kind=format.KIND,
        input=program.clip_input(),
        classes_input=program.classes_port(),
        **ports,
        **described | ({"methods": [], "explains": []} if program.alone else {}),
        plugin=Plugin(program.plugin, format.PLUGIN_LIBRARY, __version__ if program.plugin else ""),
        preprocessing=program.preprocessing,
        weights_digest=weights_digest(explained.model),
        built_with={package: _version(package) for package in format.VERSIONS},
        clipsight_version=__version__,
        session=SESSION_OF_A_WALK if program.reaches_clip and format.KIND == "onnx" else {},
        **facts,
    )
    with whole_file(path) as written:
        save = functools.partial(_save, format, artifact, path, written)
        save(manifest)
        if precheck:
            begin("check", path)
            with told("compare the file with the network"):
                half = {} if exact is None else half_difference(program, runtime.load(written), exact)
                figures = getattr(format, "check", check_file)(program, written, example)
            if exact is not None:
                figures["half_difference"] = half
            manifest = dataclasses.replace(manifest, self_check=figures)
            save(manifest)
    return manifest


def _save(format, artifact, path: Path, written: Path, manifest: Manifest) -> None:
    try:
        format.save(artifact, written, manifest)
    except OSError as error:
        raise ExportError(f"export: '{path}' could not be written: {error.strerror}") from error


def _told(program: Program, suffix: str, what: str):
    """Errors of torch, ONNX and the compilers in words of ours; see `foreign`."""
    maker, advice = MAKERS[suffix]

    def say(error: Exception) -> str:
        cause, op = root(error), op_in(error)
        about = f"{maker} could not {what} for '{suffix}'" + (f" because of {program.where(op)}" if op else "")
        if depends_on_values(cause):
            return (
                f"export: {about}: what it returns depends on values of the clip, which no graph holds; see torch.where"
            )
        reason = "ONNX has no op for it" if "No ONNX function found" in str(cause) else first_line(cause)
        return f"export: {about}: {reason}; {advice}"

    return in_words_of_ours(ExportError, say)


def _sizes(explained, sizes) -> tuple[tuple[int, int, int], ...]:
    every = [tuple(explained.size)]
    for size in sizes:
        size = tuple(size)
        if len(size) != 3 or not all(isinstance(s, int) and s > 0 for s in size):
            raise ValueError(f"export: sizes must be triples (T, H, W) of positive integers, got {size}")
        if size not in every:
            every.append(size)
    return tuple(every)


def _preprocessing(preprocessing, sizes, frames, channels: int) -> Preprocessing | None:
    if frames is not None:
        _choice("frames", frames, ("uint8",))
        if channels not in (1, 3):
            raise ValueError(
                f"export: frames must be None for a network of {channels} channels: a video has 3, or 1 as gray; got "
                f"{frames!r}"
            )
        if preprocessing is None:
            raise ValueError("export: preprocessing must be given with frames='uint8': it becomes part of the graph")
    if preprocessing is None:
        return None
    if not isinstance(preprocessing, Preprocessing):
        preprocessing = Preprocessing.from_dict(dict(preprocessing))
    if preprocessing.channels == 1 and channels == 3:
        raise ValueError(
            "export: preprocessing must have 3 values of mean and of std for a network of 3 channels, got 1, for gray"
        )
    if preprocessing.size not in sizes:
        raise ValueError(
            f"export: preprocessing must give clips of one of the file's sizes {list(sizes)}, got {preprocessing.size}"
        )
    if frames is not None and {size[1:] for size in sizes} != {preprocessing.crop}:
        raise ValueError(
            f"export: sizes must all have the crop {preprocessing.crop} where frames='uint8', got {list(sizes)}"
        )
    return preprocessing


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    value = str(value).removeprefix("torch.")
    if value not in allowed:
        raise ValueError(f"export: {name} must be one of {list(allowed)}, got {value!r}")
    return value


def _inputs(inputs) -> set[str]:
    inputs = {inputs} if isinstance(inputs, str) else set(inputs)
    if not inputs <= set(THRESHOLDS):
        raise ValueError(f"export: inputs must be among {list(THRESHOLDS)}, got {sorted(inputs)}")
    return inputs


def _version(package: str) -> str:
    for name in (package, f"{package}-gpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
