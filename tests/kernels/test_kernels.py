"""The CPU kernels through the torch-free NumPy module: every op at every SIMD level here, against float64."""

import itertools

import numpy as np
import pytest

from helpers import unaligned

kernels = pytest.importorskip("clipsight._kernels", reason="the native module is not built")
ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is not installed")

LEVELS = kernels.build_info()["simd_levels"]
EPS = np.finfo(np.float32).eps
ORDERS = [3, 1]
RULES = list(itertools.product(["replicate", "zeros"], ["abs", "rising", "falling"], ["signed", "abs"]))

every_level = pytest.mark.parametrize("level", LEVELS)


def rng(seed=0):
    return np.random.default_rng(seed)


def normal(*shape, seed=0):
    return rng(seed).standard_normal(shape).astype(np.float32)


# ---- float64 oracles ----


def basis(n_in, n_out, order):
    """scipy's own spline, sampled on the align-corners grid, as a matrix [n_out, n_in]."""
    grid = np.arange(n_out) * ((n_in - 1) / max(n_out - 1, 1))
    if n_in == 1:
        return np.ones((n_out, 1))
    return np.stack([ndimage.map_coordinates(e, [grid], order=order, mode="mirror") for e in np.eye(n_in)], axis=1)


def upsample(volume, size, order=3):
    volume = np.asarray(volume, np.float64)
    t, h, w = (basis(n, m, order) for n, m in zip(volume.shape[-3:], size, strict=True))
    return np.einsum("Tt,Hh,Ww,...thw->...THW", t, h, w, volume, optimize=True)


def sobel(volume, padding="replicate"):
    options = {"mode": "nearest" if padding == "replicate" else "constant"}
    g = ndimage.correlate1d(np.asarray(volume, np.float64), [-1, 0, 1], axis=-3, **options)
    g = ndimage.correlate1d(g, [1, 2, 1], axis=-2, **options)
    return ndimage.correlate1d(g, [1, 2, 1], axis=-1, **options)


def mask_of(raw, n_sigma=2.0, padding="replicate", sign="abs", sigma_of="signed", floor=1e-5):
    """The mask of one raw map [T,H,W], and how far each voxel is from the threshold in sigmas."""
    g = sobel(raw, padding)
    sigma = np.std(np.abs(g) if sigma_of == "abs" else g, ddof=1)
    if sigma < floor * np.abs(raw).max():
        return np.zeros(g.shape, bool), np.full(g.shape, np.inf)
    side = {"abs": np.abs(g), "rising": g, "falling": -g}[sign]
    return side > n_sigma * sigma, np.abs(side - n_sigma * sigma) / max(sigma, 1e-300)


def minmax(raw, axes=(-3, -2, -1)):
    low, high = raw.min(axes, keepdims=True), raw.max(axes, keepdims=True)
    constant = high - low <= 1e-6 * np.abs(raw).max((-3, -2, -1), keepdims=True)
    return np.where(constant, 0, (raw - low) / np.where(constant, 1, high - low))


def half_bits(x, dtype):
    """float32 -> (array to pass, keyword, the exact values it stands for)."""
    if dtype == "float32":
        return x, {}, x
    if dtype == "float16":
        return x.astype(np.float16), {}, x.astype(np.float16)
    bits = (x.view(np.uint32) >> 16).astype(np.uint16)
    return bits, {"bfloat16": True}, (bits.astype(np.uint32) << 16).view(np.float32)


def shifted(x):
    """The same array one element into a larger buffer: aligned to its item only."""
    buffer = np.full(x.size + 1, np.nan if x.dtype.kind == "f" else 0, x.dtype)
    view = buffer[1:].reshape(x.shape)
    view[...] = x
    return view


# ---- channel_reduce ----


