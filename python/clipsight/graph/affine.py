"""The affine part of a network that ends in its logits: where a Saliency Tube is defined, and its class rows.

    ... -> features [N, C, t, h, w] -> means, linear layers, scales, permutations, slices, sums -> logits [N, K]

Behind its last nonlinear op every logit is a weighted sum of the features, `logit[k] = sum J[k, c, p] features[c, p] +
const` over channels c and places p, however that part is written. The features of a tube are the input of the first
reduction over t, h or w there, and its rows are `J` summed over the places, if that says all: if the places differ only
by how much they count, and not from class to class or channel to channel. (A linear layer on a flattened grid has
other weights at every place, and no rows.)
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ..dataflow import AttachError
from .dataflow import Dataflow, Op
from .table import Role

_PROBES = 3  # random scores: what holds for them holds for all classes, but with probability 0
_SAME = 1e-3  # share of the largest weight within which places count alike
_BYTES = 64 << 20  # of weights that are looked at together


@dataclass(frozen=True)
class Features:
    """Where the affine part starts to put places together.

    Attributes:
        ops: whose tensors the features are, side by side where there are several.
        size: `(t, h, w)`.
        channels: C, of all of them.
        weight: of the layer whose parameter the rows are, or `None`.
        rows: `[K, C]`.
        seen: bool `[t, h, w]`, the places that the logits look at at all, or `None` for all of them.
    """

    ops: tuple[Op, ...]
    size: tuple[int, int, int]
    channels: int
    weight: Node | None
    rows: Tensor
    seen: Tensor | None


def affine_part(end: Op) -> set[Op]:
    """The ops in which a tensor is affine, itself the first, and the tensors that it is affine in."""
    found, waiting = {end}, [end]
    while waiting:
        op = waiting.pop()
        if op.role.linear:
            for before in op.inputs:
                if before not in found:
                    found.add(before)
                    waiting.append(before)
    return found


def find_grids(flow: Dataflow, logits: Op, network: str) -> list[Op]:
    """The ops of the features: the inputs of the first reductions in the affine part.

    There are several where the logits are a mean of two networks', say, or where pathways meet behind their poolings.

    Raises:
        AttachError: there is no reduction of a grid, or there are several that start from grids of other sizes.
    """
    part = affine_part(logits)
    reductions = {op for op in part if op.role.linear and op.reduces()}
    later = {op for op in reductions if not reductions.isdisjoint(affine_part(op) - {op})}
    first = sorted(reductions - later, key=lambda op: op.index)
    starts = list(dict.fromkeys(op.inputs[0] for op in first))
    spatial = [op for op in starts if _is_spatial(op) and not _is_pooled(flow, op)]
    if not starts or spatial != starts or len({op.grid.size for op in starts}) > 1:
        raise _undefined(network, logits, part, spatial)
    # All that the logits depend on in the affine part must come through the grids.
    if not _all_come_through(starts, part):
        raise _undefined(network, logits, part, [])
    layers = [op for op in part if op.role is Role.WEIGHS and op not in starts and flow.ancestors(op) & {*starts}]
    starts = starts if layers or len(starts) > 1 else [_in_front_of_classes(starts[0], part)]
    return list(dict.fromkeys(_as_made(start) for start in starts))


def _as_made(start: Op) -> Op:
    """The same features in front of what only moves them."""
    while start.kind.name in ("permute", "reshape", "identity", "dropout") and start.inputs[0].grid is not None:
        before = start.inputs[0]
        if (before.grid.size, before.grid.channels) != (start.grid.size, start.grid.channels):
            break
        start = before
    return start


def _is_spatial(op: Op) -> bool:
    """Rows and columns are there still: a sequence of frames, each averaged before, is no grid."""
    return op.grid is not None and any(f.label in ("H", "W") for axis in op.axes for f in axis.factors)


def _is_pooled(flow: Dataflow, op: Op) -> bool:
    """A single place, because a pooling in front of something nonlinear has left one."""
    pools = (r for r in flow.trunk(op) if r is not op and r.role in (Role.POOLS, Role.CHOOSES) and r.reduces())
    return op.voxels == 1 and any(r.voxels == 1 < r.inputs[0].voxels for r in pools)


def _all_come_through(starts: Sequence[Op], part: set[Op]) -> bool:
    """Whether every op of the part is one of the starts, in front of one, or depends on them alone."""
    known = set().union(*map(affine_part, starts))
    for op in sorted(part - known, key=lambda op: op.index):
        if not op.role.linear or not op.inputs or not known.issuperset(op.inputs):
            return False
        known.add(op)
    return True


def _in_front_of_classes(start: Op, part: set[Op]) -> Op:
    """Where the classifier stands in front of the pooling, what it reads, and not its grid of classes."""
    op = start
    while op.role.linear and len(op.inputs) == 1 and op.inputs[0] in part:
        if op.role is Role.WEIGHS:
            same = op.inputs[0].grid is not None and op.inputs[0].grid.size == op.grid.size and _is_pointwise(op)
            return op.inputs[0] if same else start
        if op.role not in (Role.MOVES, Role.SCALES):
            return start
        op = op.inputs[0]
    return start


def _is_pointwise(op: Op) -> bool:
    """A layer that works at each place by itself."""
    if op.kind.name != "conv":
        return op.kind.name in ("linear", "matmul", "einsum")
    return all(n == 1 for n in op.node.args[1].meta["val"].shape[2:])


def _undefined(network: str, logits: Op, part: set[Op], starts: Sequence[Op]) -> AttachError:
    ends = sorted((op for op in part if not op.role.linear or not op.inputs), key=lambda op: op.index)
    got = f"there is none between {', '.join(op.where for op in ends[-3:])} and the logits"
    if len(starts) > 1:
        grids = [f"{op.where} {list(op.grid.size) if op.grid else ''}".strip() for op in starts]
        got = f"there are {len(starts)} such grids, {' and '.join(grids)}"
    return AttachError(
        f"explain: a global average pooling over t, h, w of one grid of features must stand in front of the "
        f"classifier, in {network} {got}. Saliency Tubes are not defined for such a network (fully connected, as C3D, "
        "or with a class token, as MViT); Grad-CAM explains it"
    )


# ---- The rows -------------------------------------------------------------------------------------------------------


def find_rows(module: GraphModule, flow: Dataflow, logits: Op, starts: Sequence[Op], network: str) -> Features:
    """The class rows of grids, by walking the affine part back once.

    Args:
        module: the captured network.
        flow: its ops.
        logits: `[N, K]`.
        starts: the ops of the features.
        network: its name, for messages.

    Raises:
        AttachError: the places differ from class to class or from channel to channel.
    """
    size, classes = starts[0].grid.size, int(logits.shape[1])
    channels = sum(start.grid.channels for start in starts)
    part = _between(module, flow, starts, logits)
    probes = torch.randn(_PROBES, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = part(probes)  # [probes, C, voxels]
    sums = weights.sum(2)
    counts = torch.einsum("ucp,uc->p", weights, sums) / sums.square().sum().clamp_min(1e-300)
    fits = (weights - sums.unsqueeze(2) * counts).abs().amax() <= _SAME * weights.abs().amax()
    if not fits or counts.amin() < -_SAME * counts.abs().amax() or not weights.abs().amax() > 0:
        raise AttachError(
            f"explain: a global average pooling over t, h, w must stand in front of the classifier, in {network} the "
            f"classes' weights of {' and '.join(op.where for op in starts)} differ from place to place. Saliency Tubes "
            "are not defined for such a network (a linear layer on a flattened grid, as C3D has it); Grad-CAM explains "
            "it"
        )
    looked_at = (counts > _SAME * counts.amax()).view(size)
    seen = None if looked_at.all() else looked_at
    for op in sorted(flow.ancestors(logits), key=lambda op: -op.index):
        weight = _parameter_of(op)
        if weight is not None and weight.meta["val"].numel() == classes * channels:
            rows = operator.attrgetter(weight.target)(module).detach().flatten(1)
            if torch.allclose(probes @ rows.double().cpu(), sums, rtol=1e-3, atol=1e-3 * float(sums.abs().amax())):
                return Features(tuple(starts), size, channels, weight, rows, seen)
    together = max(1, _BYTES // (8 * channels * math.prod(size)))
    eye = torch.eye(classes, dtype=torch.float64)
    rows = torch.cat([part(eye[i : i + together]).sum(2) for i in range(0, classes, together)])
    return Features(tuple(starts), size, channels, None, rows.to(logits.value.dtype), seen)


def _parameter_of(op: Op) -> Node | None:
    if op.kind.name not in ("linear", "conv") or len(op.node.args) < 2 or op.node.args[1].op != "get_attr":
        return None
    weight = op.node.args[1]
    shape = weight.meta["val"].shape
    return weight if shape[0] * shape[1] == shape.numel() else None


def _between(module: GraphModule, flow: Dataflow, starts: Sequence[Op], logits: Op) -> Callable[[Tensor], Tensor]:
    """The transposed affine part: scores `[B, K]` to weights `[B, C, voxels]`, in float64 on the CPU.

    The part is linear but for constants, so where it is walked back from does not matter.
    """
    leads = flow.leads_to(starts) & flow.ancestors(logits)
    graph = Graph()
    copies = {op.node: graph.placeholder(op.node.name) for op in starts}
    copies[flow.clip.node] = graph.placeholder("clip")

    def copy(node: Node) -> Node:
        if node not in copies:  # what does not depend on the clip
            copies[node] = graph.node_copy(node, copy)
        return copies[node]

    for node in flow.graph.nodes:
        if node in flow.ops and flow.ops[node] in leads and node not in copies:
            converts = flow.ops[node].kind.name == "identity" and node.meta["val"].is_floating_point()
            copies[node] = copies[node.args[0]] if converts else graph.node_copy(node, copy)
    graph.output(copies[logits.node])
    part = GraphModule(module, graph)
    with torch.inference_mode(False):  # a caller's inference mode would leave tensors that autograd refuses
        doubles = {
            name: (value.detach().double() if value.is_floating_point() else value.detach()).cpu().clone()
            for name, value in (*part.named_parameters(), *part.named_buffers())
        }

    def zeros(op: Op, batch: int) -> Tensor:
        lengths = (n if isinstance(n, int) else batch * _per_sample(op) for n in op.shape)
        return torch.zeros(tuple(lengths), dtype=torch.float64)

    def walk(scores: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            inputs = [zeros(op, scores.shape[0]).requires_grad_() for op in starts]
            result = torch.func.functional_call(part, doubles, (*inputs, zeros(flow.clip, scores.shape[0])))
            weights = torch.autograd.grad(result, inputs, scores.clone())
        return torch.cat([op.grid.of(w).flatten(2) for op, w in zip(starts, weights, strict=True)], 1)

    return walk


def _per_sample(op: Op) -> int:
    """How many places of the axis that grows with the batch belong to one sample."""
    for axis in op.axes:
        if any(f.label == "N" for f in axis.factors):
            found = 1
            for factor in axis.factors:
                found *= factor.length if factor.label != "N" else 1
            return found
    return 1
