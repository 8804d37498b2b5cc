"""What the command line shows: progress, the result of a video, a manifest."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..targets import in_words
from ..text import printable


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would end the process here


console = _Console(stderr=True, highlight=False)


def shown(text: object) -> str:
    """A text from outside (a label, a file name), which no terminal and no markup of rich's takes for a command."""
    return escape(printable(text))


def bar(share: float) -> str:
    """A share of 0 to 1 as a bar of up to 24 characters."""
    return f"[cyan]{('#' if console.options.ascii_only else '█') * round(24 * share)}[/]"


def value_of(row: dict) -> str:
    """The probability of a class in a result, or its score where it has no probability; nothing for no class."""
    share, score = row.get("probability"), row.get("score")
    return f"{100 * share:.1f} %" if share is not None else "" if score is None else f"{score:.4g}"


def progress_bars() -> Progress:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_interactive)


@contextmanager
def export_lines(model: str, sizes: Sequence[tuple[int, int, int]]) -> Iterator[Callable[[str, Path], None]]:
    """The `progress` of an export that shows on a terminal what is going on, and leaves a line with its seconds."""
    where = " and ".join("x".join(map(str, size)) for size in sizes)
    phase, text, start = "", "", 0.0

    def finish() -> None:
        if phase and console.is_terminal:
            console.print(f"{text} ... {time.perf_counter() - start:.1f} s")

    with console.status("") as status:

        def begin(next: str, file: Path) -> None:
            nonlocal phase, text, start
            if next == phase:  # the command has begun it already
                return
            finish()
            phase, start = next, time.perf_counter()
            text = shown(f"{phase} {f'{model} at {where}' if phase == 'capture' else file}")
            status.update(f"{text} ...")

        yield begin
        finish()


def print_result(report: dict, out: Path) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in report["top"]:
        table.add_row(shown(row["label"]), f"{value_of(row):>7}", bar(row.get("probability", 0)))
    console.print(table)
    for row in report["maps"]:
        if row["motion_share"] is not None:
            console.print(f"motion share of {shown(row['name'])}: {100 * row['motion_share']:.1f} %")
    for note in report["notes"]:
        console.print(f"[yellow]note:[/] {shown(note)}")
    seconds = report["seconds"]
    console.print(
        f"[bold]{shown(str(out))}/[/] {', '.join(report['files'])}  "
        f"({len(report['windows'])} windows in {seconds['network']:.1f} s, drawn in {seconds['drawing']:.1f} s)"
    )


def print_outcome(outcome) -> None:
    """One line for one of many videos."""
    text = f"{outcome.state:7} {shown(outcome.video)}: "
    if outcome.state == "failed":
        text += f"[red]{shown(outcome.error)}[/]"
    else:
        top = json.loads((Path(outcome.folder) / "result.json").read_text(encoding="utf-8"))["top"][0]
        text += f"{shown(top['label'])} {value_of(top)}  [bold]{shown(outcome.folder)}/[/]"
        text += f"  (attempt {outcome.attempts})" if outcome.attempts > 1 else ""
    console.print(text, soft_wrap=True)


def print_manifest(manifest) -> None:
    """A `Manifest` for people; `clipsight info --json` has all of it."""
    labels = manifest.labels
    classes = manifest.classes if isinstance(manifest.classes, list) else []
    classes = [" + ".join(map(str, each)) if isinstance(each, list) else str(each) for each in classes]
    chosen = ", ".join(classes) or manifest.classes
    names = f": {', '.join(labels[:6])}{', ...' if len(labels) > 6 else ''}" if labels else ""
    preprocessing = manifest.preprocessing.to_dict() if manifest.preprocessing else {}
    needs = f"{manifest.plugin.library} {manifest.plugin.minimum_version} or newer"
    checks = (manifest.self_check or {}).get("max_difference", {})
    defaults = {option.name: f", default {option.default:.4g}" for option in manifest.option_inputs}
    rows = [("model", f"{manifest.model} ({manifest.kind}, clipsight {manifest.clipsight_version})")]
    for i, port in enumerate(manifest.input_ports):
        more = defaults.get(port.name, "") if i else f", {manifest.input.layout}"
        rows += [("" if i else "inputs", f"{port.name} {port.dtype} {_shape(port.shape)}{more}")]
    rows += [("sizes", " or ".join("x".join(map(str, size)) for size in manifest.sizes))]
    for i, output in enumerate(manifest.outputs):
        rows += [("" if i else "outputs", f"{output.name} {output.dtype} {_shape(output.shape)} - {output.meaning}")]
    for i, method in enumerate(manifest.methods):
        options = _pairs({k: v for k, v in method.items() if k not in ("method", "of") and v not in (None, [], False)})
        rows += [("" if i else "methods", f"{method['method']}: {options}")]
        rows += [("", f"  of {_spot(spot)}") for spot in manifest.explains[i : i + 1]]
    words = in_words(manifest.target)
    stripped = manifest.target.get("stripped")
    read = manifest.probability + (f", the {stripped} at the end of the network was taken off" if stripped else "")
    rows += [("explains", f"{chosen}: {words}" if words else chosen), ("classes", f"{manifest.num_classes}{names}")]
    rows += [("probability", read)]
    rows += [("features", f"{manifest.feature_shape}, {manifest.temporal_resolution} in time")]
    rows += [("frames", _pairs(preprocessing) or "no preprocessing given at export")]
    rows += [("options", _pairs({k: v for k, v in manifest.options.items() if v not in (None, False)}) or "none")]
    rows += [("needs", needs if manifest.plugin.required else "no library of ours")]
    rows += [("checked", f"largest difference from eager: {_pairs(checks)}" if checks else "no")]
    rows += [("built with", _pairs(manifest.built_with)), ("weights", manifest.weights_digest)]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, text in rows:
        table.add_row(key, shown(text))
    _Console(highlight=False).print(table)


def _shape(shape) -> str:
    return str(list(shape)).replace("'", "")


def _pairs(values: dict) -> str:
    return ", ".join(
        f"{key} {value:.2g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )


def _spot(spot: dict) -> str:
    """What a method explains."""
    layer = f"'{spot['layer']}' ({spot['op']})" if spot["layer"] else f"the {spot['op']}"
    return f"{layer}, {spot['channels']} x {' x '.join(map(str, spot['grid']))}"
