"""`Frames`: resize, centre crop and normalisation as a part of the exported graph, for callers that have raw bytes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layouts import OURS, order
from ..preprocessing import LUMA, Preprocessing


class Frames(nn.Module):
    """uint8 RGB frames `[N, T, H, W, 3]` of any height and width -> the network's clip `[N, 3, T, h, w]`.

    The clip of a network of one channel is their luma, and its axes are in the order of `layout`.

    The pixels are those of `clipsight.windows` (OpenCV's bilinear resize): only the crop's are computed, from four
    neighbours each, with OpenCV's weights of 11 bits and its intermediate rounding. Height and width are data here, not
    sizes, so that one graph serves them all; it can be scripted, traced and exported.

    A crop that does not fit into the resized frame leads to an index that does not exist, which is an error in every
    runtime.
    """

    def __init__(self, preprocessing: Preprocessing, dtype: torch.dtype, channels: int = 3, layout: str = OURS) -> None:
        super().__init__()
        p = preprocessing
        self.height, self.width = p.crop
        self.resizes = p.resize is not None
        self.short = p.resize if isinstance(p.resize, int) else 0
        self.exact_height, self.exact_width = p.resize if isinstance(p.resize, tuple) else (0, 0)
        self.bgr = p.channel_order == "BGR"
        self.scale, self.dtype = float(p.scale), dtype
        self.gray, self.moved, self.axes = channels == 1, layout != OURS, list(order(OURS, layout))
        for name, values in (("mean", p.mean), ("std", p.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1))
        luma = torch.tensor(LUMA if p.channel_order == "RGB" else LUMA[::-1], dtype=torch.float32)
        self.register_buffer("luma", luma.view(-1, 1, 1, 1))

    def forward(self, frames: Tensor) -> Tensor:
        height = torch.full([], frames.shape[2], dtype=torch.float64, device=frames.device)
        width = torch.full([], frames.shape[3], dtype=torch.float64, device=frames.device)
        rows, columns = height, width
        if self.short > 0:
            short = torch.minimum(height, width)
            rows, columns = torch.floor(self.short * height / short), torch.floor(self.short * width / short)
        elif self.resizes:
            rows, columns = torch.full_like(height, self.exact_height), torch.full_like(width, self.exact_width)
        fits = (rows >= self.height) & (columns >= self.width)
        top, bottom, upper, lower = self.axis(height, rows, self.height, fits)
        left, right, before, after = self.axis(width, columns, self.width, fits)
        above = frames.index_select(2, top)
        if self.resizes:
            below = frames.index_select(2, bottom)
            before, after = before.view(-1, 1), after.view(-1, 1)
            upper, lower = upper.double().view(-1, 1, 1), lower.double().view(-1, 1, 1)
            # Weights of 11 bits twice, a shift by 4 after the rows, by 16 and by 2 after the columns.
            a = torch.floor(self.beside(above, left, right, before, after) / 16).double() * upper
            b = torch.floor(self.beside(below, left, right, before, after) / 16).double() * lower
            pixels = torch.floor((torch.floor(a / 65536) + torch.floor(b / 65536) + 2) / 4).float()
        else:
            pixels = above.index_select(3, left).float()
        if self.bgr:
            pixels = pixels.flip(4)
        clip = (pixels.permute(0, 4, 1, 2, 3) * self.scale - self.mean) / self.std
        if self.gray:  # the weights sum to 1, so that it does not matter whether this comes before the mean or after it
            clip = (clip * self.luma).sum(1, keepdim=True)
        if self.moved:
            clip = clip.permute(self.axes)
        return clip.to(self.dtype)

    def axis(self, full: Tensor, resized: Tensor, part: int, fits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For the crop's pixels along one axis: the two neighbours in the source, and their weights in 1/2048."""
        offset = torch.round((resized - part) / 2)
        pixel = torch.arange(part, dtype=torch.float64, device=full.device) + offset
        x = ((pixel + 0.5) * (1 / (resized / full)) - 0.5).float()
        first = torch.floor(x)
        second_weight = x - first
        last = full.float() - 1
        index = torch.minimum(first.clamp(min=0), last).long()
        next_index = torch.minimum((first + 1).clamp(min=0), last).long()
        index = torch.where(fits, index, torch.full_like(index, 2**30))
        return index, next_index, torch.round((1 - second_weight) * 2048), torch.round(second_weight * 2048)

    def beside(self, rows: Tensor, left: Tensor, right: Tensor, before: Tensor, after: Tensor) -> Tensor:
        return rows.index_select(3, left).float() * before + rows.index_select(3, right).float() * after
