"""Gradients through ops that say the same in another way, equal autograd's in float64: SiLU as a product, and tensors
that are only asked for their type or shape, which nothing is sent back to.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import clipsight
from clipsight.heads import InputGradient
from gradient_networks import off
from networks import seeded


class Written(torch.autograd.Function):
    """A SiLU with a derivative of its own, as pytorchvideo has it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(x)
        return g * (gate * (1 + x * (1 - gate)))


ONES = torch.ones(1, 8, 1, 1, 1, dtype=torch.float64)
OPS = {
    "silu": F.silu,
    "x * sigmoid(x)": lambda x: x * x.sigmoid(),
    "sigmoid(x) * x": lambda x: x.sigmoid() * x,
    "a function of its own": Written.apply,
    "hardswish": lambda x: F.hardswish(4 * x),
    "x * hardsigmoid(x)": lambda x: (lambda y: y * F.hardsigmoid(y))(4 * x),
    "gated by its mean": lambda x: x * x.mean((2, 3, 4), keepdim=True).sigmoid(),
    "type_as": lambda x: x + ONES.type_as(x),
    "type_as itself": lambda x: x * x.type_as(x),
    "expand_as, a constant": lambda x: x + ONES.expand_as(x),
    "expand_as, a mean": lambda x: x + 2 * x.mean((2, 3, 4), keepdim=True).expand_as(x),
    "view_as": lambda x: x + 2 * x.flatten(1).view_as(x),
    "zeros_like": lambda x: x + torch.zeros_like(x) + x.new_ones(x.shape),
}


class Around(nn.Module):
    def __init__(self, op) -> None:
        super().__init__()
        self.first, self.last, self.fc, self.op = (
            nn.Conv3d(3, 8, 3, 2, 1),
            nn.Conv3d(8, 8, 3, 2, 1),
            nn.Linear(8, 5),
            op,
        )

    def forward(self, clip):
        return self.fc(self.last(self.op(self.first(clip))).relu().mean((2, 3, 4)))


@pytest.mark.parametrize("name", OPS)
def test_a_gradient_equals_autograd(name):
    network = seeded(lambda: Around(OPS[name])).double()
    clip = torch.randn(2, 3, 4, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    explained = clipsight.explain(network, InputGradient(colours="raw", normalize="none"), clip[:1], classes=[2])
    with torch.inference_mode():
        result, single = explained(clip)[1], explained(clip[:1])[1]
    leaf = clip.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(leaf)[:, 2].sum(), leaf)
    # torch's own derivative of hardsigmoid has a sixth of float32 in it
    bound = 3e-8 if "hardsigmoid" in name else 1e-12
    assert off(result, gradient * clip) < bound
    assert off(single, result[:1]) < 1e-12
    assert off(gradient * clip * (1 + 1e-7), gradient * clip) > bound
