"""The gradient heads, in float64, equal captum to 1e-9 of the largest value, on small networks of every block type.

What captum has no option for is compared with autograd.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import clipsight
import gradient_networks
import gradient_oracles
from clipsight.heads import GradCAM, GuidedBackprop, GuidedGradCAM
from gradient_networks import CLASSES, HEADS, LARGE, NETWORKS, RAW, build, cam_layer, clip, explain, off, real

BOUND = 1e-9

# One layer inside each network: for Grad-CAM, the gradient there is not that of a global pooling.
INSIDE = {
    "Plain": "conv2",
    "Residual": "conv2",
    "Projection": "first",
    "Grouped": "block",
    "DepthWise": "wide2",
    "Separable": "time1",
    "Branches": "mixed1",
    "MultiFiber": "first",
    "Positive": "second",
    "Windows": "average",
    "Padded": "conv1",
    "Frames": "conv1",
}


@pytest.mark.parametrize("method", gradient_oracles.CAPTUM)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_head_equals_captum(name, method):
    assert off(gradient_networks.maps(name)[method], gradient_oracles.maps(name)[method]) < BOUND


def test_the_bound_tells_one_map_from_another():
    """Maps that differ by one decision of the method lie far outside the bound."""
    network, x = build("Residual"), clip()
    heads = [GuidedBackprop(**RAW), GradCAM(size="features", normalize="none", relu=False)]
    ours, cam = explain(network, heads, x, CLASSES)
    others = gradient_oracles.expected(network, x, CLASSES.flip(0), methods=("guided_backprop",))
    assert off(ours, others["guided_backprop"]) > 1e-2  # of another class
    assert off(ours * x, gradient_oracles.maps("Residual")["input_gradient"]) > 1e-2  # without the guiding
    assert off(cam, gradient_oracles.maps("Residual")["grad_cam"]) > 1e-2  # without the last ReLU
    assert off(ours * (1 + 1e-8), gradient_oracles.maps("Residual")["guided_backprop"]) > BOUND


@pytest.mark.parametrize("name", INSIDE)
def test_grad_cam_of_a_layer_inside_equals_captum(name):
    network, x, layer = build(name), clip(), INSIDE[name]
    # To captum the frames of a 2-D network are samples: each has weights of its own.
    weights_over = "hw" if name == "Frames" else "thw"
    head = GradCAM(layer, weights_over=weights_over, relu=False, size="features", normalize="none")
    signed = gradient_oracles.grad_cam(network, x, CLASSES, layer, inputs=False, relu=False)
    assert off(explain(network, head, x, CLASSES)[0], signed) < BOUND
    positive = explain(network, replace(head, relu=True), x, CLASSES)[0]
    assert (positive - signed.clamp_min(0)).abs().max() < BOUND * signed.abs().max()


@pytest.mark.parametrize("after_relu", [False, True])
@pytest.mark.parametrize("score", ["logit", "softmax"])
@pytest.mark.parametrize("weights_over", ["thw", "hw"])
def test_options_of_grad_cam_equal_autograd(weights_over, score, after_relu):
    network, x = build("Plain"), clip()
    head = GradCAM("conv3", after_relu, weights_over, score, relu=False, size="features", normalize="none")
    (result,) = explain(network, head, x, CLASSES)

    features = network.conv3(F.relu(network.conv2(network.pool1(F.relu(network.conv1(x))))))
    leaf = (F.relu(features) if after_relu else features).detach().requires_grad_()
    flat = network.pool2(leaf if after_relu else F.relu(leaf)).flatten(1)
    logits = network.fc(F.relu(network.fc7(F.relu(network.fc6(flat)))))
    scores = logits.softmax(1) if score == "softmax" else logits
    (gradient,) = torch.autograd.grad(scores.gather(1, CLASSES[:, None]).sum(), leaf)
    axes = (2, 3, 4) if weights_over == "thw" else (3, 4)
    expected = (gradient.mean(axes, keepdim=True) * leaf).sum(1, keepdim=True).detach()
    assert off(result, expected) < BOUND
    others = [
        replace(head, weights_over="hw" if weights_over == "thw" else "thw"),
        replace(head, after_relu=not after_relu),
    ]
    for other in others:  # the options do something
        assert off(explain(network, other, x, CLASSES)[0], expected) > 1e-3


def test_grad_cam_in_front_of_a_global_pooling_walks_back_nothing():
    """The mean gradient is the classifier's weight over the number of voxels, and so the map is a saliency tube."""
    network, x = build("Grouped"), clip()
    explained = clipsight.explain(network, [GradCAM(relu=False), clipsight.SaliencyTube(relu=False)], x[:1], [3])
    _, cam, tube = explained(x)
    assert off(cam, tube) < 1e-9
    with torch.profiler.profile() as profile:
        explained(x)
    assert not [event for event in profile.events() if "conv" in event.name and "backward" in event.name]


