"""Every network of the papers, explained, as an ONNX file: it says what the eager network says.

`export` compares the file with the eager model on three clips it has not seen, to 1e-4 of the largest value; here one
more clip goes through both. The largest sizes of the largest networks take minutes: `make test-all` runs them.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import clipsight
from clipsight import FeaturePyramid, SaliencyTube, SelectiveRelevance, models

SMALL, MIDDLE, LARGE = (16, 112, 112), (16, 224, 224), (64, 224, 224)
NETWORKS = ("mfnet", "r3d50", "r3d101", "r3d152", "resnext101", "i3d", "tsn")
ALWAYS = {(name, SMALL) for name in (*NETWORKS, "c3d")} | {(n, s) for n in ("r3d50", "i3d") for s in (MIDDLE, LARGE)}


def cases():
    for name in (*NETWORKS, "c3d"):
        for size in (SMALL,) if name == "c3d" else (SMALL, MIDDLE, LARGE):
            marks = () if (name, size) in ALWAYS else pytest.mark.full
            yield pytest.param(name, size, marks=marks, id=f"{name}-{'x'.join(map(str, size))}")


def methods(name):
    pyramid = FeaturePyramid(theta=0.6, depth=3)
    if name == "c3d":  # a fully connected head: tubes are not defined
        return [pyramid]
    return [SaliencyTube(), SelectiveRelevance(extras=("motion_share",)), pyramid]


@pytest.mark.parametrize("name, size", [*cases()])
@pytest.mark.filterwarnings("ignore:explain. the features of", "ignore:export. .* had the same value everywhere")
def test_the_explained_file_equals_eager(tmp_path, name, size):
    torch.manual_seed(0)
    network = models.load(name, pretrained=False)
    clip = torch.randn(1, 3, *size)
    explained = clipsight.explain(network, methods(name), clip)
    path = tmp_path / f"{name}.onnx"
    preprocessing = replace(network.preprocessing, frames=size[0], crop=size[1:])
    manifest = clipsight.export(explained, path, preprocessing=preprocessing)
    assert manifest.plugin.required is False
    checked = manifest.self_check
    assert checked["clips"] == 3
    assert set(checked["max_difference"]) == set(explained.output_names)

    with torch.inference_mode():
        expected = dict(zip(explained.output_names, explained(clip), strict=True))
    got = dict(zip(manifest.output_names, clipsight.load(path)(clip), strict=True))
    assert list(got) == list(expected)
    for output in {"logits", "saliency_tube"} & set(got):
        bound = 1e-4 * expected[output].abs().max()
        assert (got[output] - expected[output]).abs().max() <= bound
        assert (got[output] - 1.01 * expected[output]).abs().max() > bound  # such an error would be seen
    for output in (o for o in got if o.endswith((".mask", ".edges"))):
        assert expected[output].any() or not got[output].any()
        assert (got[output] != expected[output]).float().mean() <= 1e-3  # channels that rounding may turn at the gate
