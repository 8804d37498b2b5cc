"""Measures that ask the network: insertion and deletion, randomised parameters, overhead."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import nn

import clipsight
import networks as net
from clipsight import SaliencyTube
from clipsight.metrics import deletion_auc, insertion_auc, overhead, parameter_randomisation
from clipsight.metrics import networks as module
from networks import seeded

# ---- Insertion and deletion ---------------------------------------------------------------------------------


def additive(clip):
    """Its probability of class 0 is 0.1 plus the sum of the clip, that of class 1 the rest."""
    p = 0.1 + clip.sum((1, 2, 3, 4))
    return np.log(np.stack([p, 1 - p], 1))


FOUR = np.array([0.1, 0.5, 0.2, 0.0]).reshape(1, 1, 1, 1, 4)  # four voxels; all of them: 0.9, none: 0.1
ORDER = np.array([1, 4, 3, 2.0]).reshape(1, 1, 1, 4)  # the second, third, fourth, first


@pytest.mark.parametrize(
    "measure, relevance, steps, expected",
    [
        # 0.1, 0.6, 0.8, 0.8, 0.9 at 0, 1/4, 1/2, 3/4, 1: (0.05 + 0.6 + 0.8 + 0.8 + 0.45) / 4
        (insertion_auc, ORDER, 4, 2.7 / 4),
        # 0.9, 0.4, 0.2, 0.2, 0.1: (0.45 + 0.4 + 0.2 + 0.2 + 0.05) / 4
        (deletion_auc, ORDER, 4, 1.3 / 4),
        # 4 i / 3 rounded is 0, 1, 3, 4: 0.1, 0.6, 0.8, 0.9: 0.25 * 0.35 + 0.5 * 0.7 + 0.25 * 0.85
        (insertion_auc, ORDER, 3, 0.65),
        # More steps than voxels: the same points, some many times.
        (insertion_auc, ORDER, 50, 2.7 / 4),
        # One step: the trapezoid between all and nothing.
        (deletion_auc, ORDER, 1, 0.5),
        # An empty map goes from left to right, 0.1, 0.2, 0.7, 0.9, 0.9: (0.05 + 0.2 + 0.7 + 0.9 + 0.45) / 4
        (insertion_auc, 0 * ORDER, 4, 2.3 / 4),
        # The sign counts: first, fourth, third, second: 0.1, 0.2, 0.2, 0.4, 0.9
        (insertion_auc, -ORDER, 4, (0.05 + 0.2 + 0.2 + 0.4 + 0.45) / 4),
    ],
)
def test_area_by_hand(measure, relevance, steps, expected):
    area = measure(additive, FOUR, relevance, np.array([0]), steps, "zero")
    assert area == pytest.approx(expected, abs=1e-12)
    other = measure(additive, FOUR, relevance, np.array([1]), steps, "zero")
    assert other == pytest.approx(1 - expected, abs=1e-12)


def test_the_curve_by_hand():
    area, shares, probabilities = insertion_auc(additive, FOUR, ORDER, [0], 4, "zero", curve=True)
    assert shares.tolist() == [0, 0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(probabilities, [[0.1, 0.6, 0.8, 0.8, 0.9]], atol=1e-12)
    assert area == pytest.approx(np.trapezoid(probabilities, shares))


def slow_curve(model, clip, relevance, k, steps, start, end):
    """Probabilities of class k while `end` replaces `start` in a clip [C, T, H, W], voxel after voxel."""
    voxels = sorted(np.ndindex(relevance.shape), key=lambda i: -relevance[i])  # a stable sort
    points = []
    for i in range(steps + 1):
        mixed = start.copy()
        for t, y, x in voxels[: int(i * len(voxels) / steps + 0.5)]:
            mixed[:, t, y, x] = end[:, t, y, x]
        with torch.no_grad():
            points.append(torch.softmax(model(torch.from_numpy(mixed)[None]).double(), 1)[0, k].item())
    return points


def scipy_blur(clip, sigma):
    """Without the weight that falls outside the clip."""
    sigmas = (0, *(sigma * n for n in clip.shape[1:]))
    options = {"sigma": sigmas, "mode": "constant", "truncate": 12}
    return ndimage.gaussian_filter(clip, **options) / ndimage.gaussian_filter(np.ones_like(clip), **options)


@pytest.mark.parametrize("baseline", ["blur", "zero"])
def test_area_against_a_slow_version(baseline):
    model, clip = seeded(net.ModulePool), net.clip(2, (4, 8, 8))
    relevance = np.random.default_rng(0).integers(-2, 3, (2, 4, 8, 8)).astype(np.float32)  # with many equals
    classes = np.array([1, 4])
    ins = insertion_auc(model, clip, relevance, classes, 10, baseline, curve=True)
    out = deletion_auc(model, clip, relevance, classes, 10, baseline, batch=3, curve=True)
    for n in range(2):
        whole = clip[n].numpy()
        empty = 0 * whole if baseline == "zero" else scipy_blur(whole.astype(np.float64), 0.125).astype(np.float32)
        for (area, shares, curve), pair in ((ins, (empty, whole)), (out, (whole, empty))):
            expected = slow_curve(model, whole, relevance[n], classes[n], 10, *pair)
            np.testing.assert_allclose(curve[n], expected, atol=2e-6)
            assert np.ptp(expected) > 1e-3, "a curve that would be flat tells nothing"
            np.testing.assert_allclose(area[n], np.trapezoid(expected, shares), atol=2e-6)


def test_batched_is_one_by_one_and_repeatable():
    model, clip = seeded(net.ModulePool).double(), net.clip(3, (4, 8, 8)).double()
    relevance, classes = np.random.default_rng(0).normal(size=(3, 4, 8, 8)), torch.tensor([0, 1, 2])
    together = deletion_auc(model, clip, relevance, classes, 8)
    assert together.shape == (3,)
    assert together.dtype == np.float64
    alone = [deletion_auc(model, clip[i, None], relevance[i, None], classes[i, None], 8)[0] for i in range(3)]
    np.testing.assert_allclose(alone, together, rtol=1e-12)
    np.testing.assert_allclose(deletion_auc(model, clip, 5 * relevance, classes, 8), together, rtol=1e-12)
    opposite = insertion_auc(model, clip, -relevance, classes, 8)  # the same pictures from the last to the first
    np.testing.assert_allclose(opposite, together, rtol=1e-12)
    other = [deletion_auc(model, clip[i, None], relevance[i, None], [3], 8)[0] for i in range(3)]
    assert (np.abs(other - together) > 1e-3).all(), "another class would be seen"
    assert deletion_auc(model, clip[:0], relevance[:0], classes[:0]).shape == (0,)


def test_the_voxels_that_the_network_uses_come_first():
    """A network that is the mean of one corner: its own map beats the opposite one."""

    def corner(clip):
        score = 8 * clip[:, :, :, :4, :4].mean((1, 2, 3, 4))
        return np.stack([score, 0 * score], 1)

    clip = np.ones((1, 3, 4, 8, 8), np.float32)
    good = np.zeros((1, 4, 8, 8))
    good[:, :, :4, :4] = 1
    for measure, sign in ((insertion_auc, 1), (deletion_auc, -1)):
        areas = [measure(corner, clip, r, [0], baseline="zero")[0] for r in (good, -good)]
        assert sign * (areas[0] - areas[1]) > 0.3


def test_a_constant_clip_is_its_own_blur():
    clip = np.full((2, 5, 6, 7), 0.3, np.float32)
    np.testing.assert_allclose(module._blurred(clip, 0.2), clip, rtol=1e-6)
    assert module._blurred(clip.astype(np.float16), 0.2).dtype == np.float16


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"clip": FOUR[0]}, ValueError, r"clip must be \[N, C, T, H, W\] with no empty axis, got \[1, 1, 1, 4\]"),
        ({"clip": FOUR.astype(np.uint8)}, TypeError, "clip must hold floating-point values, got uint8"),
        ({"clip": FOUR * np.nan}, ValueError, "clip must be finite"),
        (
            {"relevance": ORDER[None]},
            ValueError,
            r"relevance must be \[N, T, H, W\] = \[1, 1, 1, 4\], got",
        ),
        ({"relevance": ORDER * np.inf}, ValueError, "relevance must be finite, got NaN or infinity"),
        ({"classes": [0, 1]}, ValueError, r"classes must be integers \[N\] = \[1\], got int64 \[2\]"),
        ({"classes": [0.0]}, ValueError, r"classes must be integers \[N\] = \[1\], got float64 \[1\]"),
        ({"classes": [2]}, ValueError, r"classes must lie in 0..1, got 2"),
        ({"classes": [-1]}, ValueError, r"classes must lie in 0..1, got -1"),
        ({"steps": 0}, ValueError, "steps must be an integer, at least 1, got 0"),
        ({"batch": 2.5}, ValueError, "batch must be an integer, at least 1, got 2.5"),
        ({"baseline": "noise"}, ValueError, "baseline must be 'blur' or 'zero', got 'noise'"),
        ({"sigma": 0}, ValueError, "sigma must be a positive share .* got 0"),
        ({"model": seeded(net.ModulePool).train()}, ValueError, "the model must be in eval mode"),
        (
            {"model": lambda clip: additive(clip)[:1]},
            ValueError,
            r"the model must give logits \[N, K\], N = 5, got",
        ),
        ({"model": lambda clip: additive(clip) * np.nan}, ValueError, "the logits of the model must be finite"),
    ],
)
@pytest.mark.parametrize("measure", [insertion_auc, deletion_auc])
def test_bad_input_of_the_areas(measure, changes, error, message):
    arguments = {"model": additive, "clip": FOUR, "relevance": ORDER, "classes": [0], "steps": 4, "baseline": "zero"}
    with pytest.raises(error, match=f"{measure.__name__}: {message}"):
        measure(**(arguments | changes))


# ---- Randomised parameters ----------------------------------------------------------------------------------


class Tower(nn.Module):
    """Three layers; defined from first to last."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        self.fc = nn.Linear(6, 4)


