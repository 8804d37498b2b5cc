"""I3D and MFNet-3D: counts, names, shapes as published; padding, pooling and residuals by hand; scripts and traces."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clipsight.explained import explain
from clipsight.heads import SaliencyTube
from clipsight.models.i3d import I3D, _max_pool, _Mixed, _Unit
from clipsight.models.mfnet import MFNet3D, _MultiFiberUnit
from clipsight.reference import saliency_tube
from networks import seeded

NETWORKS = [I3D, MFNet3D]
SMALL = (1, 3, 16, 33, 47)  # odd sizes: the padding differs from that of even ones


def on_meta(network: type[nn.Module], **arguments) -> nn.Module:
    with torch.device("meta"):
        return network(**arguments).eval()


def features(model: nn.Module, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the output of the last layer in front of the pooling."""
    seen = []
    layer = model.Mixed_5c if isinstance(model, I3D) else model.tail
    handle = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    logits = model(clip)
    handle.remove()
    return logits, seen[0]


def unit_names(prefix: str, *parts: str) -> set[str]:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{prefix}.{part}" for part in parts} | {f"{prefix}.bn.{name}" for name in norm}


def i3d_names() -> set[str]:
    units = ["Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"]
    for stage in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c"):
        units += [f"Mixed_{stage}.{branch}" for branch in ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")]
    names = {"logits.conv3d.weight", "logits.conv3d.bias"}
    return names.union(*(unit_names(unit, "conv3d.weight") for unit in units))


def mfnet_names() -> set[str]:
    names = unit_names("conv1", "conv.weight") | unit_names("tail") | {"classifier.weight", "classifier.bias"}
    for stage, count in ((2, 3), (3, 4), (4, 6), (5, 3)):
        for unit in range(1, count + 1):
            for part in ["i1", "i2", "m1", "m2"] + ["w1"] * (unit == 1):
                names |= unit_names(f"conv{stage}.B{unit:02d}.conv_{part}", "conv.weight")
    return names


@pytest.mark.parametrize(("network", "parameters"), [(I3D, 12_697_264), (MFNet3D, 7_996_368)])
def test_parameter_counts_with_400_classes(network, parameters):
    assert sum(p.numel() for p in on_meta(network).parameters()) == parameters


@pytest.mark.parametrize(
    ("network", "names", "keys", "without"), [(I3D, i3d_names(), 344, 287), (MFNet3D, mfnet_names(), 421, 351)]
)
def test_state_dict_names(network, names, keys, without):
    own = set(on_meta(network).state_dict())
    assert own == names
    assert len(own) == keys
    assert sum(not name.endswith("num_batches_tracked") for name in own) == without


def test_shapes_of_some_weights():
    i3d, mfnet = on_meta(I3D).state_dict(), on_meta(MFNet3D).state_dict()
    assert i3d["Conv3d_1a_7x7.conv3d.weight"].shape == (64, 3, 7, 7, 7)
    assert i3d["Mixed_4e.b1b.conv3d.weight"].shape == (288, 144, 3, 3, 3)
    assert i3d["Mixed_5c.b3b.conv3d.weight"].shape == (128, 832, 1, 1, 1)
    assert i3d["logits.conv3d.weight"].shape == (400, 1024, 1, 1, 1)
    assert mfnet["conv1.conv.weight"].shape == (16, 3, 3, 5, 5)
    assert mfnet["conv3.B01.conv_m1.conv.weight"].shape == (192, 6, 3, 3, 3)
    assert mfnet["conv3.B01.conv_w1.conv.weight"].shape == (192, 96, 1, 1, 1)
    assert mfnet["conv5.B03.conv_m2.conv.weight"].shape == (768, 48, 1, 3, 3)


@pytest.mark.parametrize(
    ("network", "size", "expected"),
    [
        (I3D, (16, 112), (1024, 2, 4, 4)),
        (I3D, (16, 224), (1024, 2, 7, 7)),
        (I3D, (64, 224), (1024, 8, 7, 7)),
        (MFNet3D, (16, 112), (768, 8, 4, 4)),
        (MFNet3D, (16, 224), (768, 8, 7, 7)),
        (MFNet3D, (64, 224), (768, 32, 7, 7)),
    ],
)
def test_feature_shapes(network, size, expected):
    frames, side = size
    clip = torch.empty(2, 3, frames, side, side, device="meta")
    logits, grid = features(on_meta(network, num_classes=11), clip)
    assert grid.shape == (2, *expected)
    assert logits.shape == (2, 11)


def test_preprocessing():
    i3d, mfnet = I3D.preprocessing, MFNet3D.preprocessing
    assert (i3d.size, mfnet.size) == ((64, 224, 224), (16, 224, 224))
    black, white = ((x * i3d.scale - i3d.mean[0]) / i3d.std[0] for x in (0, 255))
    assert (black, white) == pytest.approx((-1, 1))
    # As published: (pixel - mean) * 0.0167, with the means in pixel values.
    for channel, mean in enumerate((124, 117, 104)):
        got = (200 * mfnet.scale - mfnet.mean[channel]) / mfnet.std[channel]
        assert got == pytest.approx((200 - mean) * 0.0167, rel=1e-4)
    assert (i3d.stride, mfnet.stride) == (1, 2)
    assert i3d.channel_order == mfnet.channel_order == "RGB"


def same_padded(x: torch.Tensor, kernel, stride, value: float) -> torch.Tensor:
    """TensorFlow's rule as it is documented, axis by axis."""
    amounts = []
    for size, k, s in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
        cells = -(-size // s)
        total = max((cells - 1) * s + k - size, 0)
        amounts += [total // 2, total - total // 2]
    return F.pad(x, amounts, value=value)


@pytest.mark.parametrize("size", [(8, 8, 8), (7, 9, 10), (1, 2, 3)])
@pytest.mark.parametrize(("kernel", "stride"), [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2))])
def test_i3d_pools_as_tensorflow_does(size, kernel, stride):
    x = torch.rand(2, 4, *size)
    expected = F.max_pool3d(same_padded(x, kernel, stride, -torch.inf), kernel, stride)
    assert expected.shape[2:] == tuple(-(-n // s) for n, s in zip(size, stride, strict=True))
    torch.testing.assert_close(_max_pool(kernel, stride)(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(8, 8, 8), (7, 9, 10)])
@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 1), (1, 1)])
def test_i3d_convolves_as_tensorflow_does(size, kernel, stride):
    unit, x = seeded(lambda: _Unit(3, 4, kernel, stride)), torch.randn(2, 3, *size)
    padded = same_padded(x, (kernel,) * 3, (stride,) * 3, 0)
    convolved = F.conv3d(padded, unit.conv3d.weight, stride=stride)
    expected = torch.relu(convolved / (1 + 1e-3) ** 0.5)  # a fresh batch norm: mean 0, variance 1, eps 1e-3
    torch.testing.assert_close(unit(x), expected)


