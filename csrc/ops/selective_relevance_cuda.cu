// selective_relevance in CUDA: moments of the derivative (float64, in fixed trees) and from them the threshold, then
// the mask. The block that ends last with a volume joins what all have found.
#include "ops/selective_relevance_cuda.h"

#include "ops/motion_share_cuda.h"
#include "ops/saliency_tube.h"  // Normaliser
#include "ops/sobel_march_cuda.h"

namespace clipsight {
namespace {

struct Moments {
  double sum, sum_of_squares;
  double peak;  // max |R|; infinite where R has a NaN or an infinity
};

struct VolumeRule {
  Normaliser prescale;  // where active
  bool prescaled, finite;
  float threshold;
};

/// How many blocks have left their part, for each pass.
struct Arrived {
  unsigned range, moments, share;
};

struct Workspace {
  Workspace(const SelectiveRelevanceArgs& args, void* base)
      : carver(base), vector(march_vector(args.size, {args.volume, args.motion})),
        grid(args.volumes, args.size, vector) {
    arrived = carver.take<Arrived>(args.volumes);
    rules = carver.take<VolumeRule>(args.volumes);
    moments = carver.take<Moments>(grid.items);
    share = carver.take<ShareSums>(grid.items);
    if (args.prescale) ranges = carver.take<Extent>(grid.items);
  }

  Carver carver;
  int vector;
  MarchGrid grid;
  Arrived* arrived;
  VolumeRule* rules;
  Moments* moments;
  ShareSums* share;
  Extent* ranges = nullptr;
};

/// Only where the op was asked to: without, no value passes a test.
template <bool kPrescale>
struct Prescale {
  VolumeRule rule;
  __device__ float operator()(float x) const {
    return kPrescale && rule.prescaled ? normalise(x, rule.prescale) : x;
  }
};

/// The range of each volume, for the pre-scaling. As many blocks share a volume as in the other passes.
__global__ void __launch_bounds__(kBlock)
    find_prescale(const __grid_constant__ SelectiveRelevanceArgs args, const __grid_constant__ Workspace work) {
  const int64_t voxels = args.size.t * args.size.h * args.size.w, blocks = work.grid.per_volume;
  for (int64_t item = blockIdx.x; item < work.grid.items; item += gridDim.x) {
    const int64_t v = item / blocks, piece = item % blocks;
    Extent extent;
    for (int64_t e = piece * kBlock + threadIdx.x; e < voxels; e += blocks * kBlock) {
      extent.add(args.volume[v * voxels + e]);
    }
    extent = block_extent(extent);
    if (threadIdx.x == 0) work.ranges[item] = extent;
    if (!is_last_block(&work.arrived[v].range, static_cast<unsigned>(blocks))) continue;
    const volatile Extent* ranges = work.ranges + v * blocks;
    for (int64_t i = threadIdx.x; i < blocks; i += kBlock) extent.add(ranges[i].low, ranges[i].high);
    const auto [low, high] = block_extent(extent);
    if (threadIdx.x == 0) work.rules[v] = {make_normaliser(low, high, fmaxf(-low, fabsf(high))), low < 0, true, 0.0f};
  }
}

template <int kVector, bool kPrescale>
__global__ void __launch_bounds__(kBlock, 3)
    find_moments(const __grid_constant__ SelectiveRelevanceArgs args, const __grid_constant__ Workspace work) {
  const MarchGrid& grid = work.grid;
  const int64_t voxels = args.size.t * args.size.h * args.size.w;
  const bool absolute = args.rule.sigma_of == SigmaOf::absolute;
  for (int64_t item = blockIdx.x; item < grid.items; item += gridDim.x) {
    const int64_t v = item / grid.per_volume;
    VolumeRule rule{};
    if (kPrescale) rule = work.rules[v];
    const Prescale<kPrescale> prescale{rule};
    double sum = 0, squares = 0;
    float peak = 0;
    march<kVector>(grid, item, args.volume + v * voxels, args.rule.padding, prescale,
                   [&](int64_t, const auto& value, const auto& derivative) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const float g = absolute ? fabsf(derivative.value[i]) : derivative.value[i];
        sum += g;
        squares = fma(static_cast<double>(g), static_cast<double>(g), squares);
        // Pre-scaling hides a NaN, and so does fmaxf.
        peak = fmaxf(peak, isfinite(value.value[i]) ? fabsf(prescale(value.value[i])) : INFINITY);
      }
    });
    sum = block_reduce(sum, Sum());
    squares = block_reduce(squares, Sum());
    peak = block_reduce(peak, Max());
    if (threadIdx.x == 0) work.moments[item] = {sum, squares, peak};
    if (!is_last_block(&work.arrived[v].moments, static_cast<unsigned>(grid.per_volume))) continue;
    const volatile Moments* all = work.moments + v * grid.per_volume;
    double most = 0;
    for (int64_t i = threadIdx.x; i < grid.per_volume; i += kBlock) most = fmax(most, all[i].peak);
    peak = block_reduce(static_cast<float>(most), Max());
    sum = join_sums(&all->sum, grid.per_volume, sizeof(Moments) / sizeof(double));
    squares = join_sums(&all->sum_of_squares, grid.per_volume, sizeof(Moments) / sizeof(double));
    if (threadIdx.x == 0) {
      rule.finite = isfinite(peak);
      rule.threshold = selection_threshold(sum, squares, voxels, peak, args.rule, v);
      work.rules[v] = rule;
    }
  }
}

