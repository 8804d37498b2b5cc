"""`explain`: a network that returns its logits and where it looked, in one forward pass."""

from __future__ import annotations

import copy
import functools
import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from .attach import Attached, attach
from .dataflow import AttachError, FrameByFrame, capture, unwrapped
from .heads import Evidence, Head
from .heads.base import BORDER, as_grid

Size = tuple[int, int, int]


def explain(
    model: nn.Module,
    methods: Head | Sequence[Head],
    example: Tensor,
    classes: str | int | Sequence[int] = "predicted",
    *,
    head: str | None = None,
    features: str | None = None,
) -> ExplainedModel:
    """Makes a module that returns logits and one map per method; the model itself stays as it is.

    Args:
        model: a video classifier in eval mode, `[N, 3, T, H, W]` -> `[N, K]`, that ends in global pooling and a linear
            layer or 1x1x1 convolution (for a `FeaturePyramid` the last layer is enough); or an image classifier, which
            then sees every frame on its own. Wrappers for training (`DataParallel`, `DistributedDataParallel`,
            `AveragedModel`, `torch.compile`) are taken off.
        methods: one head or several, such as `SaliencyTube()`, `SelectiveRelevance(of=SaliencyTube())` and
            `FeaturePyramid()`.
        example: a clip `[N, 3, T, H, W]` of the size, dtype and device that the model takes.
        classes: what is explained, for each sample of the batch by itself: `"predicted"`, a list of class indices,
            `"top3"` (the three largest logits), or `"input"`: `forward` then takes an int64 tensor `[N, M]`.
        head: module path of the classifier, for a network with several (verb and noun).
        features: module path of the layer to explain instead of the input of the global pooling.

    Returns:
        A module with `forward(clip[, classes]) -> (logits [N, K], map [N, M, T, H, W], ...)`, named by its
        `output_names`.

    Raises:
        AttachError: the network has no global pooling and linear head, or they must be named; or it has layers that a
            `FeaturePyramid` cannot follow.
        ValueError, TypeError: an argument does not fit.
    """
    return ExplainedModel(model, methods, example, classes, head=head, features=features)


