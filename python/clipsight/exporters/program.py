"""`Program`: what an exported file computes, in eager torch; every format is made from it and checked against it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..backward.chunks import Chunks, sums_apart
from ..dataflow import where
from ..graph.places import CLIP
from ..layouts import OURS, order, size_of
from ..manifest import ClassesInput, ClipInput, OptionInput, Output
from ..preprocessing import Preprocessing
from .frames import Frames

THRESHOLDS = {
    "tau": "weights of the classifier below it count as zero, for each sample",
    "n_sigma": "threshold of the motion mask in standard deviations, for each sample",
}


@dataclass(frozen=True)
class Program:
    """An explained model at some clip sizes, with the options of `export` that change the graph.

    Attributes:
        explained: what `clipsight.explain` returned, its maps of the wanted type, its network of the wanted precision.
        sizes: clip sizes `(T, H, W)`.
        plugin: whether it calls the fused ops.
        preprocessing: what the network wants, where it is known.
        frames: whether the input is frames, which become a clip in the graph.
        optional: whether the heads run only where some sample wants them.
        thresholds: those of "tau" and "n_sigma" that are inputs.
        alone: the network without the heads.
    """

    explained: nn.Module
    sizes: tuple[tuple[int, int, int], ...]
    plugin: bool
    preprocessing: Preprocessing | None = None
    frames: bool = False
    optional: bool = False
    thresholds: tuple[str, ...] = ()
    alone: bool = False

    def __call__(
        self, *, decisions: dict[str, Tensor] | None = None, nudge: float = 0.0, **inputs: Tensor
    ) -> tuple[Tensor, ...]:
        """The outputs for tensors by `input_names`, from the fused ops.

        Args:
            decisions: see `Evidence`.
            nudge: share of itself by which every value of the clip is changed at random, as rounding might.
        """
        clip = self.clip_of(inputs)
        del inputs[self.input_names[0]]
        if nudge:
            noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
            clip = clip * (1 + nudge * noise.to(clip.device, clip.dtype))
        wanted = inputs.pop("explain", None)
        size = size_of(clip.shape, self.layout)
        if self.alone:
            return _Alone(self.explained, size)(clip)
        if wanted is None or bool(wanted.any()):
            return self.explained.at(size)(clip, **inputs, decisions=decisions)
        outputs = self.explained.at(size)(clip, **inputs)
        return outputs[0], *(output.new_zeros(nothing(output.shape)) for output in outputs[1:])

    def given_logits(self, inputs: dict[str, Tensor]) -> Tensor:
        """See `ExplainedModel.given_logits`."""
        return self.explained.given_logits(self.clip_of(inputs))

    def clip_of(self, inputs: dict[str, Tensor]) -> Tensor:
        """The network's clip, of the frames where the file takes those."""
        first = inputs[self.input_names[0]]
        return first if self.prepare is None else self.prepare(first)

    @functools.cached_property
    def prepare(self) -> Frames | None:
        if not self.frames:
            return None
        channels = self.explained.channels
        return Frames(self.preprocessing, self.explained.input_dtype, channels, self.layout).eval()

    @property
    def layout(self) -> str:
        """The order of the axes of the network's clips."""
        return self.explained.layout

    def sees(self, example: Tensor) -> tuple[int, ...]:
        """The clip size of an example of the first input."""
        if self.frames:
            return (example.shape[1], *self.preprocessing.crop)
        return size_of(example.shape, self.layout)

    def whole(self, size) -> nn.Module:
        """One size, from the file's own first input on: `forward` takes the frames, then as `module`."""
        return self.module(size) if self.prepare is None else _FromFrames(self.prepare, self.module(size))

    def module(self, size) -> nn.Module:
        """One size: `forward` takes the clip, then tensors by `module_names`."""
        return _Alone(self.explained, size) if self.alone else self.explained.at(size, plugin=self.plugin)

    def seen(self, size) -> int:
        """How many tensors the network hands on to the heads, the logits included."""
        return len(self.explained.at(size, plugin=self.plugin).attached.names)

    @functools.cached_property
    def sensitive(self) -> frozenset[str]:
        """Outputs that may amplify rounding; see `Head.sensitive`."""
        if self.alone:
            return frozenset()
        attached = self.explained.at(self.sizes[0]).attached
        heads = self.explained.bound
        flags = [head.sensitive(attached.backward, attached.linear) for head in heads for _ in head.outputs()]
        return frozenset(name for name, flag in zip(self.output_names[1:], flags, strict=True) if flag)

    @functools.cached_property
    def turnable(self) -> frozenset[str]:
        """Outputs in which rounding can turn a gate, or the choice of a pyramid's kernels."""
        if self.alone:
            return frozenset()
        heads = [head for head in self.explained.bound for _ in head.outputs()]
        chosen = (n for n, head in zip(self.output_names[1:], heads, strict=True) if head.depth is not None)
        return self.sensitive | frozenset(chosen)

    @property
    def reaches_clip(self) -> bool:
        """Whether a walk back from the logits goes through the whole network."""
        linear = self.explained.at(self.sizes[0]).attached.linear
        walks = [walk for head in self.explained.bound for walk in head.walks(linear)]
        return not self.alone and any(place == CLIP for _, place in walks)

    def where(self, op: str) -> str:
        """An op of torch as an error names it, and where the network has it: "'histc' in 'body.1'"."""
        space, _, name = op.rpartition(".")
        plain = name.strip("_")
        for node in self.explained.at(self.sizes[0]).network.graph.nodes:
            own = getattr(getattr(node.target, "_schema", None), "name", "").partition("::")[2].strip("_")
            if own == plain or own.endswith(f"_{plain}"):
                return f"'{own}' {where(node)}"
        return f"'{name if space in ('', 'aten', 'prims') else op}'"

    @property
    def classes_input(self) -> bool:
        return self.explained.classes_input and not self.alone

    @property
    def module_names(self) -> tuple[str, ...]:
        return ("clip", *["classes"] * self.classes_input, *self.thresholds)

    @property
    def input_names(self) -> tuple[str, ...]:
        first, *others = self.module_names[: 1 + self.classes_input]
        return ("frames" if self.frames else first, *others, *["explain"] * self.optional, *self.thresholds)

    @property
    def output_names(self) -> tuple[str, ...]:
        return self.explained.output_names[:1] if self.alone else self.explained.output_names

    def example(self, size, batch: int, seed: int) -> tuple[Tensor, ...]:
        """Tensors by `module_names`, for a tracer of `module`."""
        clip, *others = self.first_example(size, batch, seed)
        return (clip if self.prepare is None else self.prepare(clip), *others)

    def first_example(self, size, batch: int, seed: int) -> tuple[Tensor, ...]:
        """The same for a tracer of `whole`."""
        inputs = random_inputs(self, size, batch, seed)
        return tuple(inputs[name] for name in (self.input_names[0], *self.module_names[1:]))

    def default(self, name: str) -> float:
        """The value of a threshold that is an input where nobody sets it: the heads' own, finite.

        Raises:
            ValueError: no head has it, or the heads differ.
        """
        finite = torch.finfo(torch.float32)
        found = {t[name] for t in (head.thresholds() for head in self.explained.bound) if name in t}
        if not found:
            raise ValueError(f"export: inputs must name thresholds that a method has, got {name!r}")
        if len(found) > 1:
            raise ValueError(f"export: inputs={name!r} needs one {name} for all methods, got {sorted(found, key=str)}")
        value = found.pop()
        return finite.min if value is None else min(float(value), finite.max)

    # ---- what the manifest says ----

    def clip_input(self) -> ClipInput:
        if self.frames:
            return ClipInput(self.sizes, "uint8", 3, "frames", "NTHWC")
        dtype, channels = name_of(self.explained.input_dtype), self.explained.channels
        return ClipInput(self.sizes, dtype, channels, layout=self.layout)

    def classes_port(self) -> ClassesInput | None:
        return ClassesInput(self.explained.num_classes) if self.classes_input else None

    def option_inputs(self) -> tuple[OptionInput, ...]:
        explain = OptionInput("explain", "bool", "the maps have zero length where no sample wants them", True)
        thresholds = (OptionInput(n, "float32", THRESHOLDS[n], self.default(n)) for n in self.thresholds)
        return (*[explain] * self.optional, *thresholds)

    @functools.cached_property
    def outputs(self) -> tuple[Output, ...]:
        """Name, type and shape of every output; axes that depend on the input have a letter instead of a number."""
        outputs = []
        for i, name in enumerate(self.output_names):
            lengths = zip(*(run[i].shape for run in self._runs[: len(self.sizes)]), strict=True)
            shape = [_axis(axis, of_axis, self.sizes) for axis, of_axis in enumerate(lengths)]
            if i and (rows := self.per_class(i)):
                shape[1] = "M" if rows == 1 else f"{rows} * M"
            full = tuple(shape) if i and self.optional else None
            if full:  # the axes that `nothing` empties
                first = min(2, len(shape) - 1)
                shape[first:] = [_LETTERS.get(axis, f"d{axis}").lower() for axis in range(first, len(shape))]
            meaning = self.explained.output_meanings[name]
            outputs.append(Output(name, tuple(shape), name_of(self._runs[0][i].dtype), meaning, full))
        return tuple(outputs)

    def empty_shape(self, i: int) -> list[int | str]:
        """The shape of map i where nobody wants it; "N", and "M" or a multiple as "3 * M", stand for lengths."""
        shape: list[int | str] = ["N", *nothing(self._runs[0][i].shape)[1:]]
        if shape[1] != 0 and self.per_class(i):
            shape[1] = f"{self.per_class(i)} * M"
        return shape

    def per_class(self, i: int) -> int:
        """By how much output i's second axis grows with every class that is asked for."""
        return self._runs[0][i].shape[1] - self._runs[-1][i].shape[1] if self.classes_input else 0

    @property
    def sums(self) -> list[Chunks]:
        """The sums over chunks of steps at each size, which an ONNX file holds as loops."""
        return self._traced[1]

    @property
    def _runs(self) -> list[tuple[Tensor, ...]]:
        return self._traced[0]

    @functools.cached_property
    def _traced(self) -> tuple[list[tuple[Tensor, ...]], list[Chunks]]:
        """Outputs for 2 samples at each size, for 2 classes where those are an input; and once more for 1 class.

        Only their types and shapes are of interest, so the tensors hold no values.
        """
        runs = []
        with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.inference_mode(), sums_apart() as sums:
            for size in (*self.sizes, self.sizes[0]):
                module = self.module(size) if self.alone else self.explained.at(size, plugin=False)
                inputs = dict(zip(self.module_names, self.example(size, batch=2, seed=0), strict=True))
                if self.classes_input:
                    count = 1 if len(runs) == len(self.sizes) else 2
                    inputs["classes"] = inputs["classes"].new_zeros(2, count)
                elif len(runs) == len(self.sizes):
                    break
                runs.append(module(**{name: fake.from_tensor(tensor) for name, tensor in inputs.items()}))
        return runs, sums