def prescribed(*volumes):
    """An explainer that returns these maps one after the other."""
    left = iter(volumes)
    return lambda network: np.asarray(next(left), np.float64).reshape(1, 1, -1)


def test_rank_correlation_by_hand():
    # |R| has the ranks 1, 2, 3, 4. Of 2, 1, 4, 3: 1 - 6 * (1 + 1 + 1 + 1) / (4 * 15) = 0.6; reversed: -1; a constant
    # map has no ranks. Of 2.5, 2.5, 1, 4, about their mean: -1.5 * 0 - 0.5 * 0 - 0.5 * 1.5 + 1.5 * 1.5 = 1.5, over
    # sqrt(5 * 4.5).
    explain = prescribed([-1, 2, -3, 4], [20, -10, 40, 30], [-4, -3, 2, 1], [5, 5, -5, 5])
    assert {k: float(v) for k, v in parameter_randomisation(explain, seeded(Tower)).items()} == pytest.approx(
        {"fc": 0.6, "body.2": -1, "body.0": 0}
    )
    explain = prescribed([1, 2, 3, 4], [2, -2, 1, 3])
    assert parameter_randomisation(explain, seeded(Tower), layers=["fc"])["fc"] == pytest.approx(1.5 / 22.5**0.5)
    empty = parameter_randomisation(lambda _: np.zeros((2, 3, 3, 3)), seeded(Tower))
    assert all(v.tolist() == [0, 0] for v in empty.values())


