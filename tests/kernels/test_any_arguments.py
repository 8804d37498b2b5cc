"""Arguments that nobody thought of: an op gives the numbers of its reference, or says what is wrong with them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipsight import ops, reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]
NUMBERS = st.sampled_from([None, 0.0, -0.5, 1.0, float("nan"), float("inf"), -1e30])
EXAMPLES = [pytest.param(60), pytest.param(5000, marks=pytest.mark.full)]


@st.composite
def tensors(draw, shapes):
    """Of small integers, so that every order of a sum is exact; of any layout, also with a stride of 0."""
    shape = draw(shapes)
    dtype = draw(st.sampled_from(DTYPES[:3] * 4 + DTYPES))
    seed = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    x = torch.randint(-4, 5, shape, generator=seed).to(dtype)
    how = draw(st.sampled_from(["as it is", "permuted", "sliced", "expanded", "offset"]))
    if how == "permuted" and x.dim() > 1:
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "sliced" and x.dim():
        x = torch.stack([x, x + 1 if dtype != torch.bool else x], -1)[..., 0]
    if how == "expanded" and x.dim() and x.shape[0]:
        x = x[:1].expand(x.shape)
    if how == "offset":
        x = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    return x


AXES = st.lists(st.integers(0, 4), max_size=6)
VOLUMES = tensors(st.lists(st.integers(1, 5), min_size=3, max_size=5) | AXES)
SIZES = st.lists(st.integers(1, 6), min_size=3, max_size=3) | st.lists(st.integers(-1, 6), max_size=4)
GOOD = st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
PADDINGS = st.sampled_from(["replicate", "zeros", "same", "", "replicate\0"])


def outcome(op: str, call):
    """The result, or None where the op says what is wrong."""
    try:
        return call()
    except ValueError as error:
        message = str(error)
    assert message.startswith(f"{op}: ")
    assert ", got" in message
    return None


def assert_close(got, expected):
    assert got.shape == expected.shape
    error = {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(got.dtype, 2e-5)
    torch.testing.assert_close(got.double(), expected, rtol=error, atol=error * 8)


def run(examples, strategy, check):
    settings(max_examples=examples, deadline=None)(given(strategy)(check))()


@pytest.mark.parametrize("examples", EXAMPLES)
def test_channel_reduce(examples):
    def check(arguments):
        (features, weight), threshold, fits = arguments
        if fits and features.dim() == 5:
            weight = weight.flatten()[: features.shape[1]].expand(2, -1)
        got = outcome("channel_reduce", lambda: ops.channel_reduce(features, weight, threshold))
        if got is not None:
            assert_close(got, reference.channel_reduce(features.double(), weight.double(), threshold))

    pairs = st.tuples(tensors(GOOD | AXES), tensors(AXES | st.just([2, 8])))
    run(examples, st.tuples(pairs, NUMBERS, st.booleans()), check)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_spline_upsample(examples):
    def check(arguments):
        volume, size, order = arguments
        got = outcome("spline_upsample", lambda: ops.spline_upsample(volume, size, order))
        if got is not None:
            assert_close(got, reference.spline_upsample(volume.double(), size, order))

    run(examples, st.tuples(VOLUMES, SIZES, st.sampled_from([1, 3, 3, 2, -1, 2**40])), check)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_sobel_temporal(examples):
    def check(arguments):
        volume, padding = arguments
        got = outcome("sobel_temporal", lambda: ops.sobel_temporal(volume, padding))
        if got is not None:
            assert_close(got, reference.sobel_temporal(volume.double(), padding))

    run(examples, st.tuples(VOLUMES, PADDINGS), check)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_selective_tube(examples):
    def check(arguments):
        features, rows, size, options = arguments
        weight = torch.arange(rows * (features.shape[1] if features.dim() > 1 else 3)).view(rows, -1).float() - 2
        got = outcome("selective_tube", lambda: ops.selective_tube(features, weight, size, **options))
        if got is not None:
            maps = (features.shape[0], rows, *size)
            assert [g.shape for g in got] == [maps, maps, maps[:2]]
            assert all(((g >= 0) & (g <= 1)).all() for g in got)

    options = st.fixed_dictionaries(
        {},
        optional={
            "threshold": NUMBERS,
            "order": st.sampled_from([1, 3, 0]),
            "relu": st.booleans(),
            "normalize": st.sampled_from(["clip", "frame", "clips"]),
            "dtype": st.sampled_from(["float32", "float16", "float64", ""]),
            "n_sigma": st.sampled_from([2.0, 0.0, -1.0, float("nan"), 1e300]),
            "padding": PADDINGS,
            "sign": st.sampled_from(["abs", "rising", "falling", "up"]),
            "sigma_of": st.sampled_from(["signed", "abs", "x"]),
        },
    )
    run(examples, st.tuples(tensors(GOOD | AXES), st.integers(1, 3), SIZES, options), check)
