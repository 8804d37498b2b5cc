"""Errors of torch's exporters and of compilers, as `export` tells them: the op, its module, what to do; one line."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import networks
from clipsight import ExportError, GuidedBackprop, SaliencyTube, explain, export, load

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnx", reason="onnx is not installed")


class Odd(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Network(networks.ModulePool):
    def __init__(self, function) -> None:
        super().__init__()
        self.odd = Odd(function)

    def forward(self, x):
        return self.fc(self.pool(self.body[3:](self.odd(self.body[:3](x)))).flatten(1))


def explained(function, head=None):
    return explain(networks.seeded(lambda: Network(function)), head or SaliencyTube(), networks.clip())


def refusal(model, path, **options) -> str:
    with pytest.raises(ExportError) as caught:
        export(model, path, **options)
    text = str(caught.value)
    assert caught.value.__cause__ is not None  # where the rest of it stands
    assert len(text) < 300
    assert "\n" not in text
    assert not [*path.parent.iterdir()]
    return text


@pytest.mark.parametrize("plugin", [False, pytest.param(True, marks=pytest.mark.full)])
def test_an_op_that_onnx_does_not_have(tmp_path, plugin):
    model = explained(lambda y: torch.special.bessel_j0(y))
    assert refusal(model, tmp_path / "x.onnx", plugin=plugin) == (
        "export: torch.onnx could not write the explained network for '.onnx' because of 'special_bessel_j0' in "
        "'odd': ONNX has no op for it; '.pt' and '.pt2' keep torch's own ops"
    )
    export(model, tmp_path / "x.pt", plugin=False)  # as was said


def test_arguments_that_onnx_does_not_have(tmp_path):
    text = refusal(explained(lambda y: y + torch.histc(y).sum()), tmp_path / "x.onnx")
    assert "because of 'histc' in 'odd': aten_histc with min == max" in text


@pytest.mark.parametrize("suffix", [".onnx", ".pt", pytest.param(".pt2", marks=pytest.mark.full)])
def test_a_number_of_values_that_depends_on_the_clip(tmp_path, suffix):
    text = refusal(explained(lambda y: y * y.nonzero().shape[0]), tmp_path / f"x{suffix}", plugin=False)
    assert f"for '{suffix}' because of 'nonzero' in 'odd': what it returns depends on values of the clip" in text


def test_a_compiler_that_fails(tmp_path, monkeypatch):
    class LoweringException(RuntimeError):
        pass

    def fails(*_, **__):
        raise LoweringException(
            "NotImplementedError: no such thing\n  target: aten.relu_.default\n  args[0]: TensorBox(...)"
        )

    monkeypatch.setattr(torch._inductor, "aot_compile", fails)
    text = refusal(explained(lambda y: y), tmp_path / "x.pt2", plugin=False)
    assert text.startswith(
        "export: AOTInductor could not write the explained network for '.pt2' because of 'relu' in 'body.2'"
    )
    assert text.endswith(": NotImplementedError: no such thing; '.pt' and '.onnx' are made in other ways")


def test_a_caller_who_stops_the_export_is_let_through(tmp_path):
    class Stop(Exception):
        pass

    def progress(phase, file):
        raise Stop(phase)

    with pytest.raises(Stop):
        export(explained(lambda y: y), tmp_path / "x.pt", plugin=False, progress=progress)


@pytest.mark.parametrize(
    "function, head",
    [
        (lambda y: F.adaptive_avg_pool3d(y, (3, 5, 7)), SaliencyTube()),
        (lambda y: F.adaptive_avg_pool3d(y, (4, None, 8)), SaliencyTube()),
        (lambda y: F.adaptive_max_pool3d(y, (3, 5, 5)), SaliencyTube()),
        (lambda y: F.adaptive_avg_pool3d(y, (4, 5, 8)), GuidedBackprop()),
    ],
)
def test_adaptive_poolings_to_any_size(tmp_path, function, head):
    model, clip = explained(function, head), networks.clip(3, seed=17)
    export(model, tmp_path / "x.onnx")
    with torch.no_grad():
        for got, expected in zip(load(tmp_path / "x.onnx")(clip), model(clip), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
