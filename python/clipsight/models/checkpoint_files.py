"""The tensors in a checkpoint, wherever a trainer put them; no code in the file is run."""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# What torch.compile, FSDP and activation checkpointing put into the names of the modules that they wrap.
_WRAPPED = re.compile(r"(?<![^.])_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
_DEPTH = 20  # of dicts in dicts; no trainer comes near it


@dataclass(frozen=True)
class Contents:
    """What was found in a file.

    Attributes:
        file: its name, for messages.
        parts: every set of tensors that may be a network's, by its place, the outer ones first: each dict in the file,
            with what is in the dicts inside it and without, and what in it begins with one dotted prefix.
        left_out: functions and classes that would have to run for the rest of the file.
    """

    file: str
    parts: tuple[tuple[str, dict[str, Tensor]], ...]
    left_out: tuple[str, ...] = ()


def unwrapped_name(name: str) -> str:
    """`_orig_mod.fc.weight` -> `fc.weight`."""
    return _WRAPPED.sub("", name)


def read(path: str | Path) -> Contents:
    """The tensors of a file, on the CPU; `file.pth#place` has those at one place in it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file cannot be read, or holds no tensors but those that code in it would make.
        ImportError: a `.safetensors` file, and safetensors is not installed.
    """
    path, place = Path(path), None
    if not path.is_file() and "#" in str(path):
        file, _, place = str(path).rpartition("#")
        path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"models.load: checkpoint must be a file, {path} does not exist")
    left_out: tuple[str, ...] = ()
    if _is_safetensors(path):
        tree: object = _read_safetensors(path)
    else:
        tree, left_out = _read_pickle(path)
    contents = contents_of(tree if isinstance(tree, Mapping) else {}, path.name, left_out)
    if not any(tensors for _, tensors in contents.parts):
        if left_out:
            raise ValueError(_refusal(path.name, left_out[0]))
        got = "no tensor" if isinstance(tree, Mapping) else type(tree).__name__
        raise ValueError(f"models.load: checkpoint must hold a state dict of tensors, got {got} in {path.name}")
    if place is None:
        return contents
    parts = tuple(part for part in contents.parts if part[0] == place or (place and part[0].startswith(f"{place}.")))
    if not parts:
        raise ValueError(f"models.load: checkpoint {path.name} must have tensors at {place!r}, got none there")
    return Contents(f"{path.name}#{place}", parts, left_out)


def contents_of(tree: Mapping, file: str, left_out: tuple[str, ...] = ()) -> Contents:
    """See `Contents`.

    Raises:
        ValueError: two tensors have one name.
    """
    found: list[tuple[tuple[str, ...], dict[str, Tensor]]] = []
    seen: set[int] = set()

    def visit(value, place: tuple[str, ...]) -> dict[str, Tensor]:
        """All tensors in it, by dotted names."""
        own: dict[str, Tensor] = {}
        if id(value) in seen or len(place) > _DEPTH:  # twice in the file, or inside itself
            return own
        seen.add(id(value))
        found.append((place, own))
        whole: dict[str, Tensor] = {}
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            if isinstance(inner, Tensor):
                _add(own, str(key), inner, file)
            elif isinstance(inner, (Mapping, list, tuple)):
                for name, tensor in visit(inner, (*place, str(key))).items():
                    _add(whole, f"{key}.{name}", tensor, file)
        if not whole:
            return own
        for name, tensor in own.items():
            _add(whole, name, tensor, file)
        found.append((place, whole))
        return whole

    visit(tree, ())
    parts = [
        (".".join((*place, *prefix)), some) for place, tensors in found for prefix, some in _prefixes(tensors).items()
    ]
    return Contents(file, tuple(sorted(parts, key=lambda part: part[0].count(".") + bool(part[0]))), left_out)


def _add(tensors: dict[str, Tensor], name: str, tensor: Tensor, file: str) -> None:
    name = unwrapped_name(name)
    if tensors.setdefault(name, tensor) is not tensor:
        raise ValueError(f"models.load: checkpoint {file} must name each tensor once, got two of the name {name!r}")


def _prefixes(tensors: dict[str, Tensor]) -> dict[tuple[str, ...], dict[str, Tensor]]:
    """The tensors by every dotted prefix that they have, without it; those of a prefix of no parts are all."""
    found: dict[tuple[str, ...], dict[str, Tensor]] = {(): tensors}
    for name, tensor in tensors.items():
        segments = tuple(name.split("."))
        for length in range(1, len(segments)):
            found.setdefault(segments[:length], {})[".".join(segments[length:])] = tensor
    return found


# ---- Files ----------------------------------------------------------------------------------------------------------


def _is_safetensors(path: Path) -> bool:
    """By the suffix, or by the header: a length, then JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or start[8:] == b"{"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(
            "models.load: reading .safetensors needs safetensors: pip install 'clipsight[video]'"
        ) from error
    try:
        return load_file(path)
    except Exception as error:
        raise ValueError(
            f"models.load: checkpoint {path.name} cannot be read, expected a whole .safetensors file ({error})"
        ) from error


class _StandIn:
    """In place of every object that a file would make by code, such as the arguments of a training program."""

    def __new__(cls, *args, **kwargs):
        return OrderedDict()  # which the reader also fills with entries and attributes


class _StandInOfNumPy:
    """For numbers of NumPy, whose types have a state that is no dict."""

    def __init__(self, *args) -> None:
        pass

    def __setstate__(self, state) -> None:
        pass


def _read_pickle(path: Path) -> tuple[object, tuple[str, ...]]:
    """The objects in a file of torch.save, and which functions and classes are left out of it."""
    try:
        code = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # the format before torch 1.6, which tells them one by one, and before it reads a tensor
        code = []
    while True:
        stand_ins = [(_StandInOfNumPy if name.startswith("numpy.") else _StandIn, name) for name in code]
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
                warnings.simplefilter("ignore")  # about what the errors below say
                return torch.load(path, map_location="cpu", weights_only=True), tuple(code)
        except Exception as error:
            wanted = _code_wanted(str(error), path)
            if wanted and wanted not in code and len(code) < 100:
                code.append(wanted)
                continue
            if code:
                raise ValueError(_refusal(path.name, wanted or code[0])) from error
            kind = "it is a TorchScript program" if "TorchScript" in str(error) else "it is cut off or something else"
            raise ValueError(
                f"models.load: checkpoint {path.name} cannot be read: {kind}, expected .safetensors or a file of "
                "torch.save"
            ) from error


def _refusal(file: str, code: str) -> str:
    return (
        f"models.load: checkpoint {file} is refused: to read it, {code} would have to run, and only "
        "tensors are read (weights_only). If you trust the file, open it with the program that wrote it, and "
        "write model.state_dict() alone, best with safetensors.torch.save_file"
    )


def _code_wanted(message: str, path: Path) -> str | None:
    """The function or class that a pickle would call."""
    named = re.search(r"GLOBAL (\S+)", message)
    if named:
        return named[1] if "." in named[1] else f"builtins.{named[1]}"
    with path.open("rb") as file:
        if file.read(1) != pickle.PROTO:  # an archive of torch.save, which torch has a message for; or no pickle
            return None
        file.seek(0)
        texts: list[str] = []
        try:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    return argument.replace(" ", ".")
                if opcode.name == "STACK_GLOBAL":
                    return ".".join(texts[-2:])
                if isinstance(argument, str):
                    texts.append(argument)
        except Exception:  # it ends too early
            return None
    return None
