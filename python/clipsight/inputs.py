"""What a network is and what it takes: wrappers are taken off, clips come in its own order, or as single frames."""

from __future__ import annotations

import linecache
import re
import traceback

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from .dataflow import AttachError, FrameByFrame, unwrapped
from .layouts import LAYOUTS, MOST_COLOURS, OURS, in_words, looks_like, order

# Words of torch, einops, Python and people about the number of a tensor's axes; "dimension 2" is about one of them.
_RANK = re.compile(r"\b[2-6]-?d\b|\bunpack|\brank\b|\bn?dim(s|ensions?|ensional)?\b(?!\s*=?\s*\d)|-dim", re.IGNORECASE)
_ASKS_RANK = re.compile(r"\bn?dim\b|\blen\(.*(shape|size)|\brank\b")


class InOrder(nn.Module):
    """A network that takes clips in another order of the axes, for clips `[N, C, T, H, W]`."""

    def __init__(self, network: nn.Module, layout: str) -> None:
        super().__init__()
        self.network, self.axes, self.training = network, order(OURS, layout), False
        self.preprocessing = getattr(network, "preprocessing", None)

    def forward(self, clip: Tensor) -> Tensor:
        return self.network(clip.permute(self.axes))


def layout_of(model: nn.Module, layout: str | None = None) -> str:
    """The order of the axes of a network's clips: as given, else its own attribute `layout`, else ours.

    Raises:
        ValueError: it is none that is known.
    """
    if layout is None:
        own = getattr(model, "layout", None)
        return own if own in LAYOUTS else OURS
    if layout not in LAYOUTS:
        raise ValueError(f"explain: layout must be one of {list(LAYOUTS)}, got {layout!r}")
    return layout


def check_model(model: nn.Module) -> nn.Module:
    """The network itself, in eval mode.

    Raises:
        TypeError: it is none, or one whose dataflow cannot be read.
        ValueError: it is in training mode, or was exported so, or for one batch size alone.
    """
    model = readable(model, "explain: model")
    if _is_exported(model):
        _check_exported(model)
    elif any(m.training for m in model.modules()):
        raise ValueError("explain: the model must be in eval mode (model.eval()), got a model in training mode")
    return model


def readable(model: nn.Module, what: str) -> nn.Module:
    """The network without wrappers.

    Raises:
        TypeError: it is none, or one whose dataflow cannot be read; the message begins with `what`.
    """
    if isinstance(model, torch.export.ExportedProgram):
        raise TypeError(f"{what} must be a torch.nn.Module, got an ExportedProgram; pass its .module()")
    if not isinstance(model, nn.Module):
        raise TypeError(f"{what} must be a torch.nn.Module, got {type(model).__name__}")
    model = unwrapped(model)
    if script := next((m for m in model.modules() if isinstance(m, torch.jit.ScriptModule)), None):
        part = "" if script is model else " with a part"
        raise TypeError(
            f"{what} must be a network in Python, got one{part} of TorchScript ({type(script).__name__}), which "
            "torch.export cannot read; pass the network that was scripted or traced"
        )
    return model


def check_clip(clip: Tensor, layout: str = OURS, given: bool = True) -> None:
    """Raises ValueError or TypeError where it is no clip in that layout, or looks like one in another, not `given`."""
    want = in_words(3, "THW", layout)
    if not isinstance(clip, Tensor):
        several = isinstance(clip, (tuple, list, dict))
        hint = "; a network of several inputs becomes one of a clip in a clipsight.models.Adapter" if several else ""
        raise TypeError(f"explain: clip must be a tensor {want}, got {type(clip).__name__}{hint}")
    if clip.dim() != 5 or 0 in clip.shape[1:]:
        raise ValueError(f"explain: clip must have shape {want} with no empty axis, got {list(clip.shape)}")
    if not clip.is_floating_point():
        raise TypeError(f"explain: clip must hold floating-point values, got {clip.dtype}")
    if not given and (other := looks_like(clip.shape)):
        raise ValueError(
            f"explain: clip must have shape {want}, got {list(clip.shape)}, whose axes look like {other}; say "
            f"layout={other!r} where they are, or layout={OURS!r} where the clip has {clip.shape[1]} channels"
        )


def one_of(example: Tensor) -> Tensor:
    """The first clip, or zeros where there is none."""
    return example[:1] if example.shape[0] else example.new_zeros(1, *example.shape[1:])


