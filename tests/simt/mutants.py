"""Takes one barrier, bound or check after the other out of the kernels: `mutants.py VARIANT BUILD [NAME ...]`.

BUILD is what build.py made of this checkout in that variant. The fuzzer must notice each: one that survives is a line
that it does not reach, or one that is not needed. A line of output each; the exit status is the number of survivors.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import build as builder

CASES = {"plain": 60, "asan": 40, "tsan": 60}
SECONDS = 240
ENVIRONMENT = {
    "TSAN_OPTIONS": "exitcode=66 halt_on_error=1",
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "halt_on_error=1",
}


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str  # in csrc/ops
    old: str
    new: str
    op: str  # of the fuzzer
    variant: str = "plain"  # that is sure to see it


MUTANTS = [
    Mutant("half a warp is summed", "channel_reduce_cuda.cu", "for (int step = kWarp / 2; step > 0; step /= 2) value",
           "for (int step = kWarp / 4; step > 0; step /= 2) value", "channel_reduce"),
    Mutant("columns beyond the tile are read", "channel_reduce_cuda.cu",
           "const bool active = column < tiles.packs && pack < tiles.packs_of_row;", "const bool active = true;",
           "channel_reduce", "asan"),
    Mutant("alignment is not looked at", "channel_reduce_cuda.cu",
           "aligned(args.features, vector * sizeof(T))", "true", "channel_reduce", "asan"),
    Mutant("maps beyond the last have weights of their own", "channel_reduce_cuda.cu",
           "__ldg(weight + (k < maps ? k : maps - 1) * args.channels + c)", "__ldg(weight + k * args.channels + c)",
           "channel_reduce", "asan"),
    Mutant("no barrier before the next map", "channel_reduce_cuda.cu",
           "      __syncthreads();  // the next map overwrites of_warp\n", "", "channel_reduce", "tsan"),
    Mutant("no barrier before the next item", "channel_reduce_cuda.cu",
           "      __syncthreads();  // the next item overwrites of_warp\n", "", "channel_reduce", "tsan"),
    Mutant("block_reduce: no first barrier", "block_cuda.h", "of_warp[threadIdx.x / 32] = value;\n  __syncthreads();",
           "of_warp[threadIdx.x / 32] = value;", "tube"),
    Mutant("block_reduce: no second barrier", "block_cuda.h",
           "  __syncthreads();  // the next call writes of_warp\n", "", "tube", "tsan"),
    Mutant("the prefilter does not wait for its rows", "spline_plan_cuda.cu",
           "cubic_prefilter(c + line * w, w, 1);\n  __syncthreads();", "cubic_prefilter(c + line * w, w, 1);", "tube"),
    Mutant("moments do not wait for the first product", "spline_plan_cuda.cu",
           "c[k * w + e % w]; });\n  }\n  __syncthreads();", "c[k * w + e % w]; });\n  }", "tube"),
    Mutant("the range takes enclosures too far in", "spline_plan_cuda.cu", "e.high > high_enough",
           "e.high > 2 * high_enough", "tube"),
    Mutant("the range leaves out a cell's last row", "spline_plan_cuda.cu", "last = min(end, begin + part)",
           "last = min(end, begin + part) - 1", "tube"),
    Mutant("the round of candidates is not ended", "spline_plan_cuda.cu",
           "    __syncthreads();  // the next round counts anew\n", "", "tube", "tsan"),
    Mutant("the tile does not wait for its stage", "saliency_tube_cuda.cu",
           "    if (state.finite) fill<kSelective>(plan, tiling, tile, stage);\n    __syncthreads();",
           "    if (state.finite) fill<kSelective>(plan, tiling, tile, stage);", "tube"),
    Mutant("the next tile does not wait", "saliency_tube_cuda.cu",
           "    __syncthreads();  // the next tile overwrites the stage\n", "", "tube", "tsan"),
    Mutant("a tile has a line too few", "saliency_tube_cuda.cu", "/ axis.length() + 1, axis.step()) + 4;",
           "/ axis.length() + 1, axis.step()) + 3;", "tube", "asan"),
    Mutant("the neighbor on the right is not staged", "saliency_tube_cuda.cu", "x <= tile.columns; x += blockDim.x",
           "x < tile.columns; x += blockDim.x", "tube"),
    Mutant("the alignment of motion is not looked at", "saliency_tube_cuda.cu",
           "aligned(args.tube, kPack) && aligned(args.motion, kPack)", "aligned(args.tube, kPack)", "tube", "asan"),
    Mutant("the last block does not wait for the others' sums", "motion_share_cuda.h",
           "    __threadfence();  // after what this thread has written\n", "", "tube", "tsan"),
    Mutant("an empty map has a share", "motion_share_cuda.h", "total == 0 ? 0.0f :", "false ? 0.0f :", "tube"),
    Mutant("no border in time", "sobel_march_cuda.h", "t = t < 0 ? 0 : size.t - 1;", "t = 0;", "sobel_temporal"),
    Mutant("a row's end reads on", "sobel_march_cuda.h", "const bool first = column == 0, last",
           "const bool first = false, last", "sobel_temporal"),
    Mutant("idle threads write", "sobel_march_cuda.h", "if (active) visit(", "visit(", "sobel_temporal", "tsan"),
    Mutant("the peak is not joined", "selective_relevance_cuda.cu", "most = fmax(most, all[i].peak)",
           "most = 0", "selective_relevance"),
    Mutant("product and difference are fused", "back_step_cuda.cu", "__fsub_rn(s[k], limit.low) >= limit.limit",
           "s[k] > limit.limit + limit.low", "back_step"),
    Mutant("counts are not cleared", "back_step_cuda.cu", "args.multiplicity[c] = 0;", ";", "back_step"),
    Mutant("channels beyond the width are kept", "back_step_cuda.cu", "if (j >= args.width) continue;", "", "back_step",
           "asan"),
]  # fmt: skip


def try_one(mutant: Mutant, variant: str, known: Path, folder: Path) -> str:
    """What the fuzzer says; empty where it sees nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(builder.HERE.parents[1] / "csrc", folder / "sources/csrc")
    source = folder / "sources/csrc/ops" / mutant.file
    text = source.read_text()
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.name}: must be in {mutant.file} once, got {text.count(mutant.old)}: {mutant.old}")
    source.write_text(text.replace(mutant.old, mutant.new))
    builder.build(variant, folder, folder / "sources", known)
    command = [folder / "fuzz", "21", str(CASES[variant]), mutant.op]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False, env=os.environ | ENVIRONMENT
        )
    except subprocess.TimeoutExpired:
        return f"still running after {SECONDS} s"
    if done.returncode == 0:
        return ""
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("simt:", "SUMMARY", "seed"))]
    return lines[-1] if lines else f"exit status {done.returncode}"


def main(variant: str, known: Path, names: list[str]) -> int:
    survivors = 0
    for mutant in MUTANTS:
        if mutant.variant != variant or (names and mutant.name not in names):
            continue
        said = try_one(mutant, variant, known, known.parent / f"mutant-{variant}")
        survivors += not said
        print(f"{mutant.name}: {said or 'SURVIVES'}", flush=True)
    return survivors


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
