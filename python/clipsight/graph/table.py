"""What every op of a network means: one table, which all readers of the dataflow share.

An op of ATen belongs to a *kind*, whatever its overload, its number of axes and whether it works in place; a kind has a
*role*. Readers go by roles: what is affine, what a walk back hands on and how, what reduces a grid, what keeps the
channels apart. To teach Clipsight an op, add it here; where its role's rules do not fit it, its kind has rules of its
own in :mod:`clipsight.backward`.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, Node


class Role(enum.Enum):
    """How an op's output depends on the tensors that it reads."""

    MOVES = "some or all of its values, elsewhere"
    ADDS = "their sum or difference"
    SCALES = "times numbers that do not depend on the clip"
    POOLS = "a sum with weights that are not negative and not learned"
    WEIGHS = "a sum with learned weights"
    GATES = "each value by itself: let through, or held back, in whole or in part"
    CURVES = "each value by itself, along a curve"
    CHOOSES = "the largest or smallest values"
    MULTIPLIES = "products of values"
    NORMALIZES = "values over a measure of themselves: a norm on statistics of the clip, a softmax"
    ATTENDS = "an attention"
    REPEATS = "a recurrent layer"
    DRAWS = "random numbers"
    COUNTS = "integers or truth values: no derivative"
    UNKNOWN = "no row of the table"

    @property
    def linear(self) -> bool:
        """In all tensors that it reads together."""
        return self in (Role.MOVES, Role.ADDS, Role.SCALES, Role.POOLS, Role.WEIGHS)


class Kind(NamedTuple):
    """A row of the table."""

    name: str
    role: Role


