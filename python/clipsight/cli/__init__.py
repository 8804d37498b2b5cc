"""The command `clipsight`: explain a video, export a network, print what a file holds, run the demo."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

try:
    import typer
except ImportError as error:  # pragma: no cover - depends on what is installed
    raise SystemExit(
        f"error: the command line needs the extra 'video' ({error}): pip install 'clipsight[video]'"
    ) from error

from .. import signals
from ..labels import read_labels
from ..layouts import shape_of
from ..staging import check_folder
from .ending import BROKEN_PIPE, one_line_errors
from .networks import CommandError, load_live, map_head, parse_size, read_target
from .printing import console, export_lines, print_manifest, print_outcome, print_result, progress_bars, shown

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Where does a video network look? Heat, focus and motion maps from one forward pass.",
)


class Method(str, Enum):
    tube = "tube"
    motion = "motion"
    static = "static"


class Format(str, Enum):
    mp4 = "mp4"
    gif = "gif"
    png = "png"


class Threshold(str, Enum):
    tau = "tau"
    n_sigma = "n_sigma"


class MapType(str, Enum):
    float32 = "float32"
    float16 = "float16"
    uint8 = "uint8"


class Probability(str, Enum):
    softmax = "softmax"
    sigmoid = "sigmoid"
    none = "none"


class HalfType(str, Enum):
    float16 = "float16"
    bfloat16 = "bfloat16"


class Scale(str, Enum):
    video = "video"
    window = "window"


Model = Annotated[
    str,
    typer.Option(help="A network by name (movers, i3d, r3d_18, ...), package.module:factory, or an exported file."),
]
Checkpoint = Annotated[str | None, typer.Option(help="Weights for the model: .safetensors or a file of torch.save.")]
Classes = Annotated[
    list[str] | None, typer.Option("--class", help="Class name or index (repeat for several), predicted, or top3.")
]
Methods = Annotated[list[Method] | None, typer.Option("--method", help="What to show; repeat for several.")]
Map = Annotated[
    str | None,
    typer.Option(
        help="Relevance map: saliency_tube, grad_cam, guided_backprop, guided_grad_cam, deep_taylor, lrp_epsilon, "
        "input_gradient, integrated_gradients. Default: saliency_tube, or a file's first."
    ),
]
Layer = Annotated[str | None, typer.Option(help="Module path of Grad-CAM's layer; default: the last features.")]
Target = Annotated[
    list[str] | None,
    typer.Option(
        help="Score to explain instead of the class's logit; repeat for several: against=CLASS or best_other, "
        "steps=mean, max or a step, layout=NKT, NTK or NT, heads=verb,noun."
    ),
]
ShownAs = Annotated[
    Probability | None,
    typer.Option("--probability", help="How logits are read; default: by what the network ends in, or its classes."),
]
Feature = Annotated[str | None, typer.Option(help="Single features instead of the class: 12,40 or top3.")]
Video = Annotated[str, typer.Argument(help="MP4, AVI, GIF, or a folder of PNG or JPEG frames.")]
Videos = Annotated[
    list[str],
    typer.Argument(
        help="MP4, AVI, GIF, or a folder of PNG or JPEG frames. Several, or a glob: a folder each in --out."
    ),
]
Boxes = Annotated[Path | None, typer.Option(help="Boxes to draw: JSON or CSV, frame,x,y,w,h[,label].")]
Out = Annotated[Path, typer.Option(help="Folder for the results.")]
Stride = Annotated[int | None, typer.Option(help="Source frames from one frame of a clip to the next.")]
Step = Annotated[int | None, typer.Option(help="Clip frames from one window to the next; default: half.")]
Frames = Annotated[int | None, typer.Option(help="Frames of a clip; default: the model's own.")]
Size = Annotated[str | None, typer.Option(help="Network input HxW, such as 224x224; default: the model's own.")]
Labels = Annotated[
    Path | None, typer.Option(help="Class names: one a line in index order; or CSV or JSON that has the indices.")
]
Loop = Annotated[bool, typer.Option("--loop", help="Repeat a video that is shorter than one clip.")]
Partial = Annotated[bool, typer.Option("--partial", help="Use what can be decoded of a damaged video.")]
Fps = Annotated[float | None, typer.Option(help="Frame rate, for a folder of frames, or in place of a video's times.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of a network.")]
NSigma = Annotated[
    float | None, typer.Option(help="Motion: standard deviations that the temporal change must exceed. [default: 2]")
]
Tau = Annotated[float | None, typer.Option("--threshold", help="Smallest classifier weight of a channel that counts.")]
RandomWeights = Annotated[bool, typer.Option("--random-weights", help="Accept a network without trained weights.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.command()
@one_line_errors
def explain(
    videos: Videos,
    model: Model = "movers",
    checkpoint: Checkpoint = None,
    classes: Classes = None,
    method: Methods = None,
    map: Map = None,
    layer: Layer = None,
    target: Target = None,
    probability: ShownAs = None,
    feature: Feature = None,
    boxes: Boxes = None,
    labels: Labels = None,
    out: Out = Path("explained"),
    stride: Stride = None,
    step: Step = None,
    frames: Frames = None,
    size: Size = None,
    normalize: Annotated[Scale, typer.Option(help="One value range for the video, or one per window.")] = Scale.video,
    format: Annotated[
        Format, typer.Option(help="mp4, gif, or png: folders of pictures (focus with alpha).")
    ] = Format.mp4,
    raw: Annotated[bool, typer.Option("--raw", help="Also write the raw maps, maps.npz.")] = False,
    loop: Loop = False,
    partial: Partial = False,
    fps: Fps = None,
    n_sigma: NSigma = None,
    threshold: Tau = None,
    random_weights: RandomWeights = False,
    device: Device = "cpu",
    threads: Threads = None,
    ray: Annotated[bool, typer.Option("--ray", help="Spread the videos over processes, with Ray Data.")] = False,
    ray_address: Annotated[
        str | None, typer.Option(help="A running Ray cluster, instead of one on this machine.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Show where a network looks in a video: heat, focus and motion as video, a contact sheet, result.json.

    Of several videos, those that an earlier run with the same model and options has finished are not done again.
    """
    from .. import many
    from .request import Request

    check_folder(out)
    request = Request(
        model=model,
        checkpoint=checkpoint,
        classes=tuple(classes or ()),
        methods=tuple(m.value for m in method or ()),
        map=map,
        layer=layer,
        target=tuple(target or ()),
        probability=probability and probability.value,
        feature=feature,
        boxes=boxes and str(boxes),
        labels=labels and str(labels),
        stride=stride,
        step=step,
        frames=frames,
        size=size,
        normalize=normalize.value,
        format=format.value,
        raw=raw,
        loop=loop,
        partial=partial,
        fps=fps,
        n_sigma=n_sigma,
        threshold=threshold,
        random_weights=random_weights,
        device=device,
        threads=threads,
    )
    found = many.find_videos(videos)
    if [*videos] == found and len(found) == 1 and not (ray or ray_address):
        reader, network = request.read(found[0]), request.open()
        with progress_bars() as bars:
            tasks = {"network": bars.add_task("network", total=None, unit="windows")}

            def progress(stage: str, completed: int, total: int | None) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage, unit="frames")
                bars.update(tasks[stage], completed=completed, total=total)

            report = request.explain(network, reader, out, progress)
        print_result(report, out)
    else:
        _explain_many(request, found, out, ray or bool(ray_address), ray_address)


