"""Checkpoints as they are published and as trainers leave them, brought to a network's names and told apart.

A file may hold a network's tensors at any place, under any prefix, beside whatever else, in half precision, without
`num_batches_tracked`, or under the names of another implementation. What is loaded is the one place where every tensor
has its name and shape in the network, and none is left over.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..dataflow import unwrapped
from . import registry
from .checkpoint_files import Contents, read, unwrapped_name

Shapes = Mapping[str, torch.Size]
_COUNTER = "num_batches_tracked"  # since PyTorch 0.4.1, and only of use in training


def _same(key: str) -> str:
    return key


def _without_module(key: str) -> str:
    """`backbone.module.fc` -> `backbone.fc`: a part of the network was trained in parallel, or averaged."""
    return re.sub(r"(?<![^.])module\.", "", key)


def _i3d(key: str) -> str:
    """`mixed_3b.branch_1.0.batch3d` -> `Mixed_3b.b1a.bn`."""
    key = re.sub(r"^conv3d_0c_1x1\.", "logits.", key).replace(".batch3d.", ".bn.")
    key = re.sub(r"\.branch_([12])\.([01])\.", lambda m: f".b{m[1]}{'ab'[int(m[2])]}.", key)
    key = key.replace(".branch_0.", ".b0.").replace(".branch_3.1.", ".b3b.")
    return key[:1].upper() + key[1:] if key.startswith(("conv3d_", "mixed_")) else key


def _tsn(key: str) -> str:
    return re.sub(r"^new_fc\.", "fc.", key.removeprefix("base_model."))


_INSIDE: tuple[Callable[[str], str], ...] = (_same, _without_module)
_NAMINGS: tuple[Callable[[str], str], ...] = (_same, _i3d, _tsn)


def load_into(model: nn.Module, path: str | Path) -> None:
    """Loads a file into a network that is there already, strictly; the network may be in a wrapper for training.

    Raises:
        ValueError: see `read`, `fitted` and `load_fitted`.
    """
    model = unwrapped(model)
    own = model.state_dict()
    names = {unwrapped_name(key): key for key in own}
    contents = read(path)
    state = fitted(contents, {name: own[key].shape for name, key in names.items()}, type(model).__name__)
    load_fitted(model, {names[name]: value for name, value in state.items()}, contents.file)


def load_fitted(model: nn.Module, state: Mapping[str, Tensor], file: str) -> None:
    """Copies the values that `fitted` returned.

    Raises:
        ValueError: values that are no numbers as they stand, such as those of a quantized network.
    """
    own = model.state_dict()
    for name, value in state.items():
        number = value.is_floating_point() or not own[name].is_floating_point()
        if not number or value.layout != torch.strided or value.is_meta:
            raise ValueError(
                f"models.load: checkpoint {file} must have dense floating-point values as {name}, "
                f"got {value.dtype}, {value.layout}, on {value.device}"
            )
    model.load_state_dict(state, strict=False)  # strict but for the counters


def chosen(contents: Contents, shapes: Shapes, any_count: bool = False) -> dict[str, Tensor]:
    """The part of a file that fits the network, in its names; or, where none does, that which comes nearest to it.

    Args:
        contents: of the file.
        shapes: of the network's state dict.
        any_count: parts with other numbers of classes are no worse than one with the network's.

    Raises:
        ValueError: several parts fit, such as raw and averaged weights, and differ.
    """
    count, bias = len(_sizes(shapes)), list(shapes)[-1]
    candidates = _candidates(contents, count)
    found: dict[str, dict[str, Tensor]] = {}
    for place, state, sizes in candidates:
        if len(sizes) == count == _common(sizes, shapes):
            found.setdefault(place, state)
    if not any_count:
        found = {place: state for place, state in found.items() if state[bias].shape == shapes[bias]} or found
    different: dict[str, dict[str, Tensor]] = {}
    for place, state in found.items():
        if not any(_equal(state, other) for other in different.values()):
            different[place] = state
    if len(different) > 1:
        places = ", ".join(f"{contents.file}#{place}" for place in different)
        raise ValueError(
            f"models.load: checkpoint must hold one set of weights for the network, got {len(different)} that fit and "
            f"differ; name one: {places}"
        )
    return next(iter(different.values())) if different else _nearest(candidates, shapes).state


def class_count(state: Mapping[str, Tensor], shapes: Shapes) -> int | None:
    """K of the classifier in a named state dict, if it has one; the network's classifier stands last in `shapes`."""
    bias = state.get(list(shapes)[-1])
    return len(bias) if bias is not None and bias.dim() == 1 else None


def fitted(contents: Contents, shapes: Shapes, network: str) -> dict[str, Tensor]:
    """The state dict in the network's names; all that is in it fits, and nothing but counters of batches is missing.

    Args:
        contents: from `read`.
        shapes: of the network's state dict.
        network: name of it, for the error.

    Raises:
        ValueError: says which names do not fit, and what the file probably is; or which parts of it fit, if several do.
    """
    state = chosen(contents, shapes)
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
        problems += _guess(contents, network)
        if contents.left_out:
            problems.append(
                f"only tensors were read, not what {contents.left_out[0]} would make; if that is the network, write "
                "model.state_dict() with the program that wrote the file"
            )
        raise ValueError(f"models.load: checkpoint {contents.file} does not fit {network}: {'; '.join(problems)}")
    return state


