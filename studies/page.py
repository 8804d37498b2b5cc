"""The page, written from the results alone: every sentence that judges is chosen by an interval."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .generated import CHEAT, MOTION, NETWORKS, SETS
from .markdown import Interval, listed, percent, points, sorted_out, table, title, with_interval, wrapped
from .measures import DRAWS, PLAIN, versions

SELECTIVE = versions()[1:]
_TRUTHS = {"mover": "on the mover", "changing": "where the mover's outline passes", "flow": "by estimated flow"}


def page(results: dict[str, Any]) -> str:
    """The whole page in Markdown."""
    methods = list(results["settings"]["methods"])
    generated = results["generated"]
    lines = [
        "# The motion study",
        "",
        "*Does a motion share say that a network looked at motion?* Hiley et al. (2020) could judge",
        "selective relevance by",
        "estimated optical flow alone. Here the clips are drawn",
        "([clipsight.synthetic](../python/clipsight/synthetic.py)), so that",
        "it is known what moves; and there are two networks of one architecture that name the same",
        "classes on the same clips,",
        "of which one was trained where it could cheat.",
        "",
        "This page was written by one command, its sentences chosen by the numbers:",
        "",
        "```console",
        results["settings"]["command"],
        "```",
        "",
        *_networks(results),
        *_findings(generated, methods),
        *_one_clip(results),
        *_precision(generated, methods),
        *_pointing(generated, methods),
        *_where(generated, methods),
        *_selectivity(generated, methods),
        *_separation(generated, methods),
        *(_real(results, methods) if "real" in results else _no_real()),
        *_settings(results, methods),
    ]
    return wrapped("\n".join(lines).strip()) + "\n"


def _networks(results: dict[str, Any]) -> list[str]:
    accuracy, count = results["accuracy"], results["settings"]["accuracy_clips"]
    rows = [[f"`{name}`", *(f"{100 * accuracy[name][s]:.1f} %" for s in SETS)] for name in NETWORKS]
    told, nothing, _ = SETS
    drop = accuracy[CHEAT][told] - accuracy[CHEAT][nothing]
    chance = 1 / 8
    error = (chance * (1 - chance) / count) ** 0.5
    near = abs(accuracy[CHEAT][nothing] - chance) < 2 * error
    verdict = (
        f"Without the hue `{CHEAT}` is right in {percent(accuracy[CHEAT][nothing])} % of the clips, "
        + (
            "which chance (12.5 %) explains: it names the hue and knows nothing of the motion."
            if near
            else f"{100 * drop:.1f} points less; chance is 12.5 %, so it "
            + ("still knows something of the motion." if accuracy[CHEAT][nothing] > chance else "is misled by the hue.")
        )
        + f" `{MOTION}` changes by {100 * abs(accuracy[MOTION][told] - accuracy[MOTION][nothing]):.1f} points."
    )
    return [
        "## Two networks",
        "",
        "A clip shows one shape that moves, turns or grows, which is the class, and one that stands",
        "still. `movers` was",
        "trained on clips whose still shape looks like the mover. `movers_biased` was trained, with",
        "the same script and",
        "settings, on clips whose still shape has one of eight muted hues that tells the class",
        "(`--bias 1`); both are shipped.",
        f"Share of {count} new clips named correctly; the three sets are the same scenes but for the",
        "still shape's colour:",
        "",
        *table(["network", *SETS], rows),
        verdict,
        "",
        "All that follows is on clips where the hue tells the class, and explains the true class, which "
        + " and ".join(f"`{n}` names in {percent(results['generated']['right'][n])} %" for n in NETWORKS)
        + f" of them. Every number is over the same {results['settings']['clips']} clips (seed "
        f"{results['settings']['seed']}), unless it says otherwise.",
        "",
    ]


def _findings(generated: dict[str, Any], methods: list[str]) -> list[str]:
    def gain(name: str, key: str) -> dict[str, Interval]:
        return {m: generated["gains"][name][m][key] for m in methods}

    lines = ["## What came out", ""]
    for version in SELECTIVE:
        lines += [
            f"- **Motion precision, {version} against the plain map, `{MOTION}`** (true mover): "
            + sorted_out(
                gain(MOTION, f"precision, {version}, mover"), 0, "higher", "lower", "no difference to be told"
            ),
        ]
    version = SELECTIVE[0]
    lines += [
        f"- **The same, `{CHEAT}`**, {version}: "
        + sorted_out(gain(CHEAT, f"precision, {version}, mover"), 0, "higher", "lower", "no difference to be told"),
        f"- **Pointing game, {version} against the plain map, `{MOTION}`**: "
        + sorted_out(gain(MOTION, f"pointing, {version}, mover"), 0, "better", "worse", "no difference to be told"),
    ]
    scores = {f"motion share, {v}": f"motion share at {v}" for v in SELECTIVE}
    scores |= {f"middle share, {version}": f"motion share at {version} of the clip's middle half"}
    scores |= {"temporal change": "temporal change of the plain map, without any selection,"}
    for key, text in scores.items():
        lines += [
            f"- **Does the {text} tell the two networks apart?** "
            + sorted_out(
                {m: generated["areas"][m][key] for m in methods},
                0.5,
                f"higher for `{MOTION}`, as it should be,",
                f"the wrong way round, higher for `{CHEAT}`,",
                "not to be told from a coin",
            )
        ]
    for version in SELECTIVE[:1]:
        kept = {m: generated["means"][CHEAT][m][f"mass, {version}, still"] for m in methods}
        low, high = min(kept, key=lambda m: kept[m][0]), max(kept, key=lambda m: kept[m][0])
        lines += [
            f"- **What {version} keeps on `{CHEAT}`**: from {percent(kept[low])} % ({title(low)}) to "
            f"{percent(kept[high])} % ({title(high)}) of it lies on the shape that stands still."
        ]
    return [*lines, "", "Each verdict is decided by a 95 % interval over clips; the numbers follow.", ""]


def _one_clip(results: dict[str, Any]) -> list[str]:
    return [
        "## One clip",
        "",
        "![Maps of every method on one clip, for both networks](motion-study/maps.png)",
        "",
    ]


def _by_version(
    generated: dict[str, Any], methods: list[str], measure: str, name: str, truths: Iterable[str]
) -> list[str]:
    rows = [
        [title(m), *(percent(generated["means"][name][m][f"{measure}, {v}, {t}"]) for t in truths for v in versions())]
        for m in methods
    ]
    return table([f"`{name}`, %", *(f"{t}: {v}" for t in truths for v in versions())], rows)


def _precision(generated: dict[str, Any], methods: list[str]) -> list[str]:
    base, flow = generated["base rates"], generated["flow"]
    lines = [
        "## Motion precision",
        "",
        "The share of the relevant voxels that move, in percent, by three truths: "
        + ", ".join(f"{text} (*{key}*, {percent(base[key])} % of all voxels)" for key, text in _TRUTHS.items())
        + ". Precision at random is that base rate. Estimated flow is what there is without a ground truth: "
        f"{percent(flow['precision'])} % of what it calls moving lies on the mover, and it finds "
        f"{percent(flow['recall'])} % of the mover's voxels.",
        "",
        "![Precision and pointing game as bars](motion-study/bars.png)",
        "",
    ]
    for name in NETWORKS:
        lines += _by_version(generated, methods, "precision", name, _TRUTHS)
    lines += ["Selective minus plain on the true mover, percentage points and 95 % interval:", ""]
    rows = [
        [title(m), *(points(generated["gains"][n][m][f"precision, {v}, mover"]) for n in NETWORKS for v in SELECTIVE)]
        for m in methods
    ]
    lines += table(["", *(f"`{n}`, {v}" for n in NETWORKS for v in SELECTIVE)], rows)
    lines += _alike(generated, methods)
    disagree = [
        (n, m, v)
        for n in NETWORKS
        for m in methods
        for v in SELECTIVE
        if _sign(generated["gains"][n][m][f"precision, {v}, mover"])
        * _sign(generated["gains"][n][m][f"precision, {v}, flow"])
        < 0
    ]
    cases = len(NETWORKS) * len(methods) * len(SELECTIVE)
    return [
        *lines,
        f"Estimated flow and the true mover contradict each other on whether selective relevance helps in "
        f"{len(disagree)} of {cases} cases" + (f": {_cases(disagree)}." if disagree else "."),
        "",
    ]


def _alike(generated: dict[str, Any], methods: list[str]) -> list[str]:
    """A word on methods whose precision is the same everywhere, as theory wants it of two pairs."""
    why = {
        (
            "saliency_tube",
            "grad_cam",
        ): "in front of a global pooling Grad-CAM is the saliency tube without what is negative",
        ("lrp_epsilon", "input_gradient"): "with a tiny epsilon LRP is gradient times input in a network of ReLUs",
    }
    lines = []
    for (a, b), reason in why.items():
        if a in methods and b in methods:
            means = [[generated["means"][n][m] for n in NETWORKS] for m in (a, b)]
            gap = max(abs(x[k][0] - y[k][0]) for x, y in zip(*means, strict=True) for k in x if "precision" in k)
            if gap < 0.005:
                lines.append(f"The rows of {listed((a, b))} agree to {100 * gap:.2f} points, and should: {reason}.")
    return [*lines, ""] if lines else []


def _sign(entry: Interval) -> int:
    return (entry[1] > 0) - (entry[2] < 0)


def _cases(cases: list[tuple[str, str, str]]) -> str:
    return "; ".join(f"{title(m)}, `{n}`, {v}" for n, m, v in cases)


def _pointing(generated: dict[str, Any], methods: list[str]) -> list[str]:
    base = generated["base rates"]
    lines = [
        "## Pointing game",
        "",
        "Percent of clips whose largest voxel lies on the mover, and on the still shape, with no tolerance "
        f"(by chance {percent(base['mover'])} % and {percent(base['still'])} %). An empty map misses.",
        "",
    ]
    for name in NETWORKS:
        lines += _by_version(generated, methods, "pointing", name, ("mover", "still"))
    return lines


def _where(generated: dict[str, Any], methods: list[str]) -> list[str]:
    two = versions()[:2]

    def at(name: str, method: str, version: str, region: str) -> Interval:
        return generated["means"][name][method][f"mass, {version}, {region}"]

    def both(name: str, method: str, version: str) -> str:
        return " / ".join(percent(at(name, method, version, region)) for region in ("mover", "still"))

    rows = [[title(m), *(both(n, m, v) for n in NETWORKS for v in two)] for m in methods]
    lines = [
        "## Where the relevance lies",
        "",
        "Percent of the positive relevance on the mover / on the still shape, of the plain map and of what selective",
        "relevance keeps of it, which only a ground truth can tell (of an empty map, 0):",
        "",
        "![Relevance on the mover, on the still shape and elsewhere](motion-study/where.png)",
        "",
        *table(["%: mover / still", *(f"`{n}`: {v}" for n in NETWORKS for v in two)], rows),
    ]
    for version in two:
        gaps = {m: (at(CHEAT, m, version, "still"), at(CHEAT, m, version, "mover")) for m in methods}
        found = [m for m, (still, mover) in gaps.items() if still[1] > mover[2]]
        what = "the plain map" if version == PLAIN else f"what is left as motion at {version}"
        lines += [
            f"On `{CHEAT}`, {what} has more on the still shape than on the mover for "
            + (listed(found) if found else "no method")
            + (
                "."
                if version == PLAIN
                else ": the still shape, which does not move, is called motion."
                if found
                else "."
            )
        ]
    return [*lines, ""]


def _selectivity(generated: dict[str, Any], methods: list[str]) -> list[str]:
    lines = [
        "## Selectivity and motion share",
        "",
        "Relevant voxels of the selective map over those of the plain one, and in parentheses the",
        "same of their relevance;",
        "the motion share (of the absolute relevance, without a floor); and the clips whose",
        "selective map is empty. Percent.",
        "",
    ]
    for name in NETWORKS:
        means = generated["means"][name]
        rows = [
            [
                title(m),
                *(_selected(means[m], v) for v in SELECTIVE),
                *(percent(means[m][f"motion share, {v}"]) for v in SELECTIVE),
                *(percent(means[m][f"empty, {v}"]) for v in SELECTIVE),
            ]
            for m in methods
        ]
        head = [f"{what}, {v}" for what in ("selectivity", "motion share", "empty") for v in SELECTIVE]
        lines += table([f"`{name}`, %", *head], rows)
    return lines


def _selected(row: dict[str, Interval], version: str) -> str:
    voxels, relevance = (percent(row[f"selectivity, {version}, {what}"]) for what in ("voxels", "relevance"))
    return f"{voxels} ({relevance})"


def _separation(generated: dict[str, Any], methods: list[str]) -> list[str]:
    areas, share = generated["areas"], f"motion share, {SELECTIVE[0]}"
    keys = {
        **{f"motion share, {v}": f"motion share, {v}" for v in SELECTIVE},
        f"middle share, {SELECTIVE[0]}": f"middle half of the clip, {SELECTIVE[0]}",
        "temporal change": "temporal change",
        f"mass, {PLAIN}, mover": "relevance on the mover",
    }
    rows = [[title(m), *(with_interval(areas[m][k]) for k in keys)] for m in methods]
    lines = [
        "## Does the motion share tell the networks apart?",
        "",
        f"Area under the ROC curve: how likely the value of `{MOTION}` on one clip is higher than that of",
        f"`{CHEAT}` on another; 0.5 is a coin, below 0.5 the wrong way round. Beside the motion share",
        "three controls: the",
        "motion share of the middle half of the clip's frames (same mask), away from its ends; the",
        "temporal change of the",
        "plain map, which needs no mask; and the share of positive relevance that lies on the true",
        "mover, which cannot be",
        "had without a ground truth. 95 % bootstrap intervals over clips; where every pair of clips is in",
        "order, the interval has no width.",
        "",
        "![ROC curves of the motion share, for every method](motion-study/roc.png)",
        "",
        *table(["", *keys.values()], rows),
    ]
    for key in (f"middle share, {SELECTIVE[0]}", "temporal change"):
        gaps = {m: (areas[m][key], areas[m][share]) for m in methods}
        above = [m for m, (other, own) in gaps.items() if other[1] > own[2]]
        below = [m for m, (other, own) in gaps.items() if other[2] < own[1]]
        parts = [f"{word} for {listed(names)}" for word, names in (("better", above), ("worse", below)) if names]
        lines += [
            f"- {keys[key]}, against the whole motion share at {SELECTIVE[0]} (intervals that do not overlap): "
            + ("; ".join(parts) or "neither better nor worse for any method")
            + "."
        ]
    means, kinds = generated["means"], {"motion": "whole clip", "middle": "middle half"}
    rows = [
        [title(m), *(percent(means[n][m][f"{k} share, {SELECTIVE[0]}"]) for n in NETWORKS for k in kinds)]
        for m in methods
    ]
    return [
        *lines,
        "",
        f"Mean motion share at {SELECTIVE[0]}, percent:",
        "",
        *table(["%", *(f"`{n}`: {text}" for n in NETWORKS for text in kinds.values())], rows),
        "The intervals hold for new clips and these two networks, one training of each; other trainings may differ.",
        "",
    ]


def _no_real() -> list[str]:
    return ["## Real clips", "", "Not measured: no folder of clips was given (`--data`).", ""]


def _real(results: dict[str, Any], methods: list[str]) -> list[str]:
    real = results["real"]
    base = real["base rates"]
    windows = ", ".join(f"`{video}` {count}" for video, count in real["windows"].items())
    lines = [
        "## Real clips",
        "",
        f"Windows of 16 frames side by side: {windows}, from a folder that is not part of this",
        "repository. Neither network",
        "was trained on anything like them, and each explains the class that it happens to name:",
        "this compares maps with",
        "motion, it says nothing of recognition. What moves is estimated optical flow (DIS, above",
        "0.5 pixels per frame of the",
        f"source, {percent(base['flow'])} % of all voxels); a telling hue there is none. Windows of",
        "one video are alike, so",
        "that the intervals, which are over windows, are too narrow.",
        "",
    ]
    for name in NETWORKS:
        head = [f"precision, {v}" for v in versions()] + [f"pointing, {v}" for v in versions()[:2]]
        rows = []
        for m in methods:
            row = real["means"][name][m]
            rows.append(
                [
                    title(m),
                    *(percent(row[f"precision, {v}, flow"]) for v in versions()),
                    *(percent(row[f"pointing, {v}, flow"]) for v in versions()[:2]),
                    *(_selected(row, v) for v in SELECTIVE),
                    *(percent(row[f"motion share, {v}"]) for v in SELECTIVE),
                ]
            )
        head += [f"{what}, {v}" for what in ("selectivity", "motion share") for v in SELECTIVE]
        lines += table([f"`{name}`, %", *head], rows)
    for version in SELECTIVE:
        for name in NETWORKS:
            gains = {m: real["gains"][name][m][f"precision, {version}, flow"] for m in methods}
            lines += [
                f"- `{name}`, {version}, motion precision against the plain map: "
                + sorted_out(gains, 0, "higher", "lower", "no difference to be told")
            ]
    lines += ["", "Area under the ROC curve of the motion share between the two networks on the same windows:", ""]
    keys = [f"motion share, {v}" for v in SELECTIVE]
    lines += table(["", *keys], [[title(m), *(with_interval(real["areas"][m][k]) for k in keys)] for m in methods])
    lines += [
        f"The cricket clip ({real['windows']['cricket_rgb.gif']} windows) also has a published flow,",
        "a GIF of colours whose",
        "palette makes it coarse. Motion precision by it and by our estimate, percent "
        f"(base rates {percent(base['cricket, published flow'])} and {percent(base['cricket, flow'])}):",
        "",
    ]
    for name in NETWORKS:
        head = [f"{truth}: {v}" for truth in ("published flow", "flow") for v in versions()]
        rows = [
            [
                title(m),
                *(
                    percent(real["cricket"][name][m][f"precision, {v}, {t}"])
                    for t in ("published flow", "flow")
                    for v in versions()
                ),
            ]
            for m in methods
        ]
        lines += table([f"`{name}`, %", *head], rows)
    return lines


def _settings(results: dict[str, Any], methods: list[str]) -> list[str]:
    s = results["settings"]
    return [
        "## Settings",
        "",
        f"- Clips: {s['clips']}, 16 frames of 64x64 pixels, every class alike often, seed {s['seed']}; accuracy on "
        f"{s['accuracy_clips']} clips of seed {s['seed'] + 1}. Training saw other seeds.",
        f"- Relevant is what exceeds {s['floor']:.4f} (10/255) of the clip's largest relevance, on",
        "the raw maps: a min-max",
        "  would lift the zero of a signed map above it. For a selective map the floor is that of its plain map.",
        f"- Selective relevance: {' and '.join(SELECTIVE)} (default, and the paper's), replicated",
        "borders, either sign.",
        f"- Intervals: percentile bootstrap over clips, {DRAWS} draws, seed {s['seed']}.",
        f"- Machine: {s['machine']}; torch {s['torch']}.",
        "- Options of the methods:",
        *(f"  - {title(m)}: {_options(s['methods'][m])}" for m in methods),
        "",
        "All numbers, and the motion share of every clip: [results.json](motion-study/results.json).",
    ]


def _options(options: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in options.items() if k != "method")
