"""The self-check: an exported file must say what the eager model says, and its maps must follow the input.

The file is loaded in its own runtime and compared on inputs that the export never saw: other values, other batch
sizes. Tracers can bake a tensor into a file as a constant without a word; a map that stays the same for other clips,
or for other classes or thresholds where those are inputs, is therefore an error too.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch
from torch import Tensor

from .program import Program, random_inputs

TOLERANCE = 1e-4  # of the largest value of an output, in float32
BORDER_VOXELS = 1e-3  # share of a masked map's voxels that may fall on the other side of their threshold
MASKED = ("motion", "static")

AMPLIFIED = 8  # times what rounding in the clip alone does to a map that amplifies it

Outputs = tuple[Tensor, ...]
Result = tuple[Outputs, Outputs, Outputs]  # expected, got, and expected of a clip that differs by rounding


class ExportError(RuntimeError):
    """The file could not be made, or it does not compute what the eager model computes; nothing was written."""


def self_check(program: Program, loaded, example: Tensor | None = None) -> dict[str, Any]:
    """Compares a loaded file with the eager program; the figures go into the manifest.

    Every input is tried: other classes, thresholds that differ between samples, and a batch of which nobody wants maps.

    Raises:
        ExportError: an output differs by more than its bound, or a map does not follow its input. The bound is 1e-4 of
            the output's largest value (more for half precision), one step for integers, 1e-3 for the motion share; in
            a motion or static map 0.1 % of the voxels may differ, those that lie on the threshold. Gates and divisions
            on the way back to the clip may turn a rounding error into a larger one at some voxels: the root mean square
            difference of such a map is held against what the eager model makes of a clip that differs by rounding.
    """
    worst: dict[str, float] = {}
    unmoved: set[str] = set()
    clips = 0
    for index, size in enumerate(program.sizes):
        runs = [random_inputs(program, size, batch, 1000 + 10 * index + batch) for batch in (1, 3)]
        if example is not None and program.sees(example) == tuple(size):
            runs.append(random_inputs(program, size, len(example), 7) | {program.input_names[0]: example})
        results = [_both(program, loaded, inputs) for inputs in runs]
        blank = _check_follows(program, results, size)
        for what, inputs in _variants(program, runs[1]).items():
            results.append(_both(program, loaded, inputs))
            if what != "explain":
                _check_moved(program, what, results[1], results[-1], blank, size)
        unmoved |= blank
        clips += sum(len(expected[0]) for expected, *_ in results)
        for result in results:
            _check_equal(program, result, size, worst)
    if unmoved:
        warnings.warn(
            f"export: {', '.join(sorted(unmoved))} had the same value everywhere on every random clip, so that export "
            "could not see whether it follows its input"
            + (
                "; the features have a single frame, nothing in the maps can move"
                if program.explained.temporal_resolution == 1
                else "; pass a real clip as example="
            ),
            stacklevel=3,
        )
    return {"clips": clips, "max_difference": worst, "not_checked_to_follow_input": sorted(unmoved)}


def half_difference(program: Program, loaded, exact) -> dict[str, dict[str, float]]:
    """How far a file in half precision is from the float32 model: largest and mean difference of each output.

    Both are shares of the output's largest value, over samples for which both explain the same classes.

    Raises:
        ExportError: a value that is finite in float32 is not in half precision.
    """
    inputs = random_inputs(program, program.sizes[0], 4, 99)
    whole = dataclasses.replace(program, explained=exact)
    expected, got, _ = _both(whole, loaded, inputs)
    same = torch.ones(len(got[0]), dtype=torch.bool)
    if exact.maps and not isinstance(exact.classes.choice, list):
        same = (expected[0].topk(exact.maps).indices.cpu() == got[0].topk(exact.maps).indices.cpu()).all(1)
    figures = {}
    for name, want, have in zip(program.output_names, expected, got, strict=True):
        want, have = want.double().cpu(), have.double().cpu()
        if bool((have.isfinite() < want.isfinite()).any()):
            raise ExportError(
                f"export: output '{name}' must be finite in half precision as in float32, got a number that is not; "
                "half='bfloat16' has the range of float32"
            )
        if name != "logits":
            want, have = want[same], have[same]
        if want.numel():
            difference = (want - have).abs() / want.abs().max().clamp_min(1e-30)
            largest, mean = (float(f"{figure.item():.2g}") for figure in (difference.max(), difference.mean()))
            figures[name] = {"max": largest, "mean": mean}
    return figures


def _variants(program: Program, inputs: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The same clips with one other input each."""
    explained, other = program.explained, {}
    if "classes" in inputs:
        other["classes"] = (inputs["classes"] + 1) % explained.num_classes
    if "tau" in inputs:
        other["tau"] = inputs["tau"].clone()
        other["tau"][::2] = explained.median_weight
    if "n_sigma" in inputs:
        n_sigma = inputs["n_sigma"]
        other["n_sigma"] = n_sigma * torch.linspace(0.5, 1.5, len(n_sigma), device=n_sigma.device) + 0.2
    if "explain" in inputs:
        other["explain"] = torch.zeros_like(inputs["explain"])
    return {name: inputs | {name: value} for name, value in other.items()}