@every_level
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "c, grid, maps", [(1, (1, 1, 1), 1), (33, (2, 3, 5), 5), (257, (1, 7, 7), 2), (70, (3, 5, 9), 3)]
)
def test_channel_reduce(level, dtype, channels_last, c, grid, maps):
    x, keyword, values = half_bits(normal(2, c, *grid), dtype)
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    x = np.moveaxis(shifted(last), -1, 1) if channels_last else shifted(x)
    for weight in (normal(maps, c, seed=1), normal(2, maps, c, seed=2)):
        for threshold in (None, 0.3):
            gated = weight if threshold is None else np.where(weight < np.float32(threshold), 0, weight)
            each = gated if weight.ndim == 3 else np.broadcast_to(gated, (2, maps, c))
            expected = np.einsum("nmc,ncthw->nmthw", each.astype(np.float64), values.astype(np.float64))
            scale = np.einsum("nmc,ncthw->nmthw", np.abs(each), np.abs(values).astype(np.float64))
            got = kernels.channel_reduce(x, weight, threshold, level=level, **keyword)
            assert got.dtype == np.float32
            assert got.shape == expected.shape
            np.testing.assert_array_less(np.abs(got - expected), 4 * EPS * scale + 1e-30)


@every_level
@pytest.mark.parametrize("channels_last", [False, True])
def test_channel_reduce_is_more_accurate_than_a_float32_product(level, channels_last):
    x, weight = normal(1, 2048, 4, 7, 7), normal(1, 2048, seed=1)
    if channels_last:
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    exact = np.einsum("mc,ncthw->nmthw", weight.astype(np.float64), x.astype(np.float64))
    plain = np.abs(np.einsum("mc,ncthw->nmthw", weight, x, optimize=True) - exact)
    ours = np.abs(kernels.channel_reduce(x, weight, level=level) - exact)
    assert np.sqrt(np.mean(ours**2)) <= np.sqrt(np.mean(plain**2))


@every_level
def test_gate_keeps_equal_weights_and_lets_nan_through(level):
    x, weight = (
        np.ones((1, 3, 1, 1, 2), np.float32),
        np.array([[0.5, 0.25, np.nextafter(np.float32(0.5), np.float32(0))]], np.float32),
    )
    assert (kernels.channel_reduce(x, weight, 0.5, level=level) == 0.5).all()
    x[0, 1, 0, 0, 1] = np.nan  # in a channel that the gate closes
    cam = kernels.channel_reduce(x, weight, 0.5, level=level)[0, 0, 0, 0]
    assert cam[0] == 0.5
    assert np.isnan(cam[1])


@every_level
def test_layouts_without_a_kernel_are_copied(level):
    x = normal(2, 6, 4, 3, 8)[:, ::2, ::2, :, ::-1]
    expected = np.einsum("mc,ncthw->nmthw", np.ones((1, 3)), x.astype(np.float64))
    np.testing.assert_allclose(kernels.channel_reduce(x, np.ones((1, 3), np.float32), level=level), expected, atol=1e-6)


def read_only(x):
    x = x.copy()
    x.setflags(write=False)
    return x


@pytest.mark.parametrize("layout", [unaligned, read_only, np.asfortranarray, lambda x: x[::-1].copy()[::-1]])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_arrays_as_they_lie_in_memory(layout, dtype):
    """`make sanitize` would see a value that is read from between two elements."""
    x, keyword, _ = half_bits(normal(2, 5, 3, 4, 3), dtype)
    last, weight, volume = np.moveaxis(x, 1, -1).copy(), normal(2, 3, 5, seed=1), normal(2, 4, 5, 6)
    kernel, selected = x.reshape(6, -1)[:, :10].copy(), normal(2, 2, 6) > 0
    for op, arguments, options in (
        (kernels.channel_reduce, (x, weight), keyword),
        (lambda x, *rest, **o: kernels.channel_reduce(np.moveaxis(x, -1, 1), *rest, **o), (last, weight), keyword),
        (lambda *a, **o: kernels.selective_tube(*a, (5, 6, 7), **o), (x, weight), keyword),
        (lambda v: kernels.spline_upsample(v, (5, 6, 7)), (volume,), {}),
        (kernels.sobel_temporal, (volume,), {}),
        (kernels.selective_relevance, (volume,), {}),
        (lambda *a, **o: kernels.back_step(*a, 0.5, **o), (normal(2, 10), kernel, selected), keyword),
    ):
        expected, got = op(*arguments, **options), op(*map(layout, arguments), **options)
        for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)  # a copy is added up in another order


