"""Models of one custom op, for the tests of ONNX Runtime's plug-in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import clipsight

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
try:
    LIBRARY = clipsight.get_library_path("onnxruntime")
except clipsight.LoadError as error:
    pytest.skip(str(error), allow_module_level=True)

TYPES = {np.float32: 1, np.uint8: 2, np.int64: 7, np.bool_: 9, np.float16: 10, np.float64: 11}
F32, F16 = np.float32, np.float16


def model(op: str, inputs: dict, outputs: dict, **attributes) -> onnx.ModelProto:
    """One node. inputs: name -> (type, shape); outputs: name -> type, in order; a name "" leaves an output out."""
    node = onnx.helper.make_node(op, list(inputs), list(outputs), domain="clipsight", **attributes)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        op,
        [info(name, TYPES[kind], shape) for name, (kind, shape) in inputs.items()],
        [info(name, TYPES[kind], None) for name, kind in outputs.items() if name],
    )
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("clipsight", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


def run(session, *tensors) -> list[torch.Tensor]:
    names = [value.name for value in session.get_inputs()]
    feeds = {n: t.numpy() if isinstance(t, torch.Tensor) else t for n, t in zip(names, tensors, strict=True)}
    return [torch.from_numpy(result) for result in session.run(None, feeds)]


def torch_type(kind) -> torch.dtype:
    return getattr(torch, np.dtype(kind).name)


def tube_model(
    op="SelectiveTube", features=F32, weight=F32, channels=6, dtype=F32, free_n_sigma=False, rank=2, **attributes
):
    inputs = {
        "features": (features, ["N", channels, "t", "h", "w"]),
        "weight": (weight, ["N", "M", channels] if rank == 3 else ["M", channels]),
    }
    if free_n_sigma:
        inputs["n_sigma_of"] = (F32, ["K"])
    outputs = {"tube": dtype, "motion": dtype, "motion_share": F32}
    if op == "SaliencyTube":
        outputs = {"tube": dtype}
    if op == "ChannelReduce":
        outputs = {"cam": F32}
    elif dtype != F32:
        attributes["dtype"] = np.dtype(dtype).name
    return model(op, inputs, outputs, **attributes)
