// What saliency_tube needs before the first voxel: the banded matrices of the axes, the spline coefficients of each
// map and the moments of its derivative. Everything is computed on the stream into one workspace, so that a call can be
// captured in a CUDA graph: no host copy, no host cache, no synchronisation.
#pragma once

#include <cuda_runtime.h>

#include "core/cuda_check.h"
#include "ops/block_cuda.h"
#include "ops/saliency_tube.h"
#include "ops/spline_basis.h"

namespace clipsight {

constexpr int kMapWidth = 4;         // a cubic row of E has four taps; a linear one is padded with zeros
constexpr int kDerivativeWidth = 6;  // rows of D E and S E have at most six where the axis does not shrink

/// A matrix [n_out, n_in] whose row i is zero outside columns first[i] .. first[i] + width. Columns from n_in on exist
/// only where width > n_in, and their weights are zero.
struct Band {
  int64_t n_in, n_out;
  int width;
  int* first;
  double* weight;     // [n_out, width]
  float* weight32;    // the same, rounded
};

struct VolumeState {
  int finite;                  // 0 where the cam holds a NaN or an infinity
  Range range;                 // of R over the clip
  double sum, sum_of_squares;  // moments of G; with SigmaOf::absolute the sum is that of |G|
};

/// All pointers lead into the workspace.
struct SplinePlan {
  Shape3 in, out;
  int64_t volumes;
  int order;
  Padding padding;
  bool selective, framewise;
  Band map[3];          // E along t, h, w
  Band derivative[3];   // D E, S E, S E (selective only, as the next four)
  double* gram[3];      // A^T A of each derivative matrix A, [n_in, n_in]
  double* column[3];    // column sums of A, [n_in]
  double* scratch;      // [V, 2, in]
  double* coefficients; // [V, in]
  VolumeState* state;   // [V]
  Range* frames;        // [V, T], framewise only
};

/// Lays the plan out in the workspace.
SplinePlan make_plan(const SaliencyTubeArgs& args, const SelectiveRule* rule, Carver& workspace);

/// Launches the kernels that fill it.
void prepare_plan(const char* op, const SplinePlan& plan, const float* cam, bool relu, cudaStream_t stream);

}  // namespace clipsight
