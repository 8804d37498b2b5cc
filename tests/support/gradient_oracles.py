"""What other libraries compute of a network: captum (gradients) and zennit (relevance), and two slow versions of ours.

Both libraries hook modules, so that they see neither `F.relu(x)` nor `a + b`, and a module that runs twice only once.
`modular` therefore rewrites a network with `torch.fx`, which shares nothing with how the package captures it.

Everything takes `clip [N, 3, T, H, W]` and `classes`, int64 `[N]`, one class for each sample.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from functools import cache
from unittest import mock

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import gradient_networks
from clipsight.dataflow import FrameByFrame
from clipsight.models import beside_torchvision
from gradient_networks import HIGH, LOW

try:
    beside_torchvision.import_torchvision()  # zennit imports it
    import captum.attr as captum
    from zennit import attribution, core, rules
    from zennit.layer import Sum
except ImportError as error:
    pytest.skip(f"the outside libraries are not installed: {error}", allow_module_level=True)

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
PASS = (nn.ReLU, nn.Dropout, nn.Identity, *NORMS)
MOVES = (torch.stack, torch.cat, torch.flatten, torch.permute, F.pad, F.max_pool2d, F.max_pool3d)
CAPTUM = ("grad_cam", "guided_backprop", "guided_grad_cam", "input_gradient", "integrated_gradients")
ZENNIT = ("deep_taylor", "lrp_epsilon")
ALL = CAPTUM + ZENNIT
TINY = 1e-30  # zennit's stabilizer that leaves every quotient alone but 0 / 0


class Call(nn.Module):
    """A call of a function with constants, as a module of its first argument."""

    def __init__(self, function, *constants, **options) -> None:
        super().__init__()
        self.function, self.constants, self.options = function, constants, options

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.constants, **self.options)


class Average(Call):
    pass


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        """Convolutions of other packages too: torchvision derives its own from torch's."""
        return isinstance(module, (*CONVOLUTIONS, nn.Linear)) or super().is_leaf_module(module, path)


