"""Networks of other people's packages, as these build them: every method against hooks and autograd, and as files.

Each test is one row of the table in docs/other-networks.md. They need `make networks`.
"""

from __future__ import annotations

import pytest
import torch

import clipsight
import foreign_networks
import foreign_oracles
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
    heads = [foreign_oracles.heads(known)[method] for method in known.facts.heads]
    explained = clipsight.explain(known.given, heads, known.clip[:1], classes="input", **known.facts.options)
    suffix, plugin = foreign_networks.FORMS[form]
    path = tmp_path / f"x{suffix}"
    clipsight.export(explained, path, plugin=plugin)
    with torch.inference_mode():
        expected = dict(zip(explained.output_names, explained(known.clip, known.classes[:, None]), strict=True))
        got = clipsight.load(path)(known.clip, known.classes[:, None])
        logits = known.logits(known.clip)
    assert off(got[0], logits) < 1e-4
    for (output, wanted), result in zip(expected.items(), got, strict=True):
        result = torch.as_tensor(result)
        if wanted.is_floating_point():
            root = (result.double() - wanted).square().mean().sqrt() / wanted.double().square().mean().sqrt()
            assert root < 1e-3, output
        else:
            assert (result != wanted).float().mean() <= 2e-2, output
