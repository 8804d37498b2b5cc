"""Slow, obvious twins of the ops in plain torch: the specification, the oracle, and the plug-in-free export variant.

They take what the ops of the same name take (:mod:`clipsight.ops` documents the arguments), run on any device and also
in float64. Sizes are read as plain integers, so every spline and Sobel matrix is a constant of a traced or exported
graph, and there is no data-dependent control flow. `[...,t,h,w]` is a volume: frames, rows, columns.

Sources: Saliency Tubes (Stergiou et al., 2019), Eq. 1-2; Selective Relevance (Hiley et al., 2020), section 3;
Class Feature Pyramids (Stergiou et al., 2019), section 3.2; cubic splines as in Unser, "Splines: a perfect fit for
signal and image processing" (1999).
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

VOLUME = (-3, -2, -1)
FRAME = (-2, -1)
SOBEL = ((-1.0, 0.0, 1.0), (1.0, 2.0, 1.0), (1.0, 2.0, 1.0))  # taps over frames, rows, columns
CONSTANT = 1e-6  # a map or frame whose max - min is at most this share of max|R| over its volume is constant


# ---- matrices -------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def basis(n_in: int, n_out: int, order: int = 3) -> np.ndarray:
    """Matrix [n_out, n_in] (float64) that resamples one axis: B-spline interpolation on the align-corners grid.

    Output i samples input coordinate i*(n_in-1)/(n_out-1); samples beyond the ends are mirrored about the end samples.
    """
    if order not in (1, 3):
        raise ValueError(f"spline_upsample: order must be 1 or 3, got {order}")
    if n_in == 1:
        return np.ones((n_out, 1))
    period = 2 * (n_in - 1)

    def mirror(index):
        index = np.abs(index) % period
        return np.where(index < n_in, index, period - index)

    # Spline coefficients -> values at the samples: [1/6, 4/6, 1/6] for the cubic, the identity for order 1.
    at_samples = np.zeros((n_in, n_in))
    for offset, value in {1: {0: 1.0}, 3: {-1: 1 / 6, 0: 4 / 6, 1: 1 / 6}}[order].items():
        np.add.at(at_samples, (np.arange(n_in), mirror(np.arange(n_in) + offset)), value)
    # Spline coefficients -> values on the output grid.
    x = np.arange(n_out) * (n_in - 1) / max(n_out - 1, 1)
    on_grid = np.zeros((n_out, n_in))
    for offset in range(-1, 3):
        node = np.floor(x).astype(int) + offset
        np.add.at(on_grid, (np.arange(n_out), mirror(node)), _b_spline(x - node, order))
    return _frozen(np.linalg.solve(at_samples.T, on_grid.T).T)


def _b_spline(x: np.ndarray, order: int) -> np.ndarray:
    a = np.abs(x)
    if order == 1:
        return np.maximum(1 - a, 0)
    return np.where(a < 1, 2 / 3 - a**2 + a**3 / 2, np.maximum(2 - a, 0) ** 3 / 6)


@functools.lru_cache(maxsize=64)
def stencil(n: int, taps: tuple[float, float, float], padding: str) -> np.ndarray:
    """Matrix [n, n] (float64) of a 3-tap correlation along one axis with the border rule `padding`."""
    matrix = np.zeros((n, n))
    for offset, tap in zip((-1, 0, 1), taps, strict=True):
        row = np.arange(n)
        column = row + offset
        if padding == "zeros":
            inside = (column >= 0) & (column < n)
            row, column = row[inside], column[inside]
        np.add.at(matrix, (row, np.clip(column, 0, n - 1)), tap)
    return _frozen(matrix)


def sobel_basis(inner: Sequence[int], size: Sequence[int], order: int, padding: str) -> list[np.ndarray]:
    """The three matrices of up-sampling followed by the Sobel operator: D B_t, S B_h, S B_w."""
    return [stencil(n, taps, padding) @ basis(m, n, order) for m, n, taps in zip(inner, size, SOBEL, strict=True)]


def separable(volume: Tensor, Bt, Bh, Bw) -> Tensor:
    """[...,t,h,w] -> [...,T,H,W]: one matrix [n_out, n_in] (NumPy or tensor) per axis, the frames first, so that
    the large products come last."""
    bt, bh, bw = (_constant(B, volume) for B in (Bt, Bh, Bw.T))
    lead, (t, h, w) = volume.shape[:-3], static_sizes(volume)
    frames = (bt @ volume.reshape(*lead, t, h * w)).reshape(*lead, bt.shape[0], h, w)
    return (bh @ frames) @ bw


def _frozen(matrix: np.ndarray) -> np.ndarray:
    matrix.setflags(write=False)
    return matrix


def _constant(matrix, like: Tensor) -> Tensor:
    if isinstance(matrix, np.ndarray):  # cast in NumPy: a tracer then sees one constant and no operation
        matrix = np.array(matrix, np.float64 if like.dtype == torch.float64 else np.float32, order="C")
        with _quiet_tracer():
            matrix = torch.from_numpy(matrix)
    return matrix if (matrix.dtype, matrix.device) == (like.dtype, like.device) else matrix.to(like)


def static_sizes(volume: Tensor) -> tuple[int, int, int]:
    """(t, h, w) as plain integers, in a trace too: matrices depend on them."""
    return plain_integers(volume.shape[-3:])


def plain_integers(sizes: Sequence[int]) -> tuple[int, ...]:
    with _quiet_tracer():
        return tuple(int(n) for n in sizes)


@contextlib.contextmanager
def _quiet_tracer():
    """No warning that a size or a matrix becomes a constant of the trace: here that is the intent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        yield


