"""explain: features, pooling and classifier are found; maps equal those computed by hand; errors are clear."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import scipy.ndimage
import torch
from torch import nn

import clipsight
import networks
from clipsight import AttachError, SaliencyTube, SelectiveRelevance, reference
from helpers import assert_same

RAW = SaliencyTube(normalize="none")


def explain(network, methods=RAW, classes="predicted", example=None, **options):
    return clipsight.explain(network, methods, networks.clip() if example is None else example, classes, **options)


def by_hand(features: torch.Tensor, row: torch.Tensor, size) -> torch.Tensor:
    """Eq. 1-2 and scipy's spline for one sample: features [C, t, h, w], row [C] -> [T, H, W]."""
    cam = torch.einsum("c,cthw->thw", row.double(), features.double()).numpy()
    factors = [n / m for n, m in zip(size, cam.shape, strict=True)]
    return torch.from_numpy(scipy.ndimage.zoom(cam, factors, order=3, mode="mirror"))


NETWORKS = {
    "ModulePool": (networks.ModulePool, lambda m, x: m.body(x), lambda m: m.fc.weight),
    "FunctionalMean": (networks.FunctionalMean, lambda m, x: torch.relu(m.body(x) - 0.1), lambda m: m.fc.weight),
    "ChannelsLastMean": (networks.ChannelsLastMean, lambda m, x: m.body(x), lambda m: m.fc.weight),
    "ConvolutionHead": (networks.ConvolutionHead, lambda m, x: m.body(x), lambda m: m.head[1].weight),
    "PoolAfterHead": (networks.PoolAfterHead, lambda m, x: m.body(x), lambda m: m.head[1].weight),
    "Image": (networks.Image, lambda m, x: torch.stack([m.body(f) for f in x.unbind(2)], 2), lambda m: m.fc.weight),
    "ImageOverClips": (
        networks.ImageOverClips,
        lambda m, x: torch.stack([m.body(f) for f in x.unbind(2)], 2),
        lambda m: m.fc.weight,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("plugin", [True, False])
@torch.no_grad()
def test_tube_equals_the_one_computed_by_hand(name, plugin):
    factory, features_of, weight_of = NETWORKS[name]
    network, x = networks.seeded(factory), networks.clip(3)
    logits, tube = explain(network).at((8, 32, 32), plugin)(x)
    features, weight = features_of(network, x), weight_of(network).flatten(1)
    if name == "Image":
        assert torch.allclose(logits, torch.stack([network(f) for f in x.unbind(2)]).mean(0), atol=1e-6)
    else:
        assert torch.allclose(logits, network(x), atol=1e-6)
    for n in range(3):
        expected = by_hand(features[n], weight[logits[n].argmax()], (8, 32, 32))
        bound = 1e-5 * expected.abs().max()
        assert (tube[n, 0] - expected).abs().max() < bound
        other = by_hand(features[n], weight[logits[n].argmin()], (8, 32, 32))
        assert (tube[n, 0] - other).abs().max() > 100 * bound  # another class gives another map


@torch.no_grad()
def test_classes_are_chosen_per_sample():
    network, x = networks.seeded(networks.ModulePool), networks.clip(4)
    logits, top = explain(network, classes="top2")(x)
    by_input = explain(network, classes="input")
    for n in range(4):
        classes = logits[n].topk(2).indices
        alone = by_input(x[n : n + 1], classes[None])[1]
        assert torch.allclose(top[n : n + 1], alone, atol=1e-6)
        fixed = explain(network, classes=classes.tolist())(x[n : n + 1])[1]
        assert torch.allclose(fixed, alone, atol=1e-6)
    assert torch.equal(explain(network)(x)[1], explain(network, classes="top1")(x)[1])


@torch.no_grad()
def test_heads_share_one_tube_and_split_it():
    tube = SaliencyTube(extras=("per_frame", "peak_box"))
    both = SelectiveRelevance(of=SaliencyTube(), part="both", extras=("motion_share",), n_sigma=1.0)
    explained = explain(networks.seeded(networks.ModulePool), [tube, both], classes="top2")
    assert explained.output_names == (
        "logits", "saliency_tube", "saliency_tube_per_frame", "saliency_tube_peak_box",
        "motion", "static", "motion_share",
    )  # fmt: skip
    _, tube, frames, box, motion, static, share = explained(networks.clip(2))
    assert torch.equal(motion + static, tube)
    assert ((motion == 0) | (static == 0)).all()
    assert 0 < share.min() <= share.max() < 1
    assert torch.allclose(frames, tube.mean((-2, -1)))
    for n in range(2):
        t0, y0, x0, t1, y1, x1 = box[n, 0].tolist()
        inside = torch.zeros_like(tube[n, 0], dtype=torch.bool)
        inside[t0:t1, y0:y1, x0:x1] = True
        high = tube[n, 0] > 0.5
        assert not (high & ~inside).any()
        assert all(
            high.select(d, e).any() for d, e in [(0, t0), (0, t1 - 1), (1, y0), (1, y1 - 1), (2, x0), (2, x1 - 1)]
        )


@torch.no_grad()
def test_single_feature_tubes():
    network, x = networks.seeded(networks.ModulePool), networks.clip(2)
    _, chosen = explain(network, SaliencyTube(channels=[3, 0], normalize="none"))(x)
    features = network.body(x)
    assert chosen.shape == (2, 2, 8, 32, 32)
    assert torch.allclose(chosen[:, 0], reference.spline_upsample(features[:, 3], (8, 32, 32)), atol=1e-5)
    logits, top = explain(network, SaliencyTube(channels="top2", normalize="none"), classes="top2")(x)
    assert top.shape == (2, 4, 8, 32, 32)
    contribution = features[0].mean((1, 2, 3)) * network.fc.weight[logits[0].topk(2).indices[1]]
    best = int(contribution.argmax())
    assert torch.allclose(top[0, 2], reference.spline_upsample(features[0, best], (8, 32, 32)), atol=1e-5)


@torch.no_grad()
def test_small_cam_and_thresholds():
    network, x = networks.seeded(networks.ModulePool), networks.clip(2)
    weight, features = network.fc.weight, network.body(x)
    low, high = weight.min(), weight.max()
    for threshold, scale, tau in [(0.05, "raw", 0.05), (0.6, "minmax", float(low + 0.6 * (high - low)))]:
        head = SaliencyTube(size="features", threshold=threshold, threshold_scale=scale)
        _, cam = explain(network, head, classes=[2])(x)
        kept = torch.where(weight[2] >= tau, weight[2], 0)
        assert 0 < (kept != 0).sum() < 12
        assert torch.allclose(cam[:, 0], torch.einsum("c,ncthw->nthw", kept, features), atol=1e-5)


@torch.no_grad()
def test_script_2020_preset_scales_negative_maps_and_takes_falling_relevance():
    network, x = networks.seeded(networks.ModulePool), networks.clip(1)
    head = SelectiveRelevance.script_2020(n_sigma=1.0, extras=("motion_share",))
    _, raw, tube = explain(network, [RAW, SaliencyTube()])(x)
    _, motion, share = explain(network, head)(x)
    assert raw.min() < 0
    scaled = (raw - raw.min()) / (raw.max() - raw.min())
    kept, expected_share = reference.selective_relevance(scaled, 1.0, "zeros", "falling")
    assert torch.allclose(motion, tube * (kept != 0), atol=1e-5)
    assert torch.allclose(share, expected_share, atol=1e-4)
    assert SelectiveRelevance.paper().n_sigma == 4
    assert SelectiveRelevance.paper().padding == "zeros"


@torch.no_grad()
def test_several_classifiers_are_chosen_by_name():
    network, x = networks.seeded(networks.VerbNoun), networks.clip(2)
    for head, classes in [("verb", 4), ("noun", 7)]:
        explained = explain(network, head=head)
        assert explained.num_classes == classes
        assert torch.allclose(explained(x)[0], network(x)[head], atol=1e-6)
    with pytest.raises(AttachError, match=r"2 classifiers.*\['noun', 'verb'\]"):
        explain(network)
    with pytest.raises(AttachError, match=r"head must name one classifier.*got 'adverb'"):
        explain(network, head="adverb")


@torch.no_grad()
def test_features_by_name():
    network, x = networks.seeded(networks.ModulePool), networks.clip(2)
    assert torch.equal(explain(network, features="body")(x)[1], explain(network)(x)[1])
    assert torch.equal(explain(network, features="body.4")(x)[1], explain(network)(x)[1])
    with pytest.raises(AttachError, match=r"12 channels.*got 8 channels.*(?s:.)*candidates for features=.*'body'"):
        explain(network, features="body.2")
    with pytest.raises(AttachError, match="features must name a module that the network runs, got 'tail'"):
        explain(network, features="tail")


@torch.no_grad()
def test_any_clip_size_and_the_model_is_left_alone():
    network = networks.seeded(networks.ModulePool)
    before = copy.deepcopy(network.state_dict())
    explained = explain(network, SaliencyTube())
    for size in [(8, 32, 32), (12, 48, 40)]:
        assert explained(networks.clip(1, size))[1].shape == (1, 1, *size)
    with pytest.raises(AttachError):
        explain(network, features="nowhere")
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in network.modules())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.requires_grad for p in network.parameters())


