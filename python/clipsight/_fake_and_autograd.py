"""What torch.compile, torch.export and autograd need to know of the ops: output shapes, and gradients.

Fake kernels only derive shapes, with symbolic sizes; the real kernels check values. Gradients are plain torch, so they
can be differentiated again: adjoints for the linear ops, the gradient of the reference twin for the others.
"""

from __future__ import annotations

import torch

from . import _library, reference
from .reference import SOBEL, basis, separable, static_sizes, stencil

# ---- fake kernels ---------------------------------------------------------------------------------------------------


def _check(condition, message: str) -> None:
    torch._check_value(condition, lambda: message)


def _device(op: str, name: str, tensor, first):
    _check(
        tensor.device == first.device,
        f"{op}: {name} must be on the device of the first argument, {first.device}, got {tensor.device}",
    )


def _cam(op: str, features, weight):
    _check(features.dim() == 5, f"{op}: features must have shape [N, C, t, h, w], got {list(features.shape)}")
    _check(weight.dim() in (2, 3), f"{op}: weight must have shape [M, C] or [N, M, C], got {list(weight.shape)}")
    _device(op, "weight", weight, features)
    n, c = features.shape[:2]
    expected = [n, weight.shape[-2], c][-weight.dim() :]
    message = f"{op}: weight must have shape [M, C] or [N, M, C] with C = {c}, N = {n}, got {list(weight.shape)}"
    for size, got in zip(expected, weight.shape, strict=True):
        _check(size == got, message)
    return features.new_empty((n, weight.shape[-2], *features.shape[2:]), dtype=torch.float32)


def _volume(op: str, volume):
    _check(volume.dim() >= 3, f"{op}: volume must have shape [..., T, H, W], got {list(volume.shape)}")
    return volume.shape[:-3]


def _size(op: str, size):
    _check(len(size) == 3, f"{op}: size must be three lengths (T, H, W) >= 1, got {list(size)}")
    return tuple(size)


def _tube(op: str, features, weight, size, dtype):
    cam = _cam(op, features, weight)
    types = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}
    _check(dtype in types, f'{op}: dtype must be "float32", "float16" or "uint8", got "{dtype}"')
    return cam.new_empty((*cam.shape[:2], *_size(op, size)), dtype=types[dtype])


def _fake_channel_reduce(features, weight, threshold=None):
    return _cam("channel_reduce", features, weight)


