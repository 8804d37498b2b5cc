"""Numbers that judge relevance maps: does the map show motion, does it matter to the network, what does it cost?

Every measure takes maps `[..., T, H, W]` with any leading axes and gives a number for each of them; NumPy arrays, or
tensors on the CPU, in; NumPy out. Relevance that is not finite, and shapes that do not fit, are errors. A map without
any positive relevance, or a constant one where only its order counts, has a stated value and never NaN:

| measure | source | of an empty map |
|---|---|---|
| `motion_precision` with `optical_flow`, `moving` | Hiley et al. (2020), Table 1 | 0 |
| `agreement` | Table 2 | 0 |
| `selectivity` | Table 3 | 0, 0 |
| `overhead` | Table 4 | |
| `motion_share` | share of |R| under the motion mask | 0 |
| `temporal_change` | Stergiou et al. (2019), Fig. 3 | 0 |
| `pointing_game` | Zhang et al. (2016) | False |
| `insertion_auc`, `deletion_auc` | RISE, Petsiuk et al. (2018) | that of the voxels in order of storage |
| `parameter_randomisation` | Adebayo et al. (2018) | 0 |
"""

from .flow import moving, optical_flow
from .networks import deletion_auc, insertion_auc, overhead, parameter_randomisation
from .volumes import (
    agreement,
    motion_precision,
    motion_share,
    pointing_game,
    relevant,
    selectivity,
    temporal_change,
)

__all__ = [
    "agreement",
    "deletion_auc",
    "insertion_auc",
    "motion_precision",
    "motion_share",
    "moving",
    "optical_flow",
    "overhead",
    "parameter_randomisation",
    "pointing_game",
    "relevant",
    "selectivity",
    "temporal_change",
]