@torch.no_grad()
def test_weights_changed_later_and_copies_are_followed():
    network, x = networks.seeded(networks.ModulePool), networks.clip(1)
    explained = explain(network)
    first, twin = explained(x)[1], copy.deepcopy(explained)
    network.fc.weight.mul_(2)
    assert torch.allclose(explained(x)[1], 2 * first, atol=1e-5)
    assert torch.equal(twin(x)[1], first)
    half = explained.to(torch.bfloat16)(x.bfloat16())
    assert half[0].dtype == torch.bfloat16
    assert half[1].dtype == torch.float32
    assert (half[1] - 2 * first).abs().max() < 0.05 * first.abs().max()


@torch.no_grad()
def test_an_explained_model_goes_to_other_processes():
    """As a loader's worker receives it by pickle, or a file by `torch.save`; a graph of one size cannot go."""
    heads = [SaliencyTube(), SelectiveRelevance(extras=["motion_share"]), clipsight.GradCAM(layer="body.2")]
    heads += [clipsight.DeepTaylor(low=-3, high=3), clipsight.FeaturePyramid(depth=2)]
    explained, x = explain(networks.seeded(networks.ModulePool), heads, "top2"), networks.clip(2)
    expected, file = explained(x), io.BytesIO()
    torch.save(explained, file)
    file.seek(0)
    for other in (pickle.loads(pickle.dumps(explained)), torch.load(file, weights_only=False)):
        assert_same(other(x), expected)
        assert other.output_meanings == explained.output_meanings
    for to in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="a model at one size cannot be pickled; pickle that of all sizes"):
            to(explained.at((8, 32, 32)))


