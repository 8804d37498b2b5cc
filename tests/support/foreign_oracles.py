"""What the heads should say of a network of `foreign_networks`, from hooks on its modules and torch's own autograd.

Nothing here reads a captured graph. All is of float64 and takes `clip [N, C, T, H, W]` and `classes`, int64 `[N]`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import clipsight
from clipsight.heads import DeepTaylor, FeaturePyramid, GradCAM, GuidedBackprop, IntegratedGradients, SaliencyTube
from clipsight.models import Adapter
from foreign_networks import Foreign, need
from gradient_networks import off
from networks import seeded

STEPS, THETA = 3, 0.6
RAW = {"colours": "raw", "normalize": "none"}


class Known:
    """A network with random statistics in its batch norms: as it is given to `explain`, and as a function of clips.

    Attributes:
        facts: `foreign_networks.Foreign`.
        network: that of the package.
        plain: the same without the softmax at its end, where it has one.
        given: what `explain` gets.
        clip: `[2, C, T, H, W]`.
        classes: int64 `[2]`.
    """

    def __init__(self, facts: Foreign, dtype: torch.dtype | None = None) -> None:
        self.facts = facts
        need(facts.package)
        dtype = dtype or facts.dtype
        generator = torch.Generator().manual_seed(1)
        uniform = torch.rand(2, *facts.clip, generator=generator, dtype=dtype)
        self.clip = facts.low + uniform * (facts.high - facts.low)
        network = seeded(facts.build)
        if not facts.trained:
            seeded(lambda: _settle(network, lambda: self._call(network, self.clip.float())))
        self.network = network.to(dtype).requires_grad_(False)
        self.plain = network
        if facts.ending is not None:
            self.plain = copy.deepcopy(network)
            self.plain.set_submodule(facts.ending, nn.Identity())
        self.given = network if facts.call is None else Adapter(network, facts.call).eval()
        count = self.logits(self.clip).shape[1]
        self.classes = torch.tensor([2, 4]) if count > 4 else torch.tensor([0, count - 1])

    def own(self, clip: Tensor) -> Tensor:
        """What the network itself returns, `[N, K]`; a 2-D network's frames are averaged."""
        return self._call(self.network, clip)

    def logits(self, clip: Tensor) -> Tensor:
        """`[N, K]`, in front of the softmax that some networks end in."""
        return self._call(self.plain, clip)

    def _call(self, network: nn.Module, clip: Tensor) -> Tensor:
        if self.facts.images:
            frames = network(clip.transpose(1, 2).flatten(0, 1))
            return frames.unflatten(0, (len(clip), -1)).mean(1)
        return network(clip) if self.facts.call is None else self.facts.call(network, clip)

    @contextlib.contextmanager
    def watched(self, path: str, output: bool = False) -> Iterator[list[Tensor]]:
        """The inputs, or the outputs, of a module: a list that fills while the network runs."""
        seen: list[Tensor] = []

        def hook(_, inputs: tuple, result: object = None) -> None:
            value = result if output else inputs[0]
            seen.append(value[0] if isinstance(value, tuple) else value)

        module = self.plain.get_submodule(path)
        handle = module.register_forward_hook(hook) if output else module.register_forward_pre_hook(hook)
        try:
            yield seen
        finally:
            handle.remove()

    def grid(self, tensor: Tensor) -> Tensor:
        """`[N, C, t, h, w]` of a tensor of the network: of frames in the batch, of channels last, of tokens."""
        n, facts = len(self.clip), self.facts
        if tensor.dim() == 3:
            first, size = facts.tokens
            tensor = tensor[:, first:].transpose(1, 2)
            if tensor.shape[0] == n:
                return tensor.unflatten(2, size)
            return tensor.unflatten(2, size[1:]).unflatten(0, (n, -1)).transpose(1, 2)
        if facts.channels_last:
            tensor = tensor.movedim(-1, 1)
        return tensor if tensor.dim() == 5 else tensor.unflatten(0, (n, -1)).transpose(1, 2)


