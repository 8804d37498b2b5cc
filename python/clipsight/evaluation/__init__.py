"""Explanation methods measured on many videos: the four tables of Selective Relevance (Hiley et al., 2020), and more.

video --clips--> maps of every method, whole and selective --measures--> one number per clip
      --mean over clips--> per video --mean and deviation over videos--> tables.py, plots.py
"""

from .masks import Masks, find_masks
from .measuring import MEASURES, PAPER_METHODS, Evaluator, Key, Settings
from .tables import Evaluation, Stat, Table

__all__ = [
    "MEASURES",
    "PAPER_METHODS",
    "Evaluation",
    "Evaluator",
    "Key",
    "Masks",
    "Settings",
    "Stat",
    "Table",
    "find_masks",
]
