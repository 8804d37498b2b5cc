"""The ops of clipsight as typed functions: fused C++ and CUDA kernels, also reachable as `torch.ops.clipsight.*`.

Axis order is always [N, C, t, h, w]: batch, channels, frames, rows, columns; M counts the explained classes of each
sample. All ops compute in float32. They work under torch.compile and torch.export (dynamic batch and sizes) and in
TorchScript. Each has a slow twin of the same name in :mod:`clipsight.reference`, which defines it.

Bad arguments raise ValueError, `<op>: <argument> <rule>, got <value>`; a library that could not be loaded RuntimeError
with every load error. NaN and infinity are no error: a map [t, h, w] that holds one becomes NaN throughout (0 in
uint8), its motion share too, and the other maps are untouched.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

from . import _fake_and_autograd, _library, reference  # noqa: F401  (loads the libraries, registers fakes, gradients)

__all__ = [
    "back_step",
    "channel_reduce",
    "saliency_tube",
    "selective_relevance",
    "selective_tube",
    "sobel_temporal",
    "spline_upsample",
]

_ops = torch.ops.clipsight
INT64 = 2**63 - 1


def _fits(op):
    """Says of an op whose output has a size what is wrong where there is no memory for it."""

    @functools.wraps(op)
    def checked(*args, **options):
        try:
            return op(*args, **options)
        except (RuntimeError, MemoryError) as error:
            size = inspect.signature(op).bind(*args, **options).arguments["size"]
            rule = None
            if any(isinstance(n, int) and n > INT64 for n in size):
                rule = "a volume that 64 bits can address"
            elif isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "aten::new_empty" in str(error):
                rule = "a volume that memory can hold"
            if rule is None:
                raise
            raise ValueError(f"{op.__name__}: size must be {rule}, got {list(size)}") from error

    return checked


def channel_reduce(features: Tensor, weight: Tensor, threshold: float | None = None) -> Tensor:
    """Class-weighted sum of the feature maps: Saliency Tubes, Eq. 1-2.

    Args:
        features: [N, C, t, h, w], float32, float16 or bfloat16. Contiguous, channels_last_3d and permuted views of
            [N, t, h, w, C] are read in place; other layouts are copied first.
        weight: [M, C], or [N, M, C] for rows per sample.
        threshold: weights below it count as zero (the raw tau of Eq. 2); None keeps every channel.

    Returns: cam [N, M, t, h, w], float32. Differentiable in features and weight; the gate is held constant.
    """
    return _ops.channel_reduce(features, weight, threshold)


def back_step(pooled: Tensor, kernel: Tensor, selected: Tensor, theta: float, groups: int = 1) -> tuple[Tensor, Tensor]:
    """From selected kernels of a convolution back to its input channels: Class Feature Pyramids, section 3.2.

    Kernel i scores the input channels j of its group with s_ij = pooled_j * kernel_ij, and points at those with
    s_ij - min >= theta * (max - min) over j: at all of them where all are equal (a single one, say), at none where one
    is NaN. Computed in float32, each operation rounded by itself, so the twin and every device keep the same edges.

    Args:
        pooled: [N, C_in], the means of the channels that the convolution receives; float32, float16 or bfloat16.
        kernel: [C_out, C_in / groups], the means of the kernels over their extent; the same types.
        selected: bool [N, M, C_out], the kernels to step back from, for each of M classes. Others cost next to nothing.
        theta: 0 (keeps every channel) to 1 (keeps the largest).
        groups: of the convolution; divides C_in and C_out.

    Returns: (edges, multiplicity): bool [N, M, C_out, C_in / groups], true where a selected kernel points at channel j
    of its group; and how many edges point at each input channel, whole numbers in float32 [N, M, C_in]. No gradient.
    """
    return _ops.back_step(pooled, kernel, selected, theta, groups)


@_fits
def spline_upsample(volume: Tensor, size: Sequence[int], order: int = 3) -> Tensor:
    """Resamples a volume on the align-corners grid with B-splines, mirrored at the ends.

    Equals `scipy.ndimage.zoom(order=order, mode="mirror")`; a cubic overshoots, and that is kept.

    Args:
        volume: [..., t, h, w], float32, float16 or bfloat16.
        size: (T, H, W), larger or smaller.
        order: 3 (cubic) or 1 (linear).

    Returns: [..., T, H, W] in the dtype of `volume`. Differentiable.
    """
    return _ops.spline_upsample(volume, _size(size), order)


def sobel_temporal(volume: Tensor, padding: str = "replicate") -> Tensor:
    """Sobel derivative in time: Selective Relevance, section 3.

    [-1, 0, 1] over frames, [1, 2, 1] over rows and columns, not normalised: a slope of 1 per frame gives 32.

    Args:
        volume: [..., T, H, W], float32, float16 or bfloat16.
        padding: "replicate" (a still volume gives 0) or "zeros" (the authors' border).

    Returns: [..., T, H, W] in the dtype of `volume`. Differentiable.
    """
    return _ops.sobel_temporal(volume, padding)


def selective_relevance(
    volume: Tensor,
    n_sigma: float | Tensor = 2.0,
    padding: str = "replicate",
    sign: str = "abs",
    sigma_of: str = "signed",
    prescale: bool = False,
) -> tuple[Tensor, Tensor]:
    """Keeps the relevance that changes in time: Selective Relevance, section 3.

    Args:
        volume: raw relevance [..., T, H, W], float32, float16 or bfloat16; each [T, H, W] is one map.
        n_sigma: keeps voxels with |G| > n_sigma * sigma, G the Sobel derivative, sigma its unbiased standard deviation
            over the map. A sigma below 1e-5 of the largest |relevance| (32 eps in half precision) selects nothing.
            As a tensor it is data: shape [1], or the first axes of the maps ([N] or [N, M] where they are [N, M]); a
            value that is negative or NaN then selects nothing.
        padding: as in sobel_temporal.
        sign: "abs", "rising" (G > n sigma) or "falling" (G < -n sigma).
        sigma_of: "signed" (of G) or "abs" (of |G|).
        prescale: scales a map that has negative values to [0, 1] first, as the authors' 2020 script does.

    Returns: (motion, motion_share): volume * mask [..., T, H, W] in its dtype, and sum|volume|*mask / sum|volume| [...]
    in float32, 0 for an empty map. Differentiable; the mask is held constant.
    """
    n_sigma, n_sigma_of = _n_sigma(n_sigma)
    return _ops.selective_relevance(volume, n_sigma, padding, sign, sigma_of, prescale, n_sigma_of)


@_fits
def saliency_tube(
    features: Tensor,
    weight: Tensor,
    size: Sequence[int],
    threshold: float | None = None,
    order: int = 3,
    relu: bool = False,
    normalize: str = "clip",
    dtype: torch.dtype | str = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """Saliency tube in one pass: channel_reduce, spline_upsample, min-max (Saliency Tubes, section 3).

    Args:
        features, weight, threshold: as in channel_reduce.
        size, order: as in spline_upsample.
        relu: drops negative values of the cam, before up-sampling.
        normalize: "clip" scales each map to [0, 1], "frame" each of its frames, "none" leaves it raw. A map or
            frame that is constant (max - min <= 1e-6 of the largest |value| of the whole map) becomes 0.
        dtype: float32, float16, or uint8 (255 * map, rounded half to even; not with normalize="none").
        out: result memory, contiguous [N, M, T, H, W] of type `dtype`.

    Returns: tube [N, M, T, H, W]; `out` where it was given. Differentiable without `out`.
    """
    arguments = (features, weight, _size(size), threshold, order, relu, normalize, _name(dtype))
    if out is None:
        return _ops.saliency_tube(*arguments)
    _ops.saliency_tube.out(*arguments, out=out)
    return out


@_fits
def selective_tube(
    features: Tensor,
    weight: Tensor,
    size: Sequence[int],
    threshold: float | None = None,
    order: int = 3,
    relu: bool = False,
    normalize: str = "clip",
    dtype: torch.dtype | str = torch.float32,
    n_sigma: float | Tensor = 2.0,
    padding: str = "replicate",
    sign: str = "abs",
    sigma_of: str = "signed",
    out: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Saliency tube and its motion map in one pass, without an intermediate volume.

    Args: as in saliency_tube and selective_relevance; the mask comes from the raw map, not from the normalised tube.
        out: result memory (tube, motion, motion_share), contiguous.

    Returns: (tube, motion, motion_share): [N, M, T, H, W] and tube * mask, both of type `dtype`, and [N, M] float32.
    """
    arguments = (features, weight, _size(size), threshold, order, relu, normalize, _name(dtype))
    n_sigma, n_sigma_of = _n_sigma(n_sigma)
    rule = (n_sigma, padding, sign, sigma_of, n_sigma_of)
    if out is None:
        return _ops.selective_tube(*arguments, *rule)
    tube, motion, motion_share = out
    _ops.selective_tube.out(*arguments, *rule, tube=tube, motion=motion, motion_share=motion_share)
    return tube, motion, motion_share


def _n_sigma(n_sigma: float | Tensor) -> tuple[float, Tensor | None]:
    """The two arguments of the op, of which the second wins."""
    return (2.0, n_sigma) if isinstance(n_sigma, Tensor) else (n_sigma, None)


def _size(size: Sequence[int]) -> Sequence[int]:
    """Plain integers in a trace: its size is a constant of the file. Elsewhere a size may stay symbolic."""
    return reference.plain_integers(size) if torch.jit.is_tracing() else size


def _name(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")
