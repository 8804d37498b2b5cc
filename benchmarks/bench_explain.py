"""The cost of an explanation in the files that users run: r3d_18, 16x112x112, batch 1, in every format.

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
import torch
from benchmarks.measure import interleaved, open_session, paired_overhead, row
from torch.export.pt2_archive._package import package_pt2

import clipsight
from clipsight import SaliencyTube, SelectiveRelevance
from clipsight.attach import Attached
from clipsight.explained import SizedExplanation
from clipsight.exporters import aot, onnx, onnx_plugin, torchscript
from clipsight.exporters.quiet import quiet
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
    """One row per case and format."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    network = import_torchvision().models.video.r3d_18().eval()
    clip = torch.rand(1, 3, *SIZE)
    methods = [SaliencyTube(), SelectiveRelevance(extras=("motion_share",))]
    explained = clipsight.explain(network, methods, clip)
    with tempfile.TemporaryDirectory() as folder:
        yield from head_alone("tube + motion + share", explained, network.fc.weight.detach(), Path(folder))
        yield from _explained_against_plain(explained, clip, Path(folder))


def head_alone(what: str, explained, weight: torch.Tensor, folder: Path) -> Iterator[dict]:
    """Rows for what comes behind the features of a network that averages them, in every format."""
    features = torch.relu(torch.randn(1, *explained.feature_shape))
    for name, (_, plugin, convert) in FORMATS.items():
        attached, inside = Attached(linear=True), torch.float32
        head = SizedExplanation(
            Features(weight), attached, explained.bound, explained.classes, SIZE, plugin, inside, None
        ).eval()
        call = convert(head, features, explained.output_names, folder)
        _check(call(), _run_eager(head, features))
        ours, nothing = interleaved(call, lambda: None, 200, warmup=30)
        result = row(f"head alone ({what}), {name}", ours, nothing, "1.0 ms")
        result |= {"baseline_ms": HEAD_BOUND_MS, "ratio": round(HEAD_BOUND_MS / result["ours_ms"], 3)}
        yield result | {"must_reach": ">= 1", "met": result["ratio"] >= 1, "threads": torch.get_num_threads()}


def _explained_against_plain(explained, clip: torch.Tensor, folder: Path) -> Iterator[dict]:
    for name, (suffix, plugin, _) in FORMATS.items():
        path, plain = folder / f"explained{suffix}", folder / f"plain{suffix}"
        clipsight.export(explained, path, plugin=plugin, plain=plain, precheck=False)
        explain, baseline = _run_file(path, clip), _run_file(plain, clip)
        _check(explain(), _run_eager(explained, clip))
        np.testing.assert_allclose(np.asarray(baseline()[0]), np.asarray(explain()[0]), rtol=1e-4, atol=1e-5)
        ours, theirs = interleaved(explain, baseline, PAIRS)
        overhead, low, high = paired_overhead(ours, theirs)
        result = row(f"explained forward, r3d_18, {name}", ours, theirs, "plain forward, same format")
        result |= {"overhead": round(overhead, 4), "interval_95": [round(low, 4), round(high, 4)]}
        result |= {"must_reach": f"overhead <= {OVERHEAD_BOUND}, interval below", "met": high <= OVERHEAD_BOUND}
        yield result | {"pairs": PAIRS, "threads": torch.get_num_threads()}


def _run_file(path: Path, clip: torch.Tensor) -> Callable:
    if path.suffix == ".onnx":
        return _session(open_session(path), clip)
    loaded = clipsight.load(path)
    return lambda: loaded(clip)


def _session(session, clip: torch.Tensor) -> Callable:
    feed = {"clip": clip.numpy()}
    return lambda: session.run(None, feed)


# ---- One module in each format, without the file's manifest: (module, its input, names of outputs, folder) -> a call -


def _script(module: torch.nn.Module, clip: torch.Tensor, names, folder: Path) -> Callable:
    return _inferring(torchscript.convert(module, (clip,)), clip)


def _plain_onnx(module: torch.nn.Module, clip: torch.Tensor, names, folder: Path, table=None) -> Callable:
    model = onnx.convert(module, (_batch_of_two(clip),), names, custom_translation_table=table)
    (folder / "head.onnx").write_bytes(model.SerializeToString())
    return _session(clipsight.onnx_session(folder / "head.onnx"), clip)  # it runs alone: its threads may spin


def _plugin_onnx(module: torch.nn.Module, clip: torch.Tensor, names, folder: Path) -> Callable:
    return _plain_onnx(module, clip, names, folder, onnx_plugin.translation_table())


def _compiled(module: torch.nn.Module, clip: torch.Tensor, names, folder: Path) -> Callable:
    package = aot.convert({"model": (module, {"clip": _batch_of_two(clip)})})
    package_pt2(str(folder / "head.pt2"), aoti_files=package.files)
    with quiet():
        return _inferring(torch._inductor.aoti_load_package(str(folder / "head.pt2")), clip)


def _batch_of_two(clip: torch.Tensor) -> torch.Tensor:
    """What torch's exporters need for a free batch size."""
    return clip.expand(2, *clip.shape[1:]).clone()


def _inferring(module: Callable, clip: torch.Tensor) -> Callable:
    def run():
        with torch.inference_mode():
            return module(clip)

    return run


# name: suffix of the file, fused ops, and the head alone in this format
FORMATS = {
    "TorchScript, fused ops": (".pt", True, _script),
    "TorchScript, plain ops": (".pt", False, _script),
    "ONNX Runtime, fused ops": (".onnx", True, _plugin_onnx),
    "ONNX Runtime, plain ops": (".onnx", False, _plain_onnx),
    "AOTInductor, fused ops": (".pt2", True, _compiled),
}


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
