"""Measures that ask the network: what its probability does without the relevant voxels, what a map owes to it."""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..runtime import _is_torch
from ..targets import Reading, default_probability
from .volumes import _volume


def insertion_auc(
    model: Callable,
    clip: Any,
    relevance: np.ndarray,
    classes: np.ndarray,
    steps: int = 50,
    baseline: str = "blur",
    *,
    sigma: float = 0.125,
    batch: int = 8,
    curve: bool = False,
    probability: str | None = None,
) -> Any:
    """Area under the probability of a class while the clip appears, the most relevant voxels first: high is good.

    Insertion of RISE (Petsiuk et al., 2018, section 4.3), over the voxels of a clip: a voxel is all channels at one
    place of one frame. Where k of the V voxels of the clip have replaced those of the baseline, `k = V i / steps`
    rounded (halves up) for `i = 0..steps`, the probability of the class is one point of a curve over k / V; the
    area is that of the trapezoids.

    Equal relevance goes in order of storage: earlier frames, then rows from the top, then columns from the left. So a
    map that is zero everywhere, or any constant one, has the area of the clip that appears frame by frame.

    Args:
        model: clip `[N, C, T, H, W]` -> logits `[N, K]`, or a tuple that begins with them: a network in eval mode, an
            explained one, a file from `clipsight.load`, or any function that takes a batch of any size. It gets what
            `clip` is, a NumPy array or a tensor on its device. (For a file that takes its classes as an input,
            `lambda clip: file(clip, np.zeros((len(clip), 1), np.int64))`.)
        clip: `[N, C, T, H, W]`, as the network takes it: after resizing and normalisation.
        relevance: R `[N, T, H, W]`, finite; its sign counts, its scale does not.
        classes: the class of each clip, integers `[N]`.
        steps: number of steps.
        baseline: `"blur"`, or `"zero"`, which after normalisation is usually the mean colour. (Petsiuk et al. insert
            into a blurred picture and delete to zero.)
        sigma: of the blur, a Gaussian over time, height and width, as a share of each axis's length. The weights are
            made to sum to 1 at the borders, so a constant clip stays as it is.
        batch: clips of one call of the model.
        curve: also return the curve.
        probability: `"softmax"`, or `"sigmoid"` of the logit by itself; by default softmax, and of a network with a
            single logit sigmoid.

    Returns:
        The area, float64 `[N]`, in 0..1; with `curve` the tuple (area, shares of the voxels `[steps + 1]`,
        probabilities `[N, steps + 1]`).

    Raises:
        ValueError, TypeError: a shape, type or option that does not fit, a value or logit that is not finite, or a
            network in training mode.
    """
    return _area("insertion_auc", model, clip, relevance, classes, steps, baseline, sigma, batch, curve, probability)


def deletion_auc(
    model: Callable,
    clip: Any,
    relevance: np.ndarray,
    classes: np.ndarray,
    steps: int = 50,
    baseline: str = "blur",
    *,
    sigma: float = 0.125,
    batch: int = 8,
    curve: bool = False,
    probability: str | None = None,
) -> Any:
    """Area under the probability of a class while the clip turns into the baseline, relevant voxels first: low is good.

    Deletion of RISE (Petsiuk et al., 2018, section 4.3); everything else is as in `insertion_auc`.
    """
    return _area("deletion_auc", model, clip, relevance, classes, steps, baseline, sigma, batch, curve, probability)


