"""Errors of torch and of the user's own code, as `explain` tells them: what was tried, where, what to do; one line."""

from __future__ import annotations

import dataclasses
import re
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import clipsight
import networks
from clipsight import SaliencyTube
from clipsight.dataflow import AttachError, capture
from clipsight.errors import LONGEST_LINE, first_line
from clipsight.foreign import in_words_of_ours, is_ours, op_in, root
from clipsight.suspects import mixes_samples, not_finite

base = networks.ModulePool.forward
LIKE = {"dtype": torch.float32, "device": torch.device("cpu")}


def network(forward, change=lambda network: None):
    class Network(networks.ModulePool):
        def __init__(self) -> None:
            super().__init__()
            change(self)

    Network.forward = forward
    return networks.seeded(Network)


def refusal(forward, clip=None, change=lambda network: None) -> str:
    with pytest.raises(AttachError) as caught:
        clipsight.explain(network(forward, change), SaliencyTube(), networks.clip() if clip is None else clip)
    text = str(caught.value)
    assert text.startswith("explain: ")
    assert len(text) < 500
    assert "\n" not in text
    return text


@dataclasses.dataclass
class Answer:
    logits: torch.Tensor


def raising(self, x):
    raise KeyError("no such thing")


def branching(self, x):
    logits = base(self, x)
    return logits if logits.sum() > 0 else -logits


def counting(self, x):
    return base(self, x) * int((x > 0).sum())


DEPENDS = r"depends on the values of the clip .* torch\.where"


@pytest.mark.parametrize(
    "forward, message",
    [
        (raising, r"could not capture Network on a clip of shape \[N, 3, 8, 32, 32\], at test_foreign\.py, line \d+: "),
        (raising, r"KeyError: 'no such thing'$"),
        (branching, DEPENDS),
        (branching, r"at test_foreign\.py, line \d+: what it computes"),
        (counting, DEPENDS),
        (
            lambda self, x: Answer(base(self, x)),
            r"must return tensors, .* got Answer; wrap it in a module that returns",
        ),
        (lambda self, x: None, r"Network must return its logits, a tensor \[N, K\], got NoneType$"),
        (lambda self, x: [1, 2], r"a tensor \[N, K\], got int, int$"),
        (lambda self, x: "cat", r"a tensor \[N, K\], got str$"),
        (lambda self, x: base(self, x[:, :1]), r"at 'body\.0' \(Conv3d\), networks\.py, line \d+: Given groups=1"),
        (
            lambda self, x: torch.stack([base(self, clip[None])[0] for clip in x]),
            r"batches of any size.*len\(x\).* x\.shape\[0\]",
        ),
    ],
)
def test_code_that_no_graph_holds(capsys, forward, message):
    assert re.search(message, refusal(forward))
    printed = capsys.readouterr()
    assert "def forward" not in printed.out + printed.err  # the graph so far, which torch prints


def test_a_clip_of_another_type_than_the_weights():
    text = refusal(base, networks.clip().double())
    assert text.endswith("; the clip's dtype is torch.float64, that of the weights torch.float32: give them the same")
    assert "(Conv3d)" in text


def test_what_a_network_prints_is_still_printed(capsys):
    def forward(self, x):
        print("hello", file=sys.stderr)
        return base(self, x)

    clipsight.explain(network(forward), SaliencyTube(), networks.clip())
    assert capsys.readouterr().err.startswith("hello\n")


def test_an_op_that_nobody_foresaw(monkeypatch):
    def attach(*_):
        raise AttributeError("'int' object has no attribute 'node'")

    monkeypatch.setattr("clipsight.explained.attach", attach)
    text = refusal(base)
    assert "an op that was not foreseen (AttributeError in test_foreign.py, line" in text
    assert "'int' object" not in text


# ---- Another library's words ----------------------------------------------------------------------------------------

ONNX = """Failed to convert the exported program to an ONNX model. \x1b[96mThis is step 3/3\x1b[0m of exporting.
- If there is a missing ONNX function, implement it and register it to the registry.
"""
TORCHSCRIPT = """The following operation failed in the TorchScript interpreter.
Traceback of TorchScript, serialized code (most recent call last):
  File "code/__torch__.py", line 9, in forward
    x = ops.prim.RaiseException("no")
        ~~~~~~~~~~~~~~~~~~~~~~~ <--- HERE
RuntimeError: The size of tensor a (3) must match
"""


