"""ONNX (`.onnx`): one self-contained file of standard ops for ONNX Runtime and others."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ..manifest import METADATA_KEY, Manifest
from .check import ExportError, random_inputs

KIND = "onnx"
DEFAULT_PLUGIN = False
OPSET = 18  # the lowest that torch's exporter writes: older runtimes read it too
VERSIONS = ("torch", "onnx", "onnxscript", "onnxruntime")
LARGEST = 2**31 - 2**24  # protobuf stops at 2 GiB; some room for the graph itself


def build(explained, sizes, plugin: bool, names):
    """An `onnx.ModelProto`; with several sizes the weights are stored once, beside one branch per size."""
    if plugin:
        raise NotImplementedError(
            "export: plugin=True for '.onnx' needs clipsight's ONNX Runtime plug-in, which this version does not have; "
            "expected plugin=False: the same maps from standard ops"
        )
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"export: '.onnx' needs the extra 'onnx': pip install 'clipsight[onnx]' ({error})") from error
    weight_bytes = sum(t.nbytes for t in (*explained.parameters(), *explained.buffers()))
    if weight_bytes > LARGEST:
        raise ExportError(
            f"export: the weights in an '.onnx' file must take less than 2 GiB, got {weight_bytes / 2**30:.1f} GiB; "
            "'.pt' has no such limit"
        )
    models = [_export(explained, size, names) for size in sizes]
    return models[0] if len(models) == 1 else _by_size(models, sizes)


def save(model, path: Path, manifest: Manifest) -> None:
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=manifest.to_json())
    path.write_bytes(model.SerializeToString())


def _export(explained, size, names):
    return convert(explained.at(size, plugin=False), random_inputs(explained, size, batch=2, seed=0), names)


def convert(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], names):
    """An `onnx.ModelProto` of a module over (clip[, classes]), with a free batch size; the example's must not be 1."""
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            inputs,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=({0: "N"}, {0: "N", 1: "M"})[: len(inputs)],
            input_names=["clip", "classes"][: len(inputs)],
            output_names=list(names),
            verbose=False,
        )
    model = program.model_proto
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]  # stack traces: half of a small file, with the paths of this machine
    return model


# ---- Several clip sizes in one file ---------------------------------------------------------------------------------


def _by_size(models: list, sizes):
    """One model that compares the clip's shape and runs the matching graph, as nested If nodes.

        shape(clip)[2:] == sizes[0] ? graph 0 : (shape(clip)[2:] == sizes[1] ? graph 1 : ... : an error)

    A branch sees the initializers of the graph around it: all weights live there, equal ones once.
    """
    from onnx import helper

    first, shared = models[0].graph, {}
    outputs = {o.name: o.type.tensor_type for o in first.output}
    free = {"clip": ["N", first.input[0].type.tensor_type.shape.dim[1].dim_value, "T", "H", "W"]}
    inputs = [_value(i.name, i.type.tensor_type, free.get(i.name)) for i in first.input]
    branches = [_branch(model.graph, f"size{i}/", shared) for i, model in enumerate(models)]
    chain = _no_such_size(outputs, sizes)
    for i in reversed(range(len(sizes))):
        at = f"choose{i}/" if i else ""
        names = [at + name for name in outputs]
        values = [_value(at + name, type, [None] * len(type.shape.dim)) for name, type in outputs.items()]
        chain = helper.make_graph(
            _choose(i, sizes[i], branches[i], chain, names), at.rstrip("/") or "clipsight", [], values
        )
    chain.input.extend(inputs)
    chain.initializer.extend(shared.values())
    merged = helper.make_model(chain, opset_imports=models[0].opset_import, ir_version=models[0].ir_version)
    merged.producer_name, merged.producer_version = models[0].producer_name, models[0].producer_version
    return merged


def _branch(graph, prefix: str, shared: dict):
    """The graph as a branch: initializers moved to `shared` (by content), every other name made unique."""
    from onnx import helper

    outer = {value.name: value.name for value in graph.input}
    for tensor in graph.initializer:
        key = (tensor.data_type, tuple(tensor.dims), tensor.SerializeToString().replace(tensor.name.encode(), b"", 1))
        if key not in shared:
            shared[key] = tensor
            outer[tensor.name] = tensor.name = prefix + tensor.name
        else:
            outer[tensor.name] = shared[key].name
    _rename(graph, lambda name: outer.get(name, name and prefix + name))
    return helper.make_graph(graph.node, prefix.rstrip("/"), [], graph.output)


def _rename(graph, rename: Callable[[str], str]) -> None:
    for node in graph.node:
        node.name = rename(node.name)
        node.input[:] = map(rename, node.input)
        node.output[:] = map(rename, node.output)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, rename)
    for value in graph.output:
        value.name = rename(value.name)


def _choose(i: int, size, then, otherwise, names) -> list:
    from onnx import TensorProto, helper

    at = f"choose{i}/"
    return [
        helper.make_node("Shape", ["clip"], [at + "size"], start=2),
        _constant(at + "expected", size),
        helper.make_node("Equal", [at + "size", at + "expected"], [at + "equal"]),
        helper.make_node("Cast", [at + "equal"], [at + "equal_number"], to=TensorProto.INT64),
        helper.make_node("ReduceMin", [at + "equal_number"], [at + "all_number"], keepdims=0),
        helper.make_node("Cast", [at + "all_number"], [at + "all"], to=TensorProto.BOOL),
        helper.make_node("If", [at + "all"], names, name=at + "if", then_branch=then, else_branch=otherwise),
    ]


def _no_such_size(outputs: dict, sizes):
    """A branch that always fails: ONNX has no assertion, but runtimes name the node that could not be run."""
    from onnx import helper

    rule = "clip_size_must_be_" + "_or_".join("x".join(map(str, size)) for size in sizes)
    nodes = [
        _constant("none/impossible", [0, 1]),
        helper.make_node("Reshape", ["clip", "none/impossible"], ["none/failed"], name=rule),
    ]
    values = []
    for name, type in outputs.items():
        at, rank = f"none/{name}", len(type.shape.dim)
        nodes += [
            helper.make_node("Cast", ["none/failed"], [at + "/cast"], to=type.elem_type),
            _constant(at + "/shape", [1] * rank),
            helper.make_node("Reshape", [at + "/cast", at + "/shape"], [at]),
        ]
        values.append(_value(at, type, [None] * rank))
    return helper.make_graph(nodes, "no_such_size", [], values)


def _constant(name: str, values):
    from onnx import TensorProto, helper

    tensor = helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
    return helper.make_node("Constant", [], [name], value=tensor)


def _value(name: str, type, shape):
    from onnx import helper

    shape = shape or [dim.dim_param or dim.dim_value for dim in type.shape.dim]
    return helper.make_tensor_value_info(name, type.elem_type, shape)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's notes about itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
