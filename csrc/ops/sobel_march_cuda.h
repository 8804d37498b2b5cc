// The temporal Sobel derivative of a volume that exists, for sobel_temporal and selective_relevance. A thread owns a
// few neighbouring columns of one row and marches through frames: each frame is read and smoothed once, and G[t] is the
// smoothed frame after t less the one before it.
#pragma once

#include "core/cuda_check.h"
#include "core/pack_cuda.h"
#include "core/types.h"
#include "ops/block_cuda.h"

namespace clipsight {

/// Cuts [V, T, H, W] into items of kBlock packs of columns x `march` frames.
struct MarchGrid {
  Shape3 size;
  int64_t packs, tiles, pieces, march, per_volume, items;  // packs of a row; items of a volume and of all

  MarchGrid(int64_t volumes, Shape3 size, int vector) : size(size), packs(ceil_div(size.w, vector)) {
    constexpr int64_t kEnough = 1024;  // blocks, to fill a device; more frames for each save the two at the ends
    tiles = ceil_div(size.h * packs, kBlock);
    march = size.t;
    while (march > 4 && volumes * tiles * ceil_div(size.t, march) < kEnough) march = ceil_div(march, 2);
    pieces = ceil_div(size.t, march);
    per_volume = tiles * pieces;
    items = volumes * per_volume;
  }
};

/// How many columns a thread can move at once: 4, or 1 where a row does not begin on 16 bytes.
inline int march_vector(Shape3 size, std::initializer_list<const void*> volumes) {
  for (const void* p : volumes) {
    if (!aligned(p, 16)) return 1;
  }
  return size.w % 4 == 0 ? 4 : 1;
}

/// No change to the values on the way in; selective_relevance may scale them.
struct Identity {
  __device__ float operator()(float x) const { return x; }
};

/// Calls visit(index of the first voxel, R before the transform, G) for each frame of this thread in the item;
/// `volume` is volume v. Whole blocks must call it, for warps exchange columns.
template <int kVector, class Transform, class Visit>
__device__ void march(const MarchGrid& grid, int64_t item, const float* volume, Padding padding, Transform transform,
                      Visit visit) {
  constexpr unsigned kAll = 0xffffffffu;
  using Values = Pack<float, kVector>;
  const Shape3& size = grid.size;
  const int64_t plane = size.h * size.w, count = size.h * grid.packs;
  const int64_t index = item % grid.tiles * kBlock + threadIdx.x;
  const bool active = index < count;
  const int64_t pack = active ? index : count - 1;  // idle threads of the last warp still take part in its exchange
  const int64_t row = pack / grid.packs, column = (pack - row * grid.packs) * kVector;
  const int64_t begin = item / grid.tiles % grid.pieces * grid.march;
  const int64_t end = begin + grid.march < size.t ? begin + grid.march : size.t;

  const bool zeros = padding == Padding::zeros;
  const float weight_above = zeros && row == 0 ? 0.0f : 1.0f, weight_below = zeros && row + 1 == size.h ? 0.0f : 1.0f;
  const int64_t here = row * size.w + column;
  const int64_t above = row == 0 ? here : here - size.w, below = row + 1 == size.h ? here : here + size.w;
  const bool first = column == 0, last = column + kVector == size.w;
  const int lane = threadIdx.x % 32;
  // The neighbour columns come from the neighbour lanes; at the ends of a warp a thread reads one more column itself.
  const bool reads_left = !first && lane == 0, reads_right = !last && (lane == 31 || index + 1 >= count);
  const int beside = reads_left ? -1 : kVector;

  // Three rows of a frame, as they lie in memory. Beyond the clip the border rule decides.
  struct Rows {
    Values above, here, below;
    float beside[3];
  };
  const auto fetch = [&](int64_t t) {
    Rows rows{};
    if (t < 0 || t >= size.t) {
      if (zeros) return rows;
      t = t < 0 ? 0 : size.t - 1;
    }
    const float* frame = volume + t * plane;
    rows.above = Values::load(frame + above);
    rows.here = Values::load(frame + here);
    rows.below = Values::load(frame + below);
    if (reads_left || reads_right) {
      rows.beside[0] = frame[above + beside];
      rows.beside[1] = frame[here + beside];
      rows.beside[2] = frame[below + beside];
    }
    return rows;
  };
  // S_h S_w R of the frame.
  const auto smooth = [&](const Rows& rows, int64_t t) {
    Values result{};
    if (zeros && (t < 0 || t >= size.t)) return result;  // zeros after the transform
    const auto down = [&](float a, float b, float c) {
      return fmaf(weight_above, transform(a), fmaf(2.0f, transform(b), weight_below * transform(c)));
    };
    float line[kVector + 2];
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      line[i + 1] = down(rows.above.value[i], rows.here.value[i], rows.below.value[i]);
    }
    line[0] = __shfl_up_sync(kAll, line[kVector], 1);
    line[kVector + 1] = __shfl_down_sync(kAll, line[1], 1);
    const float outside = down(rows.beside[0], rows.beside[1], rows.beside[2]);
    if (reads_left) line[0] = outside;
    if (reads_right) line[kVector + 1] = outside;
    if (first) line[0] = zeros ? 0.0f : line[1];
    if (last) line[kVector + 1] = zeros ? 0.0f : line[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) result.value[i] = fmaf(2.0f, line[i + 1], line[i] + line[i + 2]);
    return result;
  };

  Rows rows = fetch(begin - 1);
  Values before = smooth(rows, begin - 1);
  rows = fetch(begin);
  Values now = smooth(rows, begin), value = rows.here;
#pragma unroll 2
  for (int64_t t = begin; t < end; ++t) {
    rows = fetch(t + 1);
    const Values after = smooth(rows, t + 1);
    Values g;
#pragma unroll
    for (int i = 0; i < kVector; ++i) g.value[i] = after.value[i] - before.value[i];
    if (active) visit(t * plane + here, value, g);
    before = now;
    now = after;
    value = rows.here;
  }
}

}  // namespace clipsight
