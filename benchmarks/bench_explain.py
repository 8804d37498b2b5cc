"""The cost of an explanation in the files that users run: r3d_18, 16x112x112, batch 1, as TorchScript and as ONNX.

The head alone (features given), and the explained against the plain forward, both in the same format and frozen.

python -m benchmarks.bench_explain
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from benchmarks.measure import interleaved, paired_overhead, row

import clipsight
from clipsight import SaliencyTube, SelectiveRelevance
from clipsight.explained import SizedExplanation
from clipsight.exporters import onnx, torchscript
from clipsight.models.beside_torchvision import import_torchvision

SIZE = (16, 112, 112)
HEAD_BOUND_MS = 1.0
OVERHEAD_BOUND = 1.02
PAIRS = 100


class Features(torch.nn.Module):
    """Stands in for the backbone: features in, what a captured network returns out."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return features.mean((2, 3, 4)) @ self.weight.T, features, self.weight


def rows() -> Iterator[dict]:
    """One row per format and case."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    network = import_torchvision().models.video.r3d_18().eval()
    clip = torch.rand(1, 3, *SIZE)
    methods = [SaliencyTube(), SelectiveRelevance(extras=("motion_share",))]
    explained = clipsight.explain(network, methods, clip)
    yield from _head_alone(explained, network.fc.weight.detach())
    yield from _explained_against_plain(explained, clip)


def _head_alone(explained, weight: torch.Tensor) -> Iterator[dict]:
    features = torch.relu(torch.randn(1, *explained.feature_shape))
    for plugin, name in [(True, "TorchScript, fused ops"), (False, "TorchScript, plain ops"), (None, "ONNX Runtime")]:
        head = SizedExplanation(Features(weight), explained.bound, explained.classes, SIZE, bool(plugin)).eval()
        expected = _run_eager(head, features)
        call = _onnx(head, features, explained.output_names) if plugin is None else _script(head, features)
        _check(call(), expected)
        ours, nothing = interleaved(call, lambda: None, 200, warmup=30)
        result = row(f"head alone (tube + motion + share), {name}", ours, nothing, "1.0 ms")
        result |= {"baseline_ms": HEAD_BOUND_MS, "ratio": round(HEAD_BOUND_MS / result["ours_ms"], 3)}
        yield result | {"must_reach": ">= 1", "met": result["ratio"] >= 1, "threads": torch.get_num_threads()}


def _explained_against_plain(explained, clip: torch.Tensor) -> Iterator[dict]:
    plain = explained.plain_at(SIZE).eval()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("r3d_18.pt", "r3d_18.onnx"):
            path = Path(folder) / name
            clipsight.export(explained, path, precheck=False)
            if path.suffix == ".pt":
                format, baseline, script = "TorchScript", _script(plain, clip), torch.jit.load(path)
                explain = lambda: script(clip)  # noqa: E731, B023
            else:
                format, baseline = "ONNX Runtime", _onnx(plain, clip, ["logits"])
                explain = _session(path.read_bytes(), clip)
            with torch.inference_mode():
                _check(explain(), _run_eager(explained, clip))
                np.testing.assert_allclose(np.asarray(baseline()[0]), np.asarray(explain()[0]), rtol=1e-4, atol=1e-5)
                ours, theirs = interleaved(explain, baseline, PAIRS)
            overhead, low, high = paired_overhead(ours, theirs)
            result = row(f"explained forward, r3d_18, {format}", ours, theirs, "plain forward, same format")
            result |= {"overhead": round(overhead, 4), "interval_95": [round(low, 4), round(high, 4)]}
            result |= {"must_reach": f"overhead <= {OVERHEAD_BOUND}, interval below", "met": high <= OVERHEAD_BOUND}
            yield result | {"pairs": PAIRS, "threads": torch.get_num_threads()}


def _script(module: torch.nn.Module, clip: torch.Tensor) -> Callable:
    frozen = torchscript.convert(module, (clip,))

    def run():
        with torch.inference_mode():
            result = frozen(clip)
        return result if isinstance(result, tuple) else (result,)

    return run


def _onnx(module: torch.nn.Module, clip: torch.Tensor, names) -> Callable:
    model = onnx.convert(module, (clip.expand(2, *clip.shape[1:]).clone(),), names)
    return _session(model.SerializeToString(), clip)


def _session(model: bytes, clip: torch.Tensor) -> Callable:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # The threads of a session go on spinning after a run; here that would slow the other session's turn.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {"clip": clip.numpy()}
    return lambda: session.run(None, feed)


def _run_eager(module, clip) -> tuple:
    with torch.inference_mode():
        return module(clip)


def _check(got, expected) -> None:
    for a, b in zip(got, expected, strict=True):
        differs = np.abs(np.asarray(a, np.float64) - b.double().numpy()) > 1e-4 * max(1.0, float(b.abs().max()))
        assert differs.mean() < 1e-3, f"{int(differs.sum())} values differ"  # voxels at the edge of the motion mask


if __name__ == "__main__":
    sys.path.insert(0, "")
    for result in rows():
        print(json.dumps(result), flush=True)