class ExplainedModel(nn.Module):
    """What `explain` returns. It works at any clip size that the model takes; see `at` for a single size.

    Attributes:
        output_names: names of the tensors that `forward` returns, in order.
        output_meanings: one line of text for each of them.
        size: `(T, H, W)` of the example.
        channels: of the clips; 3 for RGB.
        num_classes: K.
        maps: M, the number of explained classes; `None` where they are an input.
        classes_input: whether `forward` takes the classes as a second argument.
        median_weight: of the classifier's weights: as tau, it drops half of them.
        temporal_resolution: number of frames t of the feature grid; a map cannot change faster.
        model_name: the class name of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        methods: Head | Sequence[Head],
        example: Tensor,
        classes: str | int | Sequence[int] = "predicted",
        *,
        head: str | None = None,
        features: str | None = None,
    ) -> None:
        super().__init__()
        model = _check_model(model)
        self.methods = (methods,) if isinstance(methods, Head) else tuple(methods)
        if not self.methods or not all(isinstance(m, Head) for m in self.methods):
            raise TypeError(f"explain: methods must be a head or a list of heads, got {methods!r}")
        _check_clip(example)
        self.model_name = type(model).__name__
        self.model = _frames_apart(model, example)
        self.size: Size = tuple(example.shape[2:])
        self.head, self.features = head, features
        self._sized: dict[tuple[Size, bool], SizedExplanation] = {}
        self._graphs: dict[Size, tuple[GraphModule, Attached]] = {}
        self.channels = example.shape[1]
        self._like = {"dtype": example.dtype, "device": example.device}
        self._outside: torch.dtype | None = None

        preprocessing = getattr(model, "preprocessing", None)
        self.methods = tuple(m.for_clips(preprocessing, self.channels) for m in self.methods)
        network, attached = self._graph(self.size)
        with torch.inference_mode():
            logits, grid, weight, *_ = network(_one(example))
        if logits.dim() != 2:
            raise AttachError(f"explain: the logits must have shape [N, K], got {list(logits.shape)}")
        self.num_classes = logits.shape[1]
        self.feature_shape = tuple(as_grid(grid, logits.shape[0]).shape[1:])
        self.temporal_resolution = self.feature_shape[1]
        self.median_weight = weight.detach().float().median().item()
        self.classes = _Classes(classes, self.num_classes)
        self.classes_input = self.classes.input
        self.maps = self.classes.count
        layers = attached.route.layers if attached.route else ()
        self.bound = tuple(m.bind(weight.detach().flatten(1).float(), layers) for m in self.methods)
        self.output_meanings = _outputs(self.bound)
        self.output_names = tuple(self.output_meanings)
        if self.temporal_resolution == 1 and self.size[0] > 1 and any(m.needs_pooling for m in self.methods):
            warnings.warn(
                f"explain: the features of {self.model_name} have a single frame for a clip of {self.size[0]} frames, "
                "so its maps are constant in time and nothing in them is motion; use a longer clip, or Grad-CAM on an "
                "earlier layer",
                stacklevel=3,
            )

    def forward(
        self,
        clip: Tensor,
        classes: Tensor | None = None,
        tau: Tensor | None = None,
        n_sigma: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """clip `[N, 3, T, H, W]` (and int64 classes `[N, M]` where `classes="input"`) -> tensors by `output_names`.

        tau and n_sigma, float32 `[N]`, replace the thresholds of all methods, sample by sample.
        """
        _check_clip(clip)
        if clip.shape[1] != self.channels:
            raise ValueError(f"explain: clip must have {self.channels} channels, got {list(clip.shape)}")
        if classes is not None:
            self.classes.check(classes, clip.shape[0])
        return self.at(tuple(clip.shape[2:]))(clip, classes, tau, n_sigma)

    def at(self, size: Size, plugin: bool = True) -> SizedExplanation:
        """The explained model at one clip size: a module fit for tracing and export.

        Args:
            size: `(T, H, W)` of the clips.
            plugin: use the fused kernels of `clipsight.ops`; `False` uses only ops of plain torch.
        """
        key = (tuple(size), plugin)
        if key not in self._sized:
            self._sized[key] = SizedExplanation(
                *self._graph(key[0]), self.bound, self.classes, key[0], plugin, self._like["dtype"], self._outside
            )
        return self._sized[key]

    def plain_at(self, size: Size) -> nn.Module:
        """The network alone, captured the same way: what the explained model's cost is compared with."""
        return _LogitsOnly(self.at(size, plugin=False))

    @property
    def input_dtype(self) -> torch.dtype:
        """Of the clips that `forward` takes."""
        return self._outside or self._like["dtype"]

    @property
    def compute_dtype(self) -> torch.dtype:
        """In which the network computes."""
        return self._like["dtype"]

    def in_half(self, dtype: torch.dtype) -> ExplainedModel:
        """A copy whose network has `dtype` weights and computes in it; clips and logits keep their type."""
        result = copy.deepcopy(self)
        result._outside = self.input_dtype
        return result.to(dtype)

    def with_maps_of(self, dtype: str) -> ExplainedModel:
        """The same model with maps of another type, `"float32"`, `"float16"` or `"uint8"`; it shares the weights."""
        result = copy.copy(self)
        result._graphs = self._graphs
        result.methods = tuple(m.with_maps_of(dtype) for m in self.methods)
        result.bound = tuple(m.with_maps_of(dtype) for m in self.bound)
        return result

    def describe(self) -> dict[str, Any]:
        """Methods with all options, classes and feature grid, as the manifest states them; JSON-able."""
        return {
            "methods": [
                (m if m.depth is None else b).describe() for m, b in zip(self.methods, self.bound, strict=True)
            ],
            "classes": self.classes.choice,
            "head": self.head,
            "features": self.features,
            "feature_shape": list(self.feature_shape),
            "temporal_resolution": self.temporal_resolution,
            "num_classes": self.num_classes,
        }

    def _graph(self, size: Size) -> tuple[GraphModule, Attached]:
        if size not in self._graphs:
            graph = capture(self.model, (self.channels, *size), self._like)
            self._graphs[size] = graph, attach(graph, self.model, self.head, self.features, self.methods)
        return self._graphs[size]

    def _apply(self, fn, recurse=True):  # .to(), .half(), .cuda(): the captured graphs hold tensors of their own
        result = super()._apply(fn, recurse)
        self._graphs.clear()
        self._sized.clear()
        probe = next((p for p in self.model.parameters() if p.is_floating_point()), None)
        if probe is not None:
            self._like = {"dtype": probe.dtype, "device": probe.device}
        return result

    def __getstate__(self) -> dict[str, Any]:  # a copy, or another process, captures the graphs anew
        return {**self.__dict__, "_graphs": {}, "_sized": {}}


