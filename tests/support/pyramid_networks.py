"""Small networks of every block type that a class feature pyramid steps back through, each with its graph by hand.

`graph` says how the tensors of `forward` come from each other, in order, by lines or semicolons:

    tensor = layer(tensor)       a convolution or linear layer, by its module path
    tensor = sum(a, b)           an addition
    tensor = cat(a, b)           a concatenation of channels
    tensor = pass(a)             anything that keeps the channels: batch norm, activation, pooling, padding, dropout

What keeps the channels is stated only where it matters: where a tensor goes several ways, a layer may read it before
or behind a pooling. The last one is the classifier, and what it takes is the input of the global pooling.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from networks import seeded


def conv(channels_in: int, channels_out: int, kernel=3, stride=1, groups: int = 1, bias: bool = False) -> nn.Conv3d:
    kernel = (kernel,) * 3 if isinstance(kernel, int) else kernel
    return nn.Conv3d(channels_in, channels_out, kernel, stride, [k // 2 for k in kernel], groups=groups, bias=bias)


class Network(nn.Module):
    """Features, global pooling, linear layer.

    Attributes:
        graph: see above.
        grids: of the tensors that a fully connected layer reads flattened, by the layer's name.
        images: whether the network takes images instead of clips.
    """

    graph = ""
    grids: ClassVar[dict[str, tuple[int, ...]]] = {}
    images = False

    def __init__(self, channels: int, classes: int = 5) -> None:
        super().__init__()
        self.pool, self.fc = nn.AdaptiveAvgPool3d(1), nn.Linear(channels, classes)

    def forward(self, x):
        return self.fc(self.pool(self.features(x)).flatten(1))


class Plain(Network):
    graph = """
        a = body.0(clip); b = body.4(a); c = body.8(b); logits = fc(c)
    """

    def __init__(self) -> None:
        super().__init__(9)
        self.body = nn.Sequential(
            conv(3, 6),
            nn.BatchNorm3d(6),
            nn.ReLU(inplace=True),
            nn.MaxPool3d(2),
            conv(6, 8, bias=True),
            nn.BatchNorm3d(8),
            nn.LeakyReLU(0.1),
            nn.AvgPool3d((1, 2, 2)),
            conv(8, 9, bias=True),
            nn.Sigmoid(),
            nn.Dropout(0.5),
        )

    def features(self, x):
        return self.body(x)


class Residual(Network):
    """Two basic blocks with identity shortcuts, the sums and activations in place as torchvision writes them."""

    graph = """
        x = stem(clip); a = conv1(x); b = conv2(a); y = sum(b, x); c = conv3(y); d = conv4(c)
        z = sum(d, y); logits = fc(z)
    """

    def __init__(self) -> None:
        super().__init__(8)
        self.stem, self.bn = conv(3, 8, stride=(1, 2, 2)), nn.BatchNorm3d(8)
        self.conv1, self.conv2, self.conv3, self.conv4 = (conv(8, 8) for _ in range(4))
        self.bn1, self.bn2, self.bn3, self.bn4 = (nn.BatchNorm3d(8) for _ in range(4))
        self.relu = nn.ReLU(inplace=True)

    def features(self, x):
        x = self.relu(self.bn(self.stem(x)))
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        x = self.relu(out)
        out = self.bn4(self.conv4(self.relu(self.bn3(self.conv3(x)))))
        out += x
        return self.relu(out)


class Projection(Network):
    """A bottleneck whose shortcut is a convolution, then one whose shortcut is the identity."""

    graph = """
        x = stem(clip); a = first.conv1(x); b = first.conv2(a); c = first.conv3(b)
        p = first.shortcut.0(x); y = sum(c, p); d = second.conv1(y); e = second.conv2(d)
        f = second.conv3(e); z = sum(f, y); logits = fc(z)
    """

    def __init__(self) -> None:
        super().__init__(12)
        self.stem = conv(3, 6, (1, 3, 3))
        self.first, self.second = _Bottleneck(6, 4, 12, stride=2), _Bottleneck(12, 4, 12)

    def features(self, x):
        return self.second(self.first(F.relu(self.stem(x))))


class _Bottleneck(nn.Module):
    def __init__(self, channels_in: int, middle: int, channels: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(channels_in, middle, 1), nn.BatchNorm3d(middle)
        self.conv2, self.bn2 = conv(middle, middle, 3, stride, groups), nn.BatchNorm3d(middle)
        self.conv3, self.bn3 = conv(middle, channels, 1), nn.BatchNorm3d(channels)
        self.shortcut = nn.Sequential()
        if (channels_in, stride) != (channels, 1):
            self.shortcut = nn.Sequential(conv(channels_in, channels, 1, stride), nn.BatchNorm3d(channels))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        return torch.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class Grouped(Network):
    """As in ResNeXt: the middle convolution of the bottleneck has groups; then two groups of unequal sides."""

    graph = """
        x = stem(clip); a = block.conv1(x); b = block.conv2(a); c = block.conv3(b)
        p = block.shortcut.0(x); y = sum(c, p); z = last(y); logits = fc(z)
    """

    def __init__(self) -> None:
        super().__init__(10)
        self.stem, self.block = conv(3, 6, stride=(1, 2, 2)), _Bottleneck(6, 12, 8, groups=4)
        self.last = conv(8, 10, groups=2)

    def features(self, x):
        return F.silu(self.last(self.block(F.relu(self.stem(x)))))


class DepthWise(Network):
    """Depth-wise, with one and with two kernels for each channel, and point-wise."""

    graph = """
        x = stem(clip); a = wide1(x); b = point1(a); c = wide2(b); d = point2(c); y = sum(d, x)
        logits = fc(y)
    """

    def __init__(self) -> None:
        super().__init__(6)
        self.stem = conv(3, 6)
        self.wide1, self.point1 = conv(6, 6, groups=6), conv(6, 8, 1)
        self.wide2, self.point2 = conv(8, 16, groups=8), conv(16, 6, 1)
        self.bn1, self.bn2 = nn.BatchNorm3d(6), nn.BatchNorm3d(16)

    def features(self, x):
        x = F.relu6(self.stem(x))
        out = F.hardswish(self.point1(F.relu6(self.bn1(self.wide1(x)))))
        return x + self.point2(F.relu(self.bn2(self.wide2(out))))


class MultiFiber(Network):
    """Two pre-activated multi-fiber units, the first with a projection, the second with an identity shortcut."""

    graph = """
        x = stem(clip); x1 = pass(x); a = first.i1.2(x1); b = first.i2.2(a); mixed = sum(x, b)
        c = first.m1.2(mixed); d = first.m2.2(c); xw = pass(x); w = first.w1.2(xw)
        y = sum(d, w); y1 = pass(y); e = second.i1.2(y1); f = second.i2.2(e); mixed2 = sum(y, f)
        g = second.m1.2(mixed2); h = second.m2.2(g); z = sum(h, y); logits = fc(z)
    """

    def __init__(self) -> None:
        super().__init__(12)
        self.stem = conv(3, 8)
        self.first, self.second = _MultiFiberUnit(8, 12, first=True), _MultiFiberUnit(12, 12, first=False)
        self.tail = nn.Sequential(nn.BatchNorm3d(12), nn.ReLU(inplace=True))

    def features(self, x):
        return self.tail(self.second(self.first(self.stem(x))))


class _MultiFiberUnit(nn.Module):
    def __init__(self, channels_in: int, channels: int, first: bool) -> None:
        super().__init__()
        self.i1, self.i2 = _pre_activated(channels_in, 4, 1), _pre_activated(4, channels_in, 1)
        self.m1 = _pre_activated(channels_in, channels, 3, stride=(1, 2, 2) if first else 1, groups=4)
        self.m2 = _pre_activated(channels, channels, 1 if first else (1, 3, 3), groups=1 if first else 4)
        self.w1 = _pre_activated(channels_in, channels, 1, stride=(1, 2, 2)) if first else nn.Identity()

    def forward(self, x):
        mixed = x + self.i2(self.i1(x))
        return self.m2(self.m1(mixed)) + self.w1(x)


def _pre_activated(channels_in: int, channels_out: int, kernel, **options) -> nn.Sequential:
    layer = conv(channels_in, channels_out, kernel, **options)
    return nn.Sequential(nn.BatchNorm3d(channels_in), nn.ReLU(inplace=True), layer)


class Branches(Network):
    """Two Inception modules: branches of unequal depth, one of them behind a max pooling."""

    graph = """
        x = stem(clip); a0 = mixed1.b0.0(x); a1 = mixed1.b1a.0(x); a2 = mixed1.b1b.0(a1)
        xp = pass(x); a3 = mixed1.b2b.0(xp); y = cat(a0, a2, a3); yp = pass(y)
        c0 = mixed2.b0.0(yp); c1 = mixed2.b1a.0(yp); c2 = mixed2.b1b.0(c1); yq = pass(yp)
        c3 = mixed2.b2b.0(yq); z = cat(c0, c2, c3); logits = head(z)
    """

    def __init__(self) -> None:
        super().__init__(9)
        self.stem = conv(3, 6)
        self.mixed1, self.mixed2 = _Mixed(6, (3, 4, 5), 2), _Mixed(12, (4, 3, 2), 3)
        self.pool2, self.pool = nn.MaxPool3d((1, 2, 2)), nn.AvgPool3d((2, 4, 4), stride=1)
        self.head, self.fc = nn.Conv3d(9, 5, 1), None

    def features(self, x):
        return self.mixed2(self.pool2(self.mixed1(F.relu(self.stem(x)))))

    def forward(self, x):
        """A head as in I3D: windows that overlap, a 1x1x1 convolution, the mean."""
        return self.head(self.pool(self.features(x))).mean((2, 3, 4))


class _Mixed(nn.Module):
    def __init__(self, channels: int, widths: tuple[int, int, int], middle: int) -> None:
        super().__init__()
        self.b0, self.b1a = _unit(channels, widths[0], 1), _unit(channels, middle, 1)
        self.b1b, self.b2b = _unit(middle, widths[1], 3), _unit(channels, widths[2], 1)
        self.b2a = nn.MaxPool3d(3, stride=1, padding=1)

    def forward(self, x):
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x))], 1)


def _unit(channels_in: int, channels_out: int, kernel) -> nn.Sequential:
    norm = nn.BatchNorm3d(channels_out, eps=1e-3)
    return nn.Sequential(conv(channels_in, channels_out, kernel), norm, nn.ReLU(inplace=True))


class Nested(Network):
    """Branches inside a residual, mixed by a convolution and as they are; one branch holds a residual itself."""

    graph = """
        x = stem(clip); a = one(x); b = two(x); br = pass(b); c = three(br); s = sum(br, c)
        m = cat(a, s); mr = pass(m); u = mix(mr); y = sum(x, u); e = left(y); f = right(y)
        n = cat(e, f); z = sum(n, y); logits = fc(z)
    """

    def __init__(self) -> None:
        super().__init__(8)
        self.stem, self.one, self.two, self.three = conv(3, 8), conv(8, 3, 1), conv(8, 4, (1, 3, 3)), conv(4, 4)
        self.mix, self.left, self.right = conv(7, 8, 1, bias=True), conv(8, 5), conv(8, 3, 1)
        self.bn = nn.BatchNorm3d(7)

    def features(self, x):
        x = F.relu(self.stem(x))
        b = F.relu(self.two(x))
        m = self.bn(torch.cat((self.one(x), b + self.three(b)), dim=1))
        y = x + self.mix(F.relu(m))
        y = F.max_pool3d(y, (1, 2, 2))
        return F.elu(torch.cat((self.left(y), self.right(y)), -4) + y)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3, 4)))


class Factorised(Network):
    """As in R(2+1)D: a convolution over space, then one over time, inside a residual."""

    graph = """
        x = stem(clip); a = space1(x); b = time1(a); c = space2(b); d = time2(c)
        p = shortcut(x); y = sum(d, p); logits = fc(y)
    """

    def __init__(self) -> None:
        super().__init__(10)
        self.stem = conv(3, 6, (1, 3, 3))
        self.space1, self.time1 = conv(6, 7, (1, 3, 3), (1, 2, 2)), conv(7, 8, (3, 1, 1), (2, 1, 1))
        self.space2, self.time2 = conv(8, 9, (1, 3, 3)), conv(9, 10, (3, 1, 1))
        self.shortcut = conv(6, 10, 1, 2)
        self.bn1, self.bn2 = nn.BatchNorm3d(7), nn.BatchNorm3d(10)

    def features(self, x):
        x = 2 * self.stem(x).relu_() - 0.1
        out = F.relu(self.time1(F.relu(self.bn1(self.space1(x)))))
        out = self.bn2(self.time2(torch.relu(self.space2(out))))
        return F.relu(out + self.shortcut(x))


class InPlace(Network):
    """What a layer has read is overwritten afterwards: by a sum, and by an activation whose result nobody takes."""

    graph = """
        x = stem(clip); a = conv1(x); y = sum(x, a); b = conv2(y); yr = pass(y); z = sum(b, yr)
        logits = fc(z)
    """

    def __init__(self) -> None:
        super().__init__(7)
        self.stem, self.conv1, self.conv2 = conv(3, 7), conv(7, 7), conv(7, 7, 1)
        self.norm = nn.BatchNorm3d(7)

    def features(self, x):
        x = self.norm(self.stem(x))
        x += self.conv1(x)
        out = self.conv2(x)
        F.relu_(x)
        out += x
        return F.leaky_relu_(out)


class Dense(Network):
    """As in DenseNet: every convolution reads all the channels so far; a tensor is part of two concatenations."""

    graph = """
        x = stem(clip); a = conv1(x); y = cat(x, a); yr = pass(y); b = conv2(yr); z = cat(y, b)
        c = conv3(z); w = cat(a, c); logits = fc(w)
    """

    def __init__(self) -> None:
        super().__init__(8)
        self.stem, self.conv1, self.conv2, self.conv3 = conv(3, 4), conv(4, 3), conv(7, 2), nn.Conv3d(9, 5, 3)
        self.norm = nn.BatchNorm3d(7)

    def features(self, x):
        x = F.max_pool3d(self.stem(x), (1, 2, 2))
        a = self.conv1(x)
        y = torch.cat([x, a], 1)
        z = torch.concat([y, self.conv2(F.relu(self.norm(y)))], 1)
        return F.gelu(torch.cat([a, self.conv3(F.pad(z, [1] * 6))], 1))


class Frames(Network):
    """A 2-D network that goes over the frames itself, as TSN does, with a residual and branches."""

    graph = """
        x = stem(clip); a = conv1(x); y = sum(x, a); b = left(y); yp = pass(y); c = right(yp)
        z = cat(b, c); logits = fc(z)
    """

    def __init__(self) -> None:
        super().__init__(9)
        self.stem, self.conv1 = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.left, self.right = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 5, 1)
        self.norm, self.pool = nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1)

    def features(self, x):
        x = F.relu(self.norm(self.stem(x.transpose(1, 2).flatten(0, 1))))
        y = torch.add(x, self.conv1(x))
        return F.relu(torch.cat([self.left(y), self.right(F.max_pool2d(y, 3, 1, 1))], 1))

    def forward(self, x):
        return super().forward(x).view(x.shape[0], x.shape[2], -1).mean(1)


class Image(Network):
    """A 2-D network of images, which sees every frame by itself."""

    graph = """
        x = body.0(clip); y = body.2(x); logits = fc(y)
    """
    images = True

    def __init__(self) -> None:
        super().__init__(7)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 7, 3, 1, 1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)

    def features(self, x):
        return self.body(x)


class FullyConnectedImage(Network):
    """As VGG: every frame is flattened and goes through linear layers by itself."""

    graph = """
        x = body.0(clip); f = fc6(x); g = fc7(f); logits = fc(g)
    """
    grids: ClassVar = {"fc6": (6, 6)}
    images = True

    def __init__(self) -> None:
        super().__init__(8)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
        self.fc6, self.fc7, self.pool = nn.Linear(6 * 6 * 6, 10), nn.Linear(10, 8), nn.Identity()

    def features(self, x):
        return torch.relu(self.fc7(torch.relu(self.fc6(self.body(x).flatten(1)))))


class FullyConnected(Network):
    """As C3D: the features are flattened without a global pooling, and two linear layers follow."""

    graph = """
        x = conv1(clip); y = conv2(x); f = fc6(y); g = fc7(f); logits = fc(g)
    """
    grids: ClassVar = {"fc6": (2, 3, 3)}

    def __init__(self) -> None:
        super().__init__(10)
        self.conv1, self.conv2 = conv(3, 6, stride=(2, 2, 2)), conv(6, 7, bias=True)
        self.fc6, self.fc7 = nn.Linear(7 * 2 * 3 * 3, 11), nn.Linear(11, 10)
        self.drop, self.pool = nn.Dropout(0.5), nn.Identity()

    def features(self, x):
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = F.max_pool3d(x, 2, padding=(0, 0, 0)).flatten(1)
        return self.drop(torch.relu(self.fc7(self.drop(torch.relu(self.fc6(x))))))


NETWORKS = {
    network.__name__: network
    for network in (
        Plain, Residual, Projection, Grouped, DepthWise, MultiFiber, Branches, Nested, Factorised, InPlace, Dense,
        Frames, Image, FullyConnected, FullyConnectedImage,
    )
}  # fmt: skip


def build(name: str, seed: int = 0) -> Network:
    """A network by name; batch norms have statistics and weights of their own, else they would change nothing."""
    return seeded(partial(_with_norms, NETWORKS[name]), seed)


def _with_norms(factory) -> Network:
    network = factory()
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm3d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network