_ROWS: dict[tuple[str, Role], str] = {
    # Values that go elsewhere.
    ("reshape", Role.MOVES): "view _unsafe_view reshape view_as reshape_as flatten unflatten squeeze unsqueeze",
    ("permute", Role.MOVES): "permute transpose movedim t swapaxes moveaxis",
    ("identity", Role.MOVES): "clone contiguous alias detach to _to_copy lift_fresh_copy type_as",
    ("dropout", Role.MOVES): "dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout",
    ("cat", Role.MOVES): "cat concat concatenate",
    ("stack", Role.MOVES): "stack",
    ("pad", Role.MOVES): "pad constant_pad_nd",
    ("replicate pad", Role.MOVES): "replication_pad3d replication_pad2d replication_pad1d",
    ("reflect pad", Role.MOVES): "reflection_pad3d reflection_pad2d reflection_pad1d",
    ("circular pad", Role.MOVES): "_pad_circular",
    ("slice", Role.MOVES): "slice narrow",
    ("select", Role.MOVES): "select",
    ("index", Role.MOVES): "index",
    ("index_select", Role.MOVES): "index_select gather",
    ("slice_scatter", Role.MOVES): "slice_scatter select_scatter copy",
    ("split", Role.MOVES): "split split_with_sizes chunk tensor_split unbind unsafe_split unsafe_chunk",
    ("expand", Role.MOVES): "expand expand_as broadcast_to",
    ("repeat", Role.MOVES): "repeat tile repeat_interleave",
    ("flip", Role.MOVES): "flip",
    ("roll", Role.MOVES): "roll",
    ("unfold", Role.MOVES): "unfold im2col",
    ("pixel_shuffle", Role.MOVES): "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle",
    # Linear ops.
    ("add", Role.ADDS): "add sub rsub",
    ("scale", Role.SCALES): "neg",
    ("batch_norm", Role.SCALES): "batch_norm _native_batch_norm_legit_no_training",
    ("mean", Role.POOLS): "mean",
    ("sum", Role.POOLS): "sum",
    ("avg_pool", Role.POOLS): "avg_pool3d avg_pool2d avg_pool1d",
    ("adaptive_avg_pool", Role.POOLS): "adaptive_avg_pool3d adaptive_avg_pool2d adaptive_avg_pool1d",
    ("interpolate", Role.POOLS): "upsample_nearest3d upsample_nearest2d upsample_nearest1d upsample_trilinear3d "
    "upsample_bilinear2d upsample_linear1d upsample_bicubic2d _upsample_bilinear2d_aa",
    ("conv", Role.WEIGHS): "conv3d conv2d conv1d convolution",
    ("conv_transpose", Role.WEIGHS): "conv_transpose3d conv_transpose2d conv_transpose1d",
    ("linear", Role.WEIGHS): "linear",
    # Each value by itself.
    ("relu", Role.GATES): "relu",
    ("relu6", Role.GATES): "relu6",
    ("leaky_relu", Role.GATES): "leaky_relu",
    ("prelu", Role.GATES): "prelu",
    ("hardtanh", Role.GATES): "hardtanh clamp clamp_min clamp_max clip",
    ("threshold", Role.GATES): "threshold",
    ("elu", Role.CURVES): "elu selu celu",
    ("gelu", Role.CURVES): "gelu",
    ("silu", Role.CURVES): "silu",
    ("mish", Role.CURVES): "mish",
    ("hardswish", Role.CURVES): "hardswish",
    ("hardsigmoid", Role.CURVES): "hardsigmoid",
    ("sigmoid", Role.CURVES): "sigmoid",
    ("log_sigmoid", Role.CURVES): "log_sigmoid",
    ("tanh", Role.CURVES): "tanh",
    ("softplus", Role.CURVES): "softplus",
    ("function", Role.CURVES): "exp log sqrt rsqrt square abs sin cos erf reciprocal pow log1p expm1 sign",
    # The largest.
    ("max_pool", Role.CHOOSES): "max_pool3d max_pool2d max_pool1d",
    ("max_pool_with_indices", Role.CHOOSES): "max_pool3d_with_indices max_pool2d_with_indices max_pool1d_with_indices",
    ("adaptive_max_pool", Role.CHOOSES): "adaptive_max_pool3d adaptive_max_pool2d adaptive_max_pool1d",
    ("amax", Role.CHOOSES): "amax amin",
    ("max", Role.CHOOSES): "max min maximum minimum",
    ("topk", Role.CHOOSES): "topk sort median kthvalue",
    ("where", Role.CHOOSES): "where masked_fill",
    # Products.
    ("mul", Role.MULTIPLIES): "mul",
    ("div", Role.MULTIPLIES): "div",
    ("matmul", Role.MULTIPLIES): "matmul bmm mm baddbmm addmm mv dot",
    ("einsum", Role.MULTIPLIES): "einsum",
    # Norms that depend on the clip.
    ("layer_norm", Role.NORMALIZES): "layer_norm native_layer_norm",
    ("rms_norm", Role.NORMALIZES): "rms_norm",
    ("group_norm", Role.NORMALIZES): "group_norm native_group_norm",
    ("instance_norm", Role.NORMALIZES): "instance_norm",
    ("batch_statistics", Role.NORMALIZES): "",
    ("softmax", Role.NORMALIZES): "softmax _softmax",
    ("log_softmax", Role.NORMALIZES): "log_softmax _log_softmax",
    ("normalize", Role.NORMALIZES): "linalg_vector_norm norm var std var_mean std_mean",
    # Whole layers.
    ("attention", Role.ATTENDS): "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_efficient_attention _native_multi_head_attention",
    ("recurrent", Role.REPEATS): "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell",
    # No derivative.
    ("random", Role.DRAWS): "rand randn rand_like randn_like bernoulli normal uniform multinomial randperm",
    ("compare", Role.COUNTS): "eq ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or "
    "bitwise_not isnan isinf isfinite",
    ("integers", Role.COUNTS): "argmax argmin argsort arange floor ceil round trunc floor_divide remainder "
    "bucketize searchsorted nonzero one_hot",
}

KINDS: dict[str, Kind] = {op: Kind(*row) for row, ops in _ROWS.items() for op in ops.split()}


def op_name(node: Node) -> str:
    """An op's name in ATen, without its overload: `"relu"`; of one that works in place without the underscore."""
    name = str(node.target).removeprefix("aten.").partition(".")[0]
    return name[:-1] if name.endswith("_") and name[:-1] in KINDS else name


# They take a tensor's shape and type, not its values.
_LIKE_A_TENSOR = [
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
    "rand_like",
    "randn_like",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "new_empty_strided",
    "fill",
    "zero",
]
# Of these the second tensor gives its shape, its type or its place alone.
BY_THE_FIRST = ["expand_as", "view_as", "reshape_as", "type_as", "to"]


