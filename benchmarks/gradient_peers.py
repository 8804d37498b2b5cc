"""Other libraries' Grad-CAM, guided backpropagation and deep Taylor decomposition, as calls to time.

They hook modules, so a network is first given a module for every ReLU and every sum that it runs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clipsight.models.beside_torchvision import import_torchvision

LOW, HIGH = -2.0, 2.0  # the box of the clips' values
# Where Grad-CAM looks: the module of ours, and that of `as_modules`.
LAYERS = {"r3d_18": ("layer4", "layer4"), "c3d": ("conv5b", "conv5b")}
METHODS = ("grad_cam", "guided_backprop", "deep_taylor")


def as_modules(name: str, network: nn.Module) -> nn.Module:
    """The same network, with the same weights, of modules only; they require gradients, as after loading."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    if name == "r3d_18":
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            for i, block in enumerate(stage):
                stage[i] = Block(block)
        return network.eval()
    layers = nn.Sequential()
    for key, layer in network.named_children():
        if key == "fc6":
            layers.add_module("flatten", nn.Flatten())
        layers.add_module(key, layer)
        if isinstance(layer, (nn.Conv3d, nn.Linear)) and key != "fc8":
            layers.add_module(f"{key}_relu", nn.ReLU())
    return layers.eval()


class Block(nn.Module):
    """torchvision's residual block with its sum as a module, which zennit needs."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.conv1, self.conv2, self.relu = block.conv1, block.conv2, block.relu
        self.shortcut = block.downsample or nn.Identity()
        self.sum = Sum()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.sum(torch.stack([self.conv2(self.conv1(x)), self.shortcut(x)], -1)))


class Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(-1)


def folded(network: nn.Module) -> nn.Module:
    """Batch norms in the convolutions in front of them."""
    network = copy.deepcopy(network)
    for sequence in network.modules():
        if isinstance(sequence, nn.Sequential):
            for i in range(len(sequence) - 1):
                if isinstance(sequence[i + 1], nn.BatchNorm3d):
                    sequence[i] = fuse_conv_bn_eval(sequence[i], sequence[i + 1])
                    sequence[i + 1] = nn.Identity()
    return network


def peers(method: str, name: str, network: nn.Module, clip: Tensor, classes: list[int]) -> dict[str, Callable]:
    """Calls by the name of the library; one that is missing is left out, with a note.

    Args:
        method: one of `METHODS`.
        name: of the network.
        network: of modules only.
        classes: one for each sample of the clip.
    """
    import_torchvision()  # which some of them import
    found = {}
    for library, make in LIBRARIES[method].items():
        try:
            found[library] = make(network, LAYERS[name][1], clip, classes)
        except ImportError as error:
            print(f"# {library} is left out: {error}", flush=True)
    return found


def _captum_cam(network, layer, clip, classes):
    from captum.attr import LayerAttribution, LayerGradCam

    explainer = LayerGradCam(network, network.get_submodule(layer))

    def run():
        cam = explainer.attribute(clip, classes, relu_attributions=True)
        return cam.detach(), LayerAttribution.interpolate(cam.detach(), clip.shape[2:], "trilinear")

    return run


def _pytorch_grad_cam(network, layer, clip, classes):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    explainer = GradCAM(network, [network.get_submodule(layer)])
    targets = [ClassifierOutputTarget(k) for k in classes]
    return lambda: (explainer(input_tensor=clip, targets=targets),)


def _torchcam(network, layer, clip, classes):
    from torchcam.methods import GradCAM

    def run():
        with GradCAM(network, layer, input_shape=tuple(clip.shape[1:])) as explainer:
            return tuple(explainer(classes, network(clip)))

    return run


def _captum_guided(network, layer, clip, classes):
    from captum.attr import GuidedBackprop

    explainer, leaf = GuidedBackprop(network), clip.clone().requires_grad_()
    return lambda: (explainer.attribute(leaf, classes).detach(),)


def _zennit(network, layer, clip, classes):
    from zennit.attribution import Gradient
    from zennit.core import Composite
    from zennit.rules import Norm, Pass, ZBox, ZPlus

    network, exact = folded(network), {"stabilizer": 1e-30, "zero_params": "bias"}
    first = next(m for m in network.modules() if isinstance(m, nn.Conv3d))
    bounds = (torch.full_like(clip, LOW), torch.full_like(clip, HIGH))

    def rule(_, name, module):
        if module is first:
            return ZBox(*bounds, **exact)
        if isinstance(module, (nn.Conv3d, nn.Linear)):
            return ZPlus(**exact)
        if isinstance(module, (Sum, nn.AdaptiveAvgPool3d)):
            return Norm(1e-30)
        return Pass() if isinstance(module, (nn.ReLU, nn.Dropout, nn.Identity)) else None

    seed = nn.functional.one_hot(torch.tensor(classes), network(clip).shape[1]).to(clip).detach()

    def run():
        with Gradient(network, Composite(rule)) as attributor:
            return (attributor(clip, seed)[1],)

    return run


LIBRARIES = {
    "grad_cam": {"captum": _captum_cam, "pytorch-grad-cam": _pytorch_grad_cam, "torchcam": _torchcam},
    "guided_backprop": {"captum": _captum_guided},
    "deep_taylor": {"zennit": _zennit},
}
