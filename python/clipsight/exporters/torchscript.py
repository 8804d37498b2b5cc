"""TorchScript (`.pt`): one archive for `torch.jit.load` in Python and C++.

TorchScript is deprecated in current torch, but it is the format that C++ services load today; all use of it is here.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ..layouts import in_words, shape_of
from ..manifest import Manifest
from ..manifest_text import EXTRA_FILE
from .check import ExportError
from .program import Program

KIND = "torchscript"
DEFAULT_PLUGIN = True
PLUGIN_LIBRARY = "clipsight_torch"
VERSIONS = ("torch",)
LENGTHS = {"N": "logits.shape[0]", "M": "classes.shape[1]"}


def capture(program: Program) -> torch.jit.ScriptModule:
    """One script that checks the clip's shape and calls the trace of its size; the weights are stored once."""
    with quiet(), torch.no_grad():
        parts = nn.Module()
        if program.prepare is not None:
            parts.prepare = torch.jit.script(program.prepare)
        for i, size in enumerate(program.sizes):
            setattr(parts, f"size{i}", _trace(program, size, seed=i))
        module = torch.jit.script(parts)
        module.define(_forward(program))
    return module


def build(program: Program, module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """What `capture` gave, frozen."""
    with quiet(), torch.no_grad():
        # Freezing folds batch norms into convolutions, and constants that are equal in several branches become one.
        module = torch.jit.freeze(module.eval())
    if not program.plugin and "clipsight::" in str(module.graph):
        raise ExportError("export: a file with plugin=False must hold ops of plain torch only, got clipsight's own")
    return module


def convert(module: nn.Module, inputs: tuple[Tensor, ...]) -> torch.jit.ScriptModule:
    """A module over (clip[, classes]) traced and frozen; the batch size stays free."""
    with quiet(), torch.no_grad():
        return torch.jit.freeze(torch.jit.trace(module.eval(), inputs, check_trace=False))


def save(module: torch.jit.ScriptModule, path: Path, manifest: Manifest) -> None:
    archive = io.BytesIO()  # torch's own writing to a file aborts the process where the disk is full
    with quiet():
        torch.jit.save(module, archive, _extra_files={EXTRA_FILE: manifest.to_json()})
    path.write_bytes(archive.getbuffer())


class _Parts(nn.Module):
    """What is traced: all at once, or the network and the heads by themselves; tensors only, by position."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, clip: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        return self.module(clip, **dict(zip(self.names, others, strict=True)))

    def look(self, clip: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.module.look(clip))

    def maps(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(tensors) - len(self.names)
        return self.module.maps(*tensors[:count], **dict(zip(self.names, tensors[count:], strict=True)))


def _trace(program: Program, size, seed: int) -> torch.jit.ScriptModule:
    clip, *others = program.example(size, batch=3, seed=seed)  # a batch that the self-check does not try
    parts = _Parts(program.module(size), program.module_names[1:]).eval()
    if not program.optional:
        return torch.jit.trace(parts, (clip, *others), check_trace=False)
    examples = {"look": (clip,), "maps": (*parts.look(clip), *others)}
    return torch.jit.trace_module(parts, examples, check_trace=False)


def _forward(program: Program) -> str:
    arguments = ", ".join(f"{name}: Tensor" for name in program.input_names)
    others = "".join(f", {name}" for name in program.module_names[1:])
    channels, outputs = program.explained.channels, program.outputs
    allowed = " or ".join(in_words(channels, size, program.layout) for size in program.sizes)
    lines = [f"def forward(self, {arguments}) -> Tuple[{', '.join(['Tensor'] * len(outputs))}]:"]
    if program.prepare is not None:
        lines += ["    clip = self.prepare(frames)"]
    lines += ["    size = clip.shape[1:]"]
    for i, size in enumerate(program.sizes):
        lines += [f"    if size == {list(shape_of('N', channels, size, program.layout)[1:])}:"]
        if not program.optional:
            lines += [f"        return self.size{i}(clip{others})"]
            continue
        maps = ", ".join(f"maps[{k}]" for k in range(len(outputs) - 1))
        seen = ", ".join(f"seen[{k}]" for k in range(program.seen(size)))
        shapes = [", ".join(map(str, program.empty_shape(k))) for k in range(1, len(outputs))]
        shapes = [re.sub("[NM]", lambda letter: LENGTHS[letter[0]], shape) for shape in shapes]
        types = [f"dtype=torch.{output.dtype}, device=logits.device" for output in outputs[1:]]
        empty = ", ".join(f"torch.zeros([{s}], {t})" for s, t in zip(shapes, types, strict=True))
        lines += [
            f"        seen = self.size{i}.look(clip)",
            "        logits = seen[0]",
            "        if bool(explain.any()):",
            f"            maps = self.size{i}.maps({seen}{others})",
            f"            return logits, {maps}",
            f"        return logits, {empty}",
        ]
    lines.append(f'    raise ValueError("clip must have shape {allowed}, got {{}}".format(clip.shape))')
    return "\n".join([*lines, ""])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without TorchScript's deprecation notices, and without the tracer's: export checks for itself what they fear."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=r".*torch\.jit", category=FutureWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        yield
