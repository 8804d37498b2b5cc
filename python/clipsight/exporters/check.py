"""The self-check: an exported file must say what the network says, and its maps must follow the input.

The file is loaded in its own runtime and compared on inputs that the export never saw: other values, other batch
sizes. Tracers can bake a tensor into a file as a constant without a word; a map that stays the same for other clips,
or for other classes or thresholds where those are inputs, is therefore an error too. So are numbers that are not
finite, samples of a batch that depend on each other, and logits that are not those of the network's own code: in the
eager model, which is made of the same captured graph as the file, these would be no less wrong.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import runtime
from ..errors import first_line
from ..foreign import in_words_of_ours
from ..suspects import first_not_finite, mixes_samples, not_finite
from .program import Program, random_inputs

TOLERANCE = 1e-4  # of the largest value of an output, in float32
BORDER_VOXELS = 1e-3  # share of a masked map's voxels that may fall on the other side of their threshold
MASKED = ("motion", "static")

AMPLIFIED = 8  # times what rounding in the clip alone does to a map that amplifies it
UNLIKE = 0.5  # of a map's deviation: what no few gates do that rounding turns, and any other clip's map does

Outputs = tuple[Tensor, ...]


class ExportError(RuntimeError):
    """The file could not be made, or it does not compute what the eager model computes; nothing was written."""


class Run:
    """One call of the loaded file, beside what the eager program says of the same inputs.

    The program costs as much as the file, so it is asked only for what a comparison needs.

    Attributes:
        inputs: by name.
        got: the file's outputs.
    """

    def __init__(self, program: Program, loaded, inputs: dict[str, Tensor], within: Run | None = None) -> None:
        self.program, self.inputs, self._within = program, inputs, within
        clip, *others = program.input_names
        try:
            self.got: Outputs = loaded(inputs[clip], **{name: inputs[name] for name in others})
        except Exception as error:
            raise ExportError(
                f"export: the written file must run on {clip} {list(inputs[clip].shape)}, a batch that was not traced, "
                f"got {first_line(error)}"
            ) from error

    @functools.cached_property
    def expected(self) -> Outputs:
        """The program's outputs. Those of the first sample of another run are at hand once that is known."""
        if self._within is not None:
            return tuple(self.part_of(i, output) for i, output in enumerate(self._within.expected))
        with torch.inference_mode():
            # Where rounding turns the gate of a feature pyramid, the eager model goes on as the file does.
            return self.program(**self.inputs, decisions=dict(zip(self.program.output_names, self.got, strict=False)))

    @functools.cached_property
    def _nudged(self) -> Outputs:
        with torch.inference_mode():
            return self.program(**self.inputs, nudge=8 * torch.finfo(self.program.explained.compute_dtype).eps)

    @functools.cached_property
    def decided(self) -> Tensor:
        """[N]: samples whose explained classes do not hang on a difference between logits that rounding could turn."""
        return _classes_decided(self.program, self.inputs, self.expected[0])

    def rounding(self, i: int) -> float:
        """By how much output i of the program differs, if the clip does by rounding: as a share of its own size.

        0 where it becomes another map altogether, because what is expected was computed beside other samples.
        """
        nudged, expected = self._nudged[i][self.decided], self.expected[i][self.decided]
        if self._within is not None and expected.numel() and _unlike(nudged, expected) > UNLIKE:
            return 0.0
        return distance(nudged, expected)

    def part_of(self, i: int, output: Tensor) -> Tensor:
        """Of output i of the run that this one is in: its samples, and their first class where those are an input."""
        rows, mine = self.program.per_class(i), output[: len(self.got[0])]
        return mine[:, :rows] if rows else mine

    def by_itself(self) -> bool:
        """Forgets that the samples are in another run, too; false where they are not."""
        shared, self._within = self._within, None
        for known in ("expected", "decided"):
            vars(self).pop(known, None)
        return shared is not None


def check_file(program: Program, path: Path, example: Tensor | None = None) -> dict[str, Any]:
    """`self_check` of a file, in its own runtime."""
    return self_check(program, runtime.load(path), example)


