"""Where float32 cannot say what float64 says, and how to keep a test's network away from there.

A gradient jumps where the input of a ReLU passes 0, and where another value of a pooling window becomes the largest;
the epsilon rule of relevance turns within a few epsilon of 0. A value that lies closer to such a border than its own
rounding error is on either side of it, whatever program computes it in float32. Nothing here looks at the package.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import gradient_oracles

WITH_BIAS = (*gradient_oracles.CONVOLUTIONS, *gradient_oracles.NORMS)
POOLS = (nn.MaxPool2d, nn.MaxPool3d)


def on_the_border(network: nn.Module, x: Tensor, times: float = 1) -> int:
    """How many values in front of ReLUs, and windows of max-pooling layers, are closer to a border than `times` the
    largest rounding error of their layer in float32."""
    precise, rounded = (_read(network.to(clip.dtype), clip) for clip in (x.double(), x.float()))
    network.double()
    found = 0
    for (layer, p), (_, r) in zip(precise, rounded, strict=True):
        error = times * (r.double() - p).abs().max()
        found += (p.abs() <= error if isinstance(layer, nn.ReLU) else _is_close(p, layer, error)).sum().item()
    return found


def _read(network: nn.Module, x: Tensor) -> list[tuple[nn.Module, Tensor]]:
    module, found = gradient_oracles.modular(network, x), []
    for layer in module.modules():
        if isinstance(layer, (nn.ReLU, *POOLS)):
            layer.register_forward_pre_hook(lambda layer, inputs: found.append((layer, inputs[0])))
    module(x)
    return found


def _is_close(x: Tensor, pool: nn.Module, margin: float | Tensor) -> Tensor:
    """Which windows have a second value within `margin` of the largest, but equal ones: zeros, or one voxel twice."""
    axes = x.dim() - 2
    size, stride, padding = (_each(value, axes) for value in (pool.kernel_size, pool.stride, pool.padding))
    x = F.pad(x, [p for p in reversed(padding) for _ in range(2)], value=-math.inf)
    for axis in range(axes):
        x = x.unfold(axis + 2, size[axis], stride[axis])
    first, second = x.flatten(2 + axes).topk(2, -1).values.unbind(-1)
    return (first - second <= margin) & (first > second)


def _each(value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,) * axes


# ---- Away from it ---------------------------------------------------------------------------------------------------

MARGIN = 4e-5  # in standard deviations of a layer's output; float32 was off by up to 1.8e-5 of them
REACH = 0.1  # how far a bias is moved at most, in the same


def keep_off(network: nn.Module, x: Tensor) -> nn.Module:
    """Changes a network in float64 a little, so that on this clip nothing lies on a border; all stays float32 numbers.

    Zero comes into the middle of the widest gap between the values that a channel has near it, by the channel's bias.
    A channel with a window that has two winners is drawn again.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        _Mover(gradient_oracles.modular(network, x), network).run(x)
    return network


class _Mover(fx.Interpreter):
    """Runs the network as modules, and changes each layer of the network itself before the next one reads it."""

    def __init__(self, module: fx.GraphModule, network: nn.Module) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.network = network

    def run_node(self, node: fx.Node):
        y, layer = super().run_node(node), self._layer(node)
        if isinstance(layer, WITH_BIAS):
            return self._shifted(node, y, y)
        if isinstance(layer, gradient_oracles.Sum):
            part = next(part for part in node.args[0].args[0] if isinstance(self._layer(part), WITH_BIAS))
            z = self.env[part]
            return y + self._shifted(part, z, torch.cat([z, y], 2)) - z
        if isinstance(layer, POOLS):
            return layer(self._redrawn(node.args[0], layer))
        return y

    def _layer(self, node: fx.Node) -> nn.Module | None:
        return self.module.get_submodule(node.target) if node.op == "call_module" else None

    def _shifted(self, node: fx.Node, y: Tensor, values: Tensor, channels: Tensor | slice = slice(None)) -> Tensor:
        """Moves a layer's bias so that zero lies in a gap of the values; what y becomes."""
        bias = self.network.get_submodule(node.target).bias
        if bias is None:
            return y
        old = bias[channels].clone()
        bias[channels] = (old + torch.stack([_gap(v) for v in values.transpose(0, 1).flatten(1)])).float().to(bias)
        return y + (bias[channels] - old).view(1, -1, *[1] * (y.dim() - 2))

    def _redrawn(self, relu: fx.Node, pool: nn.Module) -> Tensor:
        """The input of a max pooling behind a convolution and a ReLU."""
        node = relu.args[0]
        convolution, z = self.network.get_submodule(node.target), self.env[node].clone()
        margin, channels = MARGIN * z.std(), torch.arange(z.shape[1])
        while (channels := channels[_is_close(z[:, channels].relu(), pool, margin).flatten(2).any(2).any(0)]).numel():
            weight = convolution.weight[channels]
            convolution.weight[channels] = (weight * (1 + 0.1 * torch.randn_like(weight))).float().to(weight)
            parts = convolution.weight[channels], convolution.bias[channels], convolution.stride, convolution.padding
            drawn = F.conv3d(self.env[node.args[0]], *parts)
            z[:, channels] = self._shifted(node, drawn, drawn, channels)
        return z.relu()


def _gap(values: Tensor) -> Tensor:
    """What to add to the values of a channel so that 0 is in the middle of their widest gap near it."""
    reach = REACH * values.std() if values.numel() > 1 else 0
    near = torch.cat([values[values.abs() < reach], values.new_tensor([-reach, reach])]).sort().values
    widest = near.diff().argmax()
    return -(near[widest] + near[widest + 1]) / 2
