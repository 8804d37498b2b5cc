"""Surgery on ONNX graphs: what torch's exporter cannot write - branches by clip size and by wish, frames in front."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from ..layouts import OURS, shape_of

THRESHOLDS = ("tau", "n_sigma")

# ---- Several clip sizes in one file ---------------------------------------------------------------------------------


def by_size(models: list, sizes, layout: str = OURS):
    """One model that compares the clip's shape and runs the matching graph, as nested If nodes.

        shape(clip)[1:] == shapes[0] ? graph 0 : (shape(clip)[1:] == shapes[1] ? graph 1 : ... : an error)

    A branch sees the initializers of the graph around it: all weights live there, equal ones once.
    """
    from onnx import helper

    first, shared = models[0].graph, {}
    outputs = {o.name: o.type.tensor_type for o in first.output}
    channels = first.input[0].type.tensor_type.shape.dim[layout.index("C")].dim_value
    free = {"clip": shape_of("N", channels, "THW", layout)}
    inputs = [_value(i.name, i.type.tensor_type, free.get(i.name)) for i in first.input]
    branches = [_branch(model.graph, f"size{i}/", shared) for i, model in enumerate(models)]
    chain = _no_such_size(outputs, sizes)
    for i in reversed(range(len(sizes))):
        at = f"choose{i}/" if i else ""
        names = [at + name for name in outputs]
        values = [_value(at + name, type, [None] * len(type.shape.dim)) for name, type in outputs.items()]
        chain = helper.make_graph(
            _choose(i, shape_of("N", channels, sizes[i], layout)[1:], branches[i], chain, names),
            at.rstrip("/") or "clipsight",
            [],
            values,
        )
    chain.input.extend(inputs)
    chain.initializer.extend(shared.values())
    merged = helper.make_model(chain, opset_imports=models[0].opset_import, ir_version=models[0].ir_version)
    merged.functions.extend(models[0].functions)
    merged.producer_name, merged.producer_version = models[0].producer_name, models[0].producer_version
    return merged


def _branch(graph, prefix: str, shared: dict):
    """The graph as a branch: initializers moved to `shared`, every other name but its inputs' made unique."""
    return as_subgraph(graph, prefix, shared, {value.name: value.name for value in graph.input})


def _choose(i: int, shape, then, otherwise, names) -> list:
    from onnx import TensorProto, helper

    at = f"choose{i}/"
    return [
        helper.make_node("Shape", ["clip"], [at + "size"], start=1),
        _constant(at + "expected", shape),
        helper.make_node("Equal", [at + "size", at + "expected"], [at + "equal"]),
        helper.make_node("Cast", [at + "equal"], [at + "equal_number"], to=TensorProto.INT64),
        helper.make_node("ReduceMin", [at + "equal_number"], [at + "all_number"], keepdims=0),
        helper.make_node("Cast", [at + "all_number"], [at + "all"], to=TensorProto.BOOL),
        helper.make_node("If", [at + "all"], names, name=at + "if", then_branch=then, else_branch=otherwise),
    ]


def _no_such_size(outputs: dict, sizes):
    """A branch that always fails: ONNX has no assertion, but runtimes name the node that could not be run."""
    from onnx import helper

    rule = "clip_size_must_be_" + "_or_".join("x".join(map(str, size)) for size in sizes)
    nodes = [
        _constant("none/impossible", [0, 1]),
        helper.make_node("Reshape", ["clip", "none/impossible"], ["none/failed"], name=rule),
    ]
    values = []
    for name, type in outputs.items():
        at, rank = f"none/{name}", len(type.shape.dim)
        nodes += [
            helper.make_node("Cast", ["none/failed"], [at + "/cast"], to=type.elem_type),
            _constant(at + "/shape", [1] * rank),
            helper.make_node("Reshape", [at + "/cast", at + "/shape"], [at]),
        ]
        values.append(_value(at, type, [None] * rank))
    return helper.make_graph(nodes, "no_such_size", [], values)


# ---- Maps on demand -------------------------------------------------------------------------------------------------


