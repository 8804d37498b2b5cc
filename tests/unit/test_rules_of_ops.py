"""Every kind of op that the table knows, in a tiny network, on the way back by every method, in float64.

Gradients against autograd; guided backpropagation and relevance against the stated rule, computed from the Jacobian of
the op (docs/relevance-rules.md). A batch of one and of three, two classes at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import clipsight
import networks
from clipsight import AttachError
from clipsight.dataflow import capture
from clipsight.graph.table import KINDS, kind_of, varying
from clipsight.heads import DeepTaylor, GuidedBackprop, InputGradient, LRPEpsilon
from gradient_networks import HIGH, LOW, RAW, clip, off

SIZE = (4, 4, 4)
BOUND = 1e-9
COARSE = 1e-7  # torch's own derivative of a hardsigmoid has a sixth in float32
CHOSEN = [3, 1]


class Around(nn.Module):
    """Ops side by side, each behind a convolution or two of its own, and a linear layer that tells all places apart."""

    def __init__(self, *ops: Callable[..., Tensor], positive: bool = False) -> None:
        super().__init__()
        self.ops = nn.ModuleList(op if isinstance(op, nn.Module) else Function(op) for op in ops)
        self.stems = nn.ModuleList(nn.ModuleList(nn.Conv3d(3, 4, 1) for _ in range(arity(op))) for op in ops)
        for tensor in (p for p in self.stems.parameters() if p.dim() == 1):  # the parts are of both signs, or of one
            nn.init.constant_(tensor, 6.0 if positive else 0.1)
        if positive:
            for module in self.ops.modules():
                for parameter in module.parameters(recurse=False):
                    parameter.data.abs_()
        self.fc = nn.Linear(len(self.hidden(torch.zeros(2, 3, *SIZE))[0]), 5, bias=not positive)
        self.fc.weight.data *= 5
        if positive:
            self.fc.weight.data.abs_()

    def parts(self, x: Tensor) -> list[list[Tensor]]:
        return [[stem(x) for stem in stems] for stems in self.stems]

    def hidden(self, x: Tensor) -> Tensor:
        of_ops = zip(self.ops, self.parts(x), strict=True)
        return torch.cat([op(*parts).flatten(1) for op, parts in of_ops], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.hidden(x))


class Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *parts: Tensor) -> Tensor:
        return self.function(*parts)


def arity(op: Callable) -> int:
    """How many tensors it takes."""
    parameters = inspect.signature(op.forward if isinstance(op, nn.Module) else op).parameters.values()
    return sum(parameter.default is parameter.empty for parameter in parameters)


class With(nn.Module):
    """A function of a part and of parameters that are normally distributed."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for i, shape in enumerate(shapes):
            self.register_parameter(f"weight{i}", nn.Parameter(torch.randn(shape)))

    def forward(self, a: Tensor) -> Tensor:
        return self.function(a, *self.parameters())


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, a: Tensor) -> Tensor:
        return self.layer(a.mean((3, 4)).transpose(1, 2))[0]


class Flat(nn.Module):
    """A layer of one axis."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, a: Tensor) -> Tensor:
        return self.layer(a.flatten(2))


class NewStatistics(nn.Module):
    """A batch norm, or an instance norm, whose statistics and weights are those of no initialization."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        for tensor in (*norm.parameters(), *norm.buffers()):
            if tensor.is_floating_point():
                tensor.data.uniform_(0.5, 1.5)

    def forward(self, a: Tensor) -> Tensor:
        return self.norm(a.clone())  # a norm right behind a convolution would be folded into it


def tokens(a: Tensor) -> Tensor:
    return a.flatten(2).transpose(1, 2)


def t_major(a: Tensor) -> Tensor:
    """`[T * N, ...]`: frames in front of samples, and back again."""
    frames = torch.relu(a.permute(2, 0, 1, 3, 4).flatten(0, 1) - 0.2)
    return frames.unflatten(0, (4, -1)).transpose(0, 1)


INDEX = torch.tensor([2, 0, -1, 2])

