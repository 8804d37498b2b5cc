"""A small 2-D CNN on the clips of :mod:`clipsight.synthetic`, to be compared with the 3-D one beside it."""

from __future__ import annotations

from torch import Tensor, nn

from .movers import Movers


class Movers2d(nn.Module):
    """Clip `[N, 3, T, H, W]` -> logits `[N, 8]`, the mean of the logits of the T frames (segment consensus).

    :class:`~clipsight.models.movers.Movers` without its kernels' extent in time. Every frame is seen on its own and
    the consensus does not depend on their order, so a motion and the same motion played backwards look alike to it:
    of the eight classes, which are four such pairs, it can name half the clips at the very best.

    Features `[N*T, 64, H/4, W/4]`.
    """

    labels = Movers.labels
    preprocessing = Movers.preprocessing

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _stage(3, 16, kernel=4, stride=2),
            _stage(16, 32, kernel=4, stride=2),
            _stage(32, 48, kernel=3),
            _stage(48, 48, kernel=3),
            _stage(48, 64, kernel=3),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(64, len(self.labels))

    def forward(self, clip: Tensor) -> Tensor:
        frames = clip.transpose(1, 2).flatten(0, 1)
        logits = self.classifier(self.pool(self.features(frames)).flatten(1))
        return logits.view(-1, clip.shape[2], logits.shape[1]).mean(1)


def _stage(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, (kernel - 1) // 2, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )
