"""One export in this process, which should be a fresh one: what it imports on the way counts, as a user sees it.

python -m benchmarks.one_export NETWORK HEADS FILE     explains and exports a network of `clipsight.models`
python -m benchmarks.one_export NETWORK bare FILE      torch.onnx.export of the network alone

Prints a JSON object once the file has given the network's logits. The clock runs from the call to its return, the
self-check included; torch, clipsight and the network are there already, and nothing else is.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

import clipsight
from clipsight import FeaturePyramid, SaliencyTube, SelectiveRelevance, models
from clipsight.heads import (
    DeepTaylor,
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    InputGradient,
    IntegratedGradients,
    LRPEpsilon,
)

OPSET = 18  # that of clipsight's files
HEADS = {
    "tube": [SaliencyTube()],
    "motion": [SaliencyTube(), SelectiveRelevance(extras=("motion_share",))],
    "guided_backprop": [GuidedBackprop()],
    "deep_taylor": [DeepTaylor()],
    "gradients": [
        GradCAM(layer="layer3"),
        GuidedBackprop(),
        GuidedGradCAM(),
        DeepTaylor(),
        LRPEpsilon(),
        InputGradient(),
    ],
    "six": [SaliencyTube(), GradCAM(), GuidedBackprop(), DeepTaylor(), IntegratedGradients(), FeaturePyramid()],
}


def main(name: str, heads: str, path: Path) -> dict:
    """Seconds of the export, nodes and bytes of its file; for ours, what `explain` took before, and each phase."""
    torch.manual_seed(0)
    network = models.load(name, pretrained=models.has_weights(name))
    clip = _clip(network.preprocessing)
    facts = _bare(network, clip, path) if heads == "bare" else _ours(network, HEADS[heads], clip, path)
    return facts | _checked(network, clip, path)


def _ours(network: nn.Module, heads: list, clip: Tensor, path: Path) -> dict:
    begun = [("explain", time.perf_counter())]
    explained = clipsight.explain(network, heads, clip)
    start = time.perf_counter()
    clipsight.export(
        explained,
        path,
        clip,
        preprocessing=network.preprocessing,
        progress=lambda phase, _: begun.append((phase, time.perf_counter())),
    )
    end = time.perf_counter()
    phases = {phase: round(then - now, 2) for (phase, now), (_, then) in pairwise([*begun, ("", end)])}
    return {"seconds": end - start, "explain_s": phases.pop("explain"), "phases_s": phases}


def _bare(network: nn.Module, clip: Tensor, path: Path) -> dict:
    several = clip.expand(3, *clip.shape[1:]).clone()
    start = time.perf_counter()
    torch.onnx.export(
        network,
        (several,),
        path,
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes=({0: "N"},),
        input_names=["clip"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
    return {"seconds": time.perf_counter() - start}


def _clip(preprocessing) -> Tensor:
    """A clip of noise of the network's own size and range."""
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return (torch.rand(1, 3, *preprocessing.size) * 255 * preprocessing.scale - mean) / std


def _checked(network: nn.Module, clip: Tensor, path: Path) -> dict:
    import onnx

    model = onnx.load(path)
    opset = next(known.version for known in model.opset_import if known.domain in ("", "ai.onnx"))
    assert opset == OPSET, f"{path.name}: the opset must be {OPSET}, got {opset}"
    (logits,) = clipsight.onnx_session(path).run(["logits"], {"clip": clip.numpy()})
    with torch.inference_mode():
        expected = network(clip)
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    return {"nodes": sum(1 for _ in _nodes(model.graph)), "bytes": path.stat().st_size}


def _nodes(graph) -> Iterator:
    """Those of a graph, and of the graphs in them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for nested in (attribute.g, *attribute.graphs):
                yield from _nodes(nested)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
