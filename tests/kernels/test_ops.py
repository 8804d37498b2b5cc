"""One tester for every op: dtype x layout x odd sizes x empty batch x threads against the twin in float64.

The allowed error is a small multiple of what the same formula in plain float32 torch loses; each bound has a control
that must break it. Masks may differ only where the derivative lies within 1e-4 sigma of its limit.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipsight import ops, reference
from helpers import unaligned

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
VOLUME = (-3, -2, -1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---- layouts --------------------------------------------------------------------------------------------------------


def contiguous(x):
    return x


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last_3d)


def permuted(x):
    """A view of [N, t, h, w, C], as transformers keep it."""
    return x.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)


def channel_slice(x):
    """Every other channel of a larger tensor: the positions stay dense, so it is read in place."""
    padded = x.new_full((x.shape[0], 2 * x.shape[1], *x.shape[2:]), torch.nan)
    padded[:, ::2] = x
    return padded[:, ::2]


def window(x):
    """A crop of a larger volume, with NaN around it: needs a copy."""
    padded = x.new_full((*x.shape[:2], *(n + 2 for n in x.shape[2:])), torch.nan)
    padded[..., 1:-1, 1:-1, 1:-1] = x
    return padded[..., 1:-1, 1:-1, 1:-1]


def transposed(x):
    return x.mT.contiguous().mT


def off_by_a_byte(x):
    """A view of NumPy's memory between its elements, for which torch has no bfloat16."""
    return x if x.dtype == torch.bfloat16 else torch.from_numpy(unaligned(x.numpy()))


LAYOUTS = [contiguous, channels_last, permuted, channel_slice, window, transposed, off_by_a_byte]
GRIDS = [(2, 67, 3, 5, 7), (1, 1, 1, 1, 1), (3, 16, 1, 7, 4), (2, 5, 4, 1, 9), (0, 4, 2, 3, 3)]
SIZES = {
    (3, 5, 7): (9, 23, 37),
    (1, 1, 1): (4, 5, 6),
    (1, 7, 4): (1, 3, 19),
    (4, 1, 9): (7, 8, 65),
    (2, 3, 3): (3, 5, 5),
}


def assert_accurate(op, *arguments, k=4.0, **options):
    """ops.<op> against the float64 twin: at most k times what the float32 twin loses, plus one rounding for
    each of three axes (the twin is exact where a grid point meets a sample) and that of the storage type."""
    got = getattr(ops, op)(*arguments, **options)
    twin = getattr(reference, op)
    exact = twin(*(x.double() if isinstance(x, torch.Tensor) else x for x in arguments), **options)
    plain = twin(*(x.float() if isinstance(x, torch.Tensor) else x for x in arguments), **options)
    assert got.shape == exact.shape
    if got.numel() == 0:
        return
    largest = exact.abs().max()
    roundings = 3 * torch.finfo(torch.float32).eps + torch.finfo(got.dtype).eps
    bound = k * (plain - exact).abs().max() + roundings * largest
    error = (got.double() - exact).abs().max()
    assert error <= bound, f"{op}: error {error:.2e} above {bound:.2e}"


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_channel_reduce(dtype, layout, grid, threads):
    features, n, c = layout(torch.randn(grid).to(dtype)), *grid[:2]
    for weight in (torch.randn(3, c), torch.randn(n, 2, c), torch.randn(c, 2).mT, torch.randn(0, c)):
        assert_accurate("channel_reduce", features, weight)
        assert_accurate("channel_reduce", features, weight, threshold=0.2)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", [contiguous, channels_last, window, transposed])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_plain_volume_ops(dtype, layout, grid, threads):
    volume = layout(torch.randn(grid).to(dtype))
    for order in (1, 3):
        assert_accurate("spline_upsample", volume, SIZES[grid[2:]], order)
        assert_accurate("spline_upsample", volume, (2, 1, 3), order)
    for padding in ("replicate", "zeros"):
        assert_accurate("sobel_temporal", volume, padding)


@pytest.mark.parametrize("op", ["spline_upsample", "sobel_temporal", "channel_reduce"])
def test_accuracy_control(op, monkeypatch):
    """The bound catches a relative error of 1e-5, far below that of sums in half precision."""
    real, volume = getattr(ops, op), torch.randn(2, 3, 5, 6, 7)
    argument = {"spline_upsample": (9, 9, 9), "sobel_temporal": "zeros", "channel_reduce": torch.randn(4, 3)}[op]
    assert_accurate(op, volume, argument)
    monkeypatch.setattr(ops, op, lambda *arguments: real(*arguments) * (1 + 1e-5))
    with pytest.raises(AssertionError, match="above"):
        assert_accurate(op, volume, argument)


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5), (2, 1, 3, 3, 4, 5)])
def test_any_leading_axes(shape):
    volume = torch.randn(shape)
    assert_accurate("spline_upsample", volume, (5, 6, 7))
    assert_accurate("sobel_temporal", volume)
    motion, share = ops.selective_relevance(volume)
    assert motion.shape == shape
    assert share.shape == shape[:-3]