def as_we_call_it(model: nn.Module, example: Tensor, layout: str = OURS) -> nn.Module:
    """The network as a module that takes clips `[N, C, T, H, W]`.

    A network of 2-D convolutions that refuses a clip for its number of axes gets every frame on its own.

    Args:
        model: in eval mode.
        example: a clip in the network's layout.
        layout: the order of its axes.

    Raises:
        AttachError: a 2-D network fails, on the clip for another reason or on a frame of it.
    """
    kinds = {type(m) for m in model.modules()}
    flat = any(issubclass(k, nn.Conv2d) for k in kinds) and not any(issubclass(k, nn.Conv3d) for k in kinds)
    if flat and (error := _failure(model, one_of(example))):
        if not _speaks_of_rank(error) and not _refuses_rank(model, one_of(example), layout):
            raise _could_not_run(model, one_of(example), "a clip", error) from error
        frame = one_of(example).select(layout.index("T"), 0)
        if error := _failure(model, frame):
            raise _could_not_run(model, frame, "a frame", error) from error
        apart = FrameByFrame(model, channels_last=layout.endswith("C"))
        apart.training = False
        return apart
    return in_our_order(model, layout)


def in_our_order(model: nn.Module, layout: str) -> nn.Module:
    """A network in eval mode for clips `[N, C, T, H, W]`, whatever its own layout is."""
    return model if layout == OURS else InOrder(model, layout)


def _failure(model: nn.Module, clip: Tensor) -> Exception | None:
    try:
        with torch.inference_mode():
            model(clip)
    except Exception as error:  # the network's own, of any kind
        return error
    return None


def _could_not_run(model: nn.Module, clip: Tensor, what: str, error: Exception) -> AttachError:
    said = next(iter(str(error).strip().splitlines()), "") or _last_line(error)
    shape, network = list(clip.shape), model
    if isinstance(model, InOrder):
        shape = [shape[axis] for axis in model.axes]
    if isinstance(model, (FrameByFrame, InOrder)):
        network = model.network
    hint = "; layout= says so where its axes are in another order" if min(shape[2], shape[-1]) <= MOST_COLOURS else ""
    return AttachError(
        f"explain: the network {type(network).__name__} could not run on {what} of shape {shape}: "
        f"{type(error).__name__}: {said}{hint}"
    )


def _refuses_rank(model: nn.Module, clip: Tensor, layout: str) -> bool:
    """Whether a clip of one frame is refused for its axes; it broadcasts as frames do, with a mean of each colour."""
    error = _failure(model, clip.narrow(layout.index("T"), 0, 1))
    return error is not None and _speaks_of_rank(error)


def _speaks_of_rank(error: Exception) -> bool:
    """Whether a network says that it wants another number of axes; an assertion without a word says what it asks."""
    said = str(error)
    if isinstance(error, AssertionError) and _ASKS_RANK.search(_last_line(error)):
        return True
    return bool(_RANK.search(said))


def _last_line(error: Exception) -> str:
    """The line of code that raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return linecache.getline(frames[-1].filename, frames[-1].lineno or 0).strip() if frames else ""


# ---- What torch.export has made --------------------------------------------------------------------------------------


def _is_exported(model: nn.Module) -> bool:
    return isinstance(model, GraphModule) and hasattr(model, "range_constraints")


def _check_exported(model: GraphModule) -> None:
    """Its modules tell nothing: whether they train, and how many samples they take, stands in the graph."""
    flags = {"dropout": 2, "feature_dropout": 2, "alpha_dropout": 2, "batch_norm": 5}  # position of the flag
    for node in model.graph.nodes:
        at = flags.get(str(node.target).removeprefix("aten.").partition(".")[0].rstrip("_"))
        if node.op == "call_function" and at is not None and len(node.args) > at and node.args[at] is True:
            raise ValueError(
                "explain: the model must be exported in eval mode (model.eval()), got one in training mode"
            )
        if (
            node.op == "placeholder"
            and isinstance(node.meta["val"], Tensor)
            and isinstance(node.meta["val"].shape[0], int)
        ):
            batch = node.meta["val"].shape[0]
            raise ValueError(
                f"explain: the model must take any number of clips, got one that was exported for {batch}; pass the "
                "network itself, or export it with dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)"
            )
