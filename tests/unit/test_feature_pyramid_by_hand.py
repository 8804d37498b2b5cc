"""Class Feature Pyramids worked by hand: the head, and the second implementation that its other tests rely on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pyramid_networks
import pyramid_oracle
from clipsight import FeaturePyramid
from pyramid_comparison import PARTS, expected, explain
from pyramid_oracle import Rules


class ByHand(pyramid_networks.Network):
    """1x1x1 convolutions with the weights given as rows; the stem turns a constant clip (1, 2, 4) into (1, 2, 4, 3)."""

    def __init__(
        self, graph: str, features, fc, groups: int = 1, stem=((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)), **rows
    ):
        super().__init__(len(fc[0]), len(fc))
        self.graph = f"x = stem(clip)\n{graph}"
        self.after_stem = features
        self.stem = _convolution(stem)
        for name, weight in rows.items():
            self.add_module(name, _convolution(weight, groups))
        self.fc.weight.data = torch.tensor(fc, dtype=torch.float32)
        self.eval()

    def features(self, clip):
        return self.after_stem(self, torch.relu(self.stem(clip)))


def _convolution(rows, groups: int = 1) -> nn.Conv3d:
    weight = torch.tensor(rows, dtype=torch.float32)[..., None, None, None]
    layer = nn.Conv3d(weight.shape[1] * groups, weight.shape[0], 1, groups=groups, bias=False)
    layer.weight.data = weight
    return layer


CLIP = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1, 1).expand(1, 3, 4, 4, 4).contiguous()


@pytest.fixture(params=["head", "oracle"])
def by_hand(request):
    """`by_hand(network, theta)`: layer -> (mask, multiplicity, edges) of class 0, from the head and from the oracle."""

    def run(network: ByHand, theta: float) -> dict:
        if request.param == "head":
            [result], _ = explain(network, FeaturePyramid(theta=theta, depth="all", volumes="none"), CLIP, [0])
        else:
            result = expected(pyramid_oracle.record(network, CLIP), [[0]], theta, "all")
        names = [name.removesuffix(".mask") for name in result if name.endswith(".mask")]
        return {name: tuple(result[f"{name}.{part}"][0, 0].astype(int).tolist() for part in PARTS) for name in names}

    return run


RESIDUAL = {  # x = (1, 2, 4, 3), conv(x) = (1, 6, 6, 6), their sum (2, 8, 10, 9)
    "graph": "a = conv(x)\ny = sum(a, x)\nlogits = fc(y)",
    "features": lambda net, x: net.conv(x) + x,
    "conv": [[1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 0, 1], [0, 0, 0, 2]],
    "fc": [[1, 0, 2, 1]],
}


def test_residual_with_identity_by_hand(by_hand):
    # (2, 0, 20, 9) scaled is (0.1, 0, 1, 0.45): channels 2 and 3. Kernel 2 scores (1, 2, 0, 3) and takes 1 and 3,
    # kernel 3 scores (0, 0, 0, 6) and takes 3; the shortcut brings 2 and 3. So x has 1 once, 2 once, 3 three times.
    steps = by_hand(ByHand(**RESIDUAL), 0.4)
    assert steps["fc"] == ([0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1])
    no = [0, 0, 0, 0]
    assert steps["conv"] == ([0, 1, 1, 1], [0, 1, 1, 3], [no, no, [0, 1, 0, 1], [0, 0, 0, 1]])
    # The stem's kernels 1, 2, 3 score (0, 2, 0), (0, 0, 4) and (1, 2, 0); a half of the way is above 0.4.
    assert steps["stem"] == ([1, 1, 1], [1, 2, 1], [[0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    assert by_hand(ByHand(**RESIDUAL), 0.5)["conv"][:2] == ([0, 1, 1, 1], [0, 1, 1, 1])


def test_volumes_of_the_residual_by_hand():
    pairs = [("conv", 2), ("conv", 3), ("conv", 0), ("fc", 0)]
    heads = [
        FeaturePyramid(theta=0.4, depth=3, normalize="none", volumes=volumes, channels=pairs)
        for volumes in ("layer", "feature", "channel", "group")
    ]
    results, _ = explain(ByHand(**RESIDUAL), heads, CLIP, [0])
    found = [{name: np.unique(v).tolist() for name, v in r.items() if name.endswith("volume")} for r in results]
    assert found[0] == {"fc.volume": [9.5], "conv.volume": [3.0], "stem.volume": [2.25]}  # (2 + 4 + 3*3)/5, (1+2*2+4)/4
    assert results[1]["conv.volume"][0, :, 0, 0, 0].tolist() == [2.5, 3.0, 0.0]  # of 1 and 3; of 3; not selected
    assert results[2]["conv.volume"][0, :, 0, 0, 0].tolist() == [4.0, 3.0, 1.0]
    assert found[3] == found[0]


def test_two_groups_by_hand(by_hand):
    # x = (1, 2, 4, 3) -> (5, 3, 7, 10), times (1, 1, 1, 0) and scaled (0.71, 0.43, 1, 0): kernels 0 and 2. Kernel 0
    # scores (3, 2) on channels 0 and 1, kernel 2 scores (4, 3) on channels 2 and 3; on the first group it would take 1.
    network = ByHand(
        "y = conv(x)\nlogits = fc(y)",
        lambda net, x: net.conv(x),
        fc=[[1, 1, 1, 0]],
        groups=2,
        conv=[[3, 1], [1, 1], [1, 1], [1, 2]],
    )
    steps = by_hand(network, 0.6)
    assert steps["fc"][0] == [1, 0, 1, 0]
    assert steps["conv"] == ([1, 0, 1, 0], [1, 0, 1, 0], [[1, 0], [0, 0], [1, 0], [0, 0]])
    assert steps["stem"][2] == [[1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_two_branches_with_an_offset_by_hand(by_hand):
    # left(x) = (1, 2), right(x) = (4, 3, 7); times (0, 1, 0, 2, 1): (0, 2, 0, 6, 7), so channels 3 and 4, that is
    # 1 and 2 of the right branch. They score (1, 2, 0, 0) and (0, 0, 4, 3).
    network = ByHand(
        "a = left(x)\nb = right(x)\ny = cat(a, b)\nlogits = fc(y)",
        lambda net, x: torch.cat([net.left(x), net.right(x)], 1),
        fc=[[0, 1, 0, 2, 1]],
        left=[[1, 0, 0, 0], [0, 1, 0, 0]],
        right=[[0, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1]],
    )
    steps, no = by_hand(network, 0.6), [0, 0, 0, 0]
    assert steps["fc"][0] == [0, 0, 0, 1, 1]
    read = ([0, 1, 1, 1], [0, 1, 1, 1])  # both read the same tensor
    assert steps["left"] == (*read, [no, no])
    assert steps["right"] == (*read, [no, [0, 1, 0, 0], [0, 0, 1, 1]])
    steps = by_hand(network, 0.25)  # now channel 1 too: kernel 1 of the left branch, which scores (0, 2, 0, 0)
    assert steps["fc"][0] == [0, 1, 0, 1, 1]
    assert steps["left"] == ([1, 1, 1, 1], [1, 2, 1, 1], [no, [0, 1, 0, 0]])
    assert steps["right"][2] == [no, [1, 1, 0, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize("theta, weights", [(0.5, [0, 1, 2, 0.99]), (0.6, [0, 3, 5, 2.99]), (0.3, [0, 3, 10, 2.99])])
def test_equality_at_theta_is_kept_by_hand(by_hand, theta, weights):
    ones = ((0, 0, 0.25),) * 4  # every feature is 1: the scores are the weights
    network = ByHand("logits = fc(x)", lambda _, x: x, fc=[weights], stem=ones)
    assert by_hand(network, theta)["fc"][0] == [0, 1, 1, 0]
    strict = expected(pyramid_oracle.record(network, CLIP), [[0]], theta, "all", rules=Rules(equality=False))
    assert strict["fc.mask"][0, 0].astype(int).tolist() == [0, 0, 1, 0]
    # In a convolution: x = (1, 2, 4, 3) times these weights.
    rows = [[w / x for w, x in zip(weights, (1, 2, 4, 4), strict=True)]]
    stem = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 1))
    network = ByHand("y = conv(x)\nlogits = fc(y)", lambda net, x: net.conv(x), fc=[[1]], stem=stem, conv=rows)
    assert by_hand(network, theta)["conv"][2] == [[0, 1, 1, 0]]


@pytest.mark.parametrize("theta", (0, 0.3, 0.6, 1))
def test_equal_candidates_are_all_kept_by_hand(by_hand, theta):
    # The class scores (2, 2, 2, 2); each kernel of the depth-wise convolution has one candidate, also with weight 0.
    network = ByHand(
        "y = conv(x)\nlogits = fc(y)",
        lambda net, x: torch.relu(net.conv(x)) + 1,
        fc=[[2, 2, 2, 2]],
        groups=4,
        conv=[[0], [0], [-1], [-2]],
    )
    steps = by_hand(network, theta)
    assert steps["fc"] == ([1, 1, 1, 1],) * 3
    assert steps["conv"] == ([1, 1, 1, 1], [1, 1, 1, 1], [[1], [1], [1], [1]])


def test_a_tensor_that_is_reached_twice_has_the_union_and_the_sum_by_hand(by_hand):
    # x = (1, 2, 4, 3). one takes channel 2 or 0, two takes channel 2 or 3, and x is a part of the features itself.
    network = ByHand(
        "a = one(x)\nb = two(x)\ny = cat(a, b, x)\nlogits = fc(y)",
        lambda net, x: torch.cat([net.one(x), net.two(x), x], 1),
        fc=[[4, 3, 0, 0, 9, 3, 0, 0]],  # times (4, 2, 4, 3, 1, 2, 4, 3): (16, 6, 0, 0, 9, 6, 0, 0)
        one=[[0, 0, 1, 0], [2, 0, 0, 0]],
        two=[[0, 0, 1, 0], [0, 0, 0, 1]],
    )
    steps, no = by_hand(network, 0.3), [0, 0, 0, 0]
    assert steps["fc"][0] == [1, 1, 0, 0, 1, 1, 0, 0]
    assert steps["one"] == ([1, 1, 1, 0], [2, 1, 1, 0], [[0, 0, 1, 0], [1, 0, 0, 0]])
    assert steps["two"] == ([1, 1, 1, 0], [2, 1, 1, 0], [no, no])
    network.fc.weight.data = torch.tensor([[4.0, 0, 4, 0, 0, 0, 4, 0]])
    steps = by_hand(network, 1)  # (16, 0, 16, 0, 0, 0, 16, 0): channel 2 of x from one, from two, and by itself
    assert steps["one"][:2] == steps["two"][:2] == ([0, 0, 1, 0], [0, 0, 3, 0])
