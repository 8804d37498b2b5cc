"""How a command ends that does not end well: an exit code, and one line for whoever called it."""

from __future__ import annotations

import functools
import signal
import sys

import typer

from .. import signals
from ..errors import error_text

BROKEN_PIPE = 128 + getattr(signal, "SIGPIPE", 13)


def one_line_errors(command):
    """Exit code 1 and `error: ...` in one line, unless --debug; 128 and its number after a signal."""

    @functools.wraps(command)
    def run(*args, debug: bool = False, **kwargs):
        try:
            return command(*args, debug=debug, **kwargs)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            raise typer.Exit(signals.exit_code()) from None
        except BrokenPipeError:  # whoever read the output has enough of it
            raise typer.Exit(BROKEN_PIPE) from None
        except Exception as error:
            if signals.received():  # a library made another error of it
                raise typer.Exit(signals.exit_code()) from None
            if debug:
                raise
            print(f"error: {error_text(error)}", file=sys.stderr)
            raise typer.Exit(1) from None

    return run
