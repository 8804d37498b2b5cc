"""FeaturePyramid on the networks of the paper and torchvision's: the right layers, down to the first convolution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import clipsight
import networks
from clipsight import FeaturePyramid, models
from helpers import import_torchvision
from pyramid_comparison import PARTS

RESNET = {1: {"fc"}, 2: {"layer4.2.conv3"}, 3: {"layer4.2.conv2"}}
# name -> (size, layers by depth down to 3, largest depth). The largest depth is 1 + the convolutions on the longest
# path: in r3d50 the stem and three in each of 16 blocks (33 in r3d101, 50 in r3d152); in mfnet the stem and
# four in each of 16 units; in I3D the three of the stem and two in each of 9 modules; in S3D each 3x3x3 is two.
QUICK = ("c3d", "r3d50")
NETWORKS = {
    "mfnet": (
        (16, 112, 112),
        {1: {"classifier"}, 2: {"conv5.B03.conv_m2.conv"}, 3: {"conv5.B03.conv_m1.conv"}},
        1 + 1 + 4 * 16,
    ),
    "i3d": (
        (16, 112, 112),
        {
            1: {"logits.conv3d"},
            2: {f"Mixed_5c.{branch}.conv3d" for branch in ("b0", "b1b", "b2b", "b3b")},
            3: {f"Mixed_5c.{branch}.conv3d" for branch in ("b1a", "b2a")},
        },
        1 + 3 + 2 * 9,
    ),
    "r3d50": ((16, 112, 112), RESNET, 1 + 1 + 3 * 16),
    "r3d101": ((16, 112, 112), RESNET, 1 + 1 + 3 * 33),
    "r3d152": ((16, 112, 112), RESNET, 1 + 1 + 3 * 50),
    "resnext101": ((16, 112, 112), RESNET, 1 + 1 + 3 * 33),
    "c3d": ((16, 112, 112), {1: {"fc8"}, 2: {"fc7"}, 3: {"fc6"}}, 11),
    "tsn": ((2, 64, 64), RESNET, 1 + 1 + 3 * 16),
    "movers": ((8, 32, 32), {1: {"classifier"}, 2: {"features.4.0"}, 3: {"features.3.0"}}, 6),
    "r2plus1d_18": (
        (8, 64, 64),
        {1: {"fc"}, 2: {"layer4.1.conv2.0.3"}, 3: {"layer4.1.conv2.0.0"}},
        1 + 2 + 4 * 8,
    ),
    "s3d": (
        (16, 224, 224),
        {
            1: {"classifier.1"},
            2: {f"features.15.{path}.0" for path in ("branch0", "branch1.1.1", "branch2.1.1", "branch3.1")},
            3: {f"features.15.{path}.0" for path in ("branch1.1.0", "branch2.1.0")},
        },
        1 + 5 + 3 * 9,
    ),
}


def build(name: str) -> nn.Module:
    if name in models.names():
        return networks.seeded(lambda: models.load(name, pretrained=False))
    return networks.seeded(lambda: getattr(import_torchvision().models.video, name)(num_classes=20))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.full] * (n not in QUICK)) for n in NETWORKS])
def test_layers_of_every_depth(name):
    size, by_depth, deepest = NETWORKS[name]
    network, clip = build(name), networks.clip(1, size)
    layers = {n: m for n, m in network.named_modules() if isinstance(m, (nn.Conv3d, nn.Conv2d, nn.Linear))}
    head = FeaturePyramid(depth="all", volumes="none")
    explained = clipsight.explain(network, head, clip)
    (described,) = explained.describe()["methods"]
    found = {}
    for layer in described["layers"]:
        found.setdefault(layer["depth"], set()).add(layer["name"])
    assert {depth: found[depth] for depth in (1, 2, 3)} == by_depth
    assert sorted(found) == list(range(1, deepest + 1))
    assert set().union(*found.values()) == set(layers)
    assert described["layers"][-1]["channels"] == 3  # the first convolution reads the clip
    assert not described["layers"][-1]["sources"]

    with torch.inference_mode():
        outputs = dict(zip(explained.output_names, explained(clip), strict=True))
    assert len(outputs) == 1 + 3 * len(described["layers"])
    for layer in described["layers"]:
        path, module = layer["name"], layers[layer["name"]]
        mask, times, edges = (outputs[f"{path}.{part}"] for part in PARTS)
        groups, channels = getattr(module, "groups", 1), layer["channels"]
        assert layer["groups"] == groups
        assert layer["kernels"] == module.weight.shape[0]
        cells = 4 * 4 if path == "fc6" else 1  # it reads C3D's last features flattened
        assert channels == groups * module.weight.shape[1] // cells
        assert mask.shape == times.shape == (1, 1, channels)
        assert torch.equal(mask, times > 0)
        rows = () if layer["depth"] == 1 else (len(module.weight),)
        assert edges.shape == (1, 1, *rows, channels // groups)
        taken = edges if not rows else edges.unflatten(2, (groups, -1)).sum(3).flatten(2)
        assert (times >= taken).all()  # what this layer's own kernels take is part of what is pointed at
        assert mask.any() or layer["depth"] > 1  # whole branches may be left out


@pytest.mark.full
def test_class_step_of_r3d50_in_numpy():
    """Section 3.1 of the paper on the features of a hook: v = mean(A) * W, scaled, at least theta."""
    network, clip = build("r3d50"), networks.clip(1, (8, 64, 64))
    seen = {}
    hook = network.avgpool.register_forward_pre_hook(lambda _, args: seen.update(features=args[0].numpy()))
    with torch.inference_mode():
        logits = network(clip).numpy()
    hook.remove()
    explained = clipsight.explain(network, FeaturePyramid(theta=0.55, depth=1, volumes="none"), clip, "top2")
    with torch.inference_mode():
        outputs = dict(zip(explained.output_names, explained(clip), strict=True))
    weight, selected = network.fc.weight.detach().numpy(), []
    for m, label in enumerate(np.argsort(-logits[0])[:2]):
        scores = seen["features"][0].mean((1, 2, 3), dtype=np.float64) * weight[label]
        scaled = (scores - scores.min()) / (scores.max() - scores.min())
        assert np.abs(scaled - 0.55).min() > 1e-6  # no channel on which rounding decides
        assert (outputs["fc.mask"][0, m].numpy() == (scaled >= 0.55)).all()
        assert (outputs["fc.multiplicity"][0, m].numpy() == (scaled >= 0.55)).all()
        assert (outputs["fc.edges"][0, m].numpy() == (scaled >= 0.55)).all()
        selected.append(scaled >= 0.55)
    assert 0 < selected[0].sum() < 2048
    assert (selected[0] != selected[1]).any()