# kind: functions of one or two tensors [N, 4, 4, 4, 4], or what makes a module of one.
CASES: dict[str, list[Callable]] = {
    "reshape": [lambda a: a.view(a.shape[0], 2, -1), lambda a: a.unsqueeze(2).squeeze(2).unflatten(1, (2, 2))],
    "permute": [lambda a: a.permute(0, 3, 1, 4, 2), lambda a: a.movedim(-1, 1), lambda a: a.transpose(1, -1), t_major],
    "identity": [lambda a: a.clone().contiguous()],
    "dropout": [lambda a: F.dropout(a, 0.5, False)],
    "cat": [lambda a, b: torch.cat([a, b, a[:, :1]], 1), lambda a, b: torch.cat([a, b]).unflatten(0, (2, -1)).sum(0)],
    "stack": [lambda a, b: torch.stack([a, b], 2)],
    "pad": [lambda a: F.pad(a, [1, 2, -1, 0, 0, 1])],
    "replicate pad": [lambda a: F.pad(a, [1, 2, 0, 1, 2, 0], "replicate")],
    "reflect pad": [lambda a: F.pad(a, [1, 2, 0, 1, 2, 0], "reflect")],
    "circular pad": [lambda a: F.pad(a, [1, 2, 0, 1, 2, 0], "circular")],
    "slice": [lambda a: a[:, 1:, ::3, -3:-1], lambda a: a.narrow(2, 1, 2)],
    "select": [lambda a: a[:, :, -1], lambda a: a.select(3, 1)],
    "index": [
        lambda a: a[:, :, INDEX],
        lambda a: a[:, INDEX, INDEX],
        lambda a: a[torch.arange(a.shape[0]), 1],
        lambda a: a[:, :, INDEX.view(2, 2)],
    ],
    "index_select": [
        lambda a: a.index_select(2, torch.tensor([2, 0, 2])),
        lambda a: a.gather(2, a.argsort(2)[:, :, :2]),
    ],
    "slice_scatter": [lambda a, b: a.slice_scatter(b[:, :, :2], 2, 1, 3)],
    "split": [
        lambda a: torch.cat(a.split([1, 2, 1], 1)[::-1], 1),
        lambda a: a.chunk(4, 2)[1],
        lambda a: torch.stack(a.unbind(2)[1:3], 2),
    ],
    "expand": [lambda a: a.mean(2, keepdim=True).expand(-1, -1, 3, -1, -1)],
    "repeat": [lambda a: a.repeat(1, 1, 2, 1, 1), lambda a: a.repeat_interleave(2, 2)],
    "flip": [lambda a: a.flip(2, -1)],
    "roll": [lambda a: a.roll((1, 2), (2, 4))],
    "unfold": [lambda a: a.unfold(2, 2, 1)],
    "pixel_shuffle": [lambda a: F.pixel_shuffle(a.transpose(1, 2), 2)],
    "add": [
        lambda a, b: a + b,
        lambda a, b: torch.sub(a, b[:, :, :1], alpha=2),
        lambda a: 1 - a,
        lambda a: With(lambda a, p: p + a, (4, 1, 1, 1)),
        lambda a, b: a + b.mean((2, 3, 4), keepdim=True),
    ],
    "scale": [lambda a: 2 * a, lambda a: -a, lambda a: With(lambda a, p: p * a, (4, 1, 1, 1))],
    "unscale": [lambda a: a / 3, lambda a: With(lambda a, p: a / p, (4, 1, 1, 1))],
    "batch_norm": [
        lambda a: NewStatistics(nn.BatchNorm3d(4)),
        lambda a: NewStatistics(nn.InstanceNorm3d(4, affine=True, track_running_stats=True)),
    ],
    "mean": [lambda a: a.mean((2, 4)), lambda a: a.mean(-1, keepdim=True)],
    "sum": [lambda a: a.sum((1, 2)), lambda a: a.sum(3, keepdim=True)],
    "avg_pool": [lambda a: F.avg_pool3d(a, 3, 2, 1, ceil_mode=True), lambda a: F.avg_pool1d(a.flatten(2), 3)],
    "adaptive_avg_pool": [lambda a: F.adaptive_avg_pool3d(a, (3, 1, None))],
    "interpolate": [
        lambda a: F.interpolate(a, size=(3, 5, 8), mode="trilinear", align_corners=False),
        lambda a: F.interpolate(a, scale_factor=2, mode="nearest"),
        lambda a: F.interpolate(a.flatten(1, 2), scale_factor=1.5, mode="bilinear", align_corners=True),
    ],
    "conv": [
        lambda a: nn.Conv3d(4, 6, (2, 3, 4), padding="same", bias=False),
        lambda a: nn.Conv3d(4, 6, 3, stride=2, padding=2, dilation=(1, 2, 1), groups=2, bias=False),
        lambda a: nn.utils.parametrizations.weight_norm(nn.Conv3d(4, 3, 2, bias=False)),
        lambda a: Flat(nn.Conv1d(4, 3, 3, stride=2, bias=False)),
    ],
    "conv_transpose": [
        lambda a: nn.ConvTranspose3d(4, 6, 3, 2, 1, 1, groups=2, bias=False),
        lambda a: nn.ConvTranspose3d(4, 3, 2, 2, bias=False),
    ],
    "linear": [lambda a: nn.Linear(4, 6, bias=False)],
    "relu": [lambda a: torch.relu(a), lambda a: F.relu(a + 0, inplace=True)],
    "relu6": [lambda a: F.relu6(4 * a)],
    "leaky_relu": [lambda a: F.leaky_relu(a, 0.1)],
    "prelu": [lambda a: nn.PReLU(4)],
    "hardtanh": [lambda a: F.hardtanh(a), lambda a: a.clamp(min=0.1), lambda a: a.clamp(-0.5, 0.5)],
    "threshold": [lambda a: F.threshold(a, 0.2, 0.0)],
    "elu": [F.elu, F.selu, F.celu],
    "gelu": [lambda a: F.gelu(a), lambda a: F.gelu(a, approximate="tanh")],
    "silu": [lambda a: F.silu(a), lambda a: a * torch.sigmoid(a)],
    "mish": [lambda a: F.mish(a)],
    "hardswish": [lambda a: F.hardswish(a), lambda a: a * F.hardsigmoid(a)],
    "hardsigmoid": [lambda a: F.hardsigmoid(a)],
    "sigmoid": [lambda a: torch.sigmoid(a)],
    "log_sigmoid": [lambda a: F.logsigmoid(a)],
    "tanh": [lambda a: torch.tanh(a)],
    "softplus": [lambda a: F.softplus(a)],
    "function": [lambda a: torch.exp(a), lambda a: 2 / (a * a + 1), lambda a: a.pow(2), lambda a: (a.abs() + 1).sqrt()],
    "max_pool": [
        lambda a: F.max_pool3d(a, 3, 2, 1, ceil_mode=True),
        lambda a: F.max_pool3d(a, 2, 1, 0, (1, 2, 1)),
        lambda a: F.max_pool2d(a.transpose(1, 2).flatten(0, 1), 2).unflatten(0, (-1, 4)),
    ],
    "max_pool_with_indices": [lambda a: F.max_pool3d(a, 2, return_indices=True)[0]],
    "adaptive_max_pool": [lambda a: F.adaptive_max_pool3d(a, 2), lambda a: F.adaptive_max_pool3d(a, (3, 1, 2))],
    "amax": [lambda a: a.amax((2, 3)), lambda a: a.amin(-1, keepdim=True)],
    "max": [lambda a, b: torch.maximum(a, b), lambda a: a.max(2)[0], lambda a, b: torch.minimum(a, b[:, :, :1])],
    "topk": [lambda a: a.topk(2, 2)[0], lambda a: a.flatten(2).sort(-1)[0]],
    "where": [lambda a, b: torch.where(a > b, a, b)],
    "mask": [
        lambda a: a.masked_fill(torch.arange(4) > 1, -1.0),
        lambda a, b: torch.where(torch.arange(4) > 1, a, b),
    ],
    "mul": [lambda a, b: a * b, lambda a, b: a * b.mean((2, 3, 4), keepdim=True).sigmoid(), lambda a: a * a],
    "div": [lambda a, b: a / (b * b + 1), lambda a: torch.ones((), dtype=a.dtype) / (a * a + 1)],
    "matmul": [
        lambda a: With(lambda a, p: a @ p, (4, 3)),
        lambda a: With(lambda a, p: p @ a, (3, 4)),
        lambda a, b: a @ b,
        lambda a, b: torch.bmm(tokens(a), tokens(b).transpose(1, 2)),
        lambda a, b: torch.softmax(a, -1) @ b,
    ],
    "einsum": [
        lambda a: With(lambda a, p: torch.einsum("ncthw,ck->nkthw", a, p), (4, 3)),
        lambda a, b: torch.einsum("ncthw,nkthw->nckt", a, b),
    ],
    "layer_norm": [lambda a: nn.LayerNorm((4, 4)), lambda a: F.layer_norm(a, (4,))],
    "rms_norm": [lambda a: nn.RMSNorm(4)],
    "group_norm": [lambda a: nn.GroupNorm(2, 4)],
    "instance_norm": [lambda a: nn.InstanceNorm3d(4, affine=True)],
    "batch_statistics": [lambda a: nn.BatchNorm3d(4, track_running_stats=False)],
    "softmax": [lambda a: torch.softmax(a, 1)],
    "log_softmax": [lambda a: F.log_softmax(a, 2)],
    "normalize": [lambda a: F.normalize(a, dim=1), lambda a: a.std((2, 3)), lambda a: a.var(1, keepdim=True)],
    "attention": [
        lambda a, b: F.scaled_dot_product_attention(tokens(a), tokens(a), tokens(b)),
        lambda a, b: F.scaled_dot_product_attention(a, a, b, is_causal=True, scale=0.3),
        lambda a, b: F.scaled_dot_product_attention(a, a, b, torch.ones(4, 4, dtype=torch.bool).tril()),
    ],
    "recurrent": [
        lambda a: Recurrent(nn.LSTM(4, 5, proj_size=3, bias=False, batch_first=True)),
        lambda a: Recurrent(nn.GRU(4, 5, batch_first=True)),
        lambda a: Recurrent(nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True)),
        lambda a: Recurrent(nn.RNN(4, 5, nonlinearity="relu", batch_first=True)),
    ],
}
Case = tuple[str, int]
ALL: list[Case] = [(kind, i) for kind, cases in CASES.items() for i in range(len(cases))]
NOT_WALKED = {"random", "compare", "integers"}