def _area(op, model, clip, relevance, classes, steps, baseline, sigma, batch, curve, probability):
    pixels, relevance, classes = _checked(op, model, clip, relevance, classes)
    for name, value in (("steps", steps), ("batch", batch)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{op}: {name} must be an integer, at least 1, got {value!r}")
    if probability not in (None, "softmax", "sigmoid"):
        raise ValueError(f"{op}: probability must be 'softmax' or 'sigmoid', got {probability!r}")
    if baseline not in ("blur", "zero"):
        raise ValueError(f"{op}: baseline must be 'blur' or 'zero', got {baseline!r}")
    if not 0 < sigma < np.inf:
        raise ValueError(f"{op}: sigma must be a positive share of the clip's lengths, got {sigma}")
    volume = relevance[0].size if len(relevance) else 1
    counts = (2 * volume * np.arange(steps + 1) + steps) // (2 * steps)
    probabilities = np.empty((len(pixels), steps + 1))
    for n, (picture, scores) in enumerate(zip(pixels, relevance, strict=True)):
        empty = np.zeros_like(picture) if baseline == "zero" else _blurred(picture, sigma)
        first, then = (picture, empty) if op == "insertion_auc" else (empty, picture)
        rank = np.empty(volume, np.int64)
        rank[np.argsort(-scores.ravel().astype(np.float64), kind="stable")] = np.arange(volume)
        rank = rank.reshape(scores.shape)
        for start in range(0, steps + 1, batch):
            part = slice(start, start + batch)
            rows = np.stack([np.where(rank < count, first, then) for count in counts[part]])
            probabilities[n, part] = _probabilities(op, model, rows, clip, int(classes[n]), probability)
    shares = counts / volume
    area = ((probabilities[:, 1:] + probabilities[:, :-1]) / 2 * np.diff(shares)).sum(1)
    return (area, shares, probabilities) if curve else area


def _checked(op, model, clip, relevance, classes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arguments as NumPy arrays, the clip in floating point."""
    torch = sys.modules.get("torch")
    layers = model.modules() if torch and isinstance(model, torch.nn.Module) else ()
    # An explained network has the flag of a new module; what matters is how its layers are set.
    if any(layer.training for layer in layers if not any(layer.children())):
        raise ValueError(f"{op}: the model must be in eval mode (model.eval()), got a model in training mode")
    if _is_torch(clip):
        pixels = clip.detach().cpu()
        half = pixels.is_floating_point() and pixels.element_size() < 4  # NumPy does not know bfloat16
        pixels = np.asarray(pixels.float() if half else pixels)
    else:
        pixels = np.asarray(clip)
    relevance, classes = np.asarray(relevance), np.asarray(classes)
    if pixels.ndim != 5 or 0 in pixels.shape[1:]:
        raise ValueError(f"{op}: clip must be [N, C, T, H, W] with no empty axis, got {list(pixels.shape)}")
    if pixels.dtype.kind != "f":
        raise TypeError(f"{op}: clip must hold floating-point values, got {pixels.dtype}")
    shape = [len(pixels), *pixels.shape[2:]]
    if list(relevance.shape) != shape:
        raise ValueError(f"{op}: relevance must be [N, T, H, W] = {shape}, got {list(relevance.shape)}")
    if classes.shape != (len(pixels),) or classes.dtype.kind not in "iu":
        raise ValueError(
            f"{op}: classes must be integers [N] = [{len(pixels)}], got {classes.dtype} {list(classes.shape)}"
        )
    for name, values in (("clip", pixels), ("relevance", relevance)):
        if not np.isfinite(values).all():
            raise ValueError(f"{op}: {name} must be finite, got NaN or infinity")
    return pixels, relevance, classes


def _probabilities(
    op: str, model: Callable, rows: np.ndarray, clip: Any, k: int, probability: str | None
) -> np.ndarray:
    """Probability of class k for every row, float64, from one call of the model."""
    if _is_torch(clip):
        torch = sys.modules["torch"]
        with torch.no_grad():
            logits = model(torch.from_numpy(rows).to(clip))
    else:
        logits = model(rows)
    logits = logits[0] if isinstance(logits, (tuple, list)) else logits
    logits = np.asarray(logits.detach().cpu().double() if _is_torch(logits) else logits, np.float64)
    if logits.ndim != 2 or len(logits) != len(rows):
        raise ValueError(f"{op}: the model must give logits [N, K], N = {len(rows)}, got {list(logits.shape)}")
    if not 0 <= k < logits.shape[1]:
        raise ValueError(f"{op}: classes must lie in 0..{logits.shape[1] - 1}, got {k}")
    if not np.isfinite(logits).all():
        raise ValueError(f"{op}: the logits of the model must be finite, got NaN or infinity")
    reading = Reading(probability or default_probability(logits.shape[1]))
    return np.array([reading.probabilities(row)[k] for row in logits])


def _blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    """The clip `[C, T, H, W]` under a Gaussian whose standard deviations are `sigma` times its T, H and W."""
    blurred = picture.astype(np.promote_types(picture.dtype, np.float32))
    for axis in (-1, -2, -3):
        length = picture.shape[axis]
        places = np.arange(length)
        weights = np.exp(-np.square((places[:, None] - places) / (sigma * length)) / 2)
        weights = (weights / weights.sum(1, keepdims=True)).astype(blurred.dtype)
        blurred = np.moveaxis(np.moveaxis(blurred, axis, -1) @ weights.T, -1, axis)
    return blurred.astype(picture.dtype)


def parameter_randomisation(
    explain: Callable,
    network: Any,
    order: str = "cascading",
    *,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Does a map depend on what the network has learnt? Rank correlation with the maps of randomised networks.

    The sanity check of Adebayo et al. (2018, section 3): the parameters of layers are drawn anew, and the Spearman
    correlation (equal values share their mean rank) of |map| with that of the network as it is tells how much of the
    map remains. A method whose correlation stays near 1 does not look at those parameters.

    Every parameter tensor is drawn from a normal distribution with its own mean and standard deviation, so that
    signals neither vanish nor explode; buffers, such as running averages, stay. Only copies are changed: the network
    and the state of torch's random numbers stay as they are, after an error too.

    Args:
        explain: network -> map `[..., T, H, W]`, NumPy or tensor; it must explain the network that it is given, for
            example `lambda network: clipsight.explain(network, head, clip, [3])(clip)[1]`.
        network: a `torch.nn.Module`.
        order: `"cascading"`, each layer in addition to those before it; or `"independent"`, each layer alone.
        layers: module paths in order; a module stands for all parameters within. By default every module with
            floating-point parameters of its own, from the last that the network defines, the classifier, to the first.
        seed: of the random numbers; a layer's depend on its place in `layers` alone.

    Returns:
        By layer, in order: the correlation, float64 `[...]`, in -1..1; 0 where a map is constant or empty.

    Raises:
        ValueError, TypeError: a layer or option that does not fit, maps of differing shapes, or a value in a map that
            is NaN or infinite.
    """
    import torch

    op = "parameter_randomisation"
    if not isinstance(network, torch.nn.Module):
        raise TypeError(f"{op}: network must be a torch.nn.Module, got {type(network).__name__}")
    if order not in ("cascading", "independent"):
        raise ValueError(f"{op}: order must be 'cascading' or 'independent', got {order!r}")
    known = dict(network.named_modules())

    def tensors(module: torch.nn.Module) -> list[torch.Tensor]:
        return [p for p in module.parameters(recurse=layers is not None) if p.is_floating_point()]

    names = [name for name in reversed(known) if tensors(known[name])] if layers is None else list(layers)
    for name in names:
        if name not in known or not tensors(known[name]):
            raise ValueError(f"{op}: layers must be modules with parameters, got {name!r}; the network has {[*known]}")

    original = _map(op, "the network as it is", explain(copy.deepcopy(network)))
    ranks = [_ranks(volume) for volume in original.reshape(-1, np.prod(original.shape[-3:]))]
    result, changed = {}, network
    for place, name in enumerate(names):
        changed = copy.deepcopy(changed if order == "cascading" else network)
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, place]).generate_state(1)[0]))
        for tensor in tensors(changed.get_submodule(name)):
            values = tensor.detach().double()
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(values.device)
            tensor.data.copy_(values.mean() + values.std(correction=0) * noise)
        drawn = _map(op, f"the network with random {name!r}", explain(changed))
        if drawn.shape != original.shape:
            raise ValueError(f"{op}: maps must keep their shape {list(original.shape)}, got {list(drawn.shape)}")
        others = drawn.reshape(-1, np.prod(drawn.shape[-3:]))
        correlations = [float(a @ _ranks(b)) for a, b in zip(ranks, others, strict=True)]
        result[name] = np.clip(np.array(correlations), -1, 1).reshape(original.shape[:-3])
    return result


