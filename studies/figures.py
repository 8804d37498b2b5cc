"""The figures of the page, from the results and one clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from clipsight import models, ops
from clipsight.synthetic import MOTION_CLASSES, moving_shapes

from . import measures
from .generated import CHEAT, MOTION, NETWORKS, SETS, to_clips
from .markdown import title
from .measures import N_SIGMAS, PLAIN, versions

INK = {MOTION: "#1f6fb4", CHEAT: "#d1495b"}
SHADES = dict(zip(versions(), (1.0, 0.6, 0.3), strict=True))
FRAMES = (3, 8, 12)


def save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(256, kmeans=3).save(path, optimize=True)


def clip_maps(path: Path, seed: int, index: int, methods: Sequence[str]) -> None:
    """One clip: for both networks every method's map and its selective version, on three frames each."""
    clips = moving_shapes(index + 1, seed, bias=SETS["hue tells the class"])
    frames, mask, still = clips.frames[index], clips.masks[index], clips.still[index]
    tensor, label = to_clips(clips.frames[index:]), clips.labels[index:]
    parts = (PLAIN, versions()[1])
    figure, axes = plt.subplots(len(methods) + 1, 12, figsize=(13, 1.13 * (len(methods) + 1)), squeeze=False)
    for n, name in enumerate(NETWORKS):
        network = models.load(name)
        volumes = measures.raw_maps(network, tensor, label, methods, 1)
        for v, version in enumerate(parts):
            columns = axes[:, 6 * n + 3 * v : 6 * n + 3 * v + 3]
            columns[0, 1].set_title(f"{name}\n{version}", fontsize=9)
            for axis, t in zip(columns[0], FRAMES, strict=True):
                axis.imshow(frames[t])
                axis.contour(mask[t], [0.5], colors="white", linewidths=0.9)
                axis.contour(still, [0.5], colors="black", linewidths=0.9)
                axis.text(2, 61, f"frame {t}", fontsize=6, color="white")
            for row, method in zip(columns[1:], methods, strict=True):
                volume = torch.from_numpy(volumes[method])
                kept = volume if version == PLAIN else ops.selective_relevance(volume, N_SIGMAS[0])[0]
                # Of a signed map a few voxels outshine the rest.
                limit = np.quantile(volume.abs().numpy(), 0.9995) or 1.0
                for axis, t in zip(row, FRAMES, strict=True):
                    grey = frames[t].mean(-1) / 255
                    axis.imshow(grey, cmap="gray", vmin=-0.5, vmax=1.5)
                    strength = (kept[0, t].numpy() / limit).clip(-1, 1)
                    axis.imshow(np.sign(strength), cmap="bwr", vmin=-1, vmax=1, alpha=np.sqrt(np.abs(strength)))
    for row, name in zip(axes[:, 0], ("clip", *methods), strict=True):
        row.set_ylabel(title(name), fontsize=8, rotation=0, ha="right", va="center")
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_linewidth(0.3)
    figure.suptitle(
        f'Clip {index}, "{MOTION_CLASSES[label[0]]}": mover outlined in white, still shape in black; '
        "red: relevance for the class, blue: against it",
        fontsize=10,
        y=0.96,
    )
    figure.subplots_adjust(wspace=0.04, hspace=0.06)
    save(figure, path)


def roc(path: Path, results: dict[str, Any], methods: Sequence[str]) -> None:
    """Motion share as a test of which network it was: a curve for every method and n_sigma."""
    rows = -(-len(methods) // 4)
    figure, axes = plt.subplots(rows, 4, figsize=(12, 3.3 * rows), sharex=True, sharey=True, squeeze=False)
    for axis, method in zip(axes.flat, methods, strict=False):
        areas = []
        for version, style in zip(versions()[1:], ("-", "--"), strict=True):
            key = f"motion share, {version}"
            both = [np.array(results["shares"][name][method][key]) for name in NETWORKS]
            axis.plot(*measures.roc_curve(*both), style, color="black", linewidth=1.2, label=version)
            areas.append("{:.2f} [{:.2f}, {:.2f}]".format(*results["areas"][method][key]))
        axis.plot([0, 1], [0, 1], color="gray", linewidth=0.6)
        axis.set_title(f"{title(method)}\n{';  '.join(areas)}", fontsize=9)
        axis.set_aspect("equal")
    for axis in axes.flat[len(methods) :]:
        axis.axis("off")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8, loc="lower right", ncols=2)
    figure.supxlabel(f"share of clips of {CHEAT} above the threshold", fontsize=9)
    figure.supylabel(f"share of clips of {MOTION} above the threshold", fontsize=9)
    figure.tight_layout()
    save(figure, path)


def bars(path: Path, results: dict[str, Any], methods: Sequence[str]) -> None:
    """Precision and pointing against the true mover, both networks, plain and selective, with intervals."""
    panels = {"precision": "share of relevant voxels on the mover", "pointing": "largest voxel on the mover"}
    figure, axes = plt.subplots(1, 2, figsize=(13, 0.62 * len(methods) + 1.2), sharey=True)
    for axis, (measure, text) in zip(axes, panels.items(), strict=True):
        height = 0.13
        for n, name in enumerate(NETWORKS):
            for v, version in enumerate(versions()):
                entries = np.array([results["means"][name][m][f"{measure}, {version}, mover"] for m in methods])
                places = np.arange(len(methods)) + height * (3 * n + v - 2.5)
                around = np.abs(entries[:, 1:].T - entries[:, 0])
                style = {"color": INK[name], "alpha": SHADES[version], "label": f"{name}, {version}"}
                axis.barh(places, entries[:, 0], height, xerr=around, error_kw={"linewidth": 0.6}, **style)
        axis.axvline(results["base rates"]["mover"], color="black", linewidth=0.8, linestyle=":", label="by chance")
        axis.set_title(text, fontsize=10)
        axis.set_xlim(0, 1)
    axes[0].set_yticks(range(len(methods)), [title(m) for m in methods])
    axes[0].invert_yaxis()
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    save(figure, path)


def where(path: Path, results: dict[str, Any], methods: Sequence[str]) -> None:
    """How each method's positive relevance, and what is kept of it, is split: the mover, the still shape, the rest."""
    figure, axes = plt.subplots(1, 4, figsize=(14, 0.36 * len(methods) + 1.2), sharey=True)
    panels = [(name, version) for name in NETWORKS for version in versions()[:2]]
    for axis, (name, version) in zip(axes, panels, strict=True):
        means = [results["means"][name][m] for m in methods]
        masses = np.array([[row[f"mass, {version}, {k}"][0] for k in ("mover", "still")] for row in means])
        left = np.zeros(len(methods))
        for share, text, ink in zip(
            (*masses.T, 1 - masses.sum(1)),
            ("mover", "still shape", "elsewhere"),
            ("#1f6fb4", "#d1495b", "#d9d9d9"),
            strict=True,
        ):
            axis.barh(range(len(methods)), share, 0.7, left=left, color=ink, label=text)
            left = left + share
        axis.set_title(f"{name}, {version}", fontsize=10)
        axis.set_xlim(0, 1)
    axes[0].set_yticks(range(len(methods)), [title(m) for m in methods])
    axes[0].invert_yaxis()
    axes[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    save(figure, path)
