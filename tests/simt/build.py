"""Compiles the emulated kernels, the fuzzer and the emulator's own test: `build.py VARIANT FOLDER [SOURCES]`.

In FOLDER lie then `fuzz` and `selftest`. SOURCES is the folder with csrc/ (this checkout). It needs g++ on x86-64.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import translate

HERE = Path(__file__).resolve().parent
VARIANTS = {  # flags of the kernels and of what links them
    "plain": ("-O2 -ffp-contract=off", ""),
    "fused": ("-O2 -ffp-contract=fast", ""),
    "asan": ("-O1 -ffp-contract=off -fsanitize=address,undefined", "-fsanitize=address,undefined"),
    "tsan": ("-O1 -ffp-contract=off -fsanitize=thread", "-fsanitize=thread"),
}
COMMON = "g++ -std=c++17 -g -mfma -mf16c -fno-strict-aliasing -w"
CPU = [  # the CPU's kernels, with which the fuzzer compares
    *("core/simd_level", "core/workspace", "ops/resample_plan", "ops/back_step_cpu", "ops/channel_reduce_cpu"),
    *("ops/convert_cpu", "ops/spline_upsample_cpu", "ops/sobel_temporal_cpu", "ops/selective_relevance_cpu"),
    *("ops/saliency_tube_cpu", "ops/levels/kernels_baseline"),
]


def build(variant: str, folder: Path, sources: Path = HERE.parents[1], known: Path | None = None) -> None:
    """What `known`, another folder of the same variant, was built from in the same state is taken from there."""
    kernels, link = VARIANTS[variant]
    translated, includes = folder / "csrc", f"-I{HERE / 'include'} -I{folder / 'csrc'} -I{folder / 'csrc/include'}"
    translate.main(sources / "csrc", translated)
    (folder / "self").mkdir(exist_ok=True)
    (folder / "self/selftest.cpp").write_text(translate.translated((HERE / "selftest.cu").read_text()))
    commands = {  # slowest first
        path.name.removesuffix(".cu.cpp"): f"{COMMON} {kernels} {includes} -c {path}"
        for path in sorted((translated / "ops").glob("*.cu.cpp"), key=lambda path: -path.stat().st_size)
    }
    units = list(commands)
    flags = "-O2 -fno-math-errno -fno-trapping-math"
    cpu = {name.rpartition("/")[2]: f"{COMMON} {flags} {includes} -c {translated / name}.cpp" for name in CPU}
    rest = {
        "engine": f"{COMMON} -O2 {includes} -c {HERE / 'engine.cpp'}",
        "fuzz": f"{COMMON} -O1 {link} {includes} -c {HERE / 'fuzz.cpp'}",
        "selftest": f"{COMMON} {kernels} {includes} -c {folder / 'self/selftest.cpp'}",
    }
    objects = {}
    for name in [*cpu, *rest, *units]:
        stays = known is not None and (name not in units or same_kernels(known / "csrc", translated, name))
        objects[name] = (known if stays else folder) / f"{name}.o"
    left = {name: command for name, command in (commands | cpu | rest).items() if objects[name].parent == folder}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda item: run(f"{item[1]} -o {objects[item[0]]}"), left.items()))
    linked = " ".join(str(objects[name]) for name in ["fuzz", "engine", *units, *cpu])
    run(f"g++ {link} {linked} -o {folder / 'fuzz'}")
    run(f"g++ {link} {objects['selftest']} {objects['engine']} -o {folder / 'selftest'}")


def same_kernels(a: Path, b: Path, unit: str) -> bool:
    """Whether a unit and every header beside it are the same."""
    files = [f"ops/{unit}.cu.cpp", *(str(path.relative_to(b)) for path in b.rglob("*.h"))]
    return all((a / name).read_text() == (b / name).read_text() for name in files)


def run(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command}\n{done.stderr}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    Path(arguments[1]).mkdir(parents=True, exist_ok=True)
    build(arguments[0], Path(arguments[1]), *map(Path, arguments[2:3]))