def make_maps_optional(model, empty_shapes) -> None:
    """Puts every node that the logits do not need into a branch that runs where some sample of `explain` is true.

    The other branch makes maps of the given shapes; "N" and "M" in them stand for lengths of the logits and classes.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    logits, *maps = graph.output
    network, heads = network_and_head(graph)
    produced = {name for node in heads for name in node.output}
    wanted = [(v.name, v.type.tensor_type.elem_type, len(v.type.tensor_type.shape.dim)) for v in maps]
    copies = [helper.make_node("Identity", [name], [f"wanted/{name}"]) for name, *_ in wanted if name not in produced]
    then = helper.make_graph(
        [*heads, *copies],
        "wanted",
        [],
        [helper.make_tensor_value_info(name, kind, [None] * rank) for name, kind, rank in wanted],
    )
    _rename(then, lambda name: f"wanted/{name}" if name in produced else name)
    for value, (name, *_) in zip(then.output, wanted, strict=True):
        value.name = f"wanted/{name}"
    choice = [
        helper.make_node("Cast", ["explain"], ["explain/numbers"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["explain/numbers"], ["explain/any_number"], keepdims=0),
        helper.make_node("Cast", ["explain/any_number"], ["explain/any"], to=TensorProto.BOOL),
        helper.make_node(
            "If",
            ["explain/any"],
            [name for name, *_ in wanted],
            name="explain/if",
            then_branch=then,
            else_branch=_empty_maps(logits.name, wanted, empty_shapes),
        ),
    ]
    del graph.node[:]
    graph.node.extend([*network, *choice])
    del graph.value_info[:]
    inputs = [*graph.input]
    at = next((i for i, value in enumerate(inputs) if value.name in THRESHOLDS), len(inputs))
    inputs.insert(at, helper.make_tensor_value_info("explain", TensorProto.BOOL, ["N"]))
    replace(graph.input, inputs)
    outputs = [helper.make_tensor_value_info(n, kind, ["N", *[None] * (rank - 1)]) for n, kind, rank in wanted]
    replace(graph.output, [logits, *outputs])


def network_and_head(graph) -> tuple[list, list]:
    """The nodes that the logits, the first output, need; and the others."""
    needed, network, head = {graph.output[0].name}, [], []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            network.insert(0, node)
            needed.update(_reads(node))
        else:
            head.insert(0, node)
    return network, head


def _empty_maps(logits: str, wanted, shapes):
    from onnx import helper

    nodes, values = [helper.make_node("Shape", [logits], ["empty/N"], start=0, end=1)], []
    if any("M" in str(length) for shape in shapes for length in shape):
        nodes.append(helper.make_node("Shape", ["classes"], ["empty/M"], start=1, end=2))
    for (name, kind, rank), shape in zip(wanted, shapes, strict=True):
        at, parts = f"empty/{name}", []
        for axis, length in enumerate(shape):
            part = f"{at}/{axis}"
            if length == "N":
                part = "empty/N"
            elif isinstance(length, str):
                nodes.append(_constant(f"{part}/per_class", [int(length.partition(" ")[0])]))
                nodes.append(helper.make_node("Mul", [f"{part}/per_class", "empty/M"], [part]))
            else:
                nodes.append(_constant(part, [length]))
            parts.append(part)
        zero = helper.make_tensor(at + "/value", kind, [1], [0])
        nodes.append(helper.make_node("Concat", parts, [at + "/shape"], axis=0))
        nodes.append(helper.make_node("ConstantOfShape", [at + "/shape"], [at], value=zero))
        values.append(helper.make_tensor_value_info(at, kind, [None] * rank))
    return helper.make_graph(nodes, "empty", [], values)


def _reads(node) -> set[str]:
    """Names that a node takes, those in its branches included."""
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            names.update(*map(_reads, attribute.g.node), (value.name for value in attribute.g.output))
    return names


# ---- Frames in front ------------------------------------------------------------------------------------------------


def prepend(front, model, crop: tuple[int, int]) -> None:
    """Makes the front's input, `frames`, the model's, in the place of `clip`, which the front's nodes compute."""
    kept = {"clip": "clip"} | {value.name: "frames" for value in front.graph.input}
    for tensor in front.graph.initializer:
        tensor.name = f"frames/{tensor.name}"
        kept[tensor.name.removeprefix("frames/")] = tensor.name
    frames = front.graph.input[0]
    _rename(front.graph, lambda name: kept.get(name, name and f"frames/{name}"))
    for node in front.graph.node:
        if node.op_type == "Gather":
            # Its index does not exist where the crop does not fit; runtimes name the node that could not be run.
            node.name = f"crop_{crop[1]}x{crop[0]}_must_fit_into_the_resized_frame/{node.name}"
    nodes = [*front.graph.node, *model.graph.node]
    replace(model.graph.node, nodes)
    model.graph.initializer.extend(front.graph.initializer)
    frames.name = "frames"
    replace(model.graph.input, [frames, *list(model.graph.input)[1:]])


# ---- Parts ----------------------------------------------------------------------------------------------------------


def as_subgraph(graph, prefix: str, shared: dict, outer: dict[str, str]):
    """The graph inside another one.

    Args:
        graph: it is used up.
        prefix: of every name that is not in `outer`.
        shared: initializers of the graph around it, as `by_content`; its own go there, or are there already.
        outer: values of the graph around it by the names that they have in the graph.
    """
    from onnx import helper

    outer = dict(outer)
    for tensor in graph.initializer:
        name, kept = tensor.name, shared.setdefault(content(tensor), tensor)
        if kept is tensor:
            tensor.name = prefix + name
        outer[name] = kept.name
    _rename(graph, lambda name: outer.get(name, name and prefix + name))
    return helper.make_graph(graph.node, prefix.rstrip("/"), [], graph.output)


def by_content(tensors) -> dict:
    return {content(tensor): tensor for tensor in tensors}


def content(tensor) -> tuple:
    """Equal for tensors with equal values."""
    name, tensor.name = tensor.name, ""
    digest = hashlib.sha256(tensor.SerializeToString()).digest()
    tensor.name = name
    return tensor.data_type, tuple(tensor.dims), digest


def replace(field, values) -> None:
    values = [type(value).FromString(value.SerializeToString()) for value in values]
    del field[:]
    field.extend(values)


def _rename(graph, rename: Callable[[str], str]) -> None:
    for node in graph.node:
        node.name = rename(node.name)
        node.input[:] = map(rename, node.input)
        node.output[:] = map(rename, node.output)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, rename)
                for value in attribute.g.input:
                    value.name = rename(value.name)
    for value in graph.output:
        value.name = rename(value.name)


def _constant(name: str, values):
    from onnx import TensorProto, helper

    tensor = helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
    return helper.make_node("Constant", [], [name], value=tensor)


def _value(name: str, type, shape):
    from onnx import helper

    shape = shape or [dim.dim_param or dim.dim_value for dim in type.shape.dim]
    return helper.make_tensor_value_info(name, type.elem_type, shape)
