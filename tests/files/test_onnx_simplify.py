"""How ONNX files get small: by rules of single ops, and by ops decomposed one by one. What they compute stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipsight.exporters import onnx as exporter
from clipsight.exporters.onnx_simplify import simplify

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
onnx_ir = pytest.importorskip("onnx_ir", reason="onnx_ir is not installed")
from clipsight.exporters import onnx_write  # noqa: E402

helper = onnx.helper

SHAPE = (2, 3, 4, 6)
WEIGHT = np.random.default_rng(0).standard_normal((5, 3, 1, 1)).astype(np.float32)
NORM = {
    name: np.linspace(low, low + 1, 5, dtype=np.float32) for name, low in zip("gbmv", (0.5, -0.5, -1, 0.2), strict=True)
}


def model(*nodes, **constants):
    """x `[2, 3, 4, 6]` -> y, by nodes `(op, inputs, output, attributes)`."""
    value = helper.make_tensor_value_info
    tensors = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    made = [helper.make_node(op, inputs.split(), [output], **attributes) for op, inputs, output, attributes in nodes]
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(made, "g", [value("x", kind, SHAPE)], [value("y", kind, None)], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(proto)


def run(proto) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]


def number(value: float):
    return np.float32(value)


RELU = ("Relu", "r", "y", {})
CASES = {
    "a bias of zeros": (
        model(("Conv", "x w b", "r", {}), RELU, w=WEIGHT, b=np.zeros(5, np.float32)),
        ["Conv(2)", "Relu(1)"],
    ),
    "another bias": (
        model(("Conv", "x w b", "r", {}), RELU, w=WEIGHT, b=np.ones(5, np.float32)),
        ["Conv(3)", "Relu(1)"],
    ),
    "a batch norm": (
        model(("Conv", "x w", "c", {}), ("BatchNormalization", "c g b m v", "r", {}), RELU, w=WEIGHT, **NORM),
        ["Conv(3)", "Relu(1)"],
    ),
    "a batch norm of what another node reads, too": (
        model(
            ("Conv", "x w", "c", {}),
            ("BatchNormalization", "c g b m v", "r", {}),
            ("Add", "r c", "y", {}),
            w=WEIGHT,
            **NORM,
        ),
        ["Add(2)", "BatchNormalization(5)", "Conv(2)"],
    ),
    "a batch norm of weights that are read twice": (
        model(
            ("Conv", "x w", "c", {}),
            ("BatchNormalization", "c g b m v", "r", {}),
            ("Relu", "x", "p", {}),
            ("Conv", "p w", "q", {}),
            ("Add", "r q", "y", {}),
            w=WEIGHT,
            **NORM,
        ),
        ["Add(2)", "BatchNormalization(5)", "Conv(2)", "Conv(2)", "Relu(1)"],
    ),
    "reshapes one after the other": (
        model(
            ("Reshape", "x s", "a", {}),
            ("Reshape", "a t", "r", {}),
            RELU,
            s=np.array([6, 24]),
            t=np.array([2, -1]),
        ),
        ["Relu(1)", "Reshape(2)"],
    ),
    "a reshape with a length that is copied": (
        model(
            ("Reshape", "x s", "a", {}),
            ("Reshape", "a t", "r", {}),
            RELU,
            s=np.array([6, 24]),
            t=np.array([0, 4, 6]),
        ),
        ["Relu(1)", "Reshape(2)", "Reshape(2)"],
    ),
    "a transposition and its inverse": (
        model(
            ("Transpose", "x", "a", {"perm": [1, 2, 3, 0]}),
            ("Transpose", "a", "r", {"perm": [3, 0, 1, 2]}),
            RELU,
        ),
        ["Relu(1)"],
    ),
    "two transpositions": (
        model(
            ("Transpose", "x", "a", {"perm": [1, 2, 3, 0]}),
            ("Transpose", "a", "r", {"perm": [1, 0, 3, 2]}),
            RELU,
        ),
        ["Relu(1)", "Transpose(1)"],
    ),
    "numbers that change nothing": (
        model(
            ("Mul", "one x", "a", {}),
            ("Add", "a zero", "b", {}),
            ("Sub", "b zero", "c", {}),
            ("Div", "c one", "r", {}),
            RELU,
            one=number(1),
            zero=number(0),
        ),
        ["Relu(1)"],
    ),
    "numbers on the other side": (
        model(("Sub", "zero x", "a", {}), ("Div", "one a", "r", {}), RELU, one=number(1), zero=number(0)),
        ["Div(2)", "Relu(1)", "Sub(2)"],
    ),
    "a zero of more axes": (
        model(("Add", "x zero", "r", {}), RELU, zero=np.zeros((1, 1, 1, 1, 1), np.float32)),
        ["Add(2)", "Relu(1)"],
    ),
    "an expansion to the same shape": (
        model(("Expand", "x s", "r", {}), RELU, s=np.array(SHAPE)),
        ["Relu(1)"],
    ),
    "a node that changes nothing and makes the output": (
        model(("Relu", "x", "r", {}), ("Mul", "r one", "y", {}), one=number(1)),
        ["Mul(2)", "Relu(1)"],
    ),
    "the same node twice": (
        model(("Relu", "x", "a", {}), ("Relu", "x", "b", {}), ("Add", "a b", "y", {})),
        ["Add(2)", "Relu(1)"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_rules(case):
    proto, expected = CASES[case]
    ir = onnx_ir.serde.deserialize_model(proto)
    simplify(ir)
    simple = onnx_ir.serde.serialize_model(ir)
    assert sorted(f"{n.op_type}({sum(map(bool, n.input))})" for n in simple.graph.node) == expected
    before, after = run(proto), run(simple)
    assert before.shape == after.shape
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    assert np.ptp(before) > 0.1


class Everything(nn.Module):
    """Ops that torch.onnx cannot write as they are, and ops in place."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.BatchNorm3d(4), nn.ConvTranspose3d(4, 6, (1, 2, 2), stride=(1, 2, 2))
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, clip):
        x = self.norm(clip)
        kept = x.clone().ge_(0.1)  # numbers, not booleans
        y = (x.detach() * 2).sub_(0.5).relu_()
        halves = self.up(y).unflatten(1, (2, 3)).chunk(2, 1)
        pooled = F.adaptive_avg_pool3d(halves[0].flatten(1, 2), 1).to(torch.float64)
        return kept @ kept.transpose(3, 4), halves[1].flatten(0, 1), pooled, x.reshape(x.shape[0], -1).detach()


