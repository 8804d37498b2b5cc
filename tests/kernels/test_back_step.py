"""back_step: the twin against a loop, the kernels bit for bit against the twin, and the op in every format.

The kernels are held to the twin's own bits, so no tolerance stands anywhere in this file.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from clipsight import ops, reference
from helpers import assert_same

kernels = pytest.importorskip("clipsight._kernels", reason="the native module is not built")
LEVELS = kernels.build_info()["simd_levels"]
CASES = [  # N, M, C_out, width, groups
    (2, 3, 6, 4, 2),
    (1, 1, 64, 33, 1),
    (3, 2, 12, 1, 12),  # depth-wise
    (2, 1, 5, 7, 1),
    (1, 2, 300, 515, 1),  # several units of rows
    (2, 2, 1024, 32, 32),
    (1, 1, 520, 6, 4),
    (1, 1, 1, 1, 1),
    (0, 2, 4, 4, 2),
    (2, 0, 4, 4, 2),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def arguments(n, m, c_out, width, groups, share=0.5, dtype=torch.float32):
    """(pooled, kernel, selected) with mixed signs, ties and rows that nobody selects."""
    pooled, kernel = torch.randn(n, width * groups).to(dtype), torch.randn(c_out, width).to(dtype)
    kernel[:, -1] = kernel[:, 0]
    pooled[:, 1::2] = pooled[:, 1::2].abs()
    return pooled, kernel, torch.rand(n, m, c_out) < share


def loop(pooled, kernel, selected, theta, groups, dtype):
    """The definition, edge by edge, in NumPy's `dtype`."""
    pooled, kernel = pooled.double().numpy().astype(dtype), kernel.double().numpy().astype(dtype)
    (n, m, c_out), width = selected.shape, kernel.shape[1]
    edges, multiplicity = np.zeros((n, m, c_out, width), bool), np.zeros((n, m, width * groups), np.float32)
    for i in range(c_out):
        first = i // (c_out // groups) * width
        for sample in range(n):
            scores = [pooled[sample, first + j] * kernel[i, j] for j in range(width)]
            low, span = min(scores), max(scores) - min(scores)
            for j, score in enumerate(scores):
                if score - low >= dtype(theta) * span:
                    for k in np.flatnonzero(selected[sample, :, i]):
                        edges[sample, k, i, j] = True
                        multiplicity[sample, k, first + j] += 1
    return torch.from_numpy(edges), torch.from_numpy(multiplicity)


def every_kernel(pooled, kernel, selected, theta, groups):
    """The results of the op of torch, and of the NumPy module at every SIMD level."""
    yield ops.back_step(pooled, kernel, selected, theta, groups)
    half = kernel.dtype == torch.bfloat16
    array = kernel.view(torch.uint16).numpy() if half else kernel.numpy()
    for level in LEVELS:
        options = {"bfloat16": half, "level": level}
        result = kernels.back_step(pooled.float().numpy(), array, selected.numpy(), theta, groups, **options)
        yield tuple(map(torch.from_numpy, result))