@every_level
def test_half_precision_bits_are_all_read_right(level):
    bits = np.arange(65536, dtype=np.uint16)
    x = bits.view(np.float16)
    got = kernels.channel_reduce(x.reshape(1, 1, 1, 256, 256), np.ones((1, 1), np.float32), level=level).ravel()
    np.testing.assert_array_equal(got[np.isfinite(x)], x[np.isfinite(x)].astype(np.float32))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(x))
    np.testing.assert_array_equal(np.isinf(got), np.isinf(x))


# ---- spline_upsample ----


@every_level
@pytest.mark.parametrize("order", ORDERS)
def test_spline_upsample_equals_scipy_on_one_axis(level, order):
    for n_in, n_out in itertools.product(range(1, 10), range(1, 41)):
        x = normal(n_in, seed=n_in)
        expected = basis(n_in, n_out, order) @ x.astype(np.float64)
        for axis in range(3):
            shape, size = [1, 1, 1], [1, 1, 1]
            shape[axis], size[axis] = n_in, n_out
            got = kernels.spline_upsample(x.reshape(shape), size, order, level=level).ravel()
            scale = max(np.abs(expected).max(), np.abs(x).max())  # one output alone can be a small difference
            assert np.abs(got - expected).max() <= 1e-6 * scale, (n_in, n_out, axis)


@every_level
@pytest.mark.parametrize("order", ORDERS)
def test_spline_upsample_equals_scipy_zoom(level, order):
    x = normal(2, 4, 7, 7)
    for size in [(16, 56, 56), (5, 9, 33), (2, 3, 40), (4, 7, 7), (8, 28, 21)]:
        expected = np.stack(
            [ndimage.zoom(v.astype(np.float64), np.divide(size, v.shape), order=order, mode="mirror") for v in x]
        )
        got = kernels.spline_upsample(x, size, order, level=level)
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() <= 1e-6 * np.abs(expected).max()
    # Negative control: another extension is seen.
    other = ndimage.zoom(x[0].astype(np.float64), (4, 8, 8), order=3, mode="nearest")
    assert np.abs(kernels.spline_upsample(x[0], (16, 56, 56), level=level) - other).max() > 1e-3


@every_level
@pytest.mark.parametrize(
    "size_in, size_out", [((3, 5, 20), (7, 11, 45)), ((9, 40, 70), (4, 6, 11)), ((1, 1, 2), (3, 2, 1))]
)
def test_spline_upsample_awkward_sizes_and_offsets(level, size_in, size_out):
    x = shifted(normal(2, 3, *size_in))
    expected = upsample(x, size_out)
    np.testing.assert_allclose(
        kernels.spline_upsample(x, size_out, level=level), expected, atol=1e-6 * np.abs(expected).max()
    )


@every_level
def test_spline_reproduces_its_own_space(level):
    """Linear in every axis away from the mirrored ends, and exact at the samples."""
    t, h, w = np.meshgrid(np.arange(33.0), np.arange(3.0), np.arange(3.0), indexing="ij")
    fine = np.arange(129) / 4
    cubic = np.linspace(-1, 1, 33) ** 3
    got = kernels.spline_upsample((t * 0 + cubic[:, None, None]).astype(np.float32), (129, 3, 3), level=level)[
        40:89, 1, 1
    ]
    np.testing.assert_allclose(got, (fine[40:89] / 16 - 1) ** 3, atol=2e-6)
    ramp = kernels.spline_upsample((t + h + w).astype(np.float32), (129, 3, 3), level=level)
    np.testing.assert_allclose(ramp[40:89, 1, 1], fine[40:89] + 2, atol=1e-5)
    np.testing.assert_allclose(ramp[::4], t + h + w, atol=1e-4)


# ---- sobel_temporal and selective_relevance ----


