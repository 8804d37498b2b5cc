"""Small networks of every block type for gradients and relevance: with ReLUs, and non-negative in front of every layer.

Those of :mod:`pyramid_networks` that are so already are used as they are.
"""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import clipsight
import pyramid_networks
from clipsight import models
from clipsight.heads import (
    DeepTaylor,
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    InputGradient,
    IntegratedGradients,
    LRPEpsilon,
)
from networks import seeded
from pyramid_networks import Branches, Image, MultiFiber, Network, Projection, Residual, conv

SIZE = (6, 16, 16)
CLASSES = torch.tensor([2, 4])
LOW, HIGH = (-2.1, -2.0, -1.8), (2.2, 2.4, 2.6)  # (0 - mean) / std and (1 - mean) / std of the usual image statistics


# ---- Networks -------------------------------------------------------------------------------------------------------


class Plain(Network):
    """As C3D: biases, max poolings (one of them padded), and fully connected layers behind the flattened grid."""

    def __init__(self) -> None:
        super().__init__(10)
        self.conv1, self.conv2, self.conv3 = (conv(i, o, bias=True) for i, o in ((3, 6), (6, 8), (8, 8)))
        self.pool1, self.pool2 = nn.MaxPool3d((1, 2, 2)), nn.MaxPool3d(2, padding=(0, 1, 1))
        self.fc6, self.fc7, self.drop = nn.Linear(8 * 3 * 5 * 5, 12), nn.Linear(12, 10), nn.Dropout(0.5)
        self.pool = nn.Identity()

    def features(self, x):
        x = torch.relu(self.conv2(self.pool1(F.relu(self.conv1(x)))))
        x = self.pool2(torch.relu(self.conv3(x))).flatten(1)
        return self.drop(torch.relu(self.fc7(self.drop(torch.relu(self.fc6(x))))))


class Grouped(Network):
    """As ResNeXt: the middle convolution of a bottleneck has groups; stride 2 everywhere, with odd rests."""

    def __init__(self) -> None:
        super().__init__(10)
        self.stem, self.block = conv(3, 6, stride=(1, 2, 2)), pyramid_networks._Bottleneck(6, 12, 8, 2, groups=4)
        self.last, self.relu = conv(8, 10, groups=2, bias=True), nn.ReLU(inplace=True)

    def features(self, x):
        return self.relu(self.last(self.block(self.relu(self.stem(x)))))


class DepthWise(Network):
    """Depth-wise, with one and with two kernels for each channel, and point-wise."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.relu = conv(3, 6, bias=True), nn.ReLU()
        self.wide1, self.point1 = conv(6, 6, groups=6), conv(6, 8, 1)
        self.wide2, self.point2 = conv(8, 16, groups=8), conv(16, 6, 1)
        self.bn1, self.bn2 = nn.BatchNorm3d(6), nn.BatchNorm3d(16)

    def features(self, x):
        x = self.relu(self.stem(x))
        out = self.relu(self.point1(self.relu(self.bn1(self.wide1(x)))))
        return self.relu(x + self.point2(self.relu(self.bn2(self.wide2(out)))))


class Separable(Network):
    """As R(2+1)D: a convolution over space, then one over time, inside a residual; a dilated one at the end."""

    def __init__(self) -> None:
        super().__init__(9)
        self.stem = conv(3, 6, (1, 3, 3))
        self.space1, self.time1 = conv(6, 7, (1, 3, 3), (1, 2, 2)), conv(7, 8, (3, 1, 1), (2, 1, 1))
        self.shortcut, self.bn1, self.bn2 = conv(6, 8, 1, 2), nn.BatchNorm3d(7), nn.BatchNorm3d(8)
        self.last = nn.Conv3d(8, 9, 3, padding=(1, 2, 2), dilation=(1, 2, 2))

    def features(self, x):
        x = self.stem(x).relu()
        out = self.bn2(self.time1(F.relu(self.bn1(self.space1(x)))))
        return F.relu(self.last(F.relu(out + self.shortcut(x))))


class Windows(Network):
    """As S3D: an average pooling inside, windows over time at the end, then a 1x1x1 convolution and the mean."""

    def __init__(self) -> None:
        super().__init__(8)
        self.conv1, self.conv2, self.bn = conv(3, 6, stride=(1, 2, 2)), conv(6, 8), nn.BatchNorm3d(6)
        self.average, self.pool = nn.AvgPool3d(3, 2, 1), nn.AvgPool3d((2, 4, 4), stride=1)
        self.head, self.fc = nn.Conv3d(8, 5, 1), None

    def features(self, x):
        return F.relu(self.conv2(self.average(F.relu(self.bn(self.conv1(x))))), inplace=True)

    def forward(self, x):
        return self.head(self.pool(self.features(x))).mean((2, 3, 4))


class Padded(Network):
    """As I3D: the network pads its input itself, unevenly, in front of a convolution and of a max pooling."""

    def __init__(self) -> None:
        super().__init__(8)
        self.conv1, self.bn1 = nn.Conv3d(3, 6, 4, stride=2, bias=False), nn.BatchNorm3d(6)
        self.conv2 = conv(6, 8, bias=True)

    def features(self, x):
        x = F.relu(self.bn1(self.conv1(F.pad(x, [1, 2, 1, 2, 0, 1]))))
        return torch.relu(self.conv2(F.max_pool3d(F.pad(x, [0, 1, 0, 1, 0, 0]), (1, 3, 3), (1, 2, 2))))


class Frames(Network):
    """As TSN: a 2-D residual network that goes over the frames itself, with branches; the mean of their logits."""

    def __init__(self) -> None:
        super().__init__(9)
        self.stem, self.conv1 = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.left, self.right = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 5, 1)
        self.norm, self.pool = nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1)

    def features(self, x):
        x = F.relu(self.norm(self.stem(x.transpose(1, 2).flatten(0, 1))))
        y = F.relu(torch.add(x, self.conv1(x)))
        return F.relu(torch.cat([self.left(y), self.right(F.max_pool2d(y, 3, 1, 1))], 1))

    def forward(self, x):
        return super().forward(x).view(x.shape[0], x.shape[2], -1).mean(1)


class Positive(MultiFiber):
    """Every sum is of positive parts, so that relevance meets none near 0 in front of a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8, bias=True)
        nn.init.uniform_(self.stem.bias, 4, 5)
        for module in [*self.first.modules(), *self.second.modules()]:
            if isinstance(module, nn.Conv3d):
                module.weight.data.abs_()