AVERAGES = (Sum, Average, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


def expected(network: nn.Module, clip: Tensor, classes: Tensor, layer: str = "pool", inputs: bool = True, methods=ALL):
    """The maps of all methods by the outside libraries, `[N, 1 or 3, T, H, W]`, by the names of the package.

    Args:
        layer: the module whose input (or output) Grad-CAM explains.
    """
    options = {method: {"layer": layer, "inputs": inputs} for method in ("grad_cam", "guided_grad_cam")}
    options["deep_taylor"] = {"low": LOW, "high": HIGH}
    return {method: globals()[method](network, clip, classes, **options.get(method, {})) for method in methods}


def whole(name: str) -> tuple[nn.Module, str, bool]:
    """A small network that takes clips, and the layer whose input (or output) Grad-CAM explains by default."""
    network = gradient_networks.build(name)
    if network.images:
        return FrameByFrame(network).eval(), "network.pool", True
    return (network, "conv3", False) if name == "Plain" else (network, "pool", True)


@cache
def maps(name: str) -> dict[str, Tensor]:
    """As `gradient_networks.maps`, from the outside."""
    network, *layer = whole(name)
    return expected(network, gradient_networks.clip(), gradient_networks.CLASSES, *layer)


# ---- The network as modules -----------------------------------------------------------------------------------------


def modular(network: nn.Module, clip: Tensor, fold: bool = False) -> fx.GraphModule:
    """The network with a module of its own for each ReLU, sum and average that it runs, none of them in place.

    Args:
        clip: one of the size that the network takes.
        fold: batch norms go into the convolution in front of them, where that has no other reader.
    """
    with mock.patch("torch.jit.is_tracing", return_value=True):  # the networks' own checks of sizes cannot be traced
        network = copy.deepcopy(network)
        module = fx.GraphModule(network, _Tracer().trace(network))
    modules, graph, values = dict(module.named_modules()), module.graph, _values(module, clip)
    targets = [node.target for node in graph.nodes]
    for number, node in enumerate(list(graph.nodes)):
        layer = modules.get(node.target) if node.op == "call_module" else None
        source, rest = node.args[0] if node.args else None, fx.map_arg(node.args[1:], values.get)
        if _is(node, "relu", F.relu, torch.relu) or isinstance(layer, nn.ReLU):
            _replace(module, node, f"relu_{number}", nn.ReLU(), source)
        elif _is(node, "add", operator.add, operator.iadd, torch.add):
            with graph.inserting_before(node):
                parts = graph.call_function(torch.stack, (list(node.args), -1))
            _replace(module, node, f"sum_{number}", Sum(-1), parts)
        elif _is(node, "mean", torch.mean):
            _replace(module, node, f"mean_{number}", Average(torch.mean, *rest, **node.kwargs), source)
        elif _is(node, "avg_pool", F.avg_pool2d, F.avg_pool3d):
            _replace(module, node, f"mean_{number}", Average(node.target, *rest, **node.kwargs), source)
        elif layer is not None and targets.count(node.target) > 1:
            _replace(module, node, f"again_{number}", copy.deepcopy(layer), source)
    if fold:
        _fold(module)
    for node in graph.nodes:
        moves = node.op != "call_function" or node.target in MOVES or not isinstance(values.get(node), Tensor)
        assert moves, f"no outside library sees {node.format_node()}"
    graph.eliminate_dead_code()
    graph.lint()
    module.recompile()
    return module.eval().requires_grad_(False)


def _values(module: fx.GraphModule, clip: Tensor) -> dict[fx.Node, object]:
    """What the nodes are on a clip, sizes included."""
    interpreter = fx.Interpreter(module, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(clip)
    return interpreter.env


def _is(node: fx.Node, method: str, *functions) -> bool:
    if node.op == "call_method":
        return node.target.strip("_") == method
    return node.op == "call_function" and node.target in functions


def _replace(module: fx.GraphModule, node: fx.Node, name: str, layer: nn.Module, *args: fx.Node) -> None:
    module.add_submodule(name, layer)
    with module.graph.inserting_before(node):
        new = module.graph.call_module(name, args)
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)


def _fold(module: fx.GraphModule) -> None:
    modules = dict(module.named_modules())
    for node in list(module.graph.nodes):
        source = node.args[0] if node.op == "call_module" else None
        if not (source and source.op == "call_module" and len(source.users) == 1):
            continue
        norm, convolution = modules[node.target], modules[source.target]
        if isinstance(norm, NORMS) and isinstance(convolution, CONVOLUTIONS):
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            bias = 0 if convolution.bias is None else convolution.bias
            convolution.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias)
            convolution.weight = nn.Parameter(
                convolution.weight * scale.view(-1, *[1] * (convolution.weight.dim() - 1))
            )
            node.replace_all_uses_with(source)
            module.graph.erase_node(node)


# ---- captum ---------------------------------------------------------------------------------------------------------


def grad_cam(network: nn.Module, clip: Tensor, classes: Tensor, layer: str, inputs: bool = True, relu: bool = True):
    """`[N, 1, t, h, w]` of the input of `layer`, or of its output; a layer may see the frames one by one."""
    explainer = captum.LayerGradCam(network, network.get_submodule(layer))
    cam = explainer.attribute(clip, classes, attribute_to_layer_input=inputs, relu_attributions=relu).detach()
    return cam if cam.dim() == 5 else cam.unflatten(0, (clip.shape[0], -1)).transpose(1, 2)


def guided_backprop(network: nn.Module, clip: Tensor, classes: Tensor) -> Tensor:
    return captum.GuidedBackprop(modular(network, clip)).attribute(_leaf(clip), classes).detach()


def guided_grad_cam(network: nn.Module, clip: Tensor, classes: Tensor, layer: str, inputs: bool = True) -> Tensor:
    module = modular(network, clip)
    explainer = captum.GuidedGradCam(module, module.get_submodule(layer))
    product = explainer.attribute(_leaf(clip), classes, attribute_to_layer_input=inputs).detach()
    if product.numel():
        return product
    cam = grad_cam(network, clip, classes, layer, inputs)  # captum leaves a layer that sees frames to its user
    return guided_backprop(network, clip, classes) * F.interpolate(cam, clip.shape[2:], mode="nearest")


