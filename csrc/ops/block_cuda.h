// Reductions that give the same bits on every run: fixed trees, no floating-point atomics.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

namespace clipsight {

constexpr int kBlock = 256;     // threads of a block where nothing speaks for another number
constexpr int kMostWarps = 32;  // of any block

struct Sum {
  template <class T> __device__ T operator()(T a, T b) const { return a + b; }
};
struct Min {
  __device__ float operator()(float a, float b) const { return fminf(a, b); }
};
struct Max {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

/// Joins `value` over the block, a whole number of warps; every thread must call it and receives the result.
template <class T, class Join>
__device__ T block_reduce(T value, Join join) {
  __shared__ T of_warp[kMostWarps];
  for (int step = 16; step > 0; step /= 2) value = join(value, __shfl_xor_sync(0xffffffffu, value, step));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  value = of_warp[0];
  for (int i = 1; i < static_cast<int>(blockDim.x / 32); ++i) value = join(value, of_warp[i]);
  __syncthreads();  // the next call writes of_warp
  return value;
}

/// Minimum and maximum of some values; of none at first.
struct Extent {
  float low = INFINITY, high = -INFINITY;

  __device__ void add(float x) { low = fminf(low, x), high = fmaxf(high, x); }
  __device__ void add(float least, float most) { low = fminf(low, least), high = fmaxf(high, most); }
};

/// Of what all threads have. Every thread must call it and receives the result.
__device__ inline Extent block_extent(const Extent& mine) {
  Extent all;
  all.low = block_reduce(mine.low, Min());
  all.high = block_reduce(mine.high, Max());
  return all;
}

}  // namespace clipsight
