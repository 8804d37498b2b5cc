"""Which networks there are by name, and how each is made."""

from __future__ import annotations

import functools
import importlib
import inspect
from pathlib import Path

import torch
from torch import nn

from . import torchvision_video

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
    "movers2d": ("movers2d", "Movers2d"),
    "movers_biased": ("movers_biased", "MoversBiased"),
}


def names() -> tuple[str, ...]:
    """Names of all networks; those of torchvision come last."""
    return (*_FACTORIES, *torchvision_video.SAMPLING)


def weights(name: str) -> Path:
    """Where the trained weights of the network are, if they come with the package."""
    return Path(__file__).with_name("weights") / f"{name}.safetensors"


def build(name: str, num_classes: int | None = None) -> nn.Module:
    """The network with random weights; a network whose classes are fixed ignores `num_classes`.

    Raises:
        ImportError: a network of torchvision, which is not installed.
    """
    if name in torchvision_video.SAMPLING:
        return torchvision_video.build(name, num_classes)
    module, attribute = _FACTORIES[name]
    factory = getattr(importlib.import_module(f".{module}", __package__), attribute)
    if num_classes is None or "num_classes" not in inspect.signature(factory).parameters:
        return factory()
    return factory(num_classes=num_classes)


@functools.cache
def shapes(name: str, num_classes: int | None = None) -> dict[str, torch.Size]:
    """The network's state dict as names and shapes; it takes no memory. The bias of the classifier stands last."""
    with torch.device("meta"):
        return {key: value.shape for key, value in build(name, num_classes).state_dict().items()}
