"""The gradient heads keep samples and classes apart, leave the model as it was, and refuse what they cannot explain."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import clipsight
import networks
from clipsight import AttachError, SelectiveRelevance
from clipsight.heads import (
    DeepTaylor,
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    InputGradient,
    IntegratedGradients,
    LRPEpsilon,
)
from clipsight.heads.base import Evidence
from gradient_networks import CLASSES, HEADS, HIGH, LOW, build, clip, explain, off
from pyramid_networks import Network, conv

QUICK = {method: head for method, head in HEADS.items() if method != "integrated_gradients"}


# ---- Samples and classes --------------------------------------------------------------------------------------------

# Classes whose logits in these networks are far from 0: epsilon-LRP divides by them, and with them its rounding.
FAR_FROM_0 = torch.tensor([4, 3, 2])


def worst_of_the_batch(network, head, x, classes) -> float:
    """How far a batch is from its samples one by one, in parts of each sample's own largest value."""
    explained = clipsight.explain(network, head, x[:1], classes="input")
    with torch.inference_mode():
        batched, *single = (
            explained(x[part], classes[part, None])[1] for part in (slice(None), *([i] for i in range(len(x))))
        )
    return max(off(b, s) for b, s in zip(batched, torch.cat(single), strict=True))


@pytest.mark.parametrize("method", HEADS)
def test_a_batch_is_its_samples_one_by_one(method):
    """In float32; every sample has a class of its own, and the classes are not in order."""
    network, x = build("Projection", torch.float32), clip(3, dtype=torch.float32)
    head = HEADS[method]
    if method == "grad_cam":
        head = replace(head, relu=False)  # no positive evidence is no evidence of anything
    assert worst_of_the_batch(network, head, x, FAR_FROM_0) < 1e-5


def _mixed_seed(self, score: str = "logit"):
    """As a peer's batched Grad-CAM: one score for the batch, that of the first sample's class."""
    seed = _seed(self, score)
    return seed[:, :1].expand_as(seed)


def _summed_seed(self, score: str = "logit"):
    """Every sample is asked for the classes of all of them."""
    seed = _seed(self, score)
    return seed.sum(1, keepdim=True).expand_as(seed)


_seed = Evidence.seed


@pytest.mark.parametrize("planted", [_mixed_seed, _summed_seed])
@pytest.mark.parametrize("method", ["guided_backprop", "deep_taylor", "grad_cam"])
def test_mixed_classes_would_be_seen(monkeypatch, method, planted):
    network, x, classes = build("Plain", torch.float32), clip(3, dtype=torch.float32), torch.tensor([4, 0, 2])
    head = replace(HEADS[method], relu=False) if method == "grad_cam" else HEADS[method]
    assert worst_of_the_batch(network, head, x, classes) < 1e-5
    monkeypatch.setattr(Evidence, "seed", planted)
    assert worst_of_the_batch(network, head, x, classes) > 1e-2


@pytest.mark.parametrize("choice", ["top2", [1, 4], "input", "predicted"])
def test_every_way_to_choose_classes_gives_the_same_map_of_a_class(choice):
    network, x = build("Grouped"), clip()
    heads = list(QUICK.values())
    explained = clipsight.explain(network, heads, x[:1], choice)
    asked = (torch.tensor([[2, 0], [4, 1]]),) if choice == "input" else ()
    with torch.inference_mode():
        logits, *maps = explained(x, *asked)
    fixed = asked[0] if choice == "input" else torch.tensor([[1, 4]] * 2)
    chosen = {"top2": logits.topk(2).indices, "predicted": logits.argmax(1, keepdim=True)}.get(str(choice), fixed)
    for m in range(chosen.shape[1]):
        for result, single in zip(maps, explain(network, heads, x, chosen[:, m]), strict=True):
            part = result.unflatten(1, (chosen.shape[1], -1))[:, m]  # class by class, then colour by colour
            assert (part - single).abs().max() <= 1e-9 * single.abs().max()


def test_heads_together_are_heads_alone():
    """They share the forward pass and the walks back."""
    network, x = build("Residual"), clip()
    together = explain(network, list(QUICK.values()), x, CLASSES)
    for head, result in zip(QUICK.values(), together, strict=True):
        assert off(result, explain(network, head, x, CLASSES)[0]) < 1e-12


