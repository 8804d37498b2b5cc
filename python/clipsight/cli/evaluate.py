"""The command `clipsight evaluate`: its options, the results of each video that it keeps, the tables that it prints."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from enum import Enum
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table as RichTable

from .. import __version__, many
from ..labels import check_count, read_labels
from ..manifest import weights_digest
from ..staging import check_folder
from ..text import short_name
from . import Checkpoint, Debug, Device, Frames, Labels, Loop, Model, Out, Partial, RandomWeights, Size, Stride, Threads
from .networks import CommandError, LiveModel, is_exported, load_live, parse_size, prepare_torch
from .printing import console, progress_bars, shown

if TYPE_CHECKING:
    from ..evaluation import Evaluation, Settings

RESULT = "result.json"


class Flow(str, Enum):
    dis = "dis"
    farneback = "farneback"


class Agreement(str, Enum):
    iou = "iou"
    first = "first"


class Baseline(str, Enum):
    blur = "blur"
    zero = "zero"


def evaluate(
    videos: Annotated[list[str], typer.Argument(help="MP4, AVI, GIF, folders of PNG or JPEG frames, or globs.")],
    model: Model = "movers",
    checkpoint: Checkpoint = None,
    methods: Annotated[
        str, typer.Option(help="Methods to measure, such as grad_cam,deep_taylor.")
    ] = "deep_taylor,grad_cam,guided_backprop,guided_grad_cam",
    layer: Annotated[
        str | None, typer.Option(help="Module path of the layer for the Grad-CAMs; default: in front of the pooling.")
    ] = None,
    n_sigma: Annotated[float, typer.Option(help="Selective maps: standard deviations; the paper's tables use 4.")] = 4,
    sweep: Annotated[str | None, typer.Option(help="Also draw curves: n_sigma=1,2,3,4.")] = None,
    floor: Annotated[
        str, typer.Option(help="Share of a clip's maximum that a relevant voxel exceeds, or quantile.")
    ] = "10/255",
    flow: Annotated[Flow, typer.Option(help="Optical flow.")] = Flow.dis,
    moving: Annotated[str, typer.Option(help="Pixels a frame above which a voxel moves, or frame_std.")] = "0.5",
    agreement: Annotated[
        Agreement, typer.Option(help="Intersection over union, or the share of the first method's voxels.")
    ] = Agreement.iou,
    explained: Annotated[
        str, typer.Option("--class", help="Class name or index, or predicted: the most probable of each video.")
    ] = "predicted",
    auc: Annotated[bool, typer.Option("--auc", help="Also insertion and deletion curves; slow.")] = False,
    auc_steps: Annotated[int, typer.Option(help="For --auc: runs of the network for each curve.")] = 50,
    auc_baseline: Annotated[
        Baseline, typer.Option(help="For --auc: what stands where a voxel is taken away.")
    ] = Baseline.blur,
    masks: Annotated[
        Path | None,
        typer.Option(help="Folder of ground truth, VIDEO.npz, VIDEO.png or VIDEO/ of PNG: for the pointing game."),
    ] = None,
    tolerance: Annotated[int, typer.Option(help="For --masks: pixels by which the pointing game may miss.")] = 0,
    repeats: Annotated[int, typer.Option(help="Timed runs of each video's first clip; 0 for no times.")] = 5,
    labels: Labels = None,
    out: Out = Path("evaluated"),
    stride: Stride = None,
    step: Annotated[
        int | None, typer.Option(help="Clip frames from one clip to the next; default: a whole clip.")
    ] = None,
    frames: Frames = None,
    size: Size = None,
    loop: Loop = False,
    partial: Partial = False,
    random_weights: RandomWeights = False,
    seed: Annotated[int, typer.Option(help="Of random weights; stated in every result.")] = 0,
    device: Device = "cpu",
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Measure explanation methods and their selective versions on many videos: precision, agreement, selectivity, cost.

    The tables of Hiley et al. (2020) for your own videos. Each video's numbers are kept as soon as they are there: the
    same command goes on where it was stopped. Maps are measured raw, clip by clip, then averaged over a video's clips.
    """
    import torch

    from ..evaluation import Evaluation, Evaluator, Masks, Settings, find_masks, plots
    from ..video import VideoReader
    from .explaining import write_json

    plots.package()  # an error now, not after the work
    check_folder(out)
    settings = Settings(
        methods=tuple(filter(None, (name.strip() for name in methods.split(",")))),
        layer=layer,
        n_sigma=n_sigma,
        sweep=read_sweep(sweep),
        floor=read_number("floor", floor, "quantile"),
        flow=flow.value,
        moving=read_number("moving", moving, "frame_std"),
        agreement=agreement.value,
        repeats=repeats,
        auc=auc_steps if auc else 0,
        auc_baseline=auc_baseline.value,
        tolerance=tolerance,
        step=step,
        loop=loop,
        seed=seed,
    )
    if auc and auc_steps < 1:
        raise CommandError(f"auc-steps: must be at least 1, got {auc_steps}")
    if masks and not masks.is_dir():
        raise CommandError(f"masks: must be a folder, got {masks}")
    if is_exported(model):
        raise CommandError(f"model: must be a network in Python, as a file has its methods built in, got {model}")
    prepare_torch(device, threads)
    torch.manual_seed(seed)
    overrides = {"frames": frames, "size": parse_size(size), "stride": stride}
    live = load_live(model, checkpoint, random_weights, **overrides)
    if labels:
        live.labels = read_labels(labels)
    index = read_class(explained, live.labels)
    others = {"checkpoint": checkpoint, "class": explained, "masks": masks and str(masks), "partial": partial}
    run = facts(live, settings, others | {"device": device, "threads": threads})
    with console.status("reading the videos"):
        jobs = [job(video, out / "videos", run, masks) for video in many.find_videos(videos)]
    evaluator = None
    if not all(many.is_done(job) for job in jobs):
        with console.status("preparing the methods"):
            evaluator = Evaluator(live.module, live.preprocessing, settings, device, live.channels)
        check_classes(evaluator.num_classes, index, live.labels)
    measured, failed, skipped = {}, [], 0
    with progress_bars() as bars:
        task = bars.add_task("videos", total=len(jobs), unit="videos")
        current = bars.add_task("this video", total=None, unit="clips", visible=evaluator is not None)

        def work(video: str, folder: Path) -> None:
            bars.reset(current)
            path = masks and find_masks(masks, video)
            result = evaluator(
                VideoReader(video, partial=partial),
                index,
                path and Masks(path),
                lambda done, total: bars.update(current, completed=done, total=total),
            )
            write_json(folder / RESULT, {"run": run, "machine": machine(device), **result})

        with contextlib.closing(many.run(jobs, lambda: work)) as outcomes:
            for outcome in outcomes:
                if outcome.state == "failed":
                    failed.append({"video": outcome.video, "error": outcome.error})
                    console.print(f"failed  {shown(outcome.video)}: [red]{shown(outcome.error)}[/]", soft_wrap=True)
                else:
                    measured[outcome.folder] = read_result(Path(outcome.folder))
                    skipped += outcome.state == "skipped"
                bars.advance(task)
    if not measured:
        raise CommandError(f"evaluate: none of {len(jobs)} videos could be measured; {failed[0]['error']}")
    evaluation = Evaluation(settings, run, [measured[j.folder] for j in jobs if j.folder in measured], failed)
    paths = evaluation.write(out)
    print_evaluation(evaluation, live.labels, skipped, out, paths)
    if failed:
        raise CommandError(
            f"evaluate: {len(failed)} of {len(jobs)} videos failed; the same command tries only those again"
        )


