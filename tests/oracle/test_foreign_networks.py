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
BOUND = 1e-8


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore:explain. the features of")
def test_every_method(name):
    known = foreign_oracles.Known(name)
    facts, clip, classes = known.facts, known.clip, known.classes
    heads = {method: foreign_oracles.heads(known)[method] for method in facts.heads}
    explained = clipsight.explain(known.given, list(heads.values()), clip[:1], classes="input", **facts.options)
    with torch.inference_mode():
        results = dict(zip(explained.output_names, explained(clip, classes[:, None]), strict=True))
        single = dict(zip(explained.output_names, explained(clip[:1], classes[:1, None]), strict=True))

    own = known.own(clip)
    assert off(results["logits"] if facts.logits is None else results["logits"].softmax(1), own) < BOUND
    for output, result in results.items():
        assert off(single[output], result[:1]) < BOUND or not result[:1].any(), output
    for method in [m for m in heads if m in foreign_oracles.MAPS]:
        expected = foreign_oracles.MAPS[method](known, clip, classes)
        assert off(results[method], expected) < BOUND, method
        other = foreign_oracles.MAPS[method](known, clip, classes.flip(0))
        assert len(classes.unique()) == 1 or off(other, expected) > 1e3 * BOUND, method  # another class is seen
    if "deep_taylor" in heads:
        sums = results["deep_taylor"].sum((1, 2, 3, 4))
        assert (sums - 1).abs().max() < 1e-6
    if "feature_pyramid" in heads:
        masks = foreign_oracles.selected(known, clip, classes)
        grid, *deeper = (layer["name"] for layer in explained.describe()["methods"][-1]["layers"])
        assert torch.equal(results[f"{grid}.mask"][:, 0], masks["grid"])
        if facts.last is not None:
            assert torch.equal(results[f"{facts.last}.mask"][:, 0], masks["last"])
            assert facts.last in deeper


@pytest.mark.parametrize("name, method", [(n, m) for n, facts in NETWORKS.items() for m in facts.refused])
def test_a_method_that_is_not_defined_is_refused(name, method):
    known = foreign_oracles.Known(name)
    head = foreign_oracles.heads(known)[method]
    with pytest.raises(clipsight.AttachError, match=known.facts.refused[method]):
        clipsight.explain(known.given, head, known.clip[:1], **known.facts.options)


@pytest.mark.parametrize("name, form", [(n, form) for n, facts in NETWORKS.items() for form in facts.files])
@pytest.mark.filterwarnings("ignore:explain. the features of", "ignore:export. .* had the same value everywhere")
def test_a_file(name, form, tmp_path):
    """It says what the network says, at another batch size; `export` compares its maps with the eager ones itself."""
    if form in (foreign_networks.ONNX, foreign_networks.PLUGIN):
        pytest.importorskip("onnxruntime")
    known = foreign_oracles.Known(name, torch.float32)
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
