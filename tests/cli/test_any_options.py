"""Options that nobody thought of: every command ends in an exit code and a message, never in an exception."""

from __future__ import annotations

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("av")
typer = pytest.importorskip("typer")
app = pytest.importorskip("clipsight.cli").app
CliRunner = pytest.importorskip("typer.testing").CliRunner
COMMANDS = typer.main.get_command(app).commands
WORDS = [
    "",
    "0",
    "-1",
    "1",
    "nan",
    "inf",
    "1e999",
    "9" * 30,
    "0x0",
    "x",
    "a b",
    "[red]",
    "[/]",
    "\x1b[2J",
    "../..",
    "é",
]
WORDS += ["\udce9", "-", "--", "%d", "file:x", "concat:a|b", "cpu", "cuda:99", "os:system", "./nets:Make", "top0", "::"]
EXAMPLES = [pytest.param(40), pytest.param(500, marks=pytest.mark.full)]


def arguments(command: click.Command):
    """Some options with any values, and any positional arguments: nothing that a network could be made of."""
    options = [
        p
        for p in command.params
        if isinstance(p, click.Option) and not {"--debug", "--ray", "--ray-address"} & {*p.opts}
    ]
    flags = st.sampled_from([[p.opts[0]] for p in options if p.is_flag] or [[]])
    values = st.tuples(
        st.sampled_from([p.opts[0] for p in options if not p.is_flag] or ["--help"]), st.sampled_from(WORDS)
    )
    given = st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=3)
    return st.tuples(given, st.lists(flags | values.map(list), max_size=4)).map(
        lambda drawn: [*drawn[0], *(word for option in drawn[1] for word in option)]
    )


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"demo", "doctor"}))
def test_any_options(name, examples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_bytes(b"no video, no network")

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(arguments(COMMANDS[name]))
    def check(words):
        result = CliRunner().invoke(app, [name, *words], env={"COLUMNS": "80"})
        assert result.exception is None or isinstance(result.exception, SystemExit), (words, result.exception)
        assert result.exit_code in (0, 1, 2)
        assert "Traceback" not in result.output
        assert "\x1b[2J" not in result.output

    check()