# ---- selection ------------------------------------------------------------------------------------------------------


def undecided(raw, n_sigma, padding="replicate", sigma_of="signed", sign="abs"):
    """Voxels that lie within 1e-4 sigma of the limit, from the raw map in float64."""
    g = reference.sobel_temporal(raw, padding)
    sigma = (g.abs() if sigma_of == "abs" else g).std(VOLUME, keepdim=True)
    distance = {"abs": g.abs(), "rising": g, "falling": -g}[sign] - n_sigma * sigma
    return distance.abs() < 1e-4 * sigma


def assert_same_selection(got, got_share, exact, exact_share, unsure, tolerance):
    assert got.shape == exact.shape
    differs = (got.double() - exact).abs() > tolerance
    assert not (differs & ~unsure).any()
    assert differs.sum() <= 1e-3 * differs.numel()
    torch.testing.assert_close(got_share.double(), exact_share.double(), atol=1e-4, rtol=0)


RULES = [
    {"n_sigma": 2.0},
    {"n_sigma": 1.0, "padding": "zeros", "sign": "rising"},
    {"n_sigma": 0.5, "sign": "falling", "sigma_of": "abs"},
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("layout", [contiguous, window, transposed])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_selective_relevance(dtype, layout, rule, threads):
    volume = layout(reference.spline_upsample(torch.randn(2, 3, 3, 5, 4), (7, 33, 21)).to(dtype))
    exact, exact_share = reference.selective_relevance(volume.float(), **rule)
    if dtype == torch.bfloat16:  # its noise floor is 0.25 max|R|: higher than this motion in some maps
        exact, exact_share = reference.selective_relevance(volume, **rule)
    motion, share = ops.selective_relevance(volume, **rule)
    assert motion.dtype == dtype
    assert share.dtype == torch.float32
    unsure = undecided(volume.double(), **rule)
    assert_same_selection(motion, share, exact.double(), exact_share, unsure, torch.finfo(dtype).eps * 8)


def test_prescale_changes_only_maps_with_negative_values():
    volume = torch.stack([torch.rand(5, 9, 8), torch.randn(5, 9, 8)])
    rule = {"padding": "zeros", "sign": "falling", "prescale": True}
    motion, share = ops.selective_relevance(volume, **rule)
    exact, exact_share = reference.selective_relevance(volume.double(), **rule)
    torch.testing.assert_close(motion.double(), exact, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(share.double(), exact_share, atol=1e-6, rtol=0)
    plain, _ = ops.selective_relevance(volume, **rule | {"prescale": False})
    assert torch.equal(plain[0], motion[0])
    assert not torch.equal(plain[1], motion[1])


TUBES = [
    {},
    {"threshold": 0.1, "relu": True, "normalize": "frame"},
    {"order": 1, "normalize": "none"},
]


@pytest.mark.parametrize("options", TUBES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_saliency_tube(grid, layout, options, threads):
    features, weight, size = layout(torch.randn(grid)), torch.randn(2, grid[1]), SIZES[grid[2:]]
    assert_accurate("saliency_tube", features, weight, size, **options, k=8)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("options", TUBES, ids=str)
@pytest.mark.parametrize("feature_dtype", FLOATS, ids=str)
def test_selective_tube(feature_dtype, options, rule, threads):
    features, weight, size = torch.randn(2, 19, 3, 5, 7).to(feature_dtype), torch.randn(2, 2, 19), (9, 41, 37)
    exact = reference.selective_tube(features.double(), weight.double(), size, **options, **rule)
    tube, motion, share = ops.selective_tube(features, weight, size, **options, **rule)
    torch.testing.assert_close(tube, ops.saliency_tube(features, weight, size, **options))
    tolerance = 1e-5 * exact[0].abs().max()
    assert (tube - exact[0]).abs().max() <= tolerance
    cam = reference.channel_reduce(features.double(), weight.double(), options.get("threshold"))
    raw = reference.spline_upsample(cam.relu() if options.get("relu") else cam, size, options.get("order", 3))
    assert_same_selection(motion, share, exact[1], exact[2], undecided(raw, **rule), tolerance)
    assert (share > 0).all()


@pytest.mark.parametrize("shape", [(1,), (3,), (3, 2)], ids=str)
def test_n_sigma_as_data(shape, threads):
    """A value per sample or per map selects what the same number selects in that map alone."""
    features, weight, size = torch.randn(3, 19, 3, 5, 7), torch.randn(3, 2, 19), (5, 21, 17)
    n_sigma = torch.linspace(0.5, 3, 6)[: np.prod(shape)].reshape(shape)
    _, motion, share = ops.selective_tube(features, weight, size, n_sigma=n_sigma)
    raw = ops.saliency_tube(features, weight, size, normalize="none")
    kept, kept_share = ops.selective_relevance(raw, n_sigma=n_sigma)
    per_map = n_sigma.reshape(*shape, *(1 for _ in range(2 - len(shape)))).expand(3, 2)
    for n in range(3):
        for m in range(2):
            one, row = features[n : n + 1], weight[n : n + 1, m : m + 1]
            alone = ops.selective_tube(one, row, size, n_sigma=per_map[n, m].item())
            assert torch.equal(motion[n, m], alone[1][0, 0])
            assert torch.equal(share[n, m], alone[2][0, 0])
            alone = ops.selective_relevance(raw[n, m], n_sigma=per_map[n, m].item())
            assert torch.equal(kept[n, m], alone[0])
            assert torch.equal(kept_share[n, m], alone[1])
    twin = reference.selective_tube(features, weight, size, n_sigma=n_sigma)
    torch.testing.assert_close(share, twin[2], atol=1e-4, rtol=0)
    torch.testing.assert_close(kept_share, reference.selective_relevance(raw, n_sigma)[1], atol=1e-4, rtol=0)
    assert len(share.unique()) == 6


def test_n_sigma_as_data_that_is_no_threshold_selects_nothing():
    features, weight = torch.randn(3, 5, 2, 4, 4), torch.randn(1, 5)
    n_sigma = torch.tensor([-1.0, torch.nan, 1.0])
    for selective in (ops.selective_tube, reference.selective_tube):
        _, motion, share = selective(features, weight, (4, 9, 9), n_sigma=n_sigma)
        assert not motion[:2].any()
        assert not share[:2].any()
        assert motion[2].any()


def test_selection_control():
    """Another n sigma is seen as another selection."""
    volume = torch.randn(1, 5, 9, 9)
    (got, share), (exact, _) = ops.selective_relevance(volume, 2.0), reference.selective_relevance(volume, 2.1)
    with pytest.raises(AssertionError):
        assert_same_selection(got, share, exact.double(), share, undecided(volume.double(), 2.0), 1e-6)


@pytest.mark.parametrize("normalize", ["clip", "frame"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8], ids=str)
def test_narrow_outputs_are_the_rounded_float32_ones(dtype, normalize, threads):
    features, weight, size = torch.randn(2, 6, 2, 5, 7), torch.randn(3, 6), (5, 31, 33)
    exact = ops.selective_tube(features, weight, size, normalize=normalize)
    narrow = ops.selective_tube(features, weight, size, normalize=normalize, dtype=dtype)
    alone = ops.saliency_tube(features, weight, size, normalize=normalize, dtype=str(dtype).removeprefix("torch."))
    assert torch.equal(alone, narrow[0])
    for got, wide in zip(narrow[:2], exact[:2], strict=True):
        assert got.dtype == dtype
        rounded = (wide * 255).round().to(dtype) if dtype == torch.uint8 else wide.to(dtype)
        assert torch.equal(got, rounded)
    assert torch.equal(narrow[2], exact[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8], ids=str)
def test_out_is_written_in_place(dtype):
    features, weight, size = torch.randn(2, 6, 2, 5, 7), torch.randn(3, 6), (5, 9, 8)
    expected = ops.selective_tube(features, weight, size, dtype=dtype)
    out = tuple(torch.empty_like(x) for x in expected)
    result = ops.selective_tube(features, weight, size, dtype=dtype, out=out)
    for got, given, right in zip(result, out, expected, strict=True):
        assert got is given
        assert torch.equal(got, right)
    tube = torch.empty_like(expected[0])
    assert ops.saliency_tube(features, weight, size, dtype=dtype, out=tube) is tube
    assert torch.equal(tube, expected[0])


# ---- outside oracle and closed forms --------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("size", [(16, 112, 112), (5, 11, 3), (4, 7, 7), (1, 1, 1), (3, 26, 50)], ids=str)
def test_spline_upsample_is_scipy_zoom(size, order):
    ndimage = pytest.importorskip("scipy.ndimage")
    volume = torch.randn(4, 7, 7)
    factors = [m / n for m, n in zip(size, volume.shape, strict=True)]
    expected = ndimage.zoom(volume.numpy().astype(np.float64), factors, order=order, mode="mirror")
    got = ops.spline_upsample(volume, size, order).numpy()
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_linear_ramp_in_time():
    slope = 0.25
    ramp = (slope * torch.arange(6.0)).view(6, 1, 1).expand(6, 5, 4)
    g = ops.sobel_temporal(ramp)
    assert torch.equal(g[1:-1], torch.full((4, 5, 4), 32 * slope))
    assert torch.equal(g[[0, -1]], torch.full((2, 5, 4), 16 * slope))


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_still_clip_selects_nothing(offset):
    still = (torch.randn(1, 1, 9, 8) + offset).expand(1, 6, 9, 8)
    motion, share = ops.selective_relevance(still)
    assert motion.count_nonzero() == 0
    assert share.item() == 0
    assert ops.selective_relevance(still, n_sigma=1, padding="zeros")[0].count_nonzero() > 0
    features = (torch.randn(1, 4, 1, 5, 5) + offset).expand(1, 4, 3, 5, 5)
    for single in (features, features[:, :, :1]):
        _, motion, share = ops.selective_tube(features=single, weight=torch.rand(2, 4), size=(8, 20, 20))
        assert motion.count_nonzero() == 0
        assert share.count_nonzero() == 0


def test_mask_ignores_offset_and_scale():
    features, weight, size = torch.randn(1, 3, 4, 5, 5), torch.ones(1, 3), (16, 40, 40)
    _, motion, _ = ops.selective_tube(features, weight, size)
    _, moved, _ = ops.selective_tube(8 * features + 3, weight, size)
    assert ((motion != 0) != (moved != 0)).float().mean() < 1e-3


@pytest.mark.parametrize("value", [0.0, 3.0, -1e8, 1e-30])
@pytest.mark.parametrize("normalize", ["clip", "frame"])
def test_constant_map_is_zero(value, normalize):
    features = torch.full((1, 2, 2, 3, 3), value)
    for result in ops.selective_tube(features, torch.ones(1, 2), (5, 7, 9), normalize=normalize):
        assert result.count_nonzero() == 0


def test_a_frame_of_rounding_noise_is_constant(threads):
    """relu empties the first frame of the cam: what up-sampling leaves there, about 1e-17, must not be scaled up."""
    features, weight, size = torch.randn(1, 1, 4, 7, 7).abs(), torch.ones(1, 1), (16, 29, 43)
    features[:, :, 0] *= -1
    noise = ops.saliency_tube(features, weight, size, relu=True, normalize="none")[0, 0, 0].abs().max()
    assert 0 < noise < 1e-15
    exact = reference.saliency_tube(features.double(), weight, size, relu=True, normalize="frame")
    tube, motion, _ = ops.selective_tube(features, weight, size, relu=True, normalize="frame")
    for result in (tube, motion, exact):
        assert result[0, 0, 0].count_nonzero() == 0
    assert (tube[0, 0, 1:].amax((-2, -1)) == 1).all()
    torch.testing.assert_close(tube.double(), exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("order", [1, 3])
def test_a_broken_map_is_nan_and_alone(value, order, threads):
    features, weight, size = torch.randn(3, 8, 2, 4, 4), torch.randn(2, 8), (4, 17, 19)
    weight[:, 2] = -5.0  # gated off: the map shows what is broken all the same
    clean = ops.selective_tube(features, weight, size, 0.0, order)
    features[1, 2, 0, 3, 3] = value
    got = ops.selective_tube(features, weight, size, 0.0, order)
    for result, right in zip(got, clean, strict=True):
        assert result[1].isnan().all()
        assert torch.equal(result[[0, 2]], right[[0, 2]])
    narrow = ops.selective_tube(features, weight, size, 0.0, order, dtype=torch.uint8)
    assert narrow[0][1].count_nonzero() == narrow[1][1].count_nonzero() == 0
    volume = torch.randn(2, 3, 4, 5)
    volume[0, 1, 2, 3] = value
    motion, share = ops.selective_relevance(volume)
    assert motion[0].isnan().all()
    assert share[0].isnan()
    assert motion[1].isfinite().all()


# ---- large ----------------------------------------------------------------------------------------------------------


@pytest.mark.large
def test_more_than_2_to_the_31_voxels():
    """Linear up-sampling whose grid holds every sample: minimum and maximum are those of the cam."""
    size = (2056, 1025, 1025)
    assert np.prod(size) > 2**31
    features, weight = torch.randn(1, 2, 2, 3, 3), torch.randn(1, 2)
    tube = ops.saliency_tube(features, weight, size, order=1, dtype=torch.uint8)
    cam = reference.channel_reduce(features, weight).double()[0, 0]
    low, high = cam.min(), cam.max()
    matrices = [reference.basis(m, n, 1) for m, n in zip(cam.shape, size, strict=True)]
    for frame in (0, 1027, 2047, 2055):  # voxel 2^31 lies in frame 2044
        raw = reference.separable(cam, matrices[0][frame : frame + 1], *matrices[1:])[0]
        exact = 255 * (raw - low) / (high - low)
        assert (tube[0, 0, frame] - exact).abs().max() < 0.501
    assert tube[0, 0, -1].float().std() > 1
