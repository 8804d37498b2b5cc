"""A small network that returns logits of every kind that a target speaks of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import networks

SIZE = (8, 16, 16)


class Net(nn.Module):
    """Two heads on the features of `networks.stages`; `end` makes of them what the network returns."""

    def __init__(self, end) -> None:
        super().__init__()
        self.body, self.end = networks.stages(), end
        self.verb, self.noun, self.one = nn.Linear(12, 4), nn.Linear(12, 7), nn.Linear(12, 1)
        self.voxel = nn.Conv3d(12, 4, 1)

    def pooled(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3, 4))

    def steps(self, x: Tensor) -> Tensor:
        """`[N, t, C]`."""
        return self.body(x).mean((3, 4)).transpose(1, 2)

    def forward(self, x: Tensor):
        return self.end(self, x)


ENDS = {
    "logits": lambda s, x: s.verb(s.pooled(x)),
    "one": lambda s, x: s.one(s.pooled(x)),
    "one without an axis": lambda s, x: s.one(s.pooled(x)).squeeze(1),
    "NTK": lambda s, x: s.verb(s.steps(x)),
    "NKT": lambda s, x: s.verb(s.steps(x)).transpose(1, 2),
    "NT": lambda s, x: s.one(s.steps(x)).squeeze(-1),
    "voxels": lambda s, x: s.voxel(s.body(x)).mean((3, 4)),
    "heads": lambda s, x: (lambda f: {"verb": s.verb(f), "noun": s.noun(f)})(s.pooled(x)),
    "apart": lambda s, x: (lambda g: (s.verb(g.mean((2, 3, 4))), s.noun(g[:, :, 1:].mean((2, 3, 4)))))(s.body(x)),
    "heads of steps": lambda s, x: (lambda f: (s.verb(f), s.noun(f)))(s.steps(x)),
}


def net(end: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    return networks.seeded(lambda: Net(ENDS[end])).to(dtype)


def clip(batch: int = 2, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return networks.clip(batch, SIZE, seed).to(dtype)
