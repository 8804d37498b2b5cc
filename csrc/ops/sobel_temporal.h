// sobel_temporal: G = D_t S_h S_w R, derivative [-1, 0, 1] in time, smoothing [1, 2, 1] in rows and columns,
// unnormalised (Selective Relevance, section 3). Rising relevance gives positive G.
#pragma once

#include "../core/parallel.h"
#include "../core/types.h"

namespace clipsight {

struct SobelTemporalArgs {
  const float* volume;   // [V, T, H, W]
  int64_t volumes;
  Shape3 size;
  Padding padding;
  float* output;         // [V, T, H, W]
};

void sobel_temporal_cpu(const SobelTemporalArgs& args, const Parallel& parallel, SimdLevel level);

}  // namespace clipsight