NETWORKS = {
    network.__name__: network
    for network in (
        Plain, Residual, Projection, Grouped, DepthWise, Separable, Branches, MultiFiber, Positive, Windows, Padded,
        Frames, Image,
    )
}  # fmt: skip


# With positive evidence for all of CLASSES in front of the pooling; with sums that do not cancel by chance.
SEEDS = {"Branches": 3, "Frames": 1, "Positive": 34, "Separable": 2}


def build(name: str, dtype: torch.dtype = torch.float64) -> Network:
    """A network by name; batch norms have statistics and weights of their own, else they would change nothing."""
    network = seeded(partial(pyramid_networks._with_norms, NETWORKS[name]), SEEDS.get(name, 5))
    if name == "Positive":  # as after training; with other statistics no ReLU would be closed
        for module in network.modules():
            module.momentum = 1
        network.train()(clip().float())
    return network.to(dtype).eval()


def clip(batch: int = 2, size: tuple[int, int, int] = SIZE, seed: int = 1, dtype: torch.dtype = torch.float64):
    """A clip `[N, 3, T, H, W]` inside the box of LOW and HIGH, of float32 numbers; another one for each sample."""
    uniform = torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed))
    low, high = (torch.tensor(bound).view(3, 1, 1, 1) for bound in (LOW, HIGH))
    return (low + uniform * (high - low)).to(dtype)


# ---- Networks that people have --------------------------------------------------------------------------------------

LARGE = (16, 112, 112)


def real(name: str) -> nn.Module:
    """A network of the package in float64, with random weights that are float32 numbers."""
    load = narrow_c3d if name == "narrow_c3d" else lambda: models.load(name, pretrained=False, num_classes=7)
    return seeded(load).double()


def narrow_c3d() -> nn.Module:
    """C3D with a sixteenth of its channels."""
    network = models.load("c3d", pretrained=False, num_classes=7)
    channels = 3
    for name in ("conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b"):
        wide = getattr(network, name).out_channels // 16
        setattr(network, name, nn.Conv3d(channels, wide, 3, padding=1))
        channels = wide
    network.fc6, network.fc7, network.fc8 = nn.Linear(32 * 16, 256), nn.Linear(256, 256), nn.Linear(256, 7)
    return network


def cam_layer(name: str) -> dict[str, object]:
    """The options of the oracles for the layer that Grad-CAM explains by default."""
    if name.endswith("c3d"):
        return {"layer": "conv5b", "inputs": False}
    return {"layer": "globalpool" if name == "mfnet" else "avgpool"}


# ---- What the package's heads make of them --------------------------------------------------------------------------

RAW = {"colours": "raw", "normalize": "none"}
HEADS = {
    "grad_cam": GradCAM(size="features", normalize="none"),
    "guided_backprop": GuidedBackprop(**RAW),
    "guided_grad_cam": GuidedGradCAM(cam=GradCAM(normalize="none"), upsample="nearest", **RAW),
    "input_gradient": InputGradient(**RAW),
    "integrated_gradients": IntegratedGradients(**RAW),
    "deep_taylor": DeepTaylor(low=LOW, high=HIGH, **RAW),
    "lrp_epsilon": LRPEpsilon(**RAW),
}


def explain(network: nn.Module, heads, clip: Tensor, classes: Tensor) -> list[Tensor]:
    """The maps of one class for each sample, `[N, 1 or 3, T, H, W]`, head by head."""
    explained = clipsight.explain(network, heads, clip[:1], classes="input")
    with torch.inference_mode():
        return list(explained(clip, classes[:, None])[1:])


@cache
def maps(name: str) -> dict[str, Tensor]:
    """Those of all heads, together, for a network by name, in float64."""
    return dict(zip(HEADS, explain(build(name), list(HEADS.values()), clip(), CLASSES), strict=True))


def off(result: Tensor, expected: Tensor) -> float:
    """The largest difference, in parts of the largest value."""
    assert result.shape == expected.shape, f"{list(result.shape)} is not {list(expected.shape)}"
    largest = expected.double().abs().max()
    assert 0 < largest < float("inf"), "nothing to compare with"
    return ((result.double() - expected.double()).abs().max() / largest).item()
