"""Adjoints of convolution and pooling, written as forward ops.

The adjoint of a linear map `A` is the map `g -> A^T g`: what back-propagation does at a layer. Autograd has these as
ops of its own, which no exporter takes; here they are convolutions, matrix products and reshapes, so that a trace or an
ONNX file can hold them, and a network's weights may be replaced (by their positive part, say) on the way back.

Everything works for one to three axes of space, on `[B, C, *size]`, at the dtype of `g`. The batch size is free; the
other sizes are those of the call and become constants of a trace.

Two of them have a second form for ONNX, chosen by what ONNX Runtime's CPU kernels are good at. A convolution of stride
1 goes back as a convolution with the flipped kernel, 10 to 25 % faster there than a transposed one (at stride 2 the
transposed one wins); ONNX Runtime flips the weights once, when it loads the file. Torch would flip them in every call,
and a frozen TorchScript would hold them twice. How it is then convolved is said in :mod:`clipsight.backward.convolve`.
And a max pooling goes back without indices, 2 to 3 times as fast there.

Source: V. Dumoulin and F. Visin, "A guide to convolution arithmetic for deep learning", 2016, chapter 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .convolve import Ints, convolve, each, is_for_onnx


def conv_adjoint(
    g: Tensor,
    weight: Tensor,
    input_size: Sequence[int],
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    exact: bool = True,
) -> Tensor:
    """What `conv(x, weight, stride, padding, dilation, groups)` sends back to `x`.

    Args:
        g: `[B, C_out, *output_size]`.
        weight: `[C_out, C_in / groups, *kernel]`.
        input_size: lengths of the axes of `x` behind the channels.
        stride, padding, dilation, groups: of the convolution; numbers, or one for each axis. Padding is that in front
            of `x`; the sizes tell how much there was behind it.
        exact: as in `convolve`.

    Returns:
        `[B, C_in, *input_size]`.
    """
    axes = len(input_size)
    stride, padding, dilation = (each(value, axes) for value in (stride, padding, dilation))
    out = _sizes(g)
    reach = [d * (k - 1) for d, k in zip(dilation, _sizes(weight), strict=True)]
    # Few input channels make few outputs of a costly convolution: there the transposed one does less.
    if is_for_onnx() and set(stride) == {1} and int(weight.shape[1]) * groups * 4 >= int(g.shape[1]):
        margins = [(r - p, n + p - o) for r, p, n, o in zip(reach, padding, input_size, out, strict=True)]
        if all(before == after >= 0 for before, after in margins):
            inside = tuple(before for before, _ in margins)
        else:
            g, inside = F.pad(g, [m for pair in reversed(margins) for m in pair]), 0
        kernel = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(tuple(range(2, axes + 2)))
        return convolve(g, kernel, 1, inside, dilation, groups, exact)
    lengths = zip(input_size, out, stride, padding, reach, strict=True)
    missed = [n - ((o - 1) * s - 2 * p + r + 1) for n, o, s, p, r in lengths]
    behind = [max(length, 0) for length in missed]
    transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    whole = transposed(g, weight, None, stride, padding, behind, groups, dilation)
    return whole if behind == missed else whole[(..., *(slice(n) for n in input_size))]


def avg_pool_adjoint(
    g: Tensor,
    input_size: Sequence[int],
    kernel: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Tensor:
    """What `avg_pool(x, kernel, ...)` sends back to `x`.

    Args:
        g: `[B, C, *output_size]`; `ceil_mode` shows in its size.
        input_size: lengths of the axes of `x` behind the channels.
        kernel, stride, padding, ceil_mode, count_include_pad: of the pooling; an absent stride is the kernel's.
        divisor: of every window, instead of its number of voxels.

    Returns:
        `[B, C, *input_size]`.
    """
    axes = len(input_size)
    kernel, padding = each(kernel, axes), each(padding, axes)
    windows = []
    for n, out, k, s, p in zip(input_size, _sizes(g), kernel, each(stride, axes, kernel), padding, strict=True):
        starts = [o * s - p for o in range(out)]
        bounds = [(max(start, 0), min(start + k, n)) for start in starts]
        counts = [min(a + k, n + p) - a for a in starts] if count_include_pad else [b - a for a, b in bounds]
        windows.append([(*at, 1 if divisor else 1 / count) for at, count in zip(bounds, counts, strict=True)])
    return _spread(g / divisor if divisor else g, input_size, windows)


def adaptive_avg_pool_adjoint(g: Tensor, input_size: Sequence[int]) -> Tensor:
    """What `adaptive_avg_pool(x, output_size)` sends back to `x`, or a mean over all of the axes.

    Args:
        g: `[B, C, *output_size]`.
        input_size: lengths of the axes of `x` behind the channels.

    Returns:
        `[B, C, *input_size]`.
    """
    windows = []
    for n, out in zip(input_size, _sizes(g), strict=True):
        bounds = [(o * n // out, -(-(o + 1) * n // out)) for o in range(out)]
        windows.append([(a, b, 1 / (b - a)) for a, b in bounds])
    return _spread(g, input_size, windows)


def max_pool_adjoint(
    g: Tensor,
    x: Tensor,
    kernel: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """What `max_pool(x, kernel, ...)` sends back to `x`: all to the largest of a window, the first of equals.

    Args:
        g: `[M * B, C, *output_size]`, M tensors one after the other.
        x: `[B, C, *input_size]`, what the pooling read.
        kernel, stride, padding, dilation, ceil_mode: of the pooling; an absent stride is the kernel's.

    Returns:
        `[M * B, C, *input_size]`.
    """
    axes = x.dim() - 2
    kernel = each(kernel, axes)
    stride, padding, dilation = each(stride, axes, kernel), each(padding, axes), each(dilation, axes)
    if is_for_onnx():
        g = g.unflatten(0, (-1, x.shape[0]))
        return _max_pool_adjoint_by_axis(g, x, kernel, stride, padding, dilation).flatten(0, 1)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[axes - 1]
    _, winners = pool(x, kernel, stride, padding, dilation, ceil_mode, return_indices=True)
    return to_winners(g, winners, _sizes(x))


def to_winners(g: Tensor, winners: Tensor, input_size: Sequence[int]) -> Tensor:
    """Every value to the voxel of which the number stands in its place.

    Args:
        g: `[M * B, C, *output_size]`.
        winners: int64 `[B, C, *output_size]`.
        input_size: lengths of the axes behind the channels.

    Returns:
        `[M * B, C, *input_size]`.
    """
    g = g.unflatten(0, (-1, winners.shape[0])).flatten(3)
    zeros = g.new_zeros(()).expand(*g.shape[:3], math.prod(input_size))
    return zeros.scatter_add(3, winners.flatten(2).expand_as(g), g).flatten(0, 1).unflatten(2, tuple(input_size))


def _max_pool_adjoint_by_axis(g: Tensor, x: Tensor, kernel, stride, padding, dilation) -> Tensor:
    """The same without indices: the winner of a window is found along w, then h, then t.

    The winner of equals is then, as wanted, the one in the first frame, of these in the first row, of these the first.
    g `[M, B, C, *output_size]` -> `[M, B, C, *input_size]`.
    """
    steps = []
    outs = [int(n) for n in g.shape[3:]]
    for i, (out, k, s, p, d) in reversed([*enumerate(zip(outs, kernel, stride, padding, dilation, strict=True))]):
        axis, n = i + 2, int(x.shape[i + 2])
        after = (out - 1) * s + (k - 1) * d + 1 - p - n
        if p or after > 0:
            x = F.pad(x, [0, 0] * (x.dim() - 1 - axis) + [p, max(after, 0)], value=-math.inf)
        best, *others = (_along(x, axis, slice(j * d, j * d + (out - 1) * s + 1, s)) for j in range(k))
        beats = []
        for other in others:
            beats.append((other > best).to(g.dtype))
            best = torch.maximum(best, other)
        x = best
        steps.append((axis + 1, n, out, s, p, d, beats))
    for axis, n, out, s, p, d, beats in reversed(steps):
        parts = []
        for beat in reversed(beats):
            parts.append(g * beat)
            g = g - parts[-1]
        g = _interleave([g, *reversed(parts)], axis, n, out, s, p, d)
    return g


def _interleave(taps: list[Tensor], axis: int, n: int, out: int, s: int, p: int, d: int) -> Tensor:
    """Puts value q of tap j at `s q + d j - p` of an axis of length n, and sums what meets."""
    length = -(-max(n + p, (out - 1) * s + (len(taps) - 1) * d + 1) // s)
    by_phase: list[list[Tensor]] = [[] for _ in range(s)]
    for j, tap in enumerate(taps):
        ahead, phase = divmod(j * d, s)
        margins = [0, 0] * (tap.dim() - 1 - axis) + [ahead, length - out - ahead]
        by_phase[phase].append(F.pad(tap, margins) if length > out else tap)
    phases = [sum(each[1:], each[0]) if each else None for each in by_phase]
    nothing = torch.zeros_like(phases[0])
    phases = [nothing if phase is None else phase for phase in phases]
    whole = phases[0] if s == 1 else torch.stack(phases, axis + 1).flatten(axis, axis + 1)
    return whole if length * s == n else _along(whole, axis, slice(p, p + n))


def _along(tensor: Tensor, axis: int, part: slice) -> Tensor:
    return tensor[(slice(None),) * axis + (part,)]


def _spread(g: Tensor, input_size: Sequence[int], windows: list[list[tuple[int, int, float]]]) -> Tensor:
    """Every output to its window `(first, last + 1, weight)` of each axis; a mean is a product over the axes."""
    for axis, (n, bounds) in enumerate(zip(input_size, windows, strict=True), 2):
        if bounds == [(i, i + 1, 1) for i in range(n)]:
            continue
        g = _times_along(g, axis, [[weight * (a <= i < b) for a, b, weight in bounds] for i in range(n)])
    return g


def transposed_along_axes(g: Tensor, matrices: Sequence[list[list[float]] | None]) -> Tensor:
    """What an op that is a matrix along each axis behind the channels sends back, such as an interpolation.

    Args:
        g: `[B, C, *output_size]`.
        matrices: for each axis `[output][input]`, or `None` for one that stays as it is.

    Returns:
        `[B, C, *input_size]`.
    """
    for axis, rows in enumerate(matrices, 2):
        g = g if rows is None else _times_along(g, axis, [list(column) for column in zip(*rows, strict=True)])
    return g


def _times_along(g: Tensor, axis: int, rows: list[list[float]]) -> Tensor:
    """A matrix times what lies along an axis."""
    matrix = torch.tensor(rows, dtype=g.dtype, device=g.device)
    rest = _sizes(g)[axis - 1 :]
    return (matrix @ g.flatten(axis + 1)).unflatten(-1, rest) if rest else g @ matrix.T


def _sizes(tensor: Tensor) -> list[int]:
    return [int(n) for n in tensor.shape[2:]]