# ---- the plain ops --------------------------------------------------------------------------------------------------


def channel_reduce(features: Tensor, weight: Tensor, threshold: float | None = None) -> Tensor:
    """features [N,C,t,h,w], weight [M,C] or [N,M,C] -> cam [N,M,t,h,w]; weights below `threshold` count as zero."""
    compute = torch.promote_types(features.dtype, torch.float32)
    weight = weight.to(compute)
    if threshold is not None:
        weight = torch.where(weight < threshold, 0.0, weight)
    cam = weight @ features.to(compute).flatten(2)
    return cam.unflatten(2, static_sizes(features))


def spline_upsample(volume: Tensor, size: Sequence[int], order: int = 3) -> Tensor:
    """[...,t,h,w] -> [...,T,H,W]."""
    sizes = zip(static_sizes(volume), plain_integers(size), strict=True)
    matrices = [basis(m, n, order) for m, n in sizes]
    return separable(_compute(volume), *matrices).to(volume.dtype)


def sobel_temporal(volume: Tensor, padding: str = "replicate") -> Tensor:
    """[...,T,H,W] -> the same shape: derivative [-1,0,1] in time, smoothing [1,2,1] in rows and columns.

    Frames become the channels of one image, blocks of 16: the depthwise convolution that runtimes do best.
    """
    lead, (t, h, w) = volume.shape[:-3], static_sizes(volume)
    frames = t + -t % 16
    mode = {"replicate": "replicate", "zeros": "constant"}[padding]
    x = F.pad(_compute(volume).reshape(-1, 1, t, h, w), (1, 1, 1, 1, 1, 1 + frames - t), mode).squeeze(1)
    change = x.narrow(1, 2, frames) - x.narrow(1, 0, frames)
    smooth = _constant(np.tile(np.multiply.outer(*SOBEL[1:]), (frames, 1, 1, 1)), x)
    g = F.conv2d(change, smooth, groups=frames).narrow(1, 0, t)
    return g.reshape(*lead, t, h, w).to(volume.dtype)


