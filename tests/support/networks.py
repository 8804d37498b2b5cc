"""Small networks of every shape that `explain` must find its way through; seeded, in eval mode."""

from __future__ import annotations

import torch
from torch import nn


def seeded(factory, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return factory().eval()


def stages(channels: int = 12) -> nn.Sequential:
    """Clip [N, 3, T, H, W] -> features [N, channels, T/2, H/4, W/4]."""
    return nn.Sequential(
        nn.Conv3d(3, 8, 3, stride=(1, 2, 2), padding=1, bias=False),
        nn.BatchNorm3d(8),
        nn.ReLU(inplace=True),
        nn.Conv3d(8, channels, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
    )


class ModulePool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.pool, self.fc = stages(), nn.AdaptiveAvgPool3d(1), nn.Linear(12, 5)

    def forward(self, x):
        return self.fc(self.pool(self.body(x)).flatten(1))


class FunctionalMean(ModulePool):
    """No module gives the features: the last ReLU and the mean are function calls."""

    def forward(self, x):
        return self.fc(torch.relu(self.body(x) - 0.1).mean((2, 3, 4)))


class ChannelsLastMean(ModulePool):
    def forward(self, x):
        return self.fc(self.body(x).permute(0, 2, 3, 4, 1).mean((1, 2, 3)))


class ConvolutionHead(nn.Module):
    """As in S3D and I3D: a pooling with overlapping windows, a 1x1x1 convolution, then the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.pool = stages(), nn.AvgPool3d((2, 4, 4), stride=1)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Conv3d(12, 5, 1))

    def forward(self, x):
        return self.head(self.pool(self.body(x))).mean((2, 3, 4))


class PoolAfterHead(ConvolutionHead):
    def forward(self, x):
        return self.head(self.body(x)).mean((2, 3, 4))


class VerbNoun(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.verb, self.noun = stages(), nn.Linear(12, 4), nn.Linear(12, 7)

    def forward(self, x):
        pooled = self.body(x).mean((2, 3, 4))
        return {"verb": self.verb(pooled), "noun": self.noun(pooled)}


class FullyConnected(nn.Module):
    """As in C3D: the features are flattened without a global pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc6, self.fc7 = stages(), nn.LazyLinear(16), nn.Linear(16, 5)

    def forward(self, x):
        return self.fc7(torch.relu(self.fc6(self.body(x).flatten(1))))


class Image(nn.Module):
    """A 2-D network [N, 3, H, W] -> [N, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, stride=4, padding=1), nn.ReLU())
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(12, 5)

    def forward(self, x):
        return self.fc(self.pool(self.body(x)).flatten(1))


class ImageOverClips(Image):
    """A 2-D network that takes clips and goes over the frames itself, as temporal shift modules do."""

    def forward(self, x):
        n, c, t, h, w = x.shape
        frames = x.transpose(1, 2).reshape(n * t, c, h, w)
        return super().forward(frames).view(n, t, -1).mean(1)


def clip(batch: int = 1, size=(8, 32, 32), seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))
