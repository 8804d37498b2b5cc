"""Bad arguments: ValueError that names op, argument, rule and value. A missing library: RuntimeError, every cause."""

from __future__ import annotations

import re

import pytest
import torch

from clipsight import _library, ops

FEATURES, WEIGHT, SIZE = torch.randn(2, 6, 2, 3, 4), torch.randn(3, 6), (4, 5, 6)
VOLUME = torch.randn(2, 3, 4, 5)


def tube(features=FEATURES, weight=WEIGHT, size=SIZE, **options):
    return ops.saliency_tube(features, weight, size, **options)


def motion(**options):
    return ops.selective_tube(FEATURES, WEIGHT, SIZE, **options)


def motion_of_size(size):
    return ops.selective_tube(FEATURES, WEIGHT, size)


ERRORS = [
    (
        lambda: ops.channel_reduce(FEATURES[0], WEIGHT),
        "channel_reduce: features must have shape [N, C, t, h, w], got [6,",
    ),
    (
        lambda: ops.channel_reduce(FEATURES, WEIGHT[:, :4]),
        "channel_reduce: weight must have shape [M, C] = [M, 6] or [N, M, C] = [2, M, 6], got [3, 4]",
    ),
    (lambda: ops.channel_reduce(FEATURES, WEIGHT[0]), "channel_reduce: weight must have shape [M, C]"),
    (
        lambda: ops.channel_reduce(FEATURES, WEIGHT.expand(3, 3, 6)),
        "channel_reduce: weight must have shape [M, C] = [M, 6] or [N, M, C] = [2, M, 6], got [3, 3, 6]",
    ),
    (
        lambda: ops.channel_reduce(FEATURES.double(), WEIGHT),
        "channel_reduce: features must be float32, float16 or bfloat16, got float64",
    ),
    (
        lambda: ops.channel_reduce(FEATURES, WEIGHT.long()),
        "channel_reduce: weight must be float32, float16 or bfloat16, got int64",
    ),
    (
        lambda: ops.channel_reduce(FEATURES, WEIGHT.to("meta")),
        "channel_reduce: weight must be on the device of the first argument, cpu, got meta",
    ),
    (
        lambda: ops.channel_reduce(FEATURES, WEIGHT, float("nan")),
        "channel_reduce: threshold must be a number or None, got",
    ),
    (
        lambda: ops.channel_reduce(FEATURES[:, :0], WEIGHT[:, :0]),
        "channel_reduce: features must have no empty axis but",
    ),
    (lambda: ops.channel_reduce(FEATURES[:, :, :0], WEIGHT), "channel_reduce: features must have no empty axis but"),
    (
        lambda: ops.spline_upsample(VOLUME[0, 0], SIZE),
        "spline_upsample: volume must have shape [..., T, H, W], got [4, 5]",
    ),
    (
        lambda: ops.spline_upsample(VOLUME[..., :0], SIZE),
        "spline_upsample: volume must have T, H, W >= 1, got [2, 3, 4, 0]",
    ),
    (
        lambda: ops.spline_upsample(VOLUME, (4, 0, 6)),
        "spline_upsample: size must be three lengths (T, H, W) >= 1, got [4, 0,",
    ),
    (
        lambda: ops.spline_upsample(VOLUME, (4, 5)),
        "spline_upsample: size must be three lengths (T, H, W) >= 1, got [4, 5]",
    ),
    (lambda: ops.spline_upsample(VOLUME, SIZE, 2), "spline_upsample: order must be 1 or 3, got 2"),
    (
        lambda: ops.spline_upsample(VOLUME.int(), SIZE),
        "spline_upsample: volume must be float32, float16 or bfloat16, got int32",
    ),
    (
        lambda: ops.sobel_temporal(VOLUME, "reflect"),
        'sobel_temporal: padding must be "replicate" or "zeros", got "reflect"',
    ),
    (lambda: ops.sobel_temporal(VOLUME[0, 0]), "sobel_temporal: volume must have shape [..., T, H, W], got [4, 5]"),
    (
        lambda: ops.selective_relevance(VOLUME, -1.0),
        "selective_relevance: n_sigma must be finite and not negative, got -1",
    ),
    (
        lambda: ops.selective_relevance(VOLUME, float("nan")),
        "selective_relevance: n_sigma must be finite and not negative",
    ),
    (
        lambda: ops.selective_relevance(VOLUME, torch.ones(2, 3, 1)),
        "selective_relevance: n_sigma_of must have shape [1] or that of the first axes of the maps, [2], got [2, 3, 1]",
    ),
    (
        lambda: ops.selective_relevance(VOLUME, sign="up"),
        'selective_relevance: sign must be "abs", "rising" or "falling"',
    ),
    (
        lambda: ops.selective_relevance(VOLUME, sigma_of="x"),
        'selective_relevance: sigma_of must be "signed" or "abs", got "x"',
    ),
    (lambda: tube(features=FEATURES[0]), "saliency_tube: features must have shape [N, C, t, h, w], got [6, 2, 3, 4]"),
    (lambda: tube(weight=WEIGHT[:, 1:]), "saliency_tube: weight must have shape [M, C] = [M, 6]"),
    (lambda: tube(size=(4, -5, 6)), "saliency_tube: size must be three lengths (T, H, W) >= 1, got [4, -5, 6]"),
    (
        lambda: tube(size=(2**40, 2**30, 2)),
        "saliency_tube: size must be a volume that 64 bits can address, got [1099511627776,",
    ),
    (
        lambda: tube(size=(2**40, 2**18, 1)),
        "saliency_tube: size must be a volume that memory can hold, got [1099511627776, 262144, 1]",
    ),
    (
        lambda: motion_of_size((2**20, 2**20, 2**18)),
        "selective_tube: size must be a volume that memory can hold, got [1048576,",
    ),
    (
        lambda: ops.spline_upsample(VOLUME, (10**9, 10**5, 1)),
        "spline_upsample: size must be a volume that memory can hold, got [1000000000, 100000, 1]",
    ),
    (
        lambda: ops.spline_upsample(VOLUME, (2**63, 1, 1)),
        "spline_upsample: size must be a volume that 64 bits can address, got [9223372036854775808, 1, 1]",
    ),
    (lambda: tube(order=2), "saliency_tube: order must be 1 or 3, got 2"),
    (lambda: tube(normalize="clips"), 'saliency_tube: normalize must be "clip", "frame" or "none", got "clips"'),
    (lambda: tube(dtype=torch.float64), 'saliency_tube: dtype must be "float32", "float16" or "uint8", got "float64"'),
    (
        lambda: tube(dtype="uint8", normalize="none"),
        'saliency_tube: dtype "uint8" needs normalize "clip" or "frame", got',
    ),
    (
        lambda: tube(out=torch.empty(2, 3, 4, 5, 7)),
        "saliency_tube: out must have shape [2, 3, 4, 5, 6], got [2, 3, 4, 5, 7]",
    ),
    (lambda: tube(out=torch.empty(2, 3, 4, 5, 6).half()), "saliency_tube: out must be float32, got float16"),
    (lambda: tube(out=torch.empty(2, 3, 4, 6, 5).mT), "saliency_tube: out must be contiguous, got another layout"),
    (lambda: motion(padding="same"), 'selective_tube: padding must be "replicate" or "zeros", got "same"'),
    (lambda: motion(n_sigma=float("inf")), "selective_tube: n_sigma must be finite and not negative, got inf"),
    (
        lambda: motion(n_sigma=torch.ones(3)),
        "selective_tube: n_sigma_of must have shape [1] or that of the first axes of the maps, [2, 3], got [3]",
    ),
    (
        lambda: motion(n_sigma=torch.ones(2).long()),
        "selective_tube: n_sigma_of must be float32, float16 or bfloat16, got int64",
    ),
    (
        lambda: motion(n_sigma=torch.ones(2, device="meta")),
        "selective_tube: n_sigma_of must be on the device of the first argument, cpu, got meta",
    ),
    (
        lambda: motion(out=(torch.empty(2, 3, *SIZE), torch.empty(2, 3, *SIZE), torch.empty(3, 2))),
        "selective_tube: motion_share must have shape [2, 3], got [3, 2]",
    ),
]


