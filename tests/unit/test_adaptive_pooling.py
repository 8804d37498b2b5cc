"""Adaptive poolings in ops that ONNX has, against torch's own."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from clipsight.exporters.adaptive_pooling import maxima, means

GRIDS = [(8, 16, 16), (5, 7, 3), (4, 9, 10)]
SIZES = [(2, 2, 2), (3, 5, 2), (1, 4, 4), (7, 8, 4), (5, 7, 3), (1, 1, 1)]


@pytest.mark.parametrize("grid, size", itertools.product(GRIDS, SIZES))
def test_of_clips(grid, size):
    x = torch.randn(2, 3, *grid, dtype=torch.float64)
    torch.testing.assert_close(means(x, size), F.adaptive_avg_pool3d(x, size), rtol=0, atol=1e-12)
    assert torch.equal(maxima(x, size)[0], F.adaptive_max_pool3d(x, size))


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (1, 16)])
def test_of_images(size):
    x = torch.randn(2, 3, 9, 16, dtype=torch.float64)
    torch.testing.assert_close(means(x, size), F.adaptive_avg_pool2d(x, size), rtol=0, atol=1e-12)
    assert torch.equal(maxima(x, size)[0], F.adaptive_max_pool2d(x, size))
