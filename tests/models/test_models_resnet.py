"""3D ResNets, ResNeXt, C3D and TSN: parameters, state-dict names and shapes of the published networks.

Counts and shapes are checked on meta tensors, which hold no values; small clips go through ResNet-50, C3D and TSN.
"""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import nn

import clipsight
import networks
from clipsight import SaliencyTube
from clipsight.models.c3d import C3D
from clipsight.models.resnet3d import Bottleneck, r3d50, r3d101, r3d152, resnext101
from clipsight.models.tsn import TSN
from helpers import import_torchvision

# factory -> classes, blocks in each stage, groups, millions of parameters, entries of the state dict
RESIDUAL = {
    "r3d50": (r3d50, (3, 4, 6, 3), 1, 47.02, 320),
    "r3d101": (r3d101, (3, 4, 23, 3), 1, 86.06, 626),
    "r3d152": (r3d152, (3, 8, 36, 3), 1, 118.22, 932),
    "resnext101": (resnext101, (3, 4, 23, 3), 32, 48.34, 626),
}


def on_meta(factory, **arguments) -> nn.Module:
    with torch.device("meta"):
        return factory(**arguments).eval()


def millions(network: nn.Module) -> float:
    return sum(p.numel() for p in network.parameters()) / 1e6


def shape_behind(network: nn.Module, layer: str, size, batch: int = 1) -> list[int]:
    """What `layer` returns for a clip of `size`, on the meta device."""
    seen = []
    hook = network.get_submodule(layer).register_forward_hook(lambda _, __, output: seen.append(list(output.shape)))
    network(torch.empty(batch, 3, *size, device="meta"))
    hook.remove()
    return seen[0]


def published_names(blocks) -> set[str]:
    """Written from the layout of the published files, block by block."""

    def norm(name):
        return {f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}

    names = {"conv1.weight", "fc.weight", "fc.bias"} | norm("bn1")
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            at = f"layer{stage}.{block}"
            for i in (1, 2, 3):
                names |= {f"{at}.conv{i}.weight"} | norm(f"{at}.bn{i}")
        names |= {f"layer{stage}.0.downsample.0.weight"} | norm(f"layer{stage}.0.downsample.1")
    return names


