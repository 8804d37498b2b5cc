"""Convolution in the form that the runtime does best.

ONNX Runtime's CPU kernels are made for images: they have a layout of their own for them, and clips are unfolded into
large matrices instead. So what an ONNX file convolves on the way back from the logits are images: every frame with
those around it, side by side in its channels. And where that is allowed, two frames are made of four products instead
of six, by Winograd's minimal filtering along time. On two cores with AVX2 that takes 0.95 to 0.8 and 0.9 to 0.55 of the
time of the same convolution of clips.

Source: A. Lavin and S. Gray, "Fast algorithms for convolutional neural networks", CVPR 2016, section 4.1, F(2, 3).
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Ints = int | Sequence[int]

_FOR_ONNX = contextvars.ContextVar("for_onnx", default=False)

MIN_CHANNELS = 16  # with fewer there is too little to do for one more pass over the clip


@contextlib.contextmanager
def for_onnx(value: bool = True) -> Iterator[None]:
    """What is traced inside is for ONNX Runtime."""
    before = _FOR_ONNX.set(value)
    try:
        yield
    finally:
        _FOR_ONNX.reset(before)


def is_for_onnx() -> bool:
    return _FOR_ONNX.get()


def convolve(
    x: Tensor,
    weight: Tensor,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    exact: bool = True,
) -> Tensor:
    """`F.conv3d`, `F.conv2d` or `F.conv1d` without a bias.

    Args:
        x: `[B, C_in, *size]`, of one to three axes.
        weight: `[C_out, C_in / groups, *kernel]`.
        stride, padding, dilation, groups: as torch takes them.
        exact: a sum of nothing but zeros is zero. Otherwise rounding errors of a voxel may reach the next frame's.

    Returns:
        `[B, C_out, *output_size]`.
    """
    axes = weight.dim() - 2
    plain = {*each(stride, axes), *each(dilation, axes), groups} == {1} and not isinstance(padding, str)
    wide = min(int(n) for n in weight.shape[:2]) >= MIN_CHANNELS
    if not (is_for_onnx() and axes == 3 and plain and wide):
        plain_convolution = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
        return plain_convolution(x, weight, None, stride, padding, dilation, groups)
    return convolve_images(x, weight, list(each(padding, axes)), exact)


@torch.library.custom_op("clipsight_onnx::convolve_images", mutates_args=())
def convolve_images(x: Tensor, weight: Tensor, padding: list[int], exact: bool) -> Tensor:
    """`convolve` in the form for ONNX Runtime: to a tracer one op, of which the exporter traces the parts."""
    return images(x, weight, padding, exact)


@convolve_images.register_fake
def _(x: Tensor, weight: Tensor, padding: list[int], exact: bool) -> Tensor:
    lengths = (n + 2 * p - k + 1 for n, p, k in zip(x.shape[2:], padding, weight.shape[2:], strict=True))
    return x.new_empty(x.shape[0], weight.shape[0], *lengths)


def images(x: Tensor, weight: Tensor, padding: Sequence[int], exact: bool) -> Tensor:
    """What `convolve_images` is made of."""
    in_time, *in_frame = padding
    taps = int(weight.shape[2])
    frames = int(x.shape[2]) + 2 * in_time - taps + 1
    form = _by_four_products if taps == 3 and frames > 1 and not exact else _side_by_side
    return form(x.transpose(1, 2), weight, in_time, in_frame, frames).transpose(1, 2)


def _side_by_side(x: Tensor, weight: Tensor, in_time: int, in_frame: Sequence[int], frames: int) -> Tensor:
    """`[B, T, C, h, w]` -> `[B, frames, C_out, h, w]`."""
    x = F.pad(x, (0, 0, 0, 0, 0, 0, in_time, in_time)) if in_time else x
    taps = int(weight.shape[2])
    x = torch.cat([x[:, j : j + frames] for j in range(taps)], 2) if taps > 1 else x
    return F.conv2d(x.flatten(0, 1), weight.transpose(1, 2).flatten(1, 2), padding=in_frame).unflatten(0, (-1, frames))


def _by_four_products(x: Tensor, weight: Tensor, in_time: int, in_frame: Sequence[int], frames: int) -> Tensor:
    """The same for three taps: output frames 2i and 2i + 1 from input frames 2i to 2i + 3."""
    pairs = (frames + 1) // 2
    x = F.pad(x, (0, 0, 0, 0, 0, 0, in_time, in_time + 2 * pairs - frames))
    a, b, c, d = (x[:, j : j + 2 * pairs - 1 : 2] for j in range(4))
    first, middle, last = weight.unbind(2)
    outer = first + last
    weight = torch.cat([first, (outer + middle) / 2, (outer - middle) / 2, last])
    x = torch.cat([a - c, b + c, c - b, b - d], 2).flatten(0, 1)
    a, b, c, d = F.conv2d(x, weight, padding=in_frame, groups=4).chunk(4, 1)
    y = torch.stack([a + b + c, b - c - d], 1).unflatten(0, (-1, pairs)).flatten(1, 2)
    return y if frames % 2 == 0 else y[:, :frames]


def each(value: Ints | None, axes: int, otherwise: tuple[int, ...] = ()) -> tuple[int, ...]:
    """One number for each axis."""
    if value is None or value == [] or value == ():
        return otherwise
    numbers = tuple(value) if isinstance(value, Sequence) else (value,)
    return numbers * axes if len(numbers) == 1 else numbers
