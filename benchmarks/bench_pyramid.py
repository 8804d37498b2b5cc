"""Table 1 of Class Feature Pyramids on this machine: how long the back-step takes beside the network's own forward.

The six networks with random weights, one clip of 16x224x224, theta and depth of the paper. A file's nodes behind the
network, its back-step, run by themselves on the tensors that the network hands on; the forward is that of a file of the
network alone. Floating-point operations count a multiplication and an addition as two, as the paper's table does.

python -m benchmarks.bench_pyramid
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from benchmarks.measure import interleaved, open_session, row
from torch.utils.flop_counter import FlopCounterMode

import clipsight
from clipsight import FeaturePyramid, models
from clipsight.exporters.onnx_graph import network_and_head

SIZE = (16, 224, 224)
# name: theta, GFLOPs and milliseconds (two GTX 1080 Ti) in the paper
PAPER = {
    "mfnet": (0.6, 22.70, 24.43),
    "i3d": (0.65, 55.79, 23.21),
    "r3d50": (0.55, 80.32, 21.39),
    "r3d101": (0.6, 110.98, 39.48),
    "r3d152": (0.6, 148.91, 31.06),
    "resnext101": (0.6, 76.96, 70.49),
}
SHARE, BOUND_MS = 0.03, 20.0


def rows() -> Iterator[dict]:
    """Two rows for each network: fused ops, plain ops."""
    warnings.simplefilter("ignore")
    for name in PAPER:
        with tempfile.TemporaryDirectory() as folder:
            yield from _of_network(name, Path(folder))


def _of_network(name: str, folder: Path) -> Iterator[dict]:
    theta, paper_gflops, paper_ms = PAPER[name]
    torch.manual_seed(0)
    network = models.load(name, pretrained=False)
    clip = torch.randn(1, 3, *SIZE)
    explained = clipsight.explain(network, FeaturePyramid(theta=theta, depth=3, volumes="none"), clip)
    expected = dict(zip(explained.output_names, _run(explained, clip), strict=True))
    for kind, plugin in (("fused ops", True), ("plain ops", False)):
        files = [folder / f"{kind}.onnx", folder / "plain.onnx"]
        clipsight.export(explained, files[0], plugin=plugin, plain=files[1], precheck=False)
        back_step, found = _back_step(files[0], clip.numpy())
        for output, value in found.items():
            differing = (value != expected[output].numpy()).mean() if output != "logits" else 0
            assert differing < 1e-3, f"{output}: {differing:.2%} of the selection differs"
        forward = functools.partial(open_session(files[1]).run, None, {"clip": clip.numpy()})
        ours = interleaved(back_step, lambda: None, 60, warmup=10)[0]
        theirs = interleaved(forward, lambda: None, 5, warmup=1)[0]
        result = row(f"back-step, {name}, ONNX Runtime, {kind}", ours, theirs, "the network's forward")
        share, took = result["ours_ms"] / result["baseline_ms"], result["ours_ms"]
        result |= {"must_reach": f"<= {SHARE:.0%} of the forward and <= {BOUND_MS:g} ms", "share": round(share, 5)}
        result |= {"met": share <= SHARE and took <= BOUND_MS, "threads": torch.get_num_threads()}
        result |= {"theta": theta, "depth": 3, "gflops": round(_gflops(name), 2)}
        yield result | {"paper_gflops": paper_gflops, "paper_ms": paper_ms}


def _gflops(name: str) -> float:
    with torch.device("meta"):
        network = models.load(name, pretrained=False)
        clip = torch.empty(1, 3, *SIZE)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(clip)
    return counter.get_total_flops() / 1e9


def _back_step(path: Path, clip: np.ndarray):
    """What follows the network in a file, as a call; and its results by name."""
    model = onnx.load(path)
    network, head = network_and_head(model.graph)
    read = {name for node in head for name in node.input}
    weights = {tensor.name for tensor in model.graph.initializer}
    crossing = [name for node in network for name in node.output if name in read]
    outputs = [value.name for value in model.graph.output[1:] if value.name not in crossing]
    handed_on = open_session(_with_outputs(model, network, crossing)).run(None, {"clip": clip})
    feed = dict(zip(crossing, handed_on, strict=True)) | ({"clip": clip} if "clip" in read else {})
    types = {name: onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feed.items()}
    inputs = [onnx.helper.make_tensor_value_info(name, types[name], feed[name].shape) for name in feed]
    values = [value for value in model.graph.output if value.name in outputs]
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read and tensor.name in weights]
    alone = onnx.helper.make_graph(head, "back_step", inputs, values, kept)
    session = open_session(_model(model, alone))
    return lambda: session.run(None, feed), dict(zip(outputs, session.run(None, feed), strict=True))


def _with_outputs(model, nodes, names):
    infos = {v.name: v for v in (*model.graph.value_info, *model.graph.output)}
    values = [infos.get(name) or onnx.helper.make_empty_tensor_value_info(name) for name in names]
    graph = onnx.helper.make_graph(nodes, "network", model.graph.input, values, model.graph.initializer)
    return _model(model, graph)


def _model(like, graph) -> bytes:
    opsets, functions = like.opset_import, like.functions
    return onnx.helper.make_model(
        graph, opset_imports=opsets, ir_version=like.ir_version, functions=functions
    ).SerializeToString()


def _run(module, clip) -> tuple:
    with torch.inference_mode():
        return module(clip)


if __name__ == "__main__":
    sys.path.insert(0, "")
    for result in rows():
        print(json.dumps(result), flush=True)