def input_gradient(network: nn.Module, clip: Tensor, classes: Tensor) -> Tensor:
    return captum.InputXGradient(network).attribute(_leaf(clip), classes).detach()


def integrated_gradients(network: nn.Module, clip: Tensor, classes: Tensor, steps: int = 50) -> Tensor:
    """captum holds the weights of its steps in the default type, and in float32 if it can, which would show at 1e-9."""
    explainer, default = captum.IntegratedGradients(network), torch.get_default_dtype()
    torch.set_default_dtype(clip.dtype)
    try:
        with mock.patch.object(Tensor, "float", lambda tensor: tensor.to(clip.dtype)):
            return explainer.attribute(clip, 0.0, classes, n_steps=steps, internal_batch_size=10 * len(clip)).detach()
    finally:
        torch.set_default_dtype(default)


def _leaf(clip: Tensor) -> Tensor:
    return clip.clone().requires_grad_()


# ---- zennit ---------------------------------------------------------------------------------------------------------


def deep_taylor(network: nn.Module, clip: Tensor, classes: Tensor, low: Sequence[float], high: Sequence[float]):
    """z+ everywhere but zB in the first convolution, `[N, 3, T, H, W]`; low and high are one value for each channel."""
    module = modular(network, clip, fold=True)
    bounds = [_values(module, box) for box in _boxes(clip, low, high)]
    plus = rules.ZPlus(stabilizer=TINY, zero_params="bias")
    hooks = {}
    for node in _first_convolutions(module):
        ends = (values[node.args[0]] for values in bounds)  # padded with zeros where the network pads the clip itself
        hooks[node.target] = rules.ZBox(*ends, stabilizer=TINY, zero_params="bias")
    return _relevance(module, clip, classes, plus, hooks, TINY)


def lrp_epsilon(network: nn.Module, clip: Tensor, classes: Tensor, epsilon: float = 1e-6, norm: float = TINY):
    """The epsilon rule everywhere; `norm` stabilises sums and averages."""
    return _relevance(modular(network, clip, fold=True), clip, classes, rules.Epsilon(epsilon), {}, norm)


def _relevance(module: nn.Module, clip: Tensor, classes: Tensor, rule, hooks: dict, norm: float) -> Tensor:
    def hook_of(_, name: str, layer: nn.Module):
        if isinstance(layer, (*CONVOLUTIONS, nn.Linear)):
            return hooks.get(name, rule)
        if isinstance(layer, AVERAGES):
            return rules.Norm(norm)
        return rules.Pass() if isinstance(layer, PASS) else None

    with attribution.Gradient(module, core.Composite(hook_of)) as attributor:
        return attributor(clip, lambda logits: F.one_hot(classes, logits.shape[1]).to(logits))[1].detach()


def _boxes(clip: Tensor, *bounds: Sequence[float]) -> list[Tensor]:
    """A clip of the least values, and one of the largest."""
    return [clip.new_tensor(bound).view(-1, 1, 1, 1).expand_as(clip).contiguous() for bound in bounds]


def _first_convolutions(module: fx.GraphModule) -> list[fx.Node]:
    modules, clips, found = dict(module.named_modules()), set(), []
    for node in module.graph.nodes:
        if node.op == "placeholder":
            clips.add(node)
        elif clips.intersection(node.all_input_nodes):
            if node.op == "call_module" and isinstance(modules[node.target], CONVOLUTIONS):
                found.append(node)
            else:  # what comes before a convolution only moves the clip's values
                clips.add(node)
    return found


# ---- By definition --------------------------------------------------------------------------------------------------


