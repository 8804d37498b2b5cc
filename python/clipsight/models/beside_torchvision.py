"""torchvision beside a torch that its native library was not built for, such as the CPU build of torch."""

from __future__ import annotations

import importlib

import torch

_declared: list[torch.library.Library] = []


def import_torchvision():
    """The module `torchvision`.

    Where its native library fits another build of torch, the import stops at two detection ops for which it registers
    fake kernels. The video networks need none of its ops, only that these two exist, so they are declared here.

    Raises:
        ImportError: torchvision is not installed.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    library = torch.library.Library("torchvision", "DEF")
    for op in ("nms", "qnms"):
        library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)  # the declarations live as long as this object
    return importlib.import_module("torchvision")
