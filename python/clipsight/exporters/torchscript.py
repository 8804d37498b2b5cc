"""TorchScript (`.pt`): one archive for `torch.jit.load` in Python and C++.

TorchScript is deprecated in current torch, but it is the format that C++ services load today; all use of it is here.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from ..manifest import EXTRA_FILE, Manifest
from .check import ExportError, random_inputs

KIND = "torchscript"
DEFAULT_PLUGIN = True
VERSIONS = ("torch",)


def build(explained, sizes, plugin: bool, names) -> torch.jit.ScriptModule:
    """One script that checks the clip's shape and calls the trace of its size; the weights are stored once."""
    with quiet(), torch.no_grad():
        branches = nn.Module()
        for i, size in enumerate(sizes):
            inputs = random_inputs(explained, size, batch=2, seed=i)
            setattr(branches, f"size{i}", torch.jit.trace(explained.at(size, plugin=plugin), inputs, check_trace=False))
        module = torch.jit.script(branches)
        module.define(_forward([(explained.channels, *size) for size in sizes], explained.classes_input, len(names)))
        # Freezing folds batch norms into convolutions, and constants that are equal in several branches become one.
        module = torch.jit.freeze(module.eval())
    if not plugin and "clipsight::" in str(module.graph):
        raise ExportError("export: a file with plugin=False must hold ops of plain torch only, got clipsight's own")
    return module


def convert(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.jit.ScriptModule:
    """A module over (clip[, classes]) traced and frozen; the batch size stays free."""
    with quiet(), torch.no_grad():
        return torch.jit.freeze(torch.jit.trace(module.eval(), inputs, check_trace=False))


def save(module: torch.jit.ScriptModule, path: Path, manifest: Manifest) -> None:
    with quiet():
        torch.jit.save(module, str(path), _extra_files={EXTRA_FILE: manifest.to_json()})


def _forward(sizes, classes_input: bool, outputs: int) -> str:
    arguments, call = ("clip: Tensor, classes: Tensor", "clip, classes") if classes_input else ("clip: Tensor", "clip")
    allowed = " or ".join(f"[N, {', '.join(map(str, size))}]" for size in sizes)
    lines = [
        f"def forward(self, {arguments}) -> Tuple[{', '.join(['Tensor'] * outputs)}]:",
        "    size = clip.shape[1:]",
    ]
    for i, size in enumerate(sizes):
        lines += [f"    if size == {list(size)}:", f"        return self.size{i}({call})"]
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
