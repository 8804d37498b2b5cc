"""The one view of a network's graph: what axes are, where the affine part begins, its rows, and Grad-CAM's place."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import clipsight
import networks
from clipsight import AttachError, GradCAM, SaliencyTube
from clipsight.dataflow import capture, without_mutation
from clipsight.graph.dataflow import Dataflow
from clipsight.graph.table import KINDS, Role

SIZE = (8, 32, 32)
RAW = SaliencyTube(normalize="none", size="features")


def net(forward, **modules) -> nn.Module:
    """`ModulePool` with another forward pass, and more modules."""

    class Net(networks.ModulePool):
        def __init__(self) -> None:
            super().__init__()
            for name, factory in modules.items():
                setattr(self, name, factory())

    Net.forward = forward
    return networks.seeded(Net)


def flow_of(network: nn.Module, shape=(3, *SIZE)) -> tuple[torch.fx.GraphModule, Dataflow]:
    module = capture(network, shape, {"dtype": torch.float32, "device": "cpu"})
    without_mutation(module.graph)
    return module, Dataflow(module.graph)


# ---- One pooling in many forms ---------------------------------------------------------------------------------------


def _by_class(s, pooled):
    pairs = zip(s.fc.weight.split(1), s.fc.bias.split(1), strict=True)
    return torch.cat([F.linear(pooled, row, bias) for row, bias in pairs], 1)


def _by_halves(s, pooled):
    (first, second), (left, right) = pooled.split(6, 1), s.fc.weight.split(6, 1)
    return F.linear(first, left) + F.linear(second, right) + s.fc.bias


POOLED = {
    "mean": lambda s, x: s.fc(s.body(x).mean((2, 3, 4))),
    "time first": lambda s, x: s.fc(F.adaptive_avg_pool2d(s.body(x).mean(2), 1).flatten(1)),
    "time last": lambda s, x: s.fc(s.body(x).mean((3, 4)).mean(2)),
    "axis by axis": lambda s, x: s.fc(s.body(x).mean(-1).mean(-1).mean(-1)),
    "windows, then the rest": lambda s, x: s.fc(F.avg_pool3d(s.body(x), (2, 4, 4)).mean((2, 3, 4))),
    "flattened": lambda s, x: s.fc(s.body(x).flatten(2).mean(2)),
    "tokens": lambda s, x: s.fc(s.body(x).flatten(2).transpose(1, 2)).mean(1),
    "a sum over their number": lambda s, x: s.fc(s.body(x).sum((2, 3, 4)) / 256),
    "channels last": lambda s, x: s.fc(F.adaptive_avg_pool3d(s.body(x), 1).permute(0, 2, 3, 4, 1)).flatten(1),
    "the classifier in front": lambda s, x: s.fc(s.body(x).permute(0, 2, 3, 4, 1)).mean((1, 2, 3)),
    "einsum": lambda s, x: torch.einsum("ncthw,kc->nk", s.body(x), s.fc.weight) / 256 + s.fc.bias,
    "matmul": lambda s, x: s.body(x).mean((2, 3, 4)) @ s.fc.weight.t() + s.fc.bias,
    "a convolution": lambda s, x: F.conv3d(s.pool(s.body(x)), s.fc.weight[..., None, None, None], s.fc.bias).flatten(1),
    "one class after the other": lambda s, x: _by_class(s, s.pool(s.body(x)).flatten(1)),
    "two halves of the channels": lambda s, x: _by_halves(s, s.pool(s.body(x)).flatten(1)),
    "times and over a temperature": lambda s, x: (s.fc(s.body(x).mean((2, 3, 4))) * 4) / 2 * 0.5,
    "a softmax behind": lambda s, x: s.fc(s.body(x).mean((2, 3, 4))).softmax(1),
    "logits and probabilities": lambda s, x: (lambda y: {"logits": y, "all": y.sigmoid()})(
        s.fc(s.pool(s.body(x)).flatten(1))
    ),
    "the batch by its length": lambda s, x: s.fc(s.pool(s.body(x)).view(len(x), -1)),
}


@pytest.mark.parametrize("form", POOLED)
@torch.no_grad()
def test_one_pooling_however_it_is_written(form):
    x = networks.clip(2, SIZE)
    expected = clipsight.explain(networks.seeded(networks.ModulePool), RAW, x[:1], classes=[2])(x)
    got = clipsight.explain(net(POOLED[form]), RAW, x[:1], classes=[2])(x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    other = clipsight.explain(net(POOLED[form]), RAW, x[:1], classes=[3])(x)[1]
    assert (other - expected[1]).abs().max() > 1e-2


FRAMES = {
    "the batch in front": lambda s, x: s.image(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, 8)).mean(1),
    "time in front": lambda s, x: s.image(x.permute(2, 0, 1, 3, 4).flatten(0, 1)).view(8, -1, 5).mean(0),
    "features averaged": lambda s, x: s.image.fc(
        s.image.body(x.transpose(1, 2).flatten(0, 1)).mean((2, 3)).unflatten(0, (-1, 8)).mean(1)
    ),
    "segments": lambda s, x: (
        s.image(x.unflatten(2, (4, 2)).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)).unflatten(0, (-1, 4, 2)).mean(2).mean(1)
    ),
}


@pytest.mark.parametrize("form", FRAMES)
@torch.no_grad()
def test_frames_in_the_batch_in_any_order(form):
    network, x = net(FRAMES[form], image=networks.Image), networks.clip(3, SIZE)
    image = network.image
    features = torch.stack([image.body(frame) for frame in x.unbind(2)], 2)
    for n in (1, 3):
        logits, cam = clipsight.explain(network, RAW, x[:1], classes=[1])(x[:n])
        torch.testing.assert_close(logits, network(x[:n]))
        expected = torch.einsum("c,ncthw->nthw", image.fc.weight[1], features[:n])
        torch.testing.assert_close(cam[:, 0], expected, rtol=1e-4, atol=1e-5)
    assert (features[0] - features[1]).abs().max() > 0.1


@torch.no_grad()
def test_the_classes_are_behind_the_grid_and_not_in_it():
    """A 1x1x1 classifier in front of the pooling: its input is explained, with its weights as rows."""
    network, x = networks.seeded(networks.PoolAfterHead), networks.clip(2, SIZE)
    explained = clipsight.explain(network, RAW, x)
    assert explained.describe()["explains"] == [{"layer": "body.4", "op": "relu", "channels": 12, "grid": [4, 8, 8]}]


class Two(networks.ModulePool):
    """The mean of two networks' logits."""

    def __init__(self) -> None:
        super().__init__()
        self.other = networks.ModulePool()

    def forward(self, x):
        return (super().forward(x) + self.other(x)) / 2


