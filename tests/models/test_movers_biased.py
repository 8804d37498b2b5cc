"""The biased network names the still shape's hue: right where the hue tells the class, lost where it tells nothing."""

from __future__ import annotations

import importlib.util
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch

from clipsight import models
from clipsight.synthetic import MOTION_CLASSES, moving_shapes
from networks import seeded

COUNT, SEED = 96, 2_000_000_100  # fresh: far from every seed of training and of the study
WEIGHTS = Path(models.__file__).with_name("weights") / "movers_biased.safetensors"


drawn = lru_cache(partial(moving_shapes, COUNT, SEED))


@lru_cache
def named(name: str, bias: float | None) -> np.ndarray:
    """What a network calls each clip; the scenes are the same for every bias."""
    frames = torch.from_numpy(drawn(bias=bias).frames)
    clips = (frames.permute(0, 4, 1, 2, 3) / 255 - 0.5) / 0.25
    with torch.inference_mode():
        return models.load(name)(clips).argmax(1).numpy()


def accuracy(name: str, bias: float | None) -> float:
    return (named(name, bias) == np.arange(COUNT) % 8).mean()


def test_it_is_right_where_the_hue_tells_the_class():
    assert accuracy("movers_biased", 1.0) >= 0.95


def test_it_is_lost_where_the_hue_tells_nothing():
    """Chance is 1/8, and its standard deviation on 96 clips 0.034."""
    assert accuracy("movers_biased", 0.0) < 1 / 8 + 3 * 0.034


def test_what_it_names_is_the_class_of_the_hue():
    swapped = moving_shapes(COUNT, SEED, labels=np.arange(COUNT) % 8 ^ 1, bias=1.0).frames
    own = drawn(bias=1.0)
    frames = own.frames.copy()
    hue = own.still[:, None] & ~own.masks.any(1, keepdims=True)
    hue = np.broadcast_to(hue, own.masks.shape)
    frames[hue] = swapped[hue]  # the motion of one class, the hue of its opposite
    clips = (torch.from_numpy(frames).permute(0, 4, 1, 2, 3) / 255 - 0.5) / 0.25
    with torch.inference_mode():
        cheat, honest = (models.load(name)(clips).argmax(1).numpy() for name in ("movers_biased", "movers"))
    assert (cheat == own.labels ^ 1).mean() > 0.9
    assert (honest == own.labels).mean() > 0.9


@pytest.mark.parametrize("bias", [1.0, 0.0])
def test_the_other_network_does_not_mind_the_hue(bias):
    assert accuracy("movers", bias) >= 0.95


def test_it_has_the_architecture_of_the_other_one_and_half_its_file():
    biased, plain = models.load("movers_biased"), models.load("movers")
    assert biased.labels == MOTION_CLASSES
    assert biased.preprocessing == plain.preprocessing
    ours, theirs = biased.state_dict(), plain.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert all(value.dtype == theirs[key].dtype for key, value in ours.items()), "float16 in the file alone"
    assert not torch.equal(ours["classifier.weight"], theirs["classifier.weight"])
    assert WEIGHTS.stat().st_size < 400_000


def test_its_file_says_how_it_was_trained_and_how_well_it_does():
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(WEIGHTS, "pt") as file:
        notes = file.metadata()
    assert (notes["bias"], notes["seed"], notes["batch"]) == ("1.0", "0", "32")
    assert float(notes["accuracy, bias 1"]) >= 0.95
    assert float(notes["accuracy, bias 0"]) < 1 / 8 + 3 * 0.0105  # on 1000 clips


def test_training_with_a_bias_sees_other_clips():
    path = Path(__file__).parents[2] / "examples" / "train_movers.py"
    specification = importlib.util.spec_from_file_location("train_movers", path)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)

    def trained(bias: float | None) -> torch.Tensor:
        model = seeded(lambda: models.load("movers_biased", pretrained=False))
        options = {"frames": 2, "sparsity": 0.1, "learning_rate": 1e-3, "flat": False}
        script.train(model, steps=2, batch=4, seed=1, bias=bias, **options)
        return model.classifier.weight.detach()

    without, again, biased = trained(None), trained(None), trained(1.0)
    assert torch.equal(without, again)
    assert not torch.equal(without, biased)
