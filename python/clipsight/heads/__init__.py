"""The methods, one file each: `SaliencyTube`, `SelectiveRelevance`, `FeaturePyramid`."""

from .base import Evidence, Head
from .feature_pyramid import FeaturePyramid
from .saliency_tube import SaliencyTube
from .selective_relevance import SelectiveRelevance

__all__ = ["Evidence", "FeaturePyramid", "Head", "SaliencyTube", "SelectiveRelevance"]
