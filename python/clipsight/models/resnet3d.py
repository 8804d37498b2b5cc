"""3D ResNet-50, -101, -152 and ResNeXt-101, with the state-dict names of the published Kinetics checkpoints.

A 2-D ResNet differs only in the number of axes, so its stages come from here too (:mod:`clipsight.models.tsn`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..preprocessing import Preprocessing

_CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

# The checkpoints of 2017 (Kinetics-400 and what was fine-tuned from it) want pixels less the mean of ActivityNet; those
# of 2020, trained on Kinetics-700 alone or with Moments in Time or STAIR Actions, want pixels in 0..1, normalised.
PREPROCESSING_2017 = Preprocessing(resize=112, mean=(114.7748, 107.7354, 99.4750), scale=1.0)
PREPROCESSING_2020 = Preprocessing(resize=112, mean=(0.4345, 0.4051, 0.3775), std=(0.2768, 0.2713, 0.2737))
_CLASSES_OF_2020 = (700, 1039, 1139)


class Bottleneck(nn.Module):
    """Convolutions of 1, 3 and 1 cells beside a shortcut, which is a projection where the shape changes.

    Args:
        channels_in: of the input.
        middle: channels of the convolution of 3 cells, which carries the stride and the groups.
        channels_out: of the output.
        stride: along all axes.
        groups: of the middle convolution; 32 in ResNeXt.
        axes: 2 for images, 3 for clips.
    """

    def __init__(
        self, channels_in: int, middle: int, channels_out: int, stride: int = 1, groups: int = 1, axes: int = 3
    ) -> None:
        super().__init__()
        convolution, norm = _CONVOLUTION[axes], _NORM[axes]
        self.conv1 = convolution(channels_in, middle, 1, bias=False)
        self.bn1 = norm(middle)
        self.conv2 = convolution(middle, middle, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = norm(middle)
        self.conv3 = convolution(middle, channels_out, 1, bias=False)
        self.bn3 = norm(channels_out)
        self.downsample = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                convolution(channels_in, channels_out, 1, stride, bias=False), norm(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        main = torch.relu(self.bn1(self.conv1(x)))
        main = torch.relu(self.bn2(self.conv2(main)))
        return torch.relu(self.bn3(self.conv3(main)) + self.downsample(x))


def stages(
    blocks: tuple[int, int, int, int], expansion: int = 4, groups: int = 1, axes: int = 3
) -> list[nn.Sequential]:
    """The four stages between the stem of 64 channels and the pooling; the last one gives 2048 channels.

    Args:
        blocks: bottlenecks in each stage.
        expansion: channels of a block's output per channel of its middle convolution.
        groups: of the middle convolutions.
        axes: 2 for images, 3 for clips.
    """
    result, channels = [], 64
    for stage, count in enumerate(blocks):
        wide = 256 << stage
        sequence = nn.Sequential()
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            sequence.append(Bottleneck(channels, wide // expansion, wide, stride, groups, axes))
            channels = wide
        result.append(sequence)
    return result


class ResNet3d(nn.Module):
    """Clip `[N, 3, T, H, W]` -> logits `[N, num_classes]`; features `[N, 2048, T/16, H/32, W/32]`, rounded up.

    `preprocessing` follows from the number of classes: 700, 1039 and 1139 are those of the newer checkpoints.

    Args:
        blocks: bottlenecks in each of the four stages.
        num_classes: K.
        expansion: 4 in ResNet, 2 in ResNeXt.
        groups: 1 in ResNet, 32 in ResNeXt.
    """

    labels = None

    def __init__(
        self, blocks: tuple[int, int, int, int], num_classes: int = 400, expansion: int = 4, groups: int = 1
    ) -> None:
        super().__init__()
        self.preprocessing = PREPROCESSING_2020 if num_classes in _CLASSES_OF_2020 else PREPROCESSING_2017
        self.conv1 = nn.Conv3d(3, 64, 7, stride=(1, 2, 2), padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages(blocks, expansion, groups)
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.fc = nn.Linear(2048, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(clip))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def r3d50(num_classes: int = 400) -> ResNet3d:
    """3D ResNet-50."""
    return ResNet3d((3, 4, 6, 3), num_classes)


def r3d101(num_classes: int = 400) -> ResNet3d:
    """3D ResNet-101."""
    return ResNet3d((3, 4, 23, 3), num_classes)


def r3d152(num_classes: int = 400) -> ResNet3d:
    """3D ResNet-152."""
    return ResNet3d((3, 8, 36, 3), num_classes)


def resnext101(num_classes: int = 400) -> ResNet3d:
    """ResNeXt-101 3D with 32 groups."""
    return ResNet3d((3, 4, 23, 3), num_classes, expansion=2, groups=32)