template <int kVector, bool kPrescale>
__global__ void __launch_bounds__(kBlock, 3)
    apply_mask(const __grid_constant__ SelectiveRelevanceArgs args, const __grid_constant__ Workspace work) {
  const MarchGrid& grid = work.grid;
  const int64_t voxels = args.size.t * args.size.h * args.size.w;
  for (int64_t item = blockIdx.x; item < grid.items; item += gridDim.x) {
    const int64_t v = item / grid.per_volume;
    const VolumeRule rule = work.rules[v];
    const Prescale<kPrescale> prescale{rule};
    const Side side(args.rule.sign);
    float* motion = args.motion + v * voxels;
    float total = 0, kept = 0;
    march<kVector>(grid, item, args.volume + v * voxels, args.rule.padding, prescale,
                   [&](int64_t index, const auto& raw, const auto& derivative) {
      Pack<float, kVector> moving;
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const float value = prescale(raw.value[i]);
        const bool keep = side(derivative.value[i]) > rule.threshold;
        moving.value[i] = !rule.finite ? NAN : keep ? value : 0.0f;
        total += fabsf(value);
        kept += keep ? fabsf(value) : 0.0f;
      }
      moving.store(motion + index);
    });
    if (!rule.finite) total = kept = NAN;
    const double sum = block_reduce(static_cast<double>(total), Sum());
    const double sum_kept = block_reduce(static_cast<double>(kept), Sum());
    if (threadIdx.x == 0) work.share[item] = {sum, sum_kept};
    if (!is_last_block(&work.arrived[v].share, static_cast<unsigned>(grid.per_volume))) continue;
    const float share = join_share(work.share + v * grid.per_volume, grid.per_volume);
    if (threadIdx.x == 0) args.motion_share[v] = share;
  }
}

template <int kVector, bool kPrescale>
void launch(const SelectiveRelevanceArgs& args, const Workspace& work, cudaStream_t stream) {
  const char* op = "selective_relevance";
  const unsigned blocks = grid_for(work.grid.items);
  check(op, "its counters must be cleared", cudaMemsetAsync(work.arrived, 0, args.volumes * sizeof(Arrived), stream));
  if (kPrescale) {
    find_prescale<<<blocks, kBlock, 0, stream>>>(args, work);
    check_launch(op, "find_prescale");
  }
  find_moments<kVector, kPrescale><<<blocks, kBlock, 0, stream>>>(args, work);
  check_launch(op, "find_moments");
  apply_mask<kVector, kPrescale><<<blocks, kBlock, 0, stream>>>(args, work);
  check_launch(op, "apply_mask");
}

}  // namespace

size_t selective_relevance_cuda_workspace(const SelectiveRelevanceArgs& args) {
  return Workspace(args, nullptr).carver.used();
}

void selective_relevance_cuda(const SelectiveRelevanceArgs& args, void* workspace, cudaStream_t stream) {
  if (args.volumes == 0) return;
  const Workspace work(args, workspace);
  const bool wide = work.vector == 4;
  if (args.prescale) return wide ? launch<4, true>(args, work, stream) : launch<1, true>(args, work, stream);
  return wide ? launch<4, false>(args, work, stream) : launch<1, false>(args, work, stream);
}

}  // namespace clipsight
