"""What a network takes: the order of the axes, its channels, single frames; what is no network that can be read."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import clipsight
import networks
from clipsight import AttachError, Preprocessing, SaliencyTube
from clipsight.layouts import LAYOUTS, looks_like, shape_of, size_of
from clipsight.windows import for_network, sliding_windows, to_clip, to_gray
from helpers import assert_same

AXES = {"NTCHW": (0, 2, 1, 3, 4), "NTHWC": (0, 2, 3, 4, 1)}  # from [N, C, T, H, W], by hand
BACK = {"NTCHW": (0, 2, 1, 3, 4), "NTHWC": (0, 4, 1, 2, 3)}
HEADS = [
    SaliencyTube(),
    clipsight.SelectiveRelevance(),
    clipsight.GradCAM(layer="body.2"),
    clipsight.InputGradient(colours="raw", normalize="none"),
    clipsight.IntegratedGradients(steps=4, chunk=2),
    clipsight.DeepTaylor(low=(-3, -2, -4), high=(3, 4, 5), colours="raw"),
    clipsight.FeaturePyramid(depth=2),
]


class Reordered(networks.ModulePool):
    """The same network for clips in another order."""

    order = "NTCHW"

    def forward(self, x):
        return super().forward(x.permute(BACK[self.order]))


class ChannelsLast(Reordered):
    order = "NTHWC"


FACTORIES = {"NTCHW": Reordered, "NTHWC": ChannelsLast}


def assert_close(got, expected) -> None:
    """But for rounding, which depends on how a clip lies in memory; a voxel of a mask may lie on its threshold."""
    for a, b in zip(got, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        outside = (a.double() - b.double()).abs() > 1e-5 * b.double().abs().max()
        assert outside.double().mean() <= (1e-3 if b.dim() == 5 else 0)


@pytest.mark.parametrize("layout", AXES)
def test_a_network_in_its_own_order_has_the_maps_of_the_same_one_in_ours(layout):
    network, x = networks.seeded(FACTORIES[layout]), networks.clip(2)
    expected = clipsight.explain(networks.seeded(networks.ModulePool), HEADS, x, "top2")(x)
    given = x.permute(AXES[layout]).contiguous()
    explained = clipsight.explain(network, HEADS, given, "top2", layout=layout)
    assert (explained.size, explained.channels, explained.layout) == ((8, 32, 32), 3, layout)
    with torch.no_grad():
        assert_close(explained(given)[:1], [network(given)])
    for other in (explained, pickle.loads(pickle.dumps(explained)), copy.deepcopy(explained)):
        assert_close(other(given), expected)
    with pytest.raises(AssertionError):  # the bound tells the colours from each other
        assert_close(explained(given.flip(layout.index("C"))), expected)
    assert explained.describe()["feature_shape"] == [12, 4, 8, 8]
    larger = networks.clip(1, (12, 48, 40))
    assert explained(larger.permute(AXES[layout]))[1].shape == (1, 2, 12, 48, 40)
    assert_close([explained.plain_at((8, 32, 32))(given)], [network(given)])
    with pytest.raises(ValueError, match=rf"clip must have 3 channels \(axes {layout}\)"):
        explained(x)


def test_the_layout_may_be_an_attribute_of_the_network():
    network, x = networks.seeded(Reordered), networks.clip(2).transpose(1, 2)
    expected = clipsight.explain(network, SaliencyTube(), x, layout="NTCHW")(x)
    network.layout = "NTCHW"
    assert_same(clipsight.explain(network, SaliencyTube(), x)(x), expected)
    network.layout = "horizontal"  # of another meaning
    with pytest.raises(ValueError, match="look like NTCHW"):
        clipsight.explain(network, SaliencyTube(), x)


@pytest.mark.parametrize(
    "shape, layout",
    [
        ((1, 8, 3, 32, 32), "NTCHW"),
        ((1, 8, 1, 32, 32), "NTCHW"),
        ((2, 5, 4, 9, 9), "NTCHW"),
        ((1, 8, 32, 32, 3), "NTHWC"),
        ((1, 16, 32, 40, 1), "NTHWC"),
        ((1, 3, 8, 32, 32), None),
        ((1, 1, 1, 32, 3), None),
        ((1, 2, 3, 32, 3), None),
        ((1, 12, 8, 32, 32), None),
    ],
)
def test_colours_are_never_read_as_time(shape, layout):
    assert looks_like(shape) == layout
    if layout is None:
        return
    fits = networks.seeded(lambda: Of(shape[1]))  # a network that would read them so without a word
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=rf"whose axes look like {layout}; say layout='{layout}' where they are, or"):
        clipsight.explain(fits, SaliencyTube(), x)
    assert clipsight.explain(fits, SaliencyTube(), x, layout="NCTHW")(x)[1].shape == (shape[0], 1, *shape[2:])


class Of(nn.Module):
    """A network of any number of channels that changes no length."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv3d(channels, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3, 4)))


