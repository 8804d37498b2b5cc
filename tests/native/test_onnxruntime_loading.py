"""ONNX Runtime with the custom ops: inferred shapes, errors, a missing library, and what the library exports."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import clipsight
from clipsight import LoadError, ops
from helpers import run_python
from onnx_nodes import F16, F32, LIBRARY, TYPES, model, onnx, ort, run, torch_type, tube_model

# ---- loading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["ChannelReduce", "SaliencyTube", "SelectiveTube"])
def test_shapes_of_maps_are_inferred(opened, op):
    size = {} if op == "ChannelReduce" else {"size": (5, 21, 17)}
    axes = ["t", "h", "w"] if op == "ChannelReduce" else [5, 21, 17]
    outputs = opened(tube_model(op, rank=3, **size)).get_outputs()
    assert [o.shape for o in outputs] == [["N", "M", *axes], ["N", "M", *axes], ["N", "M"]][: len(outputs)]


def test_shapes_of_volumes_are_inferred(opened):
    volume = {"volume": (F16, ["N", "M", 4, 5, "w"])}
    fixed = opened(model("SplineUpsample", volume, {"output": F16}, size=(2, 3, 4)))
    assert [(o.shape, o.type) for o in fixed.get_outputs()] == [(["N", "M", 2, 3, 4], "tensor(float16)")]
    motion, share = opened(model("SelectiveRelevance", volume, {"motion": F16, "motion_share": F32})).get_outputs()
    assert (motion.shape, motion.type) == (["N", "M", 4, 5, "w"], "tensor(float16)")
    assert (share.shape, share.type) == (["N", "M"], "tensor(float)")


@pytest.mark.parametrize("channels", [6, None], ids=["known", "unknown"])
@pytest.mark.parametrize("dtype", [F32, F16, np.uint8], ids=["32", "16", "uint8"])
def test_type_of_a_map_inside_a_graph_comes_from_the_attribute(opened, dtype, channels):
    """No value_info: only the op's own inference can tell the next node what it gets."""
    proto = tube_model("SaliencyTube", channels=channels, dtype=dtype, size=(3, 4, 5))
    proto.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_param")  # neither length nor name
    proto.graph.node.append(onnx.helper.make_node("Cast", ["tube"], ["cast"], to=TYPES[F32]))
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("cast", TYPES[F32], None))
    features, weight = torch.randn(2, 6, 2, 3, 4), torch.randn(1, 6)
    (cast,) = run(opened(proto), features, weight)
    assert torch.equal(cast, ops.saliency_tube(features, weight, (3, 4, 5), dtype=torch_type(dtype)).float())


AT_LOAD = [
    (lambda: tube_model(), "selective_tube: size must be three lengths (T, H, W) >= 1, got []"),
    (lambda: tube_model(size=(4, 5)), "selective_tube: size must be three lengths (T, H, W) >= 1, got [4, 5]"),
    (lambda: tube_model(size=(4, 0, 5)), "selective_tube: size must be three lengths (T, H, W) >= 1, got [4, 0, 5]"),
    (
        lambda: tube_model(size=(4, 5, 6), abi=2),
        "selective_tube: abi must be 1 to 1 (a newer file needs a newer clipsight), got 2",
    ),
    (lambda: tube_model(size=(4, 5, 6), order=2), "selective_tube: order must be 1 or 3, got 2"),
    (lambda: tube_model(size=(4, 5, 6), relu=2), "selective_tube: relu must be 0 or 1, got 2"),
    (lambda: tube_model(size=(4, 5, 6), threshold=1), "selective_tube: threshold must be a float, got an int"),
    (lambda: tube_model(size=(4, 5, 6), normalize=1), "selective_tube: normalize must be a string, got an int"),
    (lambda: tube_model(size=(4, 5, 6), sign="up"), 'selective_tube: sign must be "abs", "rising" or'),
    (
        lambda: tube_model("SaliencyTube", size=(4, 5, 6), normalize="all"),
        'saliency_tube: normalize must be "clip", "frame" or "none", got "all"',
    ),
    (
        lambda: tube_model("SaliencyTube", dtype=np.uint8, size=(4, 5, 6), normalize="none"),
        'saliency_tube: dtype "uint8" needs normalize "clip" or "frame", got normalize "none"',
    ),
    (
        lambda: model("SobelTemporal", {"volume": (F32, [3, 4, 5])}, {"output": F32}, padding="same"),
        'sobel_temporal: padding must be "replicate" or "zeros", got "same"',
    ),
    (
        lambda: model("SelectiveRelevance", {"volume": (F32, [3, 4, 5])}, {"m": F32, "s": F32}, n_sigma=-1.0),
        "selective_relevance: n_sigma must be finite and not negative, got -1",
    ),
    # ONNX Runtime's own checks of element types:
    (lambda: tube_model(features=np.float64, size=(4, 5, 6)), "Type 'tensor(double)' of input parameter (features)"),
    (lambda: model("SobelTemporal", {"v": (F16, [3, 4, 5])}, {"o": F32}), "does not match expected type"),
]


