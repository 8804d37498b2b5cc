"""State dicts as the published files have them, written out from those files' layout and not by the reader's rules."""

from __future__ import annotations

import torch
from torch import Tensor

from clipsight.models import registry

COUNTER = "num_batches_tracked"
_STAGES = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
_STEM = ("1a_7x7", "2b_1x1", "2c_3x3")
# Second naming of I3D -> first one.
_BRANCHES = {
    "branch_0": "b0",
    "branch_1.0": "b1a",
    "branch_1.1": "b1b",
    "branch_2.0": "b2a",
    "branch_2.1": "b2b",
    "branch_3.1": "b3b",
}


def values(name: str, num_classes: int | None = None, device: str = "cpu") -> dict[str, Tensor]:
    """A state dict in the network's own names, each entry with random values of its own."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for key, shape in registry.shapes(name, num_classes).items():
        if key.endswith((COUNTER, "index")):
            state[key] = torch.ones(shape, dtype=torch.int64, device=device)
        elif device == "meta":
            state[key] = torch.empty(shape, device=device)
        else:
            state[key] = torch.rand(shape, generator=generator)
    return state


def without_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.endswith(COUNTER)}


def prefixed(state: dict[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def in_half_precision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.half() if value.is_floating_point() else value for key, value in state.items()}


def wrapped_inside(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """With `name` behind the first module of every key, as where parts of a network are wrapped."""
    return {key.replace(".", f".{name}.", 1): value for key, value in state.items()}


def optimizer(state: dict[str, Tensor]) -> dict:
    """Adam's, which has tensors of the parameters' shapes."""
    moments = {i: {"step": torch.ones(()), "exp_avg": v, "exp_avg_sq": v} for i, v in enumerate(state.values())}
    return {"state": moments, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": list(moments)}]}


# What training programs write around the state dict of a network, which is bare here.
TRAINERS = {
    "DataParallel": prefixed,
    "DataParallel twice": lambda s: prefixed(prefixed(s)),
    "torch.compile": lambda s: prefixed(s, "_orig_mod."),
    "DataParallel of torch.compile": lambda s: prefixed(s, "module._orig_mod."),
    "torch.compile of DataParallel": lambda s: prefixed(s, "_orig_mod.module."),
    "torch.compile of parts": lambda s: wrapped_inside(s, "_orig_mod"),
    "DataParallel of parts": lambda s: {"state_dict": wrapped_inside(s, "module")},
    "FSDP": lambda s: prefixed(wrapped_inside(s, "_fsdp_wrapped_module"), "_fsdp_wrapped_module."),
    "activation checkpointing": lambda s: wrapped_inside(s, "_checkpoint_wrapped_module"),
    "AveragedModel": lambda s: prefixed(s) | {"n_averaged": torch.tensor(5)},
    "DeepSpeed": lambda s: {"module": s, "optimizer": None, "ds_version": "0.16", "global_steps": 7},
    "Lightning": lambda s: {
        "epoch": 3,
        "pytorch-lightning_version": "2.5",
        "state_dict": prefixed(s, "model.") | {"loss.weight": torch.ones(8), "accuracy.tp": torch.ones(8).long()},
        "optimizer_states": [optimizer(s)],
        "hyper_parameters": {"lr": 0.1},
    },
    "Lightning, compiled backbone": lambda s: {"state_dict": prefixed(s, "net.backbone._orig_mod.")},
    "net": lambda s: {"net": s, "acc": 90.5, "epoch": 1},
    "any name": lambda s: {"best": {"weights": s}, "optimizer": optimizer(s)},
    "beside the values": lambda s: s | {"epoch": 3, "optimizer": optimizer(s)},
    "a projection beside it": lambda s: prefixed(s, "encoder.") | {"projection.weight": torch.ones(4, 8)},
    "a dict for each module": lambda s: {"model": nested(s)},
    "averaged alone": lambda s: {"model_ema": prefixed(s), "decay": 0.999},
    "raw and averaged alike": lambda s: {"model": s, "ema": {k: v.clone() for k, v in s.items()}},
    "a list of one": lambda s: {"models": [s]},
    "half precision": lambda s: {"state_dict": in_half_precision(prefixed(s, "model."))},
}


def nested(state: dict[str, Tensor]) -> dict:
    """`{"fc.weight": w}` -> `{"fc": {"weight": w}}`."""
    result: dict = {}
    for key, value in state.items():
        first, _, rest = key.partition(".")
        result.setdefault(first, {})[rest] = value
    return result


def i3d_of_branches(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The second naming of I3D."""
    result = {f"conv3d_0c_1x1.conv3d.{part}": state[f"logits.conv3d.{part}"] for part in ("weight", "bias")}
    units = {f"conv3d_{unit}": f"Conv3d_{unit}" for unit in _STEM}
    for stage in _STAGES:
        units |= {f"mixed_{stage}.{branch}": f"Mixed_{stage}.{ours}" for branch, ours in _BRANCHES.items()}
    for theirs, ours in units.items():
        result[f"{theirs}.conv3d.weight"] = state[f"{ours}.conv3d.weight"]
        for part in ("weight", "bias", "running_mean", "running_var"):
            result[f"{theirs}.batch3d.{part}"] = state[f"{ours}.bn.{part}"]
    return result


def tsn(state: dict[str, Tensor], classifier: str = "new_fc", prefix: str = "module.") -> dict[str, Tensor]:
    """A 2-D ResNet inside TSN's own module, with or without dropout in front of the classifier."""
    result = {}
    for key, value in state.items():
        head = f"{classifier}.{key.removeprefix('fc.')}" if key.startswith("fc.") else f"base_model.{key}"
        result[prefix + head] = value
    return result


def shortcut_a(blocks: tuple[int, int, int, int], basic: bool, num_classes: int = 400) -> dict[str, Tensor]:
    """A 3-D ResNet whose shortcuts are pooled and padded with zeros, on the meta device."""
    state, channels = {}, 64

    def add(name: str, *shape: int) -> None:
        state[f"module.{name}.weight"] = torch.empty(shape, device="meta")

    def norm(name: str, width: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"module.{name}.{part}"] = torch.empty(width, device="meta")

    add("conv1", 64, 3, 7, 7, 7)
    norm("bn1", 64)
    for stage, count in enumerate(blocks):
        middle = 64 << stage
        out = middle if basic else 4 * middle
        for block in range(count):
            at = f"layer{stage + 1}.{block}"
            sizes = [(middle, channels, 3), (middle, middle, 3)]
            if not basic:
                sizes = [(middle, channels, 1), (middle, middle, 3), (out, middle, 1)]
            for i, (wide, narrow, kernel) in enumerate(sizes, 1):
                add(f"{at}.conv{i}", wide, narrow, kernel, kernel, kernel)
                norm(f"{at}.bn{i}", wide)
            channels = out
    add("fc", num_classes, channels)
    state["module.fc.bias"] = torch.empty(num_classes, device="meta")
    return state
