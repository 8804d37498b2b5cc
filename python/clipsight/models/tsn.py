"""TSN: a 2-D ResNet-50 on every frame and a consensus over the frames, with torchvision's state-dict names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..preprocessing import Preprocessing
from .resnet3d import stages


class TSN(nn.Module):
    """Clip `[N, 3, T, H, W]` -> logits `[N, num_classes]`, the mean of the logits of the T frames (the segments).

    Features `[N*T, 2048, H/32, W/32]`, rounded up.

    Args:
        num_classes: K.
    """

    labels = None
    preprocessing = Preprocessing(resize=256, crop=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

    def __init__(self, num_classes: int = 400) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages((3, 4, 6, 3), axes=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        x = clip.transpose(1, 2).flatten(0, 1)
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits = self.fc(self.avgpool(x).flatten(1))
        return logits.view(-1, clip.shape[2], logits.shape[1]).mean(1)
