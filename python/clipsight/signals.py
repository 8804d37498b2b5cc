"""SIGINT, SIGTERM and SIGHUP end a command alike: as an exception, so that everything that is open is cleaned up."""

from __future__ import annotations

import signal
import sys
import time

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
DEAF = 1.0
"""Seconds in which a further signal is passed over: a terminal that closes, and `timeout`, send theirs twice."""


class _Stopped(KeyboardInterrupt):
    """Of a class of its own: where a plain one has passed through C, Python may end by SIGINT after all."""


_received: list[tuple[int, float]] = []
_told: set[int] = set()


def stop_by_exception() -> None:
    """From here on such a signal raises a KeyboardInterrupt; one that whoever started the process ignores stays so."""
    for number in STOPPING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _stop)


def received() -> signal.Signals | None:
    """The first of these signals that came, if one did."""
    return signal.Signals(_received[0][0]) if _received else None


def exit_code() -> int:
    """That of a command which such a signal, or Ctrl-C, has ended; says so in one line, of a signal once."""
    number = received() or signal.SIGINT
    how = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
    if number not in _told:
        print(f"error: {how}; nothing half-written is left behind", file=sys.stderr)
    if received():
        _told.add(number)
    return 128 + number


def _stop(number: int, frame: object) -> None:
    again = bool(_received) and time.monotonic() - _received[-1][1] < DEAF
    _received.append((number, time.monotonic()))
    if not again:
        raise _Stopped