# What rule an op has, by its kind.
RECTIFIES = [
    "relu",
    "relu6",
    "leaky_relu",
    "prelu",
    "hardtanh",
    "threshold",
    "elu",
    "gelu",
    "silu",
    "mish",
    "hardswish",
]
NOT_GUIDED = ["log_sigmoid", "softplus", "function", "recurrent"]
NO_RULE = [*NOT_GUIDED, "normalize"]  # of relevance
PASSES = [
    *RECTIFIES,
    *["hardsigmoid", "sigmoid", "tanh", "batch_norm", "scale", "unscale", "layer_norm", "rms_norm", "group_norm"],
]
PASSES += ["instance_norm", "batch_statistics", "softmax", "log_softmax"]
SHARES = ["add", "mean", "sum", "avg_pool", "adaptive_avg_pool", "interpolate"]
WEIGHTS = ["conv", "conv_transpose", "linear"]

# Several ops, whose rules do not simply follow one another.
CHAINS = [("permute", 3), ("cat", 1), ("expand", 0), ("add", 4), ("mul", 1), ("matmul", 4), ("normalize", 0)]


def roles() -> dict[str, list[Case]]:
    """The first two cases of each kind, by the role of the kind."""
    known = {kind.name: kind.role.name for kind in KINDS.values()}
    known |= {"unscale": "SCALES", "mask": "SCALES", "batch_statistics": "NORMALIZES"}
    found: dict[str, list[Case]] = {}
    for kind, i in ALL:
        if i < 2:
            found.setdefault(known[kind], []).append((kind, i))
    return found


