"""A sum over chunks of steps as an ONNX `Loop`, whose body holds the network and the way back once.

    total = 0; for i in range(chunks): total += part(clip, chosen, alphas[i * chunk :][:chunk], shares[...])

The clip and the classes are values of the graph around it, and so are the weights, which lie there once. The last
chunk may be a smaller one: the number of steps is free in the body.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from ..backward.chunks import FEW, Chunks
from . import onnx_graph
from .check import ExportError

DOMAIN, OP = "clipsight.onnx", "SumOfChunks"
INPUTS = ("clip", "chosen", "alphas", "shares")
# Of their axes, as far as these may be free; of `chosen` the last ones.
LETTERS = {"clip": "N", "chosen": "RNM", "alphas": "S", "shares": "S"}


def translation_table() -> dict[Callable, Callable]:
    """For torch.onnx.export(custom_translation_table=...): a node for the op, until `insert` puts a loop there."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    kinds = [("T", ["tensor(float)", "tensor(double)"], ""), ("I", ["tensor(int64)"], "")]
    schema = OpSchema(
        OP,
        DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter("clip", "T"), OpSchema.FormalParameter("chosen", "I")],
        outputs=[OpSchema.FormalParameter("total", "T")],
        type_constraints=kinds,
        attributes=[OpSchema.Attribute("index", OpSchema.AttrType.INT, required=True)],
    )
    node = Op(Opset(DOMAIN, 1), OP, schema)
    return {torch.ops.clipsight_onnx.sum_of_chunks.default: lambda clip, chosen, index: node(clip, chosen, index=index)}


def examples(chunks: Chunks, batch: int) -> tuple[tuple[torch.Tensor, ...], list[dict[int, str]]]:
    """Inputs for a tracer of the part, by `INPUTS`, and the axes that are free, with their letters."""
    steps = [((None,), chunks.inputs[0][1])] * 2
    example = {"N": batch, "M": 2, "S": max(chunks.chunk, 2)}
    tensors, axes = [], []
    for name, (shape, dtype) in zip(INPUTS, (*chunks.inputs, *steps), strict=True):
        free = {i: LETTERS[name][-len(shape) :][i] for i, length in enumerate(shape) if not isinstance(length, int)}
        lengths = [example[free[i]] if i in free else length for i, length in enumerate(shape)]
        tensors.append(torch.zeros(lengths, dtype=dtype, device=chunks.device))
        axes.append(free)
    return tuple(tensors), axes


def insert(model, sums: list[Chunks], bodies: list) -> None:
    """Puts a loop in the place of every node that stands for a sum.

    Args:
        model: an `onnx.ModelProto`; changed in place.
        sums: by the nodes' `index`.
        bodies: models of their parts, with inputs by `INPUTS`.
    """
    graph = model.graph
    own, shared = {tensor.name for tensor in graph.initializer}, onnx_graph.by_content(graph.initializer)
    nodes = []
    for node in graph.node:
        if node.domain == DOMAIN:
            index = node.attribute[0].i
            nodes += _loop(node, sums[index], bodies[index].graph, shared)
        else:
            nodes.append(node)
    onnx_graph.replace(graph.node, nodes)
    graph.initializer.extend(tensor for tensor in shared.values() if tensor.name not in own)
    for i, opset in reversed([*enumerate(model.opset_import)]):
        if opset.domain == DOMAIN:
            del model.opset_import[i]


def stop_early(model, sums: list[Chunks]) -> None:
    """Lets loops end after a few chunks, as `stopping_early` does with sums, so that the self-check is short.

    All that this takes from the self-check is compared here instead: how often each loop runs, and its steps.

    Args:
        model: an `onnx.ModelProto`, as it was read from a file; changed in place.
        sums: those that the eager model computes.

    Raises:
        ExportError: the loops are not those of the sums.
    """
    from onnx import numpy_helper

    tensors, seen = {tensor.name: tensor for tensor in model.graph.initializer}, set()
    few = numpy_helper.from_array(np.array(FEW), "few_chunks")
    for loop in _loops(model.graph):
        slices = (node for node in loop.attribute[0].g.node if node.op_type == "Slice")
        read = {node.output[0].rpartition("/")[2]: node.input[0] for node in slices}
        names = (loop.input[0], *(read[name] for name in INPUTS[2:]))
        turns, *rows = (numpy_helper.to_array(tensors[name]) for name in names)
        steps = np.stack(rows, 1)
        same = [
            i for i, s in enumerate(sums) if s.count == turns and np.array_equal(s.steps.astype(steps.dtype), steps)
        ]
        if not same:
            raise ExportError(f"export: '{loop.name}' must be a sum of the eager model, got {turns} turns")
        seen.update(same)
        if sums[same[0]].can_stop_early:
            loop.input[0] = few.name
    if len(seen) < len(sums):
        raise ExportError(f"export: the file must hold {len(sums)} sums as loops, got {len(seen)}")
    model.graph.initializer.append(few)


