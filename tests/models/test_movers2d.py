"""The small 2-D network: what it can know of a motion, how it is explained, and that exported files say the same."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

import clipsight
from clipsight import SaliencyTube, models
from clipsight.models.movers2d import Movers2d
from clipsight.synthetic import MOTION_CLASSES, moving_shapes
from networks import seeded

COUNT, SEED = 200, 2_100_000_000  # fresh: far from every seed of training
WHOLE = SaliencyTube(normalize="none")


def tensor(frames: np.ndarray) -> torch.Tensor:
    """uint8 [N, T, H, W, 3] -> the network's input [N, 3, T, H, W]."""
    return (torch.from_numpy(frames).permute(0, 4, 1, 2, 3) / 255 - 0.5) / 0.25


def predict(model, clips: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model(part) for part in clips.split(40)])


@lru_cache
def answers() -> tuple[np.ndarray, np.ndarray]:
    """Labels of fresh clips, and the classes that the network names."""
    clips = moving_shapes(COUNT, SEED)
    return clips.labels, predict(models.load("movers2d"), tensor(clips.frames)).argmax(1).numpy()


@pytest.fixture
def four():
    """One clip each of moves left, moves up, turns clockwise and grows."""
    return tensor(moving_shapes(4, SEED + 1, labels=[0, 2, 4, 6]).frames)


def test_frames_alone_hardly_tell_the_motion():
    """Better than chance (a large or small shape must have grown or shrunk), and never more than half."""
    labels, guess = answers()
    accuracy, pair = (guess == labels).mean(), (guess // 2 == labels // 2).mean()
    report = f"accuracy {accuracy:.3f} (chance 0.125), of the pair of opposite motions {pair:.3f} (chance 0.250)"
    print(report)
    assert 0.16 < accuracy < 0.35, report
    assert 0.32 < pair < 0.7, report


def test_a_clip_played_backwards_is_answered_alike(four):
    """By construction: of a clip and its opposite at most one is named rightly. The 3-D network tells them apart."""
    flat, deep = models.load("movers2d"), models.load("movers")
    assert torch.allclose(predict(flat, four), predict(flat, four.flip(2)), rtol=1e-4, atol=1e-5)
    assert (predict(deep, four).argmax(1) != predict(deep, four.flip(2)).argmax(1)).all()


def test_the_consensus_is_the_mean_over_single_frames(four):
    model = models.load("movers2d")
    frames = torch.stack([predict(model, four[:, :, t : t + 1]) for t in range(16)])
    assert torch.allclose(predict(model, four), frames.mean(0), rtol=1e-4, atol=1e-5)
    assert frames.std(0).min() > 1e-4, "negative control: the frames differ"


def test_it_is_small_and_keeps_a_fine_grid():
    model = models.load("movers2d")
    assert not model.training
    assert model.labels == MOTION_CLASSES
    assert model.preprocessing == models.load("movers").preprocessing
    with torch.inference_mode():
        assert model.features(torch.zeros(32, 3, 64, 64)).shape == (32, 64, 16, 16)
        assert model(torch.zeros(2, 3, 24, 96, 80)).shape == (2, 8)
    weights = Path(models.__file__).with_name("weights") / "movers2d.safetensors"
    assert weights.stat().st_size < 1e6


def test_every_frame_is_explained_on_its_own(four):
    """No layer is named; each frame's map is the classifier's row on that frame's features, up-sampled by SciPy."""
    zoom = pytest.importorskip("scipy.ndimage").zoom
    model = models.load("movers2d")
    explained = clipsight.explain(model, WHOLE, four, [6, 0])
    assert explained.feature_shape == (64, 16, 16, 16)
    with torch.inference_mode():
        logits, maps = explained(four)
        features = model.features(four.transpose(1, 2).flatten(0, 1)).unflatten(0, (4, 16)).double()
        rows = model.classifier.weight[[6, 0]].double()
    assert torch.allclose(logits, predict(model, four), rtol=1e-4, atol=1e-5)
    cam = torch.einsum("ntchw,mc->nmthw", features, rows)
    mean = cam.mean((2, 3, 4)) + model.classifier.bias[[6, 0]].double()
    assert torch.allclose(mean, logits[:, [6, 0]].double(), rtol=1e-3, atol=1e-4)
    for n, t in ((0, 0), (2, 7), (3, 15)):
        expected = zoom(cam[n, 0, t].numpy(), 4, order=3, mode="mirror")
        assert np.abs(maps[n, 0, t].numpy() - expected).max() < 1e-4 * np.abs(expected).max()

    changed = four.clone()
    changed[:, :, 5] = 0
    with torch.inference_mode():
        difference = (explained(changed)[1] - maps).abs().amax((0, 1, 3, 4))
    assert difference[5] > 1e-2 * maps.abs().max()
    # The up-sampling in time, from 16 frames to 16, passes nothing on to other frames but rounding.
    assert difference[torch.arange(16) != 5].max() < 1e-4 * maps.abs().max()


@pytest.mark.parametrize("file", [pytest.param("flat.onnx", marks=pytest.mark.full), "flat.pt"])
def test_exported_files_say_the_same(four, tmp_path, file):
    if file.endswith(".onnx"):
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    explained = clipsight.explain(models.load("movers2d"), SaliencyTube(), four[:1])
    manifest = clipsight.export(explained, tmp_path / file, plugin=False, labels=MOTION_CLASSES)
    assert manifest.self_check["max_difference"]["saliency_tube"] < 1e-3
    with torch.inference_mode():
        expected = explained(four)
    loaded = clipsight.load(tmp_path / file)(four)
    assert np.abs(np.asarray(loaded[0]) - expected[0].numpy()).max() < 1e-4 * expected[0].abs().max()
    assert np.abs(np.asarray(loaded[1]) - expected[1].numpy()).max() < 1e-4
    assert np.abs(np.asarray(loaded[1])[0] - np.asarray(loaded[1])[1]).max() > 0.1, "negative control"


def test_training_gives_the_same_bits_again_and_takes_either_network():
    path = Path(__file__).parents[2] / "examples" / "train_movers.py"
    specification = importlib.util.spec_from_file_location("train_movers", path)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)

    def trained(name: str, seed: int) -> dict[str, torch.Tensor]:
        model = seeded(lambda: models.load(name, pretrained=False))
        options = {"frames": 2, "sparsity": 0.1, "learning_rate": 1e-3, "flat": name == "movers2d"}
        script.train(model, steps=2, batch=4, seed=seed, **options)
        return model.state_dict()

    for name in ("movers2d", "movers"):
        first, again, other = (trained(name, seed) for seed in (1, 1, 2))
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_scripts_and_traces():
    model, clip = seeded(Movers2d), torch.randn(2, 3, 5, 32, 40, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for program in (torch.jit.script(model), torch.jit.trace(model, clip[:1])):
            assert torch.allclose(program(clip), model(clip), rtol=1e-4, atol=1e-6)