@pytest.mark.parametrize("method", QUICK)
def test_selective_relevance_splits_the_map_by_its_raw_values(method):
    head = QUICK[method]
    options = {"size": "clip"} if method == "grad_cam" else {"colours": "sum"}
    head = replace(head, **options, normalize="clip")
    selective = SelectiveRelevance(of=head, n_sigma=1, part="both", extras=("motion_share",))
    network, x = build("Residual"), clip(size=(8, 16, 16))
    tube, motion, static, share, raw = explain(network, [head, selective, replace(head, normalize="none")], x, CLASSES)
    assert off(motion + static, tube) < 1e-6
    g = F.pad(raw, (1, 1, 1, 1, 1, 1), mode="replicate")
    smooth = torch.tensor([1.0, 2, 1]).double()
    kernel = torch.einsum("t,h,w->thw", torch.tensor([-1.0, 0, 1]).double(), smooth, smooth)
    g = F.conv3d(g.double(), kernel[None, None])
    mask = g.abs() > g.flatten(1).std(1).view(-1, 1, 1, 1, 1)
    expected = (raw.abs() * mask).sum((2, 3, 4)) / raw.abs().sum((2, 3, 4))
    assert torch.allclose(share.double(), expected.double(), atol=1e-4)
    assert 0 < mask.double().mean() < 0.5
    assert ((motion != 0) & ~mask).sum() <= 1e-3 * mask.numel()


# ---- The model stays as it is ---------------------------------------------------------------------------------------


def state(model: nn.Module):
    hooks = [len(d) for m in model.modules() for d in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)]
    parameters = [(p.requires_grad, p.grad is None, p.is_leaf, p.clone()) for p in model.parameters()]
    return hooks, [m.training for m in model.modules()], parameters, [b.clone() for b in model.buffers()]


def same_state(before, after) -> bool:
    plain = before[:2] == after[:2] and [p[:3] for p in before[2]] == [p[:3] for p in after[2]]
    pairs = [*zip(before[3], after[3], strict=True), *((b[3], a[3]) for b, a in zip(before[2], after[2], strict=True))]
    return plain and all(torch.equal(b, a) for b, a in pairs)


@pytest.mark.parametrize("wants", [True, False])
def test_explaining_leaves_no_trace(wants):
    network, x = build("Residual").requires_grad_(wants), clip()
    before, logits = state(network), network(x).detach()
    explained = clipsight.explain(network, list(QUICK.values()), x, [2])
    outputs = explained(x)
    assert same_state(before, state(network))
    assert torch.equal(network(x).detach(), logits)
    assert not any(output.requires_grad for output in outputs[1:]) or wants
    assert torch.is_grad_enabled()
    with pytest.raises(ValueError):
        explained(x[:, :, :, :, 0])
    assert same_state(before, state(network))


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_no_autograd_is_needed(context):
    network, x = build("Branches").requires_grad_(False), clip()
    with context():
        explained = clipsight.explain(network, list(QUICK.values()), x, [2])
        results = explained(x)[1:]
    same = explain(build("Branches"), list(QUICK.values()), x, CLASSES[:1].repeat(2))
    for result, expected in zip(results, same, strict=True):
        assert torch.equal(result, expected)
        assert not result.requires_grad


class Twin(Network):
    """The same network with its ReLUs and sums in place, and out of place."""

    in_place = True

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.middle, self.last = conv(3, 6, bias=True), conv(6, 6, bias=True), conv(6, 6)
        self.bn = nn.BatchNorm3d(6)

    def features(self, x):
        x = F.relu(self.bn(self.stem(x)), inplace=self.in_place)
        out = self.middle(x)
        if self.in_place:
            out.relu_()
            out += x
            torch.relu_(x)
            return F.relu(self.last(F.dropout(out, 0.5, self.training, self.in_place)), self.in_place)
        out = F.relu(out) + x
        return F.relu(self.last(out))


def test_relus_and_sums_in_place_are_those_out_of_place():
    network = networks.seeded(Twin).double()
    other = copy.deepcopy(network)
    other.in_place = False
    heads, x = [*QUICK.values(), GradCAM("middle", relu=False, size="features", normalize="none")], clip()
    for result, expected in zip(explain(network, heads, x, CLASSES), explain(other, heads, x, CLASSES), strict=True):
        assert off(result, expected) < 1e-12


