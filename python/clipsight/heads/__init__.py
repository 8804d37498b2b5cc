"""The methods, a file each, or one for two that belong together; `METHODS` has them by the name of their output.

Those of layer-wise relevance propagation are imported when they are asked for: without `deep_taylor.py` here and
`backward/relevance.py` an installation has all the others.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from .base import Evidence, Head
from .feature_pyramid import FeaturePyramid
from .grad_cam import GradCAM
from .guided import GuidedBackprop, GuidedGradCAM
from .input_gradient import InputGradient, IntegratedGradients
from .saliency_tube import SaliencyTube
from .selective_relevance import SelectiveRelevance

if TYPE_CHECKING:
    from .deep_taylor import DeepTaylor, LRPEpsilon

_APART = ("DeepTaylor", "LRPEpsilon")  # in deep_taylor.py
_WITH_ONE_MAP = {
    "saliency_tube": "SaliencyTube",
    "grad_cam": "GradCAM",
    "guided_backprop": "GuidedBackprop",
    "guided_grad_cam": "GuidedGradCAM",
    "deep_taylor": "DeepTaylor",
    "lrp_epsilon": "LRPEpsilon",
    "input_gradient": "InputGradient",
    "integrated_gradients": "IntegratedGradients",
}


class _Methods(Mapping[str, type[Head]]):
    """All names; a class is imported when it is asked for."""

    def __getitem__(self, name: str) -> type[Head]:
        return getattr(sys.modules[__name__], _WITH_ONE_MAP[name])

    def __contains__(self, name: object) -> bool:
        return name in _WITH_ONE_MAP

    def __iter__(self) -> Iterator[str]:
        return iter(_WITH_ONE_MAP)

    def __len__(self) -> int:
        return len(_WITH_ONE_MAP)


METHODS: Mapping[str, type[Head]] = _Methods()


def __getattr__(name: str):
    if name not in _APART:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(".deep_taylor", __name__), name)
    except ModuleNotFoundError as error:
        message = f"{name}: the module {error.name} must be installed, got an installation of clipsight without it"
        raise ImportError(message, name=error.name) from error
    globals()[name] = value
    return value


__all__ = [
    "METHODS",
    "DeepTaylor",
    "Evidence",
    "FeaturePyramid",
    "GradCAM",
    "GuidedBackprop",
    "GuidedGradCAM",
    "Head",
    "InputGradient",
    "IntegratedGradients",
    "LRPEpsilon",
    "SaliencyTube",
    "SelectiveRelevance",
]
