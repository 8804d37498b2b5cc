"""The methods, a file each, or one for two that belong together; `METHODS` has them by the name of their output."""

from .base import Evidence, Head
from .deep_taylor import DeepTaylor, LRPEpsilon
from .feature_pyramid import FeaturePyramid
from .grad_cam import GradCAM
from .guided import GuidedBackprop, GuidedGradCAM
from .input_gradient import InputGradient, IntegratedGradients
from .saliency_tube import SaliencyTube
from .selective_relevance import SelectiveRelevance

_WITH_ONE_MAP = (
    SaliencyTube,
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    DeepTaylor,
    LRPEpsilon,
    InputGradient,
    IntegratedGradients,
)
METHODS: dict[str, type[Head]] = {head.name: head for head in _WITH_ONE_MAP}

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
