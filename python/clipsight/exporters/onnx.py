"""ONNX (`.onnx`): one self-contained file of standard ops for ONNX Runtime and others."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch.export import ExportedProgram

from ..backward.chunks import Chunks, stopping_early, sums_apart
from ..backward.convolve import convolve_images, for_onnx, images
from ..backward.unrolled import attention
from ..manifest import Manifest
from ..manifest_text import METADATA_KEY
from . import adaptive_pooling, onnx_double, onnx_graph, onnx_loop, onnx_plugin
from .check import ExportError, check_file
from .decompose import decompose_where_needed, expand
from .onnx_simplify import simplify
from .program import Program, random_inputs
from .quiet import quiet

KIND = "onnx"
DEFAULT_PLUGIN = False
PLUGIN_LIBRARY = onnx_plugin.LIBRARY
EXAMPLE_BATCH = 3  # none that the self-check tries
OPSET = 18  # the lowest that torch's exporter writes: older runtimes read it too
VERSIONS = ("torch", "onnx", "onnxscript", "onnxruntime")
FREE_AXES = {
    "classes": {0: "N", 1: "M"},
    "frames": {0: "N", 2: "H", 3: "W"},
    "frames_of_sizes": {0: "N", 1: "T", 2: "H", 3: "W"},
}
LARGEST = 2**31 - 2**24  # protobuf stops at 2 GiB; some room for the graph itself


class Captured(NamedTuple):
    """A module's graph, its inputs with their free axes, and the sums over chunks that stand in it as one op each."""

    graph: ExportedProgram
    input_names: tuple[str, ...]
    axes: list[dict[int, str]]
    sums: list[Chunks]


def capture(program: Program) -> list[Captured]:
    """The program at each size; then what makes a clip of frames, where it takes those."""
    if missing := [package for package in ("onnx", "onnxscript") if importlib.util.find_spec(package) is None]:
        raise ImportError(f"export: '.onnx' needs the extra 'onnx': pip install 'clipsight[onnx]' (no {missing[0]})")
    explained = program.explained
    if explained.compute_dtype == torch.bfloat16:
        raise ValueError(
            "export: half must be 'float16' for '.onnx', got bfloat16, for which ONNX Runtime has no convolutions on "
            "the CPU; '.pt' has them"
        )
    if program.plugin and explained.compute_dtype == torch.float64:
        raise ValueError(
            "export: plugin must be False for '.onnx' and a network in float64, which its ops do not take, got True"
        )
    weight_bytes = sum(t.nbytes for t in (*explained.parameters(), *explained.buffers()))
    if weight_bytes > LARGEST:
        raise ExportError(
            f"export: the weights in an '.onnx' file must take less than 2 GiB, got {weight_bytes / 2**30:.1f} GiB; "
            "'.pt' has no such limit"
        )
    examples = ((program.module(size), program.example(size, EXAMPLE_BATCH, seed=0)) for size in program.sizes)
    names = program.module_names
    captured = [_capture(module, inputs, names, _axes(names)) for module, inputs in examples]
    if program.prepare is not None:
        frames = random_inputs(program, program.sizes[0], EXAMPLE_BATCH, seed=0)["frames"]
        names = _frames_name(program)
        captured.append(_capture(program.prepare, (frames,), names, _axes(names)))
    return captured


def build(program: Program, captured: list[Captured]) -> bytes:
    """The file without its manifest; with several sizes the weights are stored once, beside one branch per size."""
    table = onnx_plugin.translation_table() if program.plugin else None
    if program.explained.compute_dtype == torch.float64:
        table = onnx_double.translation_table()
    captured, frames = captured[: len(program.sizes)], captured[len(program.sizes) :]
    models = [_write(graph, program.output_names, table) for graph in captured]
    if program.optional:
        for model in models:
            onnx_graph.make_maps_optional(model, [program.empty_shape(i) for i in range(1, len(program.outputs))])
    model = models[0] if len(models) == 1 else onnx_graph.by_size(models, program.sizes, program.layout)
    for graph in frames:
        onnx_graph.prepend(_write(graph, ("clip",)), model, program.preprocessing.crop)
    return model.SerializeToString()


