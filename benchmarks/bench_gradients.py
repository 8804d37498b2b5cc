"""What gradient explanations cost beside the network's own forward, in files, and what other libraries take for them.

r3d_18 and C3D, clips of 16x112x112, batch 1 and 4. Each file runs in turns with a file of the network alone in the same
format; each library in turns with the eager network. Our time includes the map at the clip's size. Results are compared
with the libraries' before any clock starts.

python -m benchmarks.bench_gradients [r3d_18|c3d]
python -m benchmarks.bench_gradients --memory KIND FILE       what a fresh process needs; prints bytes
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.utils
import torch
from benchmarks import bench_explain, gradient_peers
from benchmarks.bench_explain import _run_file
from benchmarks.gradient_peers import HIGH, LAYERS, LOW, METHODS
from benchmarks.measure import interleaved, open_session, paired_overhead, row

import clipsight
from clipsight import models, reference
from clipsight.exporters.onnx_graph import network_and_head
from clipsight.heads import DeepTaylor, GradCAM, GuidedBackprop
from clipsight.models.beside_torchvision import import_torchvision

SIZE = (16, 112, 112)
FORMATS = {".onnx": ("ONNX Runtime", False), ".pt": ("TorchScript", True)}
BOX = {"low": (LOW,) * 3, "high": (HIGH,) * 3}
HEADS = {"grad_cam": GradCAM(), "guided_backprop": GuidedBackprop(), "deep_taylor": DeepTaylor(**BOX)}
# Unscaled, at the size and with the colours of the libraries' results.
RAW = {
    "grad_cam": lambda layer: GradCAM(layer=layer, size="features"),
    "guided_backprop": lambda _: GuidedBackprop(colours="raw", normalize="none"),
    "deep_taylor": lambda _: DeepTaylor(colours="raw", normalize="none", **BOX),
}
# (network, method, suffix): the largest overhead; a missing one is only reported
BOUNDS = {
    ("r3d_18", "grad_cam", ".onnx"): 1.02,
    ("r3d_18", "grad_cam", ".pt"): 1.02,
    ("c3d", "grad_cam", ".onnx"): 1.15,
    ("c3d", "grad_cam", ".pt"): 1.15,
    **{(name, "guided_backprop", ".onnx"): 2.4 for name in LAYERS},
    **{(name, "deep_taylor", ".onnx"): 3.5 for name in LAYERS},
}
PAIRS = {"grad_cam": 32, "guided_backprop": 6, "deep_taylor": 5}  # of batch 1
CLOSE_PAIRS = 60  # of two forwards that may differ by two hundredths, of any batch
ROUNDS = 20  # of the selective step
PROCESSES = 3  # the median of their peaks: what a heap keeps depends on its history
STEPS = ("TorchScript, fused ops", "ONNX Runtime, fused ops", "ONNX Runtime, plain ops")
CAM_TIMES, STEP_MS, STEP_SHARE, MEMORY = 50, 1.0, 0.01, 1.5


def rows(names=tuple(LAYERS)) -> Iterator[dict]:
    """Files and libraries for each network, method and batch size; the selective step; memory."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            yield from _of_network(name, Path(folder))


def _of_network(name: str, folder: Path) -> Iterator[dict]:
    network, clip = _network(name), _clip(4)
    modules = gradient_peers.as_modules(name, network)
    files = {}
    for method, head in HEADS.items():
        _check_against_peers(method, name, network, modules, clip[:1])
        explained = clipsight.explain(network, head, clip[:1])
        for suffix, (_, plugin) in FORMATS.items():
            path = folder / f"{name}-{method}{suffix}"
            files[method, suffix], plain = path, folder / f"{name}{suffix}"
            clipsight.export(explained, path, plugin=plugin, plain=plain, precheck=False)
            ours, theirs = _run_file(path, clip[:2])(), explained(clip[:2])
            _check(path.name, ours[1], theirs[1], 1e-3)
        if method == "grad_cam":
            fused = folder / f"{name}-{method}-fused.onnx"
            clipsight.export(explained, fused, plugin=True, precheck=False)
    for batch in (1, 4):
        plain_ms = {}
        for (method, suffix), path in files.items():
            result = _against_plain(name, method, suffix, path, folder / f"{name}{suffix}", clip[:batch])
            plain_ms[suffix] = result["baseline_ms"]
            yield result
        for method in METHODS:
            path = fused if method == "grad_cam" else files[method, ".onnx"]
            yield from _peers(name, method, modules, clip[:batch], path)
        if (name, batch) == ("r3d_18", 1):
            for format_name in STEPS:
                yield _selective_step(format_name, plain_ms[".onnx"], folder)
    yield from _memory(name, files)