def test_constant_in_time_is_said():
    with pytest.warns(UserWarning, match="single frame for a clip of 2 frames.*longer clip"):
        explained = explain(networks.seeded(networks.ModulePool), example=networks.clip(1, (2, 32, 32)))
    assert explained.temporal_resolution == 1
    assert explain(networks.seeded(networks.ModulePool)).describe()["temporal_resolution"] == 4


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (
            {"network": networks.FullyConnected},
            AttachError,
            r"global average pooling.*(?s:.)*Grad-CAM(?s:.)*candidates",
        ),
        ({"network": lambda: nn.Sequential(networks.stages())}, AttachError, "linear layer or a 1x1x1 convolution"),
        ({"example": torch.zeros(3, 8, 32, 32)}, ValueError, r"shape \[N, 3, T, H, W\].*got \[3, 8, 32, 32\]"),
        ({"example": torch.zeros(1, 3, 8, 0, 32)}, ValueError, r"no empty axis, got \[1, 3, 8, 0, 32\]"),
        ({"example": torch.zeros(1, 3, 8, 32, 32).long()}, TypeError, "floating-point values, got torch.int64"),
        (
            {"example": torch.zeros(1, 4, 8, 32, 32)},
            AttachError,
            r"could not capture ModulePool on a clip of shape \[N, 4, 8, 32, 32\], at .*got 4 channels",
        ),
        ({"classes": [5]}, ValueError, r"classes must lie in 0..4, got \[5\]"),
        ({"classes": [-1]}, ValueError, r"classes must lie in 0..4, got \[-1\]"),
        ({"classes": []}, ValueError, "at least one class"),
        ({"classes": "best"}, ValueError, "got 'best'"),
        ({"classes": "top6"}, ValueError, "'top1'..'top5'.*got 'top6'"),
        ({"methods": []}, TypeError, "a head or a list of heads"),
        ({"methods": SaliencyTube(channels=[12])}, ValueError, r"channels must lie in 0..11, got \[12\]"),
        ({"methods": SaliencyTube(channels="top13")}, ValueError, "at most 12, got 'top13'"),
    ],
)
def test_what_does_not_fit_is_named(arguments, error, message):
    network = networks.seeded(networks.ModulePool)
    if "network" in arguments:
        arguments = arguments.copy()
        network = arguments.pop("network")().eval()
        network(networks.clip())  # makes lazy layers
    with pytest.raises(error, match=message):
        explain(network, **arguments)