def groups() -> list:
    """All cases of a role together; and, in `make test-all`, each by itself."""
    quick = [pytest.param(cases, id=role.lower()) for role, cases in roles().items()]
    return quick + [pytest.param([case], id=f"{case[0]}-{case[1]}", marks=pytest.mark.full) for case in ALL]


def build(cases: list[Case], positive: bool = False) -> Around:
    """Their network; a case whose function gives a module is one of that module."""

    def make() -> Around:
        ops = []
        for kind, number in cases:
            case = CASES[kind][number]
            made = case(torch.randn(2, 4, *SIZE)) if arity(case) == 1 else None
            ops.append(made if isinstance(made, nn.Module) else case)
        return Around(*ops, positive=positive)

    return networks.seeded(make).double()


def x_of(batch: int = 3) -> Tensor:
    return clip(batch, SIZE)


def explain(network: nn.Module, heads: list, *clips: Tensor) -> list[list[Tensor]]:
    """Of each clip, by each head, `[N, M, 3, T, H, W]`."""
    explained = clipsight.explain(network, heads, x_of(1), CHOSEN)
    with torch.inference_mode():
        return [[map.unflatten(1, (2, 3)) for map in explained(x)[1:]] for x in clips]


def test_every_kind_of_the_table_has_a_case():
    assert {kind.name for kind in KINDS.values()} <= CASES.keys() | NOT_WALKED