class _Candidate(NamedTuple):
    """A part of a file in one naming."""

    place: str
    state: dict[str, Tensor]
    sizes: dict[str, tuple[int, ...]]


def _candidates(contents: Contents, count: int) -> list[_Candidate]:
    """Every part of a file that has half of `count` entries, or of what there is, in every naming of it."""
    found, least = [], min(count, max(len(tensors) for _, tensors in contents.parts)) / 2
    for place, tensors in contents.parts:
        known = []
        if len(tensors) < least:
            continue
        for inside, naming in product(_INSIDE, _NAMINGS):
            state = {naming(inside(key)): value for key, value in tensors.items()}
            if len(state) == len(tensors) and state.keys() not in known:  # no two entries became one
                known.append(state.keys())
                found.append(_Candidate(place, state, _sizes(state)))
    return found


def _nearest(candidates: list[_Candidate], shapes: Shapes) -> _Candidate:
    """The one of which most is the network's by name and shape, then by name, and least is not."""

    def likeness(candidate: _Candidate) -> tuple[int, int, int]:
        names = len(candidate.state.keys() & shapes.keys())
        return _common(candidate.sizes, shapes), names, -len(candidate.state) if names else 0

    return max(candidates, key=likeness)


def _sizes(state: Mapping[str, Tensor] | Shapes) -> dict[str, tuple[int, ...]]:
    """Shapes of all but counters."""
    return {k: tuple(getattr(value, "shape", value)) for k, value in state.items() if not k.endswith(_COUNTER)}


def _common(sizes: dict[str, tuple[int, ...]], shapes: Shapes) -> int:
    """How many entries have one name and shape in both, whatever the number of classes.

    That is the first axis of the classifier, which stands last in `shapes`.
    """
    ours = _sizes(shapes)
    classifier = [key for key in list(shapes)[-2:] if key in sizes and sizes[key] != ours[key]]
    return len(sizes.items() & ours.items()) + sum(sizes[key][1:] == ours[key][1:] for key in classifier)


def _equal(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(v is other[k] or torch.equal(v, other[k]) for k, v in state.items())


def _listed(keys: list[str], what: str) -> str:
    return f"{what} {keys[0]}" if len(keys) == 1 else f"{len(keys)} {what}, first {', '.join(keys[:3])}"


def _guess(contents: Contents, network: str) -> list[str]:
    """What the file probably is, unless it is a version of `network` itself."""
    for _, state in contents.parts:
        if foreign := _other_resnet(state):
            return [f"it looks like {foreign}, which is not among these networks"]
    networks: dict[str, Shapes] = {}
    for name in registry.names():
        with contextlib.suppress(ImportError):  # one of torchvision's, without torchvision
            networks[name] = registry.shapes(name)
    candidates = _candidates(contents, min(len(_sizes(shapes)) for shapes in networks.values()))
    likeness = {name: _likeness(candidates, shapes) for name, shapes in networks.items()}
    nearest = max(likeness, key=likeness.__getitem__)
    if 0 < likeness.get(network, 0) == likeness[nearest]:
        return []
    if likeness[nearest] < 0.5:
        return ["it is none of these networks"]
    count = class_count(_nearest(candidates, networks[nearest]).state, networks[nearest])
    return [f"it {'looks like' if likeness[nearest] == 1 else 'is closest to'} {nearest} with {count} classes"]


def _likeness(candidates: list[_Candidate], shapes: Shapes) -> float:
    """Share of the entries, counters aside, that are in both and have one shape, whatever the number of classes."""
    ours = _sizes(shapes)
    large = [candidate for candidate in candidates if 2 * len(candidate.sizes) >= len(ours)]
    if not large:
        return 0.0
    sizes = _nearest(large, shapes).sizes
    return _common(sizes, shapes) / len(sizes.keys() | ours.keys())


def _other_resnet(state: dict[str, Tensor]) -> str | None:
    """The name of a residual network with basic blocks or with shortcuts without weights."""
    state = {_tsn(key): value for key, value in state.items()}
    blocks = [key for key in state if re.fullmatch(r"layer\d\.\d+\.conv1\.weight", key)]
    basic = "layer1.0.conv3.weight" not in state
    projected = any(".downsample." in key for key in state)
    if not blocks or (projected and not basic):
        return None
    layers = (2 if basic else 3) * len(blocks) + 2
    shortcut = "B" if projected else "A (without weights: no downsample)"
    classes = len(state["fc.bias"]) if "fc.bias" in state else "unknown"
    return f"a {state[blocks[0]].dim() - 2}-D ResNet-{layers} with shortcuts {shortcut} and {classes} classes"
