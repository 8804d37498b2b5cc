"""Files of networks that take their clips in another order of the axes, or gray ones, in every format and language."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import clipsight
import networks
from clipsight import Preprocessing, SaliencyTube, SelectiveRelevance, explain, export, load
from clipsight.manifest import read_manifest
from clipsight.triton import config, ports
from helpers import onnxruntime_library
from session_api import CError, CSession

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnx", reason="onnx is not installed")
windows = pytest.importorskip("clipsight.windows", reason="the extra 'video' is not installed")

AXES = {"NCTHW": (0, 1, 2, 3, 4), "NTCHW": (0, 2, 1, 3, 4), "NTHWC": (0, 2, 3, 4, 1)}  # from [N, C, T, H, W]
SIZE, OTHER = (8, 24, 28), (6, 20, 28)
HEADS = [SaliencyTube(), SelectiveRelevance(extras=("motion_share",))]
GRADIENTS = [SaliencyTube(), clipsight.InputGradient(colours="raw", normalize="none")]


class Ordered(networks.ModulePool):
    """A network with an order of its own, and any number of channels."""

    def __init__(self, layout: str, channels: int = 3) -> None:
        super().__init__()
        self.back = [AXES[layout].index(axis) for axis in range(5)]
        self.body[0] = torch.nn.Conv3d(channels, 8, 3, stride=(1, 2, 2), padding=1, bias=False)

    def forward(self, x):
        return super().forward(x.permute(self.back))


def explained(layout: str, heads=HEADS, classes="predicted", channels: int = 3):
    network = networks.seeded(lambda: Ordered(layout, channels))
    return explain(network, heads, clip(layout, 1, channels=channels), classes, layout=layout)


def clip(layout: str, batch: int = 2, size=SIZE, seed: int = 4, channels: int = 3) -> torch.Tensor:
    ours = torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))
    return ours.permute(AXES[layout]).contiguous()


def assert_close(got, expected) -> None:
    for a, b in zip(got, expected, strict=True):
        a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
        assert a.shape == b.shape
        outside = (a - b).abs() > 1e-4 * b.abs().max()
        assert outside.double().mean() <= (2e-3 if b.dim() == 5 else 0)


@pytest.fixture(scope="module")
def files(once):
    """`files("NTCHW", ".onnx")`: of two sizes, with maps on demand and classes as an input."""

    def file(layout: str, suffix: str, **options):
        options = {"sizes": [OTHER], "optional": True, **options}
        name = f"layout_{layout}_{'_'.join(options)}{suffix}"
        return once(name, lambda path: export(explained(layout, classes="input"), path, **options))

    return file


@pytest.mark.parametrize(
    "layout, suffix",
    [
        ("NTHWC", ".onnx"),
        ("NTCHW", ".pt"),
        pytest.param("NTCHW", ".onnx", marks=pytest.mark.full),
        pytest.param("NTHWC", ".pt", marks=pytest.mark.full),
        pytest.param("NTHWC", ".pt2", marks=pytest.mark.full),
    ],
)
def test_a_file_takes_the_clips_of_its_network(files, layout, suffix):
    loaded, live = load(files(layout, suffix)), explained(layout, classes="input")
    given = loaded.manifest.input
    assert (given.layout, given.name, given.channels, given.sizes) == (layout, "clip", 3, (SIZE, OTHER))
    lengths = dict(zip("NCTHW", ("N", 3, "T", "H", 28), strict=True))
    assert given.shape == tuple(lengths[axis] for axis in layout)
    classes = torch.tensor([[0, 4], [2, 2]])
    for size in (SIZE, OTHER):
        x = clip(layout, size=size)
        with torch.inference_mode():
            expected = live(x, classes)
        assert expected[1].shape == (2, 2, *size)
        assert_close(loaded(x, classes), expected)
        assert_close(loaded(x.numpy(), classes.numpy()), expected)
        with pytest.raises(AssertionError):
            assert_close(loaded(clip(layout, size=size, seed=5), classes), expected)
    assert loaded(x, classes, explain=False)[1].shape[2:] == (0, 0, 0)
    with pytest.raises(ValueError, match=r"clip must have shape \[N, .*, got \[2, 3, 8, 24, 28\]"):
        loaded(clip("NCTHW"), classes)


@pytest.mark.parametrize("suffix", [".onnx", ".pt"])
def test_walks_back_to_a_clip_in_another_order(tmp_path, suffix):
    live = explained("NTHWC", GRADIENTS)
    export(live, tmp_path / f"x{suffix}", clip("NTHWC", 1), plugin=False)
    with torch.inference_mode():
        assert_close(load(tmp_path / f"x{suffix}")(clip("NTHWC")), live(clip("NTHWC")))
    with pytest.raises(ValueError, match=r"example must be a clip \[N, T, H, W, 3\] of a size in .*, got \[1, 3, 8"):
        export(live, tmp_path / "y.pt", clip("NCTHW", 1))


def test_the_session_takes_the_same_clips(files):
    file = files("NTHWC", ".onnx")
    session, loaded, classes = CSession(file, onnxruntime_library()), load(file), np.array([[0, 4], [2, 2]])
    assert session.ports("input") == [tuple(port) for port in loaded.manifest.input_ports]
    for size in (SIZE, OTHER):
        x = clip("NTHWC", size=size).numpy()
        assert_close(session.run(x, classes, np.ones(2, bool)), loaded(x, classes))
    for layout in ("NTCHW", "NCTHW"):
        with pytest.raises(CError, match=r"clip must have shape \[N, 8, 24, 28, 3\] or \[N, 6, 20, 28, 3\], got \[2, "):
            session.run(clip(layout).numpy(), classes, np.ones(2, bool))


def test_triton_is_told_the_order(files):
    file = files("NTHWC", ".onnx")
    manifest = read_manifest(file)
    inputs, outputs = ports(file, manifest)
    assert inputs[0].dims == (-1, -1, 28, 3)
    assert "dims: [-1, -1, 28, 3]" in config(manifest, inputs, outputs, "x", 8)


# ---- Frames, and gray clips -----------------------------------------------------------------------------------------


def as_video_does(frames: torch.Tensor, preprocessing: Preprocessing, channels: int, layout: str) -> torch.Tensor:
    geometry = windows.Geometry.of(preprocessing, tuple(frames.shape[2:4]))
    clips = [windows.to_clip(map(geometry.crop_frame, sample.numpy()), preprocessing) for sample in frames]
    return torch.from_numpy(np.concatenate([windows.for_network(c, preprocessing, channels, layout) for c in clips]))


@pytest.mark.parametrize(
    "channels, layout, mean, order, suffix",
    [
        (3, "NTHWC", (0.4, 0.5, 0.6), "BGR", ".pt"),
        (1, "NCTHW", (0.45,), "RGB", ".onnx"),
        (1, "NTCHW", (0.4, 0.5, 0.6), "BGR", ".pt"),
        pytest.param(1, "NTHWC", (0.45,), "BGR", ".onnx", marks=pytest.mark.full),
        pytest.param(3, "NTCHW", (0.4, 0.5, 0.6), "RGB", ".pt2", marks=pytest.mark.full),
    ],
)
def test_frames_become_the_clip_that_the_network_takes(tmp_path, channels, layout, mean, order, suffix):
    std = tuple(0.2 + 0.1 * i for i in range(len(mean)))
    preprocessing = Preprocessing(frames=8, resize=30, crop=SIZE[1:], mean=mean, std=std, channel_order=order)
    live, path = explained(layout, SaliencyTube(), channels=channels), tmp_path / f"x{suffix}"
    manifest = export(live, path, frames="uint8", preprocessing=preprocessing, plugin=False)
    assert manifest.input.shape == ("N", 8, "H", "W", 3)
    assert read_manifest(path) == manifest
    frames = torch.randint(0, 256, (2, 8, 41, 52, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.inference_mode():
        expected = live(as_video_does(frames, preprocessing, channels, layout))
        other = live(as_video_does(frames.flip(4), preprocessing, channels, layout))
    assert_close(load(path)(frames), expected)
    with pytest.raises(AssertionError):  # another order of the colours would be seen
        assert_close(load(path)(frames), other)


def test_channels_that_no_video_has(tmp_path):
    live = explained("NCTHW", SaliencyTube(), channels=2)
    preprocessing = Preprocessing(frames=8, crop=SIZE[1:])
    with pytest.raises(ValueError, match="frames must be None for a network of 2 channels"):
        export(live, tmp_path / "x.onnx", frames="uint8", preprocessing=preprocessing)
    manifest = export(live, tmp_path / "x.onnx", clip("NCTHW", 1, channels=2), preprocessing=preprocessing)
    assert manifest.input.shape == ("N", 2, *SIZE)
    x = clip("NCTHW", channels=2)
    with torch.inference_mode():
        assert_close(load(tmp_path / "x.onnx")(x), live(x))
    gray = Preprocessing(frames=8, crop=SIZE[1:], mean=(0.4,), std=(0.2,))
    with pytest.raises(ValueError, match="3 values of mean and of std for a network of 3 channels, got 1, for gray"):
        export(explained("NCTHW", SaliencyTube()), tmp_path / "y.pt", preprocessing=gray)