def selective_relevance(
    volume: Tensor,
    n_sigma: float | Tensor = 2.0,
    padding: str = "replicate",
    sign: str = "abs",
    sigma_of: str = "signed",
    prescale: bool = False,
) -> tuple[Tensor, Tensor]:
    """[...,T,H,W] -> (volume * mask, motion share [...]); the mask keeps voxels with |Sobel| > n_sigma * sigma."""
    relevance = _compute(volume)
    low, high = relevance.amin(VOLUME, True), relevance.amax(VOLUME, True)
    peak = torch.maximum(low.abs(), high.abs())
    if prescale:
        relevance = torch.where(low < 0, (relevance - low) / _span(low, high, peak), relevance)
        peak = torch.where(low < 0, 1.0, peak)
    scaled = relevance / torch.where(peak > 0, peak, 1.0)  # so that squares stay in range
    g = sobel_temporal(scaled.detach(), padding)
    sigma = _deviation(g.abs() if sigma_of == "abs" else g)
    mask = _mask(g, sigma, 1.0, n_sigma, sign, noise_floor(volume.dtype))
    nan = (sigma - sigma).to(relevance.dtype)  # NaN where the volume holds a NaN or an infinity, else zero
    motion = torch.where(mask, relevance, nan)
    return motion.to(volume.dtype), _share(relevance, mask) + nan.sum(VOLUME)


def back_step(pooled: Tensor, kernel: Tensor, selected: Tensor, theta: float, groups: int = 1) -> tuple[Tensor, Tensor]:
    """pooled [N,C_in], kernel [C_out,C_in/groups], selected [N,M,C_out] -> (edges [N,M,C_out,C_in/groups],
    multiplicity [N,M,C_in]); edges where s - min >= theta * (max - min) in a selected row of s = pooled * kernel."""
    pooled, kernel = _compute(pooled), _compute(kernel)
    s = pooled.unflatten(1, (groups, 1, kernel.shape[1])) * kernel.unflatten(0, (groups, -1))
    s = s.detach()  # [N, groups, C_out/groups, C_in/groups]
    low, high = s.amin(-1, True), s.amax(-1, True)
    distance, limit = s.sub_(low), theta * (high - low)  # in place: for a large layer, memory costs most of the time
    # A comparison with NaN is false, and costs less than a pass over the edges with `&`.
    limit_if_selected = torch.where(selected.unsqueeze(-1), limit.flatten(1, 2).unsqueeze(1), math.nan)
    edges = distance.flatten(1, 2).unsqueeze(1) >= limit_if_selected
    # Sums of zeros and ones are exact, so a matrix product may count. In place, the comparison gives floats.
    kept = distance.ge_(limit)
    rows = selected.to(kept.dtype).unflatten(2, (groups, -1)).transpose(1, 2)
    return edges, (rows @ kept).transpose(1, 2).flatten(2).float()


# ---- the fused ops --------------------------------------------------------------------------------------------------


def saliency_tube(
    features: Tensor,
    weight: Tensor,
    size: Sequence[int],
    threshold: float | None = None,
    order: int = 3,
    relu: bool = False,
    normalize: str = "clip",
    dtype: torch.dtype | str = torch.float32,
) -> Tensor:
    """features [N,C,t,h,w], weight [M,C] or [N,M,C] -> tube [N,M,T,H,W] (float64 features give a float64 tube)."""
    cam = _cam(features, weight, threshold, relu)
    return _normalise(spline_upsample(cam, size, order), normalize, dtype)[0]


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
) -> tuple[Tensor, Tensor, Tensor]:
    """As saliency_tube -> (tube, tube * mask [N,M,T,H,W], motion share [N,M]); the mask comes from the raw map.

    The Sobel of the up-sampled map is the same separable product with other matrices. With the QR decomposition of
    each, A = QR, the sum of squares over all voxels is that of the small R_t R_h R_w cam: no large pass is needed for
    sigma, and nothing cancels as it would in a Gram matrix.
    """
    cam, size = _cam(features, weight, threshold, relu), plain_integers(size)
    relevance = spline_upsample(cam, size, order)
    tube, peak = _normalise(relevance, normalize, dtype)
    matrices = sobel_basis(static_sizes(cam), size, order, padding)
    g = separable(cam, *matrices)
    voxels = math.prod(size)
    squares = separable(cam.double(), *(np.linalg.qr(A, mode="r") for A in matrices)).square().sum(VOLUME, True)
    if sigma_of == "abs":
        total = g.abs().double().sum(VOLUME, True)
    else:
        total = separable(cam.double(), *(A.sum(0, keepdims=True) for A in matrices))
    sigma = ((squares - total.square() / voxels).clamp_min(0) / max(voxels - 1, 1)).sqrt()
    mask = _mask(g, sigma, peak, n_sigma, sign, noise_floor(torch.float32))
    blank = torch.where(peak.isnan(), 0.0 if tube.dtype == torch.uint8 else math.nan, 0.0).to(tube.dtype)
    return tube, torch.where(mask, tube, blank), _share(relevance, mask)