def test_layouts_that_are_none():
    with pytest.raises(ValueError, match=r"layout must be one of \['NCTHW', 'NTCHW', 'NTHWC'\], got 'NHWTC'"):
        clipsight.explain(networks.seeded(networks.ModulePool), SaliencyTube(), networks.clip(), layout="NHWTC")
    with pytest.raises(ValueError, match=r"clip must have shape \[N, T, H, W, 3\] with no empty axis, got \[3, 8"):
        clipsight.explain(networks.seeded(ChannelsLast), SaliencyTube(), torch.zeros(3, 8, 32, 32), layout="NTHWC")
    for several in ((networks.clip(), networks.clip()), [networks.clip()], {"rgb": networks.clip()}):
        with pytest.raises(TypeError, match=r"got (tuple|list|dict); a network of several inputs .*models\.Adapter"):
            clipsight.explain(networks.seeded(networks.ModulePool), SaliencyTube(), several)
    for layout in LAYOUTS:
        shape = shape_of(2, 3, (8, 32, 40), layout)
        assert sorted(shape) == [2, 3, 8, 32, 40]
        assert size_of(shape, layout) == (8, 32, 40)


@pytest.mark.parametrize("channels", [1, 2, 7])
def test_networks_of_any_number_of_channels(channels):
    network, x = networks.seeded(lambda: Of(channels)), torch.randn(2, channels, 6, 16, 16)
    heads = [SaliencyTube(), clipsight.InputGradient(colours="raw", normalize="none")]
    logits, tube, raw = clipsight.explain(network, heads, x)(x)
    assert (tube.shape, raw.shape) == ((2, 1, 6, 16, 16), (2, channels, 6, 16, 16))
    leaf = x.clone().requires_grad_()
    out = network(leaf)
    (gradient,) = torch.autograd.grad(out.amax(1).sum(), leaf)
    assert torch.allclose(raw, gradient * x, atol=1e-6)
    assert torch.allclose(logits, out, atol=1e-6)


# ---- Frame by frame ---------------------------------------------------------------------------------------------


class Unpacks(networks.Image):
    def forward(self, x):
        _, _, h, w = x.shape
        return super().forward(x[..., : h - h % 4, : w - w % 4])


class AsksBarely(networks.Image):
    def forward(self, x):
        assert x.ndim == 4
        return super().forward(x)


class SaysIt(networks.Image):
    def forward(self, x):
        if len(x.shape) != 4:
            raise ValueError(f"expected a 4-dimensional tensor, got {tuple(x.shape)}")
        return super().forward(x)


class Normalizes(networks.Image):
    """With a mean for each colour, which a clip's axes do not fit."""

    def forward(self, x):
        return super().forward(x - torch.zeros(3, 1, 1))


class Permutes(networks.Image):
    """Of frames [N, H, W, 3]."""

    def forward(self, x):
        return super().forward(x.permute(0, 3, 1, 2))


@pytest.mark.parametrize("factory", [networks.Image, Unpacks, AsksBarely, SaysIt, Normalizes, Permutes])
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_a_network_of_frames_sees_each_on_its_own(factory, layout):
    x = networks.clip(2)
    plain = networks.seeded(networks.Image)
    expected = clipsight.explain(plain, [SaliencyTube(), clipsight.GradCAM(layer="body")], x)(x)
    assert torch.allclose(expected[0], torch.stack([plain(f) for f in x.unbind(2)]).mean(0), atol=1e-6)
    if (factory is Permutes) != (layout == "NTHWC"):
        return
    given = x.permute(AXES.get(layout, (0, 1, 2, 3, 4)))
    heads = [SaliencyTube(), clipsight.GradCAM(layer="body")]
    assert_same(clipsight.explain(networks.seeded(factory), heads, given, layout=layout)(given), expected)


class Fails(networks.Image):
    """Takes clips; the error is its own."""

    error: Exception

    def forward(self, x):
        if x.dim() == 5:
            raise self.error
        return super().forward(x)


@pytest.mark.parametrize(
    "error, message",
    [
        (RuntimeError("the licence has expired\nask for another"), "RuntimeError: the licence has expired$"),
        (ValueError("clips must have 16 frames, got 8"), "ValueError: clips must have 16 frames, got 8$"),
        (KeyError("alpha"), "KeyError: 'alpha'$"),
        (RuntimeError("The size of tensor a (7) must match tensor b (8) at dimension 2"), "at dimension 2$"),
        (ZeroDivisionError(), "ZeroDivisionError: raise self.error$"),
    ],
)
def test_an_error_of_another_kind_is_shown(error, message):
    """That frames would do does not make a network one of frames."""
    network = networks.seeded(Fails)
    network.error = error
    network(networks.clip()[:, :, 0])
    with pytest.raises(
        AttachError, match=r"the network Fails could not run on a clip of shape \[1, 3, 8, 32, 32\]: "
    ) as e:
        clipsight.explain(network, SaliencyTube(), networks.clip(2))
    with pytest.raises(AttachError, match=message):
        raise e.value
    assert e.value.__cause__ is error


class NeedsLargeFrames(networks.Image):
    def forward(self, x):
        if x.shape[-1] < 64:
            raise ValueError("Input image height (32) does not match the model (64)")
        return super().forward(x)


