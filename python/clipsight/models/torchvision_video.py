"""torchvision's video networks by name, each with its preprocessing and the labels of Kinetics-400."""

from __future__ import annotations

from torch import nn

from ..preprocessing import Preprocessing
from .beside_torchvision import import_torchvision

# Frames of a clip, and source frames from one to the next in a video of 30 frames a second: those for which torchvision
# states the accuracy of its weights.
SAMPLING = {
    "r3d_18": (16, 2),
    "mc3_18": (16, 2),
    "r2plus1d_18": (16, 2),
    "s3d": (128, 2),
    "swin3d_t": (32, 2),
    "swin3d_s": (32, 2),
    "swin3d_b": (32, 2),
    "mvit_v1_b": (16, 4),
    "mvit_v2_s": (16, 4),
}


def build(name: str, num_classes: int | None = None) -> nn.Module:
    """The network with random weights, `.preprocessing` and `.labels`, which are known for 400 classes only.

    Args:
        name: one of `SAMPLING`.
        num_classes: K; 400 by default.

    Raises:
        ImportError: torchvision is not installed.
    """
    try:
        models = import_torchvision().models
    except ImportError as error:
        raise ImportError(f"models.load: {name} needs torchvision: pip install torchvision") from error
    weights = models.get_model_weights(name).DEFAULT  # a description; the values are not fetched
    labels = weights.meta["categories"]
    if num_classes is None:
        num_classes = len(labels)
    model = models.get_model(name, weights=None, num_classes=num_classes)
    model.labels = labels if num_classes == len(labels) else None
    preset, (frames, stride) = weights.transforms(), SAMPLING[name]
    resize = preset.resize_size
    model.preprocessing = Preprocessing(
        frames=frames,
        stride=stride,
        resize=tuple(resize) if len(resize) == 2 else resize[0],
        crop=tuple(preset.crop_size) * (2 // len(preset.crop_size)),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
    return model
