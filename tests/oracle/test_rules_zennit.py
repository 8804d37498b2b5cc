"""Rules of relevance for layers that the package's own networks do not have, against zennit's in float64.

zennit's composites pass relevance on at activations and norms, and have z+ and epsilon for transposed convolutions.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import networks
from clipsight.heads import DeepTaylor, LRPEpsilon
from gradient_networks import CLASSES, HIGH, LOW, RAW, clip, explain, off
from gradient_oracles import TINY, attribution, core, rules

BOUND = 1e-9
SIZE = (4, 8, 8)
LAYERS = (nn.Conv3d, nn.ConvTranspose3d, nn.Linear)
AVERAGES = (nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.Upsample)


def between(*layers: nn.Module) -> nn.Sequential:
    """A classifier of clips with some layers in the middle."""

    def make() -> nn.Sequential:
        front = [nn.Conv3d(3, 6, 3, padding=1), nn.ReLU(), *layers]
        return nn.Sequential(
            *front, nn.Conv3d(6, 8, 2), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5)
        )

    return networks.seeded(make).double()


def zennits(network: nn.Module, x: torch.Tensor, classes: torch.Tensor, method: str) -> torch.Tensor:
    first = network[0]

    def hook_of(_, name: str, layer: nn.Module):
        if method == "deep_taylor" and layer is first:
            ends = (x.new_tensor(bound).view(3, 1, 1, 1).expand_as(x).contiguous() for bound in (LOW, HIGH))
            return rules.ZBox(*ends, stabilizer=TINY, zero_params="bias")
        if isinstance(layer, LAYERS):
            return rules.ZPlus(TINY, zero_params="bias") if method == "deep_taylor" else rules.Epsilon(1e-6)
        if isinstance(layer, AVERAGES):
            return rules.Norm(TINY)
        return None if isinstance(layer, (nn.Sequential, nn.Flatten, nn.PixelShuffle)) else rules.Pass()

    with attribution.Gradient(network, core.Composite(hook_of)) as attributor:
        return attributor(x, lambda logits: F.one_hot(classes, logits.shape[1]).to(logits))[1].detach()


# z+ reads what is not negative: zennit's has a second part for what is.
NOT_NEGATIVE = {
    "transposed": lambda: nn.Sequential(nn.ConvTranspose3d(6, 6, 3, 2, 1, 1, groups=3), nn.ReLU()),
    "transposed wide": lambda: nn.Sequential(nn.ConvTranspose3d(6, 6, (2, 3, 4), dilation=(2, 1, 1)), nn.ReLU6()),
    "clamp": lambda: nn.Hardtanh(0.0, 0.3),
    "sigmoid": nn.Sigmoid,
    "upsample": lambda: nn.Upsample(scale_factor=2, mode="nearest"),
    "trilinear": lambda: nn.Upsample(size=(5, 7, 9), mode="trilinear", align_corners=True),
}
SIGNED = {
    "leaky_relu": lambda: nn.Sequential(nn.Conv3d(6, 6, 1), nn.LeakyReLU(0.2)),
    "prelu": lambda: nn.Sequential(nn.Conv3d(6, 6, 1), nn.PReLU(6)),
    "elu": lambda: nn.Sequential(nn.Conv3d(6, 6, 1), nn.ELU()),
    "gelu": lambda: nn.Sequential(nn.Conv3d(6, 6, 1), nn.GELU()),
    "silu": lambda: nn.Sequential(nn.Conv3d(6, 6, 1), nn.SiLU()),
    "mish": lambda: nn.Sequential(nn.Conv3d(6, 6, 1), nn.Mish()),
    "hardswish": lambda: nn.Sequential(nn.Conv3d(6, 6, 1), nn.Hardswish()),
    "tanh": lambda: nn.Sequential(nn.Conv3d(6, 6, 1), nn.Tanh()),
    "instance_norm": lambda: nn.InstanceNorm3d(6, affine=True),
}


@pytest.mark.parametrize(
    "name, method",
    [*((name, method) for name in NOT_NEGATIVE for method in ("deep_taylor", "lrp_epsilon")),
     *((name, "lrp_epsilon") for name in SIGNED)],
)  # fmt: skip
def test_a_layer_has_zennits_rule(name, method):
    network, x = between((NOT_NEGATIVE | SIGNED)[name]()), clip(2, SIZE)
    head = DeepTaylor(LOW, HIGH, **RAW) if method == "deep_taylor" else LRPEpsilon(**RAW)
    (ours,) = explain(network, head, x, CLASSES)
    assert off(ours, zennits(network, x, CLASSES, method)) < BOUND
    assert off(ours, zennits(network, x, CLASSES.flip(0), method)) > 1e-2
