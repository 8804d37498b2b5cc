"""What a method is: a frozen set of options, and one function from the network's evidence to named tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..backward.walk import Backward, Rules
from ..convolutions import Route
from ..graph.places import Place
from ..preprocessing import Preprocessing
from ..pyramid import Layer
from ..scores import Score
from .relevance import Cam, Volume

if TYPE_CHECKING:
    from ..attach import Attached

BORDER = 1e-4  # share of its range within which rounding may turn the gate of a feature pyramid, in float32


@dataclass
class Evidence:
    """What one forward pass of the network leaves for the heads.

    Attributes:
        logits: `[N, K]`, or with steps as the target's layout says.
        chosen: int64 `[M]` or `[N, M]`, the explained classes, or `[R, N, M]`: those of each term of the scores.
        score: what is explained of them.
        size: `(T, H, W)` of the clip.
        ops: `clipsight.ops` (fused kernels) or `clipsight.reference` (plain torch); both have the same functions.
        attached: what was found in the network.
        network: the captured network.
        features: `[N, C, t, h, w]`, what the class rows speak about, where a head asked for it.
        weight: `[K, C]`, float32: the rows of all classes.
        rows: `[M, C]` or `[N, M, C]`, float32: those of the explained scores.
        taps: the tensors that layers of the route read, `[N, C, t, h, w]` or `[N, C]`, by the route's tensor number.
        tensors: those of the forward pass that the walks back need, by number.
        parameters: the network's parameters, by name.
        again: the network on other clips `[N', 3, T, H, W]`: (logits, tensors).
        tau: float32 `[N]`, in place of the heads' thresholds (never NaN), or `None`.
        n_sigma: float32 `[N]`, in place of the heads' n_sigma, or `None`.
        decisions: outputs by name, of another run of the same graph on the same clips: where a gate hangs on rounding,
            that is within `border` of the range, this run decides as that one did.
        computed: results that several heads share, by head.
    """

    logits: Tensor
    chosen: Tensor
    score: Score
    size: tuple[int, int, int]
    ops: ModuleType
    attached: Attached
    network: nn.Module
    features: Tensor | None = None
    weight: Tensor | None = None
    rows: Tensor | None = None
    taps: dict[int, Tensor] = field(default_factory=dict)
    tensors: dict[int, Tensor] = field(default_factory=dict)
    parameters: Callable[[str], Tensor] | None = None
    again: Callable[[Tensor], tuple[Tensor, dict[int, Tensor]]] | None = None
    tau: Tensor | None = None
    n_sigma: Tensor | None = None
    decisions: dict[str, Tensor] | None = None
    border: float = BORDER
    computed: dict[Any, Any] = field(default_factory=dict)

    @property
    def route(self) -> Route:
        return self.attached.route

    @property
    def linear(self) -> bool:
        """The features are averaged and weighted to give the logits, with nothing in between."""
        return self.attached.linear

    def look_at(self, place: Place) -> Tensor:
        """The tensor of the forward pass there, `[N, C, t, h, w]`."""
        return self.attached.spots[place].grid.of(self.tensors[self.attached.backward.stops[place]])

    def seed(self, score: str = "logit") -> Tensor:
        """The derivative of each explained score by the logits, `[M, N, K]`: of sums of `"logit"` or of `"softmax"`."""
        return self.score.seed(self.logits, self.chosen, score)

    def arrived(self, rules: Rules, place: Place, score: str = "logit") -> Tensor:
        """What the rules bring from the classes there, `[N, M, C, t, h, w]`; one walk serves all heads that want it."""
        backward = self.attached.backward
        if (rules, score) not in self.computed:
            seed = self.seed(score)
            self.computed[rules, score] = backward.run(rules, seed, self.tensors, self.parameters)
        g = self.computed[rules, score][backward.stops[place]]  # [M, B, ...]
        grid = self.attached.spots[place].grid.of(g, leading=1).transpose(0, 1)
        # Gates stop a NaN on its way back; where the logits are not finite, nothing is explained.
        nan = (self.logits - self.logits).flatten(1).sum(1).to(grid.dtype)
        return grid + nan.view(-1, 1, 1, 1, 1, 1)

    def at(self, clip: Tensor, chosen: Tensor, copies: int) -> Evidence:
        """Classes as in `chosen` on clips `[copies * N, 3, T, H, W]`, for the walks back alone."""
        logits, tensors = self.again(clip)
        if chosen.dim() > 1:
            chosen = chosen.repeat(*[1] * (chosen.dim() - 2), copies, 1)
        return replace(self, logits=logits, tensors=tensors, chosen=chosen, computed={})

    def read_by(self, layer: str) -> Tensor:
        """The features that a layer of the route reads."""
        return self.taps[self.route.reads[layer]]

    def decide(self, name: str, kept: Tensor, scores: Tensor, theta: float) -> Tensor:
        """`kept`, but as the decisions have it where `scores` lie on the gate but for rounding."""
        if self.decisions is None or name not in self.decisions:
            return kept
        low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
        span = high - low
        rounding = self.border * span + 8 * torch.finfo(scores.dtype).eps * scores.abs().amax(-1, keepdim=True)
        border = ((scores - low - theta * span).abs() <= rounding) & (span > 0)
        return torch.where(border, self.decisions[name].to(kept.device), kept)


class Head:
    """Base class of the methods. A subclass is a frozen dataclass of options.

    It overrides `outputs` (name -> meaning, in order) and `compute` (the tensors, by the same names), `thresholds`
    where it has some, `walks` and `targets` where it goes back from the logits, and `maps`, `relevance` and `key` where
    it has relevance maps that another head may split.
    """

    name: ClassVar[str]
    needs_pooling: ClassVar[bool] = True  # global, in front of the classifier
    depth: ClassVar[int | str | None] = None  # of the convolutions that it looks at

    def blank(self, evidence: Evidence) -> str:
        """Why its map is the same everywhere, in words; `""` where it is not, or where that is not known in time."""
        return ""

    def thresholds(self) -> dict[str, float | None]:
        """The options that `Evidence` may replace, `tau` and `n_sigma`, by name; without the head's own use, none."""
        return {}

    def outputs(self) -> dict[str, str]:
        raise NotImplementedError

    def compute(self, evidence: Evidence) -> dict[str, Tensor]:
        raise NotImplementedError

    def maps(self) -> tuple[str, ...]:
        """What its relevance maps are called, `""` for the only one: the names of their outputs start so."""
        raise NotImplementedError

    def walks(self, linear: bool) -> tuple[tuple[Rules, Place], ...]:
        """The walks back from the logits that it wants: their rules, and where they end.

        Args:
            linear: see `Evidence`.
        """
        return ()

    def sensitive(self, backward: Backward | None, linear: bool) -> bool:
        """Whether gates or divisions on the way back from the logits may amplify rounding.

        Args:
            backward, linear: see `Evidence`.
        """
        return any(backward.amplifies(rules, place) for rules, place in self.walks(linear))

    def places(self) -> tuple[Place, ...]:
        """Where it looks at the tensors of the forward pass."""
        return ()

    def relevance(self, evidence: Evidence) -> dict[str, Cam | Volume]:
        """For each of `maps`, what it is made from."""
        raise NotImplementedError

    def map_of(self, name: str, evidence: Evidence) -> Tensor:
        """One of its relevance maps, normalised, at full size; computed once for all heads that use it."""
        if (self.key(), name) not in evidence.computed:
            evidence.computed[self.key(), name] = self.relevance(evidence)[name].tube(evidence.ops)
        return evidence.computed[self.key(), name]

    def key(self) -> Head:
        """Equal for heads with the same relevance maps: what else they put out does not matter."""
        raise NotImplementedError

    def bind(self, weight: Tensor, layers: tuple[Layer, ...]) -> Head:
        """The head with every option that depends on the network made definite.

        Args:
            weight: the classifier's weights `[K, C]`.
            layers: the convolutions down to the deepest that any head wants, the classifier first.
        """
        return self

    def for_clips(self, preprocessing: Preprocessing | None, channels: int) -> Head:
        """The head with every option made definite that depends on how the network's clips are made."""
        return self

    def with_maps_of(self, dtype: str) -> Head:
        """The head with maps of another type."""
        return replace(self, dtype=dtype)  # type: ignore[type-var]

    def describe(self) -> dict[str, Any]:
        """Name and all options, JSON-able."""
        return {"method": self.name, **asdict(self)}  # type: ignore[call-overload]