def _both(program: Program, loaded, inputs: dict[str, Tensor]) -> Result:
    clip, *others = program.input_names
    try:
        got = loaded(inputs[clip], **{name: inputs[name] for name in others})
    except Exception as error:
        raise ExportError(
            f"export: the written file must run on {clip} {list(inputs[clip].shape)}, "
            f"got {type(error).__name__}: {error}"
        ) from error
    with torch.inference_mode():
        # Where rounding turns the gate of a feature pyramid, the eager model goes on as the file does.
        expected = program(**inputs, decisions=dict(zip(program.output_names, got, strict=False)))
        rounding = 8 * torch.finfo(program.explained.compute_dtype).eps
        return expected, got, program(**inputs, nudge=rounding) if program.sensitive else expected


def _check_follows(program: Program, results: list[Result], size) -> set[str]:
    """Names of maps without any structure, in the eager model too; raises where a map is baked in."""
    blank = set()
    for i, name in enumerate(program.output_names):
        if i and results[0][0][i].dim() != 5:
            continue  # small extra outputs may well be equal for several clips
        samples = [sample for _, got, _ in results for sample in got[i].float()]
        if all(bool((s == s.flatten()[0]).all()) for s in samples):
            blank.add(name)
        elif all(s.shape == samples[0].shape and torch.equal(s, samples[0]) for s in samples):
            _fail(
                name, size, "must change with the clip", "the same values for every clip: it is baked in as a constant"
            )
    return {
        name
        for i, name in enumerate(program.output_names)
        if name in blank and all(bool((s == s.flatten()[0]).all()) for e, *_ in results for s in e[i].float())
    }  # where only the file is blank, the comparison fails next


def _check_moved(program: Program, what: str, before: Result, after: Result, blank: set[str], size) -> None:
    """Raises where the eager model's maps change with an input and the file's do not."""
    maps = [i for i, r in enumerate(before[0]) if r.dim() == 5 and program.output_names[i] not in blank]
    moved = [i for i in maps if not torch.equal(before[0][i], after[0][i])]
    if moved and all(torch.equal(before[1][i], after[1][i]) for i in maps):
        _fail(program.output_names[moved[0]], size, f"must change with the input {what}", "the same map for others")