# ---- The options ----


def read_number(option: str, text: str, word: str) -> float | str:
    """`10/255` or `0.04` as a number; `word` as itself."""
    try:
        return text if text == word else float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise CommandError(f"{option}: must be a number such as 0.5 or 10/255, or {word}, got {text!r}") from None


def read_sweep(text: str | None) -> tuple[float, ...]:
    """`n_sigma=1,2,3,4` as numbers."""
    name, _, values = (text or "n_sigma=").partition("=")
    try:
        numbers = tuple(float(value) for value in values.split(",")) if text else ()
    except ValueError:
        numbers = None
    if name.strip() != "n_sigma" or numbers is None:
        raise CommandError(f"sweep: must be n_sigma=NUMBER,NUMBER,..., such as n_sigma=1,2,3,4, got {text!r}")
    return numbers


def read_class(text: str, labels: Sequence[str] | None) -> int | None:
    """Index of a class, or `None` for the predicted one of each video."""
    from .explaining import choose_classes

    chosen = choose_classes([text], labels)
    if isinstance(chosen, tuple):
        return chosen[0]
    if chosen != 1:
        raise CommandError(f"class: must be one class, or predicted, got {text!r}")
    return None


def check_classes(count: int, index: int | None, labels: Sequence[str] | None) -> None:
    """Raises ValueError where the class or the labels are not those of a network of `count` classes."""
    check_count(labels, count)
    if index is not None and index >= count:
        raise CommandError(f"class: index must lie in 0..{count - 1}, got {index}")


