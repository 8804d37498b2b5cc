"""Convolutions of clips as convolutions of images, against torch's in float64, and where their zeros must be zeros."""

from __future__ import annotations

import contextlib
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from clipsight.backward.convolve import convolve, convolve_images, for_onnx
from clipsight.exporters import onnx

EXACT = pytest.mark.parametrize("exact", [True, False], ids=["exact", "four products"])


def random(*shape, seed=0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


@EXACT
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_images_give_what_clips_give(exact, data):
    """Any number of frames and taps, padding wider than the kernel."""
    kernel, size, padding = (
        data.draw(st.lists(st.integers(low, high), min_size=3, max_size=3)) for low, high in ((1, 4), (1, 7), (0, 3))
    )
    assume(all(n + 2 * p >= k for n, p, k in zip(size, padding, kernel, strict=True)))
    x, weight = random(2, 17, *size), random(16, 17, *kernel, seed=1)
    expected = F.conv3d(x, weight, padding=padding)
    with for_onnx(), mock.patch.object(F, "conv3d", side_effect=AssertionError("of clips")):
        ours = convolve(x, weight, padding=padding, exact=exact)
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= 1e-12 * expected.abs().max()


@EXACT
@pytest.mark.parametrize("kernel, padding", [((3, 3, 3), (1, 1, 1)), ((1, 3, 2), (0, 2, 0)), ((3, 1, 1), (0, 0, 0))])
def test_a_tracer_is_told_the_shape(exact, kernel, padding):
    x, weight = random(2, 17, 5, 6, 7), random(16, 17, *kernel, seed=1)
    expected = F.conv3d(x, weight, padding=padding)
    with FakeTensorMode() as fake:
        told = convolve_images(fake.from_tensor(x), fake.from_tensor(weight), list(padding), exact)
    assert (told.shape, told.dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"stride": (1, 2, 2), "padding": 1},
        {"dilation": 2},
        {"groups": 2},
        {"padding": "same"},
        {"padding": (2,), "dilation": (2,)},
        {"padding": (1, 0, 2)},
    ],
    ids=str,
)
def test_every_option_of_torch(options):
    x, weight = random(2, 32, 5, 7, 6), random(32, 32 // options.get("groups", 1), 3, 3, 3, seed=1)
    expected = F.conv3d(x, weight, **options)
    for context in (for_onnx(), contextlib.nullcontext()):
        with context:
            assert (convolve(x, weight, **options) - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_images_and_few_channels_are_left_alone():
    for x, weight in ((random(2, 16, 7, 6), random(16, 16, 3, 3)), (random(2, 3, 5, 7, 6), random(16, 3, 3, 3, 3))):
        with for_onnx():
            ours = convolve(x, weight, padding=1)
        assert torch.equal(ours, (F.conv3d if x.dim() == 5 else F.conv2d)(x, weight, padding=1))


def without_contributions(exact: bool) -> torch.Tensor:
    """What comes out of an exported file where no product is other than zero, beside products that are."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 8, 8, 8, generator=generator).clamp_min(0) * 1e6
    weight = torch.randn(16, 16, 3, 3, 3, generator=generator).clamp_min(0)
    weight[:, :, 1:] = 0  # every frame is made of the one before it,
    x[:, :, 3] = 0  # so that the first and the fifth are made of nothing

    class Convolve(torch.nn.Module):
        def forward(self, x):
            return convolve(x, weight, padding=1, exact=exact)

    session = pytest.importorskip("onnxruntime").InferenceSession(
        onnx.convert(Convolve(), (x,), ("y",), custom_translation_table=None).SerializeToString()
    )
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x[:1].numpy()})[0])
    products = F.conv3d(x[:1].double(), weight.double(), padding=1)
    assert (found - products).abs().max() <= 1e-6 * products.max()
    return found[products == 0]


def test_a_sum_of_zeros_is_zero_where_relevance_divides_by_it():
    silent = without_contributions(exact=True)
    assert len(silent) == 2 * 16 * 8 * 8
    assert not silent.any()
    # Negative control: this is what the other form is not for.
    assert without_contributions(exact=False).any()