def valued_inputs(node: Node) -> list[Node]:
    """The tensors whose values an op reads, one that is read twice two times."""
    if op_name(node) in _LIKE_A_TENSOR:
        return []
    found: list[Node] = []
    args = (node.args[:1], {}) if op_name(node) in BY_THE_FIRST else (node.args, node.kwargs)
    torch.fx.node.map_arg(args, found.append)
    return found


def varying(graph: Graph) -> set[Node]:
    """The nodes of a graph that depend on its inputs, by more than their sizes."""
    found: set[Node] = set()
    for node in graph.nodes:
        made = isinstance(node.meta.get("val"), (Tensor, tuple, list))
        if node.op == "placeholder" or (made and not found.isdisjoint(valued_inputs(node))):
            found.add(node)
    return found


def varying_inputs(node: Node, varying: set[Node]) -> list[Node]:
    """The tensors that an op reads and that depend on the clip, one that is read twice two times."""
    tensors = (n for n in valued_inputs(node) if isinstance(n.meta.get("val"), (Tensor, tuple, list)))
    return [n for n in tensors if n in varying]


def kind_of(node: Node, varying: set[Node]) -> Kind:
    """The row of an op, by what it reads: a product with what does not depend on the clip is a scaling.

    Args:
        node: of the captured graph.
        varying: the nodes that depend on the clip.
    """
    name = op_name(node)
    kind = KINDS.get(name, Kind(name, Role.UNKNOWN))
    reads = varying_inputs(node, varying)
    if kind.name in ("mul", "div"):
        first = isinstance(node.args[0], Node) and reads == [node.args[0]]
        if kind.name == "mul" and len(reads) == 1:
            return Kind("scale", Role.SCALES)
        if kind.name == "div" and first and not _rounds(node):
            return Kind("unscale", Role.SCALES)
    elif kind.name in ("matmul", "einsum"):
        if len(reads) == 1 and not (name in ("baddbmm", "addmm") and node.args[0] in reads):
            return Kind(kind.name, Role.WEIGHS)
    elif kind.name == "batch_norm" and op_name(node) == "batch_norm" and _on_batch_statistics(node):
        return Kind("batch_statistics", Role.NORMALIZES)
    elif name == "pad" and (mode := _padding_mode(node)) != "constant":
        return Kind(f"{mode} pad", Role.MOVES)
    elif name == "convolution" and node.args[6]:  # (input, weight, bias, stride, padding, dilation, transposed, ...)
        return Kind("conv_transpose", Role.WEIGHS)
    elif name == "instance_norm" and not node.args[5]:  # on the statistics of the training
        return Kind("batch_norm", Role.SCALES)
    elif kind.name == "dropout" and _drops(node):
        return Kind("dropout in training", Role.DRAWS)
    elif kind.role is Role.WEIGHS and len(reads) > 1:
        return Kind(f"{kind.name} with computed weights", Role.UNKNOWN)
    elif name == "where" or name == "masked_fill":
        return _masking(node, kind, varying)
    elif name in ("max", "min") and len(node.args) > 1 and isinstance(node.args[1], int):
        return Kind("max", Role.CHOOSES)
    return kind


def _padding_mode(node: Node) -> str:
    """pad(input, pad, mode, value)"""
    return node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")


def _rounds(node: Node) -> bool:
    return node.kwargs.get("rounding_mode") is not None


def _on_batch_statistics(node: Node) -> bool:
    """batch_norm(input, weight, bias, running_mean, running_var, training, ...)"""
    return bool(node.args[5]) or node.args[3] is None


def _drops(node: Node) -> bool:
    """dropout(input, p, train)"""
    return len(node.args) > 2 and bool(node.args[2]) and node.args[1] != 0


def _masking(node: Node, kind: Kind, varying: set[Node]) -> Kind:
    """Where the mask does not depend on the clip, some values are replaced by constants: a linear op."""
    mask = node.args[0] if op_name(node) == "where" else node.args[1]
    return kind if mask in varying else Kind("mask", Role.SCALES)
