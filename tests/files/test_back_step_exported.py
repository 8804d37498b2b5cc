"""back_step, the op and its twin, in files of every format: bit for bit."""

from __future__ import annotations

import warnings

import pytest
import torch

from clipsight import ops, reference
from helpers import assert_same


class Step(torch.nn.Module):
    """back_step of `module` with the kernel as a weight."""

    def __init__(self, module, theta=0.6):
        super().__init__()
        self.function, self.theta = module.back_step, theta
        self.kernel = torch.nn.Parameter(torch.randn(12, 4, generator=torch.Generator().manual_seed(1)))

    def forward(self, pooled, selected):
        return self.function(pooled, self.kernel, selected, self.theta, 3)


EXAMPLE, OTHER = ((torch.rand(n, 12), torch.rand(n, m, 12) < 0.5) for n, m in ((2, 3), (5, 4)))
DYNAMIC = ({0: torch.export.Dim.DYNAMIC}, {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC})


def expected_of(step, inputs):
    return reference.back_step(inputs[0], step.kernel.detach(), inputs[1], step.theta, 3)


@pytest.mark.parametrize("module", [ops, reference], ids=["op", "twin"])
def test_export_with_dynamic_batch_and_classes(module, tmp_path):
    step = Step(module)
    torch.export.save(torch.export.export(step, EXAMPLE, dynamic_shapes=DYNAMIC), tmp_path / "step.pt2")
    assert_same(torch.export.load(tmp_path / "step.pt2").module()(*OTHER), expected_of(step, OTHER))


@pytest.mark.parametrize("module", [ops, reference], ids=["op", "twin"])
def test_torchscript(module):
    step = Step(module).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.freeze(torch.jit.trace(step, EXAMPLE, check_trace=False))
    assert_same(traced(*OTHER), expected_of(step, OTHER))


@pytest.mark.parametrize("module", [ops, reference], ids=["op", "twin"])
def test_onnx_with_dynamic_batch_and_classes(module, opened):
    """The node of the plug-in for the op, standard ops for the twin."""
    onnx = pytest.importorskip("onnx_nodes").onnx
    from clipsight.exporters.onnx_plugin import translation_table

    step = Step(module).eval()
    table = translation_table() if module is ops else None
    options = {"dynamo": True, "dynamic_shapes": DYNAMIC, "custom_translation_table": table, "verbose": False}
    proto = torch.onnx.export(step, EXAMPLE, **options).model_proto
    own = [node.op_type for node in proto.graph.node if node.domain == "clipsight"]
    assert own == (["BackStep"] if module is ops else [])
    onnx.checker.check_model(proto)
    session = opened(proto)
    names = [value.name for value in session.get_inputs()]
    feeds = dict(zip(names, (x.numpy() for x in OTHER), strict=True))
    assert_same(map(torch.from_numpy, session.run(None, feeds)), expected_of(step, OTHER))
