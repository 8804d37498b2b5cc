"""The tables as plots, PNG; each carries its run as JSON in the file's `Description`."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from ..staging import whole_file
from ..text import printable
from .measuring import Key

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .tables import Evaluation

WHOLE, SELECTIVE, INK, FAINT = "#9bb7d4", "#c8503c", "#1c1e22", "#787c84"


def draw(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Writes the plots of what was measured; returns their paths. ImportError without matplotlib."""
    plots = [precision, agreement, selectivity, overhead, sweep]
    return [path for plot in plots if (path := plot(evaluation, folder))]


def precision(evaluation: Evaluation, folder: Path) -> Path:
    """Table 1: bars of every method's map and its selective version, and the level of a map that is everywhere."""
    methods, n = evaluation.settings.methods, evaluation.settings.n_sigma
    figure, axes = _figure(height=1.7 + 0.6 * len(methods))
    series = {"whole map": [Key("precision", m) for m in methods]}
    series[f"selective, {n:g} σ"] = [Key("precision", m, n) for m in methods]
    _bars(axes, evaluation, methods, series, 100)
    level = 100 * evaluation.summary[Key("moving")].average
    axes.axvline(level, color=INK, linestyle=":", linewidth=1.2, label="relevant everywhere")
    axes.set(title="Motion precision", xlabel=f"relevant voxels that move, % ({evaluation.size})")
    return _save(figure, axes, evaluation, folder / "precision.png")


def agreement(evaluation: Evaluation, folder: Path) -> Path | None:
    """Table 2: every pair of methods."""
    methods, settings = evaluation.settings.methods, evaluation.settings
    if not settings.pairs:
        return None
    values = np.full((len(methods), len(methods)), np.nan)
    for a, b in settings.pairs:
        i, j = methods.index(a), methods.index(b)
        values[i, j] = 100 * evaluation.summary[Key("agreement", a, None, b)].average
        if settings.agreement == "iou":
            values[j, i] = values[i, j]
    side = 2.4 + 0.75 * len(methods)
    figure, axes = _figure(side + 0.8, side)
    axes.imshow(values, cmap="Blues", vmin=0, vmax=100)
    for i, j in np.argwhere(np.isfinite(values)):
        ink = "white" if values[i, j] > 55 else INK
        axes.text(j, i, f"{values[i, j]:.1f}", ha="center", va="center", color=ink)
    places = range(len(methods))
    axes.set_xticks(places, methods, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, methods)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    what = {"iou": "intersection / union", "first": "share of the row's"}[settings.agreement]
    axes.set_title(f"Agreement: {what}, %")
    return _save(figure, None, evaluation, folder / "agreement.png")


def selectivity(evaluation: Evaluation, folder: Path) -> Path:
    """Table 3: what the selective map keeps."""
    methods, n = evaluation.settings.methods, evaluation.settings.n_sigma
    figure, axes = _figure(height=1.7 + 0.6 * len(methods))
    series = {"voxels": [Key("voxels", m, n) for m in methods], "relevance": [Key("relevance", m, n) for m in methods]}
    _bars(axes, evaluation, methods, series, 100)
    axes.set(title=f"Selectivity at {n:g} σ", xlabel="of the whole map, %")
    return _save(figure, axes, evaluation, folder / "selectivity.png")


def overhead(evaluation: Evaluation, folder: Path) -> Path | None:
    """Table 4: milliseconds with and without the selective step."""
    methods, n = evaluation.settings.methods, evaluation.settings.n_sigma
    if not evaluation.settings.repeats:
        return None
    figure, axes = _figure(height=1.7 + 0.6 * len(methods))
    series = {"original": [Key("ms", m) for m in methods], "selective": [Key("ms", m, n) for m in methods]}
    _bars(axes, evaluation, methods, series, 1)
    axes.set(title="Overhead of the selective step", xlabel="network and explanation of one clip, ms")
    return _save(figure, axes, evaluation, folder / "overhead.png")


