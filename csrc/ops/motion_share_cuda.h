// What selective_relevance and selective_tube share: which side of the derivative counts, and sums over the pieces of a
// volume, each by a block of its own, which the block that ends last joins in a fixed order.
#pragma once

#include "ops/block_cuda.h"
#include "ops/selective_relevance.h"

namespace clipsight {

/// selected() for a sign that is known before the loop: one operation on the bits of G, then the comparison.
class Side {
 public:
  __device__ explicit Side(Sign sign)
      : keep_(sign == Sign::absolute ? 0x7fffffffu : 0xffffffffu), flip_(sign == Sign::falling ? 0x80000000u : 0u) {}
  __device__ float operator()(float g) const { return __uint_as_float((__float_as_uint(g) & keep_) ^ flip_); }

 private:
  unsigned keep_, flip_;
};

/// Sums over one piece of a volume: |R|, and |R| where the mask is set.
struct ShareSums {
  double total, kept;
};

/// Whether all other blocks of a volume have written their sums: true in one block, in all of its threads. `arrived`
/// begins as 0. What they wrote must be read past the first-level cache: through a volatile pointer.
__device__ inline bool is_last_block(unsigned* arrived, unsigned blocks) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    __threadfence();  // after what this thread has written
    last = atomicAdd(arrived, 1u) == blocks - 1;
    __threadfence();
  }
  __syncthreads();
  return last;
}

/// The sum of `count` values in a fixed order. Every thread of the block must call it and receives the result.
__device__ inline double join_sums(const volatile double* values, int64_t count, int64_t stride = 1) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += values[i * stride];
  return block_reduce(sum, Sum());
}

/// sum |R| mask / sum |R| of one volume; 0 for an empty map, NaN for a NaN one.
__device__ inline float join_share(const ShareSums* sums, int64_t pieces) {
  const double total = join_sums(&sums->total, pieces, 2), kept = join_sums(&sums->kept, pieces, 2);
  return total == 0 ? 0.0f : static_cast<float>(kept / total);
}

}  // namespace clipsight