def test_an_error_on_a_frame_is_shown():
    network = networks.seeded(lambda: nn.Sequential(nn.Conv2d(3, 3, 1), NeedsLargeFrames()))
    with pytest.raises(
        AttachError, match=r"could not run on a frame of shape \[1, 3, 32, 32\]: ValueError: Input image"
    ):
        clipsight.explain(network, SaliencyTube(), networks.clip())


def test_an_error_on_a_clip_names_the_layout_where_that_may_help():
    x = torch.randn(1, 4, 3, 32, 32)  # four frames: as likely as four channels
    with pytest.raises(
        AttachError, match="got 4 channels instead; layout= says so where its axes are in another order"
    ):
        clipsight.explain(networks.seeded(networks.ModulePool), SaliencyTube(), x)
    explained = clipsight.explain(networks.seeded(Reordered), SaliencyTube(), x, layout="NTCHW")
    assert explained.size == (4, 32, 32)
    with pytest.raises(AttachError, match=r"could not capture Reordered on a clip of shape \[N, 4, 2, 32, 32\]"):
        clipsight.explain(networks.seeded(Reordered), SaliencyTube(), x[:, :, :2], layout="NTCHW")


# ---- What is no network that can be read ------------------------------------------------------------------------


def exported(network: nn.Module, batch: int = 2, free: bool = True) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim.DYNAMIC},) if free else None
    return torch.export.export(network, (networks.clip(batch),), dynamic_shapes=shapes, strict=False)


def test_a_module_of_torch_export():
    network, x = networks.seeded(networks.ModulePool), networks.clip(3)
    heads = [SaliencyTube(), clipsight.GradCAM(layer="body.2")]
    expected = clipsight.explain(network, heads, x)(x)
    assert_same(clipsight.explain(exported(network).module(), heads, x)(x), expected)
    with pytest.raises(TypeError, match=r"got an ExportedProgram; pass its \.module\(\)"):
        clipsight.explain(exported(network), heads, x)
    with pytest.raises(
        ValueError, match=r"one that was exported for 2; pass the network itself, or export it with dyn"
    ):
        clipsight.explain(exported(network, free=False).module(), heads, x)
    with pytest.raises(ValueError, match="must be exported in eval mode"):
        clipsight.explain(exported(network.train()).module(), heads, x)


@pytest.mark.parametrize("make", [torch.jit.script, lambda network: torch.jit.trace(network, networks.clip())])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused(make):
    network = make(networks.seeded(networks.ModulePool))
    with pytest.raises(
        TypeError, match=r"got one of TorchScript \(\w+\), which torch.export cannot read; pass the net"
    ):
        clipsight.explain(network, SaliencyTube(), networks.clip())
    with pytest.raises(TypeError, match="got one with a part of TorchScript"):
        clipsight.explain(nn.Sequential(network).eval(), SaliencyTube(), networks.clip())


# ---- Clips of a video -------------------------------------------------------------------------------------------


def frames(count: int = 4) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 6, 5, 3), np.uint8))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_windows_in_the_order_of_a_network(layout):
    preprocessing = Preprocessing(frames=4, crop=(6, 5), mean=(0.1, 0.2, 0.3), std=(1, 2, 3), channel_order="BGR")
    plain = to_clip(frames(), preprocessing)
    expected = plain.transpose(AXES.get(layout, (0, 1, 2, 3, 4)))
    (window,) = sliding_windows(frames(), preprocessing, layout=layout)
    for clip in (to_clip(frames(), preprocessing, layout), for_network(plain, preprocessing, 3, layout), window.clip):
        assert clip.flags.c_contiguous
        assert (clip == expected).all()
    gray = for_network(plain, preprocessing, 1, layout)
    assert (gray == to_gray(plain, preprocessing).transpose(AXES.get(layout, (0, 1, 2, 3, 4)))).all()


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_one_mean_makes_gray_clips(order):
    preprocessing = Preprocessing(frames=4, crop=(6, 5), mean=(0.4,), std=[0.2], channel_order=order)
    three = Preprocessing(frames=4, crop=(6, 5), mean=(0.4,) * 3, std=(0.2,) * 3, channel_order=order)
    assert (preprocessing.channels, three.channels) == (1, 3)
    clip = to_clip(frames(), preprocessing)
    luma = np.stack(frames()).astype(np.float64) @ [0.299, 0.587, 0.114]
    assert np.abs(clip[0, 0] - (luma / 255 - 0.4) / 0.2).max() < 1e-5
    assert np.abs(clip - to_gray(to_clip(frames(), three), three)).max() < 1e-5, "as of three that are alike"
    assert np.abs(clip - to_clip(frames(), three)[:, :1]).max() > 0.1, "not one of the colours"
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing


@pytest.mark.parametrize("mean, std", [((0.4,), (1, 1, 1)), ((0.1, 0.2), (1, 1)), ((), ())])
def test_as_many_means_as_deviations(mean, std):
    with pytest.raises(ValueError, match=rf"3 values each, or 1 for gray clips, got {len(mean)} and {len(std)}"):
        Preprocessing(mean=mean, std=std)
