"""What `clipsight export` and `demo` show on a terminal while they export: a line for each phase, in order."""

import io
import re

import pytest

pytest.importorskip("av")
pytest.importorskip("typer")
from rich.console import Console

from clipsight import ExportError, demo, exporters
from clipsight.cli import printing
from helpers import run, succeed

NET = "evaluated_nets:Net"
pytestmark = pytest.mark.usefixtures("nets")


@pytest.fixture
def terminal(monkeypatch):
    """What a terminal would show of `clipsight`'s own console, without the spinner."""
    screen = io.StringIO()
    monkeypatch.setattr(printing, "console", Console(file=screen, force_terminal=True, highlight=False, width=200))
    return lambda: re.findall(r"(capture|write|check) ([^\n\x1b]*) \.\.\. \d+\.\d s\n", screen.getvalue())


@pytest.mark.parametrize("suffix", [pytest.param(".onnx", marks=pytest.mark.full), ".pt"])
def test_a_terminal_shows_the_phases_of_an_export(tmp_path, terminal, suffix):
    file, alone = tmp_path / f"net{suffix}", tmp_path / f"alone{suffix}"
    options = ["--size", "32x32", "--size", "40x48", "--plain", alone, "--triton", tmp_path / "served"]
    succeed("export", "--model", NET, "--out", file, *options)
    captured = ("capture", f"{NET} at 8x32x32 and 8x40x48")
    assert terminal() == [captured, ("write", str(alone)), ("check", str(alone)), captured, *terminal()[4:]]
    assert terminal()[4:] == [("write", str(file)), ("check", str(file))]


def test_an_export_that_fails_its_check_is_one_line_after_the_phases(tmp_path, terminal, monkeypatch):
    def refuse(*_):
        raise ExportError("export: saliency_tube must be\nas in the eager model, got another")

    monkeypatch.setattr(exporters, "check_file", refuse)
    result = run("export", "--model", NET, "--out", tmp_path / "net.pt")
    assert result.exit_code == 1
    assert result.output == "error: export: saliency_tube must be as in the eager model, got another\n"
    assert [phase for phase, _ in terminal()] == ["capture", "write"]
    assert not (tmp_path / "net.pt").exists()


def test_an_export_says_nothing_of_its_phases_where_no_terminal_reads(tmp_path):
    assert "capture" not in succeed("export", "--model", NET, "--out", tmp_path / "net.pt").output


def test_the_demo_shows_the_phases_of_its_exports(tmp_path, monkeypatch, terminal):
    class Stop(Exception):
        """What follows the exports takes long."""

    def stop(*_):
        raise Stop

    monkeypatch.setattr(demo, "FILES", {"TorchScript": "movers.pt"})
    monkeypatch.setattr(demo, "_explain_in_fresh_processes", stop)
    with pytest.raises(Stop):
        demo.main(tmp_path, printing.export_lines)
    assert terminal()[0] == ("capture", "movers at 16x64x64")
    assert [phase for phase, _ in terminal()] == ["capture", "write", "check"]
