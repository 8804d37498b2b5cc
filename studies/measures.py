"""What is measured on every clip, and how clips are summed up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

import clipsight
from clipsight import heads, metrics, ops

N_SIGMAS = (2.0, 4.0)  # the default, and that of the paper's tables
PLAIN = "plain"
DRAWS = 2000  # of every bootstrap


def versions() -> tuple[str, ...]:
    return (PLAIN, *map("{:g} sigma".format, N_SIGMAS))


def raw_maps(
    network: nn.Module, clips: torch.Tensor, classes: np.ndarray, methods: Sequence[str], batch: int
) -> dict[str, np.ndarray]:
    """Raw relevance `[N, T, H, W]` of every method for one class per clip, clips `[N, 3, T, H, W]`, classes `[N]`."""
    wanted = [heads.METHODS[name](normalize="none") for name in methods]
    explained = clipsight.explain(network, wanted, clips[:1], "input")
    with torch.no_grad():  # the heads are forward graphs
        parts = [explained(x, k[:, None]) for x, k in _batches(clips, torch.from_numpy(classes), size=batch)]
    _, *maps = (torch.cat(part) for part in zip(*parts, strict=True))
    return {name: volume[:, 0].numpy() for name, volume in zip(methods, maps, strict=True)}


def _batches(*tensors: torch.Tensor, size: int) -> Iterator[tuple[torch.Tensor, ...]]:
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


def logits(network: nn.Module, clips: torch.Tensor, batch: int) -> np.ndarray:
    with torch.inference_mode():
        return torch.cat([network(x) for (x,) in _batches(clips, size=batch)]).numpy()


def measured(
    maps: np.ndarray, truths: dict[str, np.ndarray], regions: dict[str, np.ndarray], floor: float
) -> dict[str, np.ndarray]:
    """All measures of one method's raw maps `[N, T, H, W]`, float64 `[N]` each, named `measure, version[, truth]`.

    Args:
        maps: raw, so that what is relevant is the positive relevance: a min-max lifts the zero of a signed map.
        truths: what moves, bool `[N, T, H, W]`, by name; the pointing game is played on the same masks.
        regions: masks of which the share of the positive relevance (`mass`) is wanted, by name.
        floor: of the measures, a share of the clip's largest relevance; for the selective maps that of the plain one.
    """
    result = {"temporal change": metrics.temporal_change(maps)}
    quarter = maps.shape[1] // 4
    middle = slice(quarter, maps.shape[1] - quarter)
    for version, n_sigma in zip(versions(), (None, *N_SIGMAS), strict=True):
        kept = maps
        if n_sigma is not None:
            kept, share = (x.numpy() for x in ops.selective_relevance(torch.from_numpy(maps), n_sigma))
            voxels, relevance = metrics.selectivity(kept, maps, floor)
            result[f"motion share, {version}"] = share.astype(np.float64)
            result[f"middle share, {version}"] = metrics.motion_share(maps[:, middle], kept[:, middle] != 0)
            result |= {f"selectivity, {version}, voxels": voxels, f"selectivity, {version}, relevance": relevance}
        result[f"empty, {version}"] = 1.0 - metrics.relevant(kept, floor, of=maps).any((1, 2, 3))
        for name, truth in truths.items():
            result[f"precision, {version}, {name}"] = metrics.motion_precision(kept, truth, floor, of=maps)
        for name, region in regions.items():
            result[f"mass, {version}, {name}"] = metrics.motion_share(np.maximum(kept, 0), region)
        for name, region in {**truths, **regions}.items():
            result[f"pointing, {version}, {name}"] = metrics.pointing_game(kept, region).astype(np.float64)
    return result


def mean_interval(values: np.ndarray, rng: np.random.Generator) -> list[float]:
    """Mean over clips and its 95 % bootstrap interval."""
    drawn = _weights(len(values), rng) @ values
    return [float(x) for x in (values.mean(), *np.quantile(drawn, (0.025, 0.975)))]


def roc_area(positive: np.ndarray, negative: np.ndarray, rng: np.random.Generator) -> list[float]:
    """Area under the ROC curve of a score that two networks have on the same clips, and its 95 % bootstrap interval.

    The area is the probability that the score of the first network on one clip is higher than that of the second on
    another (ties count half). Whole clips are drawn, with both networks' scores: they are not independent.
    """
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    weights = _weights(len(wins), rng)
    drawn = ((weights @ wins) * weights).sum(1)
    return [float(x) for x in (wins.mean(), *np.quantile(drawn, (0.025, 0.975)))]


def _weights(count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.multinomial(count, np.full(count, 1 / count), size=DRAWS) / count


def roc_curve(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates over every threshold, from (0, 0) to (1, 1)."""
    thresholds = np.unique(np.concatenate([positive, negative]))[::-1]
    rates = [np.concatenate([[0], (x >= thresholds[:, None]).mean(1)]) for x in (negative, positive)]
    return rates[0], rates[1]


def summary(values: dict[str, dict[str, dict[str, np.ndarray]]], first: str, second: str, seed: int) -> dict:
    """Means over clips of `values[network][method][measure] [N]`, gains of the selective maps, and ROC areas.

    Every entry is `[mean, low, high]` with a 95 % interval, and `shares` has the motion shares clip by clip.
    """
    rng = np.random.default_rng(seed)
    means = {
        network: {m: {key: mean_interval(x, rng) for key, x in row.items()} for m, row in rows.items()}
        for network, rows in values.items()
    }
    gains = {
        network: {m: {key: mean_interval(x, rng) for key, x in _gains(row).items()} for m, row in rows.items()}
        for network, rows in values.items()
    }
    wanted = ("motion share", "middle share", "temporal", f"mass, {PLAIN}")
    scores = [key for key in next(iter(values[first].values())) if key.startswith(wanted)]
    areas = {
        m: {key: roc_area(row[key], values[second][m][key], rng) for key in scores} for m, row in values[first].items()
    }
    shares = {
        network: {m: {k: x.round(4).tolist() for k, x in row.items() if "motion share" in k} for m, row in rows.items()}
        for network, rows in values.items()
    }
    return {"means": means, "gains": gains, "areas": areas, "shares": shares}


def _gains(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Selective minus plain, clip by clip, of the measures that both have: `[N]` by the selective map's name."""
    pairs = ((key, key.replace(key.split(", ")[1], PLAIN)) for key in row if "sigma" in key)
    return {key: row[key] - row[plain] for key, plain in pairs if plain in row}