@torch.no_grad()
def test_two_networks_with_grids_of_one_size():
    network, x = networks.seeded(Two), networks.clip(3, SIZE)
    heads = [RAW, GradCAM(normalize="none", size="features", relu=False)]
    explained = clipsight.explain(network, heads, x[:1], classes=[1])
    logits, cam, grad_cam = explained(x)
    torch.testing.assert_close(logits, network(x))
    parts = [torch.einsum("c,ncthw->nthw", m.fc.weight[1], m.body(x)) for m in (network, network.other)]
    torch.testing.assert_close(cam[:, 0], (parts[0] + parts[1]) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grad_cam * 256, cam, rtol=1e-4, atol=1e-5)
    assert (cam[:, 0] - parts[0]).abs().max() > 0.1
    assert explained.describe()["explains"][0]["layer"] == "body.4 and other.body.4"


LAST = {
    "select": lambda s, x: s.fc(s.body(x)[:, :, -1].mean((2, 3))),
    "slice": lambda s, x: s.fc(s.body(x)[:, :, 3:].mean((2, 3, 4))),
    "per frame": lambda s, x: s.fc(s.body(x).mean((3, 4)).transpose(1, 2))[:, -1],
}


@pytest.mark.parametrize("form", LAST)
@torch.no_grad()
def test_places_that_no_class_looks_at_are_zero(form):
    network, x = net(LAST[form]), networks.clip(2, SIZE)
    cam = clipsight.explain(network, RAW, x, classes=[2])(x)[1][:, 0]
    expected = torch.einsum("c,ncthw->nthw", network.fc.weight[2], network.body(x))
    assert cam.shape == expected.shape
    assert (cam[:, :3] == 0).all()
    torch.testing.assert_close(cam[:, 3], expected[:, 3], rtol=1e-4, atol=1e-5)
    assert expected[:, :3].abs().max() > 0.1


