"""The selective step in plain ops, in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipsight import reference


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("prescale", [False, True])
def test_a_broken_map_is_nan_in_onnx_runtime_too(broken, prescale, tmp_path):
    """Runtimes differ in the largest of values that are no numbers; what follows must not depend on it."""

    class Step(torch.nn.Module):
        def forward(self, volume):
            return reference.selective_relevance(volume, prescale=prescale)

    volume = torch.randn(3, 8, 9, 10)
    volume[1, 4, 5, 6] = broken
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    path = str(tmp_path / "step.onnx")
    torch.onnx.export(Step(), (volume,), path, dynamo=True, verbose=False, external_data=False)
    results = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"volume": volume.numpy()}
    )
    for result, expected in zip(results, Step()(volume), strict=True):
        assert expected[1].isnan().all()
        assert not expected[[0, 2]].isnan().any()
        torch.testing.assert_close(torch.from_numpy(result), expected, equal_nan=True)