def _settle(network: nn.Module, run: Callable[[], object]) -> nn.Module:
    """Batch norms get weights, and the statistics of one batch: as after training, nothing fades or explodes."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
    before = [(norm, norm.momentum) for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        run()
    for norm, momentum in before:
        norm.eval()
        norm.momentum = momentum
        norm.running_var.clamp_(min=0.1)  # of a single value there is no variance
    for parameter in network.parameters():  # biases, scales and position embeddings that start as zeros
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network


# ---- The maps of every method ---------------------------------------------------------------------------------------


def heads(known: Known) -> dict[str, object]:
    """Method -> head with the raw map, for what the network is tested with."""
    low, high = known.facts.low, known.facts.high
    every = {
        "saliency_tube": SaliencyTube(size="features", normalize="none"),
        "grad_cam": GradCAM(known.facts.layer, relu=False, size="features", normalize="none"),
        "guided_backprop": GuidedBackprop(**RAW),
        "deep_taylor": DeepTaylor(low=low, high=high, **RAW),
        "integrated_gradients": IntegratedGradients(steps=STEPS, chunk=2, **RAW),
        "feature_pyramid": FeaturePyramid(theta=THETA, depth=2, volumes="none"),
    }
    return every


def saliency_tube(known: Known, clip: Tensor, classes: Tensor) -> Tensor:
    """`[N, 1, t, h, w]`: the grid, weighted by the logit's gradient there, which is the same at all places.

    Summed over the places it is the classifier's row where the classifier reads a mean.
    """
    grid, gradient = _gradient(known, clip, classes, known.facts.grid, output=False)
    rows = gradient.sum((2, 3, 4), keepdim=True)
    places = gradient[0, 0].numel()
    assert (gradient * places - rows).abs().max() < 1e-9 * rows.abs().max(), "the rows differ from place to place"
    return (rows * grid).sum(1, keepdim=True)


def grad_cam(known: Known, clip: Tensor, classes: Tensor) -> Tensor:
    """`[N, 1, t, h, w]`, signed."""
    features, gradient = _gradient(known, clip, classes, known.facts.cam, known.facts.cam_output)
    return (gradient.mean((2, 3, 4), keepdim=True) * features).sum(1, keepdim=True)


def _gradient(known: Known, clip: Tensor, classes: Tensor, path: str, output: bool) -> tuple[Tensor, Tensor]:
    """A layer's grid, and the gradient of the classes' logits there."""
    with torch.enable_grad(), _Activations(_kept_input), known.watched(path, output) as seen:
        leaf = clip.clone().requires_grad_()
        score = _score(known, leaf, classes)
    (gradient,) = torch.autograd.grad(score, seen[0])
    return known.grid(seen[0]).detach(), known.grid(gradient)


def _score(known: Known, clip: Tensor, classes: Tensor) -> Tensor:
    return known.logits(clip).gather(1, classes[:, None]).sum()


def integrated_gradients(known: Known, clip: Tensor, classes: Tensor) -> Tensor:
    """`[N, C, T, H, W]`: Gauss-Legendre from zeros."""
    places, weights = np.polynomial.legendre.leggauss(STEPS)
    total = torch.zeros_like(clip)
    for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
        leaf = (float(place) * clip).requires_grad_()
        with torch.enable_grad(), _Activations(_kept_input):
            total += float(weight) * torch.autograd.grad(_score(known, leaf, classes), leaf)[0]
    return total * clip


def guided_backprop(known: Known, clip: Tensor, classes: Tensor) -> Tensor:
    """`[N, C, T, H, W]`, by another derivative of torch's own activations, and of the packages' own swish."""
    swishes = [module for module in known.plain.modules() if type(module).__name__ in ("Swish", "MemoryEfficientSwish")]
    with torch.enable_grad(), _Activations(_GuidedReLU.apply, guided=True), contextlib.ExitStack() as stack:
        for module in swishes:
            stack.enter_context(mock.patch.object(module, "forward", lambda x: _GuidedCurve.apply(x, F.silu)))
        leaf = clip.clone().requires_grad_()
        score = _score(known, leaf, classes)
    return torch.autograd.grad(score, leaf)[0]


class _Activations(TorchFunctionMode):
    """Another function in place of every ReLU that torch runs, functional or in place; guided: and of smooth ones."""

    RELUS = (torch.relu, torch.relu_, F.relu, F.relu_, Tensor.relu, Tensor.relu_)
    CURVES = (F.silu, F.gelu, F.hardswish)

    def __init__(self, relu: Callable[[Tensor], Tensor], guided: bool = False) -> None:
        super().__init__()
        self.relu, self.guided = relu, guided

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in self.RELUS:
            return self.relu(args[0])
        if self.guided and function in self.CURVES:
            options = {name: value for name, value in kwargs.items() if name != "inplace"}
            return _GuidedCurve.apply(args[0], lambda x: function(x, **options))
        return function(*args, **kwargs)


def _kept_input(x: Tensor) -> Tensor:
    """A ReLU whose derivative survives that a network adds to its result in place, as TransNet V2 does."""
    return torch.where(x > 0, x, 0.0)


class _GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.where((x > 0) & (gradient > 0), gradient, 0.0)


class _GuidedCurve(torch.autograd.Function):
    """The package's rule for smooth activations: `max(g, 0) f'(x)` where x > 0, else 0."""

    @staticmethod
    def forward(ctx, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.function = function
        return function(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            (slope,) = torch.autograd.grad(ctx.function(x).sum(), x)
        return torch.where(x > 0, gradient.clamp(min=0) * slope, 0.0), None


def selected(known: Known, clip: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """The masks of a pyramid's two first steps, `[N, C]`: of the grid, and of what the last convolution reads."""
    with torch.no_grad(), known.watched(known.facts.grid) as grids:
        known.logits(clip)
    pooled = known.grid(grids[0]).mean((2, 3, 4))
    _, gradient = _gradient(known, clip, classes, known.facts.grid, output=False)
    masks = {"grid": _kept(pooled * gradient.sum((2, 3, 4)))}
    if known.facts.last is not None:
        convolution = known.network.get_submodule(known.facts.last)
        assert convolution.groups == 1
        with torch.no_grad(), known.watched(known.facts.last) as read:
            known.logits(clip)
        means = convolution.weight.flatten(2).mean(2)  # [kernels, channels]
        scores = known.grid(read[0]).mean((2, 3, 4)).unsqueeze(1) * means
        masks["last"] = (_kept(scores) & masks["grid"].unsqueeze(-1)).any(1)
    return masks


def _kept(scores: Tensor) -> Tensor:
    low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
    share = (scores - low) / (high - low)
    assert (share - THETA).abs().min() > 1e-9, "rounding decides on a channel: take another seed"
    return share >= THETA


def deep_taylor(known: Known, clip: Tensor, classes: Tensor) -> Tensor:
    """`[N, C, T, H, W]`, by zennit."""
    import gradient_oracles

    low, high = ((bound,) * clip.shape[1] for bound in (known.facts.low, known.facts.high))
    return gradient_oracles.deep_taylor(known.plain, clip, classes, low, high)


MAPS = {f.__name__: f for f in (saliency_tube, grad_cam, guided_backprop, integrated_gradients, deep_taylor)}


# ---- The comparison -------------------------------------------------------------------------------------------------


def compare(known: Known, bound: float, zennit: bool) -> None:
    """Everything that a network's heads say, together, of two clips and of one.

    Args:
        bound: of the largest difference, in parts of the largest value.
        zennit: compare deep Taylor decomposition with it, where it can.
    """
    facts, clip, classes = known.facts, known.clip, known.classes
    chosen = {method: heads(known)[method] for method in facts.heads}
    explained = clipsight.explain(known.given, list(chosen.values()), clip[:1], classes="input", **facts.options)
    with torch.inference_mode():
        results = dict(zip(explained.output_names, explained(clip, classes[:, None]), strict=True))
        single = dict(zip(explained.output_names, explained(clip[:1], classes[:1, None]), strict=True))

    logits = results["logits"] if facts.ending is None else results["logits"].softmax(1)
    assert off(logits, known.own(clip)) < bound
    for output, result in results.items():
        assert not result[:1].any() or off(single[output], result[:1]) < bound, output
    for method in [method for method in chosen if method in MAPS]:
        if method == "deep_taylor" and not (zennit and facts.zennit):
            sums = results[method].sum((1, 2, 3, 4))
            assert ((sums > 0) & (sums < 1 + 1e-6)).all()
            continue
        expected = MAPS[method](known, clip, classes)
        assert off(results[method], expected) < bound, method
        if classes[0] != classes[1]:  # another class has another map
            assert off(MAPS[method](known, clip, classes.flip(0)), expected) > 1e3 * bound, method
    if "feature_pyramid" in chosen:
        masks = selected(known, clip, classes)
        grid, *deeper = (layer["name"] for layer in explained.describe()["methods"][-1]["layers"])
        assert torch.equal(results[f"{grid}.mask"][:, 0], masks["grid"])
        if facts.last is not None:
            assert facts.last in deeper
            assert torch.equal(results[f"{facts.last}.mask"][:, 0], masks["last"])