def slow_relevance(
    network: nn.Module, clip: Tensor, label: int, rule: str, low=None, high=None, epsilon=1e-6, max_pool="winner"
) -> tuple[Tensor, Tensor]:
    """Relevance by `"deep_taylor"` or `"lrp_epsilon"`, layer by layer as dense matrices, for one tiny clip.

    Returns:
        The relevance of the clip, and how much was lost where a denominator is zero.
    """
    module = modular(network, clip, fold=True)
    modules, values, first = dict(module.named_modules()), _values(module, clip), _first_convolutions(module)
    if rule == "deep_taylor":
        lows, highs = (_values(module, box) for box in _boxes(clip, low, high))
    relevance: dict[fx.Node, Tensor] = {}
    lost = torch.zeros((), dtype=clip.dtype)

    def ratio(above: Tensor, z: Tensor) -> Tensor:
        nonlocal lost
        lost = lost + above[z == 0].sum()
        return torch.where(z == 0, 0.0, above / z)

    for node in reversed(module.graph.nodes):
        if node.op == "output":
            logits = values[node.args[0]]
            relevance[node.args[0]] = F.one_hot(torch.tensor([label]), logits.shape[1]).to(logits)
        if node.op == "placeholder":
            return relevance[node], lost
        if node not in relevance:
            continue
        layer, above = modules.get(node.target) if node.op == "call_module" else None, relevance[node].flatten()
        with_weights, taylor = isinstance(layer, (*CONVOLUTIONS, nn.Linear)), rule == "deep_taylor"
        for source in node.all_input_nodes:
            x = values[source]
            if not isinstance(x, Tensor):
                continue
            matrix, flat = _matrix(module, node, source, values), x.flatten()
            if isinstance(layer, PASS):
                below = above
            elif with_weights and taylor and node in first:
                plus, minus = matrix.clamp(min=0), matrix.clamp(max=0)
                low_x, high_x = lows[source].flatten(), highs[source].flatten()
                share = ratio(above, matrix @ flat - plus @ low_x - minus @ high_x)
                below = flat * (matrix.T @ share) - low_x * (plus.T @ share) - high_x * (minus.T @ share)
            elif with_weights and taylor:
                plus, positive = matrix.clamp(min=0), flat.clamp(min=0)
                below = positive * (plus.T @ ratio(above, plus @ positive))
            elif with_weights:
                z = values[node].flatten()
                below = flat * (matrix.T @ (above / (z + torch.where(z < 0, -epsilon, epsilon))))
            elif isinstance(layer, AVERAGES):
                below = flat * (matrix.T @ ratio(above, matrix @ flat))
            elif _is_max_pool(node, layer) and max_pool == "proportional":
                inside = _window(node, layer, x).to(x)  # which inputs each window has
                below = flat * (inside.T @ ratio(above, inside @ flat))
            else:  # what moves values, and the winners of a max pooling
                below = matrix.T @ above
            relevance[source] = relevance.get(source, 0) + below.view(x.shape)
    raise AssertionError("a graph begins with its input")


def _is_max_pool(node: fx.Node, layer: nn.Module | None) -> bool:
    return isinstance(layer, (nn.MaxPool2d, nn.MaxPool3d)) or _is(node, "max_pool", F.max_pool2d, F.max_pool3d)


def _window(node: fx.Node, layer: nn.Module | None, x: Tensor) -> Tensor:
    """`[outputs, inputs]`: each input of a max pooling by itself, where it turns up in the output."""
    one_by_one = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape[1:])
    args = (one_by_one, *node.args[1:])
    found = layer(one_by_one) if layer else node.target(*args, **node.kwargs)
    return found.flatten(1).T > 0


def _matrix(module: fx.GraphModule, node: fx.Node, source: fx.Node, values: dict) -> Tensor:
    """The derivative of one node's values by another's."""

    def run(x: Tensor) -> Tensor:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda n: x if n is source else values[n])
        return getattr(fx.Interpreter(module), node.op)(node.target, args, kwargs)

    x = values[source]
    return torch.autograd.functional.jacobian(run, x, vectorize=True).reshape(-1, x.numel())


def slow_guided_backprop(network: nn.Module, clip: Tensor, classes: Tensor) -> Tensor:
    """By a ReLU whose own derivative is that of guided backprop."""
    module = modular(network, clip)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.ReLU):
            module.set_submodule(name, Call(_GuidedReLU.apply))
    leaf = _leaf(clip)
    return torch.autograd.grad(module(leaf).gather(1, classes[:, None]).sum(), leaf)[0]


class _GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.where((x > 0) & (g > 0), g, 0.0)
