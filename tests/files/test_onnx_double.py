"""Float64 in ONNX files: convolutions and average poolings of every kind against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import clipsight
import networks
from clipsight import SaliencyTube
from clipsight.exporters import onnx, onnx_double

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

# Pointwise, whole, in two groups, one channel each; transposed, and that in three groups.
KERNELS = [(4, 6, 1, 1, 1), (4, 6, 3, 2, 3), (6, 3, 2, 3, 1), (6, 1, 1, 3, 3), (6, 4, 3, 2, 3), (6, 2, 2, 3, 1)]


class Everything(nn.Module):
    """One result for each way of calling."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.ParameterList(torch.randn(size).double() for size in KERNELS)
        self.bias = nn.Parameter(torch.randn(6).double())

    def forward(self, clip):
        pointwise, clips, grouped, depthwise, transposed, in_groups = self.kernels
        image = clip[:, :, 0]
        return (
            F.conv3d(clip, pointwise),
            F.conv3d(clip, clips, self.bias[:4], stride=(1, 2, 3), padding=(1, 0, 2), dilation=(2, 1, 1)),
            F.conv3d(clip, grouped, self.bias, padding=1, groups=2),
            F.conv2d(image, depthwise[:, :, 0], self.bias, stride=2, padding=(0, 1), groups=6),
            F.conv1d(image[..., 0], clips[..., 0, 0], padding=1),
            F.conv_transpose3d(clip, transposed, stride=(2, 1, 3), padding=(1, 0, 1), output_padding=(1, 0, 2)),
            F.conv_transpose3d(clip, transposed, self.bias[:4], padding=2, dilation=(1, 2, 1)),
            F.conv_transpose2d(image, in_groups[:, :, 0], stride=2, groups=3),
            F.avg_pool3d(clip, 2),
            F.avg_pool3d(clip, 3, (1, 2, 2), 1, count_include_pad=False),
            F.avg_pool3d(clip, (1, 3, 3), 2, (0, 1, 1), ceil_mode=True),
            F.avg_pool3d(clip, (1, 3, 3), 2, (0, 1, 1), ceil_mode=True, count_include_pad=False),
            F.avg_pool2d(image, 2, 3, ceil_mode=True, divisor_override=5),
        )


def test_every_convolution_and_pooling():
    torch.manual_seed(0)
    module, clip = Everything().eval(), torch.randn(3, 6, 5, 8, 7).double()
    expected = module(clip)
    names = [f"y{i}" for i in range(len(expected))]
    model = onnx.convert(module, (clip[:2],), names, custom_translation_table=onnx_double.translation_table())
    left = {node.op_type for node in model.graph.node} & {"Conv", "ConvTranspose", "AveragePool"}
    assert not left
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for got, want in zip(session.run(None, {"clip": clip.numpy()}), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(got), want, atol=1e-12, rtol=1e-12)


def test_a_network_in_float64(tmp_path):
    network = networks.seeded(networks.ModulePool).double()
    explained = clipsight.explain(network, SaliencyTube(), networks.clip().double())
    manifest = clipsight.export(explained, tmp_path / "x.onnx")
    assert manifest.input.dtype == "float64"
    clip = networks.clip(3, seed=7).double()
    logits, _ = clipsight.load(tmp_path / "x.onnx")(clip)
    difference = (torch.as_tensor(logits) - network(clip)).abs().max()
    assert difference < 1e-12
    assert (network.float()(clip.float()) - torch.as_tensor(logits)).abs().max() > 1e-9  # it is not float32
    with pytest.raises(ValueError, match=r"plugin must be False for '\.onnx' and a network in float64"):
        clipsight.export(explained, tmp_path / "y.onnx", plugin=True)
    assert not (tmp_path / "y.onnx").exists()