def _map(op: str, what: str, relevance: Any) -> np.ndarray:
    relevance = np.asarray(relevance.detach().cpu().double() if _is_torch(relevance) else relevance)
    return np.abs(_volume(op, f"the map of {what}", relevance), dtype=np.float64)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of a vector, equal values at their mean, centred and scaled to length 1; zeros for a constant vector."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[inverse]
    ranks -= ranks.mean()
    return ranks / max(np.linalg.norm(ranks), np.finfo(float).tiny) if len(counts) > 1 else np.zeros_like(ranks)


def overhead(with_: Callable[[], Any], without: Callable[[], Any], repeats: int = 20, warmup: int = 2) -> dict:
    """What an extra step costs: two functions timed in turns, in one run (Table 4 of Hiley et al., 2020).

    The two sides take turns at going first, so that a machine that is busy or grows warm slows both alike. Where
    CUDA is in use, each call is timed until the device has finished. What the functions return is not looked at.

    Args:
        with_, without: called without arguments, for example the network with and without the selective step.
        repeats: pairs that count, at least 1.
        warmup: calls of each beforehand that do not.

    Returns:
        `plain_ms` and `ms`, medians of `without` and `with_` in milliseconds, `plain_std_ms` and `std_ms` their
        standard deviations (the paper's table has them), and `ratio`, the median of the ratios of the pairs.

    Raises:
        ValueError: not a single repeat, or a negative warm-up.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"overhead: repeats and warmup must be at least 1 and 0, got {repeats} and {warmup}")
    for _ in range(warmup):
        with_(), without()
    plain, full = [], []
    for pair in range(repeats):
        for call, times in ((without, plain), (with_, full))[:: -1 if pair % 2 else 1]:
            _synchronise()
            start = time.perf_counter_ns()
            call()
            _synchronise()
            times.append(max(time.perf_counter_ns() - start, 1) / 1e6)
    return {
        "plain_ms": statistics.median(plain),
        "ms": statistics.median(full),
        "plain_std_ms": statistics.pstdev(plain),
        "std_ms": statistics.pstdev(full),
        "ratio": statistics.median(f / p for f, p in zip(full, plain, strict=True)),
    }


def _synchronise() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