def tube_of(clip, classes=(3,)):
    return lambda network: clipsight.explain(network, SaliencyTube(), clip, list(classes))(clip)[1].detach()


def test_rank_correlation_against_scipy():
    clip, seen = net.clip(2, (4, 16, 16)), []

    def explain(network):
        seen.append(tube_of(clip, (3, 1))(network))
        return seen[-1]

    result = parameter_randomisation(explain, seeded(net.ModulePool))
    assert list(result) == ["fc", "body.3", "body.1", "body.0"], "from the classifier down"
    original, *others = (np.abs(s.double().numpy()).reshape(4, -1) for s in seen)
    for found, other in zip(result.values(), others, strict=True):
        assert found.shape == (2, 2)
        expected = [stats.spearmanr(a, b).statistic for a, b in zip(original, other, strict=True)]
        np.testing.assert_allclose(found.ravel(), expected, atol=1e-9)
    assert np.abs(result["fc"]).max() < 0.99


@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_which_parameters_are_drawn(order):
    network = seeded(Tower)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    changed, state = [], torch.random.get_rng_state()

    def explain(given):
        assert given is not network
        differs = {k for k, v in given.state_dict().items() if not torch.equal(v, before[k])}
        changed.append({k.rpartition(".")[0] for k in differs})
        given.fc.weight.data.zero_()  # what an explainer does to its network does no harm
        return np.ones((1, 1, 1))

    parameter_randomisation(explain, network, order)
    expected = {"cascading": [{"fc"}, {"fc", "body.2"}, {"fc", "body.2", "body.0"}]}
    expected["independent"] = [{"fc"}, {"body.2"}, {"body.0"}]
    assert changed == [set(), *expected[order]]
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_map_that_ignores_a_layer_keeps_its_ranks():
    def of_the_first_layer(network):
        return network.body[0].weight.detach().reshape(1, 6, 6)

    alone = parameter_randomisation(of_the_first_layer, seeded(Tower), "independent")
    assert alone["fc"] == alone["body.2"] == pytest.approx(1)
    assert abs(alone["body.0"]) < 0.6
    blocks = parameter_randomisation(of_the_first_layer, seeded(Tower), layers=["fc", "body"])
    assert blocks["fc"] == pytest.approx(1)
    assert abs(blocks["body"]) < 0.6, "a module stands for what is within"


