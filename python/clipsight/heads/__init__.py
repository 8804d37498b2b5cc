"""The methods, one file each: `SaliencyTube`, `SelectiveRelevance`."""

from .base import Evidence, Head
from .saliency_tube import SaliencyTube
from .selective_relevance import SelectiveRelevance

__all__ = ["Evidence", "Head", "SaliencyTube", "SelectiveRelevance"]
