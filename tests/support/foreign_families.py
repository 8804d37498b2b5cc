"""Networks built like those of other people's packages, one of each family, by hand and of a few channels.

What is of the package is how it is put together: where the axes go, what is pooled when, what is in the batch. The
networks themselves are those of :mod:`foreign_networks`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foreign_networks import CLASSES, GRADIENTS, TUBE, Attention, Foreign, Recurrent, Shift


def _conv(before: int, after: int, kernel=3, stride=1, groups: int = 1, bias: bool = False) -> nn.Conv3d:
    kernel = (kernel,) * 3 if isinstance(kernel, int) else kernel
    return nn.Conv3d(before, after, kernel, stride, [k // 2 for k in kernel], groups=groups, bias=bias)


class Bottleneck(nn.Module):
    """Of pytorchvideo: 1x1x1, 1x3x3, 1x1x1, with its norms, on a shortcut."""

    def __init__(self, before: int, inside: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.short, self.short_norm = _conv(before, after, 1, (1, stride, stride)), nn.BatchNorm3d(after)
        self.a, self.b, self.c = (
            _conv(before, inside, (3, 1, 1)),
            nn.Conv3d(inside, inside, (1, 3, 3), (1, stride, stride), (0, 1, 1)),
            _conv(inside, after, 1),
        )
        self.norms = nn.ModuleList(nn.BatchNorm3d(n) for n in (inside, inside, after))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.a(x)), inplace=True)
        y = self.norms[2](self.c(F.relu(self.norms[1](self.b(y)))))
        return F.relu(self.short_norm(self.short(x)) + y)


class Slow(nn.Module):
    """Of pytorchvideo: windows over the whole grid, a linear layer on the last axis, then the mean; a softmax."""

    def __init__(self, probabilities: bool = False) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv3d(3, 6, (1, 5, 5), (1, 2, 2), (0, 2, 2), bias=False), nn.BatchNorm3d(6)
        self.block, self.pool = Bottleneck(6, 4, 12, 2), nn.AvgPool3d((4, 6, 6), (1, 1, 1))
        self.dropout, self.proj = nn.Dropout(0.5), nn.Linear(12, CLASSES)
        self.activation = nn.Softmax(dim=1) if probabilities else None
        self.output_pool = nn.AdaptiveAvgPool3d(1)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.block(F.relu(self.stem_norm(self.stem(clip))))
        x = self.proj(self.dropout(self.pool(x)).permute((0, 2, 3, 4, 1))).permute((0, 4, 1, 2, 3))
        x = x if self.activation is None else self.activation(x)
        return self.output_pool(x).view(x.shape[0], -1)


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class Squeezed(nn.Module):
    """X3D: gates from the mean of all channels, a swish written as a product, two layers behind the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = _conv(3, 8, stride=(1, 2, 2), bias=True), nn.BatchNorm3d(8)
        self.wide, self.wide_norm = _conv(8, 8, groups=8), nn.BatchNorm3d(8)
        self.squeeze, self.excite = nn.Conv3d(8, 4, 1), nn.Conv3d(4, 8, 1)
        self.last, self.pool, self.post = _conv(8, 10, 1), nn.AvgPool3d((4, 12, 12), stride=1), nn.Conv3d(10, 12, 1)
        self.swish, self.fc = Swish(), nn.Linear(12, CLASSES)

    def forward(self, clip: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(clip)))
        y = self.wide_norm(self.wide(x))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3, 4), keepdim=True)))))
        x = x + self.swish(y)
        x = F.relu(self.post(self.pool(F.relu(self.last(x)))))
        return self.fc(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3).mean((2, 3, 4))


class Pathways(nn.Module):
    """SlowFast: two clips, a fusion from fast to slow, and poolings of grids of other lengths that are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.slow, self.fast = _conv(3, 6, (1, 3, 3), (1, 2, 2), bias=True), _conv(3, 4, 3, (1, 2, 2), bias=True)
        self.fuse, self.slow2 = nn.Conv3d(4, 4, (3, 1, 1), (4, 1, 1), (1, 0, 0)), _conv(10, 8, bias=True)
        self.end, self.fc = nn.ReLU(), nn.Linear(12, CLASSES)

    def forward(self, pathways: list[Tensor]) -> Tensor:
        slow, fast = F.relu(self.slow(pathways[0])), F.relu(self.fast(pathways[1]))
        slow = self.end(self.slow2(torch.cat([slow, F.relu(self.fuse(fast))], 1)))
        joined = torch.cat([F.adaptive_avg_pool3d(slow, 1), F.adaptive_avg_pool3d(fast, 1)], 1)
        return self.fc(joined.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3).flatten(1)


class Block(nn.Module):
    """A block of a transformer, its heads split as `transformers` does it."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.before, self.after, self.heads = nn.LayerNorm(width), nn.LayerNorm(width), heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(self.before(x)).reshape(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width))
        return x + self.mlp(self.after(x))


