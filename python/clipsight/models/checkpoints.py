"""Checkpoints as they are published: read without running code, brought to a network's names, told apart.

A file may be `.safetensors` or of `torch.save`, hold the state dict itself or under a name of its own, have weights of
half precision, the prefix `module.` of parallel training, no `num_batches_tracked`, or names of another implementation.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from . import registry

Shapes = Mapping[str, torch.Size]
_WRAPPERS = ("state_dict", "model_state", "model_state_dict", "model")
_COUNTER = "num_batches_tracked"  # since PyTorch 0.4.1, and only of use in training


def _same(key: str) -> str:
    return key


def _without_module(key: str) -> str:
    return key.removeprefix("module.")


def _i3d(key: str) -> str:
    """`mixed_3b.branch_1.0.batch3d` -> `Mixed_3b.b1a.bn`."""
    key = re.sub(r"^conv3d_0c_1x1\.", "logits.", key).replace(".batch3d.", ".bn.")
    key = re.sub(r"\.branch_([12])\.([01])\.", lambda m: f".b{m[1]}{'ab'[int(m[2])]}.", key)
    key = key.replace(".branch_0.", ".b0.").replace(".branch_3.1.", ".b3b.")
    return key[:1].upper() + key[1:] if key.startswith(("conv3d_", "mixed_")) else key


def _tsn(key: str) -> str:
    return re.sub(r"^new_fc\.", "fc.", key.removeprefix("base_model."))


_PREFIXES: tuple[Callable[[str], str], ...] = (_same, _without_module)
_NAMINGS: tuple[Callable[[str], str], ...] = (_same, _i3d, _tsn)


def read(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU, with the file's own names; no code in the file is run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file cannot be read, would run code, or holds something else.
        ImportError: a `.safetensors` file, and safetensors is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"models.load: checkpoint must be a file, {path} does not exist")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    while isinstance(state, Mapping):
        inner = [state[key] for key in _WRAPPERS if isinstance(state.get(key), Mapping)]
        if not inner:
            break
        state = inner[0]
    if not isinstance(state, Mapping):
        got = type(state).__name__
    elif not state:
        got = "an empty one"
    else:
        others = [k for k, v in state.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
        got = f"{type(state[others[0]]).__name__} as {others[0]!r}" if others else None
    if got:
        raise ValueError(f"models.load: checkpoint must hold a state dict of tensors, got {got} in {path.name}")
    return dict(state)


def load_into(model: nn.Module, path: str | Path) -> None:
    """Loads a file into a network that is there already, strictly.

    Raises:
        ValueError: see `read` and `fitted`.
    """
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    state = fitted(read(path), shapes, type(model).__name__, Path(path).name)
    model.load_state_dict(state, strict=False)  # strict but for the counters


def named(state: dict[str, Tensor], shapes: Shapes) -> dict[str, Tensor]:
    """The state dict in the naming of which most names are the network's."""
    namings = [
        {naming(prefix(key)): value for key, value in state.items()} for prefix, naming in product(_PREFIXES, _NAMINGS)
    ]
    whole = [renamed for renamed in namings if len(renamed) == len(state)]  # no two entries became one
    return max(whole, key=lambda renamed: len(renamed.keys() & shapes.keys()))


def class_count(state: Mapping[str, Tensor], shapes: Shapes) -> int | None:
    """K of the classifier in a named state dict, if it has one; the network's classifier stands last in `shapes`."""
    bias = state.get(list(shapes)[-1])
    return len(bias) if bias is not None and bias.dim() == 1 else None