def per_frame(tube: Tensor) -> Tensor:
    """Mean saliency of each frame: `[N, M, T, H, W]` -> `[N, M, T]`."""
    return tube.float().mean((-2, -1))


def peak_box(tube: Tensor, level: float = 0.5) -> Tensor:
    """Smallest box that holds every voxel above `level` of the way from the map's minimum to its maximum.

    `[N, M, T, H, W]` -> int64 `[N, M, 6]`: first frame, row, column, and one past the last frame, row, column.
    A constant map gives zeros.
    """
    values = tube.float()
    low, high = values.amin((-3, -2, -1), True), values.amax((-3, -2, -1), True)
    inside = ((values > low + level * (high - low)) & (high > low)).float()
    starts, ends = [], []
    for axis in (-3, -2, -1):
        others = tuple(a for a in (-3, -2, -1) if a != axis)
        hit = inside.amax(others)
        n = hit.shape[-1]
        index = torch.arange(1, n + 1, device=hit.device, dtype=hit.dtype)
        ends.append((hit * index).amax(-1))
        starts.append((n - (hit * (n + 1 - index)).amax(-1)) * hit.amax(-1))
    return torch.stack(starts + ends, -1).long()


EXTRAS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "per_frame": ("mean saliency of each frame [N, M, T]", per_frame),
    "peak_box": ("box of the voxels above half the peak [N, M, 6]: t0, y0, x0, t1, y1, x1 (ends excluded)", peak_box),
}


def top_count(text: str) -> int:
    """`"top3"` -> 3; 0 for another text."""
    digits = text.removeprefix("top")
    return int(digits) if text.startswith("top") and digits.isdigit() else 0


def check_choice(op: str, argument: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{op}: {argument} must be one of {list(allowed)}, got {value!r}")


def check_map_options(head: Head) -> None:
    """Those that `SaliencyTube` documents, as far as the head has them; lists become tuples."""
    op = type(head).__name__
    for name in ("channels", "size", "extras"):
        value = getattr(head, name, None)
        if not isinstance(value, (str, tuple, type(None))):
            object.__setattr__(head, name, tuple(value))
    object.__setattr__(head, "dtype", str(head.dtype).removeprefix("torch."))
    for name, allowed in (
        ("order", (1, 3)),
        ("normalize", ("clip", "frame", "none")),
        ("dtype", ("float32", "float16", "uint8")),
    ):
        if hasattr(head, name):
            check_choice(op, name, getattr(head, name), allowed)
    for extra in head.extras:
        check_choice(op, "extras", extra, tuple(EXTRAS))
    if head.dtype == "uint8" and head.normalize == "none":
        raise ValueError(f"{op}: dtype 'uint8' needs a normalised map, got normalize='none'")
    size = getattr(head, "size", "clip")
    if isinstance(size, str):
        check_choice(op, "size", size, ("clip", "features"))
    elif len(size) != 3 or min(size) < 1:
        raise ValueError(f"{op}: size must be (T, H, W), each at least 1, got {size}")
