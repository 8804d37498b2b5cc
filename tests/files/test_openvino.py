"""The plain ONNX file is ordinary ONNX: OpenVINO runs it too, with the numbers of ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

import clipsight
from artifacts import HEADS
from clipsight.manifest import read_manifest

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
openvino = pytest.importorskip("openvino", reason="openvino is not installed")

SIZE = (16, 64, 64)
CASES = {  # classes of explain, options of export
    "tube and motion": ("predicted", {}),
    "top 3": ("top3", {}),
    "classes as an input": ("input", {}),
    "bytes out": ("predicted", {"output": "uint8"}),
    "frames in": ("predicted", {"frames": "uint8"}),
    "tau and n_sigma as inputs": ("predicted", {"inputs": ("tau", "n_sigma")}),
    "all of these": ("input", {"frames": "uint8", "output": "uint8", "inputs": ("tau", "n_sigma")}),
}
ALONE = ("top 3", "classes as an input", "bytes out", "tau and n_sigma as inputs")  # what another case has, too


def feed(manifest: clipsight.Manifest, batch: int, seed: int) -> dict[str, np.ndarray]:
    """Arrays for every input of the file."""
    rng = np.random.default_rng(seed)
    arrays = {
        "clip": rng.standard_normal((batch, 3, *SIZE)).astype(np.float32),
        "frames": rng.integers(0, 256, (batch, SIZE[0], 72, 80, 3)).astype(np.uint8),
        "classes": rng.integers(0, 8, (batch, 2)),
        "tau": rng.uniform(-0.1, 0.1, batch).astype(np.float32),
        "n_sigma": rng.uniform(1, 2, batch).astype(np.float32),
    }
    return {port.name: arrays[port.name] for port in manifest.input_ports}


def share_off(name: str, got: np.ndarray, want: np.ndarray) -> float:
    """The share of values that differ by more than the rounding of two runtimes."""
    assert got.shape == want.shape, name
    assert got.dtype == want.dtype, name
    bound = 1.001 if want.dtype == np.uint8 else 1e-4 * max(1.0, np.abs(want).max())
    return float((np.abs(got.astype(np.float64) - want) > bound).mean())


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.full] * (c in ALONE)) for c in CASES])
def test_openvino_agrees_with_onnxruntime(case, artifact):
    classes, options = CASES[case]
    path = artifact("movers", HEADS, ".onnx", classes, **options)
    manifest = read_manifest(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    # OpenVINO would choose bfloat16 where the processor has it.
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    for batch in (1, 3):  # one compiled file, two batch sizes
        inputs = feed(manifest, batch, seed=batch)
        got = compiled(inputs)
        other = session.run(None, feed(manifest, batch, seed=9))
        for name, want, wrong in zip(manifest.output_names, session.run(None, inputs), other, strict=True):
            border = 2e-3 if name == "motion" else 0  # voxels at the edge of the mask
            assert share_off(name, got[name], want) <= border, name
            assert share_off(name, got[name], wrong) > border, name
