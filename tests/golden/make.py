"""Writes golden files: `python tests/golden/make.py NAME ...`, names of `CASES` that have no file yet.

A golden file stays as it is for good: it stands for the files that users keep. Whoever changes the manifest, an option
or a reader adds a case beside the old ones, under a new name, and writes that one alone; what exists is refused. The
README beside this script says what there is and who wrote it.
"""

from __future__ import annotations

import lzma
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import clipsight
from clipsight import (
    DeepTaylor,
    FeaturePyramid,
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    InputGradient,
    IntegratedGradients,
    LRPEpsilon,
    SaliencyTube,
    SelectiveRelevance,
)

FILES = Path(__file__).parent / "files"
SIZE, OTHER_SIZE = (4, 10, 8), (6, 10, 8)
LABELS = ["walk", "run", "jump – high", '"quoted"\n', "emoji \U0001f3a5"]
PREPROCESSING = {
    "frames": 4,
    "stride": 2,
    "resize": 12,
    "crop": (10, 8),
    "mean": (0.4, 0.5, 0.6),
    "std": (0.2, 0.3, 0.4),
    "channel_order": "BGR",
}
SHARE = ("motion_share",)


class Video(nn.Module):
    """Two convolutions with a batch norm and a max pooling between them; five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv3d(3, 4, 3, stride=(1, 2, 2), padding=1, bias=False), nn.BatchNorm3d(4)
        self.pool, self.last, self.fc = nn.MaxPool3d((1, 2, 2)), nn.Conv3d(4, 6, (3, 1, 1)), nn.Linear(6, 5)

    def body(self, x):
        return torch.relu(self.last(self.pool(torch.relu(self.norm(self.stem(x))))))

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3, 4)))


class TwoHeads(Video):
    """A second classifier, so that the explained one must be named."""

    def __init__(self) -> None:
        super().__init__()
        self.noun = nn.Linear(6, 3)

    def forward(self, x):
        pooled = self.body(x).mean((2, 3, 4))
        return {"verb": self.fc(pooled), "noun": self.noun(pooled)}


class Image(nn.Module):
    """A 2-D network [N, 3, H, W] -> [N, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU())
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.pool(self.body(x)).flatten(1))


@dataclass(frozen=True)
class Case:
    """What one file is made of; `runs`: a batch size and a clip size (or T, H, W of the frames) for each."""

    heads: Any
    classes: Any = "predicted"
    network: type[nn.Module] = Video
    double: bool = False
    explain: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    runs: tuple = ((2, SIZE),)


TUBE = (SaliencyTube(extras=("per_frame", "peak_box")), SelectiveRelevance(part="both", extras=SHARE))
BOX = {"low": -2.0, "high": 2.0}
FRAMES = {"frames": "uint8", "preprocessing": PREPROCESSING}
EVERY_INPUT = {**FRAMES, "optional": True, "inputs": ("tau", "n_sigma"), "sizes": [OTHER_SIZE]}
ONE = ((1, SIZE),)
FRAMES_RUNS = ((2, (4, 14, 20)), (1, (6, 22, 12)))
NAMED = {"labels": LABELS, "preprocessing": PREPROCESSING}