def self_check(program: Program, loaded, example: Tensor | None = None) -> dict[str, Any]:
    """Compares a loaded file with the eager program; the figures go into the manifest.

    Every input is tried: other classes, thresholds that differ between samples, and a batch of which nobody wants maps.

    Raises:
        ExportError: an output is not finite, differs by more than its bound, or depends on the other samples of a
            batch; the logits are not those of the network as it was given; or a map does not follow its input. The
            bound is 1e-4 of the output's largest value (more for half precision), one step for integers, 1e-3 for the
            motion share; in a motion or static map 0.1 % of the voxels may differ, those that lie on the threshold.
            Gates and divisions on the way back to the clip may turn a rounding error into a larger one at some voxels:
            the root mean square difference of such a map is held against what the eager model makes of a clip that
            differs by rounding.
    """
    worst: dict[str, float] = {}
    unmoved: set[str] = set()
    clips = 0
    for index, size in enumerate(program.sizes):
        several, *further = _inputs(program, size, 1000 + 10 * index, example)
        runs = [_finite_run(program, loaded, several)]
        # The first sample alone: a file whose samples depend on each other, or on their number, differs there.
        alone = _finite_run(program, loaded, _first(several), within=runs[0])
        runs.append(alone)
        runs += [_finite_run(program, loaded, inputs) for inputs in further]
        blank = _check_follows(program, runs, size)
        for what, inputs in _variants(program, several).items():
            runs.append(_finite_run(program, loaded, inputs))
            if what != "explain":
                _check_moved(program, what, runs[0], runs[-1], blank, size)
        unmoved |= blank
        clips += sum(len(run.got[0]) for run in runs)
        try:
            for run in runs:
                try:
                    _check_equal(program, run, size, worst, alone)
                except ExportError:
                    if not run.by_itself():  # a gate may have turned the other way there
                        raise
                    _check_equal(program, run, size, worst, alone)
                    _check_apart(program, runs[0], run, size)
            _check_given(program, runs[0], size, worst)
        except ExportError as error:
            _check_repeatable(program, runs[0], error)
            raise
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
    run = Run(whole, loaded, inputs)
    expected, got = run.expected, run.got
    same = torch.ones(len(got[0]), dtype=torch.bool)
    classes = inputs.get("classes")
    chosen = [
        exact.score.chosen(logits.cpu(), classes if classes is None else classes.cpu())
        for logits in (expected[0], got[0])
    ]
    if chosen[0].dim() > 1:
        same = (chosen[0] == chosen[1]).all(-1)
        same = same if same.dim() == 1 else same.all(0)
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


def _inputs(program: Program, size, seed: int, example: Tensor | None) -> list[dict[str, Tensor]]:
    """Two random clips, of which the second gives way to the example if that is one clip like them; else both."""
    several, first = random_inputs(program, size, 2, seed), program.input_names[0]
    if example is None or program.sees(example) != tuple(size):
        return [several]
    if len(example) == 1 and example.shape[1:] == several[first].shape[1:]:
        return [several | {first: torch.cat([several[first][:1], example.to(several[first])])}]
    return [several, random_inputs(program, size, len(example), 7) | {first: example}]


