"""What an op takes it gives back: nothing stays in use, call after call."""

from __future__ import annotations

import pytest
import torch

from clipsight import ops
from memory import FLAT, kept, libc

FEW, MANY = 2_000, 20_000

F, W, V = torch.randn(1, 16, 2, 4, 4), torch.randn(1, 16), torch.randn(1, 4, 8, 9)
TUBE, MOTION, SHARE = torch.empty(1, 1, 4, 8, 9), torch.empty(1, 1, 4, 8, 9), torch.empty(1, 1)
CALLS = {
    "channel_reduce": lambda: ops.channel_reduce(F, W, threshold=0.1),
    "spline_upsample": lambda: ops.spline_upsample(V, (4, 9, 11)),
    "sobel_temporal": lambda: ops.sobel_temporal(V, padding="zeros"),
    "selective_relevance": lambda: ops.selective_relevance(V, n_sigma=torch.ones(1)),
    "saliency_tube": lambda: ops.saliency_tube(F, W, (4, 8, 9)),
    "selective_tube": lambda: ops.selective_tube(F, W, (4, 8, 9)),
    "saliency_tube.out": lambda: torch.ops.clipsight.saliency_tube.out(F, W, [4, 8, 9], out=TUBE),
    "selective_tube.out": lambda: torch.ops.clipsight.selective_tube.out(
        F, W, [4, 8, 9], tube=TUBE, motion=MOTION, motion_share=SHARE
    ),
    "back_step": lambda: ops.back_step(F.mean((2, 3, 4)), W.expand(4, 16), torch.ones(1, 1, 4, dtype=torch.bool), 0.5),
}


@pytest.mark.parametrize("times", [FEW, pytest.param(MANY, marks=pytest.mark.full)])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("op", CALLS)
def test_an_op_keeps_nothing(op, mode, times):
    with mode():
        assert kept(CALLS[op], times) < FLAT


def test_a_leak_would_be_seen():
    assert kept(lambda: libc().malloc(32), FEW) >= FLAT


def test_texts_arrive_whole():
    """Longer ones than a string holds in itself, and none at all."""
    for text in ("", "x" * 15, "x" * 16, "x" * 1000):
        with pytest.raises(ValueError, match=f'padding must be .*, got "{text}"$'):
            torch.ops.clipsight.sobel_temporal(V, text)
