"""Class Feature Pyramids (Stergiou et al., 2019) a second time: plain Python, one kernel and one channel at a time.

Written from the paper (sections 3.1 to 3.4), not from the package: it walks the graph that
:mod:`pyramid_networks` states by hand, and reads activations from forward hooks and weights by name.

Means are taken exactly (`math.fsum`) and rounded to float32 once. The gate is then computed in float32 and in the form
`s - low >= theta * (high - low)`, as the package computes it: at equality, which the paper keeps, every other form or
precision rounds otherwise (0.6 * 5 is 3 in float32, but float32's 0.6 * 5 is more than 3 in float64), and then two
right programs would disagree. Where a candidate lies so near to theta without being equal that the rounding of the
means decides, there is no right answer: that is an error here, and the network needs another seed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Rules:
    """The rules of the method; a test breaks one of them to see that the comparison would notice.

    Attributes:
        own_group: a kernel reads the channels of its own group (else those of the first group).
        offsets: indices behind a concatenation are those of the branch (else of the concatenation).
        shortcuts: a sum passes its channels to both operands (else to the main path alone).
        passes: pooling and the like pass their channels on.
        equality: a candidate exactly at theta is kept.
        activations: scores are weight times activation (else the weight alone).
        sums: a tensor that is reached twice has the sum of the multiplicities (else one at most).
    """

    own_group: bool = True
    offsets: bool = True
    shortcuts: bool = True
    passes: bool = True
    equality: bool = True
    activations: bool = True
    sums: bool = True


RIGHT = Rules()


@dataclass
class Step:
    """One layer, for one sample and class: see `clipsight.pyramid.Step`; the class step has one row of edges.

    `made` is the multiplicity of what the layer makes, its kernels.
    """

    mask: list[bool]
    multiplicity: list[int]
    edges: list[list[bool]]
    made: list[int]


@dataclass
class Recording:
    """What a network did with a batch of clips.

    Attributes:
        logits: `[N, K]`.
        inputs: what each layer received, `[N, C, t, h, w]` or `[N, C]`; of the classifier, the input of the pooling.
        weights: `[K, C / groups, cells of the kernel]`.
        groups: of each layer.
        lines: (tensor, operation or layer, operands) of the graph.
        channels: of each tensor.
        depth: of each layer.
        means, rows: what has been computed already.
    """

    logits: np.ndarray
    inputs: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    groups: dict[str, int]
    lines: list[tuple[str, str, list[str]]]
    channels: dict[str, int] = field(default_factory=dict)
    depth: dict[str, int] = field(default_factory=dict)
    means: dict[tuple, np.float32] = field(default_factory=dict)
    rows: dict[tuple, list[bool]] = field(default_factory=dict)

    @property
    def classifier(self) -> str:
        return self.lines[-1][1]

    def operand(self, layer: str) -> str:
        return next(operands[0] for _, operation, operands in self.lines if operation == layer)

    def activation(self, layer: str, sample: int, channel: int) -> np.float32:
        """Mean of a channel of what a layer received."""
        key = (layer, sample, channel)
        if key not in self.means:
            self.means[key] = np.float32(fmean(self.inputs[layer][sample, channel].ravel().tolist()))
        return self.means[key]

    def weight(self, layer: str, kernel: int, channel: int) -> np.float32:
        """Mean over the extent of a kernel, of one channel of its group."""
        key = (layer, "kernel", kernel, channel)
        if key not in self.means:
            self.means[key] = np.float32(fmean(self.weights[layer][kernel, channel].tolist()))
        return self.means[key]


@torch.no_grad()
def record(network: nn.Module, clip: torch.Tensor) -> Recording:
    """Runs one of the networks of :mod:`pyramid_networks`."""
    lines = []
    for line in re.split(r"[;\n]", network.graph.strip()):
        tensor, operation, operands = re.fullmatch(r"(\w+) = ([\w.]+)\(([\w, ]+)\)", line.strip()).groups()
        lines.append((tensor, operation, operands.split(", ")))
    names = [operation for _, operation, _ in lines if operation not in ("sum", "cat", "pass")]
    received = {}
    hooks = [  # clones, because operations in place may overwrite what a layer has read
        network.get_submodule(name).register_forward_pre_hook(
            lambda _, arguments, name=name: received.__setitem__(name, arguments[0].clone())
        )
        for name in names
    ]
    batch = clip.shape[0]
    frames = clip.transpose(1, 2).flatten(0, 1) if network.images else clip
    logits = network(frames)
    received[names[-1]] = network.features(frames)
    for hook in hooks:
        hook.remove()
    if network.images:
        logits = logits.view(batch, -1, logits.shape[1]).mean(1)

    result = Recording(logits.numpy(), {}, {}, {}, lines, {"clip": 3})
    for name in names:
        layer, tensor = network.get_submodule(name), received[name]
        if name in network.grids:
            tensor = tensor.view(len(tensor), -1, *network.grids[name])
        if len(tensor) > batch:  # the frames of a 2-D network, where they are flattened of one cell each
            tensor = tensor.reshape(*tensor.shape, *[1] * (4 - tensor.dim()))
            tensor = tensor.unflatten(0, (batch, -1)).transpose(1, 2)
        result.inputs[name] = tensor.numpy()
        result.groups[name] = getattr(layer, "groups", 1)
        channels = tensor.shape[1] // result.groups[name]
        result.weights[name] = layer.weight.reshape(layer.weight.shape[0], channels, -1).numpy()
    for tensor, operation, operands in lines:
        widths = [result.channels[operand] for operand in operands]
        if operation in names:
            assert result.inputs[operation].shape[1] == widths[0], operation
            result.channels[tensor] = result.weights[operation].shape[0]
        else:
            result.channels[tensor] = sum(widths) if operation == "cat" else widths[0]
    result.depth = depths(lines)
    return result


def depths(lines: list[tuple[str, str, list[str]]]) -> dict[str, int]:
    """Depth of each layer: 1 for the classifier, one more for each layer on the longest path."""
    behind = dict.fromkeys((tensor for tensor, _, _ in lines), 0)  # layers between a tensor and the logits
    result = {}
    for tensor, operation, operands in reversed(lines):
        count = behind[tensor]
        if operation not in ("sum", "cat", "pass"):
            count += 1
            result[operation] = count
        for operand in operands:
            behind[operand] = max(behind.get(operand, 0), count)
    return result


def gate(scores: list[np.float32], theta: float, rules: Rules = RIGHT, among=None) -> list[bool]:
    """Which scores are kept: Eq. 1 and the steep limit of Eq. 2, scaled over the scores or over `among`."""
    low, high = min(among or scores), max(among or scores)
    span, kept = high - low, []
    if 0 < span < 1e-5 * max(abs(low), abs(high)):
        raise ArithmeticError("undecided: the scores differ by rounding alone")
    limit = np.float32(theta) * span
    for score in scores:
        above = (score - low) - limit
        if above != 0 and abs(above) < 1e-6 * span:
            raise ArithmeticError(f"undecided: a score is within rounding of theta = {theta}")
        kept.append(bool(above > 0 or (above == 0 and rules.equality)))
    return kept


def class_step(
    recording: Recording,
    sample: int,
    label: int,
    theta: float,
    by: str,
    rules: Rules = RIGHT,
) -> list[bool]:
    """The channels of the features that are kept for a class."""
    name = recording.classifier
    channels = range(recording.inputs[name].shape[1])
    weights = [recording.weight(name, label, c) for c in channels]
    if by == "weights":
        everything = [recording.weight(name, k, c) for k in range(recording.weights[name].shape[0]) for c in channels]
        return gate(weights, theta, rules, among=everything)
    return gate([recording.activation(name, sample, c) * weights[c] for c in channels], theta, rules)


def back_step(
    recording: Recording,
    layer: str,
    sample: int,
    kernel: int,
    theta: float,
    rules: Rules = RIGHT,
) -> list[bool]:
    """The channels, of those in its own group, that are kept for one kernel (Eq. 3)."""
    key = (layer, sample, kernel, theta, rules)
    if key not in recording.rows:
        kernels, width = recording.weights[layer].shape[:2]
        first = kernel // (kernels // recording.groups[layer]) * width if rules.own_group else 0
        scores = []
        for j in range(width):
            score = recording.weight(layer, kernel, j)
            if rules.activations:
                score = recording.activation(layer, sample, first + j) * score
            scores.append(score)
        recording.rows[key] = gate(scores, theta, rules)
    return recording.rows[key]


def pyramid(
    recording: Recording,
    sample: int,
    label: int,
    theta: float,
    depth: int | str = "all",
    class_step_by: str = "activation",
    rules: Rules = RIGHT,
) -> dict[str, Step]:
    """Layer -> step, for every layer of at most that depth, from the classifier down."""
    limit = max(recording.depth.values()) if depth == "all" else depth
    counts = {tensor: [0] * channels for tensor, channels in recording.channels.items()}
    edges: dict[str, list[list[bool]]] = {}

    def collect(tensor: str, channel: int, times: int) -> None:
        counts[tensor][channel] += times
        if not rules.sums:
            counts[tensor][channel] = min(counts[tensor][channel], 1)

    for tensor, operation, operands in reversed(recording.lines):
        if operation == "cat":
            start = 0
            for operand in operands:
                for channel in range(recording.channels[operand]):
                    collect(operand, channel, counts[tensor][start + channel])
                start += recording.channels[operand] if rules.offsets else 0
        elif operation in ("sum", "pass"):
            kept = operands if rules.shortcuts or operation == "pass" else operands[:1]
            for operand in kept if rules.passes or operation == "sum" else []:
                for channel, times in enumerate(counts[tensor]):
                    collect(operand, channel, times)
        elif operation == recording.classifier:
            edges[operation] = [class_step(recording, sample, label, theta, class_step_by, rules)]
            for channel, kept in enumerate(edges[operation][0]):
                collect(operands[0], channel, int(kept))
        elif recording.depth[operation] <= limit:
            kernels, width = recording.weights[operation].shape[:2]
            edges[operation] = []
            for kernel in range(kernels):
                row = [False] * width
                if counts[tensor][kernel] > 0:
                    row = back_step(recording, operation, sample, kernel, theta, rules)
                first = kernel // (kernels // recording.groups[operation]) * width
                for j, kept in enumerate(row):
                    collect(operands[0], first + j, int(kept))
                edges[operation].append(row)
    result = {}
    for tensor, operation, operands in recording.lines:
        if operation in edges:
            times = counts[operands[0]]
            result[operation] = Step([count > 0 for count in times], times, edges[operation], counts[tensor])
    return result


def sources(recording: Recording, layer: str) -> set[tuple[int, str, int]]:
    """(channel of what a layer reads, layer that made it, its kernel); several where sums meet, none for the clip."""

    def of(tensor: str) -> list[set[tuple[str, int]]]:
        if tensor == "clip":
            return [set() for _ in range(recording.channels["clip"])]
        operation, operands = next((line[1], line[2]) for line in recording.lines if line[0] == tensor)
        if operation == "cat":
            return [origins for operand in operands for origins in of(operand)]
        if operation in ("sum", "pass"):
            return [set().union(*together) for together in zip(*map(of, operands), strict=True)]
        return [{(operation, kernel)} for kernel in range(recording.channels[tensor])]

    return {(j, *origin) for j, origins in enumerate(of(recording.operand(layer))) for origin in origins}


def branches(recording: Recording, layer: str) -> list[tuple[int, int]]:
    """(start, stop) of the parts of a concatenation that a layer reads, directly or behind a pooling and the like."""
    tensor = recording.operand(layer)
    while tensor != "clip":
        operation, operands = next((line[1], line[2]) for line in recording.lines if line[0] == tensor)
        if operation == "cat":
            widths = [recording.channels[operand] for operand in operands]
            return [(sum(widths[:i]), sum(widths[: i + 1])) for i in range(len(widths))]
        if operation != "pass":
            break
        tensor = operands[0]
    return []


# ---- volumes on the feature grid ------------------------------------------------------------------------------------


def average(features: np.ndarray, counts: list[int]) -> np.ndarray:
    """`[C, t, h, w]` and how often each channel counts -> float64 `[t, h, w]`; zeros where none does."""
    total = np.zeros(features.shape[1:])
    for channel, times in enumerate(counts):
        total += times * features[channel].astype(np.float64)
    return total / max(sum(counts), 1)


def layer_volume(recording: Recording, layer: str, sample: int, step: Step) -> np.ndarray:
    """Section 3.3, layer-wise: the selected channels, each as often as kernels point at it."""
    return average(recording.inputs[layer][sample], step.multiplicity)


def feature_volume(recording: Recording, layer: str, sample: int, step: Step, kernel: int) -> np.ndarray:
    """Section 3.3, feature-wise: the mean of the channels that one kernel keeps (of the class step: row 0)."""
    kernels, width = len(step.edges), len(step.edges[0])
    first = kernel // (kernels // recording.groups[layer]) * width
    return average(recording.inputs[layer][sample, first : first + width], step.edges[kernel])


def group_volumes(recording: Recording, layer: str, sample: int, step: Step) -> list[np.ndarray]:
    """The layer-wise volume within each group of the convolution, or each branch that it reads, or all channels."""
    channels, groups = len(step.mask), recording.groups[layer]
    width = channels // groups
    parts = [(g * width, (g + 1) * width) for g in range(groups)]
    if groups == 1:
        parts = branches(recording, layer) or parts
    return [average(recording.inputs[layer][sample, a:b], step.multiplicity[a:b]) for a, b in parts]
