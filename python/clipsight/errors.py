"""What an error says to someone who does not read Python, in one line."""

from __future__ import annotations

import errno
import os
import re
import traceback

from .text import printable

ADVICE = {
    errno.ENOSPC: "free some space, or write elsewhere",
    errno.EDQUOT: "free some space, or write elsewhere",
    errno.EROFS: "write elsewhere",
    errno.EACCES: "change its permissions, or take another place",
    errno.EPERM: "change its permissions, or take another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit with ulimit -n",
}
STACK = re.compile(r" (?=Exception raised from |frame #0: )")  # of C++, at the end of what torch says
OUT_OF_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|bad_alloc|bad allocation")

LONGEST = 4000  # characters of a message that are looked at
LONGEST_LINE = 300  # characters of another library's line in a message of ours

COLORS = re.compile(r"\x1b\[[0-9;]*m")
_SAYS_NOTHING = re.compile(
    r"Traceback|File \"|[~^]+$|def forward|Failed to (convert|export|decompose|run|optimize) the|"
    r"The following operation failed in the TorchScript interpreter|backend='\w+' raised:?$|## "
)
_WORDS_ALONE = (RuntimeError, ValueError, OSError)  # what these say needs no name of the kind in front

user_code: set[str] = set()
"""Files and folders of code that the user named, as opposed to ours and to libraries."""


def error_text(error: BaseException) -> str:
    """One printable line, which names no exception class, but for one of the user's own code, which it places there."""
    text = printable(STACK.split(" ".join(str(error)[:LONGEST].split()))[0])
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(text):
        return "out of memory" + (f" ({text})" if text else "") + "; a smaller --size takes less"
    if place := _in_user_code(error):
        return f"{printable(place)} raised {type(error).__name__}: {text}; --debug shows the traceback"
    cause = error.__cause__
    while cause is not None and "--debug" not in text:
        if place := _in_user_code(cause):
            return f"{text} ({printable(place).removesuffix(',')}; --debug shows the traceback)"
        cause = cause.__cause__
    if isinstance(error, OSError) and error.errno and error.strerror:
        where = "" if error.filename is None else f"{printable(os.fsdecode(error.filename))}: "
        what = printable(error.strerror[:1].lower() + error.strerror[1:])
        return where + what + (f"; {ADVICE[error.errno]}" if error.errno in ADVICE else "")
    if _is_ours(error) or isinstance(error, (ValueError, OSError, ImportError)):
        return text
    return f"{text or 'something unexpected happened'}; --debug shows where"


def first_line(error: BaseException) -> str:
    """What another library's error says, for a message of ours: the first line that means something, in print.

    Those texts go on with whole graphs, advice to developers, stacks; `raise ... from error` keeps that.
    """
    text = COLORS.sub("", str(error)[: 2 * LONGEST])
    lines = [" ".join(line.split()) for line in text.splitlines()]
    lines = [line for line in lines if line and not _SAYS_NOTHING.match(line)]
    if "TorchScript" in text or "builtins." in text:  # says at the end what happened
        lines.reverse()
    line = printable(STACK.split(lines[0])[0]).rstrip(".;") if lines else ""
    line = line if len(line) <= LONGEST_LINE else line[: LONGEST_LINE - 3] + "..."
    if line and (isinstance(error, _WORDS_ALONE) or line.startswith("[")):
        return line
    return ": ".join(filter(None, (type(error).__name__, line)))


def _is_ours(error: BaseException) -> bool:
    return type(error).__module__.startswith("clipsight")


def _in_user_code(error: BaseException) -> str | None:
    """Where the user's own code raised an error, or called what did."""
    if _is_ours(error):
        return None
    if isinstance(error, SyntaxError) and error.filename and _is_user_code(error.filename):
        return f"{error.filename}, line {error.lineno},"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _is_user_code(frame.filename):
            return f"{frame.filename}, line {frame.lineno}, in {frame.name},"
    return None


def _is_user_code(file: str) -> bool:
    file = os.path.realpath(file)
    return any(file == own or file.startswith(os.path.join(own, "")) for own in user_code)