def _explain_many(request, videos: list[str], out: Path, ray: bool, address: str | None) -> None:
    from .. import many

    if request.boxes:
        raise CommandError(f"boxes: belong to one video, got {len(videos)} videos")
    network = request.open()
    jobs = many.plan(videos, out, request.digest(network))
    resources = {"cpus": request.threads or 1, "gpus": int(request.device.startswith("cuda"))}
    failed = 0
    with progress_bars() as bars:
        task = bars.add_task("explaining", total=len(jobs), unit="videos")
        with contextlib.closing(many.run(jobs, request.worker, ray=ray, address=address, **resources)) as outcomes:
            for outcome in outcomes:
                print_outcome(outcome)
                failed += outcome.state == "failed"
                bars.advance(task)
    if failed:
        raise CommandError(f"explain: {failed} of {len(jobs)} videos failed; the same command tries only those again")


@app.command()
@one_line_errors
def export(
    out: Annotated[Path, typer.Option(help="File to write: .onnx, .pt (TorchScript) or .pt2 (AOTInductor).")],
    model: Model = "movers",
    checkpoint: Checkpoint = None,
    classes: Classes = None,
    method: Methods = None,
    map: Map = None,
    layer: Layer = None,
    target: Target = None,
    probability: ShownAs = None,
    feature: Feature = None,
    frames: Frames = None,
    size: Annotated[
        list[str] | None,
        typer.Option(help="Network input HxW; default: the model's own. Repeat it for a file of several."),
    ] = None,
    labels: Labels = None,
    plugin: Annotated[bool | None, typer.Option(help="Fused kernels (needs our library); default: what suits.")] = None,
    raw_maps: Annotated[bool, typer.Option("--raw-maps", help="Unscaled maps, which long videos blend best.")] = False,
    uint8_frames: Annotated[
        bool, typer.Option("--uint8-frames", help="Input is RGB bytes of any size; the graph resizes and normalises.")
    ] = False,
    output: Annotated[MapType | None, typer.Option(help="Type of the maps; default: float32.")] = None,
    optional: Annotated[
        bool, typer.Option("--optional", help="Add the input 'explain'; where it is false, no map is computed.")
    ] = False,
    half: Annotated[HalfType | None, typer.Option(help="Type of the network's weights, instead of its own.")] = None,
    input: Annotated[
        list[Threshold] | None, typer.Option(help="Threshold that becomes an input of the file; repeat for both.")
    ] = None,
    plain: Annotated[Path | None, typer.Option(help="Also write the network alone, to compare its cost.")] = None,
    triton: Annotated[
        Path | None, typer.Option(help="Also write a Triton model repository, or a model into one that exists.")
    ] = None,
    max_batch_size: Annotated[int, typer.Option(help="For --triton: most samples of one run.")] = 8,
    n_sigma: NSigma = None,
    threshold: Tau = None,
    random_weights: RandomWeights = False,
    debug: Debug = False,
) -> None:
    """Write a network and its maps as one file whose forward pass returns logits and saliency.

    The file is checked against the network before it appears; a terminal shows the steps: capture, write, check.
    """
    import torch

    import clipsight

    from ..triton import check_batch_size, model_folder, write_repository
    from .explaining import choose_class, choose_classes

    if triton:  # an error now, not after the export
        check_folder(triton, "triton")
        check_batch_size(max_batch_size)
        if out.suffix not in (".onnx", ".pt"):
            raise CommandError(f"triton: the file must be .onnx or .pt, got '{out.name}'")
        model_folder(triton, out.stem)
    first, *others = [parse_size(text) for text in size or [None]]
    live = load_live(model, checkpoint, random_weights, frames=frames, size=first, stride=None)
    names = read_labels(labels) if labels else live.labels
    head = map_head(map, feature, threshold, layer, "none" if raw_maps else "clip")
    wanted = {m.value for m in method or (Method.tube, Method.motion)}
    heads = [head] if "tube" in wanted else []
    if wanted & {"motion", "static"}:
        part = "both" if {"motion", "static"} <= wanted else next(iter(wanted - {"tube"}))
        heads.append(
            clipsight.SelectiveRelevance(
                of=head, n_sigma=2.0 if n_sigma is None else n_sigma, part=part, extras=("motion_share",)
            )
        )
    chosen: object = "input" if classes == ["input"] else choose_classes(classes or [], names)
    if isinstance(chosen, int):
        chosen = "predicted" if chosen == 1 else f"top{chosen}"
    wanted_score = read_target(target or (), probability and probability.value, lambda text: choose_class(text, names))
    shape = shape_of(1, live.channels, live.preprocessing.size, live.layout)
    example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sizes = [live.preprocessing.size, *((live.preprocessing.frames, *other) for other in others)]
    with export_lines(live.name, sizes) as progress:
        progress("capture", out)
        chosen = chosen if isinstance(chosen, str) else list(chosen)
        explained = clipsight.explain(live.module, heads, example, chosen, target=wanted_score, layout=live.layout)
        manifest = clipsight.export(
            explained,
            out,
            plugin=plugin,
            sizes=sizes,
            labels=names,
            preprocessing=live.preprocessing,
            name=live.name,
            frames="uint8" if uint8_frames else None,
            output=output and output.value,
            optional=optional,
            half=half.value if half else False,
            inputs=tuple(dict.fromkeys(name.value for name in input or ())),
            plain=plain,
            progress=progress,
        )
    console.print(f"[bold]{shown(str(out))}[/]  {out.stat().st_size / 1e6:.1f} MB, checked against the live model")
    print_manifest(manifest)
    if triton:
        folder = write_repository(out, triton, max_batch_size=max_batch_size)
        console.print(f"[bold]{shown(str(folder))}/[/]  for Triton; README.md there says how to start the server")


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
        print_manifest(manifest)