def facts(live: LiveModel, settings: Settings, options: dict[str, Any]) -> dict[str, Any]:
    """All that the numbers depend on besides the video, as every result states it; JSON-able."""
    return {
        "clipsight": __version__,
        "seed": settings.seed,
        "floor": settings.floor,
        "options": asdict(settings) | options,
        "model": {
            "name": live.name,
            "weights": weights_digest(live.module),
            "preprocessing": live.preprocessing.to_dict(),
        },
        "methods": [head.describe() for head in settings.heads().values()],
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "numpy", "opencv-python-headless")},
        },
    }


def machine(device: str) -> dict[str, Any]:
    """Where the times come from."""
    import torch

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return {"system": platform.platform(), "device": name, "threads": torch.get_num_threads()}


# ---- What is kept of each video ----


def job(video: str, folder: Path, run: dict[str, Any], masks: Path | None) -> many.Job:
    """A video's results lie in a folder of their own, keyed by its content, its masks' and the run."""
    path = Path(video)
    if not path.exists():
        raise CommandError(f"video: {video} does not exist")
    from ..evaluation import find_masks

    truth = masks and find_masks(masks, video)
    contents = [content(path), truth and content(truth)]
    key = hashlib.sha256(json.dumps([run, contents]).encode()).hexdigest()
    job = many.Job(video, str(folder / f"{short_name(path.stem)}-{key[:8]}"), key)
    if many.is_done(job):
        try:
            read_result(Path(job.folder))
        except ValueError:
            shutil.rmtree(job.folder)  # damaged, though of the right size
    return job


def content(path: Path) -> str:
    """Digest of a file, or of the names and contents of the files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.name.encode() if path.is_dir() else b"")
            digest.update(_digest(file))
    return digest.hexdigest()


def _digest(file: Path) -> bytes:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while part := opened.read(1 << 20):
            digest.update(part)
    return digest.digest()


def read_result(folder: Path) -> dict[str, Any]:
    """What `Evaluator` returned for a video. ValueError where the file is damaged."""
    return json.loads((folder / RESULT).read_text(encoding="utf-8"))


# ---- What is shown ----


def print_evaluation(
    evaluation: Evaluation, labels: Sequence[str] | None, skipped: int, out: Path, paths: list[Path]
) -> None:
    from .explaining import label_of

    for table in evaluation.tables:
        title = f"[bold]{shown(table.title)}[/]"
        grid = RichTable(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        for index, name in enumerate(table.header):
            grid.add_column(shown(name), justify="right" if index else "left")
        for row in table.rows:
            grid.add_row(*map(shown, row))
        console.print(grid)
        console.print(f"[dim]{shown(table.note)}[/]\n")
    for note in evaluation.notes:
        console.print(f"[yellow]note:[/] {shown(note)}")
    classes = sorted({video["class"] for video in evaluation.videos})
    named = ", ".join(label_of(k, labels) for k in classes[:6]) + (", ..." if len(classes) > 6 else "")
    before = f", {skipped} of the videos measured before" if skipped else ""
    console.print(f"{evaluation.size}{before}; explained: {shown(named)}")
    console.print(f"[bold]{shown(str(out))}/[/] {', '.join(path.name for path in paths)}")