@pytest.mark.full
@pytest.mark.parametrize("kind, number", ALL)
def test_a_case_is_one_of_its_kind(kind, number):
    graph = capture(build([(kind, number)]), (3, *SIZE), {"dtype": torch.float64, "device": "cpu"}).graph
    varies = varying(graph)
    found = {kind_of(node, varies).name for node in graph.nodes if node in varies}
    assert kind in found or (kind in ("silu", "hardswish") and "mul" in found)  # a product with its own sigmoid, too


@pytest.mark.parametrize("cases", groups())
def test_a_gradient_is_autograds(cases):
    network, clips = build(cases), [x_of(1), x_of(3)]
    coarse = any(kind.startswith("hards") for kind, _ in cases)
    for x, (ours,) in zip(clips, explain(network, [InputGradient(**RAW)], *clips), strict=True):
        leaf = x.clone().requires_grad_()
        logits = network(leaf)
        scores = [torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=True)[0] for k in CHOSEN]
        assert off(ours, torch.stack(scores, 1) * x[:, None]) < (COARSE if coarse else BOUND)


# ---- Guided backpropagation and relevance, by the Jacobian of each op -----------------------------------------------


def slow_guided(network: Around, cases: list[Case], x: Tensor, k: int) -> Tensor:
    leaf = x.clone().requires_grad_()
    total, at = torch.zeros_like(x), 0
    for op, parts, (kind, _) in zip(network.ops, network.parts(leaf), cases, strict=True):
        hidden = op(*parts)
        count = hidden[0].numel()
        g = network.fc.weight[k, at : at + count].expand(len(x), -1).reshape(hidden.shape)
        at += count
        sent = torch.autograd.grad(hidden, parts, g.clamp_min(0) if kind in RECTIFIES else g, retain_graph=True)
        if kind in RECTIFIES:
            sent = tuple(torch.where(part > 0, g, 0.0) for part, g in zip(parts, sent, strict=True))
        total += torch.autograd.grad(parts, leaf, sent, retain_graph=True)[0]
    return total


def quotient(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b == 0, 0.0, a / b)


def away(z: Tensor) -> Tensor:
    return z + torch.where(z < 0, -1e-6, 1e-6)


def through_dense(method: str, matrix: Tensor, bias: Tensor | None, x: Tensor, arrived: Tensor) -> Tensor:
    """A layer of weights `[outputs, inputs]`, by z+ or epsilon."""
    if method == "deep_taylor":
        plus, positive = matrix.clamp_min(0), x.clamp_min(0)
        return positive * (plus.T @ quotient(arrived, plus @ positive))
    z = matrix @ x if bias is None else matrix @ x + bias
    return x * (matrix.T @ (arrived / away(z)))


def through_op(method: str, kind: str, op: nn.Module, parts: list[Tensor], arrived: Tensor) -> list[Tensor]:
    """Relevance of the op's inputs, by the rule that docs/relevance-rules.md states."""

    def jacobians(*parts: Tensor) -> list[Tensor]:
        found = torch.autograd.functional.jacobian(op, parts, vectorize=True)
        return [j.reshape(-1, part.numel()) for j, part in zip(found, parts, strict=True)]

    flat = [part.flatten() for part in parts]
    if kind in PASSES or (kind == "add" and len(parts) == 1):
        return [arrived]
    if kind == "div":
        return [arrived, torch.zeros_like(arrived)] if len(parts) == 2 else [torch.zeros_like(flat[0])]
    if kind in WEIGHTS or (kind in ("matmul", "einsum") and len(parts) == 1):
        return [through_dense(method, jacobians(*parts)[0], None, flat[0], arrived)]
    matrices, y = jacobians(*parts), op(*parts).flatten()
    if kind in SHARES:
        return [x * (m.T @ quotient(arrived, y)) for x, m in zip(flat, matrices, strict=True)]
    if kind == "mul":
        return [x * (m.T @ quotient(arrived, y)) / 2 for x, m in zip(flat, matrices, strict=True)]
    if kind in ("matmul", "einsum"):
        plus = [part.clamp_min(0) for part in parts] if method == "deep_taylor" else parts
        share = quotient(arrived, op(*plus).flatten()) if method == "deep_taylor" else arrived / away(y)
        return [p.flatten() * (m.T @ share) / 2 for p, m in zip(plus, jacobians(*plus), strict=True)]
    if kind == "attention":  # (a, a, b): to the values, b
        return [torch.zeros_like(flat[0]), through_dense(method, matrices[1], None, flat[1], arrived)]
    return [m.T @ arrived for m in matrices]  # what moves and what chooses: where the values came from


