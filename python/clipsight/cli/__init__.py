"""The command `clipsight`: explain a video, export a network, print what a file holds, run the demo."""

from __future__ import annotations

import functools
import time
import warnings
from enum import Enum
from pathlib import Path
from typing import Annotated

try:
    import typer
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table
except ImportError as error:  # pragma: no cover - depends on what is installed
    raise SystemExit(
        f"error: the command line needs the extra 'video' ({error}): pip install 'clipsight[video]'"
    ) from error

from .networks import CommandError, ExportedNetwork, LiveNetwork, is_exported, load_live

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Where does a video network look? Heat, focus and motion maps from one forward pass.",
)
console = Console(stderr=True, highlight=False)


class Method(str, Enum):
    tube = "tube"
    motion = "motion"
    static = "static"


class Format(str, Enum):
    mp4 = "mp4"
    gif = "gif"
    png = "png"


class Scale(str, Enum):
    video = "video"
    window = "window"


Model = Annotated[str, typer.Option(help="movers, a torchvision name, package.module:factory, or an exported file.")]
Checkpoint = Annotated[str | None, typer.Option(help="Weights for the model: .safetensors or a torch state dict.")]
Classes = Annotated[
    list[str] | None, typer.Option("--class", help="Class name or index (repeat for several), predicted, or top3.")
]
Methods = Annotated[list[Method] | None, typer.Option("--method", help="What to show; repeat for several.")]
Feature = Annotated[str | None, typer.Option(help="Single features instead of the class: 12,40 or top3.")]
Frames = Annotated[int | None, typer.Option(help="Frames of a clip; default: the model's own.")]
Size = Annotated[str | None, typer.Option(help="Network input HxW, such as 224x224; default: the model's own.")]
Labels = Annotated[Path | None, typer.Option(help="Class names, one a line, in index order.")]
NSigma = Annotated[
    float | None, typer.Option(help="Motion: standard deviations that the temporal change must exceed. [default: 2]")
]
Threshold = Annotated[float | None, typer.Option(help="Smallest classifier weight of a channel that counts.")]
RandomWeights = Annotated[bool, typer.Option("--random-weights", help="Accept a network without trained weights.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def one_line_errors(command):
    """Exit code 1 and `error: ...` in one line, unless --debug."""

    @functools.wraps(command)
    def run(*args, debug: bool = False, **kwargs):
        if debug:
            return command(*args, debug=debug, **kwargs)
        try:
            return command(*args, debug=debug, **kwargs)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            typer.echo("error: interrupted; nothing half-written is left behind", err=True)
            raise typer.Exit(130) from None
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            ours = type(error).__module__.startswith("clipsight")
            expected = ours or isinstance(error, (ValueError, OSError, ImportError))
            typer.echo(f"error: {text}" if expected else f"error: {type(error).__name__}: {text}", err=True)
            raise typer.Exit(1) from None

    return run


@app.command()
@one_line_errors
def explain(
    video: Annotated[str, typer.Argument(help="MP4, AVI, GIF, or a folder of PNG or JPEG frames.")],
    model: Model = "movers",
    checkpoint: Checkpoint = None,
    classes: Classes = None,
    method: Methods = None,
    feature: Feature = None,
    boxes: Annotated[Path | None, typer.Option(help="Boxes to draw: JSON or CSV, frame,x,y,w,h[,label].")] = None,
    labels: Labels = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("explained"),
    stride: Annotated[int | None, typer.Option(help="Source frames from one frame of a clip to the next.")] = None,
    step: Annotated[int | None, typer.Option(help="Clip frames from one window to the next; default: half.")] = None,
    frames: Frames = None,
    size: Size = None,
    normalize: Annotated[Scale, typer.Option(help="One value range for the video, or one per window.")] = Scale.video,
    format: Annotated[
        Format, typer.Option(help="mp4, gif, or png: folders of pictures (focus with alpha).")
    ] = Format.mp4,
    raw: Annotated[bool, typer.Option("--raw", help="Also write the raw maps, maps.npz.")] = False,
    loop: Annotated[bool, typer.Option("--loop", help="Repeat a video that is shorter than one clip.")] = False,
    partial: Annotated[bool, typer.Option("--partial", help="Use what is whole of a damaged video.")] = False,
    fps: Annotated[float | None, typer.Option(help="Frame rate, for a folder of frames.")] = None,
    n_sigma: NSigma = None,
    threshold: Threshold = None,
    random_weights: RandomWeights = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads of the network.")] = None,
    debug: Debug = False,
) -> None:
    """Show where a network looks in a video: heat, focus and motion as video, a contact sheet, result.json."""
    from .. import render
    from ..video import VideoReader
    from ..windows import default_step
    from . import explaining

    started = time.perf_counter()
    reader = VideoReader(video, fps=fps, partial=partial)
    drawn_boxes = render.read_boxes(boxes) if boxes else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("once")
        network = _network(
            model, checkpoint, random_weights, frames, size, stride, feature, threshold, n_sigma, device, threads
        )
        if labels:
            network.labels = read_labels(labels)
        chosen = explaining.choose_classes(classes or [], network.labels)
        methods = [m.value for m in method or ([Method.tube, Method.motion] if network.has_motion else [Method.tube])]
        if not network.has_motion and set(methods) - {"tube"}:
            raise CommandError(f"method: {model} was exported without motion maps, so only tube can be shown")
        with _progress() as bars:
            every = step or default_step(network.preprocessing.frames)
            windows = _estimate_windows(reader.frame_count, network.preprocessing, every)
            task = bars.add_task("network", total=windows, unit="windows")
            done = explaining.run_network(
                network,
                reader,
                chosen,
                step=step,
                loop=loop,
                per_window=normalize is Scale.window,
                progress=lambda n: bars.update(task, completed=n, total=max(windows or n, n)),
            )
            drawing = bars.add_task("drawing", total=done.frame_count, unit="frames")
            draw_started = time.perf_counter()
            paths = explaining.draw(
                done,
                reader,
                network,
                methods,
                out,
                format=format.value,
                boxes=drawn_boxes,
                progress=lambda n: bars.update(drawing, completed=n),
            )
            draw_seconds = time.perf_counter() - draw_started
    said = dict.fromkeys(str(w.message) for w in caught)
    done.notes += [text for text in said if text.startswith("explain:")]
    if reader.cut_off:
        done.notes.append(f"the video is cut off or damaged: its first {done.frame_count} frames were used")
    if raw:
        paths.append(out / "maps.npz")
        explaining.write_raw(paths[-1], done, reader, network)
    paths.append(out / "result.json")
    report = {
        "video": {"path": video, "frames": done.frame_count, "fps": reader.fps, "size": list(reader.size)},
        "model": network.describe() | {"preprocessing": network.preprocessing.to_dict()},
        "options": {
            "methods": methods,
            "step": every,
            "normalize": normalize.value,
            "loop": loop,
        },
        "top": explaining.top_classes(done.probabilities, network.labels),
        "maps": [
            {"name": n, "motion_share": s}
            for n, s in zip(done.names, explaining.numbers(done.motion_share), strict=True)
        ],
        "windows": done.windows,
        "seconds": {
            "network": round(done.network_seconds, 4),
            "drawing": round(draw_seconds, 4),
            "all": round(time.perf_counter() - started, 4),
        },
        "notes": done.notes,
        "files": [path.name for path in paths],
    }
    explaining.write_json(paths[-1], report)
    _print_result(report, out)


@app.command()
@one_line_errors
def export(
    out: Annotated[Path, typer.Option(help="File to write: .onnx or .pt (TorchScript).")],
    model: Model = "movers",
    checkpoint: Checkpoint = None,
    classes: Classes = None,
    method: Methods = None,
    feature: Feature = None,
    frames: Frames = None,
    size: Size = None,
    labels: Labels = None,
    plugin: Annotated[bool | None, typer.Option(help="Fused kernels (needs our library); default: what suits.")] = None,
    raw_maps: Annotated[bool, typer.Option("--raw-maps", help="Unscaled maps, which long videos blend best.")] = False,
    n_sigma: NSigma = None,
    threshold: Threshold = None,
    random_weights: RandomWeights = False,
    debug: Debug = False,
) -> None:
    """Write a network and its maps as one file whose forward pass returns logits and saliency."""
    import torch

    import clipsight

    from .explaining import choose_classes

    live = load_live(model, checkpoint, random_weights, frames=frames, size=parse_size(size), stride=None)
    names = read_labels(labels) if labels else live.labels
    tube = clipsight.SaliencyTube(**_tube_options(feature, threshold), normalize="none" if raw_maps else "clip")
    wanted = {m.value for m in method or (Method.tube, Method.motion)}
    heads = [tube] if "tube" in wanted else []
    if wanted & {"motion", "static"}:
        part = "both" if {"motion", "static"} <= wanted else next(iter(wanted - {"tube"}))
        heads.append(
            clipsight.SelectiveRelevance(
                of=tube, n_sigma=2.0 if n_sigma is None else n_sigma, part=part, extras=("motion_share",)
            )
        )
    chosen: object = "input" if classes == ["input"] else choose_classes(classes or [], names)
    if isinstance(chosen, int):
        chosen = "predicted" if chosen == 1 else f"top{chosen}"
    example = torch.randn(1, 3, *live.preprocessing.size, generator=torch.Generator().manual_seed(0))
    with console.status(f"exporting {escape(model)} and checking the file"):
        explained = clipsight.explain(live.module, heads, example, chosen if isinstance(chosen, str) else list(chosen))
        manifest = clipsight.export(
            explained, out, plugin=plugin, labels=names, preprocessing=live.preprocessing, name=live.name
        )
    console.print(f"[bold]{escape(str(out))}[/]  {out.stat().st_size / 1e6:.1f} MB, checked against the live model")
    _print_manifest(manifest)


@app.command()
@one_line_errors
def info(
    file: Annotated[Path, typer.Argument(help="An exported file.")],
    as_json: Annotated[bool, typer.Option("--json", help="The manifest as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Print the manifest of an exported file: input, outputs, methods, labels, what it needs."""
    from ..manifest import read_manifest

    manifest = read_manifest(file)
    if as_json:
        typer.echo(manifest.to_json())
    else:
        _print_manifest(manifest)


@app.command()
@one_line_errors
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo"), debug: Debug = False
) -> None:
    """Render a clip, explain it with the shipped network, export it both ways, and check that all agree."""
    from ..demo import main as run_demo

    if code := run_demo(out):
        raise typer.Exit(code)


def _network(model, checkpoint, random_weights, frames, size, stride, feature, threshold, n_sigma, device, threads):
    if threads is not None and threads < 1:
        raise CommandError(f"threads: must be at least 1, got {threads}")
    overrides = {"frames": frames, "size": parse_size(size), "stride": stride}
    if is_exported(model):
        for name, value in {
            "checkpoint": checkpoint,
            "feature": feature,
            "threshold": threshold,
            "n-sigma": n_sigma,
        }.items():
            if value is not None:
                raise CommandError(f"{name}: is part of the exported file {model} and cannot be changed, got {value}")
        return ExportedNetwork(model, device, threads, **overrides)
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    live = load_live(model, checkpoint, random_weights, **overrides)
    return LiveNetwork(live, _tube_options(feature, threshold), 2.0 if n_sigma is None else n_sigma, device)


def _tube_options(feature: str | None, threshold: float | None) -> dict:
    channels: object = feature
    if feature is not None and not feature.startswith("top"):
        try:
            channels = tuple(int(c) for c in feature.split(","))
        except ValueError as error:
            raise CommandError(f"feature: must be channel numbers such as 12,40, or top3, got {feature!r}") from error
    return {"channels": channels, "threshold": threshold}


def parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise CommandError(f"size: must be HxW in pixels, such as 224x224, got {text!r}")
    return int(height), int(width)


def read_labels(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"labels: {path} must be a text file with one name a line ({error})") from error


def _estimate_windows(frame_count: int | None, preprocessing, step: int) -> int | None:
    if not frame_count:
        return None
    sampled = -(-frame_count // preprocessing.stride)
    return 1 + max(0, -(-(sampled - preprocessing.frames) // step))


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)


def _print_result(report: dict, out: Path) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in report["top"]:
        bar = "█" * round(24 * row["probability"])
        table.add_row(escape(row["label"]), f"{100 * row['probability']:5.1f} %", f"[cyan]{bar}[/]")
    console.print(table)
    for row in report["maps"]:
        if row["motion_share"] is not None:
            console.print(f"motion share of {escape(row['name'])}: {100 * row['motion_share']:.1f} %")
    for note in report["notes"]:
        console.print(f"[yellow]note:[/] {escape(note)}")
    seconds = report["seconds"]
    console.print(
        f"[bold]{escape(str(out))}/[/] {', '.join(report['files'])}  "
        f"({len(report['windows'])} windows in {seconds['network']:.1f} s, drawn in {seconds['drawing']:.1f} s)"
    )


def _print_manifest(manifest) -> None:
    """A `Manifest` for people; `clipsight info --json` has all of it."""
    clip, labels = manifest.input, manifest.labels
    sizes = " or ".join(str(["N", clip.channels, *size]).replace("'", "") for size in manifest.sizes)
    chosen = manifest.classes if isinstance(manifest.classes, str) else ", ".join(map(str, manifest.classes))
    names = f": {', '.join(labels[:6])}{', ...' if len(labels) > 6 else ''}" if labels else ""
    preprocessing = manifest.preprocessing.to_dict() if manifest.preprocessing else {}
    needs = f"{manifest.plugin.library} {manifest.plugin.minimum_version} or newer"
    checks = (manifest.self_check or {}).get("max_difference", {})
    rows = [("model", f"{manifest.model} ({manifest.kind}, clipsight {manifest.clipsight_version})")]
    rows += [("input", f"{clip.name} {clip.dtype} {sizes}")]
    if manifest.classes_input:
        rows += [("", f"{manifest.classes_input.name} {manifest.classes_input.dtype} [N, M]")]
    for i, output in enumerate(manifest.outputs):
        shape = str(list(output.shape)).replace("'", "")
        rows += [("" if i else "outputs", f"{output.name} {output.dtype} {shape} - {output.meaning}")]
    for i, method in enumerate(manifest.methods):
        options = _pairs({k: v for k, v in method.items() if k not in ("method", "of") and v not in (None, [], False)})
        rows += [("" if i else "methods", f"{method['method']}: {options}")]
    rows += [("explains", chosen), ("classes", f"{manifest.num_classes}{names}")]
    rows += [("features", f"{manifest.feature_shape}, {manifest.temporal_resolution} in time")]
    rows += [("frames", _pairs(preprocessing) or "no preprocessing given at export")]
    rows += [("needs", needs if manifest.plugin.required else "no library of ours")]
    rows += [("checked", f"largest difference from eager: {_pairs(checks)}" if checks else "no")]
    rows += [("built with", _pairs(manifest.built_with)), ("weights", manifest.weights_digest)]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, text in rows:
        table.add_row(key, escape(text))
    Console(highlight=False).print(table)


def _pairs(values: dict) -> str:
    return ", ".join(
        f"{key} {value:.2g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )


def main() -> None:
    app(prog_name="clipsight")
