"""Walks back through networks of many ops as ONNX and TorchScript files: one network for each role of op.

At other batches than that of the export; what is recorded from autograd as well as what is written by hand.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import clipsight
import networks
from clipsight import DeepTaylor, GradCAM, GuidedBackprop, InputGradient, LRPEpsilon

SIZE = (4, 8, 8)
INDEX = torch.tensor([2, 0, -1, 2])


class Ops(nn.Module):
    """A convolution, ops of one role, a convolution, and the end of a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.fc = nn.Conv3d(3, 8, 3, padding=1), nn.Conv3d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(torch.relu(self.last(self.between(self.stem(x)))).mean((2, 3, 4)))

    def between(self, x):
        raise NotImplementedError


class Moves(Ops):
    def between(self, x):
        first, *_, last = x.chunk(4, 1)
        x = torch.cat([x[:, 2:6], first, last.flip(2)], 1)
        x = torch.stack([x[:, :, 1], *x.unbind(2)[1:], x.select(2, 0)], 2)
        x = F.pad(F.pad(x, [1, 1, 1, 0, 0, 0], "replicate"), [1, 0, 2, 1, 0, 0], "reflect")[..., 1:-1, ::2]
        x = F.pad(x[:, :, INDEX].roll(1, 3), [0, 1, -1, 0]).index_select(2, INDEX.abs())
        frames = x.permute(2, 0, 1, 3, 4).flatten(0, 1)  # [T * N, ...]
        return F.pixel_unshuffle(F.pixel_shuffle(frames, 2), 2).unflatten(0, (4, -1)).transpose(0, 1).transpose(1, 2)


class Weighs(Ops):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.ConvTranspose3d(8, 8, 3, 2, 1, 1, groups=2), nn.Conv3d(8, 8, 3, 2, 1)
        self.normed, self.mix = nn.utils.parametrizations.weight_norm(nn.Conv3d(8, 8, 2)), nn.Linear(8, 8)
        self.weight = nn.Parameter(torch.randn(8, 8))

    def between(self, x):
        x = self.normed(self.down(self.up(x)))
        x = F.interpolate(F.interpolate(x, size=(3, 5, 6), mode="trilinear"), scale_factor=2)
        x = self.mix(x.transpose(1, -1)).transpose(1, -1) + torch.einsum("ncthw,kc->nkthw", x, self.weight)
        pooled = F.avg_pool3d(x, 2, 1, ceil_mode=True) * self.weight[0].view(8, 1, 1, 1)
        return pooled - x.mean((3, 4), keepdim=True).sum(2, keepdim=True)


class Curves(Ops):
    def between(self, x):
        x = F.leaky_relu(F.relu6(x + 0.5) - 0.3, 0.1)
        x = F.hardswish(F.gelu(F.silu(x))) + F.elu(x) + x * torch.sigmoid(x) + F.mish(x).clamp(-0.2, 2.0)
        return torch.where(x > 0.1, x, x.tanh() / 2) + F.max_pool3d(x, 3, 1, 1) + x.amax(1, keepdim=True)


class Norms(Ops):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.group, self.instance = nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.InstanceNorm3d(8, affine=True)
        self.squeeze = nn.Linear(8, 8)

    def between(self, x):
        x = self.group(x) + self.instance(x) + self.layer(x.transpose(1, -1)).transpose(1, -1)
        tokens = x.flatten(2).transpose(1, 2)
        x = x + F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).view_as(x)
        x = x + (torch.softmax(tokens @ tokens.transpose(1, 2), -1) @ tokens).transpose(1, 2).view_as(x)
        return x * torch.sigmoid(self.squeeze(x.mean((2, 3, 4))))[:, :, None, None, None]


class Recorded(Ops):
    """What has no rule by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(8, 8, batch_first=True), nn.GRU(8, 8)

    def between(self, x):
        steps = self.gru(self.lstm(x.mean((3, 4)).transpose(1, 2))[0].transpose(0, 1))[0].permute(1, 2, 0)
        x = x.cumsum(2) / 4 + steps[..., None, None]
        x = F.softplus(x) + x.repeat_interleave(2, 2)[:, :, ::2] + F.normalize(x, dim=1) + x.topk(1, 1)[0]
        return x / (1 + x.abs().amax((1, 2), keepdim=True)) + x.std(1, keepdim=True)


BOX = {"low": -4.0, "high": 4.0}
RULED = (GuidedBackprop(normalize="none"), DeepTaylor(**BOX, normalize="none"), LRPEpsilon(1e-2, normalize="none"))
CASES = [
    (Moves, RULED),
    (Weighs, RULED),
    (Curves, (GuidedBackprop(normalize="none"), LRPEpsilon(1e-2, normalize="none"))),
    (Norms, (GuidedBackprop(normalize="none"),)),
    (Recorded, ()),
]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).norm() <= 1e-3 * theirs.norm())


QUICK = [(Norms, "x.onnx"), (Moves, "x.pt")]


def cases() -> list:
    every = ((network, heads, file) for network, heads in CASES for file in ("x.onnx", "x.pt"))
    marks = {case: () for case in QUICK}
    return [pytest.param(*case, marks=marks.get(case[::2], pytest.mark.full)) for case in every]


@pytest.mark.parametrize("network, heads, file", cases(), ids=lambda value: getattr(value, "__name__", None))
def test_a_file_walks_back_as_the_model_does(tmp_path, network, heads, file):
    if file.endswith(".onnx") and importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    network = networks.seeded(network)
    heads = [InputGradient(normalize="none"), GradCAM("stem", relu=False, normalize="none"), *heads]
    model = clipsight.explain(network, heads, networks.clip(size=SIZE), "top2")
    clipsight.export(model, tmp_path / file, plugin=False)
    loaded = clipsight.load(tmp_path / file)
    for batch in (1, 3):
        clip = networks.clip(batch, SIZE, seed=batch)
        with torch.inference_mode():
            expected = model(clip)
        leaf = clip.clone().requires_grad_()
        logits = network(leaf)
        best = torch.autograd.grad(logits.amax(1).sum(), leaf)[0]
        assert close(expected[1][:, 0], (best * clip).sum(1))
        for got, want in zip(loaded(clip), expected, strict=True):
            assert close(torch.as_tensor(got), want)
        assert not close(expected[1][:, 0], expected[1][:, 1])
