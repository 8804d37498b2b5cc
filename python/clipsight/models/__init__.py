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
        checkpoint: a `.safetensors` file or a file of `torch.save`, instead of the weights in the package. Only tensors
            are unpickled, never code. The network may lie at any place in the file (a state dict by itself, as
            `state_dict`, `model`, `net`, ...), under any prefix (`module.`, `_orig_mod.`, `model.`, ...) and beside
            whatever else a trainer keeps; without `num_batches_tracked`; in half precision; I3D in both of its namings;
            TSN with the prefix `base_model.` and the classifier `new_fc`. At its place it must be whole, with nothing
            left over. Where a file has several that fit, such as raw and averaged weights, `"file.pth#model_ema"` names
            the place of one.
        pretrained: without a checkpoint, take the weights in the package; `False` leaves the random initial ones.
        num_classes: K; by default that of the checkpoint, or that of the published network.

    Raises:
        ValueError: unknown name; no weights in the package; a checkpoint that does not fit the network, with the first
            names that do not and what the file probably is; several networks in it that fit and differ; a file that
            would run code; another number of classes.
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
        contents = checkpoints.read(checkpoint)
        state = checkpoints.chosen(contents, shapes, any_count=num_classes is None)
        shapes = registry.shapes(name, checkpoints.class_count(state, shapes))
        state = checkpoints.fitted(contents, shapes, name)
    (count,) = shapes[list(shapes)[-1]]
    if num_classes not in (None, count):
        where = name if checkpoint is None else contents.file
        raise ValueError(f"models.load: num_classes must be {count}, that of {where}, got {num_classes}")
    model = registry.build(name, count)
    if checkpoint is not None:
        checkpoints.load_fitted(model, state, contents.file)
    return model.eval()
