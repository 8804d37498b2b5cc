"""The plain-torch twins against closed forms, scipy and themselves: everything else is measured against them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from clipsight import reference

ndimage = pytest.importorskip("scipy.ndimage")


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("n_in", range(1, 10))
def test_basis_is_scipy_zoom(order, n_in):
    rng = np.random.default_rng(n_in)
    for n_out in range(1, 41):
        signal = rng.normal(size=n_in)
        expected = ndimage.zoom(signal, n_out / n_in, order=order, mode="mirror")
        assert len(expected) == n_out
        np.testing.assert_allclose(reference.basis(n_in, n_out, order) @ signal, expected, atol=1e-12)


def test_basis_is_not_scipy_with_another_border():
    signal = np.random.default_rng(0).normal(size=5)
    other = ndimage.zoom(signal, 4, order=3, mode="nearest")
    assert np.abs(reference.basis(5, 20, 3) @ signal - other).max() > 1e-2


@pytest.mark.parametrize("order", [1, 3])
def test_basis_interpolates_and_keeps_constants(order):
    for n in range(1, 8):
        np.testing.assert_allclose(reference.basis(n, n, order), np.eye(n), atol=1e-14)
        np.testing.assert_allclose(reference.basis(n, 3 * n + 1, order).sum(1), 1, atol=1e-14)


def test_basis_reproduces_a_cubic_away_from_the_ends():
    polynomial = np.poly1d([0.3, -1.0, 0.5, 2.0])
    x = np.linspace(-2, 2, 41)
    y = np.linspace(-2, 2, 161)
    inside = np.abs(y) < 0.5  # the mirrored ends are forgotten as 0.27^samples
    error = np.abs(reference.basis(41, 161, 3) @ polynomial(x) - polynomial(y))[inside].max()
    assert error < 1e-8
    assert np.abs(reference.basis(41, 161, 1) @ polynomial(x) - polynomial(y))[inside].max() > 1e-3


def test_unknown_order_is_an_error():
    with pytest.raises(ValueError, match="spline_upsample: order must be 1 or 3, got 2"):
        reference.basis(4, 8, 2)


@pytest.mark.parametrize("padding", ["replicate", "zeros"])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 1, 3), (5, 6, 7)])
def test_sobel_is_scipy_correlation(padding, size):
    volume = torch.randn(size, dtype=torch.float64)
    kernel = np.einsum("t,h,w->thw", [-1, 0, 1], [1, 2, 1], [1, 2, 1])
    mode = {"replicate": "nearest", "zeros": "constant"}[padding]
    expected = ndimage.correlate(volume.numpy(), kernel, mode=mode)
    np.testing.assert_allclose(reference.sobel_temporal(volume, padding), expected, atol=1e-12)
    matrices = [reference.stencil(n, taps, padding) for n, taps in zip(size, reference.SOBEL, strict=True)]
    np.testing.assert_allclose(reference.separable(volume, *matrices), expected, atol=1e-12)


def test_channel_reduce_gates_weights_below_the_threshold():
    features = torch.randn(2, 5, 2, 3, 4)
    weight = torch.tensor([[0.1, 0.5, -1.0, 0.3, 0.2]])
    kept = (features[:, [1, 3]] * torch.tensor([0.5, 0.3]).view(1, 2, 1, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(reference.channel_reduce(features, weight, threshold=0.3), kept)
    features[0, 2] = torch.nan  # a gated-off channel still shows that it is broken
    assert reference.channel_reduce(features, weight, threshold=0.3)[0].isnan().all()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


RULES = [
    {},
    {"padding": "zeros", "sign": "falling"},
    {"sigma_of": "abs", "sign": "rising", "n_sigma": 1.0},
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_selective_tube_is_the_composition_of_the_plain_ops(rule):
    """The QR form of sigma and the separable Sobel against the obvious chain, in float64."""
    features, weight = torch.randn(2, 6, 3, 4, 5).double(), torch.randn(3, 6).double()
    size = (9, 16, 21)
    raw = reference.spline_upsample(reference.channel_reduce(features, weight), size)
    expected, expected_share = reference.selective_relevance(raw, **rule)
    tube, motion, share = reference.selective_tube(features, weight, size, **rule)
    low, high = raw.amin((-3, -2, -1), True), raw.amax((-3, -2, -1), True)
    torch.testing.assert_close(tube, (raw - low) / (high - low))
    torch.testing.assert_close(motion, torch.where(expected != 0, tube, 0.0))
    torch.testing.assert_close(share, expected_share)
    assert 0 < share.min() < share.max() < 1


def test_sigma_survives_a_large_offset():
    """A motion that is 1e-3 of the map: the quadratic form of a Gram matrix loses it in float32, ours does not."""
    still, moving = torch.randn(1, 4, 1, 5, 6).expand(-1, -1, 4, -1, -1), torch.randn(1, 4, 4, 5, 6)
    features, weight, size = 100 + still + 0.1 * moving, torch.rand(1, 4) + 1, (16, 30, 36)
    share = reference.selective_tube(features, weight, size)[2].item()
    exact = reference.selective_tube(features.double(), weight.double(), size)[2].item()
    assert exact > 0.01
    assert share == pytest.approx(exact, rel=2e-3)

    matrices = reference.sobel_basis((4, 5, 6), size, 3, "replicate")
    squares = {}
    for dtype in (torch.float32, torch.float64):
        cam = reference.channel_reduce(features.to(dtype), weight)
        squares[dtype] = (cam * reference.separable(cam, *(A.T @ A for A in matrices))).sum().item()
    assert abs(squares[torch.float32] / squares[torch.float64] - 1) > 1e-2


@pytest.mark.parametrize("frames", [3, 16, 21])
@pytest.mark.parametrize("scale", [1e-30, 1, 1e30])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_selective_relevance_in_float32_at_every_scale(rule, scale, frames):
    """Sigma against the definition in float64, of maps whose squares float32 cannot hold."""
    volume = torch.randn(2, frames, 9, 11)
    g = reference.sobel_temporal(volume.double(), rule.get("padding", "replicate"))
    sigma = (g.abs() if "sigma_of" in rule else g).std((-3, -2, -1), keepdim=True)
    beyond = {"abs": g.abs(), "rising": g, "falling": -g}[rule.get("sign", "abs")] / sigma - rule.get("n_sigma", 2.0)
    motion, share = reference.selective_relevance(scale * volume, **rule)
    assert beyond.abs().min() > 1e-5  # no voxel on the border
    assert torch.equal(motion != 0, beyond > 0)
    assert not torch.equal(motion != 0, beyond > 0.1)
    torch.testing.assert_close(
        share.double(), (volume.abs() * (beyond > 0)).sum((1, 2, 3)) / volume.abs().sum((1, 2, 3)), check_dtype=False
    )


@pytest.mark.parametrize("normalize", ["clip", "frame"])
def test_normalised_maps_fill_the_unit_interval_exactly(normalize):
    tube = reference.saliency_tube(torch.randn(1, 8, 3, 5, 5), torch.randn(7, 8), (9, 31, 33), normalize=normalize)
    axes = (-3, -2, -1) if normalize == "clip" else (-2, -1)
    assert (tube.amin(axes) == 0).all()
    assert (tube.amax(axes) == 1).all()


def test_trace_holds_the_matrices_and_takes_other_batches():
    weight = torch.randn(2, 6)

    def head(features):
        return reference.selective_tube(features, weight, (5, 12, 13), sigma_of="abs", dtype="uint8")

    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(head, torch.randn(1, 6, 2, 4, 5), check_trace=False)
    features = torch.randn(3, 6, 2, 4, 5)
    for got, expected in zip(traced(features), head(features), strict=True):
        torch.testing.assert_close(got, expected)
