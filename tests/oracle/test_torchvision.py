"""torchvision's video networks are explained without naming a layer, and the maps agree with autograd.

Where the pooling is uniform, the class activation map is t*h*w times Grad-CAM without its ReLU: the gradient of the
logit with respect to the features is the classifier's weight over t*h*w.
"""

from __future__ import annotations

import re

import pytest
import torch

import clipsight
import networks
from clipsight import SaliencyTube, SelectiveRelevance, models
from clipsight.models import registry, torchvision_video
from helpers import import_torchvision

# name -> clip size, module whose input is pooled, channels of the classifier
NETWORKS = {
    "r3d_18": ((16, 64, 64), "avgpool", 512),
    "mc3_18": ((8, 64, 64), "avgpool", 512),
    "r2plus1d_18": ((16, 64, 64), "avgpool", 512),
    "swin3d_t": ((8, 64, 64), "avgpool", 768),
    "swin3d_b": ((4, 64, 64), "avgpool", 1024),
    "s3d": ((16, 224, 224), "avgpool", 1024),
}


def seeded(name: str) -> torch.nn.Module:
    import_torchvision()
    network = networks.seeded(lambda: models.load(name, pretrained=False, num_classes=20))
    if name == "swin3d_b":
        network.features[4] = network.features[4][:2]  # of 18 equal blocks
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_agree_with_autograd(name):
    size, pool, channels = NETWORKS[name]
    network = seeded(name)
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
    network = seeded(name)
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


@pytest.mark.parametrize("name", torchvision_video.SAMPLING)
def test_preprocessing_is_that_of_the_published_weights(name):
    """Crop, mean and standard deviation by value; clip length and frame rate as the weights' own text has them."""
    np, windows = pytest.importorskip("numpy"), pytest.importorskip("clipsight.windows")
    torchvision = import_torchvision()
    weights = torchvision.models.get_model_weights(name).DEFAULT
    with torch.device("meta"):
        network = registry.build(name)
    preprocessing = network.preprocessing
    rate, length = (re.search(rf"`{key}=([0-9.]+)`", weights.meta["_docs"])[1] for key in ("frame_rate", "clip_len"))
    assert (preprocessing.stride, preprocessing.frames) == (30 / float(rate), int(length))
    assert preprocessing.frames >= weights.meta.get("min_temporal_size", 1)
    assert network.labels == weights.meta["categories"]
    with torch.device("meta"):
        assert registry.build(name, 7).labels is None

    source = (480, 640)
    size = preprocessing.resized(source)
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    crop = windows.Geometry.of(preprocessing, size).crop_frame  # frames of that size are not resized any more
    clip = windows.to_clip(map(crop, frames), preprocessing)
    expected = weights.transforms()(torch.from_numpy(frames).permute(0, 3, 1, 2))
    torch.testing.assert_close(torch.from_numpy(clip)[0], expected)
    wide = weights.transforms()(torch.zeros(2, 3, *source, dtype=torch.uint8))
    assert wide.shape[2:] == preprocessing.crop


@pytest.mark.parametrize("name", ["mvit_v1_b", "mvit_v2_s"])
def test_mvit_runs_at_its_published_size(name):
    import_torchvision()
    with torch.device("meta"):
        network = registry.build(name, 7).eval()
        assert network(torch.empty(2, 3, *network.preprocessing.size)).shape == (2, 7)
    assert network.preprocessing.size == (16, 224, 224)


def test_mvit_has_no_saliency_tube():
    """It classifies from a class token: nothing is pooled. Two small blocks stand for it."""
    video = import_torchvision().models.video.mvit
    block = video.MSBlockConfig(1, 8, 8, kernel_q=[], kernel_kv=[], stride_q=[], stride_kv=[])
    options = dict.fromkeys(("residual_pool", "residual_with_cls_embed", "rel_pos_embed", "proj_after_attn"), False)
    network = networks.seeded(lambda: video.MViT((32, 32), 4, [block] * 2, num_classes=5, **options))
    with torch.inference_mode():
        assert network(networks.clip(2, (4, 32, 32))).shape == (2, 5)
    with pytest.raises(clipsight.AttachError, match=r"Saliency Tubes are not defined .*Grad-CAM"):
        clipsight.explain(network, SaliencyTube(), networks.clip(1, (4, 32, 32)))
