"""The trained network names the motion, its saliency tube lies on the mover, and checkpoints load safely."""

from __future__ import annotations

import sys
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import nn

from clipsight import models
from clipsight.models.movers import Movers
from clipsight.reference import selective_tube
from clipsight.synthetic import MOTION_CLASSES, moving_shapes

COUNT, SEED = 120, 2_000_000_000  # fresh: far from every seed of training


@lru_cache
def clips():
    return moving_shapes(COUNT, SEED)


def tensor(frames: np.ndarray) -> torch.Tensor:
    """uint8 [N, T, H, W, 3] -> the network's input [N, 3, T, H, W]."""
    return (torch.from_numpy(frames).permute(0, 4, 1, 2, 3) / 255 - 0.5) / 0.25


def explain(model: nn.Module, count: int = COUNT) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predicted classes [N], tube and motion map [N, T, H, W] of the predicted class, on the first `count` clips."""
    with torch.inference_mode():
        features = model.features(tensor(clips().frames[:count]))
        classes = model.classifier(model.pool(features).flatten(1)).argmax(1)
        weights = model.classifier.weight[classes][:, None]
        tube, motion, _ = selective_tube(features, weights, clips().masks.shape[1:])
    return classes, tube[:, 0], motion[:, 0]


@lru_cache
def trained():
    return explain(models.load("movers"))


def hits(tube: torch.Tensor) -> float:
    """Share of the first N clips in which the largest voxel of the tube [N, T, H, W] lies on the mover."""
    largest = tube.flatten(1).argmax(1, keepdim=True)
    return torch.from_numpy(clips().masks[: len(tube)]).flatten(1).gather(1, largest).float().mean().item()


def test_it_names_the_motion_in_new_clips():
    classes, _, _ = trained()
    assert (classes.numpy() == clips().labels).mean() >= 0.95


def test_it_names_the_motion_in_larger_clips_brought_to_its_size():
    large = torch.from_numpy(moving_shapes(24, SEED + 1, size=256).frames).flatten(0, 1).permute(0, 3, 1, 2)
    small = nn.functional.interpolate(large, size=(64, 64), mode="bilinear", antialias=True)
    frames = small.unflatten(0, (24, 16)).permute(0, 1, 3, 4, 2)
    with torch.inference_mode():
        guess = models.load("movers")(tensor(frames.numpy())).argmax(1)
    assert (guess.numpy() == np.arange(24) % 8).mean() >= 0.95


def test_motion_in_another_order_of_frames_changes_the_class():
    """Played backwards, each motion becomes its opposite: the network looks at time, not at places."""
    with torch.inference_mode():
        guess = models.load("movers")(tensor(clips().frames[:64, ::-1].copy())).argmax(1)
    assert (guess.numpy() == clips().labels[:64] ^ 1).mean() >= 0.95


def test_the_largest_voxel_lies_on_the_mover_and_not_by_chance():
    masks = clips().masks
    network = hits(trained()[1])
    chance = masks.mean()
    centre = masks[:, 8, 32, 32].mean()
    best_place = masks.mean(axis=0).max()  # the single voxel that would have been the best guess for these clips
    untrained = []
    for seed in range(8):
        torch.manual_seed(seed)
        untrained.append(hits(explain(models.load("movers", pretrained=False), count=40)[1]))
    report = (
        f"largest voxel on the mover: network {network:.3f}, chance {chance:.3f}, centre {centre:.3f}, "
        f"best fixed place {best_place:.3f}, random weights {np.mean(untrained):.3f}"
    )
    print(report)
    assert network >= 0.8, report
    assert chance <= 0.06, report
    assert max(centre, best_place) <= 0.3, report
    # Any filter answers to the two contrasting shapes, so random weights find the mover more often than chance does:
    # 0.27 with a standard deviation of 0.1 from seed to seed.
    assert np.mean(untrained) <= 0.4, report


def test_the_map_moves_with_the_mover():
    """The centre of each frame's map follows the mask's: left and right are opposite, and the sizes agree."""
    _, tube, _ = trained()
    places = torch.arange(64.0)

    def travel(volume):  # from the second to the first quarter of the clip's end: [N] pixels along x and y
        weight = volume * (volume > 0.5 * volume.amax((-2, -1), keepdim=True))
        total = weight.sum((-2, -1))
        x, y = (weight.sum(-2) @ places) / total, (weight.sum(-1) @ places) / total
        return torch.stack([x[:, 12] - x[:, 4], y[:, 12] - y[:, 4]], dim=1)

    map_travel, mask_travel = travel(tube), travel(torch.from_numpy(clips().masks).float())
    translating = torch.from_numpy(clips().labels < 4)
    slope = (map_travel * mask_travel)[translating].sum() / (mask_travel**2)[translating].sum()
    assert 0.5 < slope < 1.5


def test_selective_relevance_picks_voxels_near_the_mover():
    _, _, motion = trained()
    masks = torch.from_numpy(clips().masks).float()
    near = nn.functional.max_pool3d(masks, (3, 9, 9), stride=1, padding=(1, 4, 4)) > 0  # a feature cell is 4 pixels
    selected = motion > 0
    precision = (selected & near).sum() / selected.sum()
    assert selected.any(dim=(1, 2, 3)).float().mean() > 0.95
    assert precision > 3 * near.float().mean()


def test_it_is_small_and_keeps_a_fine_grid():
    model = models.load("movers")
    assert not model.training
    assert model.labels == MOTION_CLASSES
    with torch.inference_mode():
        assert model.features(torch.zeros(1, 3, *model.preprocessing.size)).shape[2:] == (8, 16, 16)
        assert model(torch.zeros(2, 3, 24, 96, 80)).shape == (2, 8)
    assert sum(value.numel() * value.element_size() for value in model.state_dict().values()) <= 2e6


@pytest.mark.parametrize("name", ["movers", "mfnet"])
def test_random_weights_on_request(name):
    first, second = (models.load(name, pretrained=False).state_dict() for _ in range(2))
    assert any(not torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_comes_back_as_it_was_written(tmp_path, suffix):
    state, path = Movers().state_dict(), tmp_path / f"own{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(state, path)
    loaded = models.load("movers", checkpoint=path).state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_a_checkpoint_that_does_not_fit_names_its_keys(tmp_path):
    state = Movers().state_dict()
    state["classifier.weight"] = torch.zeros(5, 64)
    state["head.bias"] = state.pop("classifier.bias")
    torch.save(state, tmp_path / "other.pt")
    message = (
        r"checkpoint other.pt does not fit movers: missing classifier.bias; unexpected head.bias; "
        r"classifier.weight must have shape \[8, 64\], got \[5, 64\]"
    )
    with pytest.raises(ValueError, match=message):
        models.load("movers", checkpoint=tmp_path / "other.pt")


def test_a_checkpoint_cannot_run_code(tmp_path):
    torch.save(nn.Linear(1, 1), tmp_path / "module.pt")
    with pytest.raises(Exception, match="weights_only"):
        models.load("movers", checkpoint=tmp_path / "module.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="state dict of tensors, got list"):
        models.load("movers", checkpoint=tmp_path / "list.pt")


def test_unknown_name_and_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"name must be one of movers, mfnet, .*, got 'resnet'"):
        models.load("resnet")
    with pytest.raises(FileNotFoundError, match="checkpoint must be a file"):
        models.load("movers", checkpoint=tmp_path / "none.pt")
    with pytest.raises(ValueError, match="mfnet has no weights in the package"):
        models.load("mfnet")


def test_without_safetensors_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"pip install 'clipsight\[video\]'"):
        models.load("movers")
