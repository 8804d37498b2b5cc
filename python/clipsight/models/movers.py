"""A small 3D CNN that names the motion in the clips of :mod:`clipsight.synthetic`."""

from __future__ import annotations

from torch import Tensor, nn

from ..preprocessing import Preprocessing
from ..synthetic import MOTION_CLASSES


class Movers(nn.Module):
    """Clip `[N, 3, T, H, W]` -> logits `[N, 8]`; trained on 16 frames of 64x64 pixels.

    Four convolutions, global average pooling, linear. The feature grid keeps T/2 x H/4 x W/4 cells, 8x16x16 for a
    clip of 16x64x64, so that a saliency tube can follow a small shape. The strided kernels are even: their windows
    lie symmetric in the frame, as the cells of an align-corners up-sampling do.
    """

    labels = MOTION_CLASSES
    preprocessing = Preprocessing(frames=16, resize=64, crop=(64, 64), mean=(0.5,) * 3, std=(0.25,) * 3)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _stage(3, 16, kernel=(3, 4, 4), stride=(1, 2, 2)),
            _stage(16, 32, kernel=(4, 4, 4), stride=(2, 2, 2)),
            _stage(32, 48, kernel=(3, 3, 3)),
            _stage(48, 48, kernel=(3, 3, 3)),
            _stage(48, 64, kernel=(1, 3, 3)),
        )
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.classifier = nn.Linear(64, len(MOTION_CLASSES))

    def forward(self, clip: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(clip)).flatten(1))


def _stage(channels_in: int, channels_out: int, kernel: tuple[int, int, int], stride=(1, 1, 1)) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(channels_in, channels_out, kernel, stride, [(k - 1) // 2 for k in kernel], bias=False),
        nn.BatchNorm3d(channels_out),
        nn.ReLU(inplace=True),
    )
