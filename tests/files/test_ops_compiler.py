"""What frameworks do with the ops: opcheck, gradients, torch.compile, torch.export, TorchScript."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch

from clipsight import _library, ops, reference

SIZE = (5, 9, 8)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def arguments(op, dtype=torch.float32, requires_grad=False):
    features = torch.randn(2, 6, 3, 4, 5).to(dtype)
    weight = torch.randn(3, 6)
    for x in (features, weight):
        x.requires_grad_(requires_grad)
    selected = torch.rand(2, 2, 3) < 0.5
    return {
        "back_step": (features.mean((2, 3, 4)), weight, selected, 0.6),
        "channel_reduce": (features, weight, 0.1),
        "spline_upsample": (features, SIZE),
        "sobel_temporal": (features,),
        "selective_relevance": (features, 1.0),
        "saliency_tube": (features, weight, SIZE, -0.5),
        "selective_tube": (features, weight, SIZE),
    }[op]


OPS = [op for op in _library.OPS if "." not in op]
DIFFERENTIABLE = [op for op in OPS if op != "back_step"]


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def test_schemas_are_those_of_the_table():
    """The table that stands in for a missing library agrees with the library."""
    for op, schema in zip(_library.OPS, _library.SCHEMAS, strict=True):
        name, _, overload = op.partition(".")
        loaded = getattr(getattr(torch.ops.clipsight, name), overload or "default")._schema
        assert loaded == torch._C.parse_schema(f"clipsight::{schema}")


@pytest.mark.parametrize(
    "requires_grad", [pytest.param(False, marks=pytest.mark.full, id="plain"), pytest.param(True, id="grad")]
)
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op, requires_grad):
    torch.library.opcheck(getattr(torch.ops.clipsight, op).default, arguments(op, requires_grad=requires_grad))


@pytest.mark.parametrize("op", [pytest.param("selective_relevance", marks=pytest.mark.full), "selective_tube"])
def test_opcheck_with_n_sigma_as_data(op):
    n_sigma = {"n_sigma_of": torch.tensor([0.5, 1.5])}
    op_of_torch = getattr(torch.ops.clipsight, op).default
    torch.library.opcheck(op_of_torch, arguments(op, requires_grad=True), n_sigma)


def test_opcheck_of_out_variants():
    features, weight, size = arguments("selective_tube")
    tube, motion, share = (x.clone() for x in ops.selective_tube(features, weight, size))
    torch.library.opcheck(torch.ops.clipsight.saliency_tube.out, (features, weight, size), {"out": tube})
    out = {"tube": tube, "motion": motion, "motion_share": share}
    torch.library.opcheck(torch.ops.clipsight.selective_tube.out, (features, weight, size), out)


# ---- gradients ------------------------------------------------------------------------------------------------------


def gradients(function, inputs, cotangents):
    """d sum(outputs * cotangents) / d inputs, for the tensors among the inputs."""
    wanted = [x for x in inputs if isinstance(x, torch.Tensor)]
    outputs = as_tuple(function(*inputs))
    total = sum((o.to(c.dtype) * c).sum() for o, c in zip(outputs, cotangents, strict=True))
    return torch.autograd.grad(total, wanted)


def gradient_error(op, *changed, dtype=torch.float32):
    """Largest relative difference between the op's gradient and that of the float64 twin (with other options)."""
    inputs = arguments(op, dtype, requires_grad=True)
    cotangents = [torch.randn_like(o, dtype=torch.float64) for o in as_tuple(getattr(ops, op)(*inputs))]
    exact = [x.detach().double().requires_grad_() if isinstance(x, torch.Tensor) else x for x in inputs]
    got = gradients(getattr(ops, op), inputs, cotangents)
    expected = gradients(getattr(reference, op), [*exact, *changed], cotangents)
    for g, x in zip(got, inputs, strict=False):
        assert (g.dtype, g.shape) == (x.dtype, x.shape)
    return max((g - e).abs().max() / e.abs().max() for g, e in zip(got, expected, strict=True))


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_gradient_is_that_of_the_float64_twin(op):
    assert gradient_error(op) < 1e-5


@pytest.mark.parametrize("op", ["channel_reduce", "spline_upsample", "sobel_temporal"])
def test_gradient_of_half_precision_inputs(op):
    assert gradient_error(op, dtype=torch.float16) < 2e-3


@pytest.mark.parametrize("op, other", [("spline_upsample", 1), ("sobel_temporal", "zeros")])
def test_gradient_control(op, other):
    """The adjoint of another spline or border is far off."""
    assert gradient_error(op, other) > 1e-2


@pytest.mark.parametrize("op", ["channel_reduce", "spline_upsample", "sobel_temporal"])
def test_gradcheck(op):
    """Finite differences, first and second order. The ops are linear in each input, so a large step is exact."""
    features, weight = torch.randn(1, 2, 2, 3, 2, requires_grad=True), torch.randn(2, 2, requires_grad=True)
    inputs = {
        "channel_reduce": (features, weight),  # no gate: a step across it would not be linear
        "spline_upsample": (features, (3, 2, 5)),
        "sobel_temporal": (features,),
    }[op]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*double precision.*")
        options = {"eps": 0.5, "atol": 1e-3, "rtol": 1e-3}
        assert torch.autograd.gradcheck(getattr(ops, op), inputs, **options)
        assert torch.autograd.gradgradcheck(getattr(ops, op), inputs, **options)


