"""An explained model at one clip size: the module that is traced and exported."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from .attach import Attached
from .heads import Evidence, Head
from .heads.base import BORDER
from .layouts import OURS, order
from .scores import Score

Size = tuple[int, int, int]


class SizedExplanation(nn.Module):
    """An explained model at one clip size: the captured network, the class choice and the heads."""

    def __init__(
        self,
        network: GraphModule,
        attached: Attached,
        heads: Sequence[Head],
        score: Score,
        size: Size,
        plugin: bool,
        inside: torch.dtype,
        outside: torch.dtype | None,
        layout: str = OURS,
    ) -> None:
        super().__init__()
        self.network, self.attached, self.layout = network, attached, layout
        self.heads, self.score, self.size = tuple(heads), score, size
        self.inside, self.outside = inside, outside
        self.compute = torch.promote_types(inside, torch.float32)
        # The fused ops compute in float32; a network in float64 wants more.
        fused = plugin and inside != torch.float64
        self.ops = importlib.import_module(".ops" if fused else ".reference", __package__)

    def forward(
        self,
        clip: Tensor,
        classes: Tensor | None = None,
        tau: Tensor | None = None,
        n_sigma: Tensor | None = None,
        decisions: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """As `ExplainedModel.forward`; for `decisions` see `Evidence`."""
        logits, *seen = self.look(clip)
        options = {"classes": classes, "tau": tau, "n_sigma": n_sigma, "decisions": decisions}
        return logits, *self.maps(logits, *seen, **options)

    def look(self, clip: Tensor) -> tuple[Tensor, ...]:
        """The network: its tensors by `Attached.names`, the logits `[N, K]` first."""
        return self._look(channels_first(clip, self.layout))

    def _look(self, clip: Tensor) -> tuple[Tensor, ...]:
        """The same for a clip `[N, C, T, H, W]`, whatever the layout."""
        if self.outside is None:
            return self.network(clip)
        logits, *seen = self.network(clip.to(self.inside))
        return logits.to(self.outside), *seen

    def maps(
        self,
        *seen: Tensor,
        classes: Tensor | None = None,
        tau: Tensor | None = None,
        n_sigma: Tensor | None = None,
        decisions: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """What comes after the network: every output but the logits."""
        evidence = self.evidence(*seen, classes=classes, tau=tau, n_sigma=n_sigma, decisions=decisions)
        # Heads that split a map leave the whole map behind for the others, so they go first.
        order = sorted(range(len(self.heads)), key=lambda i: not hasattr(self.heads[i], "of"))
        results = {i: tuple(self.heads[i].compute(evidence).values()) for i in order}
        return tuple(tensor for i in range(len(self.heads)) for tensor in results[i])

    def evidence(self, *seen: Tensor, classes: Tensor | None = None, **thresholds) -> Evidence:
        """What the network's tensors, and the arguments of `maps`, leave for the heads."""
        attached, logits = self.attached, seen[0]
        weight, chosen = attached.get(seen, "rows"), self.score.chosen(logits, classes)
        weight = None if weight is None else as_type(weight.flatten(1), self.compute)
        return Evidence(
            logits=logits,
            chosen=chosen,
            score=self.score,
            size=self.size,
            ops=self.ops,
            attached=attached,
            network=self.network,
            features=self.features(seen),
            weight=weight,
            rows=None if weight is None else self.score.rows(weight, chosen),
            taps=self.taps(seen),
            tensors=self.tensors(seen),
            parameters=self.parameter,
            again=self.again,
            border=max(BORDER, 16 * torch.finfo(self.inside).eps),
            **thresholds,
        )

    def features(self, seen: Sequence[Tensor]) -> Tensor | None:
        """What the class rows speak about, `[N, C, t, h, w]`."""
        tensor, grid = self.attached.get(seen, "features"), self.attached.read
        if tensor is None or grid is not None:
            return None if tensor is None else grid.of(tensor)
        return tensor[(..., *[None] * (5 - tensor.dim()))]  # what a fully connected classifier reads

    def taps(self, seen: Sequence[Tensor]) -> dict[int, Tensor]:
        """The tensors that layers of the route read, by its numbers."""
        route = self.attached.route
        if route is None:
            return {}
        nodes, batch = {tensor: route.nodes[i] for tensor, i in route.taps.items()}, seen[0].shape[0]
        return {tensor: self.tap(tensor, self.attached.get(seen, node), batch) for tensor, node in nodes.items()}

    def tap(self, tensor: int, tap: Tensor, batch: int) -> Tensor:
        """`[N, C, t, h, w]`, or `[N, C]` where it has no extent; a flattened grid is one again."""
        route = self.attached.route
        grid = route.grids[tensor]
        if tap.dim() == 2 and grid is not None:
            tap = tap.unflatten(1, (-1, *grid[tensor in route.per_frame :]))
        return tap if tap.dim() in (2, 5) else tap.unflatten(0, (batch, -1)).transpose(1, 2)

    def tensors(self, seen: Sequence[Tensor]) -> dict[int, Tensor]:
        """Those that walks back from the logits need, by number; at least in float32, for gradients are small.

        Numbers and truth values stay what they are: they name places.
        """
        backward = self.attached.backward
        if backward is None:
            return {}
        taps = {number: self.attached.get(seen, node) for number, node in backward.nodes.items()}
        return {n: as_type(tap, self.compute) if tap.is_floating_point() else tap for n, tap in taps.items()}

    def again(self, clip: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """The network on other clips, for `Evidence`."""
        seen = self._look(as_type(clip, self.outside or self.inside))
        return seen[0], self.tensors(seen)

    def __reduce__(self):
        raise TypeError("explain: a model at one size cannot be pickled; pickle that of all sizes, and call `at` there")

    def parameter(self, name: str) -> Tensor:
        """A parameter or buffer of the captured network, at least in float32."""
        value = functools.reduce(getattr, name.split("."), self.network)
        return as_type(value, torch.promote_types(value.dtype, torch.float32)) if value.is_floating_point() else value


class LogitsOnly(nn.Module):
    def __init__(self, whole: SizedExplanation) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, clip: Tensor) -> Tensor:
        return self.whole.look(clip)[0]


def as_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Tracers write down a conversion to the type that a tensor has already."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def channels_first(clip: Tensor, layout: str) -> Tensor:
    """`[N, C, T, H, W]` of a clip in some layout."""
    return clip if layout == OURS else clip.permute(order(layout, OURS))
