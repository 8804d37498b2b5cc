"""Deep Taylor decomposition and epsilon-LRP, in float64, equal zennit to 1e-9 of the largest value, and are conserved.

zennit's rules are `ZPlus`, `ZBox` (first convolution), `Norm` (sums, averages) and `Epsilon`, without stabilisation and
biases, on a network whose batch norms are folded by other code. zennit in turn equals the definitions.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradient_networks
import gradient_oracles
import networks
from clipsight.heads import DeepTaylor, LRPEpsilon
from clipsight.preprocessing import Preprocessing
from gradient_networks import CLASSES, HEADS, HIGH, LARGE, LOW, NETWORKS, RAW, build, clip, explain, off, real
from pyramid_networks import Network, conv

BOUND = 1e-9
TINY = {"Branches": (4, 8, 8)}  # else 3x6x6, for the definition has a matrix for every layer
BOX = {"low": LOW, "high": HIGH}


@pytest.mark.parametrize("method", gradient_oracles.ZENNIT)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_head_equals_zennit(name, method):
    assert off(gradient_networks.maps(name)[method], gradient_oracles.maps(name)[method]) < BOUND


@pytest.mark.parametrize("rule", gradient_oracles.ZENNIT)
@pytest.mark.parametrize("name", ["Projection", "Grouped", "DepthWise", "Branches", "MultiFiber", "Padded", "Frames"])
def test_zennit_equals_the_definition(name, rule):
    network, x = build(name), clip(1, TINY.get(name, (3, 6, 6)))
    options = BOX if rule == "deep_taylor" else {}
    zennits = getattr(gradient_oracles, rule)(network, x, CLASSES[:1], **options)
    slow, _ = gradient_oracles.slow_relevance(network, x, int(CLASSES[0]), rule, **options)
    assert off(zennits, slow) < BOUND


def test_the_bound_tells_one_map_from_another():
    network, x = build("Residual"), clip()
    expected = gradient_oracles.maps("Residual")
    ours = explain(network, [DeepTaylor(LOW, HIGH, **RAW), LRPEpsilon(**RAW)], x, CLASSES.flip(0))
    assert off(ours[0], expected["deep_taylor"]) > 1e-2  # another class
    assert off(ours[1], expected["lrp_epsilon"]) > 1e-2
    wider, shaken = explain(network, [DeepTaylor(-3, 3, **RAW), LRPEpsilon(1e-3, **RAW)], x, CLASSES)
    assert off(wider, expected["deep_taylor"]) > 1e-2  # another box
    assert off(shaken, expected["lrp_epsilon"]) > 1e-4  # another epsilon


# ---- Options and corners, against the definition --------------------------------------------------------------------


class Signed(Network):
    """What a convolution reads may be negative, and a batch norm reads a convolution that another layer reads too."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.middle, self.last = conv(3, 5, bias=True), conv(5, 5), conv(5, 6, bias=True)
        self.bn = nn.BatchNorm3d(5)

    def features(self, x):
        x = self.middle(self.stem(x))
        return F.relu(self.last(x + self.bn(x)))


class TwoEyes(Network):
    """Two convolutions read the clip."""

    def __init__(self) -> None:
        super().__init__(6)
        self.left, self.right, self.last = conv(3, 4, bias=True), conv(3, 4, (1, 3, 3)), conv(8, 6)

    def features(self, x):
        return F.relu(self.last(F.max_pool3d(F.relu(torch.cat([self.left(x), self.right(x)], 1)), 3, 2, 1)))


@pytest.mark.parametrize("network", [Signed, TwoEyes])
@pytest.mark.parametrize("rule", gradient_oracles.ZENNIT)
def test_corners_equal_the_definition(network, rule):
    network, x = networks.seeded(network, 2).double(), clip(1, (3, 6, 6))
    slow, _ = gradient_oracles.slow_relevance(network, x, 4, rule, **(BOX if rule == "deep_taylor" else {}))
    assert off(explain(network, HEADS[rule], x, torch.tensor([4]))[0], slow) < BOUND


