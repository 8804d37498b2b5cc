"""The command `clipsight pyramid`: its options, and the tables that it prints."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from .. import cli
from ..labels import named
from ..staging import check_folder
from .networks import CommandError
from .printing import console, shown

if TYPE_CHECKING:
    from .tracing import Traced


class Volumes(str, Enum):
    layer = "layer"
    feature = "feature"
    group = "group"
    channel = "channel"


def pyramid(
    video: cli.Video,
    model: cli.Model = "movers",
    checkpoint: cli.Checkpoint = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="Class name or index, predicted, or top3. Two are compared: insert,put."),
    ] = None,
    theta: Annotated[
        float | None, typer.Option(help="Share of the range above which an input counts, 0 to 1. [default: 0.6]")
    ] = None,
    depth: Annotated[str | None, typer.Option(help="Layers, the classifier included, or all. [default: 3]")] = None,
    volumes: Annotated[
        Volumes | None, typer.Option(help="Tubes of whole layers, or of their groups, kernels or channels.")
    ] = None,
    channel: Annotated[
        list[str] | None,
        typer.Option(help="LAYER:INDEX of a channel that the layer reads, or of a kernel (--volumes feature); repeat."),
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(help="Layer or block to draw, instead of all; repeat for several.")
    ] = None,
    start: Annotated[
        int | None, typer.Option(help="First source frame of the clip; default: where the class is most probable.")
    ] = None,
    labels: cli.Labels = None,
    out: cli.Out = Path("pyramid"),
    stride: cli.Stride = None,
    frames: cli.Frames = None,
    size: cli.Size = None,
    loop: cli.Loop = False,
    partial: cli.Partial = False,
    fps: cli.Fps = None,
    random_weights: cli.RandomWeights = False,
    device: cli.Device = "cpu",
    threads: cli.Threads = None,
    debug: cli.Debug = False,
) -> None:
    """Trace a class through the layers of a network: its kernels as a graph, as pictures, and as a page to explore.

    Class Feature Pyramids (Stergiou et al., 2019) of one clip of the video; several classes are compared.
    """
    from ..pyramid.graph import package
    from . import tracing
    from .explaining import choose_classes
    from .request import Request

    for name in ("networkx", "matplotlib"):
        package(name)  # an error now, not after the work
    check_folder(out)
    request = Request(
        model=model,
        checkpoint=checkpoint,
        labels=labels and str(labels),
        stride=stride,
        frames=frames,
        size=size,
        loop=loop,
        partial=partial,
        fps=fps,
        random_weights=random_weights,
        device=device,
        threads=threads,
    )
    reader = request.read(video)
    network = tracing.open_network(request, _options(theta, depth, volumes, channel), tuple(layer or ()))
    wanted = choose_classes(_split(classes or [], network.labels), network.labels)
    with console.status("looking for the clip") as status:
        window, shot, chosen, how = tracing.find_clip(network, reader, wanted, start, loop)
        status.update("tracing")
        traced = network.trace(window.clip, chosen)
        status.update("drawing")
        paths, notes = tracing.write(traced, shot, reader, network, how, out)
    last = shot.start + len(shot.frames) - 1
    console.print(f"clip: frames {shot.start} to {last}, {shown(how)}")
    _print(traced)
    for note in notes:
        console.print(f"[yellow]note:[/] {shown(note)}")
    tubes = sum(path.suffix == ".mp4" for path in paths)
    names = ", ".join(shown(path.name) for path in paths if path.suffix != ".mp4")
    console.print(f"[bold]{shown(str(out))}/[/] {names}; tubes (MP4): {tubes}")


def _options(theta: float | None, depth: str | None, volumes: Volumes | None, channel: list[str] | None) -> dict:
    """Those of `FeaturePyramid` that were given."""
    options: dict = {"theta": theta, "volumes": volumes and volumes.value}
    if depth is not None:
        if not re.fullmatch("all|[0-9]{1,9}", depth):
            raise CommandError(f"depth: must be a number of layers, or all, got {depth!r}")
        options["depth"] = depth if depth == "all" else int(depth)
    if channel:
        pairs = [text.rpartition(":") for text in channel]
        for text, (name, _, index) in zip(channel, pairs, strict=True):
            if not (name and re.fullmatch("[0-9]{1,9}", index)):
                raise CommandError(f"channel: must be LAYER:INDEX, such as features.4.0:12, got {text!r}")
        options["volumes"] = options["volumes"] or "channel"
        if options["volumes"] not in ("channel", "feature"):
            raise CommandError(f"channel: goes with --volumes channel or feature, got {options['volumes']}")
        options["channels"] = tuple((name, int(index)) for name, _, index in pairs)
    return {name: value for name, value in options.items() if value is not None}


def _split(texts: list[str], labels: Sequence[str] | None) -> list[str]:
    """`insert,put` as two classes, unless that is the name of one."""
    parts = ([text] if named(text, labels) else text.split(",") for text in texts)
    return [part.strip() for own in parts for part in own]


def _print(traced: Traced) -> None:
    """A table of the layers; of two classes, what they share."""
    for pyramid in traced.pyramids:
        probability = traced.reading.in_words(traced.probabilities[pyramid.class_index])
        console.print(f"[bold]{shown(pyramid.label)}[/]  {probability}")
    if len(traced.pyramids) == 1:
        table = Table("depth", "layer", "selected", "of", "connections", box=None, padding=(0, 2, 0, 0))
        for step in traced.pyramids[0]:
            numbers = step.mask.sum(), step.layer.channels, step.edges.sum()
            table.add_row(str(step.layer.depth), shown(step.layer.name), *(f"{n:,}" for n in numbers))
        console.print(table)
    for first, second in itertools.combinations(traced.pyramids, 2):
        only = [f"only {shown(pyramid.label)}" for pyramid in (first, second)]
        table = Table("depth", "layer", "shared", *only, box=None, padding=(0, 2, 0, 0))
        for step, parts in zip(first, first.compare(second).values(), strict=True):
            table.add_row(str(step.layer.depth), shown(step.layer.name), *(f"{len(c):,}" for c in parts.values()))
        console.print(table)