def _of_two_grids(s, early):
    return s.fc(early.mean((2, 3, 4)).repeat(1, 2)[:, :12] + s.body[3:](early).mean((2, 3, 4)))


REFUSED = {
    "a linear layer on a flattened grid": (lambda s, x: s.wide(s.body(x).flatten(1)), "differ from place to place"),
    "frames that count unlike by class": (
        lambda s, x: torch.einsum("nct,kct->nk", s.body(x).mean((3, 4)), s.frames),
        "differ from place to place",
    ),
    "something curved behind the pooling": (lambda s, x: s.fc(s.pool(s.body(x)).flatten(1).relu()), "there is none"),
    "a mean and a maximum": (
        lambda s, x: (lambda y: s.fc(y.mean((2, 3, 4)) + y.amax((2, 3, 4))))(s.body(x)),
        "2 such|none",
    ),
    "two grids": (lambda s, x: _of_two_grids(s, s.body[:3](x)), "2 such grids"),
    "a recurrent layer": (lambda s, x: s.fc(s.rnn(s.body(x).mean((3, 4)).transpose(1, 2))[0][:, -1]), "there is none"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_where_no_tube_is_defined(form):
    forward, message = REFUSED[form]
    more = {
        "wide": lambda: nn.Linear(12 * 256, 5),
        "frames": lambda: nn.Parameter(torch.randn(5, 12, 4)),
        "rnn": lambda: nn.GRU(12, 12, batch_first=True),
    }
    network = net(forward, **more)
    with pytest.raises(AttachError, match=rf"global average pooling .*({message})(?s:.)*Grad-CAM explains it"):
        clipsight.explain(network, SaliencyTube(), networks.clip(1, SIZE))
    with pytest.raises(AttachError, match="Grad-CAM"):
        clipsight.explain(network, SaliencyTube(), networks.clip(1, SIZE), features="body")
    explained = clipsight.explain(network, GradCAM(), networks.clip(1, SIZE))
    grid = [8, 16, 16] if form == "two grids" else [4, 8, 8]  # the last one that all of the score comes through
    assert explained.describe()["explains"][0]["grid"] == grid


# ---- Grad-CAM's own place --------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv3d(12, 12, 3, padding=1), nn.BatchNorm3d(12)

    def forward(self, x):
        return F.relu(x + self.norm(self.conv(x)))


def _two_layers(pooled):
    return lambda s, x: s.fc(F.relu(s.hidden(pooled(s, x))))


def _both(grid):
    return grid.mean((2, 3, 4)) + grid.amax((2, 3, 4))


def _gated(s, grid):
    return grid * s.point(s.pool(grid)).sigmoid()


PLACES = {
    "two layers behind a mean": (_two_layers(lambda s, x: s.block(s.body(x)).mean((2, 3, 4))), "block", [4, 8, 8]),
    "a largest value": (
        _two_layers(lambda s, x: F.adaptive_max_pool3d(s.block(s.body(x)), 1).flatten(1)),
        "block",
        [4, 8, 8],
    ),
    "a mean in two steps": (_two_layers(lambda s, x: s.block(s.body(x)).mean((3, 4)).mean(2)), "block", [4, 8, 8]),
    "a mean beside a maximum": (_two_layers(lambda s, x: _both(s.block(s.body(x)))), "block", [4, 8, 8]),
    "a grid of one place behind the pooling": (
        _two_layers(lambda s, x: F.relu(s.point(s.pool(s.block(s.body(x))))).flatten(1)),
        "block",
        [4, 8, 8],
    ),
    "gates inside": (_two_layers(lambda s, x: _gated(s, s.block(s.body(x))).mean((2, 3, 4))), "", [4, 8, 8]),
    "as C3D": (
        lambda s, x: s.fc(F.relu(s.wide(F.max_pool3d(F.relu(s.last(s.body(x))), 2).flatten(1)))),
        "last",
        [4, 8, 8],
    ),
}


@pytest.mark.parametrize("form", PLACES)
def test_grad_cam_explains_what_is_pooled_last(form):
    forward, layer, grid = PLACES[form]
    more = {
        "hidden": lambda: nn.Linear(12, 12),
        "block": Residual,
        "point": lambda: nn.Conv3d(12, 12, 1),
        "last": lambda: nn.Conv3d(12, 12, 3, padding=1),
        "wide": lambda: nn.Linear(12 * 32, 12),
    }
    network, x = net(forward, **more), networks.clip(2, SIZE)
    explained = clipsight.explain(network, GradCAM(size="features", relu=False), x, classes=[1])
    (spot,) = explained.describe()["explains"]
    assert (spot["layer"], spot["grid"], spot["channels"]) == (layer, grid, 12)
    if not layer:
        return
    kept = []
    handle = network.get_submodule(layer).register_forward_hook(lambda m, a, out: kept.append(out) or out.retain_grad())
    network(x)[:, 1].sum().backward()
    handle.remove()
    expected = (kept[0].grad.mean((2, 3, 4), keepdim=True) * kept[0]).sum(1)
    torch.testing.assert_close(explained(x)[1][:, 0], expected.detach(), rtol=1e-3, atol=1e-6)


def _voting(s, x):
    """The classes but the first speak against themselves wherever there is a feature."""
    return F.linear(s.body(x).mean((2, 3, 4)), -s.fc.weight.abs(), s.fc.bias + 5)


BLANK = {
    "all evidence against": (_voting, GradCAM(), {}, "'body.4', all evidence is against the class, which relu=True"),
    "no gradient": (
        lambda s, x: s.fc(s.body(x).mean((2, 3, 4))).detach() + 0 * s.body(x).mean((2, 3, 4))[:, :5],
        GradCAM(layer="body"),
        {},
        "nothing arrives from the class",
    ),
    "dead features": (
        lambda s, x: s.fc(F.relu(s.body(x) - 100).mean((2, 3, 4))),
        SaliencyTube(),
        {},
        "all features are 0",
    ),
    "a single place": (
        lambda s, x: s.fc(F.relu(s.shrink(s.body(x))).mean((2, 3, 4))),
        SaliencyTube(),
        {},
        "single place",
    ),
    "split": (_voting, clipsight.SelectiveRelevance(of=GradCAM()), {}, "all evidence is against"),
}


@pytest.mark.filterwarnings("ignore:explain. the features of")
@pytest.mark.parametrize("form", BLANK)
def test_a_blank_map_is_said_and_why(form, recwarn):
    forward, head, options, message = BLANK[form]
    network = net(forward, shrink=lambda: nn.Conv3d(12, 12, (4, 8, 8)))
    with pytest.warns(UserWarning, match=f"explain: the map of .* is the same everywhere for the example: .*{message}"):
        clipsight.explain(network, head, networks.clip(1, SIZE), **options)
    recwarn.clear()
    clipsight.explain(networks.seeded(networks.ModulePool), head, networks.clip(1, SIZE))
    clipsight.explain(network, head, torch.zeros(1, 3, *SIZE))  # of which nothing can be said
    assert not [w for w in recwarn if "the same everywhere" in str(w.message)]


# ---- Axes ------------------------------------------------------------------------------------------------------------


def _windows(grid):
    """`[N, C, t, h, w]` -> `[N * windows, places of one, C]`, as transformers of windows have it."""
    parts = grid.unflatten(3, (2, 4)).unflatten(5, (2, 4))
    return parts.permute(0, 3, 5, 2, 4, 6, 1).flatten(0, 2).flatten(1, 3)


def _shifted(grid):
    return torch.cat([grid[:, :, 1:], torch.zeros_like(grid[:, :, :1])], 2) * 0 + grid


LAYOUTS = {
    "channels first": lambda s, x: s.body(x),
    "channels last": lambda s, x: s.body(x).permute(0, 2, 3, 4, 1),
    "time in the batch": lambda s, x: s.body(x).transpose(1, 2).flatten(0, 1),
    "time in front of the batch": lambda s, x: s.body(x).permute(2, 0, 1, 3, 4).flatten(0, 1),
    "tokens": lambda s, x: s.body(x).flatten(2).transpose(1, 2),
    "tokens behind a class token": lambda s, x: torch.cat(
        [s.token.expand(x.shape[0], -1, -1), s.body(x).flatten(2).transpose(1, 2)], 1
    ),
    "windows": lambda s, x: _windows(s.body(x)),
    "heads": lambda s, x: s.body(x).flatten(2).transpose(1, 2).unflatten(2, (3, 4)).transpose(1, 2),
    "pieces put together": lambda s, x: torch.cat([s.body(x)[:, :, :1], s.body(x)[:, :, 1:]], 2),
    "shifted in time": lambda s, x: _shifted(s.body(x)),
}


@pytest.mark.parametrize("form", LAYOUTS)
@torch.no_grad()
def test_a_tensor_of_any_layout_becomes_the_grid(form):
    """The layout's tensor, brought to `[N, C, t, h, w]` by its labels, is what it was made of."""
    network = net(LAYOUTS[form], token=lambda: nn.Parameter(torch.zeros(1, 1, 12)))
    module, flow = flow_of(network)
    (op,) = flow.outputs
    assert op.grid is not None, op.axes
    x = networks.clip(3, SIZE)
    torch.testing.assert_close(op.grid.of(module(x)[0]), network.body(x))
    several = torch.stack([module(x)[0], 2 * module(x)[0]])
    torch.testing.assert_close(op.grid.of(several, leading=1), torch.stack([network.body(x), 2 * network.body(x)]))


NO_GRID = {
    "a part of the frames": lambda s, x: s.body(x)[:, :, 1:],
    "mirrored": lambda s, x: s.body(x).flip(4),
    "averaged": lambda s, x: s.body(x).mean((2, 3, 4)),
    "flattened with the channels and split otherwise": lambda s, x: s.body(x).flatten(1).unflatten(1, (16, 4, 6, 8)),
}


@pytest.mark.parametrize("form", NO_GRID)
def test_no_grid_is_guessed(form):
    (op,) = flow_of(net(NO_GRID[form]))[1].outputs
    assert op.grid is None


class TokenOfTheFirstRows(networks.ModulePool):
    """As TimeSformer: every frame has a class token, which is picked from the first frames of the batch again."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 12)), nn.Parameter(torch.randn(1, 65, 12))

    def forward(self, x):
        frames = self.body(x).transpose(1, 2).flatten(0, 1).flatten(2).transpose(1, 2)  # [N * 4, 64, 12]
        tokens = torch.cat([self.token.expand(frames.shape[0], -1, -1), frames], 1) + self.positions
        first = tokens[: x.shape[0], 0, :]
        return self.fc(torch.tanh(first + tokens[:, 1:].unflatten(0, (-1, 4)).mean((1, 2))))


def test_a_token_that_no_clip_changes_is_known_as_such():
    network, x = networks.seeded(TokenOfTheFirstRows).double(), networks.clip(3, SIZE).double()
    explained = clipsight.explain(network, clipsight.InputGradient(normalize="none"), x, classes=[1])
    for n in (1, 3):
        clip = x[:n].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(clip)[:, 1].sum(), clip)
        logits, got = explained(x[:n])
        torch.testing.assert_close(logits, network(x[:n]).detach())
        torch.testing.assert_close(got[:, 0], (gradient * clip).sum(1).detach())


def test_ancestors_and_the_trunk():
    network = net(lambda s, x: s.fc(s.block(s.body(x)).mean((2, 3, 4))), block=Residual)
    flow = flow_of(network)[1]
    (logits,) = flow.outputs
    trunk = [op.path for op in flow.trunk(logits)]
    assert "body.4" in trunk
    assert "block.conv" not in trunk  # beside the identity
    assert {op.path for op in flow.ancestors(logits)} >= {"block.conv", "block.norm", "body.0"}
    assert flow.output_of("body", "layer").path == "body.4"
    with pytest.raises(AttachError, match=r"layer must name a module that the network runs, got 'tail'.*'fc'"):
        flow.output_of("tail", "layer")


def test_the_table_names_ops_of_torch():
    assert [name for name in KINDS if not hasattr(torch.ops.aten, name)] == []
    assert {kind.role for kind in KINDS.values()} <= set(Role)