@app.command()
@one_line_errors
def demo(out: Out = Path("demo"), debug: Debug = False) -> None:
    """Render a clip, explain it with the shipped network, export it both ways, and check that all agree."""
    check_folder(out)
    from ..demo import main as run_demo

    if code := run_demo(out, export_lines):
        raise typer.Exit(code)


@app.command()
@one_line_errors
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="The findings and the build as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Say what was built, what this machine has, and what to do about what is missing; 1 where something is broken."""
    from .. import doctor as office

    findings = office.examine()
    if as_json:
        typer.echo(json.dumps(office.report(findings), indent=2))
    else:
        office.show(findings)
    if not office.healthy(findings):
        raise typer.Exit(1)


from .compare import compare  # noqa: E402 - commands in files of their own, with the options above
from .evaluate import evaluate  # noqa: E402
from .pyramid import pyramid  # noqa: E402

app.command()(one_line_errors(compare))
app.command()(one_line_errors(evaluate))
app.command()(one_line_errors(pyramid))


def main() -> None:
    signals.stop_by_exception()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the process
        getattr(sys, name).reconfigure(errors="backslashreplace")  # a terminal may lack a character
    try:
        app(prog_name="clipsight")
    except SystemExit:
        if signals.received():  # perhaps while the arguments were read
            sys.exit(signals.exit_code())
        raise
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries once more as it ends
            sys.exit(BROKEN_PIPE)