def save(model: bytes, path: Path, manifest: Manifest) -> None:
    """The manifest comes last in the file, so that another one takes its place without writing the weights again."""
    from onnx import ModelProto

    end = ModelProto()
    end.metadata_props.add(key=METADATA_KEY, value=manifest.to_json())
    with path.open("r+b" if path.exists() else "wb") as file:
        if file.seek(0, os.SEEK_END) < len(model):
            file.write(model)
        file.seek(len(model))
        file.write(end.SerializeToString())
        file.truncate()


def check(program: Program, path: Path, example) -> dict:
    """The self-check, in which long loops end early, in the eager model as in a copy of the file."""
    import onnx

    if not program.sums:
        return check_file(program, path, example)
    model, short = onnx.load(path), path.with_name(f"short-{path.name}")
    onnx_loop.stop_early(model, program.sums)
    short.write_bytes(model.SerializeToString())
    with stopping_early():
        return check_file(program, short, example)


def _frames_name(program: Program) -> tuple[str]:
    """Where the file has one clip length it is fixed, else the branches of the sizes check it."""
    return ("frames" if len(program.sizes) == 1 else "frames_of_sizes",)


def convert(
    module: torch.nn.Module,
    inputs: tuple[torch.Tensor, ...],
    names,
    input_names=("clip", "classes"),
    custom_translation_table: dict | None = None,
    axes: list[dict[int, str]] | None = None,
):
    """An `onnx.ModelProto` of a module with a free batch size; the example's must not be 1.

    Args:
        module: its `forward` takes a clip first, then tensors by the names in `input_names`.
        inputs: an example of each.
        names: of the outputs.
        input_names: as many as there are inputs, or more.
        custom_translation_table: how torch's exporter writes ops that it does not know, `{torch op: function}`.
        axes: of each input that are free, with their letters; by default as `FREE_AXES` says.
    """
    input_names = input_names[: len(inputs)]
    axes = axes or _axes(input_names)
    return _write(_capture(module, inputs, input_names, axes), names, custom_translation_table)


def _axes(input_names) -> list[dict[int, str]]:
    return [FREE_AXES.get(name, {0: "N"}) for name in input_names]


def _capture(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], input_names, axes) -> Captured:
    free = [dict.fromkeys(names, torch.export.Dim.DYNAMIC) for names in axes]
    others = dict(zip(input_names[1:], inputs[1:], strict=True))
    oblivious = torch.fx.experimental._config.patch(backed_size_oblivious=True)  # no branch for a batch of one
    with quiet(), torch.no_grad(), for_onnx(), sums_apart() as sums, oblivious:
        graph = torch.export.export(module.eval(), inputs[:1], others, dynamic_shapes=free, strict=False)
        expand(graph, convolve_images._opoverload, images)
        adaptive_pooling.write_out(graph)
        # torch.onnx has attentions of `[N, heads, L, E]` alone.
        expand(
            graph, torch.ops.aten.scaled_dot_product_attention.default, attention, lambda n: n.meta["val"].dim() != 4
        )
    return Captured(graph, input_names, axes, sums)


def _write(captured: Captured, names, custom_translation_table: dict | None = None):
    from onnx_ir import to_proto

    from .onnx_write import write

    with quiet(), torch.no_grad(), for_onnx():
        graph, inputs, axes = captured.graph, captured.input_names, captured.axes
        written = write(graph, inputs, axes, names)
        if by_torch := written is None:
            written = torch.onnx.export(
                decompose_where_needed(graph),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=axes,
                input_names=list(inputs),
                output_names=list(names),
                custom_translation_table=onnx_loop.translation_table() | (custom_translation_table or {}),
                optimize=False,
                verbose=False,
            ).model
        simplify(written, keep_norms=bool(captured.sums), fold=by_torch)
    model = to_proto(written)
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]  # stack traces: half of a small file, with the paths of this machine
    if captured.sums:
        parts = [_export_part(part, custom_translation_table) for part in captured.sums]
        onnx_loop.insert(model, captured.sums, parts)
    return model


def _export_part(chunks: Chunks, custom_translation_table: dict | None):
    inputs, axes = onnx_loop.examples(chunks, EXAMPLE_BATCH)
    return convert(chunks.part, inputs, ("part",), onnx_loop.INPUTS, custom_translation_table, axes)
