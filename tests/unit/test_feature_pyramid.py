"""The FeaturePyramid head against a second implementation, one kernel at a time, on networks of every block type."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import clipsight
import networks
import pyramid_networks
import pyramid_oracle
from clipsight import FeaturePyramid, SelectiveRelevance, reference
from clipsight.pyramid import Layer
from pyramid_comparison import PARTS, SIZE, differences, expected, explain, recorded
from pyramid_oracle import Rules

THETAS = (0, 0.3, 0.6, 1)
DEPTHS = (1, 2, 3, "all")


@functools.cache
def of_all_classes(name: str) -> tuple[list[dict], list[list[int]]]:
    """Outputs of six heads, and the classes that they explain: all five, in another order for each clip."""
    network, clip, recording = recorded(name)
    classes = [[0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [3, 3, 1, 0, 2]]
    selecting = [FeaturePyramid(theta=theta, depth="all", volumes="none") for theta in (0.45, 0.7)]
    kernels = [(layer, i) for layer in recording.depth for i in (0, len(recording.weights[layer]) - 1)]
    channels = [(layer, i) for layer in recording.depth for i in (recording.inputs[layer].shape[1] - 1, 1)]
    options = [("layer", "top4"), ("group", "top4"), ("feature", kernels), ("channel", channels)]
    drawing = [
        FeaturePyramid(theta=0.45, depth="all", volumes=volumes, channels=single, normalize="none")
        for volumes, single in options
    ]
    return explain(network, selecting + drawing, clip, "input", torch.tensor(classes))[0], classes


# ---- selections -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", pyramid_networks.NETWORKS)
def test_selections_of_predicted_classes_agree_exactly(name):
    network, clip, recording = recorded(name)
    options = [(theta, depth, "activation") for depth in DEPTHS for theta in THETAS]
    options += [(theta, "all", "weights") for theta in THETAS]
    deepest = max(recording.depth.values())
    heads = [FeaturePyramid(theta=t, depth=d, volumes="none", class_step=by) for t, d, by in options]
    results, explained = explain(network, heads, clip)
    with torch.inference_mode():
        assert np.abs(explained(clip)[0].numpy() - recording.logits).max() < 1e-5
    classes = recording.logits.argmax(1)[:, None].tolist()
    for (theta, depth, by), result in zip(options, results, strict=True):
        wanted = expected(recording, classes, theta, depth, by)
        assert differences(result, wanted) == [], (theta, depth, by)
        order = [recording.depth[name.removesuffix(".mask")] for name in result if name.endswith(".mask")]
        assert order == sorted(order)
        assert order[-1] == (deepest if depth == "all" else depth)
    check_layers(explained.describe()["methods"][DEPTHS.index("all") * len(THETAS)], recording)


def check_layers(described: dict, recording: pyramid_oracle.Recording) -> None:
    """What the head says of the network's layers."""
    assert (described["method"], described["theta"], described["depth"]) == ("feature_pyramid", THETAS[0], "all")
    assert {layer["name"]: layer["depth"] for layer in described["layers"]} == recording.depth
    for layer in map(Layer.from_dict, described["layers"]):
        inputs, kernels = recording.inputs[layer.name], len(recording.weights[layer.name])
        assert (layer.kernels, layer.channels, layer.groups) == (
            kernels, inputs.shape[1], recording.groups[layer.name],
        )  # fmt: skip
        assert layer.grid == (inputs.shape[2:] or None), layer.name
        assert list(layer.branches) == pyramid_oracle.branches(recording, layer.name), layer.name
        origins = {(j, s.layer, s.first + j - s.start) for s in layer.sources for j in range(s.start, s.stop)}
        assert origins == pyramid_oracle.sources(recording, layer.name), layer.name


@pytest.mark.parametrize("name", pyramid_networks.NETWORKS)
def test_selections_of_classes_as_input_agree_exactly(name):
    (result, *_), classes = of_all_classes(name)
    assert differences(result, expected(recorded(name)[2], classes, 0.45, "all")) == []


