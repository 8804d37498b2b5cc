"""MFNet-3D: a residual network of multi-fiber units, that is grouped convolutions with a cheap mixing in front."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from ..preprocessing import Preprocessing

_GROUPS = 16
_STAGES = {"conv2": (96, 3), "conv3": (192, 4), "conv4": (384, 6), "conv5": (768, 3)}  # name: channels, units


class MFNet3D(nn.Module):
    """Clip `[N, 3, T, H, W]` -> logits `[N, num_classes]`; published for 16 frames of 224x224 pixels.

    The features in front of the pooling are `[N, 768, T/2, H/32, W/32]`, sizes rounded up. The pooling takes the whole
    grid, which at 16x224x224 is the published 8x7x7 window.

    Args:
        num_classes: K; 400 for Kinetics-400.
    """

    labels = None
    preprocessing = Preprocessing(
        frames=16,
        stride=2,
        resize=256,
        crop=(224, 224),
        mean=(124 / 255, 117 / 255, 104 / 255),
        std=(0.234825,) * 3,
    )

    def __init__(self, num_classes: int = 400) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            OrderedDict(
                conv=nn.Conv3d(3, 16, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2), bias=False),
                bn=nn.BatchNorm3d(16),
                relu=nn.ReLU(inplace=True),
            )
        )
        self.maxpool = nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        self.conv2 = _stage("conv2", 16, stride=(2, 1, 1))
        self.conv3 = _stage("conv3", 96, stride=(1, 2, 2))
        self.conv4 = _stage("conv4", 192, stride=(1, 2, 2))
        self.conv5 = _stage("conv5", 384, stride=(1, 2, 2))
        self.tail = nn.Sequential(OrderedDict(bn=nn.BatchNorm3d(768), relu=nn.ReLU(inplace=True)))
        self.globalpool = nn.AdaptiveAvgPool3d(1)
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(clip))
        x = self.conv5(self.conv4(self.conv3(self.conv2(x))))
        return self.classifier(self.globalpool(self.tail(x)).flatten(1))


class _PreActivated(nn.Module):
    """Batch norm, ReLU, convolution."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel=(1, 1, 1), stride=(1, 1, 1), groups: int = 1
    ) -> None:
        super().__init__()
        self.bn = nn.BatchNorm3d(channels_in)
        self.relu = nn.ReLU(inplace=True)
        padding = [k // 2 for k in kernel]
        self.conv = nn.Conv3d(channels_in, channels_out, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.relu(self.bn(x)))


class _MultiFiberUnit(nn.Module):
    """Mixes the fibers (i1, i2), convolves each by itself (m1, m2), and adds the shortcut.

    The first unit of a stage has a projection as shortcut, and m2 mixes the fibers.
    """

    def __init__(self, channels_in: int, channels: int, stride: tuple[int, int, int], first: bool) -> None:
        super().__init__()
        self.conv_i1 = _PreActivated(channels_in, channels // 4)
        self.conv_i2 = _PreActivated(channels // 4, channels_in)
        self.conv_m1 = _PreActivated(channels_in, channels, (3, 3, 3), stride, _GROUPS)
        if first:
            self.conv_m2 = _PreActivated(channels, channels)
            self.conv_w1 = _PreActivated(channels_in, channels, stride=stride)
        else:
            self.conv_m2 = _PreActivated(channels, channels, (1, 3, 3), groups=_GROUPS)
            self.conv_w1 = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        mixed = x + self.conv_i2(self.conv_i1(x))
        return self.conv_m2(self.conv_m1(mixed)) + self.conv_w1(x)


def _stage(name: str, channels_in: int, stride: tuple[int, int, int]) -> nn.Sequential:
    channels, count = _STAGES[name]
    units = [("B01", _MultiFiberUnit(channels_in, channels, stride, first=True))]
    units += [(f"B{i:02d}", _MultiFiberUnit(channels, channels, (1, 1, 1), first=False)) for i in range(2, count + 1)]
    return nn.Sequential(OrderedDict(units))
