"""The custom ops of ONNX Runtime against the float64 twins, on models of one node.

The torch op of the same build is compared as well, where it says more: the kernels are the same, so the bits must be.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from clipsight import ops, reference
from onnx_nodes import F16, F32, model, run, torch_type, tube_model

GRIDS = {(67, 3, 5, 7): (5, 21, 17), (1, 1, 1, 1): (3, 4, 5), (16, 4, 2, 9): (2, 7, 33)}  # C, t, h, w -> size
VOLUME = (-3, -2, -1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def assert_close(got: torch.Tensor, exact: torch.Tensor, bound: float) -> None:
    """Within `bound` of the largest value; a control shows that half precision would not be."""
    scale = exact.abs().max().clamp_min(1e-30)
    assert got.shape == exact.shape
    assert (got.double() - exact).abs().max() <= bound * scale
    if scale > 1e-30 and exact.numel() > 8 and bound < 1e-3:
        assert (exact.bfloat16().double() - exact).abs().max() > bound * scale


# ---- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_type", [F32, F16], ids=["weight32", "weight16"])
@pytest.mark.parametrize("feature_type", [F32, F16], ids=["features32", "features16"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_channel_reduce_for_any_batch(opened, grid, feature_type, weight_type):
    session = opened(tube_model("ChannelReduce", feature_type, weight_type, grid[0], rank=3, threshold=-0.25))
    for batch in (1, 3, 0):
        features = torch.randn(batch, *grid).to(torch_type(feature_type))
        weight = torch.randn(batch, 2, grid[0]).to(torch_type(weight_type))
        (cam,) = run(session, features, weight)
        assert torch.equal(cam, ops.channel_reduce(features, weight, threshold=-0.25))
        if batch:
            assert_close(cam, reference.channel_reduce(features.double(), weight.double(), threshold=-0.25), 1e-5)


@pytest.mark.parametrize("kind", [F32, F16], ids=["32", "16"])
@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_spline_upsample_takes_size_as_attribute_and_as_input(opened, grid, order, kind):
    size = GRIDS[grid]
    inputs = {"volume": (kind, ["N", None, None, None, None])}
    fixed = opened(model("SplineUpsample", inputs, {"output": kind}, order=order, size=size))
    free = opened(model("SplineUpsample", inputs | {"size": (np.int64, [3])}, {"output": kind}, order=order))
    volume = torch.randn(2, *grid).to(torch_type(kind))
    (output,) = run(fixed, volume)
    assert torch.equal(output, ops.spline_upsample(volume, size, order))
    assert torch.equal(output, run(free, volume, np.array(size))[0])
    assert_close(output, reference.spline_upsample(volume.double(), size, order), 1e-5 if kind is F32 else 2e-3)


@pytest.mark.parametrize("kind", [F32, F16], ids=["32", "16"])
@pytest.mark.parametrize("padding", ["replicate", "zeros"])
@pytest.mark.parametrize("shape", [(4, 5, 7), (2, 3, 1, 1, 1), (1, 2, 2, 9, 33, 4)], ids=str)
def test_sobel_temporal(opened, shape, padding, kind):
    session = opened(model("SobelTemporal", {"volume": (kind, [None] * len(shape))}, {"output": kind}, padding=padding))
    volume = torch.randn(shape).to(torch_type(kind))
    (output,) = run(session, volume)
    assert torch.equal(output, ops.sobel_temporal(volume, padding))
    assert_close(output, reference.sobel_temporal(volume.double(), padding), 1e-5 if kind is F32 else 2e-3)


RULES = [
    {},
    {"n_sigma": 1.0, "padding": "zeros", "sign": "rising", "sigma_of": "abs"},
    {"n_sigma": 0.5, "sign": "falling"},
]


def assert_same_selection(got, share, raw, exact, exact_share, rule, tolerance) -> None:
    """Only voxels whose derivative lies within 1e-4 sigma of the limit may be on the other side of it."""
    g = reference.sobel_temporal(raw, rule.get("padding", "replicate"))
    sigma = (g.abs() if rule.get("sigma_of") == "abs" else g).std(VOLUME, keepdim=True)
    side = {"abs": g.abs(), "rising": g, "falling": -g}[rule.get("sign", "abs")]
    undecided = (side - rule.get("n_sigma", 2.0) * sigma).abs() < 1e-4 * sigma
    differs = (got.double() - exact).abs() > tolerance
    assert not (differs & ~undecided).any()
    assert undecided.double().mean() < 1e-2
    torch.testing.assert_close(share.double(), exact_share.double(), atol=1e-4, rtol=0)
    assert (share > 0).all()


@pytest.mark.parametrize("kind", [F32, F16], ids=["32", "16"])
@pytest.mark.parametrize("rule", [*RULES, {"prescale": 1, "n_sigma": 1.0}], ids=str)
def test_selective_relevance(opened, rule, kind):
    outputs = {"motion": kind, "motion_share": F32}
    session = opened(model("SelectiveRelevance", {"volume": (kind, ["N", "M", 7, 33, 21])}, outputs, **rule))
    volume = reference.spline_upsample(torch.randn(2, 3, 3, 5, 4), (7, 33, 21)).to(torch_type(kind))
    got = run(session, volume)
    prescale = bool(rule.get("prescale"))
    for mine, theirs in zip(got, ops.selective_relevance(volume, **rule | {"prescale": prescale}), strict=True):
        assert torch.equal(mine, theirs)
    if prescale:
        return
    exact, exact_share = reference.selective_relevance(volume.float(), **rule)
    tolerance = torch.finfo(torch_type(kind)).eps * 8
    assert_same_selection(*got, volume.double(), exact.double(), exact_share, rule, tolerance)


TUBES = [
    {},
    {"threshold": 0.125, "relu": 1, "normalize": "frame"},
    {"order": 1, "normalize": "none"},
]


@pytest.mark.parametrize("options", TUBES, ids=str)
@pytest.mark.parametrize("feature_type", [F32, F16], ids=["features32", "features16"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_saliency_tube(opened, grid, feature_type, options):
    session = opened(tube_model("SaliencyTube", feature_type, channels=grid[0], size=GRIDS[grid], **options))
    options = options | {"relu": bool(options.get("relu"))}
    for batch in (1, 3, 0):
        features, weight = torch.randn(batch, *grid).to(torch_type(feature_type)), torch.randn(2, grid[0])
        (tube,) = run(session, features, weight)
        assert torch.equal(tube, ops.saliency_tube(features, weight, GRIDS[grid], **options))
        if batch:
            exact = reference.saliency_tube(features.double(), weight.double(), GRIDS[grid], **options)
            assert_close(tube, exact, 1e-5)


@pytest.mark.parametrize("dtype", [F32, F16, np.uint8], ids=["32", "16", "uint8"])
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("weight_type", [F32, F16], ids=["weight32", "weight16"])
def test_selective_tube(opened, weight_type, rule, dtype):
    grid, size = (19, 3, 5, 7), (9, 41, 37)
    session = opened(tube_model("SelectiveTube", F32, weight_type, 19, dtype, size=size, **rule))
    features, weight = torch.randn(2, *grid), torch.randn(2, 19).to(torch_type(weight_type))
    tube, motion, share = run(session, features, weight)
    for mine, theirs in zip(
        (tube, motion, share), ops.selective_tube(features, weight, size, dtype=torch_type(dtype), **rule), strict=True
    ):
        assert torch.equal(mine, theirs)
    exact = reference.selective_tube(features.double(), weight.double(), size, **rule)
    scale, tolerance = (255, 0.51) if dtype is np.uint8 else (1, 1e-5 if dtype is F32 else 1e-3)
    assert (tube.double() - scale * exact[0]).abs().max() <= tolerance
    raw = reference.spline_upsample(reference.channel_reduce(features.double(), weight.double()), size)
    assert_same_selection(motion, share, raw, scale * exact[1], exact[2], rule, tolerance)


@pytest.mark.parametrize("values", [[0.5], [0.5, 1.0, 3.0]], ids=str)
def test_n_sigma_as_an_input(opened, values):
    n_sigma = torch.tensor(values)
    features, weight = torch.randn(3, 6, 3, 5, 4), torch.randn(2, 6)
    got = run(opened(tube_model(free_n_sigma=True, size=(5, 21, 17))), features, weight, n_sigma)
    for mine, theirs in zip(got, ops.selective_tube(features, weight, (5, 21, 17), n_sigma=n_sigma), strict=True):
        assert torch.equal(mine, theirs)
    other = ops.selective_tube(features, weight, (5, 21, 17), n_sigma=n_sigma + 0.5)
    assert not torch.equal(got[1], other[1])

    inputs = {"volume": (F32, ["N", 5, 21, 17]), "n_sigma_of": (F32, ["K"])}
    session = opened(model("SelectiveRelevance", inputs, {"motion": F32, "motion_share": F32}))
    raw = ops.saliency_tube(features, weight, (5, 21, 17), normalize="none")[:, 0]
    for mine, theirs in zip(run(session, raw, n_sigma), ops.selective_relevance(raw, n_sigma), strict=True):
        assert torch.equal(mine, theirs)


def test_outputs_that_nobody_wants_may_be_left_out(opened):
    features, weight = torch.randn(2, 6, 3, 5, 4), torch.randn(2, 6)
    inputs = {"features": (F32, ["N", 6, 3, 5, 4]), "weight": (F32, [2, 6])}
    expected = ops.selective_tube(features, weight, (5, 21, 17))
    for wanted in ({"": F32, "motion": F32}, {"": F32, "_": F32, "motion_share": F32}, {"tube": F32}):
        names = {"_": ""}
        proto = model("SelectiveTube", inputs, {n: k for n, k in wanted.items() if n != "_"}, size=(5, 21, 17))
        proto.graph.node[0].output[:] = [names.get(name, name) for name in wanted]
        (got,) = run(opened(proto), features, weight)
        assert torch.equal(got, expected[len(wanted) - 1])


def test_a_map_that_is_not_finite_is_nan_and_the_others_are_untouched(opened):
    features, weight = torch.randn(2, 6, 2, 3, 4), torch.randn(1, 6)
    features[1, 0, 0, 0, 0] = torch.inf
    tube, motion, share = run(opened(tube_model(size=(4, 5, 6))), features, weight)
    assert tube[1].isnan().all()
    assert motion[1].isnan().all()
    assert share.isnan().tolist() == [[False], [True]]
    assert torch.equal(tube[:1], ops.saliency_tube(features[:1], weight, (4, 5, 6)))


# ---- threads --------------------------------------------------------------------------------------------------------


def test_threads_of_the_pool_and_of_the_caller_give_the_same_bits(opened):
    features, weight = torch.randn(4, 64, 4, 14, 14), torch.randn(3, 64)
    proto = tube_model(channels=64, size=(16, 112, 112))
    expected = run(opened(proto, threads=1), features, weight)
    for threads in (2, 3):
        for mine, theirs in zip(run(opened(proto, threads=threads), features, weight), expected, strict=True):
            assert torch.equal(mine, theirs)
    session = opened(proto)
    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(lambda _: run(session, features, weight), range(24)):
            for mine, theirs in zip(results, expected, strict=True):
                assert torch.equal(mine, theirs)


# ---- CUDA -----------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("weight_type", [F32, F16], ids=["weight32", "weight16"])
@pytest.mark.parametrize("feature_type", [F32, F16], ids=["features32", "features16"])
def test_cuda_provider_agrees_with_the_cpu(opened, cuda_provider, feature_type, weight_type):
    size = (5, 21, 17)
    proto = tube_model(features=feature_type, weight=weight_type, channels=19, free_n_sigma=True, size=size)
    features = torch.randn(2, 19, 3, 5, 7).to(torch_type(feature_type))
    weight, n_sigma = torch.randn(2, 19).to(torch_type(weight_type)), torch.tensor([0.5, 1.5])
    session = opened(proto, providers=cuda_provider)
    assert session.get_providers()[0] == cuda_provider[0]
    tube, _, share = run(session, features, weight, n_sigma)
    exact = reference.selective_tube(features.double(), weight.double(), size, n_sigma=n_sigma.double())
    assert_close(tube, exact[0], 1e-5)
    torch.testing.assert_close(share.double(), exact[2].double(), atol=1e-3, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [F32, F16], ids=["32", "16"])
def test_cuda_provider_on_volumes(opened, cuda_provider, kind):
    volume = torch.randn(2, 3, 4, 9, 8).to(torch_type(kind))
    inputs, tolerance = {"volume": (kind, ["N", 3, 4, 9, 8])}, 1e-5 if kind is F32 else 2e-3
    cuda = {"providers": cuda_provider}
    size = {"size": (np.int64, [3])}
    (output,) = run(opened(model("SplineUpsample", inputs | size, {"o": kind}), **cuda), volume, np.array((5, 11, 7)))
    assert_close(output, reference.spline_upsample(volume.double(), (5, 11, 7)), tolerance)
    (output,) = run(opened(model("SobelTemporal", inputs, {"o": kind}), **cuda), volume)
    assert_close(output, reference.sobel_temporal(volume.double()), tolerance)
    _, share = run(opened(model("SelectiveRelevance", inputs, {"m": kind, "s": F32}, n_sigma=1.0), **cuda), volume)
    torch.testing.assert_close(share, reference.selective_relevance(volume.float(), 1.0)[1], atol=1e-3, rtol=0)
