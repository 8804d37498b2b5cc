"""The self-check of exports: what else than a wrong map it sees. Every fault has its sound twin, which passes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import networks
from clipsight import ExportError, GuidedBackprop, SaliencyTube, SelectiveRelevance, explain, export
from clipsight.exporters.check import self_check
from clipsight.exporters.program import Program, random_inputs

SIZE = (8, 32, 32)
base = networks.ModulePool.forward


def network(forward=base, change=lambda network: None):
    class Network(networks.ModulePool):
        def __init__(self) -> None:
            super().__init__()
            change(self)

    Network.forward = forward
    return networks.seeded(Network)


def checked(model, loaded=None, **options) -> int:
    """How many clips a file was compared on, which computes what `loaded` does, or what the eager model does."""
    explained = model if hasattr(model, "at") else explain(model, SaliencyTube(), networks.clip())
    program = Program(explained, (SIZE,), plugin=True, **options)
    return self_check(program, loaded or explained)["clips"]


# ---- Numbers that are not finite ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".onnx"])
def test_weights_that_are_not_finite_are_named_and_nothing_is_written(tmp_path, suffix):
    pytest.importorskip("onnx", reason="onnx is not installed")
    broken = network()
    broken.body[3].weight.data[0, 0, 0, 0, 0] = float("nan")
    with pytest.warns(
        UserWarning, match=r"logits of Network are not finite for the example: 'body\.3\.weight' holds NaN"
    ):
        explained = explain(broken, [SaliencyTube(), SelectiveRelevance()], networks.clip())
    with pytest.raises(ExportError, match=r"'logits' must be finite .* in the network, 'body\.3\.weight' holds NaN$"):
        export(explained, tmp_path / f"x{suffix}", plugin=False)
    assert not [*tmp_path.iterdir()]


def test_an_op_that_is_not_finite_is_named():
    """Of a clip around 0, which is what is tried where nobody says what range clips have."""

    def forward(self, x):
        return base(self, x.log())

    explained = explain(network(forward), SaliencyTube(), networks.clip().abs() + 0.1)
    with pytest.raises(
        ExportError, match=r"must be finite .* 'log' .* is the first to give such; random clips have mean 0"
    ):
        checked(explained)


def test_a_mask_of_minus_infinity_is_no_fault():
    def forward(self, x):
        return base(self, x * self.mask.softmax(0)[0])

    def change(self):
        self.register_buffer("mask", torch.tensor([0.5, float("-inf"), 0.5]))

    assert checked(network(forward, change)) == 3


def test_a_file_that_is_not_finite_where_the_model_is():
    explained = explain(network(), SaliencyTube(), networks.clip())

    def loaded(clip):
        logits, tube = explained(clip)
        tube = tube.clone()
        tube[-1, 0, 3, 4, 5] = float("nan")
        return logits, tube

    with pytest.raises(ExportError, match=r"'saliency_tube' must be finite .* though those of the network are"):
        checked(explained, loaded)


def test_an_example_must_be_finite(tmp_path):
    explained = explain(network(), SaliencyTube(), networks.clip())
    with pytest.raises(ValueError, match="example must hold finite values"):
        export(explained, tmp_path / "x.pt", networks.clip() / 0, plugin=False)


# ---- Samples that depend on each other ------------------------------------------------------------------------------


def by_batch(self, x):
    return base(self, F.batch_norm(x, None, None, training=True))


def by_largest(self, x):
    return base(self, x / x.amax())


def by_own_largest(self, x):
    return base(self, x / x.amax((1, 2, 3, 4), keepdim=True))


@pytest.mark.parametrize("forward, op", [(by_batch, "batch_norm"), (by_largest, "amax")])
def test_a_network_that_mixes_samples_is_warned_of_and_refused(tmp_path, forward, op):
    with pytest.warns(UserWarning, match=f"'{op}' .* of Network looks at all samples of a batch"):
        explained = explain(network(forward), SaliencyTube(), networks.clip())
    with pytest.raises(
        ExportError, match=f"'logits' of a sample must not depend on the other samples .*'{op}' .* looks"
    ):
        export(explained, tmp_path / "x.pt", plugin=False)
    assert not [*tmp_path.iterdir()]


def test_a_network_that_looks_at_one_sample_at_a_time_passes(recwarn):
    explained = explain(network(by_own_largest), SaliencyTube(), networks.clip())
    assert not [warning for warning in recwarn if "explain" in str(warning.message)]
    assert checked(explained) == 3


@pytest.mark.parametrize("head", [SaliencyTube(), GuidedBackprop()], ids=lambda head: head.name)
def test_maps_that_mix_samples_are_seen_though_the_eager_model_mixes_them_too(head):
    """As where the frames of all samples are taken apart in the wrong order: the logits are right."""
    explained, mixed = (explain(network(), head, networks.clip()) for _ in range(2))
    whole = type(mixed).at

    def at(size, plugin=True):
        sized = whole(mixed, size, plugin)

        class Mixed(nn.Module):
            network, attached = sized.network, sized.attached

            def forward(self, clip, *others, decisions=None, **options):
                logits, map = sized(clip, *others, **options)
                frames = map.transpose(1, 2).flatten(0, 1)  # sample by sample; taken for frame by frame
                return logits, frames.unflatten(0, (map.shape[2], -1)).transpose(0, 1).transpose(1, 2)

        return Mixed()

    mixed.at = at
    assert checked(explained) == 3
    with pytest.raises(ExportError, match=f"'{head.name}' of a sample must not depend on .* mixed on the way"):
        checked(mixed, lambda clip: mixed.at(SIZE)(clip))


def test_a_file_that_takes_only_the_batch_it_was_traced_with():
    explained = explain(network(), SaliencyTube(), networks.clip())

    def loaded(clip):
        if len(clip) != 2:
            raise RuntimeError("The following operation failed in the TorchScript interpreter.\nRuntimeError: not 2")
        return explained(clip)

    with pytest.raises(
        ExportError, match=r"run on clip \[1, 3, 8, 32, 32\], a batch that was not traced, got .*not 2$"
    ):
        checked(explained, loaded)


# ---- Values of the traced inputs that are baked in -------------------------------------------------------------------


def test_a_number_of_the_traced_clip_is_seen():
    explained = explain(network(by_own_largest), SaliencyTube(), networks.clip())
    traced = random_inputs(Program(explained, (SIZE,), plugin=True), SIZE, 3, 0)["clip"].amax()
    baked = explain(network(lambda self, x: base(self, x / traced)), SaliencyTube(), networks.clip())
    assert checked(explained) == 3
    with pytest.raises(ExportError, match="'logits' must agree with the eager model"):
        checked(explained, baked)


@pytest.mark.parametrize("name", ["classes", "tau", "n_sigma"])
def test_an_input_that_is_baked_in_is_seen(name):
    heads = [SaliencyTube(), SelectiveRelevance()]
    explained = explain(network(), heads, networks.clip(), classes="input")
    options = {"thresholds": ("tau", "n_sigma")}
    traced = random_inputs(Program(explained, (SIZE,), plugin=True, **options), SIZE, 3, 0)

    def loaded(clip, **others):
        baked = traced[name][:1].expand(len(clip), *traced[name].shape[1:])
        return explained(clip, **(others | {name: baked[:, : others[name].shape[1]] if name == "classes" else baked}))

    assert checked(explained, **options) > 3
    with pytest.raises(ExportError, match=f"must (agree|change with the input {name})"):
        checked(explained, loaded, **options)


# ---- The network as it was given ------------------------------------------------------------------------------------


def otherwise_when_captured(self, x):
    return base(self, x * (1.01 if torch.compiler.is_exporting() else 1))


def other_frames_unless_captured(self, x):
    return networks.Image.forward(self, x if torch.compiler.is_exporting() else x - x[:1].mean())


@pytest.mark.parametrize("suffix", [".pt", ".onnx"])
def test_code_that_does_something_else_when_captured(tmp_path, suffix):
    pytest.importorskip("onnx", reason="onnx is not installed")
    explained = explain(network(otherwise_when_captured), SaliencyTube(), networks.clip())
    with pytest.raises(
        ExportError, match=r"'logits' must be those of Network as it was given, within .* a difference of"
    ):
        export(explained, tmp_path / f"x{suffix}", plugin=False)
    assert not [*tmp_path.iterdir()]


def test_an_image_network_is_held_against_its_frames_one_by_one():
    image = networks.seeded(networks.Image)
    assert checked(image) == 3
    image.forward = other_frames_unless_captured.__get__(image)
    with pytest.raises(ExportError, match="must be those of Image as it was given"):
        checked(image)


@pytest.mark.parametrize(
    "forward", [lambda self, x: base(self, F.dropout(x)), lambda self, x: base(self, x + torch.rand_like(x))]
)
def test_a_random_network_is_called_that(tmp_path, forward):
    explained = explain(network(forward), SaliencyTube(), networks.clip())
    with pytest.raises(
        ExportError, match="Network must give the same logits for the same clip, got others the second time"
    ):
        export(explained, tmp_path / "x.pt", plugin=False)


def test_the_networks_own_code_runs_once_for_each_size():
    """It is what the check costs more than the file and the eager model."""
    explained = explain(network(), SaliencyTube(), networks.clip())
    given, seen = explained.given_logits, []
    explained.given_logits = lambda clip: seen.append(tuple(clip.shape)) or given(clip)
    self_check(Program(explained, (SIZE, (8, 24, 24)), plugin=True), explained)
    assert seen == [(1, 3, 8, 32, 32), (1, 3, 8, 24, 24)]


def test_given_logits_outlive_copies_types_and_wrappers():
    clip = networks.clip(3)
    with torch.no_grad():
        for given, options in ((network(), {}), (networks.seeded(networks.VerbNoun), {"head": "noun"})):
            expected = given(clip)["noun"] if options else given(clip)
            explained = explain(nn.DataParallel(given).eval(), SaliencyTube(), clip, **options)
            other = copy.deepcopy(explained), explained.with_maps_of("uint8")
            other += () if not options else (pickle.loads(pickle.dumps(explained)),)
            for each in (explained, *other):
                torch.testing.assert_close(each.given_logits(clip), expected, rtol=0, atol=1e-6)
            half = explained.in_half(torch.bfloat16)
            assert half.given_logits(clip).dtype == torch.float32
            torch.testing.assert_close(
                half.given_logits(clip), expected, rtol=0, atol=0.05 * float(expected.abs().max())
            )
            assert not torch.equal(half.given_logits(clip), expected)
            torch.testing.assert_close(copy.deepcopy(explained).double().given_logits(clip.double()).float(), expected)


def test_code_in_place_leaves_the_clip_alone():
    clip = networks.clip(2)
    before = clip.clone()
    explain(network(lambda self, x: base(self, x.mul_(2))), SaliencyTube(), networks.clip()).given_logits(clip)
    assert torch.equal(clip, before)
