"""Adaptive poolings, which ONNX does not have: their windows are known for a clip's size, and poolings of others.

Window i of n on an axis of L voxels goes from floor(i L / n) to ceil((i + 1) L / n), as in torch's
aten/src/ATen/native/AdaptivePooling.h. A window of a grid is the product of one on each axis, so its mean is the mean
of means and its maximum that of maxima, axis by axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from .decompose import expand

aten = torch.ops.aten


def write_out(program: ExportedProgram) -> None:
    """Puts other ops in the place of adaptive poolings, but for those to one voxel, which are means over axes."""
    for op in (aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default):
        expand(program, op, means, lambda node: any(length != 1 for length in node.args[1]))
    for op in (aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default):
        expand(program, op, maxima, lambda node: not _has_indices(node))


def means(x: Tensor, size: Sequence[int]) -> Tensor:
    """`[..., t, h, w]` -> `[..., *size]`."""
    rank = len(size)
    if all(length % n == 0 for length, n in zip(x.shape[-rank:], size, strict=True)):
        kernel = [length // n for length, n in zip(x.shape[-rank:], size, strict=True)]
        return (F.avg_pool3d if rank == 3 else F.avg_pool2d)(x, kernel)
    for axis, windows in _windows(x, size):
        x = torch.cat([x.narrow(axis, start, length).mean(axis, keepdim=True) for start, length in windows], axis)
    return x


def maxima(x: Tensor, size: Sequence[int]) -> tuple[Tensor, None]:
    """`[..., t, h, w]` -> `[..., *size]`, and no indices."""
    for axis, windows in _windows(x, size):
        x = torch.cat([x.narrow(axis, start, length).amax(axis, keepdim=True) for start, length in windows], axis)
    return x, None


def _windows(x: Tensor, size: Sequence[int]) -> list[tuple[int, list[tuple[int, int]]]]:
    """(axis, (start, length) of each window), of the axes that shrink or grow."""
    axes = []
    for axis, n in enumerate(size, x.dim() - len(size)):
        length = x.shape[axis]
        bounds = [(i * length // n, -(-(i + 1) * length // n)) for i in range(n)]
        if n != length:
            axes.append((axis, [(start, end - start) for start, end in bounds]))
    return axes


def _has_indices(node: Node) -> bool:
    return any(user.args[1] == 1 and user.users for user in node.users)
