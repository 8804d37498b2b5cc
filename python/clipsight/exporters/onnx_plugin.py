"""The nodes of the ONNX domain `clipsight`, which `libclipsight_onnxruntime.so` computes: one for each op of torch.

A node is named as its op, in camel case; its inputs are the op's tensors and its attributes the op's other arguments,
under the same names (`threshold` and inputs that are not there are left out, booleans are 0 or 1).

A node has no function body in the file: the spline's matrices depend on the grid, which a body would have to compute
at every run. The same head exported with plugin=False takes that place: standard ops and, but for rounding, the same
numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .. import ops  # noqa: F401  (defines torch.ops.clipsight)

DOMAIN, VERSION = "clipsight", 1
LIBRARY = "clipsight_onnxruntime"
FLOAT = ("tensor(float)", "tensor(float16)")
MAPS = (*FLOAT, "tensor(uint8)")
FEATURES = {"features": FLOAT, "weight": FLOAT}
VOLUME = {"volume": FLOAT}
SHARE = {"motion_share": FLOAT[:1]}
BOOL = ("tensor(bool)",)

# torch op: (node, types of its inputs, types of its outputs)
NODES = {
    "channel_reduce": ("ChannelReduce", FEATURES, {"cam": FLOAT[:1]}),
    "back_step": (
        "BackStep",
        {"pooled": FLOAT, "kernel": FLOAT, "selected": BOOL},
        {"edges": BOOL, "multiplicity": FLOAT[:1]},
    ),
    "spline_upsample": ("SplineUpsample", VOLUME, {"upsampled": FLOAT}),
    "sobel_temporal": ("SobelTemporal", VOLUME, {"derivative": FLOAT}),
    "selective_relevance": ("SelectiveRelevance", VOLUME, {"motion": FLOAT} | SHARE),
    "saliency_tube": ("SaliencyTube", FEATURES, {"tube": MAPS}),
    "selective_tube": ("SelectiveTube", FEATURES, {"tube": MAPS, "motion": MAPS} | SHARE),
}
OPTIONAL_INPUT = {"n_sigma_of": FLOAT[:1]}
ATTRIBUTES = {
    "float": "FLOAT",
    "Optional[float]": "FLOAT",
    "int": "INT",
    "bool": "INT",
    "str": "STRING",
    "List[int]": "INTS",
}


def rules() -> dict[Callable, Callable]:
    """For the table of :mod:`clipsight.exporters.onnx_ops`: each op of clipsight becomes its node."""
    return {getattr(torch.ops.clipsight, op).default: _rule(op) for op in NODES}


def translation_table() -> dict[Callable, Callable]:
    """The same for torch.onnx.export(custom_translation_table=...)."""
    return {getattr(torch.ops.clipsight, op).default: _translation(op) for op in NODES}


def _rule(op: str) -> Callable:
    name, _, outputs = NODES[op]

    def rule(w, *given, **named):
        inputs, attributes = _inputs_and_attributes(op, given, named)
        return w.op(name, *inputs, outputs=len(outputs), domain=DOMAIN, **attributes)

    return rule


def _translation(op: str) -> Callable:
    from onnxscript.values import Op, Opset

    node = Op(Opset(DOMAIN, VERSION), NODES[op][0], _schema(op))

    def translate(*given, **named):
        inputs, attributes = _inputs_and_attributes(op, given, named)
        return node(*inputs, **attributes)

    return translate


def _inputs_and_attributes(op: str, given, named) -> tuple[list, dict]:
    """Of the node, from the arguments of torch's op."""
    arguments = getattr(torch.ops.clipsight, op).default._schema.arguments
    tensors = {*NODES[op][1], *OPTIONAL_INPUT}
    values = {a.name: a.default_value for a in arguments}
    values |= dict(zip(values, given, strict=False)) | named
    inputs = [value for name, value in values.items() if name in tensors]
    while inputs and inputs[-1] is None:
        inputs.pop()
    kinds = {a.name: float if "float" in a.type.annotation_str else lambda value: value for a in arguments}
    attributes = {n: kinds[n](value) for n, value in values.items() if n not in tensors and value is not None}
    return inputs, attributes


def _schema(op: str):
    """What torch's exporter must know of the node: names, types and attributes."""
    from onnx.defs import OpSchema

    name, inputs, outputs = NODES[op]
    option = OpSchema.FormalParameterOption
    parameters, attributes, types = [], [], []
    for argument in getattr(torch.ops.clipsight, op).default._schema.arguments:
        if argument.name in inputs or argument.name in OPTIONAL_INPUT:
            kind = option.Single if argument.name in inputs else option.Optional
            parameters.append(OpSchema.FormalParameter(argument.name, f"T_{argument.name}", param_option=kind))
            types.append((f"T_{argument.name}", [*(inputs | OPTIONAL_INPUT)[argument.name]], ""))
        else:
            attributes.append(
                OpSchema.Attribute(
                    argument.name, getattr(OpSchema.AttrType, ATTRIBUTES[argument.type.annotation_str]), required=False
                )
            )
    for output, allowed in outputs.items():
        types.append((f"T_{output}_out", [*allowed], ""))
    return OpSchema(
        name,
        DOMAIN,
        VERSION,
        inputs=parameters,
        outputs=[OpSchema.FormalParameter(output, f"T_{output}_out") for output in outputs],
        type_constraints=types,
        attributes=attributes,
    )
