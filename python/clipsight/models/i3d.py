"""I3D: Inception v1 with its kernels inflated over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..preprocessing import Preprocessing

_Triple = tuple[int, int, int]


class I3D(nn.Module):
    """RGB clip `[N, 3, T, H, W]` -> logits `[N, num_classes]`; published for 64 frames of 224x224 pixels.

    The features in front of the pooling are `[N, 1024, T/8, H/32, W/32]`, sizes rounded up, so a clip needs at least
    9 frames for the temporal window of two cells. In space the window is the whole grid: 7x7, as published, at
    224x224.

    Args:
        num_classes: K; 400 for Kinetics-400.

    Raises:
        ValueError: in `forward`, a clip of fewer than 9 frames.
    """

    labels = None
    preprocessing = Preprocessing(frames=64, resize=256, crop=(224, 224), mean=(0.5,) * 3, std=(0.5,) * 3)

    def __init__(self, num_classes: int = 400) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = _Unit(3, 64, kernel=7, stride=2)
        self.MaxPool3d_2a_3x3 = _max_pool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = _Unit(64, 64)
        self.Conv3d_2c_3x3 = _Unit(64, 192, kernel=3)
        self.MaxPool3d_3a_3x3 = _max_pool((1, 3, 3), (1, 2, 2))
        self.Mixed_3b = _Mixed(192, 64, (96, 128), (16, 32), 32)
        self.Mixed_3c = _Mixed(256, 128, (128, 192), (32, 96), 64)
        self.MaxPool3d_4a_3x3 = _max_pool((3, 3, 3), (2, 2, 2))
        self.Mixed_4b = _Mixed(480, 192, (96, 208), (16, 48), 64)
        self.Mixed_4c = _Mixed(512, 160, (112, 224), (24, 64), 64)
        self.Mixed_4d = _Mixed(512, 128, (128, 256), (24, 64), 64)
        self.Mixed_4e = _Mixed(512, 112, (144, 288), (32, 64), 64)
        self.Mixed_4f = _Mixed(528, 256, (160, 320), (32, 128), 128)
        self.MaxPool3d_5a_2x2 = _max_pool((2, 2, 2), (2, 2, 2))
        self.Mixed_5b = _Mixed(832, 256, (160, 320), (32, 128), 128)
        self.Mixed_5c = _Mixed(832, 384, (192, 384), (48, 128), 128)
        self.dropout = nn.Dropout(0.5)
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(1024, num_classes, 1)})

    def forward(self, clip: Tensor) -> Tensor:
        if not torch.jit.is_tracing():  # a trace would only bake the comparison in and warn of it
            _check_length(clip.size(2))
        x = self.MaxPool3d_2a_3x3(self.Conv3d_1a_7x7(clip))
        x = self.MaxPool3d_3a_3x3(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)))
        x = self.MaxPool3d_4a_3x3(self.Mixed_3c(self.Mixed_3b(x)))
        x = self.Mixed_4f(self.Mixed_4e(self.Mixed_4d(self.Mixed_4c(self.Mixed_4b(x)))))
        x = self.Mixed_5c(self.Mixed_5b(self.MaxPool3d_5a_2x2(x)))
        # One op for the window of two frames and the whole of space.
        x = F.avg_pool3d(x, [2, x.size(3), x.size(4)], stride=[1, 1, 1])
        return self.logits["conv3d"](self.dropout(x)).mean([2, 3, 4])


class _SamePadding(nn.Module):
    """Zeros so that the next window gives ceil(size / stride) cells, the odd one at the end (TensorFlow's "SAME")."""

    def __init__(self, kernel: _Triple, stride: _Triple) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        # The last window starts at the last multiple of the stride below size; what sticks out is padded. No kernel
        # here is shorter than its stride, so none of the amounts is negative.
        t = self.kernel[0] - 1 - (x.size(2) - 1) % self.stride[0]
        h = self.kernel[1] - 1 - (x.size(3) - 1) % self.stride[1]
        w = self.kernel[2] - 1 - (x.size(4) - 1) % self.stride[2]
        return F.pad(x, [w // 2, w - w // 2, h // 2, h - h // 2, t // 2, t - t // 2])


class _Unit(nn.Module):
    """Convolution, batch norm, ReLU; the size stays, or is divided by the stride and rounded up."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        same = stride == 1  # then the padding does not depend on the size
        self.padding = nn.Identity() if same else _SamePadding((kernel,) * 3, (stride,) * 3)
        padding = kernel // 2 if same else 0
        self.conv3d = nn.Conv3d(channels_in, channels_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm3d(channels_out, eps=1e-3, momentum=0.01)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv3d(self.padding(x))))


class _Mixed(nn.Module):
    """Four branches side by side: 1x1x1; 1x1x1 and 3x3x3, twice; max pooling and 1x1x1."""

    def __init__(self, channels: int, b0: int, b1: tuple[int, int], b2: tuple[int, int], b3: int) -> None:
        super().__init__()
        self.b0 = _Unit(channels, b0)
        self.b1a = _Unit(channels, b1[0])
        self.b1b = _Unit(b1[0], b1[1], kernel=3)
        self.b2a = _Unit(channels, b2[0])
        self.b2b = _Unit(b2[0], b2[1], kernel=3)
        self.b3a = nn.MaxPool3d(3, stride=1, padding=1)
        self.b3b = _Unit(channels, b3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], 1)


def _max_pool(kernel: _Triple, stride: _Triple) -> nn.Sequential:
    """Max pooling of values that are not negative, so that zeros may pad them."""
    return nn.Sequential(_SamePadding(kernel, stride), nn.MaxPool3d(kernel, stride))


def _check_length(frames: int) -> None:
    if frames < 9:
        raise ValueError(f"I3D: clip must have at least 9 frames, got {frames}")