# ---- Time -----------------------------------------------------------------------------------------------------------


def _against_plain(name: str, method: str, suffix: str, path: Path, plain: Path, clip: torch.Tensor) -> dict:
    batch = clip.shape[0]
    bound = BOUNDS.get((name, method, suffix))
    pairs = CLOSE_PAIRS if bound == 1.02 else max(PAIRS[method] // batch, 3)
    ours, theirs = interleaved(_run_file(path, clip), _run_file(plain, clip), pairs, warmup=2)
    overhead, low, high = paired_overhead(ours, theirs)
    result = row(f"{method}, {name}, batch {batch}, {FORMATS[suffix][0]}", ours, theirs, "plain forward, same format")
    result |= {"overhead": round(overhead, 4), "interval_95": [round(low, 4), round(high, 4)]}
    if bound:
        result |= {"must_reach": f"overhead <= {bound}", "met": overhead <= bound}
    return result | {"pairs": pairs, "threads": torch.get_num_threads()}


def _peers(name: str, method: str, modules, clip: torch.Tensor, path: Path) -> Iterator[dict]:
    """How long the libraries take, beside the eager network and beside our file.

    For Grad-CAM beside what follows the network in a file with the fused op: two forwards would differ by noise.
    """
    batch = clip.shape[0]
    pairs = max(PAIRS[method] // batch, 3)
    if method == "grad_cam":
        head = statistics.median(interleaved(_behind_the_network(path, clip), lambda: None, 60, warmup=10)[0])
    for library, call in gradient_peers.peers(method, name, modules, clip, _classes(modules, clip)).items():
        theirs, plain = interleaved(call, functools.partial(_infer, modules, clip), pairs, 1)
        overhead = paired_overhead(theirs, plain)[0]
        result = row(f"{method}, {name}, batch {batch}, {library}", theirs, plain, "plain forward, eager")
        result |= {"overhead": round(overhead, 4), "threads": torch.get_num_threads()}
        if method == "grad_cam" and name == "r3d_18":
            times = float(np.median(np.subtract(theirs, plain))) / head
            result |= {"our_extra_ms": round(head, 3), "extra_over_ours": round(times, 1)}
            result |= {"must_reach": f"extra >= {CAM_TIMES}x ours", "met": times >= CAM_TIMES}
        yield result
        if method != "grad_cam":
            ours, theirs = interleaved(_run_file(path, clip), call, pairs, 1)
            case = f"{method}, {name}, batch {batch}, ONNX Runtime beside {library}"
            yield row(case, ours, theirs, library, bound=">= 1", threads=torch.get_num_threads())


def _selective_step(format_name: str, plain_ms: float, folder: Path) -> dict:
    """The step by itself on one map of the clip's size, as `SelectiveRelevance(of=...)` adds it to any method.

    An absolute time, so the least median of some rounds: other guests of the machine slow whole seconds. The largest is
    in the row too.
    """

    class Step(torch.nn.Module):
        def forward(self, clip):
            return ops.selective_relevance(clip)[:1]

    _, fused, convert = bench_explain.FORMATS[format_name]
    ops = clipsight.ops if fused else reference
    volume = torch.nn.functional.avg_pool3d(_clip(1)[:, :1], 5, 1, 2)
    call = convert(Step(), volume, ("motion",), folder)
    _check("selective step", call()[0], reference.selective_relevance(volume)[0], 1e-3)
    rounds = [statistics.median(interleaved(call, lambda: None, 200, warmup=30)[0]) for _ in range(ROUNDS)]
    result = row(f"selective step, {format_name}", [min(rounds)], [plain_ms], "plain forward of r3d_18")
    result |= {"rounds": ROUNDS, "slowest_round_ms": round(max(rounds), 4)}
    share = result["ours_ms"] / plain_ms
    result |= {"share": round(share, 5), "must_reach": f"<= {STEP_MS:g} ms and <= {STEP_SHARE:.0%} of the forward"}
    return result | {"met": result["ours_ms"] <= STEP_MS and share <= STEP_SHARE}


def _behind_the_network(path: Path, clip: torch.Tensor) -> Callable:
    """The nodes of a file that its logits do not need, on random tensors from the network."""
    model = onnx.load(path)
    network, head = network_and_head(model.graph)
    read = {name for node in head for name in node.input}
    crossing = [name for node in network for name in node.output if name in read]
    part = onnx.utils.Extractor(model).extract_model(crossing, [model.graph.output[1].name])
    session = open_session(part.SerializeToString())
    feed = {}
    for value in part.graph.input:
        shape = [clip.shape[0], *(axis.dim_value for axis in value.type.tensor_type.shape.dim[1:])]
        feed[value.name] = np.random.default_rng(0).random(shape, np.float32)
    return lambda: session.run(None, feed)


# ---- Memory ---------------------------------------------------------------------------------------------------------


def _memory(name: str, files: dict) -> Iterator[dict]:
    """Peak of a fresh process that loads and runs, beyond what it had after its imports: ours against autograd's.

    For relevance that is zennit's, which is made from autograd; the plain gradient's is given beside it.
    """
    gradient = _in_fresh_processes("autograd", name)
    for method in METHODS:
        theirs = _in_fresh_processes("zennit", name) if method == "deep_taylor" else gradient
        for suffix, (format_name, _) in FORMATS.items():
            ours = _in_fresh_processes("file", files[method, suffix])
            baseline = f"{'zennit' if method == 'deep_taylor' else 'autograd'}, {theirs >> 20} MiB"
            result = {"case": f"peak memory, {method}, {name}, batch 1, {format_name}", "ours_bytes": ours}
            result |= {"baseline": baseline, "ratio": round(ours / theirs, 3), "must_reach": f"<= {MEMORY}"}
            result |= {"met": ours / theirs <= MEMORY, "ratio_to_gradient": round(ours / gradient, 3)}
            yield result


def _in_fresh_processes(*arguments) -> int:
    command = [sys.executable, "-m", "benchmarks.bench_gradients", "--memory", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    outputs = (
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        for _ in range(PROCESSES)
    )
    return int(statistics.median(int(output.split()[-1]) for output in outputs))


def _needed(kind: str, target: str) -> int:
    """Bytes at the peak of two runs beyond the start, the loaded weights included, the loading itself left out."""
    clip = _clip(1)
    import_torchvision()
    gc.collect()
    start = _resident("VmRSS")
    call = _run_file(Path(target), clip) if kind == "file" else _autograd(kind, target, clip)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what loading has freed, which glibc would keep
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    call()
    call()
    return _resident("VmHWM") - start


def _autograd(kind: str, name: str, clip: torch.Tensor) -> Callable:
    network = _network(name)
    if kind == "zennit":
        network = gradient_peers.as_modules(name, network)
        return gradient_peers.peers("deep_taylor", name, network, clip, _classes(network, clip))["zennit"]
    network.requires_grad_(False)
    leaf = clip.requires_grad_()
    return lambda: torch.autograd.grad(network(leaf).max(), leaf)[0]


def _resident(field: str) -> int:
    """Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


# ---- What is timed --------------------------------------------------------------------------------------------------


def _network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == "c3d":
        return models.load("c3d", pretrained=False).eval()
    return import_torchvision().models.video.r3d_18().eval()


def _clip(batch: int) -> torch.Tensor:
    return torch.rand(batch, 3, *SIZE, generator=torch.Generator().manual_seed(1)) * (HIGH - LOW) + LOW


def _classes(network, clip: torch.Tensor) -> list[int]:
    return _infer(network, clip).argmax(1).tolist()


def _infer(network, clip: torch.Tensor):
    with torch.inference_mode():
        return network(clip)


def _check_against_peers(method: str, name: str, network, modules, clip: torch.Tensor) -> None:
    raw = _infer(clipsight.explain(network, RAW[method](LAYERS[name][0]), clip), clip)[1]
    calls = gradient_peers.peers(method, name, modules, clip, _classes(network, clip))
    for library in {"captum", "zennit"} & calls.keys():
        _check(f"{method}, {library}", raw, calls[library]()[0].detach(), 1e-3)


def _check(what: str, got, expected: torch.Tensor, bound: float) -> None:
    got, expected = torch.as_tensor(np.asarray(got)).double(), expected.double()
    assert got.shape == expected.shape, (got.shape, expected.shape)
    difference = (got - expected).norm() / expected.norm()  # a ReLU at zero may open in one and not in the other
    assert difference <= bound, f"{what}: results differ by {difference:.1e} of their norm"


if __name__ == "__main__":
    sys.path.insert(0, "")
    if sys.argv[1:2] == ["--memory"]:
        print(_needed(*sys.argv[2:]))
    else:
        for result in rows(sys.argv[1:] or tuple(LAYERS)):
            print(json.dumps(result), flush=True)
