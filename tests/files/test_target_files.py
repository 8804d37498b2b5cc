"""Files with targets: the eager model's maps, and a manifest that says what was explained and how logits are read."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import clipsight
import networks
from clipsight import ExportError, SaliencyTube, Target
from clipsight.exporters.check import self_check
from clipsight.exporters.program import Program
from clipsight.heads import GradCAM, InputGradient, IntegratedGradients
from clipsight.manifest import Manifest
from target_networks import clip, net

GRADIENTS = (InputGradient(), IntegratedGradients(steps=4, chunk=2), GradCAM(layer="body.4"))
TUBES = (SaliencyTube(), GradCAM(score="softmax"))
STEPS = Target(against="best_other", steps="max", layout="NTK", probability="sigmoid")
HEADS = Target(heads=("verb", "noun"), against="best_other")

# name -> (network, target, classes, heads, suffix)
FILES = {
    "steps.onnx": ("NTK", STEPS, "input", GRADIENTS[1:2]),
    "heads.pt": ("heads", HEADS, "predicted", TUBES),
}
MORE = {
    "heads.onnx": ("heads", HEADS, [(1, 2), (0, 6)], (*TUBES, *GRADIENTS)),
    "all.onnx": ("NTK", STEPS, "input", GRADIENTS),
    "steps.pt": ("NKT", Target(steps="max"), "top2", GRADIENTS),
    "step.pt": ("NT", Target(steps=-1, layout="NT"), "predicted", GRADIENTS),
    "mean.onnx": ("voxels", Target(steps="mean"), "predicted", (SaliencyTube(), *GRADIENTS)),
    "contrast.onnx": ("logits", Target(against=2), [0, 1], (*TUBES, *GRADIENTS)),
    "contrast.pt2": ("logits", Target(against="best_other"), "input", TUBES),
}
ALL = [*FILES, *(pytest.param(name, marks=pytest.mark.full) for name in MORE)]


@pytest.mark.parametrize("name", ALL)
def test_a_file_explains_what_the_model_does(tmp_path, name):
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    end, target, classes, heads = (FILES | MORE)[name]
    network = net(end, torch.float32)
    explained = clipsight.explain(network, heads, clip(1, torch.float32), classes, target=target)
    written = clipsight.export(explained, tmp_path / name)
    loaded = clipsight.load(tmp_path / name)
    x = clip(3, torch.float32, seed=9)
    given = (torch.tensor([[0, 3], [2, 1], [1, 0]]),) if classes == "input" else ()
    with torch.inference_mode():
        expected = explained(x, *given)
        own = network(x)
    for got, want in zip(loaded(x, *given), expected, strict=True):
        assert (got - want).norm() <= 1e-4 * want.norm()
    own = torch.cat([own["verb"], own["noun"]], 1) if isinstance(own, dict) else own
    assert torch.allclose(expected[0], own, atol=1e-6)
    manifest = loaded.manifest
    assert written == manifest
    assert list(manifest.outputs[0].shape[1:]) == list(own.shape[1:])
    assert manifest.target == json.loads(json.dumps(explained.score.describe_target()["target"]))
    assert manifest.probability == (target.probability or ("sigmoid" if end == "NT" else "softmax"))
    assert manifest.reading == explained.score.reading
    for mine, row in zip(explained.score.by_class(own), own, strict=True):
        np.testing.assert_allclose(manifest.reading.scores(row.numpy()), mine, rtol=1e-6)


def test_a_file_of_an_ending_says_it(tmp_path):
    class Soft(networks.ModulePool):
        def forward(self, x):
            return super().forward(x).softmax(-1)

    network = networks.seeded(Soft)
    explained = clipsight.explain(network, SaliencyTube(), networks.clip())
    manifest = clipsight.export(explained, tmp_path / "soft.pt", plugin=False)
    assert (manifest.probability, manifest.target) == ("softmax", {"stripped": "softmax"})
    assert "before the softmax that the network ends in" in manifest.outputs[0].meaning
    x = networks.clip(2, seed=4)
    logits = clipsight.load(tmp_path / "soft.pt")(x)[0].numpy()
    with torch.inference_mode():
        shown = network(x)
    np.testing.assert_allclose([manifest.reading.probabilities(row) for row in logits], shown, atol=1e-6)


def test_the_self_check_knows_which_classes_are_decided():
    """Two steps of one logit that differ by rounding: which is larger, and so the map, is nobody's mistake."""

    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv3d(3, 6, (1, 3, 3), padding=(0, 1, 1)), nn.Linear(6, 4)

        def forward(self, x):
            steps = torch.relu(self.conv(x)).mean((3, 4)).transpose(1, 2)
            return self.fc(torch.cat([steps, steps[:, :1] + 1e-9], 1))

    x = networks.clip(size=(4, 8, 8))
    explained = clipsight.explain(
        networks.seeded(Twins), InputGradient(), x, [1], target=Target(steps="max", layout="NTK")
    )
    program = Program(explained, ((4, 8, 8),), plugin=False)
    with torch.inference_mode():
        logits = explained(networks.clip(8, (4, 8, 8)))[0]
    gaps = explained.score.gaps(logits, None)
    winners = logits.argmax(1)[:, 1]
    assert torch.equal(gaps < 1e-6, (winners == 0) | (winners == 4))
    assert 0 < (gaps < 1e-6).sum() < 8

    def otherwise(where_decided: bool):
        def run(clip, **_):  # as a runtime that rounds otherwise
            logits, maps = explained(clip)
            decided = explained.score.gaps(logits, None) > 1e-4
            return logits, torch.where((decided == where_decided).view(-1, 1, 1, 1, 1), 1 - maps, maps)

        return run

    self_check(program, otherwise(False))
    with pytest.raises(ExportError, match="output 'input_gradient' must"):
        self_check(program, otherwise(True))


def test_a_file_of_an_earlier_version_is_read_as_before():
    def read(classes: int) -> str:
        from hostile_manifests import manifest

        facts = {"num_classes": classes, "labels": None, "classes_input": None, "probability": ..., "target": ...}
        return Manifest.from_json(json.dumps(manifest(**facts))).probability

    assert (read(5), read(1)) == ("softmax", "sigmoid")
