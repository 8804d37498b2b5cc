"""Where heads look: the clip, the features that a classifier's weights speak about, or a layer by name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from ..dataflow import AttachError, stack_of
from .axes import Grid
from .dataflow import Dataflow, Op
from .table import Role


class Place(NamedTuple):
    """A tensor of the network, as a head names it.

    Attributes:
        layer: module path, of whose output the place is; `None` for the grid that the network pools last; `""` for the
            clip.
        after_relu: what a ReLU behind it makes of it.
    """

    layer: str | None = None
    after_relu: bool = False


CLIP = Place("")


class Spot(NamedTuple):
    """A place in one network: the op whose tensor it is, and how that becomes `[N, C, t, h, w]`."""

    op: Op
    grid: Grid

    def describe(self) -> dict:
        """JSON-able."""
        parts = self.op.inputs if self.op.kind.name == "cat" and not self.op.path else (self.op,)
        layer = " and ".join(op.path for op in parts)
        return {"layer": layer, "op": self.op.kind.name, "channels": self.grid.channels, "grid": list(self.grid.size)}


def find_place(flow: Dataflow, place: Place, logits: Op, features: Op | None) -> Spot:
    """The tensor of a place.

    Args:
        flow: of the network.
        place: what a head asks for.
        logits: `[N, K]`.
        features: what the classifier's weights speak about, if they speak about a grid.

    Raises:
        AttachError: the network runs no such module, it has no grid, no ReLU follows it, or the logits do not depend
            on it.
    """
    if place == CLIP:
        op = flow.clip
    elif place.layer is not None:
        op = flow.output_of(place.layer, "layer")
    else:
        op = features if features is not None else default_place(flow, logits)
    if place.after_relu:
        relus = [user for user in flow if user.kind.name == "relu" and op in user.inputs]
        if not relus:
            raise AttachError(f"explain: after_relu needs a ReLU behind {_named(place, op)}, which has none")
        op = relus[0]
    if op is not features and op not in flow.ancestors(logits):
        raise AttachError(
            f"explain: layer must be one that the class score depends on, on {_named(place, op)} it does not"
        )
    grid = op.grid or _guessed(flow, op)
    if grid is None:
        raise AttachError(
            f"explain: layer must name a module with an output [N, C, t, h, w], {_named(place, op)} gives "
            f"{['N', *op.shape[1:]]}, in which no grid of the network can be seen"
        )
    return Spot(op, grid)


def default_place(flow: Dataflow, logits: Op) -> Op:
    """What Grad-CAM explains where no layer is named and no classifier speaks about a grid.

    Of a transformer the tokens that its last attention reads. Else the input of the last pooling that ends the grid,
    or, where the grid is flattened instead (C3D), the output of the last convolution, behind its batch norm. Nothing
    inside a branch is taken: all that the logits know of the clip goes through that tensor.
    """
    before = flow.ancestors(logits)
    tokens = _read_by_last_attention(flow, before)
    if tokens is not None:
        return tokens
    trunk = [op for op in flow.trunk(logits) if op.grid is not None and op is not flow.clip]
    grids = [op for op in trunk if math.prod(op.grid.size[1:]) > 1]  # not a sequence of frames, each averaged before
    pooled = _last_pooled(flow, grids, before)
    if pooled is not None:
        return pooled
    for op in reversed(grids):
        if op.kind.name == "conv":
            norms = [user for user in flow if user.inputs == (op,) and user.kind.name == "batch_norm"]
            return norms[0] if norms and norms[0] in grids else op
    if grids:
        return grids[-1]
    raise AttachError(
        "explain: GradCAM needs a layer with an output [N, C, t, h, w] that all of the class score comes through; name "
        "one with layer="
    )


def _last_pooled(flow: Dataflow, grids: list[Op], before: set[Op]) -> Op | None:
    """Of the grids that everything goes through, the last one that poolings end."""
    if not grids:
        return None
    last = grids[-1]
    users = [op for op in flow if last in op.inputs and op in before]
    ends = bool(users) and all(_ends_the_grid(flow, user, last) for user in users)
    if not ends:
        return None
    while last.inputs and last.inputs[0] in grids and _pools(last):  # one pooling, in several steps
        last = last.inputs[0]
    return last


def _pools(op: Op) -> bool:
    return op.role in (Role.POOLS, Role.CHOOSES) and op.reduces()


def _ends_the_grid(flow: Dataflow, op: Op, grid: Op) -> bool:
    """Whether an op takes the places of a grid together; steps that only move them may come before."""
    while op.role is Role.MOVES and not op.reduces() and len(op.inputs) == 1:
        if op.grid is None or op.grid.channels != grid.grid.channels:
            return False  # flattened into channels
        users = [user for user in flow if op in user.inputs]
        if len(users) != 1:
            return False
        op = users[0]
    return _pools(op)


def _read_by_last_attention(flow: Dataflow, before: set[Op]) -> Op | None:
    attentions = [op for op in flow if op in before and op.kind.name in ("attention", "softmax") and _mixes(op)]
    if not attentions:
        return None
    read = flow.ancestors(attentions[-1])
    norms = [op for op in flow if op in read and op.kind.name == "layer_norm" and _has_tokens(op)]
    outside = [op for op in norms if ".attn" not in stack_of(op.node)[-1]]
    if outside or norms:
        return (outside or norms)[-1]
    whole = [op for op in flow.trunk(attentions[-1]) if op.grid is not None and op.voxels > 1 and op is not flow.clip]
    return whole[-1] if whole else None


def _mixes(op: Op) -> bool:
    """An attention, not the softmax of a single row of classes."""
    return op.inputs[0].value.dim() > 2


def _has_tokens(op: Op) -> bool:
    return isinstance(op.value, Tensor) and op.value.dim() == 3


def _guessed(flow: Dataflow, op: Op) -> Grid | None:
    """By its shape alone, where its axes could not be followed: channels first, or tokens as many as some grid has."""
    shape = op.shape
    if not all(isinstance(n, int) for n in shape[1:]):
        return None
    if len(shape) == 5:
        return Grid(shape[2:], shape[1], (-1, *shape[1:]), (0, 1, 2, 3, 4))
    if len(shape) == 3:
        sizes = [other.grid.size for other in _with_grids(flow)]
        found = [size for size in sizes if math.prod(size) in (shape[1], shape[1] - 1)]
        if found:
            size = found[-1]
            extra = shape[1] - math.prod(size)
            return Grid(size, shape[2], (-1, *size, shape[2]), (0, 4, 1, 2, 3), (1, extra) if extra else None)
    return None


def _with_grids(flow: Dataflow) -> Iterable[Op]:
    return (op for op in flow if isinstance(op.value, Tensor) and op.grid is not None)


def _named(place: Place, op: Op) -> str:
    return repr(place.layer) if place.layer else op.where
