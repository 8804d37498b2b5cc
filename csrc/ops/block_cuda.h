// Reductions that give the same bits on every run: fixed trees, no floating-point atomics.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cstdint>

namespace clipsight {

constexpr int kBlock = 256;  // threads of every block that calls block_reduce

struct Sum {
  template <class T> __device__ T operator()(T a, T b) const { return a + b; }
};
struct Min {
  __device__ float operator()(float a, float b) const { return fminf(a, b); }
};
struct Max {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

/// Joins `value` over the block; every thread must call it and receives the result.
template <class T, class Join>
__device__ T block_reduce(T value, Join join) {
  __shared__ T of_warp[kBlock / 32];
  for (int step = 16; step > 0; step /= 2) value = join(value, __shfl_xor_sync(0xffffffffu, value, step));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  value = of_warp[0];
  for (int i = 1; i < kBlock / 32; ++i) value = join(value, of_warp[i]);
  __syncthreads();  // the next call writes of_warp
  return value;
}

/// Minimum and maximum as integers that order as the floats do (NaN aside), for integer atomics.
struct Range {
  int low, high;
};

__device__ inline int to_ordered(float x) {
  const int bits = __float_as_int(x);
  return bits >= 0 ? bits : bits ^ 0x7fffffff;
}
__device__ inline float from_ordered(int x) { return __int_as_float(x >= 0 ? x : x ^ 0x7fffffff); }

__device__ inline Range empty_range() { return {INT_MAX, INT_MIN}; }
__device__ inline void extend(Range* range, float low, float high) {
  atomicMin(&range->low, to_ordered(low));
  atomicMax(&range->high, to_ordered(high));
}

}  // namespace clipsight