@every_level
@pytest.mark.parametrize("padding", ["replicate", "zeros"])
@pytest.mark.parametrize("shape", [(2, 5, 7, 19), (1, 1, 4, 4), (3, 2, 1, 1), (4, 1, 33)])
def test_sobel_temporal(level, padding, shape):
    x = shifted(normal(*shape))
    expected = np.stack([sobel(v, padding) for v in x.reshape(-1, *shape[-3:])]).reshape(shape)
    np.testing.assert_allclose(
        kernels.sobel_temporal(x, padding, level=level), expected, atol=32 * EPS * np.abs(x).max()
    )


@every_level
def test_sobel_of_a_linear_ramp_in_time(level):
    ramp = np.broadcast_to(np.arange(6, dtype=np.float32)[:, None, None], (6, 4, 5))
    g = kernels.sobel_temporal(ramp, level=level)
    assert (g[1:-1] == 32).all()
    assert (g[[0, -1]] == 16).all()
    assert (kernels.sobel_temporal(np.ones((3, 4, 5), np.float32), level=level) == 0).all()


@every_level
@pytest.mark.parametrize("padding, sign, sigma_of", RULES)
def test_selective_relevance(level, padding, sign, sigma_of):
    x = shifted(normal(2, 5, 9, 21))
    x[1] += 0.5
    motion, share = kernels.selective_relevance(x, 1.5, padding, sign, sigma_of, level=level)
    for n in range(2):
        mask, distance = mask_of(x[n], 1.5, padding, sign, sigma_of)
        sure = distance > 1e-4
        assert sure.mean() > 0.99
        np.testing.assert_array_equal(motion[n][sure], np.where(mask, x[n], 0)[sure])
        expected = np.abs(x[n] * mask).sum(dtype=np.float64) / np.abs(x[n]).sum(dtype=np.float64)
        assert abs(share[n] - expected) < 1e-3
    other, _ = mask_of(x[0], 1.6, padding, sign, sigma_of)  # negative control: 0.1 sigma is seen
    assert (other != (motion[0] != 0)).any()