def test_the_seed_decides():
    def explain(network):
        return network.fc.weight.detach().reshape(1, 4, 6)

    first, same, other = (parameter_randomisation(explain, seeded(Tower), seed=s)["fc"] for s in (0, 0, 1))
    assert first == same != other


def test_the_drawn_parameters_have_the_old_scale():
    network = nn.Sequential(nn.Linear(200, 300))
    with torch.no_grad():
        network[0].weight.mul_(0.01).add_(3)
    kept = network[0].weight.detach().clone()
    drawn = []
    parameter_randomisation(lambda n: drawn.append(n[0].weight.detach().clone()) or np.ones((1, 1, 1)), network)
    assert torch.equal(drawn[0], kept)
    assert drawn[1].mean().item() == pytest.approx(kept.mean().item(), rel=1e-4)
    assert drawn[1].std().item() == pytest.approx(kept.std().item(), rel=0.02)
    assert abs(np.corrcoef(drawn[1].ravel(), kept.ravel())[0, 1]) < 0.02


def test_after_an_error_the_network_is_as_before():
    network = seeded(Tower)
    before = {k: v.clone() for k, v in network.state_dict().items()}

    def explain(given, calls=[]):  # noqa: B006 - counts
        calls.append(given.fc.register_forward_hook(print))
        if len(calls) == 3:
            raise RuntimeError("no map today")
        return np.ones((1, 1, 1))

    with pytest.raises(RuntimeError, match="no map today"):
        parameter_randomisation(explain, network)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not network.fc._forward_hooks


@pytest.mark.parametrize(
    "explain, options, error, message",
    [
        (None, {"network": additive}, TypeError, "network must be a torch.nn.Module, got function"),
        (None, {"order": "random"}, ValueError, "order must be 'cascading' or 'independent', got 'random'"),
        (
            None,
            {"layers": ["body.1"]},
            ValueError,
            "layers must be modules with parameters, got 'body.1'; the",
        ),
        (None, {"layers": ["fc8"]}, ValueError, "layers must be modules with parameters, got 'fc8'"),
        (lambda n: np.ones(3), {}, ValueError, r"the map of the network as it is must be \[..., T, H, W\]"),
        (prescribed([1, 2], [1, np.nan]), {}, ValueError, "the map of the network with random 'fc' must be finite"),
        (prescribed([1, 2], [1, 2, 3]), {}, ValueError, "maps must keep their shape [1, 1, 2], got [1, 1, 3]"),
    ],
)
def test_bad_input_of_the_randomisation(explain, options, error, message):
    message = message if "\\" in message else re.escape(message)
    with pytest.raises(error, match=f"parameter_randomisation: {message}"):
        parameter_randomisation(explain, **{"network": seeded(Tower), **options})


# ---- Overhead -----------------------------------------------------------------------------------------------


def test_overhead_by_hand(monkeypatch):
    clock, calls = [0], []
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter_ns=lambda: clock[0]))

    def side(name, *milliseconds):
        left = iter((1000, *milliseconds))  # the first call is warm-up

        def call():
            calls.append(name)
            clock[0] += int(1e6 * next(left))

        return call

    # Ratios 1.1, 1.5, 1.05: median 1.1. (The ratio of the medians would be 30 / 20.) 11, 30, 42: mean 83 / 3.
    result = overhead(side("with", 11, 30, 42), side("without", 10, 20, 40), repeats=3, warmup=1)
    assert result == pytest.approx(
        {
            "plain_ms": 20,
            "ms": 30,
            "plain_std_ms": (2100 / 3 - (70 / 3) ** 2) ** 0.5,
            "std_ms": (2785 / 3 - (83 / 3) ** 2) ** 0.5,
            "ratio": 1.1,
        }
    )
    assert calls[2:] == ["without", "with", "with", "without", "without", "with"], "in turns"


def test_overhead_of_real_calls():
    result = overhead(lambda: sum(range(200_000)), lambda: None, repeats=5)
    assert result["ratio"] > 1
    assert all(np.isfinite(v) for v in result.values())
    with pytest.raises(ValueError, match="overhead: repeats and warmup must be at least 1 and 0, got 0 and 2"):
        overhead(print, print, repeats=0)
