"""Networks by name: `load("movers")`. Every network has `.preprocessing`, and `.labels` (or `None`).

`movers` comes with its weights; the others are those of the papers, with the names of the published state dicts.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import Tensor, nn

_FACTORIES = {  # name -> module and factory; imported when it is asked for
    "movers": ("movers", "Movers"),
    "mfnet": ("mfnet", "MFNet3D"),
    "r3d50": ("resnet3d", "r3d50"),
    "r3d101": ("resnet3d", "r3d101"),
    "r3d152": ("resnet3d", "r3d152"),
    "resnext101": ("resnet3d", "resnext101"),
    "i3d": ("i3d", "I3D"),
    "c3d": ("c3d", "C3D"),
    "tsn": ("tsn", "TSN"),
}


def names() -> tuple[str, ...]:
    """Names that :func:`load` takes."""
    return tuple(_FACTORIES)


def has_weights(name: str) -> bool:
    """Whether trained weights of the network are in the package."""
    return _weights(name).exists()


def _weights(name: str) -> Path:
    return Path(__file__).with_name("weights") / f"{name}.safetensors"


def load(name: str = "movers", checkpoint: str | Path | None = None, pretrained: bool = True) -> nn.Module:
    """A network in evaluation mode.

    Args:
        name: one of :func:`names`.
        checkpoint: a `.safetensors` file or a file of `torch.save` that holds a state dict (only tensors are
            unpickled, never code), instead of the weights in the package.
        pretrained: without a checkpoint, take the weights in the package; `False` leaves the random initial ones.

    Raises:
        ValueError: unknown name; no weights in the package; a checkpoint that does not fit the network.
        FileNotFoundError: the checkpoint does not exist.
        ImportError: a `.safetensors` file is wanted and safetensors is not installed.
    """
    if name not in _FACTORIES:
        raise ValueError(f"models.load: name must be one of {', '.join(_FACTORIES)}, got {name!r}")
    if checkpoint is None and pretrained:
        checkpoint = _weights(name)
        if not has_weights(name):
            raise ValueError(f"models.load: {name} has no weights in the package; pass checkpoint= or pretrained=False")
    module, factory = _FACTORIES[name]
    model = getattr(importlib.import_module(f".{module}", __name__), factory)()
    if checkpoint is not None:
        _load_strictly(model, name, read_checkpoint(checkpoint), Path(checkpoint))
    return model.eval()


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a `.safetensors` file or a file of `torch.save`, on the CPU; no code in the file is run."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"models.load: checkpoint must be a file, got {path}")
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(
                "models.load: reading .safetensors needs safetensors: pip install 'clipsight[video]'"
            ) from error
        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        got = type(state).__name__
        raise ValueError(f"models.load: checkpoint must hold a state dict of tensors, got {got} in {path.name}")
    return state


def _load_strictly(model: nn.Module, name: str, state: dict[str, Tensor], path: Path) -> None:
    """Load, or say which keys do not fit; the weights in the file may be stored as float16."""
    own = model.state_dict()
    problems = [f"missing {key}" for key in own if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in own]
    problems += [
        f"{key} must have shape {list(own[key].shape)}, got {list(value.shape)}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"models.load: checkpoint {path.name} does not fit {name}: {'; '.join(problems[:3])}{more}")
    model.load_state_dict(state)
