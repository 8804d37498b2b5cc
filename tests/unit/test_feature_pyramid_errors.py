"""What FeaturePyramid is told or given that does not fit: the error names the option, the layer or the block."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import clipsight
import networks
import pyramid_networks
from clipsight import AttachError, FeaturePyramid, SaliencyTube
from pyramid_comparison import SIZE, recorded


@pytest.mark.parametrize(
    "options, message",
    [
        ({"theta": 1.1}, r"theta must lie in 0\.\.1, got 1.1"),
        ({"theta": -0.1}, r"theta must lie in 0\.\.1, got -0.1"),
        ({"theta": float("nan")}, r"theta must lie in 0\.\.1, got nan"),
        ({"depth": 0}, "depth must be at least 1, or 'all', got 0"),
        ({"depth": "foo"}, "depth must be .*got 'foo'"),
        ({"depth": 2.5}, "depth must be .*got 2.5"),
        ({"volumes": "layers"}, "volumes must be one of .*'feature'.*got 'layers'"),
        ({"class_step": "softmax"}, "class_step must be one of .*'weights'.*got 'softmax'"),
        ({"normalize": "max"}, "normalize must be one of .*got 'max'"),
        ({"order": 2}, "order must be one of .*got 2"),
        ({"channels": "best"}, "channels must be .*got 'best'"),
        ({"channels": "top0"}, "channels must be .*got 'top0'"),
        ({"dtype": "uint8", "normalize": "none"}, "uint8"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"FeaturePyramid: .*{message}"):
        FeaturePyramid(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"depth": 5}, "depth must be .*4.*got 5"),
        ({"layers": ("pool",)}, r"layers must name modules with convolutions.*'body.8'.*got 'pool'"),
        ({"layers": ("body.7",)}, r"layers must name .*got 'body.7'"),
        ({"layers": ("body.4",), "depth": 2}, r"layers must name .*depth 2.*got 'body.4'"),
        ({"volumes": "feature", "channels": [("body.8", 9)]}, r"channels of 'body.8' must lie in 0..8, got 9"),
        ({"volumes": "channel", "channels": [("body.8", 8)]}, r"channels of 'body.8' must lie in 0..7, got 8"),
        ({"volumes": "channel", "channels": [("body.8", -1)]}, r"channels of 'body.8' must lie in 0..7, got -1"),
        ({"volumes": "channel", "channels": [("body.7", 0)]}, r"channels must name .*'body.8'.*got 'body.7'"),
    ],
)
def test_options_that_do_not_fit_the_network(options, message):
    network, clip, _ = recorded("Plain")
    with pytest.raises(ValueError, match=message):
        clipsight.explain(network, FeaturePyramid(**options), clip[:1])


def test_classes_and_mode_that_do_not_fit():
    network, clip = pyramid_networks.build("Plain"), networks.clip(1, SIZE)
    with pytest.raises(ValueError, match=r"classes must lie in 0..4, got \[5\]"):
        clipsight.explain(network, FeaturePyramid(), clip, [5])
    explained = clipsight.explain(network, FeaturePyramid(), clip, "input")
    with pytest.raises(ValueError, match=r"classes must lie in 0..4, got 0..5"):
        explained(clip, torch.tensor([[0, 5]]))
    with pytest.raises(ValueError, match="training mode"):
        clipsight.explain(network.train(), FeaturePyramid(), clip)


class Unsupported(pyramid_networks.Network):
    """A stem, a block and a last convolution; the block is the subject."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__(8)
        self.stem, self.block, self.last = nn.Conv3d(3, 8, 3, 2, 1), block, nn.Conv3d(8, 8, 1)

    def features(self, x):
        return torch.relu(self.last(self.block(torch.relu(self.stem(x)))))


class Gate(nn.Module):
    """Squeeze and excite: channels are multiplied by what other channels say."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv3d(8, 2, 1), nn.Conv3d(2, 8, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3, 4), keepdim=True)))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.attend(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).view_as(x)


class Change(nn.Module):
    """One function of the features and of a convolution's output for them."""

    def __init__(self, change, conv: nn.Module | None = None) -> None:
        super().__init__()
        self.change, self.conv = change, conv or nn.Conv3d(8, 8, 1)

    def forward(self, x):
        return self.change(x, self.conv(x))


# Ops after which channel i is no longer channel i, or of which a sum or concatenation says nothing.
CHANGES = {
    "squeeze and excite": Gate,
    "attention": Attention,
    "channel shuffle": lambda: Change(lambda x, _: x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)),
    "roll": lambda: Change(lambda _, y: y.roll(1, 1)),
    "half of the channels": lambda: Change(lambda x, y: torch.cat([x[:, 4:], y[:, :4]], 1)),
    "frames side by side": lambda: Change(lambda x, y: torch.cat([x, y], 2)),
    "broadcast": lambda: Change(torch.add, nn.Conv3d(8, 1, 1)),
    "gate": lambda: Change(torch.mul),
    "transposed convolution": lambda: Change(lambda _, y: y, nn.ConvTranspose3d(8, 8, 2)),
}


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.conv(torch.relu(self.conv(x)))


@pytest.mark.parametrize("change", CHANGES)
def test_a_block_that_it_cannot_follow_is_named(change):
    network, clip = networks.seeded(lambda: Unsupported(CHANGES[change]())), networks.clip(1, SIZE)
    with pytest.raises(AttachError, match=r"cannot follow .* in 'block(?s:.)*Up to depth 2"):
        clipsight.explain(network, FeaturePyramid(depth="all"), clip)


def test_layers_in_front_of_such_a_block_are_explained():
    network, clip = networks.seeded(lambda: Unsupported(Gate())), networks.clip(1, SIZE)
    explained = clipsight.explain(network, FeaturePyramid(depth=2, volumes="none"), clip)
    assert [name for name in explained.output_names if name.endswith(".mask")] == ["fc.mask", "last.mask"]


def test_a_layer_that_runs_twice_is_named():
    network, clip = networks.seeded(lambda: Unsupported(Twice())), networks.clip(1, SIZE)
    with pytest.raises(AttachError, match=r"'block\.conv'"):
        clipsight.explain(network, FeaturePyramid(depth="all"), clip)


def test_fully_connected_networks_still_have_no_saliency_tube():
    network, clip, _ = recorded("FullyConnected")
    with pytest.raises(AttachError, match="Grad-CAM"):
        clipsight.explain(network, [FeaturePyramid(), SaliencyTube()], clip[:1])
