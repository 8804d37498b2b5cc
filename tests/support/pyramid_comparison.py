"""The FeaturePyramid head and its second implementation, :mod:`pyramid_oracle`, brought to the same form."""

from __future__ import annotations

import functools
import re

import numpy as np
import torch

import clipsight
import networks
import pyramid_networks
import pyramid_oracle

SIZE = (8, 12, 12)
PARTS = ("mask", "multiplicity", "edges")


@functools.cache
def recorded(name: str):
    """(network, three clips, what the second implementation needs to know of them); not every clip is of one class."""
    network, clip = pyramid_networks.build(name), networks.clip(3, SIZE)
    clip = clip * torch.tensor([0.5, 1, 2]).view(3, 1, 1, 1, 1) + torch.eye(3).view(3, 3, 1, 1, 1)
    recording = pyramid_oracle.record(network, clip)
    bias = network.get_submodule(recording.classifier).bias
    bias.data -= torch.from_numpy(recording.logits.mean(0))
    recording = pyramid_oracle.record(network, clip)
    assert len(set(recording.logits.argmax(1))) > 1
    return network, clip, recording


def explain(network, heads, clip, classes="predicted", chosen=None):
    """For each head {output name: NumPy array}, and the explained model."""
    heads = list(heads) if isinstance(heads, (list, tuple)) else [heads]
    explained = clipsight.explain(network, heads, clip[:1], classes)
    with torch.inference_mode():
        _, *tensors = explained(clip) if chosen is None else explained(clip, chosen)
    results: list[dict] = []
    for name, tensor in zip(explained.output_names[1:], tensors, strict=True):
        name = re.sub(r"_\d+$", "", name)  # of the second head with the same layers, and so on
        if name.endswith(".mask") and (not results or name == next(iter(results[0]))):
            results.append({})  # the classifier comes first
        results[-1][name] = tensor.numpy()
    assert len(results) == len(heads)
    return results, explained


def expected(recording, classes, theta, depth, by="activation", rules=pyramid_oracle.RIGHT):
    """The second implementation's outputs, by the same names; `classes` is `[N][M]`."""
    steps = [
        [pyramid_oracle.pyramid(recording, n, k, theta, depth, by, rules) for k in row] for n, row in enumerate(classes)
    ]
    result = {}
    for layer in sorted(steps[0][0], key=recording.depth.get):
        for part, dtype in zip(PARTS, (bool, np.int64, bool), strict=True):
            stacked = np.array([[getattr(step[layer], part) for step in row] for row in steps], dtype)
            result[f"{layer}.{part}"] = (
                stacked[:, :, 0] if (layer, part) == (recording.classifier, "edges") else stacked
            )
    return result


def differences(result: dict, wanted: dict) -> list[str]:
    """Names of the outputs that are not equal in type, shape and every element."""
    assert set(result) == set(wanted)
    return [
        name
        for name, array in wanted.items()
        if (result[name].dtype, result[name].shape) != (array.dtype, array.shape) or (result[name] != array).any()
    ]
