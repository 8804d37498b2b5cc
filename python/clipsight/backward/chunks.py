"""A sum over chunks of steps, which an ONNX file holds as a loop: the network once, however many chunks there are.

Torch's exporter writes loops down step by step. So where a graph is traced for ONNX, one op without a body stands for
the whole sum, and what a chunk adds to it is handed to the exporter, which traces that by itself.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

Part = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Chunks:
    """A sum that a traced graph has one op for.

    Attributes:
        part: what some steps add, a module: (clip `[N, ...]`, chosen as in `Evidence`, alphas `[S]`, shares `[S]`) to
            `[N, M, ...]`.
        steps: float64 `[steps, 2]`, alpha and share of each.
        chunk: how many of them are computed at once.
        inputs: shape and type of the clip and of chosen; lengths that are free are no integers.
        device: where they are.
    """

    part: nn.Module
    steps: np.ndarray
    chunk: int
    inputs: tuple[tuple[tuple[int | torch.SymInt, ...], torch.dtype], ...]
    device: torch.device

    @property
    def count(self) -> int:
        return -(-len(self.steps) // self.chunk)

    @property
    def can_stop_early(self) -> bool:
        """Whether the first `FEW` chunks are like all others: there are more, and the last one is no smaller."""
        return self.count > FEW and len(self.steps) % self.chunk == 0


# With two chunks a start that grows as the square of the loop's counter would go unseen.
FEW = 3

_EARLY = contextvars.ContextVar("early", default=False)
_APART: contextvars.ContextVar[list[Chunks] | None] = contextvars.ContextVar("apart", default=None)


@contextlib.contextmanager
def sums_apart() -> Iterator[list[Chunks]]:
    """In what is traced inside, each sum is one op; the list tells which, by the op's `index`."""
    found: list[Chunks] = []
    before = _APART.set(found)
    try:
        yield found
    finally:
        _APART.reset(before)


@contextlib.contextmanager
def stopping_early() -> Iterator[None]:
    """Sums that are computed inside end after a few chunks, where these are like all others."""
    before = _EARLY.set(True)
    try:
        yield
    finally:
        _EARLY.reset(before)


def sum_in_chunks(part: Part, weights: nn.Module, clip: Tensor, chosen: Tensor, steps: np.ndarray, chunk: int):
    """The sum of `part` over all steps, `[N, M, ...]`.

    Args:
        part: see `Chunks`; here any function.
        weights: the module whose weights it reads.
        clip, chosen, steps, chunk: as there.
    """
    apart = _APART.get()
    inputs = tuple((tuple(tensor.shape), tensor.dtype) for tensor in (clip, chosen))
    chunks = Chunks(_Part(part, weights), steps, chunk, inputs, clip.device)
    if apart is None or chunks.count == 1:
        count = FEW if _EARLY.get() and chunks.can_stop_early else chunks.count
        parts = (steps[i * chunk : (i + 1) * chunk].T for i in range(count))
        return sum_of(part(clip, chosen, *(clip.new_tensor(row) for row in rows)) for rows in parts)
    apart.append(chunks)
    return sum_of_chunks(clip, chosen, len(apart) - 1)


def sum_of(tensors: Iterator[Tensor]) -> Tensor:
    total = next(tensors)
    for tensor in tensors:
        total = total + tensor
    return total


@torch.library.custom_op("clipsight_onnx::sum_of_chunks", mutates_args=())
def sum_of_chunks(clip: Tensor, chosen: Tensor, index: int) -> Tensor:
    """The sum number `index` of those that are traced apart."""
    raise NotImplementedError("sum_of_chunks: must be in a graph that is traced for ONNX, got tensors with values")


@sum_of_chunks.register_fake
def _(clip: Tensor, chosen: Tensor, index: int) -> Tensor:
    return clip.new_empty(clip.shape[0], chosen.shape[-1], *clip.shape[1:])


class _Part(nn.Module):
    """A function, with the weights that it reads, as tracers want it."""

    def __init__(self, part: Part, weights: nn.Module) -> None:
        super().__init__()
        self.part, self.weights = part, weights

    def forward(self, clip: Tensor, chosen: Tensor, alphas: Tensor, shares: Tensor) -> tuple[Tensor]:
        return (self.part(clip, chosen, alphas, shares),)
