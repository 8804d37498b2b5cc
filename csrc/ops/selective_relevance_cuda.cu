// selective_relevance in CUDA: moments of the derivative (float64, in fixed trees), threshold, then the mask.
#include "ops/selective_relevance_cuda.h"

#include "ops/motion_share_cuda.h"
#include "ops/saliency_tube.h"  // Normaliser
#include "ops/sobel_march_cuda.h"

namespace clipsight {
namespace {

struct Moments {
  double sum, sum_of_squares;
  float peak;  // max |R|; infinite where R has a NaN or an infinity
};

struct VolumeRule {
  Normaliser prescale;  // where active
  bool prescaled, finite;
  float threshold;
};

struct Prescale {
  VolumeRule rule;
  __device__ float operator()(float x) const { return rule.prescaled ? normalise(x, rule.prescale) : x; }
};

/// One block per volume: range, for the pre-scaling.
__global__ void __launch_bounds__(kBlock) find_prescale(SelectiveRelevanceArgs args, VolumeRule* rules) {
  const int64_t voxels = args.size.t * args.size.h * args.size.w;
  for (int64_t v = blockIdx.x; v < args.volumes; v += gridDim.x) {
    float low = INFINITY, high = -INFINITY;
    if (args.prescale) {
      for (int64_t e = threadIdx.x; e < voxels; e += kBlock) {
        low = fminf(low, args.volume[v * voxels + e]);
        high = fmaxf(high, args.volume[v * voxels + e]);
      }
      low = block_reduce(low, Min());
      high = block_reduce(high, Max());
    }
    if (threadIdx.x == 0) {
      rules[v] = {make_normaliser(low, high, fmaxf(-low, fabsf(high))), args.prescale && low < 0, true, 0.0f};
    }
  }
}

__global__ void __launch_bounds__(kBlock)
    find_moments(SelectiveRelevanceArgs args, MarchGrid grid, const VolumeRule* rules, Moments* moments) {
  const int64_t voxels = args.size.t * args.size.h * args.size.w;
  const bool absolute = args.rule.sigma_of == SigmaOf::absolute;
  for (int64_t item = blockIdx.x; item < grid.items; item += gridDim.x) {
    const int64_t v = item / (grid.tiles * grid.pieces);
    const float* volume = args.volume + v * voxels;
    double sum = 0, squares = 0;
    float peak = 0;
    march(grid, item, volume, args.rule.padding, Prescale{rules[v]}, [&](int64_t index, float value, float derivative) {
      const double g = absolute ? fabsf(derivative) : derivative;
      sum += g;
      squares = fma(g, g, squares);
      peak = fmaxf(peak, isfinite(volume[index]) ? fabsf(value) : INFINITY);  // the raw value: pre-scaling hides NaN
    });
    sum = block_reduce(sum, Sum());
    squares = block_reduce(squares, Sum());
    peak = block_reduce(peak, Max());
    if (threadIdx.x == 0) moments[item] = {sum, squares, peak};
  }
}

/// One block per volume: joins the moments of its items into the threshold.
__global__ void __launch_bounds__(kBlock)
    find_threshold(SelectiveRelevanceArgs args, int64_t items, const Moments* moments, VolumeRule* rules) {
  const int64_t voxels = args.size.t * args.size.h * args.size.w;
  for (int64_t v = blockIdx.x; v < args.volumes; v += gridDim.x) {
    double sum = 0, squares = 0;
    float peak = 0;
    for (int64_t i = threadIdx.x; i < items; i += kBlock) {
      const Moments m = moments[v * items + i];
      sum += m.sum;
      squares += m.sum_of_squares;
      peak = fmaxf(peak, m.peak);
    }
    sum = block_reduce(sum, Sum());
    squares = block_reduce(squares, Sum());
    peak = block_reduce(peak, Max());
    if (threadIdx.x == 0) {
      rules[v].finite = isfinite(peak);
      rules[v].threshold = selection_threshold(sum, squares, voxels, peak, args.rule, v);
    }
  }
}

__global__ void __launch_bounds__(kBlock)
    apply_mask(SelectiveRelevanceArgs args, MarchGrid grid, const VolumeRule* rules, ShareSums* share) {
  const int64_t voxels = args.size.t * args.size.h * args.size.w;
  for (int64_t item = blockIdx.x; item < grid.items; item += gridDim.x) {
    const int64_t v = item / (grid.tiles * grid.pieces);
    const VolumeRule rule = rules[v];
    float* motion = args.motion + v * voxels;
    float total = 0, kept = 0;
    march(grid, item, args.volume + v * voxels, args.rule.padding, Prescale{rule},
          [&](int64_t index, float value, float derivative) {
            const bool keep = selected(derivative, rule.threshold, args.rule.sign);
            motion[index] = !rule.finite ? NAN : keep ? value : 0.0f;
            total += fabsf(value);
            kept += keep ? fabsf(value) : 0.0f;
          });
    if (!rule.finite) total = kept = NAN;
    const double sum = block_reduce(static_cast<double>(total), Sum());
    const double sum_kept = block_reduce(static_cast<double>(kept), Sum());
    if (threadIdx.x == 0) share[item] = {sum, sum_kept};
  }
}

struct Workspace {
  Workspace(const SelectiveRelevanceArgs& args, void* base) : carver(base), grid(args.volumes, args.size) {
    rules = carver.take<VolumeRule>(args.volumes);
    moments = carver.take<Moments>(grid.items);
    share = carver.take<ShareSums>(grid.items);
  }

  Carver carver;
  MarchGrid grid;
  VolumeRule* rules;
  Moments* moments;
  ShareSums* share;
};

}  // namespace

size_t selective_relevance_cuda_workspace(const SelectiveRelevanceArgs& args) {
  return Workspace(args, nullptr).carver.used();
}

void selective_relevance_cuda(const SelectiveRelevanceArgs& args, void* workspace, cudaStream_t stream) {
  if (args.volumes == 0) return;
  const char* op = "selective_relevance";
  const Workspace work(args, workspace);
  const int64_t items = work.grid.tiles * work.grid.pieces;  // of one volume
  const unsigned per_volume = grid_for(args.volumes), per_item = grid_for(work.grid.items);
  find_prescale<<<per_volume, kBlock, 0, stream>>>(args, work.rules);
  check_launch(op, "find_prescale");
  find_moments<<<per_item, kBlock, 0, stream>>>(args, work.grid, work.rules, work.moments);
  check_launch(op, "find_moments");
  find_threshold<<<per_volume, kBlock, 0, stream>>>(args, items, work.moments, work.rules);
  check_launch(op, "find_threshold");
  apply_mask<<<per_item, kBlock, 0, stream>>>(args, work.grid, work.rules, work.share);
  check_launch(op, "apply_mask");
  join_share<<<per_volume, kBlock, 0, stream>>>(work.share, items, args.volumes, args.motion_share);
  check_launch(op, "join_share");
}

}  // namespace clipsight
