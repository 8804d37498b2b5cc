"""`clipsight demo`: the main job from end to end on a clip whose truth is known."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from . import SaliencyTube, SelectiveRelevance, explain, export, get_library_path, load, models, onnx_session
from .cli.printing import shown
from .exporters import onnx, torchscript
from .manifest import LoadError, read_manifest, weights_digest
from .staging import staging
from .synthetic import MOTION_CLASSES, moving_shapes
from .video import VideoReader, VideoWriter

CLASS, SEED = "moves right", 4
FRAMES, SIDE, FPS = 48, 320, 24  # every third frame goes to the network
PLUGIN = "ONNX plug-in"
FILES = {"ONNX": "movers.onnx", PLUGIN: "movers_plugin.onnx", "TorchScript": "movers.pt"}
RESULTS = ("heat.mp4", "focus.mp4", "motion.mp4", "contact.png", "result.json")


def main(out: Path, show: Callable[..., AbstractContextManager] = lambda model, sizes: nullcontext()) -> int:
    """Writes everything into the folder `out`; returns the exit code.

    Args:
        out: the folder.
        show: gives an export's `progress` for as long as it takes, from the network's name and the clip's sizes.
    """
    console = Console(soft_wrap=True)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    video = out / "clip.mp4"
    _render(video)
    console.print(f"clip         {shown(video)}: {FRAMES} frames of {SIDE}x{SIDE}, the mover {CLASS}")

    model = models.load("movers")
    preprocessing = replace(model.preprocessing, stride=FRAMES // model.preprocessing.frames)
    example = torch.rand(1, 3, *preprocessing.size)
    tube = SaliencyTube()
    explained = explain(model, [tube, SelectiveRelevance(of=tube, extras=("motion_share",))], example)
    files = dict(FILES)
    try:
        get_library_path("onnxruntime")
    except LoadError as error:
        del files[PLUGIN]
        console.print(f"[yellow]without      {PLUGIN}: {shown(error)}")
    for format, name in files.items():
        reused = _is_current(out / name, explained)
        if not reused:
            facts = {"labels": model.labels, "preprocessing": preprocessing, "name": "movers"}
            with show("movers", [preprocessing.size]) as progress:
                export(explained, out / name, plugin=format != "ONNX", progress=progress, **facts)
        size = (out / name).stat().st_size
        console.print(
            f"{format:12} {shown(out / name)}: {size / 1e6:.2f} MB, {'reused' if reused else 'exported and checked'}"
        )

    difference = _explain_in_fresh_processes(video, out, files)
    console.print(
        f"agreement    maps of the {len(files)} files, each run in a process of its own: {difference:.1e} at most apart"
    )

    folder = out / "pyramid"
    _run("pyramid", video, "--stride", preprocessing.stride, "--class", CLASS, "--depth", "all", "--out", folder)
    kernels = len((folder / "kernels.csv").read_text().splitlines()) - 1
    console.print(
        f"pyramid      {shown(folder)}: {kernels} kernels in {len(explained.model.features) + 1} layers led to it;"
    )
    console.print(f"             open {shown(folder / 'pyramid.html')} to walk through them")

    result = json.loads((out / "result.json").read_text())
    table = Table("class", "probability", title=f"{video.name}: {result['video']['frames']} frames")
    for top in result["top"]:
        table.add_row(top["label"], f"{100 * top['probability']:.1f} %")
    console.print(table)
    table = Table("one forward, ms (median)", "plain", "explained", "difference")
    for format, (plain, ours) in _times(explained, out, files, example).items():
        table.add_row(format, f"{plain:.2f}", f"{ours:.2f}", f"{ours - plain:+.2f}")
    console.print(table)
    console.print("pictures     " + ", ".join(shown(out / name) for name in (*RESULTS, "pyramid/pyramid.png")))
    if difference > 1e-4:
        console.print(f"[red]demo: the files must agree to 1e-4, got {difference:.1e}")
        return 1
    return 0


def _render(path: Path) -> None:
    """A real MP4 of one generated clip, checked by decoding it again."""
    if not path.exists():
        clip = moving_shapes(1, SEED, FRAMES, SIDE, labels=[MOTION_CLASSES.index(CLASS)])
        with VideoWriter(path, FPS) as writer:
            for frame in clip.frames[0]:
                writer.write(frame)
    decoded = sum(1 for _ in VideoReader(path))
    if decoded != FRAMES:
        raise ValueError(f"demo: {path} must hold {FRAMES} frames, got {decoded}; delete it to render it again")


def _is_current(path: Path, explained) -> bool:
    """Whether the file is an earlier run's export of these very weights and methods."""
    if not path.exists():
        return False
    manifest = read_manifest(path)
    same = json.loads(json.dumps(explained.describe()))["methods"] == json.loads(manifest.to_json())["methods"]
    return same and manifest.weights_digest == weights_digest(explained.model)


def _explain_in_fresh_processes(video: Path, out: Path, files: dict[str, str]) -> float:
    """Runs `clipsight explain` once for each file; the largest difference between their maps (0..1)."""
    maps = []
    with staging(out / "explained") as folder:
        for name in files.values():
            results = folder / name
            _run("explain", video, "--model", out / name, "--out", results, "--raw")
            with np.load(next(results.glob("*.npz"))) as raw:
                maps.append(raw["maps"])
        for name in RESULTS:
            os.replace(folder / FILES["ONNX"] / name, out / name)
    return max(float(np.abs(other - maps[0]).max()) for other in maps[1:])


def _run(*arguments) -> None:
    """A command of clipsight in a process of its own."""
    command = [sys.executable, "-m", "clipsight", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            said, complaint = process.communicate()
        except BaseException:
            process.terminate()  # and it cleans up
            raise
    if process.returncode:
        raise ValueError(f"demo: `{' '.join(command)}` failed: {complaint or said}")


def _times(
    explained, out: Path, files: dict[str, str], clip: torch.Tensor, rounds: int = 20
) -> dict[str, tuple[float, float]]:
    """Median milliseconds of the plain and the explained forward, in turns, both as files of the same format."""
    plain = explained.plain_at(tuple(clip.shape[2:]))
    script = torchscript.convert(plain, (clip,))
    graph = onnx.convert(plain, (clip.expand(2, -1, -1, -1, -1),), ["logits"])
    times = {}
    with staging(out / "plain.onnx") as path:
        path.write_bytes(graph.SerializeToString())
        for format, name in files.items():
            if format == "TorchScript":
                calls = [lambda f=f: f(clip) for f in (script, load(out / name))]
            else:
                sessions = [onnx_session(file) for file in (path, out / name)]
                calls = [lambda s=s: s.run(None, {"clip": clip.numpy()}) for s in sessions]
            with torch.inference_mode():
                times[format] = _in_turns(calls, rounds)
    return times


def _in_turns(calls: list[Callable], rounds: int) -> tuple[float, ...]:
    times: list[list[float]] = [[] for _ in calls]
    for round in range(rounds + 3):
        for call, seen in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if round >= 3:
                seen.append((time.perf_counter() - start) * 1e3)
    return tuple(statistics.median(t) for t in times)
