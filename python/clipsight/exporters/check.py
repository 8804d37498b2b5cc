"""The self-check: an exported file must say what the eager model says, and its maps must follow the input.

The file is loaded in its own runtime and compared on inputs that the export never saw: other values, other batch
sizes. Tracers can bake a tensor into a file as a constant without a word; a map that stays the same for other clips,
or for other classes where those are an input, is therefore an error too.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 1e-4  # of the largest value of an output, in float32
BORDER_VOXELS = 1e-3  # share of a masked map's voxels that may fall on the other side of their threshold
MASKED = ("motion", "static")


class ExportError(RuntimeError):
    """The file could not be made, or it does not compute what the eager model computes; nothing was written."""


def random_inputs(explained, size, batch: int, seed: int, preprocessing=None) -> tuple[Tensor, ...]:
    """A clip of coloured blobs under noise `[N, 3, T, H, W]`, and classes `[N, batch]` where they are an input.

    The values have the range of preprocessed video where `preprocessing` is given, else mean 0 and deviation 1.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(
        batch,
        explained.channels,
        *(max(2, s // k) for s, k in zip(size, (4, 16, 16), strict=True)),
        generator=generator,
    )
    clip = F.interpolate(coarse, size, mode="trilinear") + 0.3 * torch.randn(
        batch, explained.channels, *size, generator=generator
    )
    if preprocessing is not None:
        mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
        clip = (torch.sigmoid(clip) * 255 * preprocessing.scale - mean) / std
    like = next((p for p in explained.parameters() if p.is_floating_point()), clip)
    inputs = [clip.to(like)]
    if explained.classes_input:
        count = min(batch, explained.num_classes)  # the number of classes differs between checks as the batch does
        classes = torch.rand(batch, explained.num_classes, generator=generator).argsort(1)[:, :count]
        inputs.append(classes.to(like.device))
    return tuple(inputs)


def self_check(explained, loaded, sizes, preprocessing=None, example: Tensor | None = None) -> dict[str, Any]:
    """Compares a loaded file with the eager model; the figures go into the manifest.

    Raises:
        ExportError: an output differs by more than its bound, or a map does not follow its input. The bound is 1e-4 of
            the output's largest value (more for half precision), one step for integers, 1e-3 for the motion share; in
            a motion or static map 0.1 % of the voxels may differ, those that lie on the threshold.
    """
    worst: dict[str, float] = {}
    unmoved: set[str] = set()
    clips = 0
    for index, size in enumerate(sizes):
        runs = [random_inputs(explained, size, batch, 1000 + 10 * index + batch, preprocessing) for batch in (1, 3)]
        if example is not None and tuple(example.shape[2:]) == tuple(size):
            runs.append((example, *random_inputs(explained, size, example.shape[0], 7)[1:]))
        if explained.classes_input:  # the last clip once more, with each class replaced by the next
            runs.append((runs[-1][0], (runs[-1][1] + 1) % explained.num_classes))
        results = []
        for inputs in runs:
            with torch.inference_mode():
                expected = explained(*inputs)
            results.append((expected, _run(loaded, inputs, size)))
            clips += len(inputs[0])
        unmoved |= _check_follows(explained, results, size)
        for expected, got in results:
            _check_equal(explained, expected, got, size, worst)
    if unmoved:
        warnings.warn(
            f"export: {', '.join(sorted(unmoved))} had the same value everywhere on every random clip, so that export "
            "could not see whether it follows its input"
            + (
                "; the features have a single frame, nothing in the maps can move"
                if explained.temporal_resolution == 1
                else "; pass a real clip as example="
            ),
            stacklevel=3,
        )
    return {"clips": clips, "max_difference": worst, "not_checked_to_follow_input": sorted(unmoved)}


def _run(loaded, inputs, size) -> tuple[Tensor, ...]:
    try:
        return loaded(*inputs)
    except Exception as error:
        raise ExportError(
            f"export: the written file must run on clips {list(inputs[0].shape)}, got {type(error).__name__}: {error}"
        ) from error


def _check_follows(explained, results, size) -> set[str]:
    """Names of maps without any structure, in the eager model too; raises where a map is baked in."""
    blank = set()
    for i, name in enumerate(explained.output_names):
        if i and results[0][0][i].dim() != 5:
            continue  # small extra outputs may well be equal for several clips
        samples = [sample for _, got in results for sample in got[i].float()]
        if all(bool((s == s.flatten()[0]).all()) for s in samples):
            blank.add(name)
        elif all(s.shape == samples[0].shape and torch.equal(s, samples[0]) for s in samples):
            _fail(
                name, size, "must change with the clip", "the same values for every clip: it is baked in as a constant"
            )
    maps = [i for i, r in enumerate(results[0][0]) if r.dim() == 5 and explained.output_names[i] not in blank]
    if explained.classes_input and maps:
        before, after = results[-2][1], results[-1][1]
        if all(torch.equal(before[i], after[i]) for i in maps):
            _fail(
                explained.output_names[maps[0]], size, "must change with the input classes", "the same map for others"
            )
    really_blank = {
        name
        for i, name in enumerate(explained.output_names)
        if name in blank and all(bool((s == s.flatten()[0]).all()) for e, _ in results for s in e[i].float())
    }
    return really_blank  # where only the file is blank, the comparison fails next


def _check_equal(explained, expected, got, size, worst: dict[str, float]) -> None:
    if len(got) != len(expected):
        raise ExportError(f"export: the file must return {len(expected)} outputs, got {len(got)}")
    decided = _classes_decided(explained, expected[0])
    for name, want, have in zip(explained.output_names, expected, got, strict=True):
        if want.shape != have.shape or want.dtype != have.dtype:
            _fail(name, size, f"must be {want.dtype} {list(want.shape)}", f"{have.dtype} {list(have.shape)}")
        have = have.to(want.device)
        if name != "logits":
            want, have = want[decided], have[decided]
        if want.numel() == 0:
            continue
        bound, share = _bound(name, want, expected[0].dtype)
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
        scale = bound / _tolerance(want, expected[0].dtype) if want.is_floating_point() else 1.0
        figure = agreeing.max().item() / scale if agreeing.numel() else 0.0
        worst[name] = max(worst.get(name, 0.0), float(f"{figure:.2g}"))


def _tolerance(want: Tensor, computed_in: torch.dtype) -> float:
    return max(TOLERANCE, 16 * torch.finfo(computed_in).eps, torch.finfo(want.dtype).eps)


def _bound(name: str, want: Tensor, computed_in: torch.dtype) -> tuple[float, float]:
    """(largest allowed difference, share of the values that may exceed it)."""
    share = (
        max(BORDER_VOXELS, 16 * torch.finfo(computed_in).eps) if name.startswith(MASKED) and want.dim() == 5 else 0.0
    )
    if not want.is_floating_point():
        return 1.0, share
    tolerance = _tolerance(want, computed_in)
    if name.startswith("motion_share"):  # as many voxels as may fall on the other side of the mask's threshold
        return max(tolerance, BORDER_VOXELS), 0.0
    largest = want.nan_to_num(0.0).abs().max().item()
    return tolerance * (largest if largest > 0 else 1.0), share


def _classes_decided(explained, logits: Tensor) -> Tensor:
    """[N]: samples whose explained classes do not hang on a difference between logits that rounding could turn."""
    if explained.classes_input or isinstance(explained.classes.choice, list) or explained.num_classes < 2:
        return torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    count = min(explained.maps + 1, explained.num_classes)
    ranked = logits.float().topk(count, 1).values
    return (ranked[:, :-1] - ranked[:, 1:]).amin(1) > 2 * _tolerance(logits, logits.dtype) * logits.abs().max().float()


def _fail(name: str, size, rule: str, got: str) -> None:
    raise ExportError(f"export: output '{name}' {rule} (clips of {list(size)}), got {got}")