def test_training_mode_and_forward_arguments():
    network, x = networks.seeded(networks.ModulePool), networks.clip(2)
    with pytest.raises(ValueError, match="eval mode"):
        explain(network.train())
    explained = explain(network.eval(), classes="input")
    with pytest.raises(ValueError, match="classes must be given"):
        explained(x)
    with pytest.raises(ValueError, match=r"int64 tensor \[N, M\] with N = 2, got torch.int64 \[3, 1\]"):
        explained(x, torch.zeros(3, 1).long())
    with pytest.raises(ValueError, match=r"0..4, got 0..5"):
        explained(x, torch.tensor([[0], [5]]))
    with pytest.raises(ValueError, match="classes is no input here"):
        explain(network)(x, torch.zeros(2, 1).long())
    with pytest.raises(ValueError, match=r"clip must have 3 channels, got \[2, 2, 8, 32, 32\]"):
        explain(network)(x[:, :2])
    assert explain(network)(x[:0])[1].shape == (0, 1, 8, 32, 32)


def distributed(network: nn.Module) -> nn.Module:
    """DistributedDataParallel as it is when it wraps a network, without a process group."""
    wrapper = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = network
    return wrapper


class AnyArguments(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args, **kwargs):
        return self.network(*args, **kwargs)


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": distributed,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "torch.compile": torch.compile,
    "torch.compile of DataParallel": lambda network: torch.compile(nn.DataParallel(network)),
    "forward(*args)": AnyArguments,
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_network_may_be_in_what_it_was_trained_in(name):
    network, x = networks.seeded(networks.ModulePool), networks.clip(2)
    expected = explain(network)(x)
    wrapped = WRAPPERS[name](network)
    if name == "forward(*args)":
        wrapped.eval()
    explained = explain(wrapped)  # in training mode itself, which does not matter
    assert explained.model_name == ("AnyArguments" if name == "forward(*args)" else "ModulePool")
    assert all(torch.equal(a, b) for a, b in zip(explained(x), expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(explain(wrapped, head="fc")(x), expected, strict=True))
    wrapped.train()
    with pytest.raises(ValueError, match="eval mode"):
        explain(wrapped)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, AnyArguments])
def test_a_part_of_the_network_may_be_too(wrap):
    network, x = networks.seeded(networks.ModulePool), networks.clip(2)
    expected = explain(network)(x)
    network.body = wrap(network.body)
    assert all(torch.equal(a, b) for a, b in zip(explain(network.eval())(x), expected, strict=True))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SaliencyTube(order=2), "order must be one of"),
        (lambda: SaliencyTube(normalize="max"), "normalize must be one of.*got 'max'"),
        (lambda: SaliencyTube(threshold=float("nan")), "finite number"),
        (lambda: SaliencyTube(threshold_scale="unit"), "threshold_scale"),
        (lambda: SaliencyTube(dtype="uint8", normalize="none"), "uint8"),
        (lambda: SaliencyTube(size=(0, 2, 2)), r"size must be \(T, H, W\)"),
        (lambda: SaliencyTube(channels="best3"), "channels must be"),
        (lambda: SaliencyTube(channels=[]), "at least one channel"),
        (lambda: SaliencyTube(extras=["box"]), "extras must be one of"),
        (lambda: SelectiveRelevance(part="moving"), "part must be one of"),
        (lambda: SelectiveRelevance(padding="reflect"), "padding must be one of"),
        (lambda: SelectiveRelevance(n_sigma=-1), "n_sigma must be at least 0, got -1"),
        (lambda: SelectiveRelevance(n_sigma=float("nan")), "n_sigma must be at least 0, got nan"),
        (lambda: SelectiveRelevance(of="tube"), "must be a head"),
    ],
)
def test_options_of_heads(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
