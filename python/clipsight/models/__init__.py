"""Networks by name: `load("movers")`. Every network has `.preprocessing`, and `.labels` (or `None`).

`movers`, `movers2d` and `movers_biased` come with their weights; the others are those of the papers, with the names of
the published state dicts, and torchvision's video networks. `Adapter` brings in networks of other libraries.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from . import checkpoints, registry
from .adapter import Adapter

__all__ = ["Adapter", "has_weights", "load", "names"]


def names() -> tuple[str, ...]:
    """Names that :func:`load` takes; the last ones are torchvision's."""
    return registry.names()


def has_weights(name: str) -> bool:
    """Whether trained weights of the network are in the package."""
    return registry.weights(name).exists()


def load(
    name: str = "movers",
    checkpoint: str | Path | None = None,
    pretrained: bool = True,
    num_classes: int | None = None,
) -> nn.Module:
    """A network in evaluation mode.

    Args:
        name: one of :func:`names`.
        checkpoint: a `.safetensors` file or a file of `torch.save` with a state dict, instead of the weights in the
            package. Only tensors are unpickled, never code. All published layouts are read: a state dict by itself or
            as `state_dict`, `model_state` or `model`; with the prefix `module.`; without `num_batches_tracked`; in half
            precision; I3D in both of its namings; TSN with the prefix `base_model.` and the classifier `new_fc`.
        pretrained: without a checkpoint, take the weights in the package; `False` leaves the random initial ones.
        num_classes: K; by default that of the checkpoint, or that of the published network.

    Raises:
        ValueError: unknown name; no weights in the package; a checkpoint that does not fit the network, with the first
            names that do not and what the file probably is; or one that would run code; another number of classes.
        FileNotFoundError: the checkpoint does not exist.
        ImportError: a `.safetensors` file is wanted and safetensors is not installed, or a network of torchvision
            without torchvision.
    """
    if name not in registry.names():
        raise ValueError(f"models.load: name must be one of {', '.join(registry.names())}, got {name!r}")
    if checkpoint is None and pretrained:
        checkpoint = registry.weights(name)
        if not has_weights(name):
            raise ValueError(f"models.load: {name} has no weights in the package; pass checkpoint= or pretrained=False")
    shapes, state = registry.shapes(name, num_classes), {}
    if checkpoint is not None:
        state = checkpoints.read(checkpoint)
        in_file = checkpoints.class_count(checkpoints.named(state, shapes), shapes)
        shapes = registry.shapes(name, in_file)
        state = checkpoints.fitted(state, shapes, name, Path(checkpoint).name)
    (count,) = shapes[list(shapes)[-1]]
    if num_classes not in (None, count):
        where = name if checkpoint is None else Path(checkpoint).name
        raise ValueError(f"models.load: num_classes must be {count}, that of {where}, got {num_classes}")
    model = registry.build(name, count)
    model.load_state_dict(state, strict=False)  # strict but for counters of batches: they were checked
    return model.eval()
