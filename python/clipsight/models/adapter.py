"""Networks of other libraries, brought to what the rest of the package takes: a clip in, logits out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from ..dataflow import unwrapped
from ..labels import as_labels
from ..preprocessing import Preprocessing


class Adapter(nn.Module):
    """Clip `[N, 3, T, H, W]` -> logits `[N, K]`, by a network that takes and returns something else.

    For a network that takes frames first and returns an object with the logits::

        Adapter(network, lambda network, clip: network(pixel_values=clip.transpose(1, 2)).logits)

    Args:
        network: any module; names for `head=` and `features=` are those inside it, and a checkpoint is its own.
        call: called with the network and the clip, returns the logits; only tensor operations, so that it can be
            captured.
        preprocessing: how the network wants its clips, for the command line.
        labels: names of the K classes, if known, in any form that `clipsight.export` takes.
    """

    def __init__(
        self,
        network: nn.Module,
        call: Callable[[nn.Module, Tensor], Tensor],
        preprocessing: Preprocessing | None = None,
        labels: Sequence[str] | Mapping | str | os.PathLike | None = None,
    ) -> None:
        super().__init__()
        self.network = unwrapped(network)
        self.call, self.preprocessing = call, preprocessing
        self.labels = as_labels(labels, source="Adapter: labels")

    def forward(self, clip: Tensor) -> Tensor:
        return self.call(self.network, clip)
