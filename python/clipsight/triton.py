"""A model repository for the Triton Inference Server, from one exported file.

DIR/<model>/config.pbtxt      inputs, outputs, batching
            labels.txt        for classification requests on the logits
            libclipsight_*.so the plug-in, where the file needs it
            README.md         how to start the server
            1/model.onnx, or 1/model.pt
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .manifest import LoadError, Manifest, check_kind, read_manifest
from .staging import staging
from .text import printable

# kind of file -> Triton's platform, the file's name in a version folder, the libraries that carry its ops
PLATFORMS = {
    "torchscript": ("pytorch_libtorch", "model.pt", ("torch", "torch_cuda")),
    "onnx": ("onnxruntime_onnx", "model.onnx", ("onnxruntime",)),
}
TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "uint8": "TYPE_UINT8",
    "int64": "TYPE_INT64",
    "bool": "TYPE_BOOL",
}

README = """# {model} on Triton

{file}, made of the network {network}, as the model `{model}` of a Triton model repository.

## Start

In the repository, the folder above this one:

```console
{start}
```

or, in a container of Triton's:

```console
docker run --rm --gpus=all -p 8000-8002:8000-8002 -v $PWD:/models -w /models <image> \\
  bash -c '{start}'
```

{notes}

## Inputs and outputs

The batch is the first axis of each; -1 stands for a length that varies.

| | name | type | shape of a sample |
|---|---|---|---|
{ports}
"""


def model_folder(directory: str | os.PathLike, name: str) -> Path:
    """Where the model `name` goes in a repository.

    Raises:
        ValueError: a name that Triton or a shell could misread.
        FileExistsError: the repository has that model already.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ValueError(f"triton: the model's name must consist of letters, digits, '_', '-' and '.', got {name!r}")
    folder = Path(directory) / name
    if folder.exists():
        raise FileExistsError(f"triton: the repository must not have the model yet, got '{folder}'; remove it first")
    return folder


def check_batch_size(most: int) -> None:
    """Raises ValueError where it is none that Triton's configuration can hold."""
    if not 1 <= most < 2**31:
        rule = "at least 1" if most < 1 else f"at most {2**31 - 1}"
        raise ValueError(f"triton: max_batch_size must be {rule}, got {most}")


def write_repository(
    file: str | os.PathLike, directory: str | os.PathLike, *, name: str | None = None, max_batch_size: int = 8
) -> Path:
    """Writes the folder of one model into a model repository; nothing appears there if anything fails.

    Args:
        file: a TorchScript or ONNX file that `clipsight.export` wrote.
        directory: the repository; it may hold other models already, and is made if it does not exist.
        name: of the model in Triton; by default the file's name without its suffix.
        max_batch_size: most samples of one run.

    Returns:
        The model's folder, `directory/name`.

    Raises:
        LoadError: the file is not clipsight's, or not of the kind that its suffix says; or the library that it needs is
            not there to be copied.
        ValueError, FileExistsError: an argument does not fit.
    """
    file, directory = Path(file), Path(directory)
    manifest = read_manifest(file)
    check_kind("triton", file, manifest.kind)
    if manifest.kind not in PLATFORMS:
        raise ValueError(f"triton: the file must be of a kind in {list(PLATFORMS)}, got {manifest.kind!r} in '{file}'")
    check_batch_size(max_batch_size)
    folder = model_folder(directory, file.stem if name is None else name)
    libraries = plugin_libraries(manifest)
    with staging(folder) as model:
        (model / "1").mkdir(parents=True)
        shutil.copyfile(file, model / "1" / PLATFORMS[manifest.kind][1])
        for library in libraries:
            shutil.copyfile(library, model / library.name)
        names = [f"{folder.name}/{library.name}" for library in libraries]
        about = (manifest, *ports(file, manifest))
        texts = {
            "config.pbtxt": config(*about, folder.name, max_batch_size, names),
            "README.md": _readme(*about, file.name, folder.name, max_batch_size, names),
        }
        if manifest.labels:
            texts["labels.txt"] = "".join(f"{printable(label)}\n" for label in manifest.labels)  # a line for each
        for path, text in texts.items():
            (model / path).write_text(text, encoding="utf-8")
        os.rename(model, folder)
    return folder


def plugin_libraries(manifest: Manifest) -> list[Path]:
    """The libraries that a server needs for the file, the one without which it cannot run first."""
    if not manifest.plugin.required:
        return []
    from .libraries import get_library_path

    needed, *further = PLATFORMS[manifest.kind][2]
    paths = [Path(get_library_path(needed))]
    for name in further:
        try:
            paths.append(Path(get_library_path(name)))
        except LoadError:  # built without CUDA
            continue
    return paths