def _first(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first sample, with one of its classes where those are an input: their number is free, too."""
    return {name: value[:1, :1] if name == "classes" else value[:1] for name, value in inputs.items()}


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


def _finite_run(program: Program, loaded, inputs: dict[str, Tensor], within: Run | None = None) -> Run:
    """A run, of which every output must be finite, as its inputs are."""
    run = Run(program, loaded, inputs, within)
    for name, have in zip(program.output_names, run.got, strict=False):
        if have.is_floating_point() and not bool(have.isfinite().all()):
            share = (~have.isfinite()).double().mean().item()
            raise ExportError(
                f"export: output '{name}' must be finite for a finite {program.input_names[0]}, got {share:.2%} of its "
                f"values that are not{_why_not_finite(program, run)}"
            )
    return run


def _why_not_finite(program: Program, run: Run) -> str:
    explained = program.explained
    if weight := not_finite(explained.model):
        return f": in the network, {weight}"
    clip = program.clip_of(run.inputs).to(explained.compute_dtype)
    with torch.no_grad():
        op = first_not_finite(explained.at(tuple(clip.shape[2:])).network, clip)
    if not op:
        return ", though those of the network are"
    if explained.compute_dtype == torch.float16:
        return f": {op} leaves the range of float16, which ends at 65504; bfloat16 and float32 go further"
    random = program.preprocessing is None
    return f": {op} is the first to give such" + (
        "; random clips have mean 0 and deviation 1 where no preprocessing= says in which range real ones lie"
        if random
        else ""
    )


def _check_apart(program: Program, batch: Run, alone: Run, size) -> None:
    """Raises where the eager model gives another output for a sample beside others than for the sample alone.

    Where rounding can turn a gate, or which kernels are selected, only a map that is another altogether counts.
    """
    decided = alone.decided & batch.decided[: len(alone.decided)]
    for i, name in enumerate(program.output_names):
        together, apart = alone.part_of(i, batch.expected[i]), alone.expected[i]
        if i:
            together, apart = together[decided], apart[decided]
        if not together.numel():
            continue
        if name in program.turnable:
            differs = together.dim() == 5 and together.is_floating_point() and _unlike(apart, together) > UNLIKE
        else:
            bound, share = _bound(name, together, program.explained.compute_dtype)
            differs = ((together.double() - apart.double()).abs() > bound).double().mean().item() > share
        if differs:
            op = mixes_samples(program.explained.at(size).network.graph)
            raise ExportError(
                f"export: output '{name}' of a sample must not depend on the other samples of its batch (clips of "
                f"{list(size)}), got another for it alone: "
                + (f"{op} looks at all of them" if op else "the samples are mixed on the way")
            )


def _unlike(have: Tensor, want: Tensor) -> float:
    """The deviation of the difference, as a share of that of what is wanted."""
    have, want = have.double(), want.double()
    least = 1e-3 * want.square().mean().sqrt() + 1e-300  # of a map that is the same nearly everywhere
    return ((have - want).std() / want.std().clamp_min(least)).item()


def _check_given(program: Program, run: Run, size, worst: dict[str, float]) -> None:
    """Raises where the network, as it was given, has other logits for the last sample, alone, than the file."""
    got, given = program.explained.as_given(run.got[0][-1:]), _given(program, run)
    if given.shape != got.shape:
        _fail("logits", size, f"must be the network's own, {list(given.shape)}", f"{list(got.shape)}")
    computed_in = program.explained.compute_dtype
    bound, _ = _bound("logits", given, computed_in)
    difference = (given.double() - got.to(given.device).double()).abs().nan_to_num(float("inf")).max().item()
    if difference > bound:
        rule = f"must be those of {program.explained.model_name} as it was given, within {bound:.2g}"
        _fail("logits", size, rule, f"a difference of {difference:.3g}: its code does what its captured graph does not")
    worst["logits"] = max(worst["logits"], float(f"{difference / bound * _tolerance(given, computed_in):.2g}"))


def _check_repeatable(program: Program, run: Run, error: ExportError) -> None:
    """Raises where the network's own code gives other logits the second time, which explains any other error."""
    first, second = _given(program, run), _given(program, run)
    bound, _ = _bound("logits", first, program.explained.compute_dtype)
    if first.shape != second.shape or bool(((first - second).abs() > bound).any()):
        raise ExportError(
            f"export: {program.explained.model_name} must give the same logits for the same clip, got others the "
            "second time: something in it is random, such as a dropout that is always on, or remembers"
        ) from error


def _given(program: Program, run: Run) -> Tensor:
    first = program.input_names[0]
    last = run.inputs[first][-1:]
    with in_words_of_ours(
        ExportError,
        lambda error: (
            f"export: {program.explained.model_name} must run on {first} {list(last.shape)}, as its file does, "
            f"got {first_line(error)}"
        ),
    ):
        return program.given_logits({first: last})


def _check_follows(program: Program, runs: list[Run], size) -> set[str]:
    """Names of maps without any structure, in the eager model too; raises where a map is baked in."""
    blank = set()
    for i, name in enumerate(program.output_names):
        if i and runs[0].got[i].dim() != 5:
            continue  # small extra outputs may well be equal for several clips
        samples = [sample for run in runs for sample in run.got[i].float()]
        if all(bool((s == s.flatten()[0]).all()) for s in samples):
            blank.add(name)
        elif all(s.shape == samples[0].shape and torch.equal(s, samples[0]) for s in samples):
            _fail(
                name, size, "must change with the clip", "the same values for every clip: it is baked in as a constant"
            )
    return {
        name
        for i, name in enumerate(program.output_names)
        if name in blank and all(bool((s == s.flatten()[0]).all()) for run in runs for s in run.expected[i].float())
    }  # where only the file is blank, the comparison fails next


def _check_moved(program: Program, what: str, before: Run, after: Run, blank: set[str], size) -> None:
    """Raises where the eager model's maps change with an input and the file's do not."""
    maps = [i for i, r in enumerate(before.expected) if r.dim() == 5 and program.output_names[i] not in blank]
    moved = [i for i in maps if not torch.equal(before.expected[i], after.expected[i])]
    if moved and all(torch.equal(before.got[i], after.got[i]) for i in maps):
        _fail(program.output_names[moved[0]], size, f"must change with the input {what}", "the same map for others")


def _check_equal(program: Program, run: Run, size, worst: dict[str, float], first: Run) -> None:
    expected, got = run.expected, run.got
    if len(got) != len(expected):
        raise ExportError(f"export: the file must return {len(expected)} outputs, got {len(got)}")
    computed_in = program.explained.compute_dtype
    for i, (name, want, have) in enumerate(zip(program.output_names, expected, got, strict=True)):
        if want.shape != have.shape or want.dtype != have.dtype:
            _fail(name, size, f"must be {want.dtype} {list(want.shape)}", f"{have.dtype} {list(have.shape)}")
        have = have.to(want.device)
        if name != "logits":
            want, have = want[run.decided], have[run.decided]
        if want.numel() == 0:
            continue
        if name in program.sensitive and want.dim() == 5:
            difference, bound = distance(have, want), _tolerance(want, computed_in)
            # What rounding does is asked of one clip, then of all, and only where that is needed.
            for near in (first, run):
                if not difference <= bound:
                    bound = max(bound, AMPLIFIED * near.rounding(i))
            if not difference <= bound:
                rule = f"must agree with the eager model within {bound:.2g} (root mean square, by the map's own)"
                _fail(name, size, rule, f"{difference:.3g}")
            worst[name] = max(worst.get(name, 0.0), float(f"{difference:.2g}"))
            continue
        bound, share = _bound(name, want, computed_in)
        difference = (want.double() - have.double()).abs()
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


def distance(have: Tensor, want: Tensor) -> float:
    """The root mean square difference, as a share of what is wanted; 0 where both are NaN in the same places."""
    have, want = have.double(), want.double()
    if not want.numel():
        return 0.0
    if bool(want.isnan().any()) and have.isnan().equal(want.isnan()):
        return 0.0
    return ((have - want).square().mean().sqrt() / want.square().mean().sqrt().clamp_min(1e-300)).item()


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


def _classes_decided(program: Program, inputs: dict[str, Tensor], logits: Tensor) -> Tensor:
    """[N]: samples whose explained classes do not hang on a difference between logits that rounding could turn."""
    explained = program.explained
    gaps = explained.score.gaps(logits, inputs.get("classes"))
    return gaps > 2 * _tolerance(logits, explained.compute_dtype) * logits.abs().max().float()


def _fail(name: str, size, rule: str, got: str) -> None:
    raise ExportError(f"export: output '{name}' {rule} (clips of {list(size)}), got {got}")