@every_level
def test_prescale_is_the_2020_script(level):
    x = normal(4, 6, 9) - 0.2
    scaled = ((x - x.min()) / (x.max() - x.min())).astype(np.float64)
    motion, share = kernels.selective_relevance(x, 1.0, "zeros", "falling", prescale=True, level=level)
    mask, distance = mask_of(scaled, 1.0, "zeros", "falling")
    sure = distance > 1e-4
    np.testing.assert_allclose(motion[sure], (scaled * mask)[sure], atol=1e-6)
    assert abs(share - (scaled * mask).sum() / scaled.sum()) < 1e-3
    positive = np.abs(x)  # without a negative value nothing is scaled
    for a, b in zip(
        *(kernels.selective_relevance(positive, prescale=p, level=level) for p in (True, False)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@every_level
def test_nothing_moves(level):
    still = np.broadcast_to(normal(6, 7), (5, 6, 7)).copy()
    for volume in (still, normal(1, 6, 7), np.zeros((4, 6, 7), np.float32), np.full((3, 4, 5), 7, np.float32)):
        motion, share = kernels.selective_relevance(volume, level=level)
        assert (motion == 0).all()
        assert share == 0
    noise = still * (1 + 1e-7 * rng().standard_normal(still.shape)).astype(np.float32)  # rounding is no motion
    assert (kernels.selective_relevance(noise, level=level)[0] == 0).all()
    visible = still * (1 + 1e-3 * rng().standard_normal(still.shape)).astype(np.float32)
    assert (kernels.selective_relevance(visible, level=level)[0] != 0).any()


@every_level
def test_a_non_finite_volume_is_nan_and_the_others_are_not(level):
    x = normal(3, 4, 5, 6)
    clean = kernels.selective_relevance(x, level=level)
    x[1, 2, 3, 4] = np.inf
    motion, share = kernels.selective_relevance(x, level=level)
    assert np.isnan(motion[1]).all()
    assert np.isnan(share[1])
    for n in (0, 2):
        np.testing.assert_array_equal(motion[n], clean[0][n])
        assert share[n] == clean[1][n]


# ---- saliency_tube and selective_tube ----

TUBES = [
    ((4, 7, 7), (16, 56, 56)),
    ((2, 3, 5), (7, 13, 37)),
    ((1, 4, 4), (5, 9, 30)),
    ((6, 9, 33), (3, 5, 11)),
    ((3, 1, 2), (1, 8, 3)),
]


@every_level
@pytest.mark.parametrize("grid, size", TUBES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("normalize", ["clip", "frame", "none"])
def test_saliency_tube(level, grid, size, order, normalize):
    features, weight = shifted(normal(2, 5, *grid)), normal(2, 5, seed=1)
    for relu in (False, True):
        cam = np.einsum("mc,ncthw->nmthw", weight.astype(np.float64), features.astype(np.float64))
        raw = upsample(np.maximum(cam, 0) if relu else cam, size, order)
        tube = kernels.saliency_tube(features, weight, size, None, order, relu, normalize, level=level)
        assert tube.shape == raw.shape
        if normalize == "none":
            np.testing.assert_allclose(tube, raw, atol=2e-6 * np.abs(raw).max())
            continue
        axes = (-3, -2, -1) if normalize == "clip" else (-2, -1)
        expected = minmax(raw, axes)
        np.testing.assert_allclose(tube, expected, atol=2e-5)
        assert (tube.min(axes) == 0).all()
        np.testing.assert_array_equal(tube.max(axes), expected.max(axes))  # 1, or 0 for a constant map
        for dtype, expected in (
            ("float16", tube.astype(np.float16)),
            ("uint8", np.rint(tube * np.float32(255)).astype(np.uint8)),
        ):
            got = kernels.saliency_tube(features, weight, size, None, order, relu, normalize, dtype, level=level)
            assert got.dtype == np.dtype(dtype)
            np.testing.assert_array_equal(got, expected)


@every_level
@pytest.mark.parametrize("padding, sign, sigma_of", RULES)
@pytest.mark.parametrize("grid, size", TUBES)
def test_selective_tube(level, padding, sign, sigma_of, grid, size):
    cam = normal(2, 1, *grid, seed=3)
    one = np.ones((1, 1), np.float32)
    for n_sigma, order in ((1.0, 3), (2.0, 1)):
        rule = (n_sigma, padding, sign, sigma_of)
        tube, motion, share = kernels.selective_tube(
            cam, one, size, None, order, False, "clip", "float32", *rule, level=level
        )
        np.testing.assert_array_equal(tube, kernels.saliency_tube(cam, one, size, order=order, level=level))
        raw = upsample(cam, size, order)
        for n in range(2):
            mask, distance = mask_of(raw[n, 0], *rule)
            sure = distance > 1e-4
            assert (~sure).sum() <= max(2, 1e-3 * sure.size)
            np.testing.assert_array_equal(motion[n, 0][sure], np.where(mask, tube[n, 0], 0)[sure])
            expected = np.abs(raw[n, 0] * mask).sum() / np.abs(raw[n, 0]).sum()
            assert abs(share[n, 0] - expected) < 2e-3


@every_level
def test_a_near_static_map_keeps_its_motion(level):
    """Motion of 1e-4 of the map's size: the moments and the mask come out as in float64."""
    cam = (10 + normal(1, 1, 1, 7, 7) + 1e-3 * normal(1, 1, 4, 7, 7, seed=5)).astype(np.float32)
    tube, motion, _ = kernels.selective_tube(cam, np.ones((1, 1), np.float32), (16, 64, 64), level=level)
    mask, distance = mask_of(upsample(cam, (16, 64, 64))[0, 0])
    sure = distance > 1e-4
    assert 0 < mask.sum() < mask.size / 2
    assert sure.mean() > 0.999
    np.testing.assert_array_equal(motion[0, 0][sure], np.where(mask, tube[0, 0], 0)[sure])


@every_level
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_constant_maps_give_zeros(level, offset):
    cam = np.full((1, 1, 3, 5, 5), offset, np.float32)
    for normalize, dtype in itertools.product(["clip", "frame"], ["float32", "float16", "uint8"]):
        for output in kernels.selective_tube(
            cam, np.ones((1, 1), np.float32), (8, 20, 20), None, 3, False, normalize, dtype, level=level
        ):
            assert (output == 0).all()
    still = np.broadcast_to(normal(5, 5), (1, 1, 3, 5, 5)).copy()
    _, motion, share = kernels.selective_tube(still, np.ones((1, 1), np.float32), (8, 20, 20), level=level)
    assert (motion == 0).all()
    assert share == 0


@every_level
def test_the_range_is_found_wherever_it_lies(level):
    """Rows that cannot widen the range are skipped: a single peak or dip at any place must still be met."""
    one = np.ones((1, 1), np.float32)
    for place in itertools.product(range(4), range(7), range(7)):
        for height in (1, -1):
            cam = 1e-3 * normal(1, 1, 4, 7, 7)
            cam[(0, 0, *place)] += height
            tube = kernels.saliency_tube(cam, one, (9, 29, 43), level=level)
            assert tube.min() == 0
            assert tube.max() == 1
            np.testing.assert_allclose(tube, minmax(upsample(cam, (9, 29, 43))), atol=1e-6)


@every_level
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_map_is_nan_and_the_others_are_not(level, bad):
    cam, one, size = normal(3, 1, 2, 3, 4), np.ones((1, 1), np.float32), (4, 9, 21)
    clean = kernels.selective_tube(cam, one, size, level=level)
    cam[1, 0, 1, 1, 1] = bad
    spoilt = kernels.selective_tube(cam, one, size, level=level)
    for a, b in zip(clean, spoilt, strict=True):
        np.testing.assert_array_equal(a[[0, 2]], b[[0, 2]])
        assert np.isnan(b[1]).all()
    assert (kernels.saliency_tube(cam, one, size, dtype="uint8", level=level)[1] == 0).all()
    assert np.isnan(kernels.saliency_tube(cam, one, size, dtype="float16", level=level)[1]).all()


def test_out_is_written_in_place_and_nothing_behind_it():
    cam, one = normal(1, 1, 2, 3, 4), np.ones((1, 1), np.float32)
    shape = (1, 1, 3, 5, 7)
    for level, dtype in itertools.product(LEVELS, ["float32", "float16", "uint8"]):
        expected = kernels.selective_tube(cam, one, shape[2:], dtype=dtype, level=level)
        fence = 64
        buffers = [np.full(105 + 2 * fence, 77, dtype) for _ in range(2)]
        tube, motion = (b[fence:-fence].reshape(shape) for b in buffers)
        share = np.empty((1, 1), np.float32)
        result = kernels.selective_tube(cam, one, shape[2:], dtype=dtype, out=(tube, motion, share), level=level)
        for a, b, c in zip(result, (tube, motion, share), expected, strict=True):
            assert np.shares_memory(a, b)
            np.testing.assert_array_equal(b, c)
        for b in buffers:
            assert (b[:fence] == 77).all()
            assert (b[-fence:] == 77).all()


@every_level
def test_empty_batches(level):
    assert kernels.channel_reduce(
        np.zeros((0, 3, 2, 2, 2), np.float32), np.ones((1, 3), np.float32), level=level
    ).shape == (0, 1, 2, 2, 2)
    assert kernels.spline_upsample(np.zeros((0, 2, 2, 2), np.float32), (3, 4, 5), level=level).shape == (0, 3, 4, 5)
    assert kernels.sobel_temporal(np.zeros((0, 2, 2, 2), np.float32), level=level).shape == (0, 2, 2, 2)
    assert kernels.selective_relevance(np.zeros((0, 2, 2, 2), np.float32), level=level)[1].shape == (0,)
    for weight in (np.ones((1, 3), np.float32), np.ones((0, 3), np.float32)):
        n = 0 if len(weight) else 2
        tube, motion, share = kernels.selective_tube(
            np.zeros((n, 3, 2, 2, 2), np.float32), weight, (3, 4, 5), level=level
        )
        assert tube.shape == motion.shape == (n, len(weight), 3, 4, 5)
        assert share.shape == (n, len(weight))


FEATURES, WEIGHT = np.zeros((2, 64, 2, 3, 3), np.float32), np.zeros((1, 64), np.float32)
ERRORS = [
    (
        lambda: kernels.channel_reduce(FEATURES[0], WEIGHT),
        r"channel_reduce: features must have shape \[N, C, t, h, w\], got \[64, 2, 3, 3\]",
    ),
    (
        lambda: kernels.channel_reduce(FEATURES, WEIGHT[:, :32]),
        r"weight must have shape \[M, C\] = \[M, 64\] .* got \[1, 32\]",
    ),
    (lambda: kernels.channel_reduce(FEATURES.astype("f8"), WEIGHT), "features must be float32 or float16, got float64"),
    (lambda: kernels.channel_reduce(FEATURES, WEIGHT.astype("f8")), "weight must be float32, got float64"),
    (lambda: kernels.channel_reduce(FEATURES, WEIGHT.astype(">f4")), "weight must be float32, got >f4"),
    (lambda: kernels.channel_reduce(FEATURES.astype(">f2"), WEIGHT), "features must be float32 or float16, got >f2"),
    (
        lambda: kernels.saliency_tube(FEATURES, WEIGHT, (4, 4, 4), out=unaligned(np.zeros((2, 1, 4, 4, 4), "f4"))),
        "out must be aligned to its elements, got one that starts between two",
    ),
    (
        lambda: kernels.channel_reduce(np.array(3, "f4"), WEIGHT),
        r"features must have shape \[N, C, t, h, w\], got \[\]",
    ),
    (lambda: kernels.channel_reduce(FEATURES, WEIGHT, np.nan), "threshold must be a number or None, got NaN"),
    (lambda: kernels.channel_reduce(FEATURES[:, :, :, :0], WEIGHT), "no empty axis but the batch"),
    (
        lambda: kernels.spline_upsample(FEATURES, (4, 0, 4)),
        r"size must be three lengths \(T, H, W\) >= 1, got \[4, 0, 4\]",
    ),
    (lambda: kernels.spline_upsample(FEATURES, (4, -1, 4)), "size must be three lengths"),
    (lambda: kernels.spline_upsample(FEATURES, (2**31, 2**31, 2**31)), "64 bits"),
    (lambda: kernels.spline_upsample(FEATURES, (4, 4, 4), 2), "order must be 1 or 3, got 2"),
    (lambda: kernels.spline_upsample(WEIGHT, (4, 4, 4)), r"volume must have shape \[..., T, H, W\], got \[1, 64\]"),
    (lambda: kernels.sobel_temporal(FEATURES, "mirror"), 'padding must be "replicate" or "zeros", got "mirror"'),
    (lambda: kernels.selective_relevance(FEATURES, -1), "n_sigma must be finite and not negative, got -1"),
    (lambda: kernels.selective_relevance(FEATURES, sign="up"), 'sign must be "abs", "rising" or "falling", got "up"'),
    (
        lambda: kernels.saliency_tube(FEATURES, WEIGHT, (4, 4, 4), dtype="uint8", normalize="none"),
        "saliency_tube: dtype",
    ),
    (lambda: kernels.saliency_tube(FEATURES, WEIGHT, (4, 4, 4), dtype="float64"), "dtype must be"),
    (
        lambda: kernels.saliency_tube(FEATURES, WEIGHT, (4, 4, 4), out=np.zeros((2, 1, 4, 4, 5), np.float32)),
        r"out must have shape \[2, 1, 4, 4, 4\], got \[2, 1, 4, 4, 5\]",
    ),
    (
        lambda: kernels.saliency_tube(FEATURES, WEIGHT, (4, 4, 4), out=np.zeros((2, 1, 4, 4, 4))),
        "out must be float32, got float64",
    ),
    (
        lambda: kernels.saliency_tube(FEATURES, WEIGHT, (4, 4, 4), level="sse9"),
        "SIMD level must be one of best, baseline",
    ),
]


@pytest.mark.parametrize("call, message", ERRORS)
def test_errors_name_op_argument_rule_and_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_build_info():
    info = kernels.build_info()
    assert info["simd_levels"][0] == "baseline"
    assert info["simd"] in info["simd_levels"]
    assert info["cuda"] == bool(info["cuda_architectures"])
