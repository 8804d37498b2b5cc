// channel_reduce: class-weighted sum over channels (Saliency Tubes, Eq. 1-2).
//
//   cam[n, m, s] = sum_c gate(weight[n, m, c]) * features[n, c, s],   gate(w) = w < threshold ? 0 : w
//
// The gate zeroes the weight, not the product, so NaN or Inf in a gated-off channel still reaches the map:
// the same on every device and in every exported file. A NaN weight is kept for the same reason.
#pragma once

#include "../core/host_device.h"
#include "../core/parallel.h"
#include "../core/types.h"

namespace clipsight {

/// The gate of Eq. 2 on the raw weight.
CLIPSIGHT_HD inline float gate(float weight, float threshold) { return weight < threshold ? 0.0f : weight; }

struct ChannelReduceArgs {
  const void* features;                   // [N, C, S], S = t*h*w
  DType features_dtype;                   // float32, float16 or bfloat16
  int64_t batch, channels, spatial;       // N, C, S
  int64_t stride_n, stride_c, stride_s;   // in elements; stride_s == 1 (contiguous) or stride_c == 1 (channels last)
  const float* weight;                    // [M, C] or [N, M, C], rows contiguous
  int64_t weight_stride_n;                // 0 where the rows are shared by the batch, else M*C
  int64_t maps;                           // M
  float threshold;                        // raw tau; -infinity keeps every channel
  float* cam;                             // [N, M, S], contiguous
};

void channel_reduce_cpu(const ChannelReduceArgs& args, const Parallel& parallel, SimdLevel level);

}  // namespace clipsight