@pytest.mark.parametrize("call, message", ERRORS, ids=[message[:60] for _, message in ERRORS])
def test_bad_argument(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: ops.channel_reduce(FEATURES.to("meta"), WEIGHT),
            "channel_reduce: weight must be on the device of the",
        ),
        (
            lambda: ops.channel_reduce(FEATURES.to("meta"), WEIGHT[:, 1:].to("meta")),
            "channel_reduce: weight must have shape",
        ),
        (
            lambda: ops.sobel_temporal(VOLUME[0, 0].to("meta")),
            "sobel_temporal: volume must have shape [..., T, H, W], got [4, 5]",
        ),
        (
            lambda: ops.spline_upsample(VOLUME.to("meta"), (1, 2)),
            "spline_upsample: size must be three lengths (T, H, W) >= 1",
        ),
    ],
)
def test_bad_argument_while_shapes_are_derived(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_meta_tensors_give_shapes():
    result = ops.selective_tube(FEATURES.to("meta"), WEIGHT.to("meta"), SIZE, dtype="float16")
    assert [(tuple(x.shape), x.dtype) for x in result] == [
        ((2, 3, 4, 5, 6), torch.float16),
        ((2, 3, 4, 5, 6), torch.float16),
        ((2, 3), torch.float32),
    ]


def test_error_reaches_torchscript():
    @torch.jit.script
    def scripted(volume):
        return torch.ops.clipsight.sobel_temporal(volume, "same")

    with pytest.raises(RuntimeError, match='sobel_temporal: padding must be "replicate" or "zeros", got "same"'):
        scripted(VOLUME)


@pytest.mark.skipif(not _library.CUDA_ERRORS, reason="the CUDA library is loaded")
def test_missing_cuda_library_is_loud():
    """What a CUDA tensor would meet: the kernel that stands in for the one that is not loaded."""
    for op in _library.OPS:
        name, _, overload = op.partition(".")
        kernel = getattr(getattr(torch.ops.clipsight, name), overload or "default")
        assert torch._C._dispatch_has_kernel_for_dispatch_key(kernel.name(), "CUDA")
    stand_in = _library._stand_in("channel_reduce", _library.CUDA_LIBRARY, _library.CUDA_ERRORS)
    with pytest.raises(
        RuntimeError, match=re.escape("channel_reduce: the library libclipsight_torch_cuda.so must be loaded")
    ):
        stand_in(FEATURES, WEIGHT)
