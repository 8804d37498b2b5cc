"""The command `clipsight compare`: its options, and the table that it prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .. import cli
from ..staging import check_folder
from ..text import printable
from .networks import CommandError
from .printing import bar, console, progress_bars, shown, value_of


def compare(
    video: cli.Video,
    models: Annotated[str, typer.Option(help="Networks, such as tsn,r3d50.")] = "",
    model: Annotated[
        list[str] | None, typer.Option(help="One more network: a name, package.module:factory, or an exported file.")
    ] = None,
    checkpoint: Annotated[
        list[str] | None, typer.Option(help="Weights: NAME=FILE for one network, or a FILE for each, in order.")
    ] = None,
    labels: Annotated[
        list[str] | None, typer.Option(help="Class names: NAME=FILE for one network, or a FILE for all.")
    ] = None,
    classes: cli.Classes = None,
    map: cli.Map = None,
    layer: cli.Layer = None,
    boxes: cli.Boxes = None,
    out: cli.Out = Path("compared"),
    stride: cli.Stride = None,
    step: cli.Step = None,
    frames: cli.Frames = None,
    size: cli.Size = None,
    format: Annotated[cli.Format, typer.Option(help="mp4, gif, or png: a folder of pictures.")] = cli.Format.mp4,
    loop: cli.Loop = False,
    partial: cli.Partial = False,
    fps: cli.Fps = None,
    threshold: cli.Tau = None,
    random_weights: cli.RandomWeights = False,
    device: cli.Device = "cpu",
    threads: cli.Threads = None,
    debug: cli.Debug = False,
) -> None:
    """Show two networks side by side on the same frames, such as a 2-D and a 3-D one, and how much their maps change.

    The change is the share of a map's energy that changes over time, 0 for a map that stands still. It is measured on
    the raw maps, in the frames and the part of the picture that all networks saw.
    """
    from . import comparing
    from .request import Request

    check_folder(out)
    names = [*filter(None, (name.strip() for name in models.split(","))), *(model or ())]
    if len(names) < 2:
        raise CommandError(
            f"models: must be two networks or more, such as movers2d,movers, got {', '.join(names) or 'none'}"
        )
    shared = {
        "classes": tuple(classes or ()),
        "map": map,
        "layer": layer,
        "stride": stride,
        "step": step,
        "frames": frames,
        "size": size,
        "loop": loop,
        "partial": partial,
        "fps": fps,
        "threshold": threshold,
        "random_weights": random_weights,
        "device": device,
        "threads": threads,
    }
    if labels and len(labels) == 1 and not _is_named(labels[0], names):
        labels = labels * len(names)
    files = zip(
        names, per_model("checkpoint", checkpoint or (), names), per_model("labels", labels or (), names), strict=True
    )
    requests = [Request(model=name, checkpoint=own, labels=texts, **shared) for name, own, texts in files]
    with progress_bars() as bars:
        tasks = {}

        def progress(stage: str, completed: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(
                    printable(stage), total=None, unit="frames" if stage == "drawing" else "windows"
                )
            bars.update(tasks[stage], completed=completed)

        report = comparing.compare(requests, video, out, format.value, boxes and str(boxes), progress)
    print_comparison(report, out)


def per_model(option: str, texts: Sequence[str], models: Sequence[str]) -> list[str | None]:
    """The file for each model: from `NAME=FILE` for those that need one, or from a `FILE` for each, in order."""
    named = [text for text in texts if _is_named(text, models)]
    if texts and not named and len(texts) == len(models):
        return list(texts)
    files = dict(text.split("=", 1) for text in named)
    if not len(files) == len(named) == len(texts):
        raise CommandError(
            f"{option}: must be NAME=FILE once for a model (of {', '.join(models)}), or a FILE for each of the "
            f"{len(models)} models in order, got {', '.join(texts)}"
        )
    return [files.get(model) for model in models]


def _is_named(text: str, models: Sequence[str]) -> bool:
    name, sign, _ = text.partition("=")
    return bool(sign) and name in models


def print_comparison(report: dict, out: Path) -> None:
    table = Table("network", "explains", "probability", "temporal change", box=None, padding=(0, 2, 0, 0))
    for network in report["networks"]:
        for row in network["maps"]:
            change = row["temporal_change"]["video"]
            cells = shown(network["name"]), shown(row["name"]), value_of(row)
            table.add_row(*cells, f"{change:.3f}  {bar(change)}")
    console.print(table)
    for note in dict.fromkeys(
        [*report["notes"], *(f"{n['name']}: {text}" for n in report["networks"] for text in n["notes"])]
    ):
        console.print(f"[yellow]note:[/] {shown(note)}")
    where = report["measured_on"]["frames"]
    every = f", one in {where['every']}" if where["every"] > 1 else ""
    console.print(
        f"measured in frames {where['first']} to {where['last']}{every}, on {report['measured_on']['relevance']} maps"
    )
    console.print(f"[bold]{shown(str(out))}/[/] {', '.join(report['files'])}  ({report['seconds']:.1f} s)")
