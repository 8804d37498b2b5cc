// The motion share of selective_relevance and selective_tube: partial sums of each block, joined in a fixed order.
#pragma once

#include "ops/block_cuda.h"

namespace clipsight {

/// Sums over one piece of a volume: |R|, and |R| where the mask is set.
struct ShareSums {
  double total, kept;
};

/// motion_share[v] = sum kept / sum total over the `pieces` of volume v; 0 for an empty map, NaN for a NaN one.
static __global__ void __launch_bounds__(kBlock) join_share(const ShareSums* sums, int64_t pieces, int64_t volumes,
                                                            float* motion_share) {
  for (int64_t v = blockIdx.x; v < volumes; v += gridDim.x) {
    double total = 0, kept = 0;
    for (int64_t i = threadIdx.x; i < pieces; i += kBlock) {
      total += sums[v * pieces + i].total;
      kept += sums[v * pieces + i].kept;
    }
    total = block_reduce(total, Sum());
    kept = block_reduce(kept, Sum());
    if (threadIdx.x == 0) motion_share[v] = total == 0 ? 0.0f : static_cast<float>(kept / total);
  }
}

}  // namespace clipsight