# ---- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("case", CASES[:4] + CASES[6:], ids=str)
def test_twin_is_the_definition(case, theta):
    """In float32 and in float64; at theta = 0.6 another theta is seen."""
    inputs, groups = arguments(*case), case[-1]
    got = reference.back_step(*inputs, theta, groups)
    assert_same(got, loop(*inputs, theta, groups, np.float32))
    exact = (inputs[0].double(), inputs[1].double(), inputs[2])
    assert_same(reference.back_step(*exact, theta, groups), loop(*inputs, theta, groups, np.float64))
    if theta == 0.6 and got[0].sum() > 100:
        assert not torch.equal(got[0], reference.back_step(*inputs, 0.55, groups)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_keep_the_edges_of_the_twin(case, dtype, threads):
    groups = case[-1]
    for share in (0.0, 0.1, 1.0):
        inputs = arguments(*case, share, dtype)
        for theta in (0.0, 0.6, 1.0):
            expected = reference.back_step(*inputs, theta, groups)
            for got in every_kernel(*inputs, theta, groups):
                assert_same(got, expected)


def test_no_product_is_fused_with_the_subtraction():
    """At theta = 1 the largest score is kept; a fused s - low would lose it in some rows, as the control shows."""
    pooled, kernel = torch.randn(1, 67), torch.randn(1024, 67)
    selected = torch.ones(1, 1, 1024, dtype=torch.bool)
    products = pooled.double() * kernel.double()  # exact
    s = products.float()
    low, high = s.amin(-1, True), s.amax(-1, True)
    fused = (products - low.double()).float() >= high - low
    expected = reference.back_step(pooled, kernel, selected, 1.0)
    assert expected[0].any(-1).all()
    assert (~fused.any(-1)).sum() > 10
    for got in every_kernel(pooled, kernel, selected, 1.0, 1):
        assert_same(got, expected)


def test_an_edge_exactly_at_theta_is_kept():
    """Scores 0, 1, 2, 3, 4 with theta at each quarter; the next number above it drops the edge."""
    pooled, kernel = torch.tensor([[0.0, 1, 2, 3, 4]]), torch.ones(1, 5)
    selected = torch.ones(1, 1, 1, dtype=torch.bool)
    for first in range(5):
        for theta, kept in (
            (first / 4, 5 - first),
            (float(np.nextafter(np.float32(first / 4), np.float32(2))), 4 - first),
        ):
            if theta > 1:
                continue
            for edges, multiplicity in (
                reference.back_step(pooled, kernel, selected, theta),
                *every_kernel(pooled, kernel, selected, theta, 1),
            ):
                assert edges[0, 0, 0].tolist() == [j >= 5 - kept for j in range(5)]
                assert torch.equal(multiplicity[0, 0], edges[0, 0, 0].float())


def test_where_all_candidates_are_equal_all_are_kept():
    selected = torch.tensor([[[True, False, True]]])
    for width, groups in ((4, 1), (1, 3)):
        for result in (
            reference.back_step(torch.full((1, width * groups), -2.0), torch.ones(3, width), selected, 1.0, groups),
            *every_kernel(torch.full((1, width * groups), -2.0), torch.ones(3, width), selected, 1.0, groups),
        ):
            assert torch.equal(result[0], selected.unsqueeze(-1).expand(1, 1, 3, width))
            assert torch.equal(result[1][0, 0], torch.full((4,), 2.0) if groups == 1 else selected[0, 0].float())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("width", [5, 67])
def test_a_row_that_is_not_finite(bad, width):
    """NaN keeps nothing of its rows; infinities follow the arithmetic of the twin. Other rows are untouched."""
    pooled, kernel, selected = arguments(3, 2, 7, width, 1, share=1.0)
    clean = reference.back_step(pooled, kernel, selected, 0.6)
    kernel[4, width - 1] = bad
    pooled[1, 2] = bad
    expected = reference.back_step(pooled, kernel, selected, 0.6)
    rows = [0, 1, 2, 3, 5, 6]
    for got in every_kernel(pooled, kernel, selected, 0.6, 1):
        assert_same(got, expected)
        assert torch.equal(got[0][[0, 2]][:, :, rows], clean[0][[0, 2]][:, :, rows])
        if bad is torch.nan:
            assert not got[0][1].any()
            assert not got[0][:, :, 4].any()


def test_inputs_that_are_not_contiguous(threads):
    pooled, kernel, selected = arguments(4, 3, 10, 6, 2)
    expected = reference.back_step(pooled, kernel, selected, 0.5, 2)
    wide = torch.full((4, 24), torch.nan)
    wide[:, ::2] = pooled
    views = wide[:, ::2], kernel.mT.contiguous().mT, selected.transpose(1, 2).contiguous().transpose(1, 2)
    assert not any(x.is_contiguous() for x in views)
    assert_same(ops.back_step(*views, 0.5, 2), expected)
    assert_same(reference.back_step(*views, 0.5, 2), expected)
    for level in LEVELS:
        result = kernels.back_step(*(x.numpy() for x in views), 0.5, 2, level=level)
        assert_same(map(torch.from_numpy, result), expected)
    shared = selected[:1].expand(4, 3, 10)  # one choice for the whole batch
    assert_same(ops.back_step(pooled, kernel, shared, 0.5, 2), reference.back_step(pooled, kernel, shared, 0.5, 2))


def test_callers_in_several_threads():
    inputs = arguments(2, 3, 256, 64, 1, share=0.3)
    expected = reference.back_step(*inputs, 0.6)
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: ops.back_step(*inputs, 0.6), range(32)):
            assert_same(got, expected)