@pytest.mark.parametrize("way", ["by our table", "decomposed one by one", "as torch does it"])
def test_ways_to_write_a_graph(way, monkeypatch):
    asked = []
    if way != "by our table":
        monkeypatch.setattr(onnx_write, "write", lambda *_: None)
    if way == "as torch does it":
        monkeypatch.setattr(exporter, "decompose_where_needed", lambda program: asked.append(program) or program)
    if way != "as torch does it":
        monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", None)
    if way == "by our table":
        monkeypatch.setattr(torch.onnx, "export", None)
    torch.manual_seed(0)
    module = Everything().eval()
    names = ("kept", "half", "pooled", "flat")
    proto = exporter.convert(module, (torch.randn(3, 4, 4, 5, 6),), names)
    assert bool(asked) is (way == "as torch does it")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        clip = torch.randn(batch, 4, 4, 5, 6)
        with torch.no_grad():
            expected = module(clip)
        for got, want in zip(session.run(None, {"clip": clip.numpy()}), expected, strict=True):
            got = torch.from_numpy(got)
            assert got.dtype == want.dtype
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
            assert not torch.allclose(1.001 * got, want, rtol=1e-5, atol=1e-5)


OPS = {
    "types are promoted": lambda x: (x + 2, x * (x > 0), x.long() + 0.5),
    "comparisons": lambda x: ((x >= 0.2) & (x != 1), torch.where(x < 0, 2.0, x), torch.where(x > 0, x, -1.0)),
    "limits": lambda x: (x.clamp(-0.5, 0.3), x.clamp_max(0.1), torch.maximum(x, x.square()), torch.sub(x, x, alpha=2)),
    "sums": lambda x: (x.sum((1, -1)), (x > 0).sum(2), x.mean((2, 3), keepdim=True), x.amax(1), x.amin((1, 2))),
    "parts": lambda x: (x[:, 1:, ::2], x[:, 1], *x.split([1, 3], 1), *x.chunk(2, 3), *x.unbind(1)[1:], x.flip((1, 2))),
    "joined": lambda x: (torch.cat([x, x.abs()], 1), torch.stack([x, -x], 2), x.repeat(1, 2, 1, 1)),
    "margins": lambda x: (F.pad(x, (1, 2, 0, 1)), F.pad(x, (1, 1, 1, 1), mode="replicate"), F.pad(x, (-1, 2), value=3)),
    "axes": lambda x: (x.movedim(1, 3), x.transpose(-1, 1), x.permute(0, 3, 1, 2), x[:, :1].squeeze(1).unsqueeze(-1)),
    "shapes": lambda x: (x.flatten(1, 2), x.flatten(0, 1).unflatten(0, (-1, 4)), x[:, :, :1].expand(-1, -1, 5, -1)),
    "new ones": lambda x: (x.new_zeros(x.shape[0], 3), torch.full_like(x, 2.5), torch.arange(5) + x.argmax(3)),
    "of the largest": lambda x: (*x.flatten(1).topk(3, 1), x.softmax(1), x[:, torch.tensor([2, 0])]),
    "rounded": lambda x: (x.round(), (3 * x).floor(), x.ceil(), (x.abs() + 0.1).reciprocal()),
    "the other way round": lambda x: (2 - x, ~(x > 0), F.silu(x)),
    "picked": lambda x: (
        x.narrow(2, 1, 3),
        x.gather(1, x.topk(2, 1).indices),
        x.index_select(-1, torch.tensor([4, 0])),
    ),
    "norms": lambda x: (torch.linalg.vector_norm(x, dim=(1, 2)), torch.linalg.vector_norm(x, dim=3, keepdim=True)),
    "nearest": lambda x: (F.interpolate(x.unsqueeze(1), (3, 12, 6)), F.interpolate(x.unsqueeze(2), (1, 7, 13))),
    "its own length": lambda x: (torch.full((x.shape[0], 2), x.shape[0]), x + torch.full((), x.shape[0])),
    "poolings": lambda x: (F.max_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 2, 1, 1, count_include_pad=False)),
    "activations": lambda x: (
        *(F.gelu(3 * x, approximate=how) for how in ("none", "tanh")),
        F.hardswish(4 * x),
        F.hardsigmoid(4 * x),
        F.hardtanh(3 * x, -0.5, 2.0),
        F.relu6(9 * x),
        F.leaky_relu(x, 0.2),
        F.elu(x, 0.7),
        F.mish(x),
        torch.erf(x) + x.sin() * x.cos(),
    ),
    "layer norms": lambda x: (
        F.layer_norm(x, (6,)),
        F.layer_norm(x, (5, 6), torch.arange(30.0).view(5, 6).cos(), torch.arange(30.0).view(5, 6).sin(), 1e-2),
        F.layer_norm(x, (6,), torch.arange(6.0)),
    ),
    "attention": lambda x: (
        F.scaled_dot_product_attention(x, x.flip(2), 2 * x),
        F.scaled_dot_product_attention(x[..., :2], x[:, :, :3, :2], x[:, :, 1:4], scale=0.3),
        F.scaled_dot_product_attention(x, x, x, torch.arange(25.0).view(5, 5).sin()),
        F.scaled_dot_product_attention(x, x, x, torch.arange(5).view(5, 1) > torch.arange(5)),  # one with no key
        torch.bmm(x[:, 0], x[:, 1].transpose(1, 2)),
        torch.addmm(torch.arange(3.0), x[:, 0, 0], torch.arange(18.0).view(6, 3).sin()),
    ),
    "convolutions": lambda x: (
        F.conv2d(x, torch.ones(2, 2, 3, 3), None, 2, 1, 1, 2),
        F.conv2d(x, torch.ones(3, 4, 3, 2), torch.ones(3), padding="same"),
        F.conv_transpose2d(x, torch.ones(4, 2, 3, 3), None, 2, 1, 1),
    ),
}