def slow_relevance(method: str, network: Around, cases: list[Case], x: Tensor, k: int) -> Tensor:
    """Of one clip `[1, 3, T, H, W]`, one class."""
    hidden, total, at = network.hidden(x).flatten(), torch.zeros_like(x), 0
    bias = None if network.fc.bias is None else network.fc.bias[k : k + 1]
    of_hidden = through_dense(method, network.fc.weight[k : k + 1], bias, hidden, torch.ones(1).double())
    for op, stems, parts, (kind, _) in zip(network.ops, network.stems, network.parts(x), cases, strict=True):
        arrived = of_hidden[at : at + op(*parts).numel()]
        at += len(arrived)
        for stem, part, sent in zip(stems, parts, through_op(method, kind, op, parts, arrived), strict=True):
            sent, weight = sent.view_as(part), stem.weight
            if method == "lrp_epsilon":
                total += x * F.conv_transpose3d(sent / away(part), weight)
                continue
            low, high = (torch.tensor(b, dtype=x.dtype).view(1, 3, 1, 1, 1).expand_as(x) for b in (LOW, HIGH))
            plus, minus = weight.clamp_min(0), weight.clamp_max(0)
            share = quotient(sent, F.conv3d(x - low, plus) + F.conv3d(x - high, minus))
            total += (x - low) * F.conv_transpose3d(share, plus) + (x - high) * F.conv_transpose3d(share, minus)
    return total


RELEVANCE = {"deep_taylor": DeepTaylor(LOW, HIGH, **RAW), "lrp_epsilon": LRPEpsilon(**RAW)}


def ruled(cases: list[Case], without: list[str]) -> list[Case]:
    cases = [case for case in cases if case not in CHAINS and case[0] not in without]
    if not cases:
        pytest.skip("no rule of its own")
    return cases


@pytest.mark.parametrize("cases", groups())
def test_guided_backpropagation_is_what_the_rule_says(cases):
    cases = ruled(cases, NOT_GUIDED)
    network, x = build(cases), x_of(2)
    ((ours,),) = explain(network, [GuidedBackprop(**RAW)], x)
    expected = torch.stack([slow_guided(network, cases, x, k) for k in CHOSEN], 1)
    assert off(ours, expected) < (COARSE if any(kind.startswith("hards") for kind, _ in cases) else BOUND)


@pytest.mark.parametrize("cases", groups())
@torch.no_grad()
def test_relevance_is_what_the_rule_says(cases):
    cases = ruled(cases, NO_RULE)
    network, x = build(cases), x_of(1)
    (ours,) = explain(network, list(RELEVANCE.values()), x)
    for method, map in zip(RELEVANCE, ours, strict=True):
        expected = torch.stack([slow_relevance(method, network, cases, x, k) for k in CHOSEN], 1)
        if expected.any():
            assert off(map, expected) < BOUND, method
        else:  # a denominator alone leads to the class, or nothing positive arrives
            assert not map.any()


@pytest.mark.parametrize("wrong", ["mul", "attention", "matmul", "pad"])
@torch.no_grad()
def test_the_comparison_sees_another_rule(wrong, monkeypatch):
    """All of it to where the values came from, or nothing of it there."""
    cases = [case for case in ALL if case[0] == wrong and case not in CHAINS][-1:]
    network, x = build(cases), x_of(1)
    ours = explain(network, [RELEVANCE["deep_taylor"]], x)[0][0][:, 0]
    assert off(ours, slow_relevance("deep_taylor", network, cases, x, CHOSEN[0])) < BOUND
    monkeypatch.setattr("test_rules_of_ops.through_op", lambda method, kind, op, parts, arrived: [p + 1 for p in parts])
    assert off(ours, slow_relevance("deep_taylor", network, cases, x, CHOSEN[0])) > 1e-2


