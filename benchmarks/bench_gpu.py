"""CUDA kernels: time of the device, bytes moved against the device's own copy speed, and the best plain torch way.

Prints one JSON row per case (and writes them to the file named by --json). Cases are checked against the float64 twin
before they are timed. All are timed as CUDA graph replays, so that launch gaps of Python do not count. Cases of batch
1 fit into the cache: read their times, not their GB/s.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from clipsight import ops, reference

SIZE = (16, 224, 224)


def milliseconds(call: Callable, repeats: int = 30) -> float:
    """Median device time of one call, from events around graph replays."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph, inner = torch.cuda.CUDAGraph(), 10
    with torch.cuda.graph(graph):
        for _ in range(inner):
            call()
    times = []
    for _ in range(repeats + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / inner)
    return statistics.median(times[3:])


def copy_speed() -> float:
    """GB/s of a large device-to-device copy, bytes read and written."""
    source = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / milliseconds(lambda: target.copy_(source), 10) / 1e6


def upsampling(grid, size=SIZE):
    """Plain torch: three matrix products, the matrices ready on the device."""
    matrices = [torch.from_numpy(reference.basis(m, n).copy()).float().cuda() for m, n in zip(grid, size, strict=True)]

    return lambda volume: reference.separable(volume, *matrices)


def plain_tube(features, weight):
    """The best plain torch way: one product over the channels, three matrix products, min-max."""
    grid = features.shape[2:]
    upsample = upsampling(grid)

    def call():
        raw = upsample((weight @ features.flatten(2).float()).unflatten(2, grid))
        low, high = raw.amin((-3, -2, -1), True), raw.amax((-3, -2, -1), True)
        return (raw - low) / (high - low)

    return call


def cases():
    """(name, call, bytes that must move, plain torch call or None, check)"""
    for batch, maps in ((1, 1), (8, 5), (32, 5)):
        for dtype in (torch.float32, torch.float16):
            features = torch.randn(batch, 2048, 4, 7, 7, device="cuda").to(dtype)
            weight = torch.randn(maps, 2048, device="cuda")
            voxels = batch * maps * 16 * 224 * 224
            read = features.numel() * features.element_size()
            name = f"{batch}x2048x4x7x7 {str(dtype)[6:]}, {maps} maps"

            def reduce_(f=features, w=weight):
                return ops.channel_reduce(f, w)

            def check_reduce(got, f=features, w=weight):
                return got, reference.channel_reduce(f.double(), w.double())

            yield (
                f"channel_reduce {name}",
                reduce_,
                read,
                lambda f=features, w=weight: w.to(f.dtype) @ f.flatten(2),
                check_reduce,
            )
            last = features.contiguous(memory_format=torch.channels_last_3d)
            yield f"channel_reduce channels_last {name}", lambda f=last: reduce_(f), read, None, check_reduce
            if dtype == torch.float16:
                continue

            def check_tube(got, f=features, w=weight):
                return got[-1:], reference.saliency_tube(f[-1:].double(), w.double(), SIZE)

            tube = torch.empty(batch, maps, *SIZE, device="cuda")
            both = (tube, torch.empty_like(tube), torch.empty(batch, maps, device="cuda"))
            yield (
                f"saliency_tube {name}",
                lambda f=features, w=weight, o=tube: ops.saliency_tube(f, w, SIZE, out=o),
                read + 4 * voxels,
                plain_tube(features, weight),
                check_tube,
            )
            yield (
                f"selective_tube {name}",
                lambda f=features, w=weight, o=both: ops.selective_tube(f, w, SIZE, out=o)[0],
                read + 8 * voxels,
                None,
                check_tube,
            )
            yield (
                f"selective_tube memset {name}",
                lambda o=both: (o[0].zero_(), o[1].zero_())[0],
                8 * voxels,
                None,
                None,
            )
    volume = torch.randn(64, 16, 224, 224, device="cuda")
    moved = 2 * volume.numel() * 4
    yield (
        "sobel_temporal 64x16x224x224",
        lambda: ops.sobel_temporal(volume),
        moved,
        lambda: reference.sobel_temporal(volume),
        lambda got: (got[-1:], reference.sobel_temporal(volume[-1:].double())),
    )
    yield (
        "selective_relevance 64x16x224x224",
        lambda: ops.selective_relevance(volume)[0],
        moved,
        lambda: reference.selective_relevance(volume)[0],
        None,
    )
    small = torch.randn(64, 4, 56, 56, device="cuda")
    plain_upsample = upsampling(small.shape[1:])
    yield (
        "spline_upsample 64x4x56x56 -> 16x224x224",
        lambda: ops.spline_upsample(small, SIZE),
        4 * small.numel() + 4 * volume.numel(),
        lambda: plain_upsample(small),
        lambda got: (got[-1:], reference.spline_upsample(small[-1:].double(), SIZE)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    copy = copy_speed()
    rows = [{"device": torch.cuda.get_device_name(), "torch": torch.__version__, "copy_GB_s": round(copy)}]
    print(json.dumps(rows[0]))
    for name, call, moved, plain, check in cases():
        if check is not None:
            got, want = check(call())
            error = ((got.double() - want).norm() / want.norm()).item()
            if not error < 1e-5:
                raise SystemExit(f"{name}: the result must match the float64 twin to 1e-5, got {error:.2e}")
        time = milliseconds(call)
        row = {"case": name, "ours_ms": time, "GB_s": moved / time / 1e6, "of_copy_speed": moved / time / 1e6 / copy}
        if plain is not None:
            row |= {"baseline": "plain torch", "baseline_ms": milliseconds(plain, 10)}
            row["ratio"] = row["baseline_ms"] / time
        rows.append({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()})
        print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
