"""`python -m studies`: measures, then writes the page and its figures; about twenty minutes of processor time."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch

from clipsight import heads

from . import figures, generated, page

FLOOR = 10 / 255
SEED = 3_000_000_000  # far from every seed of training and of the tests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(": ")[2])
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the page")
    parser.add_argument("--clips", type=int, default=160)
    parser.add_argument("--accuracy-clips", type=int, default=1000)
    parser.add_argument("--methods", default=",".join(heads.METHODS))
    parser.add_argument("--data", type=Path, help="a folder of real clips, measured too")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--shown", type=int, default=8, help="index of the clip in the picture of all maps")
    parser.add_argument("--page-only", action="store_true", help="page and figures anew from the results of last time")
    args = parser.parse_args()

    folder = args.out / "motion-study"
    folder.mkdir(parents=True, exist_ok=True)
    if not args.page_only:
        (folder / "results.json").write_text(json.dumps(measure(args)) + "\n")
    results = json.loads((folder / "results.json").read_text())
    methods = list(results["settings"]["methods"])
    (args.out / "motion-study.md").write_text(page.page(results), encoding="utf-8")
    figures.clip_maps(folder / "maps.png", results["settings"]["seed"], results["settings"]["shown"], methods)
    for draw in (figures.roc, figures.bars, figures.where):
        draw(folder / f"{draw.__name__}.png", results["generated"], methods)
    print(f"wrote {args.out / 'motion-study.md'}")


def measure(args: argparse.Namespace) -> dict:
    start, methods = time.perf_counter(), args.methods.split(",")

    def report(text: str) -> None:
        print(f"{time.perf_counter() - start:5.0f} s  {text}", flush=True)

    results = {
        "settings": {
            "command": "make study" + (" DATA=<folder of the clips>" if args.data else ""),
            "clips": args.clips,
            "accuracy_clips": args.accuracy_clips,
            "seed": args.seed,
            "floor": FLOOR,
            "shown": args.shown,
            "methods": {name: heads.METHODS[name](normalize="none").describe() for name in methods},
            "machine": f"{processor()}, {torch.get_num_threads()} thread(s)",
            "torch": torch.__version__,
        },
        "accuracy": generated.accuracies(args.accuracy_clips, args.seed + 1, args.batch),
        "generated": generated.study(args.clips, args.seed, methods, FLOOR, args.batch, report),
    }
    if args.data:
        from . import real

        results["real"] = real.study(args.data, args.seed, methods, FLOOR, args.batch, report)
    return results


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
