// back_step in CUDA: one kernel finds the edges, another counts them. No atomics: the counts are whole numbers in any
// order, but adding them in a block keeps the traffic down.
#include "ops/back_step_cuda.h"

#include "core/cuda_check.h"

namespace clipsight {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAll = 0xffffffffu;

/// One warp per row of one sample. Of a row that no class selects nothing is read. Intrinsics keep the product and the
/// subtraction apart, which the compiler would fuse.
template <class T>
__global__ void __launch_bounds__(kThreads) keep_edges(BackStepArgs args, int64_t items) {
  const int lane = threadIdx.x % kWarp;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  for (int64_t item = first; item < items; item += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t n = item / args.out_channels, i = item % args.out_channels;
    const int64_t group = i / (args.out_channels / args.groups);
    const float* pooled = args.pooled + (n * args.groups + group) * args.width;
    const T* kernel = static_cast<const T*>(args.kernel) + i * args.width;
    const auto product = [=](int64_t j) { return __fmul_rn(pooled[j], to_float(kernel[j])); };
    const auto row_of = [&](int64_t m) { return (n * args.maps + m) * args.out_channels + i; };

    bool wanted = false;
    for (int64_t m = lane; m < args.maps; m += kWarp) wanted = wanted || args.selected[row_of(m)];
    float low = INFINITY, limit = 0.0f;
    if (__any_sync(kAll, wanted)) {
      float high = -INFINITY;
      bool nan = false;
#pragma unroll 4
      for (int64_t j = lane; j < args.width; j += kWarp) {
        const float s = product(j);
        low = fminf(low, s);
        high = fmaxf(high, s);
        nan = nan || isnan(s);
      }
      for (int step = kWarp / 2; step > 0; step /= 2) {
        low = fminf(low, __shfl_xor_sync(kAll, low, step));
        high = fmaxf(high, __shfl_xor_sync(kAll, high, step));
      }
      limit = __any_sync(kAll, nan) ? NAN : back_step_limit(low, high, args.theta);
    }
    for (int64_t m = 0; m < args.maps; ++m) {
      const bool selected = args.selected[row_of(m)];
      uint8_t* edges = args.edges + row_of(m) * args.width;
#pragma unroll 4
      for (int64_t j = lane; j < args.width; j += kWarp) edges[j] = selected && __fsub_rn(product(j), low) >= limit;
    }
  }
}

/// One block per 32 neighbouring channels of one group; its warps share the group's rows.
__global__ void __launch_bounds__(kThreads) count_edges(BackStepArgs args, int64_t tiles, int64_t items) {
  __shared__ int of_warp[kWarps][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t rows = args.out_channels / args.groups;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t j = item % tiles * kWarp + lane, group = item / tiles;  // of all samples and classes
    int count = 0;
    if (j < args.width) {
#pragma unroll 4
      for (int64_t row = group * rows + warp; row < (group + 1) * rows; row += kWarps) {
        if (args.selected[row]) count += args.edges[row * args.width + j];
      }
    }
    of_warp[warp][lane] = count;
    __syncthreads();
    if (warp == 0 && j < args.width) {
      for (int other = 1; other < kWarps; ++other) count += of_warp[other][lane];
      args.multiplicity[group * args.width + j] = static_cast<float>(count);
    }
    __syncthreads();  // the next item overwrites of_warp
  }
}

template <class T>
void launch(const BackStepArgs& args, cudaStream_t stream) {
  const int64_t rows = args.batch * args.out_channels;
  keep_edges<T><<<grid_for(ceil_div(rows, kWarps)), kThreads, 0, stream>>>(args, rows);
  check_launch("back_step", "keep_edges");
  const int64_t tiles = ceil_div(args.width, kWarp), items = args.batch * args.maps * args.groups * tiles;
  count_edges<<<grid_for(items), kThreads, 0, stream>>>(args, tiles, items);
  check_launch("back_step", "count_edges");
}

}  // namespace

size_t back_step_cuda_workspace(const BackStepArgs&) { return 0; }

void back_step_cuda(const BackStepArgs& args, void*, cudaStream_t stream) {
  if (args.batch == 0 || args.maps == 0) return;
  switch (args.kernel_dtype) {
    case DType::float32: return launch<float>(args, stream);
    case DType::float16: return launch<__half>(args, stream);
    case DType::bfloat16: return launch<__nv_bfloat16>(args, stream);
    default: throw std::invalid_argument("back_step: kernel must be float32, float16 or bfloat16, got another");
  }
}

}  // namespace clipsight
