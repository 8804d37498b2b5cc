"""From the measures of many videos to tables, as text, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..staging import whole_file
from ..text import printable
from .measuring import MEASURES, Key, Settings

TIMES = ("ms", "extra_ms")
NOTHING = "–"


class Stat(NamedTuple):
    """A measure over all videos: mean of the videos' means, their standard deviation (N-1), and how many they are."""

    average: float
    deviation: float | None
    videos: int


@dataclass(frozen=True)
class Table:
    """Cells of text, the first row being the header's."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str

    def to_markdown(self) -> str:
        lines = [self.header, ["---", *("---:" for _ in self.header[1:])], *self.rows]
        cells = ("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"## {self.title}\n\n" + "\n".join(cells) + f"\n\n{self.note}\n"


@dataclass
class Evaluation:
    """What was measured on many videos.

    Attributes:
        settings: what was measured, and how.
        run: everything that the numbers depend on, JSON-able: seed, settings, model, versions.
        videos: from `Evaluator`, one for each video.
        failed: videos without numbers, as `{"video": ..., "error": ...}`.
    """

    settings: Settings
    run: dict[str, Any]
    videos: list[dict[str, Any]]
    failed: list[dict[str, str]] = field(default_factory=list)

    @cached_property
    def means(self) -> list[dict[Key, float]]:
        """For each video, the mean of every measure over its clips."""
        found = []
        for video in self.videos:
            rows = {Key(*(row[name] for name in Key._fields)): row["values"] for row in video["measures"]}
            values = {key: [v for v in row if v is not None] for key, row in rows.items()}
            found.append({key: float(np.mean(row)) for key, row in values.items() if row})
        return found

    @cached_property
    def summary(self) -> dict[Key, Stat]:
        columns = defaultdict(list)
        for means in self.means:
            for key, mean in means.items():
                columns[key].append(mean)
        return {
            key: Stat(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))
            for key, values in columns.items()
        }

    @property
    def size(self) -> str:
        """How many videos and clips, in words."""
        clips = sum(len(video["clips"]) for video in self.videos)
        return ", ".join(f"{n} {noun}{'s' * (n != 1)}" for n, noun in ((len(self.videos), "video"), (clips, "clip")))

    @property
    def notes(self) -> list[str]:
        """What a reader of the tables should know."""
        notes = [note for video in self.videos for note in video["notes"]]
        notes += [f"{v['video']} is cut off: {v['frames']} frames were used" for v in self.videos if v["cut_off"]]
        if (folder := self.run.get("options", {}).get("masks")) and not any(video["masks"] for video in self.videos):
            notes.append(f"no video has masks in {folder}")
        machines = {json.dumps(video["machine"], sort_keys=True) for video in self.videos if "machine" in video}
        if len(machines) > 1:
            notes.append(f"the times come from {len(machines)} machines")
        return list(dict.fromkeys(notes))

    def curve(self, measure: str, method: str) -> list[float]:
        """A measure of a method's selective version over the thresholds of the sweep."""
        return [self.summary[Key(measure, method, n)].average for n in sorted(set(self.settings.sweep))]

    @property
    def tables(self) -> list[Table]:
        """The paper's four, and those of what else was measured."""
        made = [self._precision(), self._agreement(), self._selectivity(), self._times()]
        made += [self._curves(), self._truth(), self._sweep()]
        return [table for table in made if table.rows]

    def to_markdown(self, pictures: Sequence[str] = ()) -> str:
        counts = [len(video["clips"]) for video in self.videos]
        lines = [
            "# Evaluation\n",
            f"{self.size}, {min(counts)} to {max(counts)} a video. Every number is the mean over a video's clips, then "
            "over the videos; SD is the standard deviation of the videos' means.\n",
            *(table.to_markdown() for table in self.tables),
            *(f"![{Path(name).stem}]({name})\n" for name in pictures),
            *(f"Note: {printable(note)}\n" for note in self.notes),
        ]
        if self.failed:
            rows = (printable(f"{row['video']}: {row['error']}") for row in self.failed)
            lines += ["## Videos without numbers\n", *(f"- {row}" for row in rows), ""]
        return "\n".join([*lines, "## Run\n", "```json", json.dumps(self.run, indent=2), "```", ""])

    def to_csv(self) -> str:
        """A row for each `Key`; the column `run` has seed, options, model and versions as JSON."""
        rows = ([*key, stat.average, stat.deviation, stat.videos] for key, stat in self.summary.items())
        return self._csv([*Key._fields, *Stat._fields], rows)

    def videos_csv(self) -> str:
        """A row for each video and `Key`: the mean over its clips."""
        pairs = zip(self.videos, self.means, strict=True)
        rows = (
            [printable(video["video"]), video["class"], len(video["clips"]), *key, mean]
            for video, means in pairs
            for key, mean in means.items()
        )
        return self._csv(["video", "class", "clips", *Key._fields, "mean"], rows)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the run, what the measures mean, the summary, every video with the values of its clips."""
        return {
            "run": self.run,
            "measures": MEASURES,
            "summary": [{**key._asdict(), **stat._asdict()} for key, stat in self.summary.items()],
            "videos": self.videos,
            "failed": self.failed,
        }

    def write(self, folder: Path) -> list[Path]:
        """Writes evaluation.md, .csv, .json, videos.csv and the plots, each whole or not at all; returns the paths.

        Raises:
            ImportError: without matplotlib.
        """
        from .plots import draw

        pictures = draw(self, folder)
        texts = {
            "evaluation.md": self.to_markdown([path.name for path in pictures]),
            "evaluation.csv": self.to_csv(),
            "videos.csv": self.videos_csv(),
            "evaluation.json": json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n",
        }
        for name, text in texts.items():
            with whole_file(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8", newline="")
        return [*(folder / name for name in texts), *pictures]

    def _csv(self, header, rows) -> str:
        run, text = json.dumps(self.run), io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*header, "run"])
        writer.writerows(["" if cell is None else cell for cell in [*row, run]] for row in rows)
        return text.getvalue()

    # ---- The tables ----

    def _precision(self) -> Table:
        rows = [
            [name_of(key), *self._average(key), *self._average(key._replace(measure="empty"))[:1]]
            for method in self.settings.methods
            for key in self._versions("precision", method)
        ]
        rows.append(["every voxel (base rate)", *self._average(Key("moving")), "0.00"])
        return Table(
            f"Table 1: motion precision{self._at}",
            ["map", "average %", "SD %", "empty maps %"],
            rows,
            f"Share of the relevant voxels with optical flow ({self.settings.flow}) {self._moves()}; {self.floor}. "
            "An empty map counts as 0. The last row is what a map that is relevant everywhere would get.",
        )

    def _agreement(self) -> Table:
        methods = self.settings.methods
        columns = [m for m in methods if any(b == m for _, b in self.settings.pairs)]
        first = [m for m in methods if any(a == m for a, _ in self.settings.pairs)]
        cells = [[self._pair(a, b) if (a, b) in self.settings.pairs else NOTHING for b in columns] for a in first]
        meaning = {
            "iou": "Relevant voxels of both methods / relevant voxels of either",
            "first": "Relevant voxels of both methods / relevant voxels of the row's",
        }[self.settings.agreement]
        return Table(
            "Table 2: agreement",
            ["average ± SD %", *columns],
            [[a, *row] for a, row in zip(first, cells, strict=True)],
            f"{meaning}; {self.floor}.",
        )

    def _selectivity(self) -> Table:
        keys = [Key("voxels", method, self.settings.n_sigma) for method in self.settings.methods]
        measures = ("voxels", "relevance", "motion_share")
        return Table(
            f"Table 3: selectivity{self._at}",
            ["map", "voxels %", "SD %", "relevance %", "SD %", "motion share %", "SD %"],
            [[name_of(key), *(c for m in measures for c in self._average(key._replace(measure=m)))] for key in keys],
            f"What the selective map keeps of the whole one: relevant voxels, their relevance ({self.floor}), and the "
            "share of all absolute relevance.",
        )

    def _times(self) -> Table:
        rows = []
        for method in self.settings.methods if self.settings.repeats else ():
            n = self.settings.n_sigma
            keys = (Key("ms", method), Key("ms", method, n), Key("extra_ms", method, n))
            rows.append([method, *(cell for key in keys for cell in self._average(key))])
        return Table(
            f"Table 4: overhead{self._at}",
            ["method", "original ms", "SD", "selective ms", "SD", "extra ms", "SD"],
            rows,
            f"Network and explanation of one clip, each method alone; {self.settings.repeats} runs of each in turns on "
            "every video's first clip.",
        )

    def _curves(self) -> Table:
        return Table(
            f"Insertion and deletion{self._at}",
            ["map", "insertion AUC %", "SD %", "deletion AUC %", "SD %"],
            self._both("insertion", "deletion") if self.settings.auc else [],
            f"Area under the class probability over the share of voxels, {self.settings.auc} steps, against a "
            f"{self.settings.auc_baseline} clip; a good map has a large insertion and a small deletion.",
        )

    def _truth(self) -> Table:
        return Table(
            f"Ground truth{self._at}",
            ["map", "pointing game %", "SD %", "relevant voxels on it %", "SD %"],
            self._both("pointing", "in_mask"),
            f"Pointing game: the most relevant voxel of a clip lies on the mask or within {self.settings.tolerance} "
            f"pixels of it; {sum(bool(v['masks']) for v in self.videos)} of {len(self.videos)} videos have masks. "
            f"{self.floor.capitalize()}.",
        )

    def _sweep(self) -> Table:
        measures = ("precision", "empty", "voxels", "relevance", "motion_share")
        keys = [Key("", m, n) for m in self.settings.methods for n in sorted(set(self.settings.sweep))]
        return Table(
            "Sweep over n_sigma",
            ["method", "n σ", "precision %", "empty maps %", "voxels %", "relevance %", "motion share %"],
            [
                [key.method, f"{key.n_sigma:g}", *(self._average(key._replace(measure=m))[0] for m in measures)]
                for key in keys
            ],
            f"The columns of Tables 1 and 3; {self.floor}.",
        )

    def _both(self, *measures: str) -> list[list[str]]:
        return [
            [name_of(key), *(cell for m in measures for cell in self._average(key._replace(measure=m)))]
            for method in self.settings.methods
            for key in self._versions(measures[0], method)
            if key in self.summary
        ]

    def _versions(self, measure: str, method: str) -> list[Key]:
        return [Key(measure, method), Key(measure, method, self.settings.n_sigma)]

    def _average(self, key: Key) -> list[str]:
        stat = self.summary.get(key)
        return _cells(stat, 1 if key.measure in TIMES else 100) if stat else [NOTHING, NOTHING]

    def _pair(self, a: str, b: str) -> str:
        average, deviation = self._average(Key("agreement", a, None, b))
        return f"{average} ± {deviation}" if deviation != NOTHING else average

    @property
    def floor(self) -> str:
        """What counts as relevant, in words."""
        floor = self.settings.floor
        return (
            f"relevant is what exceeds {floor_text(floor)} of the clip's maximum"
            if floor != "quantile"
            else ("relevant is what exceeds the quantile floor")
        )

    @property
    def _at(self) -> str:
        return f" (selective: {self.settings.n_sigma:g} σ)"

    def _moves(self) -> str:
        moving = self.settings.moving
        return "above the frame's standard deviation" if moving == "frame_std" else f"above {moving:g} pixels a frame"


def floor_text(floor: float | str) -> str:
    """0.0392 -> 10/255, where it is a whole number of those."""
    if isinstance(floor, str):
        return floor
    steps = round(floor * 255)
    return f"{steps}/255" if steps and abs(floor * 255 - steps) < 1e-9 else f"{floor:g}"


def name_of(key: Key) -> str:
    """Of the map: the method, and which version of it."""
    return key.method if key.n_sigma is None else f"selective {key.method}"


def _cells(stat: Stat, factor: float = 100) -> list[str]:
    deviation = NOTHING if stat.deviation is None else f"{factor * stat.deviation:.2f}"
    return [f"{factor * stat.average:.2f}", deviation]