class _FromFrames(nn.Module):
    def __init__(self, prepare: Frames, module: nn.Module) -> None:
        super().__init__()
        self.prepare, self.module = prepare, module

    def forward(self, clip: Tensor, *others: Tensor, **options: Tensor) -> tuple[Tensor, ...]:
        return self.module(self.prepare(clip), *others, **options)


class _Alone(nn.Module):
    """The network without the heads, as a module with one output."""

    def __init__(self, explained, size) -> None:
        super().__init__()
        self.network = explained.plain_at(size)

    def forward(self, clip: Tensor) -> tuple[Tensor]:
        return (self.network(clip),)


_LETTERS = {1: "M", 2: "T", 3: "H", 4: "W"}


def nothing(shape) -> tuple[int, ...]:
    """The shape of an output that nobody wanted: [N, M, 0, ...], or [N, 0]."""
    return tuple(0 if axis >= min(2, len(shape) - 1) else length for axis, length in enumerate(shape))


def random_inputs(program: Program, size, batch: int, seed: int) -> dict[str, Tensor]:
    """Inputs by `input_names`: coloured blobs under noise, distinct classes, and the thresholds' defaults.

    A clip has mean 0 and deviation 1, or the range of preprocessed video where the preprocessing is known; frames have
    another height and width than the network's clips.
    """
    explained = program.explained
    generator = torch.Generator().manual_seed(seed)
    like = next((p for p in explained.parameters() if p.is_floating_point()), torch.empty(0))

    def blobs(size, channels):
        coarse = [max(2, s // k) for s, k in zip(size, (4, 16, 16), strict=True)]
        coarse, fine = (torch.randn(batch, channels, *s, generator=generator) for s in (coarse, size))
        return F.interpolate(coarse, size, mode="trilinear") + 0.3 * fine

    inputs, p = {}, program.preprocessing
    if program.frames:
        frames = (torch.sigmoid(blobs((size[0], *_source(p, seed)), 3)) * 255).to(torch.uint8)
        inputs["frames"] = frames.permute(0, 2, 3, 4, 1).contiguous().to(like.device)
    else:
        clip = blobs(size, explained.channels)
        if p is not None and explained.channels in (1, 3):
            mean, std = (torch.tensor(v).view(-1, 1, 1, 1)[: explained.channels] for v in (p.mean, p.std))
            clip = (torch.sigmoid(clip) * 255 * p.scale - mean) / std
        clip = clip.permute(order(OURS, program.layout)).contiguous()
        inputs["clip"] = clip.to(like.device, explained.input_dtype)
    if program.classes_input:
        count = min(batch, explained.num_classes)  # the number of classes differs between checks as the batch does
        classes = torch.rand(batch, explained.num_classes, generator=generator).argsort(1)[:, :count]
        inputs["classes"] = classes.to(like.device)
    if program.optional:
        inputs["explain"] = torch.ones(batch, dtype=torch.bool, device=like.device)
    for name in program.thresholds:
        inputs[name] = torch.full((batch,), program.default(name), device=like.device)
    return inputs


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _axis(axis: int, lengths: list[int], sizes) -> int | str:
    if axis == 0:
        return "N"
    if len(set(lengths)) == 1:
        return lengths[0]
    clip = dict(zip("THW", zip(*sizes, strict=True), strict=True))
    for letter in sorted(clip, key=lambda letter: letter != _LETTERS.get(axis)):
        if tuple(lengths) == clip[letter]:
            return letter
    return {2: "t", 3: "h", 4: "w"}.get(axis, f"d{axis}")


def _source(preprocessing: Preprocessing, seed: int) -> tuple[int, int]:
    """A height and width of frames from which the crop can be taken; some are smaller than the crop."""
    factor = (1.37, 0.8, 2.2)[seed % 3] if preprocessing.resize else 1.37
    short, long = sorted(preprocessing.crop)
    short, long = int(short * factor), int(long * factor) + 4
    height, width = preprocessing.crop
    return (short, long) if height < width or (height == width and seed % 2) else (long, short)
