"""Makes the graph that torch.onnx writes small, in time that grows with the graph and not with its square.

torch.onnx's own optimizer tries every pattern that it knows at every node: half of a long export. What it finds in our
graphs are a few kinds, and each begins at one op: here a node is looked at by the rule of its op, if there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Set

import numpy as np

ROUNDS = 2  # what one rule leaves behind another may take up


def simplify(model, keep_norms: bool = False, fold: bool = True) -> None:
    """Removes what changes nothing, and keeps equal nodes and equal constants once.

    Args:
        model: an `onnx_ir.Model`; changed in place.
        keep_norms: leave batch norms and the weights in front of them as they are, for another graph to read, too.
        fold: look for constants, too, and for the shapes of tensors; where they are not known yet.
    """
    from onnx_ir.passes import common

    if model.functions:
        common.InlinePass()(model)
    for _ in range(ROUNDS):
        if fold:
            from onnxscript import optimizer

            optimizer.fold_constants(model, onnx_shape_inference=True)
        _apply_rules(model.graph, RULES.keys() - ({"BatchNormalization"} if keep_norms else set()))
        common.RemoveUnusedNodesPass()(model)
    for last in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        last(model)


def _apply_rules(graph, ops: Set[str]) -> None:
    for node in graph:
        rule = RULES[node.op_type] if node.domain == "" and node.op_type in ops else None
        instead = rule(node) if rule else None
        if instead is not None and not node.outputs[0].is_graph_output():
            if instead.shape is None:
                instead.shape = node.outputs[0].shape
            node.outputs[0].replace_all_uses_with(instead)


# ---- Rules: node -> the value that may stand for its output, or None; a rule may also change the node itself ---------


def _without_bias(node):
    """A bias of zeros: ONNX Runtime would add it."""
    bias = _constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None and not bias.any():
        node.resize_inputs(2)


def _batch_norm(node):
    """Into the convolution in front of it, where nobody else reads that or its weights."""
    before = node.inputs[0].producer()
    if before is None or before.op_type != "Conv" or before.domain != "" or len(node.inputs[0].uses()) > 1:
        return None
    weight, *bias = before.inputs[1:]
    read = [weight, *bias, *node.inputs[1:]]
    if any(value is None or value.const_value is None for value in read) or len(weight.uses()) > 1:
        return None
    weights, *biases = (value.const_value.numpy() for value in (weight, *bias))
    gamma, beta, mean, variance = (value.const_value.numpy() for value in node.inputs[1:])
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    scale = gamma / np.sqrt(variance + np.asarray(epsilon, variance.dtype))
    shift = beta + (sum(biases) - mean) * scale
    before.resize_inputs(3)
    before.replace_input_with(1, _initializer(node, weights * scale.reshape(-1, *[1] * (weights.ndim - 1)), "weight"))
    before.replace_input_with(2, _initializer(node, shift, "bias"))
    return node.inputs[0]


def _reshape(node):
    value, shape = node.inputs
    made, lengths = node.outputs[0].shape, _constant(shape)
    if lengths is None and made is not None and sum(not isinstance(length, int) for length in made) <= 1:
        lengths = np.array([length if isinstance(length, int) else -1 for length in made], np.int64)
        if 0 not in lengths:  # which in a Reshape stands for the length that was there
            node.replace_input_with(1, _initializer(node, lengths, "shape"))
    if lengths is None or 0 in lengths:
        return None
    before = value.producer()
    if before is not None and before.op_type == "Reshape" and before.domain == "":
        node.replace_input_with(0, before.inputs[0])
    return _same_shape(node)


def _same_shape(node):
    """Its input, where that has the output's shape."""
    value, made = node.inputs[0], node.outputs[0]
    known = value.shape is not None and made.shape is not None
    return value if known and list(value.shape) == list(made.shape) else None


def _transpose(node):
    axes = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
    if axes is None:
        return None
    before = node.inputs[0].producer()
    if before is not None and before.op_type == "Transpose" and before.domain == "" and "perm" in before.attributes:
        from onnx_ir import AttrInt64s

        first = before.attributes["perm"].as_ints()
        axes = [first[axis] for axis in axes]
        node.attributes["perm"] = AttrInt64s("perm", axes)
        node.replace_input_with(0, before.inputs[0])
    return node.inputs[0] if list(axes) == list(range(len(axes))) else None


def _neutral(number: float, both_sides: bool) -> Callable:
    def rule(node):
        for i in (1, 0) if both_sides else (1,):
            constant, other = _constant(node.inputs[i]), node.inputs[1 - i]
            if constant is None or constant.size != 1 or constant.item() != number:
                continue
            if other.shape is not None and constant.ndim <= len(other.shape):
                return other
        return None

    return rule


RULES: dict[str, Callable] = {
    "Conv": _without_bias,
    "ConvTranspose": _without_bias,
    "Gemm": _without_bias,
    "BatchNormalization": _batch_norm,
    "Reshape": _reshape,
    "Expand": _same_shape,
    "Transpose": _transpose,
    "Add": _neutral(0.0, both_sides=True),
    "Sub": _neutral(0.0, both_sides=False),
    "Mul": _neutral(1.0, both_sides=True),
    "Div": _neutral(1.0, both_sides=False),
    "Identity": lambda node: node.inputs[0],
}


# ---- Parts ----------------------------------------------------------------------------------------------------------


def _constant(value) -> np.ndarray | None:
    """A small constant, or a bias; weights are not looked at."""
    if value is None or value.const_value is None or math.prod(value.const_value.shape) > 1 << 16:
        return None
    return value.const_value.numpy()


def _initializer(node, array: np.ndarray, what: str):
    import onnx_ir

    name = f"{node.outputs[0].name}/{what}"
    tensor = onnx_ir.tensor(array, name=name)
    value = onnx_ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=onnx_ir.TensorType(tensor.dtype))
    node.graph.register_initializer(value)
    return value