@pytest.mark.parametrize("name", ["Grouped", "Branches", "Frames"])
def test_selections_of_listed_and_of_top_classes_agree_exactly(name):
    network, clip, recording = recorded(name)
    head = FeaturePyramid(theta=0.45, depth="all", volumes="none")
    [result], _ = explain(network, head, clip, [4, 0, 2])
    assert differences(result, expected(recording, [[4, 0, 2]] * 3, 0.45, "all")) == []
    [result], _ = explain(network, head, clip, "top2")
    top = np.argsort(-recording.logits, 1)[:, :2].tolist()
    assert differences(result, expected(recording, top, 0.45, "all")) == []


WRONG = [
    ("Plain", {"activations": False}),
    ("Grouped", {"own_group": False}),
    ("MultiFiber", {"own_group": False}),
    ("Branches", {"offsets": False}),
    ("Branches", {"passes": False}),
    ("Dense", {"offsets": False}),
    ("Nested", {"offsets": False}),
    ("Residual", {"shortcuts": False}),
    ("Projection", {"shortcuts": False}),
    ("MultiFiber", {"shortcuts": False}),
    ("Residual", {"sums": False}),
    ("Frames", {"passes": False}),
]


@pytest.mark.parametrize("name, rule", WRONG, ids=lambda value: value if isinstance(value, str) else next(iter(value)))
def test_a_wrong_rule_is_noticed(name, rule):
    """The rules that the authors' script breaks among them: mixed groups, lost offsets, ignored shortcuts."""
    (_, result, *_), classes = of_all_classes(name)
    recording = recorded(name)[2]
    assert differences(result, expected(recording, classes, 0.7, "all")) == []
    wrong = differences(result, expected(recording, classes, 0.7, "all", rules=Rules(**rule)))
    parts = {"multiplicity"} if rule == {"sums": False} else {"mask", "edges"}
    assert {part for part in PARTS if any(name.endswith(part) for name in wrong)} >= parts


def test_depths_by_hand():
    """The second implementation's depths are what the others are compared with: three of them literally."""
    assert recorded("Projection")[2].depth == {
        "fc": 1, "second.conv3": 2, "second.conv2": 3, "second.conv1": 4, "first.conv3": 5, "first.shortcut.0": 5,
        "first.conv2": 6, "first.conv1": 7, "stem": 8,
    }  # fmt: skip
    assert recorded("Nested")[2].depth == {
        "fc": 1, "left": 2, "right": 2, "mix": 3, "one": 4, "three": 4, "two": 5, "stem": 6,
    }  # fmt: skip
    assert recorded("FullyConnected")[2].depth == {"fc": 1, "fc7": 2, "fc6": 3, "conv2": 4, "conv1": 5}


# ---- volumes --------------------------------------------------------------------------------------------------------


def upsampled(volumes: list[list[np.ndarray]]) -> np.ndarray:
    """`[N][V]` volumes of the feature grid -> `[N, V, T, H, W]`."""
    return reference.spline_upsample(torch.from_numpy(np.array(volumes)), SIZE).numpy()


