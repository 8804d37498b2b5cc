"""C3D: eight convolutions and three fully connected layers, with the state-dict names of the published checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..preprocessing import Preprocessing


class C3D(nn.Module):
    """Clip `[N, 3, 16, 112, 112]` -> logits `[N, num_classes]`; features `[N, 512, 2, 7, 7]` behind `conv5b`.

    The fully connected head reads a grid of one size, so no other clip size is possible.

    Args:
        num_classes: K; 101 for UCF-101.

    Raises:
        ValueError: in `forward`, a clip of another shape.
    """

    labels = None
    preprocessing = Preprocessing(resize=(128, 171), mean=(90.0, 98.0, 102.0), channel_order="BGR", scale=1.0)

    def __init__(self, num_classes: int = 101) -> None:
        super().__init__()
        self.conv1 = _convolution(3, 64)
        self.pool1 = nn.MaxPool3d((1, 2, 2))
        self.conv2 = _convolution(64, 128)
        self.pool2 = nn.MaxPool3d(2)
        self.conv3a = _convolution(128, 256)
        self.conv3b = _convolution(256, 256)
        self.pool3 = nn.MaxPool3d(2)
        self.conv4a = _convolution(256, 512)
        self.conv4b = _convolution(512, 512)
        self.pool4 = nn.MaxPool3d(2)
        self.conv5a = _convolution(512, 512)
        self.conv5b = _convolution(512, 512)
        self.pool5 = nn.MaxPool3d(2, padding=(0, 1, 1))
        self.fc6 = nn.Linear(512 * 1 * 4 * 4, 4096)
        self.drop6 = nn.Dropout(0.5)
        self.fc7 = nn.Linear(4096, 4096)
        self.drop7 = nn.Dropout(0.5)
        self.fc8 = nn.Linear(4096, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        if not torch.jit.is_tracing():  # a trace would only bake the comparison in and warn of it
            _check_shape(clip)
        x = self.pool1(torch.relu(self.conv1(clip)))
        x = self.pool2(torch.relu(self.conv2(x)))
        x = torch.relu(self.conv3a(x))
        x = self.pool3(torch.relu(self.conv3b(x)))
        x = torch.relu(self.conv4a(x))
        x = self.pool4(torch.relu(self.conv4b(x)))
        x = torch.relu(self.conv5a(x))
        x = self.pool5(torch.relu(self.conv5b(x))).flatten(1)
        x = self.drop6(torch.relu(self.fc6(x)))
        x = self.drop7(torch.relu(self.fc7(x)))
        return self.fc8(x)


def _convolution(channels_in: int, channels_out: int) -> nn.Conv3d:
    return nn.Conv3d(channels_in, channels_out, 3, padding=1)


def _check_shape(clip: Tensor) -> None:
    if list(clip.shape[1:]) != [3, 16, 112, 112]:
        raise ValueError(
            "C3D: clip must have shape [N, 3, 16, 112, 112], the only size that its fully connected head takes, "
            f"got {list(clip.shape)}"
        )