@pytest.mark.parametrize("ops", OPS)
def test_rules_of_the_table(ops, monkeypatch):
    """What a file computes is what torch does, in values and types, at other batches than the one captured."""
    monkeypatch.setattr(torch.onnx, "export", None)

    class Module(nn.Module):
        def forward(self, clip):
            return OPS[ops](clip)

    weights = torch.arange(4 * 5 * 6).view(4, 5, 6).sin()
    expected = Module()(torch.randn(3, 4, 5, 6))
    proto = exporter.convert(Module().eval(), (torch.randn(3, 4, 5, 6),), [f"y{i}" for i in range(len(expected))])
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 2):
        clip = torch.randn(batch, 4, 5, 6) + weights
        for got, want in zip(session.run(None, {"clip": clip.numpy()}), Module()(clip), strict=True):
            torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-5, atol=1e-5)


def test_two_free_axes_are_kept_apart(monkeypatch):
    """As where a chunk of integrated gradients has free classes beside its free clips."""
    monkeypatch.setattr(torch.onnx, "export", None)

    class Module(nn.Module):
        def forward(self, clip, classes):
            rows = (clip.unsqueeze(0) * clip.new_ones(2, 1, 1, 1, 1)).flatten(0, 1)  # [2 N, 4, 5, 6]
            pairs = rows.unsqueeze(1) + classes.repeat(2, 1)[:, :, None, None, None]  # [2 N, M, 4, 5, 6]
            return pairs.unflatten(0, (2, -1)), pairs.flatten(2, 3)

    inputs = torch.randn(3, 4, 5, 6), torch.randn(3, 2)
    axes = [{0: "N"}, {0: "N", 1: "M"}]
    proto = exporter.convert(Module().eval(), inputs, ("pairs", "flat"), axes=axes)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for n, m in ((1, 1), (4, 3)):
        clip, classes = torch.randn(n, 4, 5, 6), torch.randn(n, m)
        results = session.run(None, {"clip": clip.numpy(), "classes": classes.numpy()})
        for got, want in zip(results, Module()(clip, classes), strict=True):
            torch.testing.assert_close(torch.from_numpy(got), want)


@pytest.mark.parametrize("numbers, folded", [(32, True), (onnx_write.LARGEST_FOLDED, False)])
def test_small_constants_are_folded(numbers, folded):
    """What is made of large ones is not: it would stand in the file beside them."""

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, numbers))

        def forward(self, clip):
            return (clip * self.weight.t().flatten().cos().sum(),)

    module, clip = Module().eval(), torch.randn(3, 4, 5, 6)
    proto = exporter.convert(module, (clip,), ["y"])
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds == (["Mul"] if folded else [*kinds[:-2], "ReduceSum", "Mul"])
    assert sum(len(tensor.raw_data) for tensor in proto.graph.initializer) <= (64 if folded else 9 * numbers)
    (got,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"clip": clip.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), module(clip)[0].detach(), rtol=1e-4, atol=1e-4)


def test_what_the_table_lacks_is_written_by_torch():
    class Module(nn.Module):
        def forward(self, clip):
            return (torch.asinh(clip),)

    proto = exporter.convert(Module().eval(), (torch.randn(3, 4, 5, 6),), ["y"])
    assert [node.op_type for node in proto.graph.node] == ["Asinh"]