def fitted(state: dict[str, Tensor], shapes: Shapes, network: str, file: str) -> dict[str, Tensor]:
    """The state dict in the network's names; all that is in it fits, and nothing but counters of batches is missing.

    Args:
        state: from `read`.
        shapes: of the network's state dict.
        network: name of it, for the error.
        file: name of the file, for the error.

    Raises:
        ValueError: says which names do not fit, and what the file probably is.
    """
    state = named(state, shapes)
    missing = [key for key in shapes if key not in state and not key.endswith(_COUNTER)]
    unexpected = [key for key in state if key not in shapes]
    wrong = [key for key, value in state.items() if key in shapes and value.shape != shapes[key]]
    problems = [_listed(keys, what) for keys, what in ((missing, "missing"), (unexpected, "unexpected")) if keys]
    if wrong:
        more = f" and {len(wrong) - 1} more of another shape" if len(wrong) > 1 else ""
        expected, got = list(shapes[wrong[0]]), list(state[wrong[0]].shape)
        problems.append(f"{wrong[0]} must have shape {expected}, got {got}{more}")
    if problems:
        count = class_count(state, shapes)
        if count and not missing and not unexpected and wrong == list(shapes)[-2:]:
            problems.append(f"the file has {count} classes, the network {shapes[wrong[1]].numel()}")
        problems += _guess(state, network)
        raise ValueError(f"models.load: checkpoint {file} does not fit {network}: {'; '.join(problems)}")
    return state


def _listed(keys: list[str], what: str) -> str:
    return f"{what} {keys[0]}" if len(keys) == 1 else f"{len(keys)} {what}, first {', '.join(keys[:3])}"


def _guess(state: dict[str, Tensor], network: str) -> list[str]:
    """What the file probably is, unless it is a version of `network` itself."""
    foreign = _other_resnet(state)
    if foreign:
        return [f"it looks like {foreign}, which is not among these networks"]
    likeness = {}
    for name in registry.names():
        try:
            likeness[name] = _likeness(state, registry.shapes(name))
        except ImportError:  # one of torchvision's, without torchvision
            continue
    nearest = max(likeness, key=likeness.__getitem__)
    if likeness.get(network) == likeness[nearest]:
        return []
    if likeness[nearest] < 0.5:
        return ["it is none of these networks"]
    shapes = registry.shapes(nearest)
    count = class_count(named(state, shapes), shapes)
    return [f"it {'looks like' if likeness[nearest] == 1 else 'is closest to'} {nearest} with {count} classes"]


def _likeness(state: dict[str, Tensor], shapes: Shapes) -> float:
    """Share of the entries, counters aside, that are in both and have one shape, whatever the number of classes."""
    theirs, ours = (
        {key: tuple(getattr(value, "shape", value)) for key, value in both.items() if not key.endswith(_COUNTER)}
        for both in (named(state, shapes), shapes)
    )
    for last in list(ours)[-2:]:  # the classifier, whose first axis is K
        for entries in (theirs, ours):
            entries[last] = entries.get(last, ())[1:]
    return len(theirs.items() & ours.items()) / len(theirs.keys() | ours.keys())


def _other_resnet(state: dict[str, Tensor]) -> str | None:
    """The name of a residual network with basic blocks or with shortcuts without weights."""
    state = {_tsn(_without_module(key)): value for key, value in state.items()}
    blocks = [key for key in state if re.fullmatch(r"layer\d\.\d+\.conv1\.weight", key)]
    basic = "layer1.0.conv3.weight" not in state
    projected = any(".downsample." in key for key in state)
    if not blocks or (projected and not basic):
        return None
    layers = (2 if basic else 3) * len(blocks) + 2
    shortcut = "B" if projected else "A (without weights: no downsample)"
    classes = len(state["fc.bias"]) if "fc.bias" in state else "unknown"
    return f"a {state[blocks[0]].dim() - 2}-D ResNet-{layers} with shortcuts {shortcut} and {classes} classes"


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


def _read_pickle(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what the errors below say
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        code = _code_wanted(str(error), path)
        if code:
            raise ValueError(
                f"models.load: checkpoint {path.name} is refused: to read it, {code} would have to run, and only "
                "tensors are read (weights_only). If you trust the file, open it with the program that wrote it, and "
                "write model.state_dict() alone, best with safetensors.torch.save_file"
            ) from error
        kind = "it is a TorchScript program" if "TorchScript" in str(error) else "it is cut off or something else"
        raise ValueError(
            f"models.load: checkpoint {path.name} cannot be read: {kind}, expected .safetensors or a file of torch.save"
        ) from error


def _code_wanted(message: str, path: Path) -> str | None:
    """The function or class that a pickle would call."""
    named = re.search(r"GLOBAL (\S+)", message)
    if named:
        return named[1]
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