# What arrives at a constant is lost, at a denominator, and where nothing is positive.
LOSES = ["pad", "mask", "div", "log_softmax"]


@pytest.mark.parametrize("cases", [pytest.param(c, id=role.lower()) for role, c in roles().items()])
def test_relevance_is_conserved(cases):
    """By deep Taylor decomposition it is 1 in all, where every layer has positive inputs."""
    network, x = build(ruled(cases, [*NO_RULE, *LOSES]), positive=True), x_of(2)
    ((ours,),) = explain(network, [RELEVANCE["deep_taylor"]], x)
    assert (ours.sum((2, 3, 4, 5)) - 1).abs().max() < 1e-9


class Gated(nn.Module):
    """A signal, times a gate that only the second colour opens, or weighed by an attention that only that one makes."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.signal, self.gate, self.fc = (nn.Conv3d(3, 4, 1), nn.Conv3d(3, 4, 1), nn.Linear(4, 5))
        self.signal.weight.data[:, 1] = 0
        self.gate.weight.data[:, [0, 2]] = 0
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.product(self.signal(x), self.gate(x)).mean((2, 3, 4)))


@pytest.mark.parametrize(
    "product, gets_none",
    [
        (lambda a, b: a * b.mean((2, 3, 4), keepdim=True).sigmoid().expand_as(a), True),
        (lambda a, b: torch.softmax(2 * b, -1) @ a, True),
        (lambda a, b: a.tanh() * b.mean((2, 3, 4), keepdim=True), False),
        (lambda a, b: a.sigmoid() * b.sigmoid(), False),
    ],
    ids=["gate", "attention", "two signals", "two gates"],
)
def test_a_gate_gets_no_relevance(product, gets_none):
    network = networks.seeded(lambda: Gated(product)).double()
    for map in explain(network, [LRPEpsilon(**RAW)], x_of(1))[0]:
        assert map[:, :, [0, 2]].abs().max() > 1e-3
        assert (map[:, :, 1].abs().max() == 0) == gets_none


def test_a_product_with_its_own_sigmoid_is_a_silu():
    """The rule of an activation, not of a product: guided, and as relevance."""
    networks_of = [networks.seeded(lambda op=op: Around(op)).double() for op in (CASES["silu"])]
    heads = [GuidedBackprop(**RAW), *RELEVANCE.values()]
    called, written = (explain(network, heads, x_of(2))[0] for network in networks_of)
    assert all(off(a, b) < BOUND for a, b in zip(called, written, strict=True))


@pytest.mark.parametrize(
    "pool",
    [
        lambda a: F.max_pool3d(a, 2, 1, 1, (1, 2, 1)),
        lambda a: F.max_pool1d(a.flatten(2), 3, 2, 1, ceil_mode=True),
        lambda a: F.max_pool3d(a, 2, 2, 1, ceil_mode=True),
    ],
    ids=["dilated", "one axis", "three"],
)
@torch.no_grad()
def test_a_max_pooling_in_proportion(pool, monkeypatch):
    """In windows of every kind."""

    def in_proportion(method, kind, op, parts, arrived):
        eye = torch.eye(parts[0].numel(), dtype=parts[0].dtype).view(-1, *parts[0].shape[1:])
        inside = (torch.cat([pool(one[None] + 0.0) for one in eye]).flatten(1).T > 0).double()  # [outputs, inputs]
        x = parts[0].flatten()
        return [x * (inside.T @ quotient(arrived, inside @ x))]

    monkeypatch.setitem(CASES, "pool", [pool])
    network, x = build([("pool", 0)]), x_of(1)
    heads = [replace(head, max_pool="proportional") for head in RELEVANCE.values()]
    winner = explain(network, list(RELEVANCE.values()), x)[0]
    monkeypatch.setattr("test_rules_of_ops.through_op", in_proportion)
    for method, map, other in zip(RELEVANCE, explain(network, heads, x)[0], winner, strict=True):
        expected = torch.stack([slow_relevance(method, network, [("pool", 0)], x, k) for k in CHOSEN], 1)
        assert off(map, expected) < BOUND
        assert off(other, expected) > 1e-2


class Prepared(nn.Module):
    """A network that makes its clip ready itself: colours scaled and shifted, one turned over, every other frame."""

    def __init__(self) -> None:
        super().__init__()
        self.slow, self.fast, self.fc = nn.Conv3d(3, 4, 2), nn.Conv3d(3, 4, 3, padding=1), nn.Linear(8, 5)
        self.register_buffer("mean", torch.tensor([0.4, -0.2, 0.1]).view(3, 1, 1, 1))
        self.register_buffer("std", torch.tensor([0.5, 2.0, -1.5]).view(3, 1, 1, 1))

    def prepared(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def inside(self, slow: Tensor, fast: Tensor) -> Tensor:
        parts = [torch.relu(self.slow(slow)).mean((2, 3, 4)), torch.relu(self.fast(fast)).mean((2, 3, 4))]
        return self.fc(torch.cat(parts, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.prepared(x)
        return self.inside(F.pad(x[:, :, ::2], (0, 1)), x)


class Ready(Prepared):
    def prepared(self, x: Tensor) -> Tensor:
        return x


def test_the_box_goes_through_what_a_network_does_to_its_clip():
    """Deep Taylor decomposition is that of the network without that, on a clip and a box that have it done."""
    inside, x = networks.seeded(Prepared).double(), x_of(2)
    ready = networks.seeded(Ready).double()
    bounds = (torch.tensor(bound, dtype=torch.float64).view(1, 3, 1, 1, 1) for bound in (LOW, HIGH))
    ends = [inside.prepared(bound).flatten().tolist() for bound in bounds]
    low, high = (tuple(pick(pair) for pair in zip(*ends, strict=True)) for pick in (min, max))
    (ours,) = explain(inside, [RELEVANCE["deep_taylor"]], x)[0]
    (theirs,) = explain(ready, [DeepTaylor(low, high, **RAW)], inside.prepared(x))[0]
    assert off(ours, theirs) < BOUND
    (other,) = explain(ready, [DeepTaylor(LOW, HIGH, **RAW)], inside.prepared(x))[0]
    assert off(other, theirs) > 1e-3


# ---- What has no rule -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [GuidedBackprop(**RAW), *RELEVANCE.values()], ids=lambda head: head.name)
@pytest.mark.parametrize("kind, op", [("recurrent", "gru"), ("softplus", "softplus"), ("function", "exp")])
def test_a_method_without_a_rule_says_which_head_has_one(kind, op, head):
    with pytest.raises(AttachError, match=rf"(?s)no rule for '{op}' in '.*GradCAM, InputGradient and Integrated"):
        explain(build([(kind, {"gru": 1}.get(op, 0))]), [head], x_of(1))


@pytest.mark.parametrize("head", [InputGradient(**RAW), GuidedBackprop(**RAW)], ids=lambda head: head.name)
def test_random_numbers_are_refused(head):
    """A dropout that drops in eval mode: what is drawn on the way back would be other numbers."""
    network = Around(lambda a: F.dropout(a, 0.5)).double().eval()
    with pytest.raises(AttachError, match=r"no rule for 'dropout in training' in 'ops\.0'"):
        explain(network, [head], x_of(1))


@pytest.mark.parametrize("op", [lambda a: a.cumsum(0), lambda a: a.sort(0)[0]], ids=["cumsum", "sort"])
def test_samples_that_an_op_mixes_are_refused(op):
    """Its recorded derivative would mix the classes with them."""
    with pytest.raises(AttachError, match=r"must treat the samples of a batch one by one"):
        explain(Around(op).double().eval(), [InputGradient(**RAW)], x_of(1))


@pytest.mark.parametrize("op", [torch.round, lambda a: (a > 0).to(a)], ids=["round", "gt"])
def test_an_op_without_a_derivative_is_named(op):
    with pytest.raises(AttachError, match=r"must have a derivative by .* behind '(round|gt)' in 'ops\.0' they do not"):
        explain(Around(lambda a: op(a)).double().eval(), [InputGradient(**RAW)], x_of(1))
