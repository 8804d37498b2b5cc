"""Networks of other people's packages, as these build them: every method against hooks and autograd, and as files.

Each test is one row of the table in docs/other-networks.md. They need `make networks`.
"""

from __future__ import annotations

import pytest
import torch

import clipsight
import foreign_networks
import foreign_oracles
from clipsight.exporters.check import distance
from foreign_networks import NETWORKS
from gradient_networks import off

pytestmark = pytest.mark.full
BOUNDS = {torch.float64: 1e-8, torch.float32: 1e-4}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore:explain. the features of")
def test_every_method(name):
    known = foreign_oracles.Known(NETWORKS[name])
    foreign_oracles.compare(known, BOUNDS[known.clip.dtype], zennit=True)


@pytest.mark.parametrize("name, method", [(n, m) for n, facts in NETWORKS.items() for m in facts.refused])
def test_a_method_that_is_not_defined_is_refused(name, method):
    known = foreign_oracles.Known(NETWORKS[name])
    head = foreign_oracles.heads(known)[method]
    with pytest.raises(clipsight.AttachError, match=known.facts.refused[method]):
        clipsight.explain(known.given, head, known.clip[:1], **known.facts.options)


@pytest.mark.parametrize("name, form", [(n, form) for n, facts in NETWORKS.items() for form in facts.files])
@pytest.mark.filterwarnings("ignore:explain. the features of", "ignore:export. .* had the same value everywhere")
def test_a_file(name, form, tmp_path):
    """It says what the network says, at another batch size; `export` compares its maps with the eager ones itself."""
    if form in (foreign_networks.ONNX, foreign_networks.PLUGIN):
        pytest.importorskip("onnxruntime")
    known = foreign_oracles.Known(NETWORKS[name], torch.float32)
    facts, clip, classes = known.facts, known.clip, known.classes[:, None]
    methods = facts.in_files or facts.heads[: 2 if form == foreign_networks.PT2 else None]
    heads = [foreign_oracles.heads(known)[method] for method in methods]
    explained = clipsight.explain(known.given, heads, clip[:1], classes="input", **facts.options)
    suffix, plugin = foreign_networks.FORMS[form]
    clipsight.export(explained, tmp_path / f"x{suffix}", plugin=plugin)
    file = clipsight.load(tmp_path / f"x{suffix}")
    with torch.inference_mode():
        expected, got = explained(clip, classes), file(clip, classes)
        others = explained(clip, classes.flip(0))
        assert off(torch.as_tensor(got[0]), known.logits(clip)) < 1e-4
    for output, wanted, result, other in zip(explained.output_names, expected, got, others, strict=True):
        result = torch.as_tensor(result)
        if not wanted.is_floating_point():
            assert (result != wanted).float().mean() <= 2e-2, output
            continue
        # Rounding closes gates that another way to compute leaves open, so a map may differ here and there.
        assert distance(result, wanted) < (1e-4 if output in ("logits", "saliency_tube") else 2e-2), output
        if output != "logits" and classes[0] != classes[1]:
            assert distance(other, wanted) > 5 * distance(result, wanted), output