def assert_close(volume: np.ndarray, wanted: np.ndarray) -> None:
    assert volume.shape == wanted.shape
    assert volume.dtype == np.float32
    assert np.abs(volume - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("name", pyramid_networks.NETWORKS)
def test_volumes_agree(name):
    (_, _, layers, groups, features, singles), classes = of_all_classes(name)
    recording = recorded(name)[2]
    steps = [[pyramid_oracle.pyramid(recording, n, k, 0.45) for k in row] for n, row in enumerate(classes)]
    for layer in recording.depth:
        if recording.inputs[layer].ndim != 5:
            assert f"{layer}.volume" not in layers
            continue
        arguments = [[(recording, layer, n, step[layer]) for step in row] for n, row in enumerate(steps)]

        def volumes(function, arguments=arguments):
            return upsampled([[volume for one in row for volume in function(*one)] for row in arguments])

        last = len(steps[0][0][layer].edges) - 1
        kernels = (0, last) if layer != recording.classifier else (0, 0)  # of the class step: that of the class
        assert_close(layers[f"{layer}.volume"], volumes(lambda *one: [pyramid_oracle.layer_volume(*one)]))
        assert_close(groups[f"{layer}.volume"], volumes(pyramid_oracle.group_volumes))
        wanted = volumes(lambda *one, kernels=kernels: [pyramid_oracle.feature_volume(*one, k) for k in kernels])
        assert_close(features[f"{layer}.volume"], wanted)
        own = recording.inputs[layer][:, [recording.inputs[layer].shape[1] - 1, 1]].astype(np.float64)
        assert_close(singles[f"{layer}.volume"], upsampled([[*sample] * len(classes[0]) for sample in own]))


@pytest.mark.parametrize("name", ["Grouped", "Branches"])
def test_the_most_pointed_at_are_chosen(name):
    network, clip, recording = recorded(name)
    heads = [
        FeaturePyramid(theta=0.4, depth=3, volumes=volumes, channels="top2", normalize="none")
        for volumes in ("feature", "channel")
    ]
    (features, channels), _ = explain(network, heads, clip, [3, 1])
    shown = 0
    for layer, depth in recording.depth.items():
        if depth > 3:
            continue
        for n, m in np.ndindex(3, 2):
            step = pyramid_oracle.pyramid(recording, n, [3, 1][m], 0.4, 3)[layer]
            for result, times in ((features, step.made), (channels, step.multiplicity)):
                if result is features and depth == 1:
                    continue  # one kernel, that of the class
                order = sorted(range(len(times)), key=lambda i, times=times: (-times[i], i))[:2]
                assert result[f"{layer}.chosen"].reshape(3, 2, 2)[n, m].tolist() == order
                volume = result[f"{layer}.volume"].reshape(3, 2, 2, *SIZE)[n, m]
                if result is features:
                    wanted = [pyramid_oracle.feature_volume(recording, layer, n, step, i) for i in order]
                else:  # one that nothing points at is not shown
                    wanted = [recording.inputs[layer][n, i] * float(times[i] > 0) for i in order]
                wanted = upsampled([wanted])[0]
                assert np.abs(volume - wanted).max() <= 1e-5 * np.abs(wanted).max()
                shown += sum(bool(one.any()) for one in wanted)
    assert shown > 20


def test_normalised_volumes_and_their_motion():
    network, clip, recording = recorded("Nested")
    options = {"theta": 0.4, "depth": 3}
    heads = [FeaturePyramid(**options), FeaturePyramid(**options, normalize="none")]
    (tubes, raw), _ = explain(network, heads, clip)
    split = SelectiveRelevance(of=FeaturePyramid(**options), n_sigma=1.0, extras=("motion_share",))
    explained = clipsight.explain(network, [split], clip[:1])
    with torch.inference_mode():
        motions = dict(zip(explained.output_names, explained(clip), strict=True))
    layers = [layer for layer, depth in recording.depth.items() if depth <= 3]
    assert {f"{layer}.motion" for layer in layers} < set(motions)
    for layer in layers:
        tube, volume = (torch.from_numpy(result[f"{layer}.volume"]) for result in (tubes, raw))
        low, high = volume.amin((2, 3, 4), True), volume.amax((2, 3, 4), True)
        assert (tube - (volume - low) / (high - low)).abs().max() < 1e-5
        kept, share = reference.selective_relevance(volume, 1.0)
        wanted, motion = tube * (kept != 0), motions[f"{layer}.motion"]
        apart = (motion - wanted).abs() > 1e-5
        assert apart.float().mean() <= 1e-3  # within rounding of one standard deviation
        assert 0.01 < (motion != 0).float().mean() < 0.8
        assert (motions[f"{layer}.motion_share"] - share).abs().max() < 1e-3


def test_a_class_without_channels_has_empty_steps_and_zero_volumes():
    """Scaled over all classes, the weights of one class may all lie below theta."""
    network, clip, recording = recorded("Residual")
    head = FeaturePyramid(theta=1, depth="all", class_step="weights")
    [result], _ = explain(network, head, clip, [0, 1, 2, 3, 4])
    best = int(recording.weights["fc"].max((1, 2)).argmax())
    for layer in recording.depth:
        for part in (*PARTS, "volume"):
            array = result[f"{layer}.{part}"]
            assert np.isfinite(array).all()
            assert array[:, best].any()
            assert not np.delete(array, best, 1).any()


# ---- how it runs ----------------------------------------------------------------------------------------------------


def test_a_batch_is_its_samples_one_by_one():
    network, clip, _ = recorded("MultiFiber")
    head = FeaturePyramid(theta=0.4, depth="all", normalize="none")
    [together], explained = explain(network, head, clip, "top2")
    with torch.inference_mode():
        alone = [dict(zip(explained.output_names, explained(clip[n : n + 1]), strict=True)) for n in range(3)]
    for name, array in together.items():
        single = np.concatenate([result[name].numpy() for result in alone])
        if name.endswith(".volume"):
            assert np.abs(array - single).max() <= 1e-5 * np.abs(single).max()
        else:
            assert (array == single).all()


def test_autograd_has_no_part_in_it():
    network, clip, _ = recorded("Branches")
    explained = clipsight.explain(network, FeaturePyramid(depth="all"), clip[:1])
    with torch.inference_mode():
        quiet = explained(clip)
    with torch.no_grad():
        assert not any(tensor.requires_grad for tensor in explained(clip))
    loud = explained(clip)  # with autograd on, the volumes are functions of the features, the selections of nothing
    for name, tensor, same in zip(explained.output_names, loud, quiet, strict=True):
        assert torch.allclose(tensor.double(), same.double(), atol=1e-6), name
        assert tensor.grad_fn is None or name == "logits" or name.endswith(".volume"), name
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_clips_of_another_size_and_none_at_all():
    network, clip, _ = recorded("Branches")
    longer = networks.clip(2, (12, 16, 20))
    explained = clipsight.explain(network, FeaturePyramid(theta=0.4, depth="all"), clip[:1], [1, 2])
    with torch.inference_mode():
        outputs = dict(zip(explained.output_names, explained(longer), strict=True))
        empty = dict(zip(explained.output_names, explained(clip[:0]), strict=True))
    wanted = expected(pyramid_oracle.record(network, longer), [[1, 2]] * 2, 0.4, "all")
    assert differences({name: outputs[name].numpy() for name in wanted}, wanted) == []
    for name, tensor in empty.items():
        size = SIZE if name.endswith(".volume") else outputs[name].shape[2:]
        assert tensor.shape == ((0, 5) if name == "logits" else (0, 2, *size)), name


def test_one_of_several_classifiers():
    network, clip = networks.seeded(networks.VerbNoun), networks.clip(1)
    head = FeaturePyramid(depth="all", volumes="none")
    for name, classes in (("verb", 4), ("noun", 7)):
        (described,) = clipsight.explain(network, head, clip, head=name).describe()["methods"]
        layers = [(layer["name"], layer["depth"], layer["kernels"]) for layer in described["layers"]]
        assert layers == [(name, 1, classes), ("body.3", 2, 12), ("body.0", 3, 8)]


def test_plain_ops_give_the_same_selections():
    network, clip, recording = recorded("Grouped")
    explained = clipsight.explain(network, FeaturePyramid(theta=0.4, depth="all"), clip[:1])
    with torch.inference_mode():
        plain = dict(zip(explained.output_names, explained.at(SIZE, plugin=False)(clip), strict=True))
    wanted = expected(recording, recording.logits.argmax(1)[:, None].tolist(), 0.4, "all")
    assert differences({name: plain[name].numpy() for name in wanted}, wanted) == []


def test_layers_choose_what_is_put_out():
    network, clip, _ = recorded("Projection")
    heads = [FeaturePyramid(theta=0.4, depth="all"), FeaturePyramid(theta=0.4, depth="all", layers=("first", "stem"))]
    explained = clipsight.explain(network, heads[1], clip[:1], [0])
    layers = [name.removesuffix(".mask") for name in explained.output_names if name.endswith(".mask")]
    assert set(layers) == {"first.conv1", "first.conv2", "first.conv3", "first.shortcut.0", "stem"}
    with torch.inference_mode():
        some = dict(zip(explained.output_names, explained(clip), strict=True))
    [whole], _ = explain(network, heads[0], clip, [0])
    for name in set(some) - {"logits"}:
        assert np.allclose(some[name].numpy(), whole[name], atol=1e-6), name
