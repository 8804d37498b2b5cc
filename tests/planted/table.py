"""What the tests saw: table.json for the tool, table.md for reading. equivalent.json is written by hand."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from .fault import Fault

HERE = Path(__file__).parent


@dataclass
class Row:
    part: str
    fault: Fault
    state: str  # "seen", "missed", "not built"
    by: str | None = None
    seconds: float = 0.0
    missed_at_first: bool = False


def equivalent() -> dict[str, dict[str, str]]:
    """The faults that no test can see, with `why`, by their keys."""
    entries = json.loads((HERE / "equivalent.json").read_text(encoding="utf-8"))
    return {f"{entry['file']}: {entry['old']} -> {entry['new']}": entry for entry in entries}


class Table:
    def __init__(self, folder: Path, title: str):
        self.folder, self.title = folder, title
        self.rows: dict[str, Row] = {}
        if (folder / "table.json").exists():
            for row in json.loads((folder / "table.json").read_text(encoding="utf-8")):
                row["fault"] = Fault(**row["fault"])
                self.rows[row["fault"].key] = Row(**row)
        self._missed = {key for key, row in self.rows.items() if row.state == "missed" or row.missed_at_first}

    def clear(self, parts: list[str]) -> None:
        """Forgets the rows of these parts, but not which faults were missed once."""
        self.rows = {key: row for key, row in self.rows.items() if row.part not in parts}

    def of(self, state: str) -> set[str]:
        return {key for key, row in self.rows.items() if row.state == state}

    def add(self, row: Row, order: list[str]) -> None:
        """Puts a row in and writes both files; `order`: the names of the parts."""
        row.missed_at_first = row.state == "seen" and row.fault.key in self._missed
        self.rows[row.fault.key] = row
        self.rows = dict(sorted(self.rows.items(), key=lambda item: order.index(item[1].part)))
        rows = json.dumps([asdict(row) for row in self.rows.values()], indent=1, ensure_ascii=False)
        (self.folder / "table.json").write_text(rows + "\n", encoding="utf-8")
        self.write()

    def write(self) -> None:
        (self.folder / "table.md").write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        unseen = equivalent()
        rows = [row for key, row in self.rows.items() if key not in unseen]
        tried = [row for row in rows if row.state != "not built"]
        missed = sum(row.state == "missed" for row in tried)
        late = sum(row.missed_at_first for row in tried)
        lines = [
            "# Planted faults",
            "",
            f"{self.title} {len(tried)} faults: {len(tried) - missed - late} seen at once, {late} missed at first and "
            f"seen by a test that was added, {missed} missed. Seconds are those of the tests until one failed.",
            "",
            "| part | line | kind | fault | seen by | s |",
            "|---|---|---|---|---|---|",
        ]
        for row in tried:
            by = "**missed**" if row.state == "missed" else row.by
            by = f"missed at first; now seen by {by}" if row.missed_at_first else by
            lines.append(f"| {row.part} | {_cells(row.fault)} | {_escaped(by)} | {row.seconds:.0f} |")
        lines += _section(
            "Drawn again: they do not compile",
            [f"| {row.part} | {_cells(row.fault)} |" for row in rows if row.state == "not built"],
            "| part | line | kind | fault |",
        )
        lines += _section(
            "Drawn again: no test can see them",
            [f"| {e['file']} | {_code(e['old'])} → {_code(e['new'])} | {e['why']} |" for e in unseen.values()],
            "| file | fault | why |",
        )
        return "\n".join(lines) + "\n"


def _section(title: str, rows: list[str], head: str) -> list[str]:
    return ["", f"## {title}", "", head, "|" + "---|" * (head.count("|") - 1), *rows] if rows else []


def _cells(fault: Fault) -> str:
    return f"{fault.where} | {fault.kind} | {_code(fault.old)} → {_code(fault.new)}"


def _code(text: str) -> str:
    return f"`{_escaped(text)}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