# ---- Bad input ------------------------------------------------------------------------------------------------------


class Odd(Network):
    """An op in the middle that no head has a rule for."""

    def __init__(self, op) -> None:
        super().__init__(5)
        self.stem, self.last, self.op = conv(3, 5), conv(5, 5), op

    def features(self, x):
        return F.relu(self.last(self.op(F.relu(self.stem(x)))))


class Cumulated(nn.Module):
    def forward(self, x):
        return x.cumsum(2)


@pytest.mark.parametrize("method", ["guided_backprop", "guided_grad_cam", "deep_taylor", "lrp_epsilon"])
@pytest.mark.parametrize("op, name", [(Cumulated(), "cumsum"), (nn.LPPool3d(2, 2), "pow"), (nn.Softplus(), "softplus")])
def test_an_unsupported_op_is_named(method, op, name):
    network = networks.seeded(lambda: Odd(op)).double()
    with pytest.raises(AttachError, match=rf"(?s)no rule for '{name}' in 'op'.*GradCAM, InputGradient"):
        explain(network, HEADS[method], clip(), CLASSES)


@pytest.mark.parametrize("op", [Cumulated(), nn.Softplus()])
def test_a_plain_gradient_goes_through_every_op_that_has_one(op):
    network, x = networks.seeded(lambda: Odd(op)).double(), clip()
    cam = GradCAM("stem", relu=False, size="features", normalize="none")
    gradient, map = explain(network, [HEADS["input_gradient"], cam], x, CLASSES)
    leaf = x.clone().requires_grad_()
    stem = network.stem(leaf)
    logits = network.fc(F.relu(network.last(op(F.relu(stem)))).mean((2, 3, 4)))
    at_clip, at_stem = torch.autograd.grad(logits.gather(1, CLASSES[:, None]).sum(), (leaf, stem))
    assert off(gradient, at_clip * x) < 1e-9
    assert off(map, (at_stem.mean((2, 3, 4), keepdim=True) * stem).sum(1, keepdim=True).detach()) < 1e-9


@pytest.mark.parametrize("method", HEADS)
def test_a_model_in_training_mode_is_refused(method):
    network = build("Grouped").train()
    with pytest.raises(ValueError, match=r"explain: the model must be in eval mode .* got a model in training mode"):
        explain(network, HEADS[method], clip(), CLASSES)
    network.eval().block.bn1.train()
    with pytest.raises(ValueError, match="eval mode"):
        explain(network, HEADS[method], clip(), CLASSES)


class Aside(Network):
    """A layer beside the way to the class: what it computes comes out as a second result, or goes nowhere."""

    second = True

    def __init__(self) -> None:
        super().__init__(5)
        self.stem, self.last, self.aside = conv(3, 5), conv(5, 5), conv(5, 2)

    def features(self, x):
        return F.relu(self.last(F.relu(self.stem(x))))

    def forward(self, x):
        beside = self.aside(F.relu(self.stem(x)))
        return (super().forward(x), beside) if self.second else super().forward(x)


@pytest.mark.parametrize("second", [True, False])
def test_a_layer_that_does_not_feed_the_class_is_refused(second):
    network = networks.seeded(Aside).double()
    network.second = second
    with pytest.raises(AttachError, match=r"explain: .*'aside'"):
        explain(network, GradCAM("aside"), clip(), CLASSES)


@pytest.mark.parametrize("layer", ["nothing", "body", "conv1.weight"])
def test_a_layer_that_is_none_is_refused(layer):
    """An unknown one, and a parameter; the message has those that could be meant."""
    expected = rf"explain: layer must name a module that the network runs, got {re.escape(repr(layer))}.*'conv3'"
    with pytest.raises(AttachError, match=expected):
        explain(build("Plain"), GradCAM(layer), clip(), CLASSES)


def test_a_layer_without_an_extent_is_refused():
    expected = r"explain: layer must name a module with an output \[N, C, t, h, w\], 'fc6' gives \[.*, 12\]"
    with pytest.raises(AttachError, match=expected):
        explain(build("Plain"), GradCAM("fc6"), clip(), CLASSES)


