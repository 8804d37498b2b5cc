"""Ops that are whole layers, in the maths that they stand for: autograd's derivative of that can be written to a file.

Source of the recurrent cells: the definitions in the documentation of `torch.nn.LSTM`, `GRU` and `RNN`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

aten = torch.ops.aten


def run(node: Node, tensors: Mapping[Node, Tensor]):
    """What an op gives for some tensors, by the maths that it stands for where that is here."""
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: tensors.get(n, n.meta["val"]))
    return WRITTEN.get(node.target, node.target)(*args, **kwargs)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` `[..., L, E]`, `[..., S, E]`, `[..., S, D]` -> `[..., L, D]`."""
    if dropout_p:
        raise NotImplementedError("an attention with dropout draws random numbers")
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    return attention_weights(query, key, attn_mask, is_causal, scale) @ value


def attention_weights(
    query: Tensor, key: Tensor, mask: Tensor | None = None, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    """`softmax(q k^T scale + mask)`, `[..., L, S]`: what each query takes of each key's value."""
    scores = query @ key.transpose(-1, -2) * attention_scale(query, scale)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, -1)


def attention_scale(query: Tensor, scale: float | None) -> float:
    return int(query.shape[-1]) ** -0.5 if scale is None else scale


def _recurrent(cell: Callable, states: int):
    """A recurrent layer of all steps of all layers and directions; `states` tensors go from step to step."""

    def layer(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first):
        if train and dropout:
            raise NotImplementedError("a recurrent layer with dropout draws random numbers")
        hidden = list(hx) if states == 2 else [hx]
        directions = 2 if bidirectional else 1
        each = len(params) // (num_layers * directions)
        x = input.transpose(0, 1) if batch_first else input
        ends: list[list[Tensor]] = []
        for number in range(num_layers):
            sides = []
            for direction in range(directions):
                i = number * directions + direction
                weights = list(params[i * each : (i + 1) * each])
                if not has_biases:
                    weights = [*weights[:2], None, None, *weights[2:]]
                state = [h.select(0, i) for h in hidden]
                steps: list[Tensor] = []
                order = range(x.shape[0])
                for t in reversed(order) if direction else order:
                    state = cell(x.select(0, t), state, *weights)
                    steps.append(state[0])
                sides.append(torch.stack(steps[::-1] if direction else steps))
                ends.append(state)
            x = torch.cat(sides, -1) if directions == 2 else sides[0]
        outputs = x.transpose(0, 1) if batch_first else x
        return (outputs, *(torch.stack([end[k] for end in ends]) for k in range(states)))

    return layer


def _lstm(x: Tensor, state: Sequence[Tensor], w, u, b, c, projection: Tensor | None = None) -> list[Tensor]:
    hidden, cell = state
    i, f, g, o = (F.linear(x, w, b) + F.linear(hidden, u, c)).chunk(4, -1)
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    hidden = torch.sigmoid(o) * torch.tanh(cell)
    return [hidden if projection is None else F.linear(hidden, projection), cell]


def _gru(x: Tensor, state: Sequence[Tensor], w, u, b, c) -> list[Tensor]:
    (hidden,) = state
    (r, z, n), (r_h, z_h, n_h) = F.linear(x, w, b).chunk(3, -1), F.linear(hidden, u, c).chunk(3, -1)
    z = torch.sigmoid(z + z_h)
    return [(1 - z) * torch.tanh(n + torch.sigmoid(r + r_h) * n_h) + z * hidden]


def _rnn(activation: Callable):
    def cell(x: Tensor, state: Sequence[Tensor], w, u, b, c) -> list[Tensor]:
        return [activation(F.linear(x, w, b) + F.linear(state[0], u, c))]

    return cell


WRITTEN: dict[object, Callable] = {
    aten.scaled_dot_product_attention.default: attention,
    aten.lstm.input: _recurrent(_lstm, 2),
    aten.gru.input: _recurrent(_gru, 1),
    aten.rnn_tanh.input: _recurrent(_rnn(torch.tanh), 1),
    aten.rnn_relu.input: _recurrent(_rnn(torch.relu), 1),
}