@dataclass(frozen=True)
class Port:
    """An input or output of one sample: -1 where the length varies; a value per sample has no axis."""

    name: str
    dtype: str
    dims: tuple[int, ...]

    @property
    def sent(self) -> tuple[int, ...]:
        """As clients send it: Triton needs one axis."""
        return self.dims or (1,)


def ports(file: Path, manifest: Manifest) -> tuple[list[Port], list[Port]]:
    """Inputs and outputs of a file.

    Names are the manifest's. Triton's PyTorch back end finds inputs by the names of the script's arguments, and outputs
    that are not called `<name>__<index>` by their order. Its ONNX back end refuses an output with other axes than the
    session's, which knows fewer lengths than the manifest.
    """
    inputs = [Port(port.name, port.dtype, _dims(port.shape)) for port in manifest.input_ports]
    outputs = [Port(output.name, output.dtype, _dims(output.shape)) for output in manifest.outputs]
    if manifest.kind == "onnx":
        from .onnx_runtime import onnx_session

        shapes = {value.name: value.shape for value in onnx_session(file).get_outputs()}
        outputs = [Port(port.name, port.dtype, _dims(shapes[port.name])) for port in outputs]
    elif manifest.options.get("optional"):  # maps that nobody wants have no length
        outputs[1:] = [Port(port.name, port.dtype, (port.dims[0], *[-1] * len(port.dims[1:]))) for port in outputs[1:]]
    return inputs, outputs


def _dims(shape: Sequence[int | str | None]) -> tuple[int, ...]:
    """Without the batch."""
    return tuple(length if isinstance(length, int) else -1 for length in shape[1:])


def config(
    manifest: Manifest,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    name: str,
    max_batch_size: int,
    libraries: Sequence[str] = (),
) -> str:
    """The text of config.pbtxt, a ModelConfig in protobuf's text format.

    Args:
        libraries: paths of the plug-in's libraries as the server will see them, for ONNX.
    """
    lines = [
        f"name: {_text(name)}",
        f"platform: {_text(PLATFORMS[manifest.kind][0])}",
        f"max_batch_size: {max_batch_size}",
    ]
    for field, chosen in (("input", inputs), ("output", outputs)):
        lines += [f"{field} [", ",\n".join(_port(port, bool(manifest.labels)) for port in chosen), "]"]
    lines.append("dynamic_batching { }")
    if libraries and manifest.kind == "onnx":
        names = ", ".join(map(_text, libraries))
        lines.append(f"model_operations {{ op_library_filename: [ {names} ] }}")
    return "\n".join([*lines, ""])


def _port(port: Port, labels: bool) -> str:
    fields = [f"name: {_text(port.name)}", f"data_type: {TYPES[port.dtype]}", f"dims: {list(port.sent)}"]
    if not port.dims:
        fields.append("reshape: { shape: [ ] }")
    if port.name == "logits" and labels and len(port.sent) == 1:  # with steps Triton would count on through all of them
        fields.append('label_filename: "labels.txt"')
    return "  { " + ", ".join(fields) + " }"


def _text(value: str) -> str:
    return json.dumps(value)


def _readme(manifest: Manifest, inputs, outputs, file: str, model: str, max_batch_size: int, libraries) -> str:
    """`libraries` are relative to the repository, which is where the server is started."""
    start = "tritonserver --model-repository=."
    notes = [
        f"A run holds up to {max_batch_size} samples: Triton puts waiting requests together whose inputs have the same "
        "shapes."
    ]
    if libraries and manifest.kind == "onnx":
        notes.append(
            f"The file needs `{libraries[0]}`, a library of ONNX Runtime custom ops. `op_library_filename` in "
            "config.pbtxt names it relative to the folder in which the server is started; a server that is started "
            "elsewhere needs the full path there."
        )
    elif libraries:
        preload = ":".join(f"$PWD/{path}" for path in libraries)
        start = f"LD_LIBRARY_PATH=/opt/tritonserver/backends/pytorch:$LD_LIBRARY_PATH LD_PRELOAD={preload} {start}"
        notes.append(
            "The file needs the library that is loaded with LD_PRELOAD. It works with torch 2.11 and later; Triton's "
            "release notes say which torch it holds."
        )
    if manifest.labels:
        notes.append("A classification request on `logits` gets the names in labels.txt.")
    if manifest.options.get("optional"):
        notes.append("Every sample of a run gets its maps if one of them has `explain` set.")
    rows = [
        f"| {kind} | `{port.name}` | {port.dtype} | `{list(port.sent)}` |"
        for kind, chosen in (("input", inputs), ("output", outputs))
        for port in chosen
    ]
    return README.format(
        model=model,
        file=printable(file),
        network=printable(manifest.model),
        start=start,
        notes="\n\n".join(notes),
        ports="\n".join(rows),
    )
