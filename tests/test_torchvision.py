"""torchvision's video networks are explained without naming a layer, and the maps agree with autograd.

Where the pooling is uniform, the class activation map is t*h*w times Grad-CAM without its ReLU: the gradient of the
logit with respect to the features is the classifier's weight over t*h*w.
"""

from __future__ import annotations

import pytest
import torch

import clipsight
import networks
from clipsight import SaliencyTube, SelectiveRelevance
from helpers import import_torchvision

# name -> clip size, module whose input is pooled, channels of the classifier
NETWORKS = {
    "r3d_18": ((16, 64, 64), "avgpool", 512),
    "mc3_18": ((8, 64, 64), "avgpool", 512),
    "r2plus1d_18": ((16, 64, 64), "avgpool", 512),
    "swin3d_t": ((8, 64, 64), "avgpool", 768),
    "s3d": ((16, 224, 224), "avgpool", 1024),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_agree_with_autograd(name):
    size, pool, channels = NETWORKS[name]
    network = networks.seeded(lambda: getattr(import_torchvision().models.video, name)(num_classes=20))
    x = networks.clip(2, size)
    explained = clipsight.explain(network, [SaliencyTube(size="features"), SelectiveRelevance()], x, classes="top2")
    with torch.inference_mode():
        logits, cam, motion = explained(x)
    assert explained.feature_shape[0] == channels
    assert motion.shape == (2, 2, *size)

    seen = {}
    hook = network.get_submodule(pool).register_forward_pre_hook(lambda _, args: seen.update(features=args[0]))
    expected_logits = network(x)
    hook.remove()
    assert torch.allclose(logits, expected_logits, rtol=1e-4, atol=1e-5)
    features = seen["features"]
    classes = logits.topk(2).indices
    for m in range(2):
        if name == "s3d":  # its windows overlap in time, so the gradient is not uniform: Eq. 1 by hand
            expected = torch.einsum("nc,ncthw->nthw", network.classifier[1].weight.flatten(1)[classes[:, m]], features)
        else:
            (gradient,) = torch.autograd.grad(
                expected_logits.gather(1, classes)[:, m].sum(), features, retain_graph=True
            )
            expected = features[0, 0].numel() * (gradient.mean((2, 3, 4), keepdim=True) * features).sum(1)
        bound = 1e-4 * expected.abs().max()
        assert (cam[:, m] - expected).abs().max() < bound
        assert (cam[:, 1 - m] - expected).abs().max() > 10 * bound  # the other class has another map


@pytest.mark.parametrize(
    "name, suffix",
    [("mc3_18", ".pt"), ("r2plus1d_18", ".onnx"), ("s3d", ".onnx"), ("swin3d_t", ".pt"), ("swin3d_t", ".onnx")],
)
def test_files_of_every_network_agree_with_it(name, suffix, tmp_path):
    """The self-check of export compares the maps; here the file meets the network itself, at another batch size."""
    size = NETWORKS[name][0]
    network = networks.seeded(lambda: getattr(import_torchvision().models.video, name)(num_classes=20))
    with torch.inference_mode():  # as in a service; export must not mind
        methods = [SaliencyTube(), SelectiveRelevance(extras=["motion_share"])]
        explained = clipsight.explain(network, methods, networks.clip(1, size))
        manifest = clipsight.export(explained, tmp_path / f"x{suffix}")
        assert manifest.self_check["max_difference"]["saliency_tube"] < 1e-4
        x = networks.clip(2, size, seed=9)
        logits, tube, motion, share = clipsight.load(tmp_path / f"x{suffix}")(x)
        expected = network(x)
        assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
        assert (tube - explained(x)[1]).abs().max() < 1e-4
        assert (tube[0] - tube[1]).abs().max() > 1e-2
    assert motion.shape == tube.shape
    assert ((share > 0) & (share < 1)).all()