class Votes(nn.Module):
    """The class comes out of a vote: no gradient leads through it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = conv(3, 5), nn.Linear(5, 5)

    def forward(self, x):
        scores = self.fc(F.relu(self.stem(x)).mean((3, 4)).transpose(1, 2))  # [N, T, K]
        return F.one_hot(scores.argmax(2), 5).to(x).mean(1)


class Ranked(Network):
    """The features go through a sort: which value goes where is no function with a derivative."""

    def __init__(self) -> None:
        super().__init__(5)
        self.stem, self.last = conv(3, 5), conv(5, 5)

    def features(self, x):
        return F.relu(self.last(self.stem(x).argsort(1).to(x)))


@pytest.mark.parametrize("method", ["grad_cam", "guided_backprop", "deep_taylor"])
def test_a_class_without_a_derivative_is_refused(method):
    network = networks.seeded(Votes).double()
    with pytest.raises(AttachError, match=r"explain: .*(linear layer|argmax|one_hot)"):
        explain(network, HEADS[method], clip(), CLASSES)
    if method != "grad_cam":  # it is asked for nothing in front of its layer
        with pytest.raises(AttachError, match=r"explain: .*no rule for|explain: .*do not$"):
            explain(networks.seeded(Ranked).double(), HEADS[method], clip(), CLASSES)


def test_deep_taylor_must_know_the_box():
    network = build("Plain")
    with pytest.raises(ValueError, match=r"DeepTaylor: low and high must be given.*'preprocessing'"):
        explain(network, DeepTaylor(), clip(), CLASSES)
    with pytest.raises(ValueError, match=r"DeepTaylor: low and high must enclose 0, got .*0\.5"):
        DeepTaylor(low=0.5, high=1)


def test_the_epsilon_is_as_exact_as_the_clip():
    """In float64, on outputs of its own size: rounded to float32 it would be off by 2.6e-9 of itself."""
    network = nn.Sequential(nn.Conv3d(3, 1, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    network.append(nn.Linear(1, 2, bias=False)).double().eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([3.0, -1.0, 0.5]).view(1, 3, 1, 1, 1))
        network[-1].weight.copy_(torch.tensor([[0.25], [2.0]]))
    x = torch.tensor([1e-6, 2e-6, 5e-7], dtype=torch.float64).view(1, 3, 1, 1, 1)
    (result,) = explain(network, LRPEpsilon(normalize="none", colours="raw"), x, torch.tensor([1]))
    z = [3e-6 - 2e-6 + 2.5e-7, 2 * (3e-6 - 2e-6 + 2.5e-7)]  # of the convolution, of the class
    expected = torch.tensor([3e-6, -2e-6, 2.5e-7], dtype=torch.float64) / (z[0] + 1e-6) * z[1] / (z[1] + 1e-6)
    assert off(result.flatten(), expected) < 1e-13


@pytest.mark.parametrize("low, high", [(LOW[:2], HIGH[:2]), (LOW, HIGH[:2]), ((*LOW, -1.0), (*HIGH, 1.0))])
def test_a_box_of_other_channels_is_refused(low, high):
    with pytest.raises(ValueError, match=r"DeepTaylor: .*channel"):
        explain(build("Plain"), DeepTaylor(low, high), clip(), CLASSES)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: GradCAM(weights_over="t"), "GradCAM: weights_over must be one of"),
        (lambda: GradCAM(score="loss"), "GradCAM: score must be one of"),
        (lambda: GuidedBackprop(colours="mean"), "GuidedBackprop: colours must be one of"),
        (lambda: InputGradient(normalize="max"), "InputGradient: normalize must be one of"),
        (lambda: DeepTaylor(max_pool="all"), "DeepTaylor: max_pool must be one of"),
        (lambda: LRPEpsilon(epsilon=0), "LRPEpsilon: epsilon must be above 0, got 0"),
        (
            lambda: IntegratedGradients(steps=0),
            "IntegratedGradients: steps must be at least 1, got 0",
        ),
        (lambda: GradCAM(dtype="uint8", normalize="none"), "GradCAM: dtype 'uint8' needs a normalised map"),
        (lambda: InputGradient(dtype="float64"), "InputGradient: dtype must be one of"),
        (lambda: GuidedGradCAM(upsample="linear"), "GuidedGradCAM: upsample must be one of"),
    ],
)
def test_an_option_outside_its_range_is_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