def test_gate_is_constant_in_the_gradient():
    features, weight = torch.randn(1, 4, 2, 2, 2), torch.tensor([[0.5, -0.5, 0.2, 0.1]], requires_grad=True)
    ops.channel_reduce(features, weight, threshold=0.2).sum().backward()
    expected = torch.where(weight.detach() < 0.2, 0.0, features.sum((0, 2, 3, 4)))
    torch.testing.assert_close(weight.grad, expected)


def test_gradient_of_the_share_beside_maps_of_bytes():
    """The maps have no gradient, and the share has the one that it has beside maps of numbers."""
    features, weight = torch.randn(1, 3, 2, 3, 3, requires_grad=True), torch.randn(2, 3)
    of_numbers, of_bytes = (
        torch.autograd.grad(ops.selective_tube(features, weight, (4, 5, 6), dtype=dtype)[2].sum(), features)[0]
        for dtype in ("float32", "uint8")
    )
    assert of_numbers.abs().sum() > 0
    torch.testing.assert_close(of_bytes, of_numbers, atol=0, rtol=0)


# ---- compilers ------------------------------------------------------------------------------------------------------


class Head(torch.nn.Module):
    """A backbone of one convolution, and every op."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv3d(3, 8, 3, padding=1, stride=2)
        self.classifier = torch.nn.Linear(8, 10)

    def forward(self, clip):
        features = self.stem(clip).relu()
        logits = self.classifier(features.mean((2, 3, 4)))
        weight = self.classifier.weight[logits.topk(2).indices]
        size = clip.shape[2:]
        raw = ops.spline_upsample(ops.channel_reduce(features, weight), size)
        tube = ops.saliency_tube(features, weight, size, dtype=torch.uint8)
        selected = ops.selective_tube(features, weight, size, threshold=0.0)
        step = ops.back_step(features.mean((2, 3, 4)), self.classifier.weight, logits.unsqueeze(1) > 0, 0.6)
        return logits, tube, ops.sobel_temporal(raw), *ops.selective_relevance(raw), *selected, *step


CLIP, OTHER = (2, 3, 6, 10, 12), (3, 3, 8, 14, 10)


def assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.float(), b.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.full
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_compile_with_dynamic_sizes():
    head = Head()
    compiled = torch.compile(head, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for shape in (CLIP, OTHER):
            clip = torch.randn(shape)
            assert_same(compiled(clip), head(clip))
    clip, grads = torch.randn(CLIP), []
    for module in (compiled, head):
        head.zero_grad()
        sum(x.float().sin().sum() for x in module(clip) if x.dtype != torch.uint8).backward()
        grads.append([p.grad.clone() for p in head.parameters()])
    assert all(g.count_nonzero() for g in grads[1])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * b.abs().max().item(), rtol=1e-4)


def test_export_with_dynamic_batch_and_sizes(tmp_path):
    head, dynamic = Head().eval(), torch.export.Dim.DYNAMIC
    program = torch.export.export(head, (torch.randn(CLIP),), dynamic_shapes=({i: dynamic for i in (0, 2, 3, 4)},))
    torch.export.save(program, tmp_path / "head.pt2")
    loaded = torch.export.load(tmp_path / "head.pt2").module()
    clip = torch.randn(OTHER)
    assert_same(loaded(clip), head(clip))


def test_torchscript_trace_and_script(tmp_path):
    head = Head().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        frozen = torch.jit.freeze(torch.jit.trace(head, torch.randn(CLIP), check_trace=False))
    frozen.save(tmp_path / "head.pt")
    clip = torch.randn(5, *CLIP[1:])
    assert_same(torch.jit.load(tmp_path / "head.pt")(clip), head(clip))

    @torch.jit.script
    def scripted(features, weight):
        return torch.ops.clipsight.saliency_tube(features, weight, [5, 9, 8], normalize="frame", dtype="float16")

    features, weight, size = arguments("selective_tube")
    expected = ops.saliency_tube(features, weight, size, normalize="frame", dtype=torch.float16)
    assert torch.equal(scripted(features, weight), expected)


def test_autocast_keeps_half_features():
    features, weight, size = arguments("selective_tube")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = torch.nn.functional.linear(features.movedim(1, -1), torch.eye(6)).movedim(-1, 1)
        assert half.dtype == torch.bfloat16
        tube = ops.saliency_tube(half, weight, size)
    assert tube.dtype == torch.float32
    assert torch.equal(tube, ops.saliency_tube(half.float(), weight, size))


def test_build_info_names_the_libraries():
    info = ops._library.build_info()
    assert info["torch_library"]["loaded"]
    assert info["torch"] == torch.__version__
    assert set(info["cuda_library"]) == {"path", "loaded", "errors"}