@pytest.mark.parametrize("name", RESIDUAL)
def test_residual_networks_have_the_published_parameters(name):
    factory, blocks, groups, expected, entries = RESIDUAL[name]
    network = on_meta(factory)
    state = network.state_dict()
    assert round(millions(network), 2) == expected
    assert len(state) == entries
    assert set(state) == published_names(blocks)
    middle = 1024 if groups == 32 else 512
    assert list(state["layer4.0.conv2.weight"].shape) == [middle, middle // groups, 3, 3, 3]
    assert list(state["conv1.weight"].shape) == [64, 3, 7, 7, 7]
    assert list(state["fc.weight"].shape) == [400, 2048]


GRIDS = {(16, 112, 112): [1, 4, 4], (16, 224, 224): [1, 7, 7], (64, 224, 224): [4, 7, 7]}


@pytest.mark.parametrize(
    "name, size",
    [
        pytest.param(name, size, marks=[pytest.mark.full] * (name != "r3d50" and size[1] > 112))
        for size in GRIDS
        for name in RESIDUAL
    ],
)
def test_residual_networks_have_the_published_features(name, size):
    network = on_meta(RESIDUAL[name][0], num_classes=7)
    assert shape_behind(network, "layer4", size, batch=2) == [2, 2048, *GRIDS[size]]
    assert shape_behind(network, "fc", size, batch=2) == [2, 7]


def test_a_block_is_what_the_paper_draws():
    """The same arithmetic written with functions: projection with a stride, then an identity shortcut."""
    functional = torch.nn.functional

    def normalised(x, norm):
        per_channel = (1, -1, 1, 1, 1)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return (x - norm.running_mean.view(per_channel)) * scale.view(per_channel) + norm.bias.view(per_channel)

    def by_hand(block, x, stride, groups, strides=None):
        first, second = strides or (1, stride)
        y = normalised(functional.conv3d(x, block.conv1.weight, stride=first), block.bn1).clamp(min=0)
        y = functional.conv3d(y, block.conv2.weight, stride=second, padding=1, groups=groups)
        y = normalised(functional.conv3d(normalised(y, block.bn2).clamp(min=0), block.conv3.weight), block.bn3)
        if isinstance(block.downsample, nn.Sequential):
            projection, norm = block.downsample
            x = normalised(functional.conv3d(x, projection.weight, stride=stride), norm)
        return (x + y).clamp(min=0)

    x = networks.clip(1, (4, 6, 6)).repeat(1, 4, 1, 1, 1)
    for stride, channels_out, groups in ((2, 24, 2), (1, 12, 1)):
        block = networks.seeded(lambda s=stride, c=channels_out, g=groups: Bottleneck(12, 8, c, s, g))
        with torch.no_grad():
            for value in block.state_dict().values():
                if value.dim() == 1:  # batch norms that do something
                    value.copy_(torch.rand(value.shape, generator=torch.Generator().manual_seed(3)) + 0.5)
            expected = by_hand(block, x, stride, groups)
            assert torch.allclose(block(x), expected, atol=1e-5)
            if stride == 2:  # the other convention, the stride in the first convolution, is told apart
                assert not torch.allclose(block(x), by_hand(block, x, stride, groups, (stride, 1)), atol=1e-2)


def test_preprocessing_follows_the_checkpoints():
    older, newer = on_meta(r3d50).preprocessing, on_meta(r3d50, num_classes=700).preprocessing
    assert (older.scale, older.mean, older.std) == (1.0, (114.7748, 107.7354, 99.4750), (1.0, 1.0, 1.0))
    assert (newer.scale, newer.mean, newer.std) == (1 / 255, (0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737))
    assert on_meta(resnext101).preprocessing == older
    assert older.size == newer.size == C3D.preprocessing.size == (16, 112, 112)
    assert C3D.preprocessing.resized((240, 320)) == (128, 171)
    assert (C3D.preprocessing.channel_order, C3D.preprocessing.mean) == ("BGR", (90.0, 98.0, 102.0))
    assert C3D.preprocessing.scale == 1.0
    assert TSN.preprocessing.size == (16, 224, 224)


def test_c3d_is_the_published_network():
    network = on_meta(C3D)
    layers = ["conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b", "fc6", "fc7", "fc8"]
    assert set(network.state_dict()) == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    assert round(millions(network), 1) == 78.4
    assert shape_behind(network, "conv5b", (16, 112, 112)) == [1, 512, 2, 7, 7]
    assert shape_behind(network, "pool5", (16, 112, 112)) == [1, 512, 1, 4, 4]
    assert shape_behind(network, "fc8", (16, 112, 112), batch=2) == [2, 101]


@pytest.mark.parametrize("size", [(16, 224, 224), (64, 224, 224), (17, 112, 112)])
def test_c3d_takes_one_size_only(size):
    """17 frames would give the head as many features as 16 do, so only the check can tell."""
    network = on_meta(C3D)
    message = re.escape("C3D: clip must have shape [N, 3, 16, 112, 112], the only size that its fully connected head")
    with pytest.raises(ValueError, match=message):
        network(torch.empty(2, 3, *size, device="meta"))
    with pytest.raises(torch.jit.Error, match=message):
        torch.jit.script(network)(torch.empty(2, 3, *size, device="meta"))


def test_tsn_has_torchvisions_names_and_values():
    """The same weights in torchvision's ResNet-50, frame by frame, give the consensus."""
    resnet50 = import_torchvision().models.resnet50
    network = networks.seeded(lambda: TSN(num_classes=6))
    reference = resnet50(num_classes=6).eval()
    assert list(network.state_dict()) == list(reference.state_dict())
    reference.load_state_dict(network.state_dict())
    x = networks.clip(2, (3, 64, 64))
    with torch.inference_mode():
        frames = torch.stack([reference(x[:, :, t]) for t in range(3)])
        assert torch.allclose(network(x), frames.mean(0), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(frames[0], frames.mean(0), rtol=1e-4, atol=1e-5)


def test_tsn_has_the_published_features():
    network = on_meta(TSN)
    assert set(network.state_dict()) == published_names((3, 4, 6, 3))
    assert shape_behind(network, "layer4", (16, 224, 224)) == [16, 2048, 7, 7]
    assert shape_behind(network, "layer4", (16, 112, 112), batch=2) == [32, 2048, 4, 4]
    assert list(network(torch.empty(2, 3, 5, 64, 64, device="meta")).shape) == [2, 400]


@pytest.mark.parametrize(
    "factory, size",
    [(r3d50, (16, 32, 32)), (TSN, (3, 64, 64)), pytest.param(C3D, (16, 112, 112), marks=pytest.mark.full)],
)
def test_script_and_trace_agree_with_the_network(factory, size):
    network = networks.seeded(lambda: factory(num_classes=5))
    first, second = networks.clip(1, size), networks.clip(2, size, seed=2)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        expected = network(second)
        assert torch.isfinite(expected).all()
        assert (expected[0] - expected[1]).abs().max() > 1e-4 * expected.abs().max()
        for program in (torch.jit.script(network), torch.jit.trace(network, first)):
            assert torch.allclose(program(second), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("factory, size, grid", [(r3d50, (32, 32, 32), (2, 1, 1)), (TSN, (3, 64, 64), (3, 2, 2))])
def test_networks_with_global_pooling_are_explained(factory, size, grid):
    network = networks.seeded(lambda: factory(num_classes=5))
    x = networks.clip(2, size)
    explained = clipsight.explain(network, SaliencyTube(size="features"), x)
    assert explained.feature_shape == (2048, *grid)
    with torch.inference_mode():
        logits, cam = explained(x)
        assert torch.allclose(logits, network(x), rtol=1e-4, atol=1e-5)
        # Uniform pooling: the mean of the class activation map and the bias make up the logit.
        top = logits.argmax(1)
        mean = cam[:, 0].mean((1, 2, 3)) + network.fc.bias[top]
    assert torch.allclose(mean, logits.gather(1, top[:, None])[:, 0], rtol=1e-3, atol=1e-5)


def test_c3d_has_no_saliency_tube():
    network = networks.seeded(lambda: C3D(num_classes=5))
    with pytest.raises(clipsight.AttachError, match="Grad-CAM"):
        clipsight.explain(network, SaliencyTube(), torch.zeros(1, 3, 16, 112, 112))