@pytest.mark.parametrize("proto, message", AT_LOAD, ids=[message[:60] for _, message in AT_LOAD])
def test_a_bad_attribute_is_an_error_when_the_file_is_opened(opened, proto, message):
    with pytest.raises(LoadError) as error:
        opened(proto())
    assert message in str(error.value)


FREE = {"features": (F32, None), "weight": (F32, None), "n_sigma_of": (F32, None)}
FEATURES, WEIGHT = torch.randn(2, 6, 2, 3, 4), torch.randn(3, 6)
AT_RUN = [
    ((FEATURES[0], WEIGHT), "selective_tube: features must have shape [N, C, t, h, w], got [6, 2, 3, 4]"),
    (
        (FEATURES, WEIGHT[:, :4]),
        "selective_tube: weight must have shape [M, C] = [M, 6] or [N, M, C] = [2, M, 6], got [3, 4]",
    ),
    (
        (FEATURES[:, :, :0], WEIGHT),
        "selective_tube: features must have no empty axis but the batch, got [2, 6, 0, 3, 4]",
    ),
    (
        (FEATURES, WEIGHT, torch.ones(3)),
        "selective_tube: n_sigma_of must have shape [1] or that of the first axes of the maps, [2, 3], got [3]",
    ),
    (
        (FEATURES.reshape(2, 1, 1, 1, 1, 6, 2, 3, 4), WEIGHT),
        "selective_tube: features must have at most 8 axes, got 9 axes",
    ),
]


@pytest.mark.parametrize("tensors, message", AT_RUN, ids=[message[:60] for _, message in AT_RUN])
def test_a_bad_input_is_an_error_of_the_run(opened, tensors, message):
    inputs = dict(list(FREE.items())[: len(tensors)])
    session = opened(model("SelectiveTube", inputs, {"tube": F32, "motion": F32, "share": F32}, size=(4, 5, 6)))
    with pytest.raises(Exception, match="INVALID_ARGUMENT") as error:
        run(session, *tensors)
    assert message in str(error.value)
    run(session, FEATURES, WEIGHT, *((torch.ones(1),) if len(tensors) == 3 else ()))  # it still works


@pytest.mark.parametrize(
    "size, message",
    [
        (np.array([4, 5]), "spline_upsample: size must have shape [3], got [2]"),
        (np.array([4, -5, 6]), "spline_upsample: size must be three lengths (T, H, W) >= 1, got [4, -5, 6]"),
        (None, "spline_upsample: size must be given as an attribute or as the second input, got neither"),
    ],
)
def test_a_bad_size_input_is_an_error_of_the_run(opened, size, message):
    inputs = {"volume": (F32, [None] * 3)} | ({} if size is None else {"size": (np.int64, [None])})
    session = opened(model("SplineUpsample", inputs, {"output": F32}))
    with pytest.raises(Exception, match="INVALID_ARGUMENT") as error:
        run(session, torch.randn(2, 3, 4), *(() if size is None else (size,)))
    assert message in str(error.value)