# ---- errors ---------------------------------------------------------------------------------------------------------

POOLED, KERNEL, SELECTED = torch.rand(2, 12), torch.rand(8, 3), torch.ones(2, 5, 8, dtype=torch.bool)
ERRORS = [
    ((POOLED[0], KERNEL, SELECTED, 0.5, 4), "pooled must have shape [N, C_in] with C_in >= 1, got [12]"),
    ((POOLED, KERNEL[0], SELECTED, 0.5, 4), "kernel must have shape [C_out, C_in / groups] with C_out >= 1, got [3]"),
    ((POOLED, KERNEL, SELECTED, 0.5, 5), "groups must divide C_in = 12 and C_out = 8, got 5"),
    ((POOLED, KERNEL, SELECTED, 0.5, 3), "groups must divide C_in = 12 and C_out = 8, got 3"),
    ((POOLED, KERNEL, SELECTED, 0.5, 0), "groups must divide C_in = 12 and C_out = 8, got 0"),
    ((POOLED, KERNEL, SELECTED, 0.5, 2), "kernel must have shape [C_out, C_in / groups] = [C_out, 6], got [8, 3]"),
    ((POOLED, KERNEL, SELECTED[:1], 0.5, 4), "selected must have shape [N, M, C_out] = [2, M, 8], got [1, 5, 8]"),
    ((POOLED, KERNEL, SELECTED[:, 0], 0.5, 4), "selected must have shape [N, M, C_out] = [2, M, 8], got [2, 8]"),
    ((POOLED, KERNEL, SELECTED[..., :7], 0.5, 4), "selected must have shape [N, M, C_out] = [2, M, 8], got [2, 5, 7]"),
]
AT_RUN = [
    ((POOLED[:, :0], KERNEL[:, :0], SELECTED, 0.5, 1), "pooled must have shape [N, C_in] with C_in >= 1, got [2, 0]"),
    ((POOLED, KERNEL[:0], SELECTED[..., :0], 0.5, 4), "kernel must have shape [C_out, C_in / groups] with C_out >= 1"),
    ((POOLED, KERNEL, SELECTED, -0.5, 4), "theta must be 0 to 1, got -0.5"),
    ((POOLED, KERNEL, SELECTED, 1.5, 4), "theta must be 0 to 1, got 1.5"),
    ((POOLED, KERNEL, SELECTED, float("nan"), 4), "theta must be 0 to 1, got nan"),
    ((POOLED, KERNEL, SELECTED.float(), 0.5, 4), "selected must be bool, got float32"),
]


@pytest.mark.parametrize("call, message", ERRORS + AT_RUN, ids=[message[:40] for _, message in ERRORS + AT_RUN])
def test_bad_argument(call, message):
    for run in (ops.back_step, lambda p, k, s, *rest: kernels.back_step(p.numpy(), k.numpy(), s.numpy(), *rest)):
        with pytest.raises(ValueError, match=re.escape(f"back_step: {message}")):
            run(*call)


@pytest.mark.parametrize("call, message", ERRORS, ids=[message[:40] for _, message in ERRORS])
def test_bad_argument_while_shapes_are_derived(call, message):
    with pytest.raises(ValueError, match=re.escape(f"back_step: {message}")):
        ops.back_step(*(x.to("meta") if isinstance(x, torch.Tensor) else x for x in call))


def test_bad_dtype_and_device():
    types = "must be float32, float16 or bfloat16, got"
    for call, message in (
        ((POOLED.double(), KERNEL, SELECTED, 0.5, 4), f"pooled {types} float64"),
        ((POOLED, KERNEL.long(), SELECTED, 0.5, 4), f"kernel {types} int64"),
        ((POOLED, KERNEL.to("meta"), SELECTED, 0.5, 4), "kernel must be on the device of the first argument, cpu, got"),
        ((POOLED, KERNEL, SELECTED.to("meta"), 0.5, 4), "selected must be on the device of the first argument, cpu,"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"back_step: {message}")):
            ops.back_step(*call)


# ---- frameworks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "grad"])
def test_opcheck(requires_grad):
    pooled, kernel, selected = arguments(2, 3, 8, 4, 2)
    inputs = pooled.requires_grad_(requires_grad), kernel.requires_grad_(requires_grad), selected, 0.6, 2
    torch.library.opcheck(torch.ops.clipsight.back_step.default, inputs)
    for module in (ops, reference):
        assert not any(x.requires_grad for x in module.back_step(*inputs))