class Tokens(nn.Module):
    """ViViT, or without the class token VideoMAE: frames first, a dict with the logits, a norm at the end."""

    def __init__(self, token: bool) -> None:
        super().__init__()
        self.patches = nn.Conv3d(3, 8, (2, 8, 8), (2, 8, 8))
        self.token = nn.Parameter(torch.zeros(1, 1, 8)) if token else None
        self.places = nn.Parameter(torch.zeros(1, 18 + token, 8))
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.classifier = nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        x = self.patches(pixel_values.permute(0, 2, 1, 3, 4)).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.tile([x.shape[0], 1, 1]), x], 1)
        x = self.blocks(x + self.places.type_as(x))
        return {"logits": self.classifier(self.norm(x[:, 0] if self.token is not None else x.mean(1)))}


class Gray(nn.Module):
    """As MONAI's DenseNets: one channel, norm and ReLU in front of each convolution, all that was made is joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv3d(1, 6, 3, 2, 1, bias=False), nn.AdaptiveAvgPool3d(1)
        self.norms = nn.ModuleList(nn.BatchNorm3d(n) for n in (6, 8, 10))
        self.layers, self.fc = nn.ModuleList(_conv(n, 2) for n in (6, 8)), nn.Linear(10, CLASSES)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.stem(clip)
        for norm, layer in zip(self.norms, self.layers, strict=False):
            x = torch.cat([x, layer(F.relu(norm(x), inplace=True))], 1)
        return self.fc(self.pool(F.relu(self.norms[2](x), inplace=True)).flatten(1))


class Image(nn.Module):
    """As timm's ConvNeXts: a 2-D network, channels last inside a block, a norm behind the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.mlp = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.gamma = nn.Parameter(torch.ones(8))
        self.pool, self.last, self.fc = nn.AdaptiveAvgPool2d(1), nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.stem(frames)
        x = x + (self.gamma * self.mlp(self.norm(self.wide(x).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        return self.fc(self.last(self.pool(x).flatten(1)))


class Shifted(nn.Module):
    """TSM: a 2-D network over the frames of a clip, whose channels move between the frames."""

    def __init__(self, frames: int = 4) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.shift, self.conv2 = Shift(frames), nn.Conv2d(8, 8, 3, padding=1)
        self.avgpool, self.fc, self.frames = nn.AdaptiveAvgPool2d(1), nn.Linear(8, CLASSES), frames

    def forward(self, clip: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(clip.transpose(1, 2).flatten(0, 1))))
        x = F.relu(x + self.conv2(self.shift(x)))
        return self.fc(self.avgpool(x).flatten(1)).view(-1, self.frames, CLASSES).mean(1)


def _own(build, clip=(3, 4, 24, 24), **facts) -> Foreign:
    return Foreign("torch", build, clip, **facts)


_POOL = {"grid": "pool", "cam": "pool"}
_FRAMES_FIRST = {"call": lambda network, clip: network(clip.transpose(1, 2))["logits"], "heads": GRADIENTS}

FAMILIES: dict[str, Foreign] = {
    "pytorchvideo's ResNets": _own(Slow, **_POOL, last="block.c"),
    "with a softmax": _own(partial(Slow, probabilities=True), **_POOL, ending="activation", last="block.c"),
    "X3D": _own(
        Squeezed,
        cam="pool",
        heads=("grad_cam", "guided_backprop", "deep_taylor", "integrated_gradients"),
        refused={"saliency_tube": TUBE},
    ),
    "SlowFast": _own(
        Pathways,
        (3, 8, 24, 24),
        call=lambda network, clip: network([clip[:, :, ::4], clip]),
        cam="end",
        cam_output=True,
        layer="end",
        heads=("grad_cam", "guided_backprop", "deep_taylor", "integrated_gradients"),
    ),
    "VideoMAE": _own(
        partial(Tokens, False), cam="blocks.1.before", cam_output=True, tokens=(0, (2, 3, 3)), **_FRAMES_FIRST
    ),
    "ViViT": _own(
        partial(Tokens, True), cam="blocks.1.before", cam_output=True, tokens=(1, (2, 3, 3)), **_FRAMES_FIRST
    ),
    "MONAI": _own(Gray, (1, 4, 24, 24), **_POOL),
    "timm": _own(Image, (3, 2, 24, 24), images=True, cam="pool", heads=GRADIENTS, refused={"saliency_tube": TUBE}),
    "TSM": _own(Shifted, grid="avgpool", cam="avgpool"),
    "LSTM": _own(Recurrent, cam="pool", heads=GRADIENTS),
    "GRU": _own(partial(Recurrent, nn.GRU), cam="pool", heads=GRADIENTS),
    "MultiheadAttention": _own(
        Attention, (3, 8, 24, 24), grid="mixed", cam="mixed", tokens=(0, (2, 6, 6)), heads=("saliency_tube", *GRADIENTS)
    ),
}
