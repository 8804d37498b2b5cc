// back_step: from selected kernels of a convolution back to the input channels that they depend on (Class Feature
// Pyramids, section 3.2), for pooled activations and kernels that are averaged over their extent.
//
//   s[n, i, j]            = pooled[n, i / (C_out / groups) * width + j] * kernel[i, j],   width = C_in / groups
//   edges[n, m, i, j]     = selected[n, m, i] and s[n, i, j] - low >= theta * (high - low),   low, high over j
//   multiplicity[n, m, c] = how many edges point at channel c
//
// Each operation is rounded to float32 by itself, nowhere fused, so every device keeps the edges that plain torch keeps.
// A row with a NaN keeps nothing: each comparison is false.
#pragma once

#include "../core/host_device.h"
#include "../core/parallel.h"
#include "../core/types.h"

namespace clipsight {

/// What s - low of a row must reach. Internal to each file, for it is compiled at every SIMD level.
CLIPSIGHT_HD static inline float back_step_limit(float low, float high, float theta) { return theta * (high - low); }

struct BackStepArgs {
  const float* pooled;       // [N, C_in]
  const void* kernel;        // [C_out, width]
  DType kernel_dtype;        // float32, float16 or bfloat16
  const uint8_t* selected;   // [N, M, C_out], each 0 or 1
  int64_t batch, maps;       // N, M
  int64_t groups, out_channels, width;
  float theta;
  uint8_t* edges;            // [N, M, C_out, width], each 0 or 1
  float* multiplicity;       // [N, M, C_in]: whole numbers
};

void back_step_cpu(const BackStepArgs& args, const Parallel& parallel, SimdLevel level);

}  // namespace clipsight