CASES = {
    "tube.onnx": Case(TUBE, options={**NAMED, "name": "tiny"}),
    "frames.onnx": Case(TUBE[1], "input", options={**EVERY_INPUT, "output": "uint8"}, runs=FRAMES_RUNS),
    "image.onnx": Case(
        SaliencyTube(),
        classes=[1, 3],
        network=Image,
        options={"sizes": [(4, 6, 12)], "precheck": False},
        runs=((2, SIZE), (1, (4, 6, 12))),
    ),
    "half.onnx": Case(
        SaliencyTube(relu=True),
        network=TwoHeads,
        explain={"head": "fc", "features": "last"},
        options={"half": "float16", "output": "float16"},
    ),
    "double.onnx": Case([SaliencyTube(), GuidedBackprop()], network=Image, double=True, runs=ONE),
    "gradients.onnx": Case(
        [GradCAM(layer="stem"), GuidedBackprop(colours="raw"), GuidedGradCAM(), InputGradient()], "top2", runs=ONE
    ),
    "relevance.onnx": Case(
        [
            DeepTaylor(**BOX),
            LRPEpsilon(),
            IntegratedGradients(steps=2, chunk=1),
            SelectiveRelevance(of=DeepTaylor(**BOX), extras=SHARE),
        ],
        runs=ONE,
    ),
    "pyramid.onnx": Case([FeaturePyramid(), SelectiveRelevance(of=FeaturePyramid())], runs=ONE),
    "fused.onnx": Case(
        [*TUBE, GradCAM(), FeaturePyramid()],
        options={"plugin": True, "optional": True, "inputs": ("tau", "n_sigma")},
    ),
    "fused_half.onnx": Case(
        SelectiveRelevance(of=SaliencyTube(order=1)), options={"plugin": True, "half": True, "output": "float16"}
    ),
    "plain.pt": Case([*TUBE, GradCAM(), DeepTaylor(**BOX)], options={"plugin": False, **NAMED}),
    "fused.pt": Case(TUBE[1], "input", options={**EVERY_INPUT, "output": "float16"}, runs=FRAMES_RUNS),
    "half.pt": Case([SaliencyTube(), FeaturePyramid()], options={"half": "bfloat16", "output": "uint8"}),
    "double.pt": Case([SaliencyTube(), LRPEpsilon()], double=True),
    "fused.pt2": Case(TUBE, options={**NAMED, "optional": True}),
}
WITH_PLAIN = {"tube.onnx": "network.onnx"}  # the network alone, which the option `plain` writes beside a file


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in CASES]
    if unknown or not names:
        raise SystemExit(f"make.py: names must be among {', '.join(CASES)}, got {', '.join(unknown) or 'none'}")
    there = [stored.name for name in names for file in made_by(name) for stored in places(file) if stored.exists()]
    if there:
        raise SystemExit(f"make.py: a golden file is never written again, got {', '.join(there)}")
    FILES.mkdir(exist_ok=True)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            path, *plain = (Path(folder) / file for file in made_by(name))
            clipsight.export(explained(CASES[name]), path, **CASES[name].options, plain=plain[0] if plain else None)
            for file in (path, *plain):
                compressed, answers = places(file.name)
                np.savez_compressed(answers, **results(file, CASES[name].runs))
                compressed.write_bytes(lzma.compress(file.read_bytes(), preset=9))


def made_by(name: str) -> list[str]:
    return [name, *(WITH_PLAIN[n] for n in [name] if n in WITH_PLAIN)]


def places(file: str) -> tuple[Path, Path]:
    """Where the file is, compressed, and where the inputs and outputs of its runs are."""
    return FILES / f"{file}.xz", FILES / f"{file}.npz"


def explained(case: Case) -> clipsight.ExplainedModel:
    torch.manual_seed(0)
    network = case.network().eval()
    network = network.double() if case.double else network
    example = torch.zeros(1, 3, *SIZE, dtype=torch.float64 if case.double else torch.float32)
    return clipsight.explain(network, case.heads, example, case.classes, **case.explain)


def results(path: Path, runs) -> dict[str, np.ndarray]:
    """`0.input.clip`, `0.output.logits` and so on for every run, as the file gives them today."""
    loaded, arrays = clipsight.load(path), {}
    for i, (batch, size) in enumerate(runs):
        inputs = dict(inputs_of(loaded.manifest, batch, size))
        arrays |= {f"{i}.input.{name}": value for name, value in inputs.items()}
        outputs = loaded(inputs.pop(loaded.manifest.input.name), **inputs)
        arrays |= {f"{i}.output.{n}": value for n, value in zip(loaded.output_names, outputs, strict=True)}
    return arrays


def inputs_of(manifest, batch: int, size) -> Iterator[tuple[str, np.ndarray]]:
    """Waves that move differently in every colour and sample, in 33 steps; and values for the other inputs."""
    n, c, t, y, x = np.ogrid[:batch, :3, : size[0], : size[1], : size[2]]
    wave = np.sin(0.9 * t * (1 + n) + 0.5 * x + 0.7 * c) * np.cos(0.6 * y - 0.4 * t + n) + np.sin(x * y / 9.0 + c - t)
    steps = np.round(8 * wave)
    if manifest.input.name == "frames":
        yield "frames", np.ascontiguousarray((127 + 7 * steps).astype(np.uint8).transpose(0, 2, 3, 4, 1))
    else:
        yield "clip", (steps / 8).astype(manifest.input.dtype)
    if manifest.classes_input:
        yield "classes", np.array([[0, 4], [3, 1]])[:batch]
    values = {"explain": [True, False], "tau": [-0.125, 0.0625], "n_sigma": [1.5, 1.0]}
    for option in manifest.option_inputs:
        yield option.name, np.array(values[option.name][:batch], option.dtype)


if __name__ == "__main__":
    main(sys.argv[1:])
