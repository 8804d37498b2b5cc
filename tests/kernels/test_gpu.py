"""The CUDA kernels against the float64 twins and against the CPU kernels. Skipped without CUDA (see conftest.py).

Each bound has a control that must break it: the same result rounded to half precision.
"""

from __future__ import annotations

import pytest
import torch

import clipsight
import networks
from clipsight import ops, reference

pytestmark = pytest.mark.gpu
VOLUME = (-3, -2, -1)
BOUND = 1e-5  # of the largest value
CASES = [  # grid -> size
    ((4, 7, 7), (16, 56, 60)),
    ((1, 7, 7), (5, 33, 47)),
    ((1, 1, 1), (3, 4, 5)),
    ((8, 9, 9), (8, 9, 9)),
    ((6, 9, 13), (3, 4, 5)),  # shrinks
    ((2, 4, 4), (2, 3, 1100)),  # more columns than a block
    ((5, 17, 6), (2, 71, 3)),
    ((16, 7, 7), (1, 224, 224)),
]
RULES = [
    {"n_sigma": 2.0},
    {"n_sigma": 1.0, "padding": "zeros", "sign": "rising", "sigma_of": "abs"},
    {"n_sigma": 1.5, "padding": "zeros", "sign": "falling"},
    {"n_sigma": 0.5, "sigma_of": "abs"},
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def assert_close(got: torch.Tensor, want: torch.Tensor, bound: float = BOUND) -> None:
    scale = want.abs().max().clamp_min(1e-30).item()
    got = got.cpu().double()
    assert (got - want).abs().max().item() <= bound * scale
    if scale > 1e-30 and want.numel() > 8:
        assert (want.bfloat16().double() - want).abs().max().item() > bound * scale, "the bound cannot fail"


def features_of(cam: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and weights [N, M, M] whose reduction is the given cam [N, M, t, h, w] exactly."""
    return cam, torch.eye(cam.shape[1]).expand(cam.shape[0], -1, -1).contiguous()


def cuda(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.cuda() for tensor in tensors)


# ---- channel_reduce -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted", "strided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(1, 2048, 4, 7, 7), (2, 37, 2, 3, 5), (3, 64, 1, 1, 1), (2, 1, 2, 2, 2), (33, 24, 4, 24, 24)]
)
def test_channel_reduce(shape, dtype, layout):
    features = torch.randn(shape).to("cuda", dtype)
    if layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last_3d)
    elif layout == "permuted":
        features = features.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    elif layout == "strided":
        features = torch.stack([features, features], -1)[..., 0]
    for maps in (1, 5):
        for weight in (torch.randn(maps, shape[1]), torch.randn(shape[0], maps, shape[1])):
            for threshold in (None, 0.25):
                got = ops.channel_reduce(features, weight.cuda(), threshold)
                assert got.dtype == torch.float32
                assert_close(got, reference.channel_reduce(features.cpu().double(), weight.double(), threshold), 4e-6)


def test_nan_passes_the_gate():
    features = torch.randn(1, 6, 1, 2, 2, device="cuda")
    features[0, 3, 0, 0, 0] = torch.nan
    weight = torch.ones(1, 6, device="cuda")
    weight[0, 3] = -1
    assert ops.channel_reduce(features, weight, 0.0).isnan().flatten().tolist() == [True, False, False, False]


# ---- volumes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [3, 1])
@pytest.mark.parametrize(("grid", "size"), CASES)
def test_spline_upsample(grid, size, order):
    volume = torch.randn(2, 3, *grid)
    assert_close(
        ops.spline_upsample(volume.cuda(), size, order), reference.spline_upsample(volume.double(), size, order)
    )


@pytest.mark.parametrize("padding", ["replicate", "zeros"])
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 5, 5), (9, 5, 7), (17, 20, 33), (2, 1, 300)])
def test_sobel_and_selective_relevance(size, padding):
    volume = torch.randn(3, *size)
    volume[2] = volume[2].abs() + 0.1
    assert_close(ops.sobel_temporal(volume.cuda(), padding), reference.sobel_temporal(volume.double(), padding))
    for rule in ({**rule, "padding": padding, "prescale": scale} for rule in RULES for scale in (False, True)):
        motion, share = ops.selective_relevance(volume.cuda(), **rule)
        expected, expected_share = reference.selective_relevance(volume.double(), **rule)
        scaled = volume.double()
        if rule["prescale"]:
            low, high = scaled.amin(VOLUME, True), scaled.amax(VOLUME, True)
            scaled = torch.where((low < 0) & (high > low), (scaled - low) / (high - low), scaled)
        certain = expected_mask(scaled, rule)[1]
        assert_close(motion.cpu() * certain, expected * certain)
        if certain.all():
            torch.testing.assert_close(share.cpu().double(), expected_share, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_volumes_match_the_cpu(dtype):
    volume = torch.randn(2, 6, 9, 11).to(dtype)
    for call in (
        lambda v: ops.spline_upsample(v, (8, 20, 21)),
        ops.sobel_temporal,
        lambda v: ops.selective_relevance(v)[0],
    ):
        got, want = call(volume.cuda()), call(volume)
        assert got.dtype == dtype
        torch.testing.assert_close(got.cpu(), want, rtol=2e-2, atol=2e-2)


# ---- tubes ----------------------------------------------------------------------------------------------------------


def expected_mask(raw: torch.Tensor, rule: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """(mask, where it is certain): the derivative lies more than 1e-4 sigma from its limit.

    Or sigma is 0 and yet no noise: then the map is all zeros, its derivative is 0 in any arithmetic, and the strict
    comparison with the limit 0 selects nothing.
    """
    # The Sobel operator as matrices: in float64 the twin's convolution takes up to fifteen times as long.
    padding = rule.get("padding", "replicate")
    matrices = [reference.stencil(n, taps, padding) for n, taps in zip(raw.shape[-3:], reference.SOBEL, strict=True)]
    g = reference.separable(raw, *matrices)
    spread = g.abs() if rule.get("sigma_of") == "abs" else g
    sigma = spread.std(VOLUME, correction=1, keepdim=True)
    limit = torch.where(sigma < 1e-5 * raw.abs().amax(VOLUME, True), torch.inf, rule["n_sigma"] * sigma)
    value = {"abs": g.abs(), "rising": g, "falling": -g}[rule.get("sign", "abs")]
    return value > limit, ((value - limit).abs() > 1e-4 * sigma) | limit.isinf() | (sigma == 0)


@pytest.mark.parametrize("order", [3, 1])
@pytest.mark.parametrize(("grid", "size"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
def test_tubes(grid, size, order, dtype):
    cam = torch.randn(2, 3, *grid)
    features, weight = features_of(cam)
    cams = {False: cam.double(), True: cam.double().relu()}
    raws = {relu: reference.spline_upsample(cams[relu], size, order) for relu in cams}
    masks = {relu: [expected_mask(raw, rule) for rule in RULES] for relu, raw in raws.items()}
    for normalize, relu in (("clip", False), ("clip", True), ("frame", False), ("none", False)):
        if dtype == torch.uint8 and normalize == "none":
            continue
        options = {"order": order, "relu": relu, "normalize": normalize, "dtype": dtype}
        tube = ops.saliency_tube(*cuda(features, weight), size, **options)
        wide = torch.uint8 if dtype == torch.uint8 else torch.float64
        expected = reference.saliency_tube(features.double(), weight.double(), size, **{**options, "dtype": wide})
        if dtype == torch.uint8:
            steps = (tube.cpu().int() - expected.int()).abs()
            assert steps.max() <= 1
            assert (steps > 0).double().mean() < 0.01
        elif dtype == torch.float16:
            assert (tube.cpu().double() - expected).abs().max() <= 1e-3 * max(1.0, expected.abs().max().item())
        else:
            assert_close(tube, expected)
        if normalize != "none":
            assert tube.min() >= 0
            assert tube.max() <= (255 if dtype == torch.uint8 else 1)
        for rule, (mask, certain) in zip(RULES, masks[relu], strict=True):
            selected_tube, motion, share = ops.selective_tube(*cuda(features, weight), size, **options, **rule)
            assert torch.equal(selected_tube, tube)
            masked = torch.where(mask, tube.cpu(), torch.zeros_like(tube.cpu()))
            assert torch.equal(masked[certain], motion.cpu()[certain])
            assert (~certain).double().mean() <= 1e-3
            if certain.all():
                magnitude = raws[relu].abs()
                want = (magnitude * mask).sum(VOLUME) / magnitude.sum(VOLUME).clamp_min(1e-300)
                torch.testing.assert_close(share.cpu().double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1,), (2,), (2, 3)], ids=str)
def test_n_sigma_as_data(shape):
    """Each map is selected as with the same number alone."""
    cam = torch.randn(2, 3, 4, 5, 6)
    n_sigma = torch.linspace(0.5, 3, 6)[: torch.Size(shape).numel()].reshape(shape)
    per_map = n_sigma.reshape(*shape, *(1 for _ in range(2 - len(shape)))).expand(2, 3)
    _, motion, share = ops.selective_tube(*cuda(*features_of(cam)), (8, 17, 20), n_sigma=n_sigma.cuda())
    kept, kept_share = ops.selective_relevance(cam.cuda(), n_sigma=n_sigma.cuda())
    for n in range(2):
        for m in range(3):
            value = per_map[n, m].item()
            alone = ops.selective_tube(*cuda(*features_of(cam[n : n + 1, m : m + 1])), (8, 17, 20), n_sigma=value)
            assert torch.equal(motion[n, m], alone[1][0, 0])
            torch.testing.assert_close(share[n, m], alone[2][0, 0])
            alone = ops.selective_relevance(cam[n, m].cuda(), n_sigma=value)
            assert torch.equal(kept[n, m], alone[0])
            torch.testing.assert_close(kept_share[n, m], alone[1])


def test_still_and_constant_maps_select_nothing():
    still = torch.randn(1, 2, 1, 4, 4).expand(-1, -1, 3, -1, -1).contiguous()
    _, motion, share = ops.selective_tube(*cuda(*features_of(still)), (8, 16, 16), n_sigma=0.0)
    assert not motion.any()
    assert not share.any()
    constant = torch.full((1, 1, 3, 4, 4), 3.5)
    assert not ops.saliency_tube(*cuda(*features_of(constant)), (8, 16, 16)).any()


@pytest.mark.parametrize("sigma_of", ["signed", "abs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
def test_a_bad_map_leaves_the_others_alone(dtype, sigma_of):
    # The identity weights would spread the NaN over the maps of a sample, so each sample has one map.
    cam = torch.randn(4, 1, 3, 4, 4)
    bad = cam.clone()
    bad[1, 0, 0, 0, 0], bad[2, 0, 1, 2, 3] = torch.inf, torch.nan
    good, result = (
        ops.selective_tube(*cuda(*features_of(c)), (8, 16, 16), dtype=dtype, sigma_of=sigma_of) for c in (cam, bad)
    )
    for g, r in zip(good, result, strict=True):
        assert torch.equal(g[[0, 3]], r[[0, 3]])
        broken = r[1:3]
        assert (broken == 0).all() if r.dtype == torch.uint8 else broken.isnan().all()


def test_empty_batch():
    features, weight = torch.empty(0, 4, 2, 3, 3, device="cuda"), torch.randn(2, 4, device="cuda")
    assert [tuple(x.shape) for x in ops.selective_tube(features, weight, (4, 5, 6))] == [(0, 2, 4, 5, 6)] * 2 + [(0, 2)]
    assert ops.spline_upsample(torch.empty(0, 2, 3, 3, device="cuda"), (4, 5, 6)).shape == (0, 4, 5, 6)


@pytest.mark.parametrize("offset", [0, 1])
def test_out_also_where_it_is_not_aligned(offset):
    features, weight = cuda(torch.randn(2, 16, 2, 7, 7), torch.randn(3, 16))
    expected = ops.selective_tube(features, weight, (5, 20, 24))
    out = tuple(torch.full((x.numel() + offset,), -7.0, device="cuda")[offset:].view(x.shape) for x in expected)
    ops.selective_tube(features, weight, (5, 20, 24), out=out)
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))


# ---- a few launches for compute-sanitizer ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(5, 20, 24), (3, 7, 33), (2, 3, 1100)])  # vectors, single columns, several blocks
def test_every_kernel(size, dtype):
    """Each kernel for each type, on small volumes: few enough launches for a tool that slows them a hundredfold."""
    for shape in ((8, 3, 4, 24, 24), (2, 24, 2, 4, 5)):  # wide tiles and odd channels; narrow tiles and vectors
        features, weight = torch.randn(shape).to(dtype), torch.randn(3, shape[1])
        want = reference.channel_reduce(features.double(), weight.double(), 0.25)
        for layout in (torch.contiguous_format, torch.channels_last_3d):
            on_device = features.cuda().contiguous(memory_format=layout)
            assert_close(ops.channel_reduce(on_device, weight.cuda(), 0.25), want, 4e-6)
    for kind in (torch.float32, torch.float16, torch.uint8):
        for normalize, sigma_of in (("clip", "signed"), ("frame", "abs")):
            options = {"size": size, "normalize": normalize, "dtype": kind}
            tube = ops.saliency_tube(*cuda(features, weight), **options)
            selected = ops.selective_tube(*cuda(features, weight), **options, sigma_of=sigma_of, n_sigma=0.5)
            assert torch.equal(selected[0], tube)
            assert ((selected[1] == tube) | (selected[1] == 0)).all()
            if kind == torch.float32:
                want = reference.saliency_tube(features.double(), weight.double(), size, normalize=normalize)
                assert_close(tube, want)
    volume, tolerance = torch.randn(2, *size).to(dtype), 1e-5 if dtype == torch.float32 else 1e-2
    cam = torch.randn(2, 2, 3, 5).to(dtype)
    for call, twin, of in (
        (lambda v: ops.spline_upsample(v, size), lambda v: reference.spline_upsample(v, size), cam),
        (ops.sobel_temporal, reference.sobel_temporal, volume),
    ):
        want = twin(of.double())
        assert (call(of.cuda()).cpu().double() - want).abs().max() <= tolerance * want.abs().max()
    for sigma_of, prescale in (("signed", False), ("abs", True)):
        rule = {"n_sigma": 0.5, "sigma_of": sigma_of, "prescale": prescale}
        share = ops.selective_relevance(volume.cuda(), **rule)[1]
        want = reference.selective_relevance(volume, **rule)[1]
        torch.testing.assert_close(share.cpu().float(), want.float(), rtol=2e-3, atol=2e-3)
    inputs = torch.randn(2, 24).to(dtype), torch.randn(40, 24).to(dtype), torch.rand(2, 3, 40) > 0.5
    for got, want in zip(ops.back_step(*cuda(*inputs), 0.6), reference.back_step(*inputs, 0.6), strict=True):
        assert torch.equal(got.cpu(), want)


# ---- streams, graphs, devices ---------------------------------------------------------------------------------------


def test_same_bits_on_every_run_and_stream():
    features, weight = cuda(torch.randn(2, 512, 4, 7, 7), torch.randn(3, 512))
    first = ops.selective_tube(features, weight, (16, 112, 112), sigma_of="abs")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(5):
        with torch.cuda.stream(stream):
            again = ops.selective_tube(features, weight, (16, 112, 112), sigma_of="abs")
        stream.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_cuda_graph():
    features, weight = cuda(torch.randn(1, 64, 4, 7, 7), torch.randn(2, 64))
    volume = torch.randn(2, 6, 30, 31, device="cuda")

    def call():
        return *ops.selective_tube(features, weight, (16, 56, 56)), *ops.selective_relevance(volume)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    features.normal_()
    volume.normal_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, call(), strict=True))


def test_mixed_devices_are_refused():
    features, weight = torch.randn(1, 4, 2, 3, 3), torch.randn(2, 4)
    with pytest.raises(Exception, match="channel_reduce: weight must be on the device of the first argument"):
        ops.channel_reduce(features.cuda(), weight)
    with pytest.raises(Exception, match="channel_reduce: weight must be on the device of the first argument"):
        ops.channel_reduce(features, weight.cuda())


def test_a_second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    features, weight = torch.randn(1, 8, 2, 7, 7), torch.randn(2, 8)
    first = ops.saliency_tube(features.cuda(0), weight.cuda(0), (4, 28, 28))
    second = ops.saliency_tube(features.cuda(1), weight.cuda(1), (4, 28, 28))
    assert second.device.index == 1
    assert torch.equal(first.cpu(), second.cpu())


@pytest.mark.large
def test_more_voxels_than_32_bits_count():
    features, weight = cuda(torch.randn(1, 8, 4, 7, 7), torch.randn(11, 8))
    size = (16, 3502, 3500)
    tube = ops.saliency_tube(features, weight, size, dtype=torch.uint8)
    assert tube.numel() > 2**31
    last = ops.saliency_tube(features, weight[-1:].contiguous(), size, dtype=torch.uint8)
    assert torch.equal(tube[0, -1], last[0, 0])


# ---- the whole ------------------------------------------------------------------------------------------------------


def test_explained_network_and_its_file(tmp_path):
    network, clip = networks.seeded(networks.ModulePool), networks.clip()
    heads = [clipsight.SaliencyTube(), clipsight.SelectiveRelevance()]
    on_cpu = clipsight.explain(network, heads, clip)
    expected = on_cpu(clip)
    file = tmp_path / "x.pt"
    clipsight.export(on_cpu, file)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        loaded = clipsight.load(file, device="cuda")(clip.cuda())
        eager = clipsight.explain(network.cuda(), heads, clip.cuda())(clip.cuda())
    for result in (eager, loaded):
        torch.testing.assert_close(result[0].cpu(), expected[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(result[1].cpu(), expected[1], rtol=0, atol=1e-3)
