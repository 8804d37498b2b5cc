"""Targets: gradient heads against autograd of the score as a user would write it, tubes against sums of their rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import clipsight
import networks
from clipsight import FeaturePyramid, SaliencyTube, SelectiveRelevance, Target
from clipsight.attach import AttachError
from clipsight.heads import DeepTaylor, GradCAM, GuidedBackprop, InputGradient, IntegratedGradients, LRPEpsilon
from clipsight.scores import Score
from clipsight.targets import Reading
from gradient_networks import HIGH, LOW, RAW, off
from target_networks import Net, clip, net


def others(scores: Tensor, a: int) -> Tensor:
    return scores[torch.arange(len(scores)) != a]


# name -> (network, target, classes, the score of one sample's own output, as a user would write it)
SCORES = {
    "a class": ("logits", Target(), [2], lambda y: y[2]),
    "one logit": ("one", Target(), [0], lambda y: y[0]),
    "one logit without an axis": ("one without an axis", Target(), [0], lambda y: y),
    "against a class": ("logits", Target(against=3), [1], lambda y: y[1] - y[3]),
    "the top two": (
        "logits",
        Target(against="best_other"),
        "predicted",
        lambda y: y.topk(2).values[0] - y.topk(2).values[1],
    ),
    "against the best other": (
        "logits",
        Target(against="best_other"),
        [0],
        lambda y: y[0] - others(y, 0).max(),
    ),
    "the mean of steps": ("NTK", Target(steps="mean", layout="NTK"), [2], lambda y: y[:, 2].mean()),
    "the largest of steps": ("NTK", Target(steps="max", layout="NTK"), [2], lambda y: y[:, 2].max()),
    "one step": ("NTK", Target(steps=1, layout="NTK"), [2], lambda y: y[1, 2]),
    "the last step": ("NKT", Target(steps=-1), [2], lambda y: y[2, -1]),
    "the largest of steps, classes first": ("NKT", Target(steps="max"), [1], lambda y: y[1].max()),
    "the mean of steps, classes first": ("voxels", Target(steps="mean"), [1], lambda y: y[1].mean()),
    "a step of one logit": ("NT", Target(steps=2, layout="NT"), [0], lambda y: y[2]),
    "the largest step of one logit": ("NT", Target(steps="max", layout="NT"), [0], lambda y: y.max()),
    "the largest steps of two classes": (
        "NTK",
        Target(against=3, steps="max", layout="NTK"),
        [0],
        lambda y: y[:, 0].max() - y[:, 3].max(),
    ),
    "the predicted class of the mean": (
        "NTK",
        Target(steps="mean", layout="NTK"),
        "predicted",
        lambda y: y.mean(0).max(),
    ),
    "two heads": ("heads", Target(heads=("verb", "noun")), [(1, 6)], lambda y: y["verb"][1] + y["noun"][6]),
    "two heads in another order": (
        "heads",
        Target(heads=("noun", "verb")),
        [(6, 1)],
        lambda y: y["verb"][1] + y["noun"][6],
    ),
    "the prediction of two heads": (
        "heads",
        Target(heads=("verb", "noun")),
        "predicted",
        lambda y: y["verb"].max() + y["noun"].max(),
    ),
    "two heads against the second": (
        "heads",
        Target(heads=("verb", "noun"), against="best_other"),
        "predicted",
        lambda y: sum(h.topk(2).values[0] - h.topk(2).values[1] for h in y.values()),
    ),
    "steps of two heads": (
        "heads of steps",
        Target(heads=("verb", "noun"), steps="max", layout="NTK"),
        [(1, 2)],
        lambda y: y[0][:, 1].max() + y[1][:, 2].max(),
    ),
}


def sample(output, i: int):
    if isinstance(output, dict):
        return {name: value[i] for name, value in output.items()}
    return tuple(value[i] for value in output) if isinstance(output, tuple) else output[i]


def gradient(network: nn.Module, x: Tensor, score) -> Tensor:
    x = x.clone().requires_grad_()
    output = network(x)
    return torch.autograd.grad(sum(score(sample(output, i)) for i in range(len(x))), x)[0]


@pytest.mark.parametrize("name", SCORES)
def test_gradients_are_those_of_autograd(name):
    end, target, classes, score = SCORES[name]
    network, x = net(end), clip()
    heads = [InputGradient(**RAW), IntegratedGradients(steps=3, chunk=2, **RAW)]
    explained = clipsight.explain(network, heads, x[:1], classes, target=target)
    with torch.inference_mode():
        _, product, integrated = explained(x)
    assert off(product, gradient(network, x, score) * x) < 1e-9
    places, weights = np.polynomial.legendre.leggauss(3)
    if classes == "predicted":  # on the way from zeros, too, it is the class of the clip
        chosen = explained.score.chosen(explained(x)[0], None)
        assert product.shape[1] == 3 * chosen.shape[-1]
        return
    if target.against == "best_other":
        return
    steps = zip((places + 1) / 2, weights / 2, strict=True)
    assert off(integrated, sum(w * gradient(network, a * x, score) for a, w in steps) * x) < 1e-9


def test_another_score_would_be_seen():
    network, x = net("NTK"), clip()
    expected = gradient(network, x, lambda y: y[:, 2].mean()) * x
    for target in (Target(steps="max", layout="NTK"), Target(steps=0, layout="NTK")):
        explained = clipsight.explain(network, InputGradient(**RAW), x[:1], [2], target=target)
        with torch.inference_mode():
            assert off(explained(x)[1], expected) > 1e-2


def test_integrated_contrasts_stay_with_the_classes_of_the_clip():
    """The maps sum to the difference of the score of these two classes, though others lead on the way from zeros."""
    network, x = net("logits"), clip(3)
    head = IntegratedGradients(steps=40, chunk=20, colours="sum", normalize="none")
    explained = clipsight.explain(network, head, x[:1], target=Target(against="best_other"))
    with torch.inference_mode():
        logits, maps = explained(x)
        first, second = logits.topk(2).indices.unbind(1)
        at_zero = network(0 * x)
        score = [(y.gather(1, first[:, None]) - y.gather(1, second[:, None]))[:, 0] for y in (logits, at_zero)]
    assert (at_zero.topk(2).indices != torch.stack([first, second], 1)).any(1).all()  # negative control
    torch.testing.assert_close(maps.sum((1, 2, 3, 4)), score[0] - score[1], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["the top two", "one step", "the largest of steps", "steps of two heads"])
def test_grad_cam_of_a_layer(name):
    end, target, classes, score = SCORES[name]
    network, x = net(end), clip()
    head = GradCAM(layer="body.4", size="features", normalize="none", relu=False)
    explained = clipsight.explain(network, head, x[:1], classes, target=target)
    kept = []
    hook = network.body[4].register_forward_hook(lambda *a: kept.append(a[2]))
    output = network(x)
    hook.remove()
    total = sum(score(sample(output, i)) for i in range(len(x)))
    weights = torch.autograd.grad(total, kept[0])[0].mean((2, 3, 4), keepdim=True)
    with torch.inference_mode():
        assert off(explained(x)[1][:, 0], (weights * kept[0].detach()).sum(1)) < 1e-9


@pytest.mark.parametrize("target", [Target(), Target(against=2), Target(against="best_other")])
def test_the_derivative_of_a_probability(target):
    network, x = net("logits"), clip()
    head = GradCAM(score="softmax", size="features", normalize="none", relu=False)
    explained = clipsight.explain(network, head, x[:1], [1], target=target)

    def score(y: Tensor) -> Tensor:
        p = y.softmax(0)
        other = {None: 0, 2: p[2]}.get(target.against, others(p, 1).max())
        return p[1] - other

    grid = network.body(x).detach().requires_grad_()
    logits = network.verb(grid.mean((2, 3, 4)))
    slope = torch.autograd.grad(sum(map(score, logits)), grid)[0].mean((2, 3, 4), keepdim=True)
    with torch.inference_mode():
        assert off(explained(x)[1][:, 0], (slope * grid.detach()).sum(1)) < 1e-9


# ---- Tubes ----------------------------------------------------------------------------------------------------------


def tube_rows(network: nn.Module, logits: Tensor, target: Target, classes) -> Tensor:
    """The rows of each sample by hand, `[N, C]`."""
    if target.heads:
        weights, parts = (network.verb.weight, network.noun.weight), logits.split([4, 7], 1)
    else:
        weights, parts = (network.verb.weight,), (logits,)
    rows = []
    for n in range(len(logits)):
        row = 0
        for i, (weight, part) in enumerate(zip(weights, parts, strict=True)):
            order = part[n].argsort(descending=True)
            a = order[0] if classes == "predicted" else torch.tensor(np.atleast_1d(classes[0])[i])
            row = row + weight[a]
            if target.against is not None:
                rest = order[order != a]
                row = row - weight[rest[0] if target.against == "best_other" else target.against]
        rows.append(row)
    return torch.stack(rows).detach()


@pytest.mark.parametrize(
    "end, target, classes",
    [
        ("logits", Target(against=3), [1]),
        ("logits", Target(against=3), "predicted"),
        ("logits", Target(against="best_other"), "predicted"),
        ("logits", Target(against="best_other"), [0]),
        ("heads", Target(heads=("verb", "noun")), [(1, 6)]),
        ("heads", Target(heads=("verb", "noun")), "predicted"),
        ("heads", Target(heads=("verb", "noun"), against="best_other"), "predicted"),
    ],
)
def test_a_tube_has_the_same_sum_of_rows(end, target, classes):
    network, x = net(end), clip(3)
    heads = [SaliencyTube(size="features", normalize="none"), GradCAM(size="features", normalize="none", relu=False)]
    explained = clipsight.explain(network, heads, x[:1], classes, target=target)
    with torch.inference_mode():
        logits, tube, cam = explained(x)
        grid = network.body(x)
        expected = torch.einsum("ncthw,nc->nthw", grid, tube_rows(network, logits, target, classes))
    assert off(tube[:, 0], expected) < 1e-9
    assert off(cam[:, 0], expected / grid[0, 0].numel()) < 1e-9


def test_heads_on_a_grid_with_channels_last():
    """The same sum of rows: `attach` puts the channels first for both of them."""
    last = lambda s, x: (lambda f: (s.verb(f), s.noun(f)))(s.body(x).permute(0, 2, 3, 4, 1).mean((1, 2, 3)))  # noqa: E731
    network, x, heads = networks.seeded(lambda: Net(last)).double(), clip(), Target(heads=("verb", "noun"))
    head = SaliencyTube(size="features", normalize="none")
    with torch.inference_mode():
        _, tube = clipsight.explain(network, head, x[:1], [(1, 6)], target=heads)(x)
        rows = network.verb.weight[1] + network.noun.weight[6]
        assert off(tube[:, 0], torch.einsum("ncthw,c->nthw", network.body(x), rows)) < 1e-9


def test_a_tube_of_the_mean_of_steps_has_the_raw_rows():
    network, x = net("voxels"), clip()
    head = SaliencyTube(size="features", normalize="none")
    explained = clipsight.explain(network, head, x[:1], [1], target=Target(steps="mean"))
    with torch.inference_mode():
        logits, tube = explained(x)
        expected = torch.einsum("ncthw,c->nthw", network.body(x), network.voxel.weight[1].flatten())
    assert list(logits.shape) == [2, 4, 4]  # what the network says
    torch.testing.assert_close(logits, network(x).detach())
    assert off(tube[:, 0], expected) < 1e-9


@pytest.mark.parametrize("chosen", ["input", "top2"])
def test_relevance_of_a_contrast_is_the_difference(chosen):
    """Rules of relevance are linear in what arrives; guided backpropagation is not."""
    network, x = net("logits"), clip()
    heads = [DeepTaylor(low=LOW, high=HIGH, **RAW), LRPEpsilon(**RAW), GuidedBackprop(**RAW), InputGradient(**RAW)]
    classes = torch.tensor([[0, 1], [2, 0]])
    with torch.inference_mode():
        if chosen == "top2":
            classes = network(x).topk(2).indices
        given = (classes,) if chosen == "input" else ()
        contrast = clipsight.explain(network, heads, x[:1], chosen, target=Target(against=3))(x, *given)[1:]
        single = clipsight.explain(network, heads, x[:1], "input")
        one, other = single(x, classes)[1:], single(x, torch.full_like(classes, 3))[1:]
        for head, mine, a, b in zip(heads, contrast, one, other, strict=True):
            if head.name != "guided_backprop":
                assert off(mine, a - b) < 1e-6
            else:
                assert off(mine, a - b) > 1e-3


# ---- What a network ends in -----------------------------------------------------------------------------------------

ENDINGS = {
    "softmax": lambda s, x: s.verb(s.pooled(x)).softmax(1),
    "softmax of the last axis": lambda s, x: torch.softmax(s.verb(s.pooled(x)), -1).view(-1, 4),
    "log_softmax": lambda s, x: s.verb(s.pooled(x)).log_softmax(1),
    "sigmoid": lambda s, x: torch.sigmoid(s.verb(s.pooled(x))),
    "sigmoid of the one": lambda s, x: torch.sigmoid(s.one(s.pooled(x)))[:, 0],
    "sigmoid of one": lambda s, x: s.one(s.pooled(x)).sigmoid().squeeze(-1),
    "softmax of places": lambda s, x: (
        s.voxel(s.body(x).mean((2, 3, 4), keepdim=True)).softmax(1).mean((2, 3, 4), keepdim=True).flatten(1)
    ),
    "softmax of places, classes last": lambda s, x: (
        s.verb(s.body(x).mean((2, 3, 4), keepdim=True).permute(0, 2, 3, 4, 1)).softmax(4).mean((1, 2, 3)).view(-1, 4)
    ),
    "logits and softmax": lambda s, x: (lambda y: (y, y.softmax(1)))(s.verb(s.pooled(x))),
    "a dictionary": lambda s, x: (lambda y: {"probs": y.sigmoid(), "logits": y})(s.verb(s.pooled(x))),
    "steps and their mean": lambda s, x: (lambda y: (y.transpose(1, 2), y.mean(1)))(s.verb(s.steps(x))),
}


@pytest.mark.parametrize("end", ENDINGS)
def test_an_ending_is_stripped_and_said(end):
    x = clip()
    network = networks.seeded(lambda: Net(ENDINGS[end])).double()
    name = "sigmoid" if "sigmoid" in end or end == "a dictionary" else "softmax"
    stripped = end != "steps and their mean"
    with_tube = stripped and end != "softmax of places, classes last"  # whose rows are not found
    heads = [InputGradient(**RAW), *([SaliencyTube(size="features", normalize="none")] if with_tube else [])]
    explained = clipsight.explain(network, heads, x[:1], [0])
    with torch.inference_mode():
        logits, product, *tube = explained(x)
    layer = network.one if "one" in end else network.voxel if end == "softmax of places" else network.verb
    weight, bias = layer.weight.flatten(1).detach(), layer.bias.detach()
    torch.testing.assert_close(logits, network.pooled(x).detach() @ weight.T + bias)
    bare = networks.seeded(lambda: Net(lambda s, x: s.pooled(x) @ weight.T)).double()
    assert off(product, gradient(bare, x, lambda y: y[0]) * x) < 1e-9
    if tube:
        assert off(tube[0][:, 0], torch.einsum("ncthw,c->nthw", network.body(x), weight[0]).detach()) < 1e-9
    described = explained.describe()
    assert described["probability"] == name
    assert described["target"].get("stripped") == (name if stripped else None)
    assert (f"before the {name} that the network ends in" in explained.output_meanings["logits"]) == stripped
    with torch.inference_mode():
        own = network(x)
    own = {dict: lambda: own["probs"], tuple: lambda: own[1], Tensor: lambda: own}[type(own)]()
    shown = np.stack([explained.score.reading.probabilities(row) for row in logits.numpy()])
    if stripped:
        np.testing.assert_allclose(shown, (own.exp() if end == "log_softmax" else own).view(len(x), -1), atol=1e-12)


def test_what_is_no_ending_stays():
    """A softmax over frames, and one whose mean over frames is the output."""
    over_frames = lambda s, x: (lambda y: (y * y.softmax(1)).sum(1))(s.verb(s.steps(x)))  # noqa: E731
    with pytest.raises(AttachError):
        clipsight.explain(networks.seeded(lambda: Net(over_frames)).double(), SaliencyTube(), clip(1))
    mean = lambda s, x: s.verb(s.steps(x)).softmax(-1).mean(1)  # noqa: E731
    network, x = networks.seeded(lambda: Net(mean)).double(), clip()
    explained = clipsight.explain(network, InputGradient(**RAW), x[:1], [1])
    with torch.inference_mode():
        logits, product = explained(x)
    torch.testing.assert_close(logits, network(x).detach())
    assert off(product, gradient(network, x, lambda y: y[1]) * x) < 1e-9
    assert explained.describe()["probability"] == "none"  # a softmax of these would be one of probabilities
    assert explained.output_meanings["logits"] == "scores [N, K]"


# ---- Probabilities --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end, given, expected",
    [
        ("logits", None, "softmax"),
        ("one", None, "sigmoid"),
        ("NT", None, "sigmoid"),
        ("logits", "sigmoid", "sigmoid"),
        ("one", "none", "none"),
    ],
)
def test_the_probability_that_is_meant(end, given, expected):
    steps = {"steps": "max", "layout": "NT"} if end == "NT" else {}
    target = Target(probability=given, **steps)
    explained = clipsight.explain(net(end), InputGradient(), clip(1), target=target)
    assert explained.score.probability == explained.describe()["probability"] == expected


def test_a_named_probability_is_stronger_than_the_ending():
    network = networks.seeded(lambda: Net(ENDINGS["softmax"])).double()
    explained = clipsight.explain(network, InputGradient(), clip(1), target=Target(probability="none"))
    assert explained.score.probability == "none"
    assert explained.describe()["target"]["stripped"] == "softmax"


def test_readings():
    logits = np.array([2.0, -1.0, 0.5, 3.0])
    softmax = torch.from_numpy(logits).softmax(0).numpy()
    np.testing.assert_allclose(Reading().probabilities(logits), softmax)
    np.testing.assert_allclose(Reading("sigmoid").probabilities(logits), 1 / (1 + np.exp(-logits)))
    np.testing.assert_array_equal(Reading("none").probabilities(logits), logits)
    heads = Reading(head_classes=(1, 3)).probabilities(logits)
    np.testing.assert_allclose(heads, [1, *torch.from_numpy(logits[1:]).softmax(0).numpy()])
    assert Reading("sigmoid").probabilities(np.float32([-9]))[0] == pytest.approx(1.2339e-4, rel=1e-4)
    assert np.isfinite(Reading("sigmoid").probabilities(np.float32([-1e30, 1e30]))).all()
    steps = np.arange(8.0).reshape(2, 4)
    for layout, values in {"NKT": steps, "NTK": steps.T}.items():
        for how, want in {"mean": [1.5, 5.5], "max": [3, 7], -2: [2, 6]}.items():
            np.testing.assert_array_equal(Reading("none", how, layout).probabilities(values), want)
    np.testing.assert_array_equal(Reading("none", "max", "NT").probabilities(steps[0]), [3])
    assert [Reading(p).in_words(0.5) for p in ("softmax", "none")] == ["50.0 %", "0.5"]


# ---- Errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"against": -1}, "against must be a class index or 'best_other', got -1"),
        ({"against": "second"}, "against must be a class index or 'best_other', got 'second'"),
        ({"against": True}, "against must be .*, got True"),
        ({"steps": "median"}, "steps must be an index, 'mean' or 'max', got 'median'"),
        ({"steps": 0.5}, "steps must be an index, 'mean' or 'max', got 0.5"),
        ({"layout": "NKT"}, "layout must be left out where no steps are named"),
        ({"steps": 1, "layout": "TNK"}, "layout must be one of .*, got 'TNK'"),
        ({"heads": "verb"}, r"heads must be different classifiers, two or more .*, got \('verb',\)"),
        ({"heads": ("a", "a")}, "heads must be different"),
        ({"heads": ("a", "b"), "against": 1}, "against must be 'best_other' where there are several heads"),
        ({"steps": 1, "layout": "NT", "against": 1}, "layout must be one with several classes"),
        ({"probability": "percent"}, r"probability must be one of \['softmax', 'sigmoid', 'none'\], got 'percent'"),
    ],
)
def test_a_target_that_is_none(options, message):
    with pytest.raises(ValueError, match=message):
        Target(**options)


@pytest.mark.parametrize(
    "end, target, options, message",
    [
        ("logits", {"against": 4}, {}, r"target.against must lie in 0\.\.3, got 4"),
        ("logits", {"against": 1}, {"classes": [0, 1]}, r"target.against must be none of classes=\[0, 1\], got 1"),
        ("one", {"against": "best_other"}, {}, "must have another class, got a network of 1"),
        ("NTK", {}, {}, r"logits must have shape \[N, K\], got \[N, 4, 4\]; .*Target\(steps='mean', layout='NKT'\)"),
        ("logits", {"steps": "mean"}, {}, r"must have shape \[N, K, T\] by target.layout, got \[N, 4\]"),
        ("NTK", {"steps": 4, "layout": "NTK"}, {}, r"target.steps must lie in -4\.\.3, got 4"),
        ("voxels", {"steps": "max"}, {"methods": SaliencyTube()}, "steps must be 'mean' for saliency_tube.*got 'max'"),
        ("heads", {"heads": ("verb", "noun")}, {"classes": "input"}, "classes must be chosen in advance"),
        ("heads", {"heads": ("verb", "noun")}, {"classes": [1]}, "tuples with an index for each of 2 heads"),
        ("heads", {"heads": ("verb", "noun")}, {"classes": [(4, 0)]}, r"indices in \(0\.\.3, 0\.\.6\), got \(4, 0\)"),
        ("heads", {"heads": ("verb", "noun")}, {"classes": "top5"}, r"'top1'\.\.'top4'"),
        ("heads", {"heads": ("verb", "noun")}, {"head": "verb"}, "head must be left out"),
        (
            "apart",
            {"heads": ("verb", "noun")},
            {"methods": SaliencyTube()},
            "of 'relu' in 'body.4' and 'slice'.*Grad-CAM explains it",
        ),
        ("heads", {"heads": ("verb", "none")}, {}, r"expected one of \['noun', 'verb'\], got 'none'"),
        ("heads", {"heads": ("verb", "noun")}, {"methods": FeaturePyramid(depth=1)}, "left out for a FeaturePyramid"),
        ("heads", {}, {}, r"choose one with head=, one of \['noun', 'verb'\], or several with target="),
    ],
)
def test_a_target_that_does_not_fit(end, target, options, message):
    arguments = {"methods": InputGradient()} | options
    with pytest.raises(ValueError, match=message):
        clipsight.explain(net(end), example=clip(1), target=Target(**target), **arguments)


def test_a_single_logit_has_no_softmax_to_explain():
    with pytest.raises(ValueError, match="score='softmax' must have another class, got a network with a single logit"):
        clipsight.explain(net("one"), GradCAM(score="softmax"), clip(1))


def test_what_splits_a_gradient_explains_a_step_too():
    head = SelectiveRelevance(of=InputGradient())
    explained = clipsight.explain(net("NTK"), head, clip(1), target=Target(steps=0, layout="NTK"))
    assert list(explained(clip())[1].shape) == [2, 1, *clip().shape[2:]]
    with pytest.raises(ValueError, match=r"target\.steps must be 'mean' for selective_relevance"):
        clipsight.explain(net("voxels"), SelectiveRelevance(), clip(1), target=Target(steps=0))


def test_a_target_is_one():
    with pytest.raises(TypeError, match=r"target must be a clipsight\.Target, got str"):
        clipsight.explain(net("logits"), InputGradient(), clip(1), target="mean")


def test_gaps_are_those_that_the_choice_hangs_on():
    logits = torch.tensor([[4.0, 3.9, 0.0, -0.5], [9.0, 5.0, 4.8, 1.0]])

    def gaps(target: Target, choice) -> list[float]:
        return [round(g, 3) for g in Score(target, choice, logits).gaps(logits, None).tolist()]

    assert gaps(Target(), [1]) == [float("inf")] * 2
    assert gaps(Target(), "predicted") == [0.1, 4.0]
    assert gaps(Target(), "top2") == [0.1, 0.2]
    assert gaps(Target(against="best_other"), "predicted") == [0.1, 0.2]
    assert gaps(Target(against="best_other"), [3]) == [0.1, 0.2]
    steps = torch.tensor([[[1.0, 1.5], [3.0, -3.0]]])
    assert Score(Target(steps="max"), [0], steps).gaps(steps, None).tolist() == [0.5]
    assert Score(Target(steps="max"), [1], steps).gaps(steps, None).tolist() == [6.0]
