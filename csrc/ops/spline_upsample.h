// spline_upsample: separable B-spline resampling on the align-corners grid.
//
// Output index i samples input coordinate i*(n_in-1)/(n_out-1); order 3 is the prefiltered cubic B-spline with
// mirror (whole-sample) extension, order 1 is linear. A length-1 input axis is constant; an output axis of length 1
// samples coordinate 0. Equal to scipy.ndimage.zoom(order=order, mode="mirror") but for its zero last sample.
#pragma once

#include "../core/parallel.h"
#include "../core/types.h"

namespace clipsight {

struct SplineUpsampleArgs {
  const float* volume;   // [V, in.t, in.h, in.w]
  int64_t volumes;       // V
  Shape3 in, out;
  int order;             // 1 or 3
  float* output;         // [V, out.t, out.h, out.w]
};

void spline_upsample_cpu(const SplineUpsampleArgs& args, const Parallel& parallel, SimdLevel level);

}  // namespace clipsight