@pytest.mark.parametrize(
    "error, expected",
    [
        (RuntimeError("one line"), "one line"),
        (ValueError("\n\n  first  of\nmany\n"), "first of"),
        (KeyError("x"), "KeyError: 'x'"),
        (AssertionError(), "AssertionError"),
        (RuntimeError(TORCHSCRIPT), "RuntimeError: The size of tensor a (3) must match"),
        (RuntimeError("bad value. Exception raised from run at x.cpp:1\nframe #0: ..."), "bad value"),
        (RuntimeError("\x1b[31mred\x1b[0m \x07"), r"red \x07"),
        (RuntimeError(ONNX), "- If there is a missing ONNX function, implement it and register it to the registry"),
    ],
)
def test_first_line(error, expected):
    assert first_line(error) == expected


def test_long_lines_are_cut():
    text = first_line(RuntimeError("x" * 10000))
    assert len(text) == LONGEST_LINE
    assert text.endswith("...")


@pytest.mark.parametrize(
    "text, op",
    [
        (
            "Error when translating node %a : call_function[target=torch.ops.aten.histc.default](args = ())",
            "aten.histc",
        ),
        ("No ONNX function found for <OpOverload(op='probe.triple', overload='default')>. Failure", "probe.triple"),
        ("LoweringException: NotImplementedError: no\n  target: aten.cummax.default\n  args[0]: x", "aten.cummax"),
        ("aten.nonzero.default", "aten.nonzero"),
        ("something else", ""),
    ],
)
def test_the_op_that_an_error_is_about(text, op):
    error = ValueError("outer")
    error.__cause__ = RuntimeError(text)
    assert op_in(error) == op
    assert root(error) is error.__cause__


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError(), AttachError("explain: no")])
def test_what_needs_no_other_words(error):
    with pytest.raises(type(error)) as caught, in_words_of_ours(ValueError, lambda error: "other"):
        raise error
    assert caught.value is error


def test_ours_are_told_by_where_they_come_from():
    with pytest.raises(ValueError) as caught:
        SaliencyTube(size="elsewhere")
    assert is_ours(caught.value)
    with pytest.raises(ValueError) as caught:
        raise ValueError("explain: as if it were ours")
    assert not is_ours(caught.value)


# ---- Suspects -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forward, op",
    [
        (lambda self, x: base(self, F.batch_norm(x, None, None, training=True)), "batch_norm"),
        (lambda self, x: base(self, x / x.max()), "max"),
        (lambda self, x: base(self, x - x.mean(0)), "mean"),
        (lambda self, x: base(self, x - x.mean()), "mean"),
        (lambda self, x: base(self, x).softmax(0), "softmax"),
        (lambda self, x: base(self, x) / base(self, x).norm(), "linalg_vector_norm"),
        (lambda self, x: base(self, x.flip(0)), "flip"),
        (lambda self, x: base(self, x.sort(0)[0]), "sort"),
        (lambda self, x: base(self, x), ""),
        (lambda self, x: base(self, x - x.mean((1, 2, 3, 4), keepdim=True)).softmax(-1), ""),
        (lambda self, x: base(self, F.instance_norm(x)), ""),
        (lambda self, x: base(self, F.layer_norm(x, x.shape[2:])), ""),
        (lambda self, x: base(self, x.sort()[0] / x.amax(2, keepdim=True)), ""),
        (lambda self, x: base(self, x.transpose(0, 1).cumsum(0).transpose(0, 1)), ""),
    ],
)
def test_which_ops_look_at_several_samples(forward, op):
    found = mixes_samples(capture(network(forward), (3, 8, 32, 32), LIKE).graph)
    assert found.startswith(f"'{op}' ") if op else not found


def test_batch_norm_without_running_statistics():
    def change(self):
        self.body[1] = nn.BatchNorm3d(8, track_running_stats=False)

    graph = capture(network(base, change), (3, 8, 32, 32), LIKE).graph
    assert mixes_samples(graph) == "'batch_norm' in 'body.1'"


@pytest.mark.parametrize(
    "value, where, expected",
    [
        (float("nan"), "weight", "'0.weight' holds NaN"),
        (float("inf"), "weight", "'0.weight' holds infinity"),
        (float("nan"), "running_var", "'1.running_var' holds NaN"),
        (float("-inf"), "mask", ""),
    ],
)
def test_which_weights_are_not_finite(value, where, expected):
    network = nn.Sequential(nn.Conv3d(3, 2, 1), nn.BatchNorm3d(2))
    network.register_buffer("mask", torch.zeros(3))
    assert not_finite(network) == ""
    tensor = {"weight": network[0].weight, "running_var": network[1].running_var, "mask": network.mask}[where]
    tensor.data.view(-1)[1] = value
    assert not_finite(network) == expected
