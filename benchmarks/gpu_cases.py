"""What is measured on a GPU: each op on sizes of real networks, beside the best plain torch way."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipsight import ops, reference

SIZE = (16, 224, 224)
VOXELS = 16 * 224 * 224
GRID = (4, 7, 7)
CHANNELS = 2048
COPY = "copy of 1 GiB on the device"
VOLUME = (-3, -2, -1)
Checked = list[tuple[Tensor, Tensor, float]]  # what came, what the twin says, and how far they may be apart


@dataclass
class Case:
    """One row. `ours`, `plain` and `check` take what `make` returns: the inputs and outputs of one call, new each time.

    `timed`: "graph" for replays of a CUDA graph of many calls; "latency" for one call a graph, as the host waits for
    it; "events" for calls one after the other, which serves what cannot be captured: the twins copy constants from
    the host.
    """

    name: str
    moved: int  # bytes that must go through the device's memory
    make: Callable[[], tuple[Tensor, ...]]
    ours: Callable[..., Any]
    check: Callable[..., Checked]  # its first argument is what `ours` returned
    plain: Callable[..., Any] | None = None
    timed: str = "graph"
    plain_timed: str = "graph"


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda")


def poisoned(*shape: int) -> Tensor:
    """An output in which nothing that was left out can pass for a result."""
    return torch.full(shape, torch.nan, device="cuda")


@functools.lru_cache
def upsampling(grid: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """Plain torch: three matrix products, the matrices on the device from the first call on."""
    matrices = [torch.from_numpy(reference.basis(m, n).copy()).float().cuda() for m, n in zip(grid, SIZE, strict=True)]
    return lambda volume: reference.separable(volume, *matrices)


def plain_tube(features: Tensor, weight: Tensor, *_: Tensor) -> Tensor:
    """One product over the channels, three matrix products, min-max."""
    raw = upsampling(GRID)((weight @ features.flatten(2)).unflatten(2, GRID))
    low, high = raw.amin(VOLUME, True), raw.amax(VOLUME, True)
    return (raw - low) / (high - low)


def same(got: Tensor, want: Tensor) -> tuple[Tensor, Tensor, float]:
    """No value may differ."""
    return (got != want).sum(), torch.zeros((), device="cuda"), 0.0


def channel_reduce(batch: int, maps: int, dtype: torch.dtype, layout: torch.memory_format) -> Case:
    kind = "channels_last " if layout == torch.channels_last_3d else ""
    return Case(
        f"channel_reduce {kind}{batch}x2048x4x7x7 {str(dtype)[6:]}, {maps} maps",
        batch * CHANNELS * 196 * dtype.itemsize,
        lambda: (normal(batch, CHANNELS, *GRID).to(dtype).contiguous(memory_format=layout), normal(maps, CHANNELS)),
        ops.channel_reduce,
        lambda got, f, w: [(got, reference.channel_reduce(f.double(), w.double()), 1e-5)],
        None if kind else lambda f, w: w.to(f.dtype) @ f.flatten(2),
    )


def check_tube(tube: Tensor, features: Tensor, weight: Tensor, *_: Tensor) -> Checked:
    return [(tube[-1:], reference.saliency_tube(features[-1:].double(), weight.double(), SIZE), 1e-5)]


def check_selective(got: tuple[Tensor, ...], features: Tensor, weight: Tensor, *_: Tensor) -> Checked:
    """A voxel at the threshold may fall on either side, so what is selected is held by its share."""
    share = reference.selective_tube(features[-1:].double(), weight.double(), SIZE)[2]
    return [*check_tube(got[0], features, weight), (got[2][-1:], share, 1e-3)]


def tubes(batch: int, maps: int) -> Iterator[Case]:
    name, read, written = f"{batch}x2048x4x7x7, {maps} maps", 4 * batch * CHANNELS * 196, 4 * batch * maps * VOXELS

    def make_tube():
        return normal(batch, CHANNELS, *GRID), normal(maps, CHANNELS), poisoned(batch, maps, *SIZE)

    def make_selective():
        return *make_tube(), poisoned(batch, maps, *SIZE), poisoned(batch, maps)

    def tube(features, weight, out):
        return ops.saliency_tube(features, weight, SIZE, out=out)

    def selective(features, weight, *out):
        return ops.selective_tube(features, weight, SIZE, out=out)

    def memset(_, __, tube, motion, share):
        return tube.zero_(), motion.zero_()

    def all_zero(got, *_):
        return [same(x, torch.zeros_like(x)) for x in got]

    yield Case(f"saliency_tube {name}", read + written, make_tube, tube, check_tube, plain_tube)
    yield Case(f"selective_tube {name}", read + 2 * written, make_selective, selective, check_selective)
    yield Case(f"memset of selective_tube's outputs, {name}", 2 * written, make_selective, memset, all_zero)
    if batch == 1:
        one = (make_tube, tube, check_tube, plain_tube, "latency", "latency")
        yield Case(f"saliency_tube, latency, {name}", read + written, *one)
        one = (make_selective, selective, check_selective, None, "latency")
        yield Case(f"selective_tube, latency, {name}", read + 2 * written, *one)


def volumes() -> Iterator[Case]:
    moved = 2 * 4 * 64 * VOXELS
    yield Case(
        "sobel_temporal 64x16x224x224",
        moved,
        lambda: (normal(64, *SIZE),),
        ops.sobel_temporal,
        lambda got, v: [(got[-1:], reference.sobel_temporal(v[-1:].double()), 1e-5)],
        reference.sobel_temporal,
        plain_timed="events",
    )
    yield Case(
        "selective_relevance 64x16x224x224",
        moved,
        lambda: (normal(64, *SIZE),),
        ops.selective_relevance,
        lambda got, v: [(got[1][-1:], reference.selective_relevance(v[-1:].double())[1], 1e-3)],
        reference.selective_relevance,
        plain_timed="events",
    )
    yield Case(
        "spline_upsample 64x4x56x56 -> 16x224x224",
        4 * 64 * (4 * 56 * 56 + VOXELS),
        lambda: (normal(64, 4, 56, 56),),
        lambda v: ops.spline_upsample(v, SIZE),
        lambda got, v: [(got[-1:], reference.spline_upsample(v[-1:].double(), SIZE), 1e-5)],
        lambda v: upsampling((4, 56, 56))(v),
    )


def back_step() -> Case:
    """The edges, a byte each, are nearly all that moves."""
    n, m, c_out, c_in = 8, 5, 512, 2048
    return Case(
        f"back_step {n} clips, {m} maps, {c_in} -> {c_out} channels",
        n * m * c_out * c_in + 4 * (n + c_out) * c_in,
        lambda: (normal(n, c_in), normal(c_out, c_in), normal(n, m, c_out) > 1),
        lambda *inputs: ops.back_step(*inputs, 0.6),
        lambda got, *inputs: list(map(same, got, reference.back_step(*inputs, 0.6))),
        lambda *inputs: reference.back_step(*inputs, 0.6),
        plain_timed="events",
    )


def cases() -> Iterator[Case]:
    """The most telling ones first; the speed of a copy, which the others are compared with, in front."""
    yield Case(
        COPY,
        2 << 30,
        lambda: (normal(1 << 28), poisoned(1 << 28)),
        lambda source, target: target.copy_(source),
        lambda got, source, _: [same(got, source)],
        timed="events",  # in a graph the driver copies in another way, at two thirds of the speed on an H200
    )
    yield from tubes(1, 1)
    yield from tubes(64, 1)
    yield from volumes()
    for batch, maps in ((1, 1), (8, 5), (64, 1)):
        for dtype in (torch.float32, torch.float16):
            yield channel_reduce(batch, maps, dtype, torch.contiguous_format)
            yield channel_reduce(batch, maps, dtype, torch.channels_last_3d)
    yield back_step()
    yield from tubes(8, 5)
    yield from tubes(32, 5)
