"""What a method says of an op, and what its rules see of one.

What arrives at a tensor `[...]` on the way back is `[M, ...]`, M classes in front, so that rules read the tensors of
the forward pass as they are, once for all classes. Which axis of a tensor is the batch, or batch times frames, no rule
asks: it is one whose length is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from ..graph.table import Kind, Role

Sent = Tensor | tuple[Tensor | None, ...] | list[Tensor | None] | None
Shape = tuple[int | None, ...]  # None is a length that is not known: the batch's, or a multiple of it


class Rule(NamedTuple):
    """What an op's inputs receive, and what that needs of the forward pass.

    Attributes:
        function: from a `Local` to a tensor `[M, ...]`, or one for each varying input; `None` for what gets nothing.
        needs: `"x"` its inputs, `"y"` its output, `"c"` its tensors that do not depend on the clip, `"b"` whatever its
            transposed derivative needs.
    """

    function: Callable[[Local], Sent]
    needs: str = "b"


class Back(NamedTuple):
    """The transposed derivative of an op.

    Attributes:
        function: (local, what arrives at the output `[M, ...]`) to what the varying inputs receive.
        needs: as those of a `Rule`.
        gate: it compares, so that rounding may turn what it lets through.
        several: it takes what arrives at each of several outputs, from `Local.parts`.
        fits: whether it is right for an op of its kind, of which what is recorded must do otherwise.
        fix: what is computed of a node once, for `Op.fixed`.
    """

    function: Callable[[Local, Tensor], Sent]
    needs: str | Callable[[Op], str] = ""
    gate: bool = False
    several: bool = False
    fits: Callable[[Op], bool] = lambda op: True
    fix: Callable[[Node], Any] | None = None


@dataclass(frozen=True)
class Rules:
    """Base class of the methods: a frozen dataclass of options, with a table of rules.

    The table is by kind, then by role; `None` is for a kind that has no rule though others of its role have one.
    """

    method: ClassVar[str]
    table: ClassVar[Mapping[str | Role, Rule | None]]
    folds: ClassVar[bool] = False  # batch norms into the convolution in front of them
    divides: ClassVar[bool] = False  # by what may be tiny, and rounding errors around it are not

    def rule(self, kind: Kind) -> Rule | None:
        return self.table[kind.name] if kind.name in self.table else self.table.get(kind.role)

    def describe_missing(self) -> str:
        return "GradCAM, InputGradient and IntegratedGradients do without rules, wherever an op has a derivative"


class Tap(NamedTuple):
    """A tensor of the forward pass."""

    number: int


class Parameter(NamedTuple):
    """A parameter or buffer of the network."""

    name: str


@dataclass(frozen=True)
class Op:
    """One op of the network.

    Attributes:
        kind: its row of the table of ops.
        target: what is called.
        name: module path, for messages.
        made: number of the tensor that it gives, or of the tuple of them.
        reads: numbers of the tensors that it takes and that depend on the clip.
        names: the arguments that these are.
        wanted: which of these lead to a stop.
        signals: which share of a product's relevance each of these takes.
        shapes: of these.
        made_shape: of what it gives; of several outputs that of the first.
        arguments: by the names of the op's schema, tensors as `Tap` and `Parameter`.
        weight: the argument that has the weights of a layer.
        norm: arguments of the batch norm that is folded into it.
        parts: of several outputs their shapes.
        clip: number of the network's input, where no other layer with weights stands between that and this one.
        leading: the last of the ops between these two.
        moved: whether they do not only move values, but scale them or add to them.
        rule, back: how the walk goes back through it.
        fixed: what the transposed derivative has computed once.
    """

    kind: Kind
    target: Callable
    name: str
    made: int
    reads: tuple[int, ...]
    names: tuple[str, ...]
    wanted: tuple[bool, ...]
    signals: tuple[float, ...]
    shapes: tuple[Shape, ...]
    made_shape: Shape
    arguments: dict[str, Any]
    weight: str = ""
    norm: dict[str, Any] | None = None
    parts: tuple[Shape, ...] = ()
    clip: int | None = None
    leading: Node | None = field(default=None, repr=False)
    moved: bool = False
    rule: Rule | None = None
    back: Back | None = None
    fixed: Any = field(default=None, repr=False)

    def reference(self, argument: str) -> Any:
        """An argument by name, of a list by `"name.number"`."""
        name, _, number = argument.partition(".")
        return self.arguments[name][int(number)] if number else self.arguments[name]


class Local:
    """What a rule sees: one op, what has arrived at its output, and the tensors of the forward pass around it."""

    def __init__(
        self,
        op: Op,
        arrived: Tensor | dict[int, Tensor],
        rules: Rules,
        tensors: Mapping[int, Tensor],
        parameter: Callable[[str], Tensor],
        replaced: Mapping[Tap | Parameter, Tensor] | None = None,
    ) -> None:
        self.op, self.rules = op, rules
        self._arrived, self._tensors, self._parameter = arrived, tensors, parameter
        self._replaced = replaced or {}

    @property
    def g(self) -> Tensor:
        """What has arrived, `[M, ...]`; of several outputs at the first that anything has arrived at."""
        return self._arrived if isinstance(self._arrived, Tensor) else self._arrived[min(self._arrived)]

    @property
    def parts(self) -> list[Tensor | None]:
        """What has arrived at each of several outputs, `None` where nothing has."""
        if isinstance(self._arrived, Tensor):
            return [self._arrived]
        return [self._arrived.get(i) for i in range(len(self.op.parts))]

    @property
    def x(self) -> Tensor:
        """The op's first input that depends on the clip."""
        return self.value(Tap(self.op.reads[0]))

    @property
    def inputs(self) -> list[Tensor]:
        """All of these."""
        return [self.value(Tap(read)) for read in self.op.reads]

    @property
    def y(self) -> Tensor:
        """The op's output, behind the batch norm that is folded into it."""
        return self._tensors[self.op.made]

    def __getitem__(self, argument: str) -> Any:
        """An argument of the op by the name in its schema."""
        return self.value(self.op.arguments[argument])

    def get(self, argument: str, otherwise: Any = None) -> Any:
        return self[argument] if argument in self.op.arguments else otherwise

    @property
    def weight(self) -> Tensor:
        """The layer's, times the scale of the batch norm that is folded into it."""
        reference = self.op.reference(self.op.weight)
        weight = self.value(reference)
        if self.op.norm is None or reference in self._replaced:
            return weight
        scale = norm_scale(*(self.value(self.op.norm[name]) for name in ("weight", "running_var", "eps")))
        return weight * scale.view(-1, *[1] * (weight.dim() - 1))

    def value(self, value: Any) -> Any:
        """An argument's value, of tensors by what stands for them."""
        if isinstance(value, (Tap, Parameter)):
            if value in self._replaced:
                return self._replaced[value]
            return self._tensors[value.number] if isinstance(value, Tap) else self._parameter(value.name)
        return [self.value(each) for each in value] if isinstance(value, list) else value

    def at(self, *inputs: Tensor, weight: Tensor | None = None) -> Local:
        """The same op with other inputs, or another weight."""
        replaced: dict = dict(zip(map(Tap, self.op.reads), inputs, strict=True))
        if weight is not None:
            replaced[self.op.reference(self.op.weight)] = weight
        return Local(self.op, self._arrived, self.rules, self._tensors, self._parameter, replaced)

    def back(self, g: Tensor | None = None) -> tuple[Tensor | None, ...]:
        """The transposed derivative: `[M, ...]` of the output to `[M, ...]` of each varying input.

        Without an argument it takes what has arrived, at all outputs.
        """
        if g is None:
            return each_read(self.op.back.function(self, self.g))
        at = Local(self.op, g, self.rules, self._tensors, self._parameter, self._replaced)
        return each_read(self.op.back.function(at, g))

    @property
    def clip(self) -> Tensor:
        """The network's input, of a layer that stands first."""
        return self._tensors[self.op.clip]

    def along(self, volume: Tensor) -> Tensor:
        """What the ops between the clip and the first layer make of a volume like the clip."""
        known: dict[Node, Any] = {}

        def result(node: Node) -> Any:
            if node.op == "placeholder":
                return volume
            if node.op == "get_attr":
                return self._parameter(str(node.target))
            if node not in known:
                args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), result)
                method = node.op == "call_method"
                known[node] = getattr(args[0], node.target)(*args[1:]) if method else node.target(*args, **kwargs)
            return known[node]

        return volume if self.op.leading is None else result(self.op.leading)


def each_read(sent: Sent) -> tuple[Tensor | None, ...]:
    return tuple(sent) if isinstance(sent, (tuple, list)) else (sent,)


def norm_scale(weight: Tensor | None, variance: Tensor, eps: float) -> Tensor:
    """The factor of each channel in a batch norm in eval mode."""
    scale = (variance + eps).rsqrt()
    return scale if weight is None else scale * weight
