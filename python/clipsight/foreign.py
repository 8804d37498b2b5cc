"""Errors that other libraries raise while they work for us, told in words of ours.

torch's exporters, ONNX and the compilers name their own parts, not the user's: the messages here say what was tried,
which op or module it is about, and what to do. `errors.first_line` is what is left of the original.
"""

from __future__ import annotations

import contextlib
import os
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from .errors import COLORS, LONGEST, first_line
from .layouts import MOST_COLOURS
from .text import printable

if TYPE_CHECKING:
    from torch import nn

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")

_OPS = re.compile(
    r"target=torch\.ops\.([\w.]+)|OpOverload\(op='([\w.:]+)'|\btarget: ([\w:]+\.\w+)|"
    r"^((?:aten|prims)\.\w+)(?:\.\w+)?$",
    re.MULTILINE,
)
_OF_OURS = re.compile(r"[A-Za-z_]\w*: ")
DEPENDS_ON_VALUES = ("GuardOnDataDependentSymNode", "DataDependentOutputException", "DynamicOutputShapeException")
_LIBRARIES = re.compile(r"[/\\](?:site|dist)-packages[/\\]|[/\\]lib[/\\]python3|^<")


@contextlib.contextmanager
def in_words_of_ours(kind: type[Exception], say: Callable[[Exception], str]) -> Iterator[None]:
    """Raises `kind(say(error))` for an error of others; ours, the system's and a lack of memory pass as they are."""
    try:
        yield
    except Exception as error:
        if is_ours(error) or isinstance(error, (OSError, MemoryError)):
            raise
        raise kind(say(error)) from error


def is_ours(error: BaseException) -> bool:
    """Whether this package raised it, in the words of its messages: what was asked, a colon, the rule."""
    if type(error).__module__.startswith(__package__):
        return True
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and os.path.abspath(frames[-1]).startswith(HERE) and _OF_OURS.match(str(error)) is not None


def root(error: BaseException) -> BaseException:
    """Where a chain of errors began, which says the most."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def op_in(error: BaseException) -> str:
    """The op of torch that an error, or one that led to it, is about: "aten.histc", or "" where none is named."""
    link: BaseException | None = error
    while link is not None:
        if found := _OPS.search(COLORS.sub("", str(link)[: 2 * LONGEST])):
            return ".".join(next(filter(None, found.groups())).replace("::", ".").split(".")[:2])
        link = link.__cause__
    return ""


def depends_on_values(error: BaseException) -> bool:
    """Whether a tracer met code that does one thing or another according to the values of a tensor."""
    return type(error).__name__ in DEPENDS_ON_VALUES or "data-dependent" in str(error)[:LONGEST]


def not_captured(network: nn.Module, shape: Sequence[int], like: dict, error: Exception) -> str:
    """Why torch.export has no graph of a network, and what may help.

    Args:
        network: in whose forward pass the error was raised.
        shape, like: of the clip, as for `capture`.
    """
    text = str(error)
    lengths, axes = ["N", *map(str, shape)], getattr(network, "axes", None)
    own = network
    if axes is not None:  # our own permutation in front of a network of another layout
        lengths, own = [lengths[axis] for axis in axes], network.network
    what = f"torch.export could not capture {type(own).__name__} on a clip of shape [{', '.join(lengths)}]"
    where = ", ".join(filter(None, (module_running(error, network), line_running(error))))
    what = f"{what}, at {where}" if where else what
    if depends_on_values(error):
        return (
            f"{what}: what it computes depends on the values of the clip (`if` on a tensor, `.item()`, `float(x)`, "
            "a number of found voxels), which no graph holds; write that with tensor ops, such as torch.where"
        )
    if found := re.search(r"Found <class '([\w.]+)'> in output", text):
        return (
            f"{what}: it must return tensors, alone or in tuples, lists and dicts, got {found[1].rpartition('.')[2]}; "
            "wrap it in a module that returns its logits"
        )
    few = axes is None and min(shape[1], shape[-1]) <= MOST_COLOURS
    layout = "; layout= says so where its axes are in another order" if few else ""
    return f"{what}: {first_line(error)}{_advice(network, like, text) or layout}"


def not_run(error: Exception) -> str:
    """Of a captured network on a batch of one."""
    return (
        f"explain: the captured network must run on a single clip, got {first_line(error)}; an op that takes axes by "
        "their length, such as squeeze() without one, may take the batch for one"
    )


def not_read(error: Exception) -> str:
    """Of a captured network in which the features, the classifier or the walks back could not be found."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return (
        "explain: the network's dataflow must be one that can be read, got an op that was not foreseen "
        f"({type(error).__name__} in {os.path.basename(last.filename)}, line {last.lineno}); another head may do"
    )


def _advice(network: nn.Module, like: dict, text: str) -> str:
    weights = [p for p in network.parameters() if p.is_floating_point()]
    for name in ("dtype", "device"):
        have = {getattr(p, name) for p in weights}
        if have and like[name] not in have:
            named = " and ".join(sorted(map(str, have)))
            return f"; the clip's {name} is {like[name]}, that of the weights {named}: give them the same"
    if "register_fake" in text:
        return "; torch.library.register_fake tells torch the shape of what a custom op returns"
    return ""


def module_running(error: BaseException, network: nn.Module) -> str:
    """The innermost module of the network whose code was running: "'body.0' (Conv3d)", or "" where none was."""
    names = {id(module): name for name, module in network.named_modules()}
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if names.get(id(owner)):
            found = f"'{names[id(owner)]}' ({type(owner).__name__})"
    return found


def line_running(error: BaseException) -> str:
    """The last line that was running of code that is neither ours nor a library's: "net.py, line 16", or ""."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = os.path.abspath(frame.filename)
        if not file.startswith(HERE) and not _LIBRARIES.search(file) and not frame.filename.startswith("<"):
            return f"{printable(os.path.basename(file))}, line {frame.lineno}"
    return ""