def _fake_back_step(pooled, kernel, selected, theta, groups=1):
    op = "back_step"
    _check(pooled.dim() == 2, f"{op}: pooled must have shape [N, C_in] with C_in >= 1, got {list(pooled.shape)}")
    rule = "must have shape [C_out, C_in / groups] with C_out >= 1"
    _check(kernel.dim() == 2, f"{op}: kernel {rule}, got {list(kernel.shape)}")
    (n, c_in), (c_out, width) = pooled.shape, kernel.shape
    divides = groups >= 1 and c_in % groups == 0 and c_out % groups == 0
    _check(divides, f"{op}: groups must divide C_in = {c_in} and C_out = {c_out}, got {groups}")
    rule = f"must have shape [C_out, C_in / groups] = [C_out, {c_in // groups}]"
    _check(width == c_in // groups, f"{op}: kernel {rule}, got {list(kernel.shape)}")
    message = f"{op}: selected must have shape [N, M, C_out] = [{n}, M, {c_out}], got {list(selected.shape)}"
    _check(selected.dim() == 3, message)
    for size, got in ((n, selected.shape[0]), (c_out, selected.shape[2])):
        _check(size == got, message)
    _device(op, "kernel", kernel, pooled)
    _device(op, "selected", selected, pooled)
    lead = selected.shape[:2]
    edges = pooled.new_empty((*lead, c_out, width), dtype=torch.bool)
    return edges, pooled.new_empty((*lead, c_in), dtype=torch.float32)


def _fake_spline_upsample(volume, size, order=3):
    lead = _volume("spline_upsample", volume)
    return volume.new_empty((*lead, *_size("spline_upsample", size)))


def _fake_sobel_temporal(volume, padding="replicate"):
    _volume("sobel_temporal", volume)
    return volume.new_empty(volume.shape)


def _fake_selective_relevance(
    volume, n_sigma=2.0, padding="replicate", sign="abs", sigma_of="signed", prescale=False, n_sigma_of=None
):
    lead = _volume("selective_relevance", volume)
    if n_sigma_of is not None:
        _device("selective_relevance", "n_sigma_of", n_sigma_of, volume)
    return volume.new_empty(volume.shape), volume.new_empty(lead, dtype=torch.float32)


def _fake_saliency_tube(
    features, weight, size, threshold=None, order=3, relu=False, normalize="clip", dtype="float32", *, out=None
):
    tube = _tube("saliency_tube", features, weight, size, dtype)
    return tube if out is None else None


def _fake_selective_tube(
    features,
    weight,
    size,
    threshold=None,
    order=3,
    relu=False,
    normalize="clip",
    dtype="float32",
    n_sigma=2.0,
    padding="replicate",
    sign="abs",
    sigma_of="signed",
    n_sigma_of=None,
    **out,
):
    tube = _tube("selective_tube", features, weight, size, dtype)
    if n_sigma_of is not None:
        _device("selective_tube", "n_sigma_of", n_sigma_of, features)
    if out:
        return None
    return tube, torch.empty_like(tube), tube.new_empty(tube.shape[:2], dtype=torch.float32)


# ---- gradients ------------------------------------------------------------------------------------------------------


def _save(ctx, inputs, output, tensors: int) -> None:
    ctx.save_for_backward(*inputs[:tensors])
    ctx.options = inputs[tensors:]


def _backward_channel_reduce(ctx, grad):
    features, weight = ctx.saved_tensors
    (threshold,) = ctx.options
    kept = weight if threshold is None else torch.where(weight < threshold, 0.0, weight)
    grad = grad.flatten(2)
    grad_features = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_features = (kept.to(grad.dtype).mT @ grad).reshape(features.shape).to(features.dtype)
    if ctx.needs_input_grad[1]:
        grad_weight = grad @ features.to(grad.dtype).flatten(2).mT
        grad_weight = grad_weight if weight.dim() == 3 else grad_weight.sum(0)
        if threshold is not None:
            grad_weight = torch.where(weight < threshold, 0.0, grad_weight)
        grad_weight = grad_weight.to(weight.dtype)
    return grad_features, grad_weight, None


def _save_nothing(ctx, inputs, output) -> None:
    ctx.mark_non_differentiable(*output)


def _no_gradient(ctx, *grads):
    return None, None, None, None, None


def _save_spline(ctx, inputs, output) -> None:
    ctx.inner, ctx.order = inputs[0].shape[-3:], inputs[2]  # may be symbolic: only the backward pass fixes them


def _backward_spline_upsample(ctx, grad):
    inner = [int(n) for n in ctx.inner]
    adjoint = [basis(m, n, ctx.order).T for m, n in zip(inner, static_sizes(grad), strict=True)]
    return _separable(grad, adjoint), None, None


def _save_sobel(ctx, inputs, output) -> None:
    ctx.padding = inputs[1]


def _backward_sobel_temporal(ctx, grad):
    adjoint = [stencil(n, taps, ctx.padding).T for n, taps in zip(static_sizes(grad), SOBEL, strict=True)]
    return _separable(grad, adjoint), None


def _separable(volume, matrices):
    return separable(volume.to(torch.float32), *matrices).to(volume.dtype)


def _backward_of_twin(twin, tensors: int):
    """The gradient of the reference twin, computed anew; its mask and its gate are constants."""

    def backward(ctx, *grads):
        with torch.enable_grad():
            needed = ctx.needs_input_grad[:tensors]
            inputs = [x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, needed, strict=True)]
            outputs = twin(*inputs, *ctx.options)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            used = [
                (o, g.to(o.dtype)) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad
            ]
            wanted = [x for x in inputs if x.requires_grad]
            found = iter(torch.autograd.grad([o for o, _ in used], wanted, [g for _, g in used]))
        return *(next(found) if x.requires_grad else None for x in inputs), *(None for _ in ctx.options)

    return backward


def _n_sigma_of(twin, position: int):
    """The twin as the op is called: n_sigma as data comes last and takes the place of the number."""

    def call(*arguments):
        *arguments, n_sigma_of = arguments
        if n_sigma_of is not None:
            arguments[position] = n_sigma_of
        return twin(*arguments)

    return call


# ---- registration ---------------------------------------------------------------------------------------------------

if not _library.CPU_ERRORS:
    for _op, _fake in {
        "channel_reduce": _fake_channel_reduce,
        "back_step": _fake_back_step,
        "spline_upsample": _fake_spline_upsample,
        "sobel_temporal": _fake_sobel_temporal,
        "selective_relevance": _fake_selective_relevance,
        "saliency_tube": _fake_saliency_tube,
        "saliency_tube.out": _fake_saliency_tube,
        "selective_tube": _fake_selective_tube,
        "selective_tube.out": _fake_selective_tube,
    }.items():
        torch.library.register_fake(f"clipsight::{_op}", _fake)

    def _saver(tensors):
        return lambda ctx, inputs, output: _save(ctx, inputs, output, tensors)

    for _op, _backward, _setup in (
        ("channel_reduce", _backward_channel_reduce, _saver(2)),
        ("back_step", _no_gradient, _save_nothing),
        ("spline_upsample", _backward_spline_upsample, _save_spline),
        ("sobel_temporal", _backward_sobel_temporal, _save_sobel),
        ("selective_relevance", _backward_of_twin(_n_sigma_of(reference.selective_relevance, 1), 1), _saver(1)),
        ("saliency_tube", _backward_of_twin(reference.saliency_tube, 2), _saver(2)),
        ("selective_tube", _backward_of_twin(_n_sigma_of(reference.selective_tube, 8), 2), _saver(2)),
    ):
        torch.library.register_autograd(f"clipsight::{_op}", _backward, setup_context=_setup)
