"""A captured graph in ONNX ops, by a table of torch's ops: what torch.onnx.export does, in a third of the time.

torch's exporter knows every op, and reads the definitions of all of them first. It runs the graph once more for the
types, and writes down how shapes are computed, which are known here but for the batch. So it has a graph only where an
op or a type is not in the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from ..dataflow import without_mutation, writes_through_view
from .decompose import without_aliases
from .onnx_layers import TABLE
from .onnx_ops import CHECKS, TORCH_TYPES, TYPES, Unknown, need

OPSET, IR_VERSION = 18, 10
LARGEST_FOLDED = 1 << 13  # values; what is made of larger weights would stand in the file beside them


def write(program: ExportedProgram, input_names: Sequence[str], axes: Sequence[Mapping[int, str]], output_names):
    """An `onnx_ir.Model`; `None` where something in the graph is not in the table.

    Args:
        program: what was captured, its batch free.
        input_names, output_names: in the order of the graph's.
        axes: of each input that are free, with their letters.
    """
    graph = program.graph
    without_aliases(graph)
    if any(writes_through_view(node) for node in graph.nodes):
        return None
    without_mutation(graph)
    try:
        return _Writer().model(program, input_names, axes, output_names)
    except Unknown:
        return None


class _Writer:
    """Attributes:
    nodes: written so far.
    node: of torch's graph, that is being written.
    """

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.node: Node | None = None
        self._values: dict[Node, object] = {}
        self._known: dict[Node, Tensor] = {}
        self._constants: dict[tuple, ir.Value] = {}
        self._initializers: list[ir.Value] = []
        self._letters: dict[str, str] = {}

    def model(self, program: ExportedProgram, input_names, axes, output_names) -> ir.Model:
        inputs = self._placeholders(program, input_names, axes)
        for self.node in program.graph.nodes:
            if self.node.op == "call_function" and self.node.target not in CHECKS:
                self._values[self.node] = self._folded() or self._written()
            elif self.node.op not in ("call_function", "placeholder", "output"):
                raise Unknown(self.node.op)
        (results,) = next(iter(reversed(program.graph.nodes))).args
        outputs: list[ir.Value] = []
        for result, name in zip(results, output_names, strict=True):
            value = self._values[result]
            if value.producer() is None or value in outputs:
                shape, kind = value.shape, value.type
                value = self.op("Identity", value)
                value.shape, value.type = shape, kind
            value.name = name
            outputs.append(value)
        domains = {node.domain: 1 for node in self.nodes} | {"": OPSET}
        graph = ir.Graph(
            inputs, outputs, nodes=self.nodes, initializers=self._initializers, opset_imports=domains, name="main_graph"
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="pytorch", producer_version=torch.__version__)

    def _placeholders(self, program: ExportedProgram, input_names, axes) -> list[ir.Value]:
        inputs, given = [], iter(zip(input_names, axes, strict=True))
        specs = program.graph_signature.input_specs
        for node, spec in zip(program.graph.find_nodes(op="placeholder"), specs, strict=True):
            tensor = node.meta["val"]
            if spec.kind == InputKind.USER_INPUT:
                name, letters = next(given)
                self._letters |= {str(tensor.shape[axis]): letter for axis, letter in letters.items()}
                value = ir.Value(name=name)
                inputs.append(value)
            else:
                known = program.constants if spec.target in program.constants else program.state_dict
                self._known[node] = known[spec.target].detach()
                value = self._initializer(self._known[node].cpu().numpy(), spec.target)
            self._values[node] = self._described(value, tensor)
        return inputs

    def _folded(self) -> ir.Value | None:
        """A small constant, where the op makes one of constants."""
        node, made = self.node, self.node.meta["val"]
        lengths = made.shape if isinstance(made, Tensor) else [LARGEST_FOLDED + 1]
        if not all(isinstance(n, int) for n in lengths) or math.prod(lengths) > LARGEST_FOLDED:
            return None
        if not all(read in self._known for read in node.all_input_nodes):
            return None
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), self._known.__getitem__)
        self._known[node] = node.target(*args, **kwargs)
        return self._described(self._initializer(self._known[node].cpu().numpy(), node.name), made)

    def _written(self):
        rule = TABLE.get(self.node.target)
        if rule is None:
            raise Unknown(self.node.target)
        args, kwargs = torch.fx.node.map_arg((self.node.args, self.node.kwargs), self._values.__getitem__)
        result, made = rule(self, *args, **kwargs), self.node.meta["val"]
        if isinstance(made, Tensor):
            return self._described(result, made, self.node.name)
        if isinstance(made, (list, tuple)):
            names = (f"{self.node.name}_{i}" for i in range(len(made)))
            return [self._described(*each) for each in zip(result, made, names, strict=True)]
        return result  # a length

    def _described(self, value: ir.Value, tensor: Tensor, name: str | None = None) -> ir.Value:
        kind = TYPES[tensor.dtype]
        if value.shape is None:
            value.shape = ir.Shape([n if isinstance(n, int) else self._free(n) for n in tensor.shape])
            value.type = ir.TensorType(kind)
            value.name = value.name or name
        return value

    def _free(self, length: torch.SymInt) -> str:
        name = str(length)
        for symbol in sorted(map(str, length.node.expr.free_symbols), key=len, reverse=True):
            name = name.replace(symbol, self._letters.get(symbol, symbol))
        return name

    # ---- for the rules ----

    @property
    def made(self) -> Tensor:
        """What the op makes, without values."""
        return self.node.meta["val"]

    def op(self, kind: str, *inputs: ir.Value | None, outputs: int = 1, domain: str = "", **attributes):
        """The output of a new node, or a list of several."""
        made = [ir.Attr(name, *_attribute(value)) for name, value in attributes.items()]
        node = ir.Node(domain, kind, inputs, made, num_outputs=outputs)
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else list(node.outputs)

    def constant(self, array: np.ndarray) -> ir.Value:
        """Equal ones are one."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            value = self._initializer(array, f"constant_{len(self._constants)}")
            value.shape, value.type = ir.Shape(array.shape), ir.TensorType(value.const_value.dtype)
            self._constants[key] = value
        return self._constants[key]

    def ints(self, *values: int) -> ir.Value:
        return self.constant(np.array(values, np.int64))

    def number(self, value: float, dtype: ir.DataType) -> ir.Value:
        return self.constant(np.array(value, dtype.numpy()))

    def shape(self, lengths: Sequence[int | ir.Value]) -> ir.Value:
        """A vector of lengths, some of which are computed."""
        if all(isinstance(length, int) for length in lengths):
            return self.ints(*lengths)
        parts = [self.ints(length) if isinstance(length, int) else length for length in lengths]
        return self.op("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]

    def alike(self, *values: ir.Value | float) -> list[ir.Value]:
        """As tensors of one type, that to which torch promotes them."""
        types = {value.dtype if isinstance(value, ir.Value) else type(value) for value in values}
        if len(types) == 1:
            return list(values)
        like = [
            torch.empty([1] * len(value.shape), dtype=TORCH_TYPES[value.dtype])
            if isinstance(value, ir.Value)
            else value
            for value in values
        ]
        need(len(like) == 2)
        dtype = TYPES[torch.result_type(*like)]
        return [self.cast(v, dtype) if isinstance(v, ir.Value) else self.number(v, dtype) for v in values]

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return value if value.dtype == dtype else self.op("Cast", value, to=int(dtype))

    def _initializer(self, array: np.ndarray, name: str) -> ir.Value:
        value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
        self._initializers.append(value)
        return value


def _attribute(value):
    kinds = {int: "INT", bool: "INT", float: "FLOAT", str: "STRING"}
    if isinstance(value, (list, tuple)):
        return ir.AttributeType.INTS, [int(v) for v in value]
    return getattr(ir.AttributeType, kinds[type(value)]), int(value) if isinstance(value, bool) else value