def _loops(graph) -> Iterator:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _loops(attribute.g)
        if node.op_type == "Loop" and node.name.endswith("/loop"):
            yield node


def _loop(node, chunks: Chunks, part, shared: dict) -> list:
    """The node's nodes instead; `part` becomes the body."""
    from onnx import TensorProto, helper, numpy_helper

    (clip, chosen), (total,), at = node.input, node.output, f"{node.output[0]}/"
    kind = part.input[0].type.tensor_type.elem_type

    def constant(name: str, values, dtype=np.int64) -> str:
        tensor = numpy_helper.from_array(np.asarray(values, dtype), at + name)
        return shared.setdefault(onnx_graph.content(tensor), tensor).name

    outer = {"clip": clip, "chosen": chosen}
    body = onnx_graph.as_subgraph(part, at, shared, outer)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    rows = zip(INPUTS[2:], chunks.steps.T, strict=True)
    steps = {name: constant(f"all_{name}", row, dtype) for name, row in rows}
    size, end, axis = constant("chunk", [chunks.chunk]), at + "end", constant("axis", [0])
    first = [helper.make_node("Mul", [at + "i", size], [at + "start"])]
    first.append(helper.make_node("Add", [at + "start", size], [end]))
    first += [helper.make_node("Slice", [all, at + "start", end, axis], [at + name]) for name, all in steps.items()]
    last = [
        helper.make_node("Add", [at + "so_far", body.output[0].name], [at + "sum"]),
        helper.make_node("Identity", [at + "on"], [at + "still_on"]),
    ]
    rank = 1 + len(part.input[0].type.tensor_type.shape.dim)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [*first, *_own_weights(body.node, at, shared), *body.node, *last],
        at + "chunk",
        [
            value(at + "i", TensorProto.INT64, []),
            value(at + "on", TensorProto.BOOL, []),
            value(at + "so_far", kind, [None] * rank),
        ],
        [value(at + "still_on", TensorProto.BOOL, []), value(at + "sum", kind, [None] * rank)],
    )
    zero = helper.make_tensor(at + "zero", kind, [1], [0])
    trips = constant("chunks", chunks.count)
    return [
        helper.make_node("Shape", [clip], [at + "samples"], start=0, end=1),
        helper.make_node("Shape", [chosen], [at + "classes"], start=-1),
        helper.make_node("Shape", [clip], [at + "voxels"], start=1),
        helper.make_node("Concat", [at + "samples", at + "classes", at + "voxels"], [at + "shape"], axis=0),
        helper.make_node("ConstantOfShape", [at + "shape"], [at + "nothing"], value=zero),
        helper.make_node(
            "Loop", [trips, constant("true", True, bool), at + "nothing"], [total], name=at + "loop", body=graph
        ),
    ]


def _own_weights(nodes, at: str, shared: dict) -> list:
    """Reads the weights and biases of convolutions of images through nodes that change nothing, which are given.

    ONNX Runtime has a layout of its own for these convolutions, if these lie in the same graph: it computes such a
    node when it loads the file, and then they do.
    """
    from onnx import TensorProto, helper

    shapes = {tensor.name: list(tensor.dims) for tensor in shared.values()}
    own: dict[str, list] = {}
    for node in nodes:
        if node.op_type != "Conv" or len(shapes.get(node.input[1], ())) != 4:
            continue
        for i, name in enumerate(node.input):
            if name in shapes:
                shape = helper.make_tensor("", TensorProto.INT64, [len(shapes[name])], shapes[name])
                own[name] = [
                    helper.make_node("Constant", [], [f"{at}shape/{name}"], value=shape),
                    helper.make_node("Reshape", [name, f"{at}shape/{name}"], [f"{at}own/{name}"]),
                ]
                node.input[i] = f"{at}own/{name}"
    return [node for pair in own.values() for node in pair]