def test_i3d_block_joins_its_branches_in_order():
    block, x = seeded(lambda: _Mixed(6, 2, (3, 4), (5, 6), 7)), torch.rand(1, 6, 3, 5, 5)
    b3 = block.b3b(F.max_pool3d(same_padded(x, (3,) * 3, (1,) * 3, 0), 3, 1))
    parts = block(x).split((2, 4, 6, 7), 1)
    for got, expected in zip(parts, (block.b0(x), block.b1b(block.b1a(x)), block.b2b(block.b2a(x)), b3), strict=True):
        torch.testing.assert_close(got, expected)


@torch.inference_mode()
def test_i3d_head_is_the_published_one():
    """A window of 2x7x7, a 1x1x1 convolution, the mean over time; the mean over all frames is something else."""
    model = seeded(lambda: I3D(5))
    for name in dict(model.named_children()).keys() - {"dropout", "logits"}:
        setattr(model, name, nn.Identity())  # only the head is left
    grid = torch.rand(1, 1024, 10, 7, 7, generator=torch.Generator().manual_seed(1))
    got = model(grid)
    published = model.logits["conv3d"](F.avg_pool3d(grid, (2, 7, 7), 1)).squeeze(4).squeeze(3).mean(2)
    torch.testing.assert_close(got, published)
    other = model.logits["conv3d"](grid.mean((2, 3, 4), keepdim=True)).flatten(1)
    assert (got - other).abs().max() > 1e-4


@pytest.mark.parametrize("first", [True, False])
@torch.inference_mode()
def test_mfnet_unit_by_hand(first):
    channels_in, stride = (16, (2, 1, 1)) if first else (32, (1, 1, 1))
    unit, x = seeded(lambda: _MultiFiberUnit(channels_in, 32, stride, first)), torch.randn(2, channels_in, 4, 5, 5)

    def part(name: str, value, **arguments):
        weight = getattr(unit, f"conv_{name}").conv.weight
        return F.conv3d(torch.relu(value / (1 + 1e-5) ** 0.5), weight, **arguments)

    mixed = x + part("i2", part("i1", x))
    inner = part("m1", mixed, stride=stride, padding=1, groups=16)
    main = part("m2", inner) if first else part("m2", inner, padding=(0, 1, 1), groups=16)
    expected = main + (part("w1", x, stride=stride) if first else x)
    before = x.clone()
    torch.testing.assert_close(unit(x), expected)
    assert torch.equal(x, before)  # its ReLUs in place leave the shortcut alone


@pytest.mark.parametrize("network", [NETWORKS[0], *(pytest.param(n, marks=pytest.mark.full) for n in NETWORKS[1:])])
@torch.inference_mode()
def test_scripted_and_traced_equal_eager(network):
    model = seeded(lambda: network(7))
    clip = torch.randn(SMALL, generator=torch.Generator().manual_seed(0))
    expected = model(clip)
    assert expected.shape == (1, 7)
    assert expected.isfinite().all()
    torch.testing.assert_close(torch.jit.script(model)(clip), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)  # nothing is decided by a value
        traced = torch.jit.trace(model, clip)
    torch.testing.assert_close(traced(clip), expected)
    shorter = clip[..., :32, :40].contiguous()
    torch.testing.assert_close(traced(shorter), model(shorter))


@pytest.mark.parametrize("network", [NETWORKS[0], *(pytest.param(n, marks=pytest.mark.full) for n in NETWORKS[1:])])
@torch.no_grad()
def test_the_features_are_found_with_no_layer_named(network):
    model = seeded(lambda: network(7))
    clip = torch.randn(SMALL, generator=torch.Generator().manual_seed(0))
    logits, grid = features(model, clip)
    explained = explain(model, SaliencyTube(), clip)
    got = explained(clip)
    weight = (model.logits["conv3d"] if network is I3D else model.classifier).weight.flatten(1)
    torch.testing.assert_close(got[0], logits)
    torch.testing.assert_close(got[1], saliency_tube(grid, weight[logits.argmax(1)][:, None], SMALL[2:]))
    assert explained.temporal_resolution == grid.shape[2]


@pytest.mark.parametrize("prepare", [lambda model: model, torch.jit.script], ids=["eager", "script"])
def test_i3d_refuses_a_clip_too_short_for_its_window(prepare):
    with pytest.raises(Exception, match="I3D: clip must have at least 9 frames, got 8"):
        prepare(on_meta(I3D))(torch.empty(1, 3, 8, 64, 64, device="meta"))
    assert on_meta(I3D)(torch.empty(1, 3, 9, 64, 64, device="meta")).shape == (1, 400)
