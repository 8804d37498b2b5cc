"""What convolutions and poolings send back, against autograd in float64, in both forms and in exported files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from clipsight.backward import convolve
from clipsight.backward.adjoints import adaptive_avg_pool_adjoint, avg_pool_adjoint, conv_adjoint, max_pool_adjoint
from clipsight.exporters import onnx, torchscript

POOLS = {
    "avg": {2: F.avg_pool2d, 3: F.avg_pool3d},
    "max": {2: F.max_pool2d, 3: F.max_pool3d},
    "adaptive": {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d},
    "conv": {2: F.conv2d, 3: F.conv3d},
}
axes = st.integers(2, 3)
FORMS = pytest.mark.parametrize("for_onnx", [False, True], ids=["torch", "onnx"])
sweep = settings(max_examples=60, deadline=None, derandomize=True)


def random(*shape, seed=0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, bound: float = 1e-12) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    difference = (ours - theirs).abs().max().item()
    assert difference <= bound * max(1.0, theirs.abs().max().item())


def back(y: torch.Tensor, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(y, x, g, retain_graph=True)[0]


def lengths(draw, n: int, low: int, high: int) -> list[int]:
    return draw(st.lists(st.integers(low, high), min_size=n, max_size=n))


@FORMS
@sweep
@given(st.data())
def test_convolution(for_onnx, data):
    """Even kernels, padding wider than the kernel, voxels behind the last window, groups up to depth-wise."""
    n = data.draw(axes)
    kernel, stride, dilation = (lengths(data.draw, n, 1, high) for high in (4, 4, 3))
    padding, size = lengths(data.draw, n, 0, 6), lengths(data.draw, n, 1, 11)
    groups, channels, kernels = data.draw(st.integers(1, 3)), *lengths(data.draw, 2, 1, 3)
    assume(all(i + 2 * p > d * (k - 1) for i, p, d, k in zip(size, padding, dilation, kernel, strict=True)))
    x = random(2, groups * channels, *size).requires_grad_()
    weight = random(groups * kernels, channels, *kernel, seed=1)
    y = POOLS["conv"][n](x, weight, None, stride, padding, dilation, groups)
    g = random(*y.shape, seed=2)
    with convolve.for_onnx(for_onnx):
        assert_same(conv_adjoint(g, weight, size, stride, padding, dilation, groups), back(y, x, g))


@FORMS
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_convolution_with_same_padding(for_onnx, kernel):
    """Torch pads an even kernel with one more voxel behind than in front."""
    x, weight = random(2, 4, 5, 6, 7).requires_grad_(), random(4, 4, kernel, kernel, kernel, seed=1)
    y = F.conv3d(x, weight, padding="same")
    g = random(*y.shape, seed=2)
    with convolve.for_onnx(for_onnx):
        assert_same(conv_adjoint(g, weight, (5, 6, 7), padding=(kernel - 1) // 2), back(y, x, g))


@sweep
@given(st.data())
def test_average_pooling(data):
    n = data.draw(axes)
    kernel, stride = lengths(data.draw, n, 1, 4), data.draw(st.none() | st.just(lengths(data.draw, n, 1, 4)))
    padding = [data.draw(st.integers(0, k // 2)) for k in kernel]
    size = [max(i, k) for i, k in zip(lengths(data.draw, n, 1, 11), kernel, strict=True)]
    options = (data.draw(st.booleans()), data.draw(st.booleans()), data.draw(st.sampled_from([None, 3])))
    x = random(2, 3, *size).requires_grad_()
    y = POOLS["avg"][n](x, kernel, stride, padding, *options)
    g = random(*y.shape, seed=2)
    assert_same(avg_pool_adjoint(g, size, kernel, stride, padding, *options), back(y, x, g))


@sweep
@given(st.data())
def test_adaptive_average_pooling(data):
    n = data.draw(axes)
    size, out = lengths(data.draw, n, 1, 11), lengths(data.draw, n, 1, 8)
    x = random(2, 3, *size).requires_grad_()
    y = POOLS["adaptive"][n](x, out)
    g = random(*y.shape, seed=2)
    assert_same(adaptive_avg_pool_adjoint(g, size), back(y, x, g))


@FORMS
@sweep
@given(st.data())
def test_max_pooling(for_onnx, data):
    """Of equals, of which whole numbers have many, the same one as in torch; several gradients at once."""
    n = data.draw(axes)
    kernel, stride, dilation = (lengths(data.draw, n, 1, high) for high in (4, 4, 3))
    padding, ceil_mode = [data.draw(st.integers(0, k // 2)) for k in kernel], data.draw(st.booleans())
    size = lengths(data.draw, n, 1, 11)
    assume(all(i + 2 * p > d * (k - 1) for i, p, d, k in zip(size, padding, dilation, kernel, strict=True)))
    x = random(2, 3, *size).mul(1.5).round().requires_grad_()
    y = POOLS["max"][n](x, kernel, stride, padding, dilation, ceil_mode)
    assume(not y.isinf().any())  # a dilated window that lies in the padding: torch has no winner for it
    g = random(data.draw(st.integers(1, 3)), *y.shape, seed=2)
    with convolve.for_onnx(for_onnx):
        ours = max_pool_adjoint(g.flatten(0, 1), x.detach(), kernel, stride, padding, dilation, ceil_mode)
    assert_same(ours, torch.cat([back(y, x, each) for each in g]))


@FORMS
def test_by_hand(for_onnx):
    with convolve.for_onnx(for_onnx):
        taps = torch.tensor([[[[1.0, 2.0, 3.0]]]])
        sent = conv_adjoint(torch.tensor([[[[10.0, 100.0]]]]), taps, (1, 6), stride=(1, 2))
        assert sent.tolist() == [[[[10.0, 20.0, 130.0, 200.0, 300.0, 0.0]]]]
        tied = torch.tensor([[[[0.0, 5.0, 1.0, 1.0], [5.0, 5.0, 1.0, 1.0]]]])
        sent = max_pool_adjoint(torch.tensor([[[[7.0, 8.0]]]]), tied, 2)
        assert sent.tolist() == [[[[0.0, 7.0, 8.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]]
    sent = avg_pool_adjoint(torch.tensor([[[[6.0, 60.0]]]]), (1, 4), (1, 3), 1)
    assert sent.tolist() == [[[[2.0, 22.0, 22.0, 20.0]]]]
    sent = adaptive_avg_pool_adjoint(torch.tensor([[[[6.0, 60.0]]]]), (1, 5))
    assert sent.tolist() == [[[[2.0, 2.0, 22.0, 20.0, 20.0]]]]


def test_the_comparison_sees_a_wrong_margin():
    x, weight = random(2, 4, 5, 6, 7).requires_grad_(), random(4, 4, 3, 3, 3, seed=1)
    g = random(2, 4, 5, 6, 7, seed=2)
    with pytest.raises(AssertionError):
        assert_same(conv_adjoint(g, weight, (5, 6, 7), padding=(1, 1, 0)), back(F.conv3d(x, weight, padding=1), x, g))


class Everything(nn.Module):
    """Clip `[N, 4, 6, 13, 14]` -> what each layer sends back when it receives its own output; or autograd's."""

    CONVOLUTIONS = (  # kernels, kernel, stride, padding, dilation, groups
        (4, (3, 3, 3), 1, 1, 1, 1),
        (4, (3, 2, 4), 1, (0, 1, 1), 1, 2),
        (4, (3, 3, 3), 1, (4, 2, 2), (1, 2, 1), 4),
        (6, (3, 5, 5), (1, 2, 2), (1, 2, 2), 1, 1),
        (8, (1, 2, 3), (2, 3, 2), (2, 3, 0), (1, 2, 1), 4),
        (20, (3, 3, 3), 1, 1, 1, 1),
    )
    MAX_POOLS = ((3, 2, 1, 1), (2, 2, 0, 1), ((1, 3, 2), (1, 2, 3), (0, 1, 1), (1, 2, 1)))

    def __init__(self) -> None:
        super().__init__()
        for i, (kernels, kernel, *_, groups) in enumerate(self.CONVOLUTIONS):
            self.register_parameter(f"w{i}", nn.Parameter(random(kernels, 4 // groups, *kernel, seed=i).float()))

    def forward(self, clip, autograd: bool = False):
        size, sent = (6, 13, 14), []

        def send(y, g, adjoint):
            sent.append(back(y, clip, g) if autograd else adjoint(g))

        for i, (_, _, stride, padding, dilation, groups) in enumerate(self.CONVOLUTIONS):
            weight, options = getattr(self, f"w{i}"), (stride, padding, dilation, groups)
            y = F.conv3d(clip, weight, None, *options)
            send(y, y, lambda g, w=weight, o=options: conv_adjoint(g, w, size, *o))
        for options in self.MAX_POOLS:
            y = F.max_pool3d(clip, *options)
            send(y, y, lambda g, o=options: max_pool_adjoint(torch.cat([g, g]), clip, *o)[clip.shape[0] :])
        y = F.avg_pool3d(clip, (2, 3, 3), (2, 2, 1), (1, 1, 0), True, False)
        send(y, y, lambda g: avg_pool_adjoint(g, size, (2, 3, 3), (2, 2, 1), (1, 1, 0), True, False))
        y = F.adaptive_avg_pool3d(clip, (1, 5, 1)) if autograd else None  # torch cannot export windows that overlap
        send(y, clip[:, :, :1, :5, :1], lambda g: adaptive_avg_pool_adjoint(g, size))
        return tuple(sent)


def test_exported_with_a_free_batch_size():
    onnxruntime = pytest.importorskip("onnxruntime")
    module = Everything().eval()
    example = random(2, 4, 6, 13, 14).float()
    names = [f"sent{i}" for i in range(len(module(example)))]
    model = onnx.convert(module, (example,), names)
    ops = {node.op_type for node in model.graph.node}
    assert "ConvTranspose" in ops
    assert not ops & {"ScatterElements", "ScatterND"}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    script = torchscript.convert(module, (example,))
    for batch in (1, 2, 3):
        clip = random(batch, 4, 6, 13, 14, seed=batch).float().requires_grad_()
        expected = module(clip, autograd=True)
        clip = clip.detach()
        found = {"TorchScript": script(clip), "ONNX Runtime": session.run(None, {"clip": clip.numpy()})}
        for values in found.values():
            for ours, theirs in zip(values, expected, strict=True):
                assert_same(torch.as_tensor(ours), theirs.detach(), bound=1e-5)