def test_a_file_with_our_ops_says_what_to_do_where_the_library_is_missing(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(tube_model(size=(4, 5, 6)).SerializeToString())
    code = """
import os, sys
os.environ["CLIPSIGHT_LIBRARY_DIR"] = sys.argv[2]
import clipsight
try:
    clipsight.onnx_session(sys.argv[1])
except clipsight.LoadError as error:
    print(error)
print(sorted({"torch", "clipsight._library"} & set(sys.modules)))
"""
    message, modules = run_python(code, path, tmp_path).splitlines()
    assert f"onnx_session: '{path}' has ops of clipsight, whose library must be registered" in message
    assert "libclipsight_onnxruntime.so must exist, got no such file: rebuild with" in message
    assert modules == "[]"


def test_plain_files_open_without_the_library(tmp_path):
    info = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Neg", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "plain", [info("x", 1, [2])], [info("y", 1, [2])])
    path = tmp_path / "plain.onnx"
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(proto.SerializeToString())
    code = """
import os, sys
os.environ["CLIPSIGHT_LIBRARY_DIR"] = sys.argv[2]
import clipsight
print(clipsight.onnx_session(sys.argv[1], threads=1).get_outputs()[0].name)
"""
    assert run_python(code, path, tmp_path).strip() == "y"


def test_errors_of_onnx_session(tmp_path):
    with pytest.raises(FileNotFoundError, match="onnx_session: path must be a file, got"):
        clipsight.onnx_session(tmp_path / "none.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(tube_model(size=(4, 5, 6)).SerializeToString()[:40])
    with pytest.raises(LoadError, match="onnx_session: ONNX Runtime could not read"):
        clipsight.onnx_session(broken)
    with pytest.raises(ValueError, match="onnx_session: threads must be at least 1, got 0"):
        clipsight.onnx_session(broken, threads=0)
    with pytest.raises(ValueError, match="get_library_path: name must be one of"):
        clipsight.get_library_path("tensorflow")


# ---- the library ----------------------------------------------------------------------------------------------------


def test_the_library_exports_one_symbol_and_links_no_runtime():
    shown = subprocess.run(["nm", "-D", "--defined-only", LIBRARY], capture_output=True, text=True, check=True).stdout
    assert [line.split()[-1] for line in shown.splitlines()] == ["RegisterCustomOps"]
    dynamic = subprocess.run(["readelf", "-d", LIBRARY], capture_output=True, text=True, check=True).stdout
    needed = [line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line]
    assert needed
    assert not [name for name in needed if "onnx" in name or "python" in name or "torch" in name or "cuda" in name]


class ApiBase(ctypes.Structure):
    _fields_ = (
        ("GetApi", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)),
        ("GetVersionString", ctypes.CFUNCTYPE(ctypes.c_char_p)),
    )


def test_the_library_asks_for_an_api_that_old_runtimes_have():
    """The real runtime's entry, but for later versions of the API, which it denies: as a runtime older still would."""
    found = sorted(Path(ort.__file__).parent.glob("capi/libonnxruntime.so.*"))
    if not found:
        pytest.skip("this build of onnxruntime has no libonnxruntime.so to ask")
    runtime = ctypes.CDLL(str(found[0]))
    runtime.OrtGetApiBase.restype = ctypes.POINTER(ApiBase)
    real, asked = runtime.OrtGetApiBase().contents, []

    def get_api(version):
        asked.append(version)
        return real.GetApi(version) if version == 1 else None

    noting = ApiBase(ApiBase._fields_[0][1](get_api), real.GetVersionString)
    library = ctypes.CDLL(str(LIBRARY))
    library.RegisterCustomOps.restype = ctypes.c_void_p
    status = library.RegisterCustomOps(None, ctypes.byref(noting))
    assert asked[-1] == 1
    assert max(asked) <= 21
    third = ctypes.cast(real.GetApi(1), ctypes.POINTER(ctypes.c_void_p))[
        2
    ]  # CreateStatus, GetErrorCode, GetErrorMessage
    message = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(third)(status).decode()
    assert message == f"clipsight: ONNX Runtime must be 1.{asked[0]} or newer, got {ort.__version__}"