# ---- the node of ONNX Runtime's plug-in -----------------------------------------------------------------------------


def node(kind="float32", **attributes):
    nodes = pytest.importorskip("onnx_nodes")
    kind = getattr(np, kind)
    inputs = {"pooled": (kind, ["N", 12]), "kernel": (kind, [8, 3]), "selected": (np.bool_, ["N", "M", 8])}
    return nodes.model("BackStep", inputs, {"edges": np.bool_, "multiplicity": np.float32}, **attributes)


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_node_gives_the_bits_of_the_twin(opened, kind):
    session = opened(node(kind, theta=0.6, groups=4))
    outputs = [(o.shape, o.type) for o in session.get_outputs()]
    assert outputs == [(["N", "M", 8, 3], "tensor(bool)"), (["N", "M", 12], "tensor(float)")]
    for n, m in ((2, 3), (1, 1), (0, 2), (2, 0)):
        inputs = arguments(n, m, 8, 3, 4, dtype=getattr(torch, kind))
        feeds = dict(zip(("pooled", "kernel", "selected"), (x.numpy() for x in inputs), strict=True))
        expected = reference.back_step(*inputs, 0.6, 4)
        assert_same(map(torch.from_numpy, session.run(None, feeds)), expected)
        for index, name in enumerate(("edges", "multiplicity")):  # one that nobody wants is not there
            proto = node(kind, theta=0.6, groups=4)
            proto.graph.node[0].output[1 - index] = ""
            del proto.graph.output[1 - index]
            assert_same(map(torch.from_numpy, opened(proto).run([name], feeds)), [expected[index]])


def test_errors_of_the_node(opened):
    for attributes, message in (
        ({}, "back_step: theta must be given as an attribute, got none"),
        ({"theta": 2.0}, "back_step: theta must be 0 to 1, got 2"),
        ({"theta": 0.5, "groups": 1.0}, "back_step: groups must be an int, got a float"),
    ):
        with pytest.raises(Exception, match=re.escape(message)):
            opened(node(**attributes))
    session = opened(node(theta=0.5, groups=5))
    feeds = {"pooled": POOLED.numpy(), "kernel": KERNEL.numpy(), "selected": SELECTED.numpy()}
    with pytest.raises(Exception, match="back_step: groups must divide C_in = 12 and C_out = 8, got 5"):
        session.run(None, feeds)


# ---- CUDA -----------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cuda_keeps_the_edges_of_the_twin(case, dtype):
    groups = case[-1]
    for share in (0.0, 0.1, 1.0):
        inputs = arguments(*case, share, dtype)
        for theta in (0.0, 0.6, 1.0):
            got = ops.back_step(*(x.cuda() for x in inputs), theta, groups)
            assert_same([x.cpu() for x in got], reference.back_step(*inputs, theta, groups))


@pytest.mark.gpu
def test_cuda_fuses_no_product_and_drops_rows_with_nan():
    pooled, kernel = torch.randn(2, 512), torch.randn(4096, 512)
    kernel[7, 300] = torch.nan
    inputs = pooled, kernel, torch.ones(2, 1, 4096, dtype=torch.bool)
    expected = reference.back_step(*inputs, 1.0)
    for module in (ops, reference):
        got = module.back_step(*(x.cuda() for x in inputs), 1.0)
        assert_same([x.cpu() for x in got], expected)
        assert not got[0][:, :, 7].any()


@pytest.mark.gpu
def test_cuda_graph():
    inputs = [x.cuda() for x in arguments(2, 3, 64, 48, 1)]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        ops.back_step(*inputs, 0.6)
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.back_step(*inputs, 0.6)
    inputs[0].normal_()
    graph.replay()
    assert_same(captured, ops.back_step(*inputs, 0.6))


@pytest.mark.gpu
def test_node_of_the_cuda_provider(opened, cuda_provider):
    session = opened(node(theta=0.6, groups=4), providers=cuda_provider)
    inputs = arguments(2, 3, 8, 3, 4)
    feeds = dict(zip(("pooled", "kernel", "selected"), (x.numpy() for x in inputs), strict=True))
    assert_same(map(torch.from_numpy, session.run(None, feeds)), reference.back_step(*inputs, 0.6, 4))