@pytest.mark.parametrize("colours", ["abs", "sum"])
def test_colours_are_summed(colours):
    raw = gradient_oracles.maps("Residual")["guided_backprop"]
    (result,) = explain(build("Residual"), GuidedBackprop(colours=colours, normalize="none"), clip(), CLASSES)
    assert off(result, (raw.abs() if colours == "abs" else raw).sum(1, keepdim=True)) < BOUND


def test_guided_grad_cam_by_default_has_a_smooth_scaled_map():
    """Guided backpropagation times Grad-CAM, up-sampled with splines and scaled to 0..1."""
    heads = [GuidedGradCAM(**RAW), GuidedBackprop(**RAW), GradCAM()]
    product, guided, cam = explain(build("Projection"), heads, clip(), CLASSES)
    assert off(product, guided * cam) < BOUND
    assert cam.amin() == 0
    assert cam.amax() == 1


def test_integrated_gradients_sum_to_the_difference_of_the_logits():
    network, x = build("Separable"), clip()
    expected = (network(x) - network(torch.zeros_like(x))).gather(1, CLASSES[:, None]).flatten()
    sums = gradient_networks.maps("Separable")["integrated_gradients"].sum((1, 2, 3, 4))
    assert off(sums, expected.detach()) < 1e-2  # of a quadrature over kinks
    few = explain(network, replace(HEADS["integrated_gradients"], steps=3, chunk=2), x, CLASSES)[0]
    assert off(few, gradient_oracles.integrated_gradients(network, x, CLASSES, steps=3)) < BOUND


@pytest.mark.parametrize("name", ["Plain", "Branches", "MultiFiber"])
def test_captum_equals_the_definition_of_guided_backprop(name):
    slow = gradient_oracles.slow_guided_backprop(build(name), clip(), CLASSES)
    assert off(gradient_oracles.maps(name)["guided_backprop"], slow) < BOUND


# ---- Networks that people have --------------------------------------------------------------------------------------


def with_a_cam(network, x, name):
    """The first class by its logit whose Grad-CAM is not zero everywhere: a bias alone can make the largest logit."""
    for label in network(x).argsort(1, descending=True)[0]:
        cam = gradient_oracles.expected(network, x, label[None], **cam_layer(name), methods=("grad_cam",))["grad_cam"]
        if cam.any():
            return label[None]
    raise AssertionError("there is no class to compare")


@pytest.mark.parametrize(
    "name, size",
    [
        ("r3d_18", (8, 32, 32)),
        pytest.param("r3d_18", LARGE, marks=pytest.mark.full),
        pytest.param("c3d", LARGE, marks=pytest.mark.full),
        pytest.param("mc3_18", LARGE, marks=pytest.mark.full),
        pytest.param("r2plus1d_18", LARGE, marks=pytest.mark.full),
        pytest.param("mfnet", (8, 64, 64), marks=pytest.mark.full),
        pytest.param("s3d", (16, 224, 224), marks=pytest.mark.full),
    ],
)
def test_a_real_network_equals_captum(name, size):
    network, x = real(name), clip(1, size)
    classes = with_a_cam(network, x, name)
    methods = ("grad_cam", "guided_backprop", "guided_grad_cam", "input_gradient")
    results = explain(network, [HEADS[method] for method in methods], x, classes)
    expected = gradient_oracles.expected(network, x, classes, **cam_layer(name), methods=methods)
    for method, result in zip(methods, results, strict=True):
        assert off(result, expected[method]) < BOUND, method


@pytest.mark.parametrize(
    "name, size, steps",
    [
        ("r3d_18", (8, 32, 32), 50),
        ("narrow_c3d", LARGE, 50),
        pytest.param("c3d", LARGE, 5, marks=pytest.mark.full),
    ],
)
def test_integrated_gradients_of_a_real_network_equal_captum(name, size, steps):
    network, x = real(name), clip(1, size)
    classes = network(x).argmax(1)
    (result,) = explain(network, replace(HEADS["integrated_gradients"], steps=steps), x, classes)
    expected = gradient_oracles.integrated_gradients(network, x, classes, steps)
    assert off(result, expected) < BOUND
    assert off(result * (1 + 1e-8), expected) > BOUND