def _check_equal(program: Program, result: Result, size, worst: dict[str, float]) -> None:
    expected, got, nudged = result
    if len(got) != len(expected):
        raise ExportError(f"export: the file must return {len(expected)} outputs, got {len(got)}")
    computed_in = program.explained.compute_dtype
    decided = _classes_decided(program, expected[0], computed_in)
    for name, want, have, near in zip(program.output_names, expected, got, nudged, strict=True):
        if want.shape != have.shape or want.dtype != have.dtype:
            _fail(name, size, f"must be {want.dtype} {list(want.shape)}", f"{have.dtype} {list(have.shape)}")
        have = have.to(want.device)
        if name != "logits":
            want, have, near = want[decided], have[decided], near[decided]
        if want.numel() == 0:
            continue
        if name in program.sensitive and want.dim() == 5:
            _check_near(name, size, want, have, near, computed_in, worst)
            continue
        bound, share = _bound(name, want, computed_in)
        difference = (want.double() - have.double()).abs()
        difference[torch.isnan(want) & torch.isnan(have)] = 0
        difference = difference.nan_to_num(float("inf"))
        outside = (difference > bound).double().mean().item()
        if outside > share:
            rule = f"must agree with the eager model within {bound:.2g}" + (
                f" on all but {share:.1%} of the voxels" if share else ""
            )
            _fail(
                name,
                size,
                rule,
                f"a largest difference of {difference.max():.3g} ({outside:.2%} of the values are outside)",
            )
        agreeing = difference[difference <= bound]
        scale = bound / _tolerance(want, computed_in) if want.is_floating_point() else 1.0
        figure = agreeing.max().item() / scale if agreeing.numel() else 0.0
        worst[name] = max(worst.get(name, 0.0), float(f"{figure:.2g}"))


def _check_near(name: str, size, want: Tensor, have: Tensor, near: Tensor, computed_in, worst) -> None:
    """Root mean square differences, as shares of the map's own root mean square."""
    want, have, near = want.double(), have.double(), near.double()
    scale = want.square().mean().sqrt().clamp_min(1e-300)
    difference, rounding = (((t - want).square().mean().sqrt() / scale).item() for t in (have, near))
    bound = max(_tolerance(have.float(), computed_in), AMPLIFIED * rounding)
    if not difference <= bound and not (want.isnan().equal(have.isnan()) and bool(want.isnan().any())):
        rule = f"must agree with the eager model within {bound:.2g} (root mean square, as a share of the map's own)"
        _fail(name, size, rule, f"{difference:.3g}")
    worst[name] = max(worst.get(name, 0.0), float(f"{difference:.2g}"))


def _tolerance(want: Tensor, computed_in: torch.dtype) -> float:
    return max(TOLERANCE, 16 * torch.finfo(computed_in).eps, torch.finfo(want.dtype).eps)


def _bound(name: str, want: Tensor, computed_in: torch.dtype) -> tuple[float, float]:
    """(largest allowed difference, share of the values that may exceed it)."""
    rounding = 16 * torch.finfo(computed_in).eps
    part = name.rpartition(".")[2]
    share = max(BORDER_VOXELS, rounding) if part.startswith(MASKED) and want.dim() == 5 else 0.0
    if want.dtype == torch.bool or part in ("multiplicity", "chosen"):
        return 0.0, 0.0
    if not want.is_floating_point():
        return max(1.0, 255 * rounding if want.dtype == torch.uint8 else 0.0), share
    tolerance = _tolerance(want, computed_in)
    if part.startswith("motion_share"):  # as many voxels as may fall on the other side of the mask's threshold
        return max(tolerance, BORDER_VOXELS), 0.0
    largest = want.nan_to_num(0.0).abs().max().item()
    return tolerance * (largest if largest > 0 else 1.0), share


def _classes_decided(program: Program, logits: Tensor, computed_in: torch.dtype) -> Tensor:
    """[N]: samples whose explained classes do not hang on a difference between logits that rounding could turn."""
    explained = program.explained
    if program.classes_input or isinstance(explained.classes.choice, list) or explained.num_classes < 2:
        return torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    count = min((explained.maps or 0) + 1, explained.num_classes)
    ranked = logits.float().topk(count, 1).values
    gaps = (ranked[:, :-1] - ranked[:, 1:]).amin(1) if count > 1 else ranked[:, 0].new_full((len(logits),), torch.inf)
    return gaps > 2 * _tolerance(logits, computed_in) * logits.abs().max().float()


def _fail(name: str, size, rule: str, got: str) -> None:
    raise ExportError(f"export: output '{name}' {rule} (clips of {list(size)}), got {got}")
