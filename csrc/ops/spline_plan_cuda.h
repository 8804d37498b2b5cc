// What saliency_tube needs before the first voxel: for each frame of each map its coefficients along rows and columns,
// the moments of the derivative and the range. One kernel, one block per frame, computes all of it on the stream into
// one workspace, so that a call can be captured in a CUDA graph: no synchronisation, no copy.
//
// What depends on sizes alone (the rows of the frames, the Gram matrices) comes from the host as an argument.
#pragma once

#include <cuda_runtime.h>

#include "core/cuda_check.h"
#include "ops/block_cuda.h"
#include "ops/saliency_tube.h"
#include "ops/spline_cells_cuda.h"

namespace clipsight {

/// Maps are scaled by a power of two, so that float32 serves whatever the size of their values; `unit` undoes it.
struct VolumeState {
  int finite;        // 0 where the cam holds a NaN or an infinity
  float unit;
  unsigned arrived;  // blocks of a later pass that have left their sums
  double absolute;   // sum |G|, SigmaOf::absolute only
};

struct FrameState {
  float low, high;             // of R
  double sum, sum_of_squares;  // of G
};

/// Where tables begin among all, in float64. A row of a Gram matrix has 2 band + 1 entries about its diagonal; the
/// column sums follow the matrix.
struct Tables {
  int64_t count;              // of all
  int64_t derivative;         // [out.t, in.t] in the samples; that of the map itself begins at 0
  int64_t gram[2], band[2];   // along h and w
};

/// All pointers lead into the workspace.
struct SplinePlan {
  Shape3 in, out;
  int64_t volumes;
  int order;
  bool selective;
  Normalize normalize;
  SelectiveRule rule;    // selective only, as all that concerns the derivative
  Tables tables;
  double* table;         // tables that are too long for a kernel's arguments
  double* planes;        // [V, out.t, 3, in.h, in.w]: room for frames that are too large for shared memory
  float* map;            // [V, out.t, in.h, in.w]: coefficients along h and w of each frame
  float* derivative;     // the same of G
  VolumeState* volume;   // [V]
  FrameState* frame;     // [V, out.t]

  CLIPSIGHT_HD GridAxis rows() const { return {in.h, out.h}; }
  CLIPSIGHT_HD GridAxis columns() const { return {in.w, out.w}; }
  CLIPSIGHT_HD bool ranged() const { return selective || normalize != Normalize::none; }
};

/// One column of the output: where its taps lie in a row of coefficients, and their weights.
struct Column {
  int index[4];
  float weight[4];

  __device__ Column(const SplinePlan& plan, int x) {
    const GridAxis axis = plan.columns();
    const GridAxis::Position at = axis.position(x);
#pragma unroll
    for (int k = 0; k < 4; ++k) index[k] = static_cast<int>(reflect(at.cell - 1 + k, plan.in.w));
    spline_weights(plan.order, axis.fraction(at.rest), weight);
  }
  __device__ float operator()(const float (&row)[4]) const {
    float sum = weight[0] * row[0];
#pragma unroll
    for (int k = 1; k < 4; ++k) sum = fmaf(weight[k], row[k], sum);
    return sum;
  }
};

/// What the pass over the voxels of one frame has to know.
struct FrameRule {
  bool finite;  // also false where a range that something needs overflows
  float unit, threshold;
  Normaliser normaliser;
};

/// From what the blocks of all frames have left. A whole warp must call it; all of its lanes receive the result.
__device__ inline FrameRule frame_rule(const SplinePlan& plan, int64_t volume, int64_t frame) {
  constexpr unsigned kAll = 0xffffffffu;
  const VolumeState& state = plan.volume[volume];
  FrameRule rule{state.finite != 0, state.unit, 0.0f, {0.0f, 0.0f}};
  if (!rule.finite || !plan.ranged()) return rule;
  const FrameState* frames = plan.frame + volume * plan.out.t;
  float low = INFINITY, high = -INFINITY;
  double sum = 0, squares = 0;
  for (int64_t t = threadIdx.x % 32; t < plan.out.t; t += 32) {
    low = fminf(low, frames[t].low);
    high = fmaxf(high, frames[t].high);
    sum += frames[t].sum;
    squares += frames[t].sum_of_squares;
  }
  for (int step = 16; step > 0; step /= 2) {
    low = fminf(low, __shfl_xor_sync(kAll, low, step));
    high = fmaxf(high, __shfl_xor_sync(kAll, high, step));
    sum += __shfl_xor_sync(kAll, sum, step);
    squares += __shfl_xor_sync(kAll, squares, step);
  }
  rule.finite = isfinite(high * rule.unit - low * rule.unit);
  const float largest = fmaxf(fabsf(low), fabsf(high));
  if (plan.selective) {
    if (plan.rule.sigma_of == SigmaOf::absolute) sum = state.absolute;
    const int64_t voxels = plan.out.t * plan.out.h * plan.out.w;
    rule.threshold = selection_threshold(sum, squares, voxels, largest, plan.rule, volume);
  }
  if (plan.normalize == Normalize::frame) low = frames[frame].low, high = frames[frame].high;
  rule.normaliser = make_normaliser(low, high, largest);
  if ((high - low) * rule.unit < FLT_MIN) rule.normaliser.scale = 0;  // too small is a matter of the true size
  return rule;
}

/// Lays the plan out in the workspace.
SplinePlan make_plan(const SaliencyTubeArgs& args, const SelectiveRule* rule, Carver& workspace);

/// Launches the kernels that fill it.
void prepare_plan(const char* op, const SplinePlan& plan, const float* cam, bool relu, cudaStream_t stream);

}  // namespace clipsight