# ---- steps ----------------------------------------------------------------------------------------------------------


def noise_floor(dtype: torch.dtype) -> float:
    """sigma below this share of max|R| is rounding noise: no motion."""
    return 32 * torch.finfo(dtype).eps if dtype in (torch.float16, torch.bfloat16) else 1e-5


def _compute(volume: Tensor) -> Tensor:
    return volume.to(torch.promote_types(volume.dtype, torch.float32))


def _voxels(volume: Tensor) -> int:
    return math.prod(static_sizes(volume))


def _cam(features: Tensor, weight: Tensor, threshold: float | None, relu: bool) -> Tensor:
    cam = channel_reduce(features, weight, threshold)
    nan = _nan_if_not_finite(cam)
    return (torch.relu(cam) if relu else cam) + nan


def _nan_if_not_finite(volume: Tensor) -> Tensor:
    """[...,1,1,1]: zero, or NaN where the volume holds a NaN or an infinity (x - x is zero only for finite x)."""
    return (volume - volume).sum(VOLUME, True)


def _span(low: Tensor, high: Tensor, peak: Tensor) -> Tensor:
    """max - min, or infinity for a constant map or frame: dividing by it gives zeros."""
    span = high - low
    return torch.where(span <= CONSTANT * peak, math.inf, span)


def normalised(relevance: Tensor, normalize: str = "clip", dtype: torch.dtype | str = torch.float32) -> Tensor:
    """A raw map [...,T,H,W], min-max scaled over the `"clip"` or over each `"frame"`, in the output type."""
    relevance = _compute(relevance)
    return _normalise(relevance + _nan_if_not_finite(relevance), normalize, dtype)[0]


def _normalise(relevance: Tensor, normalize: str, dtype: torch.dtype | str) -> tuple[Tensor, Tensor]:
    """(normalised map in the output type, max|R| over each volume [...,1,1,1])."""
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    axes = FRAME if normalize == "frame" else VOLUME
    low, high = relevance.amin(axes, True), relevance.amax(axes, True)
    peak = torch.maximum(low.abs(), high.abs()).amax(-3, True)
    tube = relevance if normalize == "none" else (relevance - low) / _span(low, high, peak)
    if dtype == torch.uint8:
        tube = torch.where(peak.isnan(), 0.0, tube * 255).round()
    return tube if dtype == torch.float32 else tube.to(dtype), peak


def _deviation(g: Tensor) -> Tensor:
    """[...,T,H,W] -> standard deviation [...,1,1,1] in float64. Rows are short: float32 will do for their sums."""
    voxels = _voxels(g)
    total = g.sum(-1).double().sum(FRAME, True)
    squares = torch.linalg.vector_norm(g, dim=-1).double().square().sum(FRAME, True)
    return ((squares - total * total / voxels).clamp_min(0) / max(voxels - 1, 1)).sqrt().unsqueeze(-1)


def _mask(g: Tensor, sigma: Tensor, peak: Tensor, n_sigma: float | Tensor, sign: str, floor: float) -> Tensor:
    nothing = sigma < floor * peak
    if isinstance(n_sigma, Tensor):  # data: its axes are the first ones of the maps
        n_sigma = n_sigma.reshape(*n_sigma.shape, *(1 for _ in range(g.dim() - n_sigma.dim())))
        nothing = nothing | ~(n_sigma >= 0)
    limit = torch.where(nothing, math.inf, n_sigma * sigma).to(g.dtype)
    if sign == "abs":
        return g.abs() > limit
    return g > limit if sign == "rising" else g < -limit


def _share(relevance: Tensor, mask: Tensor) -> Tensor:
    size = relevance.abs()
    total, kept = size.sum(VOLUME), torch.where(mask, size, 0.0).sum(VOLUME)
    return kept / torch.where(total == 0, 1.0, total)
