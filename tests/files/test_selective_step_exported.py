"""The selective step in plain ops, in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipsight import reference


class Step(torch.nn.Module):
    def __init__(self, prescale: bool) -> None:
        super().__init__()
        self.prescale = prescale

    def forward(self, volume):
        return reference.selective_relevance(volume, prescale=self.prescale)


@pytest.fixture(scope="module", params=[False, True])
def step(request, tmp_path_factory):
    """The step, and the session of its file."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    step, path = Step(prescale=request.param).eval(), str(tmp_path_factory.mktemp("step") / "step.onnx")
    torch.onnx.export(step, (torch.randn(3, 8, 9, 10),), path, dynamo=True, verbose=False, external_data=False)
    return step, onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_broken_map_is_nan_in_onnx_runtime_too(broken, step):
    """Runtimes differ in the largest of values that are no numbers; what follows must not depend on it."""
    eager, session = step
    volume = torch.randn(3, 8, 9, 10)
    volume[1, 4, 5, 6] = broken
    for result, expected in zip(session.run(None, {"volume": volume.numpy()}), eager(volume), strict=True):
        assert expected[1].isnan().all()
        assert not expected[[0, 2]].isnan().any()
        torch.testing.assert_close(torch.from_numpy(result), expected, equal_nan=True)