class SizedExplanation(nn.Module):
    """An explained model at one clip size: the captured network, the class choice and the heads."""

    def __init__(
        self,
        network: GraphModule,
        attached: Attached,
        heads: Sequence[Head],
        classes: _Classes,
        size: Size,
        plugin: bool,
        inside: torch.dtype,
        outside: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.network, self.attached = network, attached
        self.heads, self.classes, self.size = tuple(heads), classes, size
        self.inside, self.outside = inside, outside
        self.compute = torch.promote_types(inside, torch.float32)
        # The fused ops compute in float32; a network in float64 wants more.
        fused = plugin and inside != torch.float64
        self.ops = importlib.import_module(".ops" if fused else ".reference", __package__)

    def forward(
        self,
        clip: Tensor,
        classes: Tensor | None = None,
        tau: Tensor | None = None,
        n_sigma: Tensor | None = None,
        decisions: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """As `ExplainedModel.forward`; for `decisions` see `Evidence`."""
        logits, *seen = self.look(clip)
        options = {"classes": classes, "tau": tau, "n_sigma": n_sigma, "decisions": decisions}
        return logits, *self.maps(logits, *seen, **options)

    def look(self, clip: Tensor) -> tuple[Tensor, ...]:
        """The network: (logits `[N, K]`, features, the classifier's weight, the taps of the route)."""
        if self.outside is None:
            return self.network(clip)
        logits, *seen = self.network(clip.to(self.inside))
        return logits.to(self.outside), *seen

    def maps(
        self,
        logits: Tensor,
        features: Tensor,
        weight: Tensor,
        *further: Tensor,
        classes: Tensor | None = None,
        tau: Tensor | None = None,
        n_sigma: Tensor | None = None,
        decisions: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """What comes after the network: every output but the logits."""
        batch, route = logits.shape[0], self.attached.route
        weight = as_type(weight.flatten(1), self.compute)
        chosen = self.classes.chosen(logits, classes)
        evidence = Evidence(
            features=as_grid(features, batch),
            rows=weight[chosen],
            weight=weight,
            size=self.size,
            ops=self.ops,
            tau=tau,
            n_sigma=n_sigma,
            route=route,
            taps={t: self.tap(t, further[i], batch) for t, i in route.taps.items()} if route else {},
            parameters=self.parameter,
            logits=logits,
            chosen=chosen,
            backward=self.attached.backward,
            tensors=self.tensors(further),
            again=self.again,
            network=self.network,
            linear=self.attached.linear,
            tokens=self.attached.tokens,
            decisions=decisions,
            border=max(BORDER, 16 * torch.finfo(self.inside).eps),
        )
        # Heads that split a map leave the whole map behind for the others, so they go first.
        order = sorted(range(len(self.heads)), key=lambda i: not hasattr(self.heads[i], "of"))
        results = {i: tuple(self.heads[i].compute(evidence).values()) for i in order}
        return tuple(tensor for i in range(len(self.heads)) for tensor in results[i])

    def tap(self, tensor: int, tap: Tensor, batch: int) -> Tensor:
        """`[N, C, t, h, w]`, or `[N, C]` where it has no extent; a flattened grid is one again."""
        route = self.attached.route
        grid = route.grids[tensor]
        if tap.dim() == 2 and grid is not None:
            tap = tap.unflatten(1, (-1, *grid[tensor in route.per_frame :]))
        return tap if tap.dim() == 2 else as_grid(tap, batch)

    def tensors(self, further: Sequence[Tensor]) -> dict[int, Tensor]:
        """Those that walks back from the logits need, by number; at least in float32, for gradients are small.

        Numbers and truth values stay what they are: they name places.
        """
        if self.attached.backward is None:
            return {}
        numbers = self.attached.backward.nodes
        taps = further[len(further) - len(numbers) :]
        return {
            number: as_type(tap, self.compute) if tap.is_floating_point() else tap
            for number, tap in zip(numbers, taps, strict=True)
        }

    def again(self, clip: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """The network on other clips, for `Evidence`."""
        logits, _, _, *further = self.look(as_type(clip, self.outside or self.inside))
        return logits, self.tensors(further)

    def __reduce__(self):
        raise TypeError("explain: a model at one size cannot be pickled; pickle that of all sizes, and call `at` there")

    def parameter(self, name: str) -> Tensor:
        """A parameter or buffer of the captured network, at least in float32."""
        value = functools.reduce(getattr, name.split("."), self.network)
        return as_type(value, torch.promote_types(value.dtype, torch.float32)) if value.is_floating_point() else value


class _LogitsOnly(nn.Module):
    def __init__(self, whole: SizedExplanation) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, clip: Tensor) -> Tensor:
        return self.whole.look(clip)[0]


class _Classes:
    """Which classes are explained: the option as given, checked, and the choice of the classifier's rows."""

    def __init__(self, choice: str | int | Sequence[int], num_classes: int) -> None:
        self.num_classes = num_classes
        self.choice: str | list[int]
        if isinstance(choice, str):
            self.choice = choice
            self.top = {"predicted": 1, "input": 0}.get(choice, -1)
            if self.top < 0:
                digits = choice.removeprefix("top")
                if not (choice.startswith("top") and digits.isdigit() and 1 <= int(digits) <= num_classes):
                    raise ValueError(
                        f"explain: classes must be 'predicted', 'input', 'top1'..'top{num_classes}' or a list of class "
                        f"indices, got {choice!r}"
                    )
                self.top = int(digits)
        else:
            self.choice = [int(choice)] if isinstance(choice, int) else [int(c) for c in choice]
            self.top = 0
            if not self.choice:
                raise ValueError("explain: classes must name at least one class, got an empty list")
            if not all(0 <= c < num_classes for c in self.choice):
                raise ValueError(f"explain: classes must lie in 0..{num_classes - 1}, got {self.choice}")
        self.input = self.choice == "input"
        self.count = None if self.input else self.top or len(self.choice)

    def check(self, classes: Tensor, batch: int) -> None:
        if not self.input:
            raise ValueError(f"explain: classes is no input here: the model was explained for classes={self.choice!r}")
        if classes.dtype != torch.int64 or classes.dim() != 2 or classes.shape[0] != batch:
            raise ValueError(
                f"explain: classes must be an int64 tensor [N, M] with N = {batch}, got {classes.dtype} "
                f"{list(classes.shape)}"
            )
        if classes.numel() and (int(classes.min()) < 0 or int(classes.max()) >= self.num_classes):
            raise ValueError(
                f"explain: classes must lie in 0..{self.num_classes - 1}, "
                f"got {int(classes.min())}..{int(classes.max())}"
            )

    def chosen(self, logits: Tensor, classes: Tensor | None) -> Tensor:
        """int64 `[N, M]`, or `[M]` where the classes are fixed."""
        if isinstance(self.choice, list):
            return torch.tensor(self.choice, device=logits.device)
        if self.input:
            if classes is None:
                raise ValueError("explain: classes must be given: the model was explained with classes='input'")
            return classes
        if self.top == 1:
            return logits.argmax(1, keepdim=True)
        return logits.topk(self.top, 1).indices


def _outputs(methods: Sequence[Head]) -> dict[str, str]:
    outputs = {"logits": "class scores before any softmax [N, K]"}
    for method in methods:
        for name, meaning in method.outputs().items():
            unique, copy_number = name, 2
            while unique in outputs:
                unique, copy_number = f"{name}_{copy_number}", copy_number + 1
            outputs[unique] = meaning
    return outputs


def _check_model(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"explain: model must be a torch.nn.Module, got {type(model).__name__}")
    model = unwrapped(model)
    if any(m.training for m in model.modules()):
        raise ValueError("explain: the model must be in eval mode (model.eval()), got a model in training mode")
    return model


def _check_clip(clip: Tensor) -> None:
    if not isinstance(clip, Tensor):
        raise TypeError(f"explain: clip must be a tensor [N, 3, T, H, W], got {type(clip).__name__}")
    if clip.dim() != 5 or 0 in clip.shape[1:]:
        raise ValueError(f"explain: clip must have shape [N, 3, T, H, W] with no empty axis, got {list(clip.shape)}")
    if not clip.is_floating_point():
        raise TypeError(f"explain: clip must hold floating-point values, got {clip.dtype}")


def as_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Tracers write down a conversion to the type that a tensor has already."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _one(example: Tensor) -> Tensor:
    return example[:1] if example.shape[0] else example.new_zeros(1, *example.shape[1:])


def _frames_apart(model: nn.Module, example: Tensor) -> nn.Module:
    kinds = {type(m) for m in model.modules()}
    flat = any(issubclass(k, nn.Conv2d) for k in kinds) and not any(issubclass(k, nn.Conv3d) for k in kinds)
    if not flat:
        return model
    try:
        with torch.inference_mode():
            model(_one(example))
        return model  # a 2-D network that takes clips and goes over the frames itself
    except Exception:
        return FrameByFrame(model).eval()