def sweep(evaluation: Evaluation, folder: Path) -> Path | None:
    """Motion precision and selectivity over n_sigma, a line for each method."""
    thresholds, methods = sorted(set(evaluation.settings.sweep)), evaluation.settings.methods
    if not thresholds:
        return None
    figure, panels = _figure(11, 4.4, columns=3)
    shown = {"precision": "Motion precision", "voxels": "Selectivity: voxels", "empty": "Empty maps"}
    for axes, (measure, title) in zip(panels, shown.items(), strict=True):
        for index, method in enumerate(methods):
            style = {"color": f"C{index % 10}", "linewidth": 1.8}
            curve = 100 * np.array(evaluation.curve(measure, method))
            axes.plot(thresholds, curve, marker="os^Dv<>P"[index % 8], markersize=5, alpha=0.8, label=method, **style)
            if measure == "precision":
                axes.axhline(
                    100 * evaluation.summary[Key(measure, method)].average, **style | {"linewidth": 1}, ls="--"
                )
        top = 100 if measure == "empty" else None
        axes.set(title=title, xlabel="n σ", ylabel="%", ylim=(0, top), xticks=thresholds)
        axes.grid(axis="y", color="#e4e6ea")
    panels[0].plot([], [], color=FAINT, linestyle="--", linewidth=1, label="whole map")
    everywhere = 100 * evaluation.summary[Key("moving")].average
    panels[0].axhline(everywhere, color=INK, linestyle=":", linewidth=1.2, label="relevant everywhere")
    return _save(figure, panels[0], evaluation, folder / "sweep.png")


def package(module: str = "figure") -> ModuleType:
    """A module of matplotlib. ImportError, with what to install, where it is absent."""
    try:
        return importlib.import_module(f"matplotlib.{module}")
    except ImportError as error:
        raise ImportError(f"evaluate: matplotlib is needed ({error}): pip install 'clipsight[evaluate]'") from error


def _figure(width: float = 7.2, height: float = 4.0, columns: int = 1):
    figure = package("figure").Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(1, columns)
    for axes in np.atleast_1d(panels):
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _bars(
    axes: Axes, evaluation: Evaluation, methods: Sequence[str], series: dict[str, list[Key]], factor: float
) -> None:
    """Two bars a method, from top to bottom, with the standard deviation over the videos."""
    height = 0.36
    for (label, keys), shift, colour in zip(series.items(), (-0.5, 0.5), (WHOLE, SELECTIVE), strict=True):
        stats = [evaluation.summary[key] for key in keys]
        places = np.arange(len(methods)) + shift * height
        averages = [factor * stat.average for stat in stats]
        spread = [factor * (stat.deviation or 0) for stat in stats]
        shown = {"xerr": [np.minimum(spread, averages), spread]} if any(spread) else {}
        axes.barh(places, averages, height, color=colour, label=label, ecolor=FAINT, error_kw={"lw": 1}, **shown)
        for place, average, end in zip(places, averages, np.add(averages, spread), strict=True):
            style = {"textcoords": "offset points", "va": "center", "fontsize": 8, "color": INK}
            axes.annotate(f"{average:.1f}", (end, place), (4, 0), **style)
    axes.set_yticks(range(len(methods)), methods)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08 * axes.get_xlim()[1])  # room for the numbers
    axes.grid(axis="x", color="#e4e6ea")
    axes.set_axisbelow(True)


def _save(figure, legend: Axes | None, evaluation: Evaluation, path: Path) -> Path:
    if legend is not None:
        figure.legend(
            *legend.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9
        )
    run = evaluation.run
    about = f"{run['model']['name']} · {evaluation.floor} · {evaluation.settings.flow} flow · seed {run['seed']}"
    figure.suptitle(printable(about), fontsize=8, color=FAINT, x=0.01, ha="left", parse_math=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=130, metadata={"Description": json.dumps(run)})
    return path
