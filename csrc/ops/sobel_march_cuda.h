// The temporal Sobel derivative of a volume that exists, for sobel_temporal and selective_relevance. A thread owns one
// pixel and marches through a piece of the frames: each frame is smoothed once, and G[t] is the smoothed frame after t
// less the one before it.
#pragma once

#include "core/cuda_check.h"
#include "core/types.h"
#include "ops/block_cuda.h"

namespace clipsight {

constexpr int kMarch = 8;  // frames a thread walks through

/// Cuts [V, T, H, W] into items of kBlock pixels x kMarch frames.
struct MarchGrid {
  Shape3 size;
  int64_t volumes, tiles, pieces, items;

  MarchGrid(int64_t volumes, Shape3 size)
      : size(size), volumes(volumes), tiles(ceil_div(size.h * size.w, kBlock)), pieces(ceil_div(size.t, kMarch)),
        items(volumes * tiles * pieces) {}
};

/// No change to the values on the way in; selective_relevance may scale them.
struct Identity {
  __device__ float operator()(float x) const { return x; }
};

/// S_h S_w R at one pixel of a frame.
template <class Transform>
__device__ float smooth(const float* frame, int64_t row, int64_t column, const Shape3& size, Padding padding,
                        Transform transform) {
  float sum = 0;
#pragma unroll
  for (int i = -1; i <= 1; ++i) {
#pragma unroll
    for (int j = -1; j <= 1; ++j) {
      int64_t r = row + i, c = column + j;
      const bool inside = r >= 0 && r < size.h && c >= 0 && c < size.w;
      if (!inside && padding == Padding::zeros) continue;
      r = r < 0 ? 0 : r < size.h ? r : size.h - 1;
      c = c < 0 ? 0 : c < size.w ? c : size.w - 1;
      sum = fmaf(static_cast<float>((2 - i * i) * (2 - j * j)), transform(frame[r * size.w + c]), sum);
    }
  }
  return sum;
}

/// Calls visit(index of the voxel, transformed R, G) for each voxel of this thread in the item; `volume` is volume v.
template <class Transform, class Visit>
__device__ void march(const MarchGrid& grid, int64_t item, const float* volume, Padding padding, Transform transform,
                      Visit visit) {
  const Shape3& size = grid.size;
  const int64_t plane = size.h * size.w;
  const int64_t pixel = item % grid.tiles * kBlock + threadIdx.x;
  if (pixel >= plane) return;
  const int64_t begin = item / grid.tiles % grid.pieces * kMarch;
  const int64_t end = begin + kMarch < size.t ? begin + kMarch : size.t;
  const int64_t row = pixel / size.w, column = pixel % size.w;
  // The smoothed frame t; beyond the clip the border rule decides.
  const auto at = [&](int64_t t) {
    if (t < 0 || t >= size.t) {
      if (padding == Padding::zeros) return 0.0f;
      t = t < 0 ? 0 : size.t - 1;
    }
    return smooth(volume + t * plane, row, column, size, padding, transform);
  };
  float before = at(begin - 1), here = at(begin);
  for (int64_t t = begin; t < end; ++t) {
    const float after = at(t + 1);
    const int64_t index = t * plane + pixel;
    visit(index, transform(volume[index]), after - before);
    before = here;
    here = after;
  }
}

}  // namespace clipsight
