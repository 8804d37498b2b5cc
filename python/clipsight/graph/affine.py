"""The affine part of a network that ends in its logits: where a Saliency Tube is defined, and its class rows.

    ... -> features [N, C, t, h, w] -> means, linear layers, scales, permutations, slices, sums -> logits [N, K]

Behind its last nonlinear op every logit is a weighted sum of the features, `logit[k] = sum J[k, c, p] features[c, p] +
const` over channels c and places p, however that part is written. The features of a tube are the input of the first
reduction over t, h or w there, and its rows are `J` summed over the places, if that says all: if the places differ only
by how much they count, and not from class to class or channel to channel. (A linear layer on a flattened grid has
other weights at every place, and no rows.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ..dataflow import AttachError
from .axes import Grid
from .dataflow import Dataflow, Op
from .table import Role

_PROBES = 3  # random scores: what holds for them holds for all classes, but with probability 0
_SAME = 1e-3  # share of the largest weight within which places count alike
_BYTES = 64 << 20  # of weights that are looked at together


@dataclass(frozen=True)
class Features:
    """Where the affine part starts to put places together.

    Attributes:
        op: whose tensor the features are.
        grid: how it becomes `[N, C, t, h, w]`.
        weight: of the layer whose parameter the rows are, or `None`.
        rows: `[K, C]`.
        seen: bool `[t, h, w]`, the places that the logits look at at all, or `None` for all of them.
    """

    op: Op
    grid: Grid
    weight: Node | None
    rows: Tensor
    seen: Tensor | None


def affine_part(flow: Dataflow, logits: Op) -> set[Op]:
    """The ops in which the logits are affine, and the tensors that they are affine in."""
    found, waiting = {logits}, [logits]
    while waiting:
        op = waiting.pop()
        if op.role.linear:
            for before in op.inputs:
                if before not in found:
                    found.add(before)
                    waiting.append(before)
    return found


def find_grid(flow: Dataflow, logits: Op, network: str) -> Op:
    """The op of the features: the input of the first reduction in the affine part.

    Raises:
        AttachError: there is no reduction of a grid, or there are several that start from other grids.
    """
    part = affine_part(flow, logits)
    reductions = {op for op in part if op.role.linear and op.reduces()}
    later = {op for op in part if any(r in reductions and r is not op for r in _before(op, part))}
    first = [op for op in sorted(reductions - later, key=lambda op: op.index)]
    starts = list(dict.fromkeys(op.inputs[0] for op in first))
    if len(starts) != 1 or not _is_spatial(starts[0]):
        raise _undefined(network, logits, part, [op for op in starts if _is_spatial(op)])
    (start,) = starts
    # All that the logits depend on in the affine part must come through the grid.
    if any(op for op in part if not _comes_through(op, start, part)):
        raise _undefined(network, logits, part, [start, logits])
    layers = [op for op in part if op.role is Role.WEIGHS and op is not start and start in flow.ancestors(op)]
    start = start if layers else _in_front_of_classes(start, part)
    while start.kind.name in ("permute", "reshape", "identity", "dropout") and start.inputs[0].grid is not None:
        before = start.inputs[0]
        if (before.grid.size, before.grid.channels) != (start.grid.size, start.grid.channels):
            break
        start = before
    return start


def _is_spatial(op: Op) -> bool:
    """Rows and columns are there still: a sequence of frames, each averaged before, is no grid."""
    return op.grid is not None and any(f.label in ("H", "W") for axis in op.axes for f in axis.factors)


def _before(op: Op, part: set[Op]) -> set[Op]:
    """Those of a part that an op depends on through the part alone."""
    found, waiting = set(), [op]
    while waiting:
        current = waiting.pop()
        for before in current.inputs if current.role.linear else ():
            if before in part and before not in found:
                found.add(before)
                waiting.append(before)
    return found


def _comes_through(op: Op, start: Op, part: set[Op]) -> bool:
    """Whether an op of the part is the start, in front of it, or depends on it alone."""
    if op is start or op in _before(start, part):
        return True
    return op.role.linear and bool(op.inputs) and all(_comes_through(before, start, part) for before in op.inputs)


def _in_front_of_classes(start: Op, part: set[Op]) -> Op:
    """Where the classifier stands in front of the pooling, what it reads, and not its grid of classes."""
    op, found = start, start
    while op.role.linear and len(op.inputs) == 1 and op.inputs[0] in part:
        if op.role is Role.WEIGHS:
            same = op.inputs[0].grid is not None and op.inputs[0].grid.size == op.grid.size and _is_pointwise(op)
            return op.inputs[0] if same else start
        if op.role not in (Role.MOVES, Role.SCALES):
            return start
        op = op.inputs[0]
    return found


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


def find_rows(module: GraphModule, flow: Dataflow, logits: Op, start: Op, network: str) -> Features:
    """The class rows of a grid, by walking the affine part back once.

    Args:
        module: the captured network.
        flow: its ops.
        logits: `[N, K]`.
        start: the op of the features.
        network: its name, for messages.

    Raises:
        AttachError: the places differ from class to class or from channel to channel.
    """
    grid, classes = start.grid, int(logits.shape[1])
    part = _between(module, flow, start, logits)
    voxels = grid.size[0] * grid.size[1] * grid.size[2]
    probes = torch.randn(_PROBES, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = part(probes)  # [probes, C, voxels]
    sums = weights.sum(2)
    counts = torch.einsum("ucp,uc->p", weights, sums) / sums.square().sum().clamp_min(1e-300)
    fits = (weights - sums.unsqueeze(2) * counts).abs().amax() <= _SAME * weights.abs().amax()
    if not fits or counts.amin() < -_SAME * counts.abs().amax() or not weights.abs().amax() > 0:
        raise AttachError(
            f"explain: a global average pooling over t, h, w must stand in front of the classifier, in {network} the "
            f"classes' weights of {start.where} differ from place to place. Saliency Tubes are not defined for such a "
            "network (a linear layer on a flattened grid, as C3D has it); Grad-CAM explains it"
        )
    looked_at = (counts > _SAME * counts.amax()).view(grid.size)
    seen = None if looked_at.all() else looked_at
    for op in sorted(flow.ancestors(logits), key=lambda op: -op.index):
        weight = _parameter_of(op)
        if weight is not None and weight.meta["val"].numel() == classes * grid.channels:
            rows = _value(module, weight).detach().flatten(1)
            if torch.allclose(probes @ rows.double().cpu(), sums, rtol=1e-3, atol=1e-3 * float(sums.abs().amax())):
                return Features(start, grid, weight, rows, seen)
    together = max(1, _BYTES // (8 * grid.channels * voxels))
    eye = torch.eye(classes, dtype=torch.float64)
    rows = torch.cat([part(eye[i : i + together]).sum(2) for i in range(0, classes, together)])
    return Features(start, grid, None, rows.to(logits.value.dtype), seen)


def _parameter_of(op: Op) -> Node | None:
    if op.kind.name not in ("linear", "conv") or len(op.node.args) < 2 or op.node.args[1].op != "get_attr":
        return None
    weight = op.node.args[1]
    shape = weight.meta["val"].shape
    return weight if shape[0] * shape[1] == shape.numel() else None


def _value(module: GraphModule, node: Node) -> Tensor:
    value = module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value


def _between(module: GraphModule, flow: Dataflow, start: Op, logits: Op) -> Callable[[Tensor], Tensor]:
    """The transposed affine part: scores `[B, K]` to weights `[B, C, voxels]`, in float64 on the CPU.

    The part is linear but for constants, so where it is walked back from does not matter.
    """
    wanted = flow.ancestors(logits)
    leads = flow.leads_to([start]) & wanted
    graph, copies = Graph(), {}
    copies[start.node] = graph.placeholder("features")
    clip = graph.placeholder("clip")
    copies[flow.clip.node] = clip

    def copy(node: Node) -> Node:
        if node not in copies:  # what does not depend on the clip
            copies[node] = graph.node_copy(node, copy)
        return copies[node]

    for node in flow.graph.nodes:
        if node in flow.ops and flow.ops[node] in leads and node is not start.node:
            converts = flow.ops[node].kind.name == "identity" and node.meta["val"].is_floating_point()
            copies[node] = copies[node.args[0]] if converts else graph.node_copy(node, copy)
    graph.output(copies[logits.node])
    shape, clip_shape = ([n if isinstance(n, int) else None for n in op.shape] for op in (start, flow.clip))
    part = GraphModule(module, graph)
    with torch.inference_mode(False):  # a caller's inference mode would leave tensors that autograd refuses
        doubles = {
            name: (value.detach().double() if value.is_floating_point() else value.detach()).cpu().clone()
            for name, value in (*part.named_parameters(), *part.named_buffers())
        }
    per_sample = _per_sample(start)

    def walk(scores: Tensor) -> Tensor:
        batch = scores.shape[0]
        with torch.inference_mode(False), torch.enable_grad():
            zeros = torch.zeros([batch * per_sample if n is None else n for n in shape], dtype=torch.float64)
            like = torch.zeros([batch if n is None else n for n in clip_shape], dtype=torch.float64)
            zeros.requires_grad_()
            result = torch.func.functional_call(part, doubles, (zeros, like))
            (weights,) = torch.autograd.grad(result, zeros, scores.clone())
        return start.grid.of(weights).flatten(2)

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