@pytest.mark.parametrize("rule", gradient_oracles.ZENNIT)
def test_a_max_pooling_in_proportion_equals_the_definition(rule):
    network, x = networks.seeded(TwoEyes, 2).double(), clip(1, (3, 6, 6))
    head = {"deep_taylor": DeepTaylor, "lrp_epsilon": LRPEpsilon}[rule]
    options = BOX if rule == "deep_taylor" else {}
    (result,) = explain(network, head(**options, **RAW, max_pool="proportional"), x, torch.tensor([4]))
    winner, _ = gradient_oracles.slow_relevance(network, x, 4, rule, **options)
    slow, _ = gradient_oracles.slow_relevance(network, x, 4, rule, **options, max_pool="proportional")
    assert off(result, slow) < BOUND
    assert off(winner, slow) > 1e-2


def test_scalar_bounds_are_those_of_all_channels():
    """The values of the paper's authors."""
    network, x = build("Grouped"), 60 * clip()
    (result,) = explain(network, DeepTaylor(-101.41, 164.75, **RAW), x, CLASSES)
    expected = gradient_oracles.deep_taylor(network, x, CLASSES, [-101.41] * 3, [164.75] * 3)
    assert off(result, expected) < BOUND


def test_the_box_is_that_of_the_networks_own_preprocessing():
    """(0 - mean) / std and (1 - mean) / std; here of frames in 0..255 less a mean, of which std is 2."""
    network, x = build("Residual"), clip()
    network.preprocessing = Preprocessing(mean=(100.0, 110.0, 120.0), std=(2.0, 2.0, 2.0), scale=1.0)
    (result,) = explain(network, DeepTaylor(**RAW), x, CLASSES)
    expected = gradient_oracles.deep_taylor(network, x, CLASSES, (-50.0, -55.0, -60.0), (77.5, 72.5, 67.5))
    assert off(result, expected) < BOUND


# ---- Conservation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Residual", "Projection", "Grouped", "DepthWise", "Separable", "Branches", "Frames"])
def test_what_does_not_arrive_was_lost_at_a_denominator_of_zero(name):
    """Small networks have dead ends: the definition counts what ends there, and the rest is the map."""
    network, x, label = build(name), clip(1, TINY.get(name, (3, 6, 6))), CLASSES[:1]
    slow, lost = gradient_oracles.slow_relevance(network, x, int(label), "deep_taylor", **BOX)
    (result,) = explain(network, HEADS["deep_taylor"], x, label)
    assert off(result, slow) < BOUND
    assert abs(result.sum() + lost - 1) < 1e-9


@pytest.mark.parametrize(
    "name, size, bound",
    [
        ("narrow_c3d", LARGE, 1e-4),
        ("r3d_18", (8, 32, 32), 1e-3),
        pytest.param("c3d", LARGE, 1e-4, marks=pytest.mark.full),
        pytest.param("r3d_18", LARGE, 1e-3, marks=pytest.mark.full),
        pytest.param("r2plus1d_18", LARGE, 1e-3, marks=pytest.mark.full),
        pytest.param("s3d", (16, 224, 224), 1e-3, marks=pytest.mark.full),
        pytest.param("resnext101", LARGE, 1e-3, marks=pytest.mark.full),
        pytest.param("mfnet", (8, 64, 64), 1e-3, marks=pytest.mark.full),
        pytest.param("r3d50", LARGE, 1e-3, marks=pytest.mark.full),
        pytest.param("i3d", LARGE, 1e-3, marks=pytest.mark.full),
    ],
)
def test_a_real_network_equals_zennit_and_conserves_relevance(name, size, bound):
    network, x = real(name), clip(1, size)
    heads = {method: HEADS[method] for method in gradient_oracles.ZENNIT}
    results = dict(zip(heads, explain(network, list(heads.values()), x, CLASSES[:1]), strict=True))
    expected = gradient_oracles.expected(network, x, CLASSES[:1], methods=tuple(heads))
    for method, result in results.items():
        assert off(result, expected[method]) < BOUND, method
    assert abs(results["deep_taylor"].sum() - 1) < bound
