// back_step in CUDA: one kernel finds the limit of each row that a class selects, another writes the edges and counts
// them. The counts are whole numbers below 2^24, exact in float32 in whatever order blocks add them.
#include "ops/back_step_cuda.h"

#include "core/cuda_check.h"
#include "core/pack_cuda.h"

namespace clipsight {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAll = 0xffffffffu;
constexpr int64_t kRows = 32;  // that one block of keep_edges walks through

/// What s - low of a row must reach.
struct Limit {
  float low, limit;
};

/// The products of a pack. Intrinsics keep them and the subtraction that follows apart, which the compiler would fuse.
template <class T, int kVector>
__device__ void multiply(const Pack<float, kVector>& pooled, const T* kernel, float (&s)[kVector]) {
  const auto weight = Pack<T, kVector>::load(kernel);
#pragma unroll
  for (int i = 0; i < kVector; ++i) s[i] = __fmul_rn(pooled.value[i], to_float(weight.value[i]));
}

/// One warp per row of one sample. Of a row that no class selects nothing is read. Clears the counts by the way.
template <class T, int kVector>
__global__ void __launch_bounds__(kThreads)
    find_limits(const __grid_constant__ BackStepArgs args, int64_t items, Limit* limits) {
  const int64_t counts = args.batch * args.maps * args.groups * args.width, threads = int64_t{gridDim.x} * kThreads;
  for (int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x; c < counts; c += threads) args.multiplicity[c] = 0;

  const int lane = threadIdx.x % kWarp;
  for (int64_t item = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp; item < items; item += threads / kWarp) {
    const int64_t n = item / args.out_channels, i = item - n * args.out_channels;
    bool wanted = false;
    for (int64_t m = lane; m < args.maps; m += kWarp) {
      wanted = wanted || args.selected[(n * args.maps + m) * args.out_channels + i];
    }
    if (!__any_sync(kAll, wanted)) continue;
    const int64_t group = i / (args.out_channels / args.groups);
    const float* pooled = args.pooled + (n * args.groups + group) * args.width;
    const T* kernel = static_cast<const T*>(args.kernel) + i * args.width;
    float low = INFINITY, high = -INFINITY;
    bool nan = false;
#pragma unroll 4
    for (int64_t j = lane * kVector; j < args.width; j += kWarp * kVector) {
      float s[kVector];
      multiply<T, kVector>(Pack<float, kVector>::load(pooled + j), kernel + j, s);
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        low = fminf(low, s[k]);
        high = fmaxf(high, s[k]);
        nan = nan || isnan(s[k]);
      }
    }
    for (int step = kWarp / 2; step > 0; step /= 2) {
      low = fminf(low, __shfl_xor_sync(kAll, low, step));
      high = fmaxf(high, __shfl_xor_sync(kAll, high, step));
    }
    nan = __any_sync(kAll, nan);
    if (lane == 0) limits[item] = {low, nan ? NAN : back_step_limit(low, high, args.theta)};
  }
}

/// One block per kRows rows of one sample and class, and a tile of channels: a thread keeps its channels' activations
/// and counts in registers.
template <class T, int kVector>
__global__ void __launch_bounds__(kThreads) keep_edges(const __grid_constant__ BackStepArgs args, int64_t tiles,
                                                       int64_t pieces, int64_t items, const Limit* limits) {
  const int64_t rows = args.out_channels / args.groups;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t tile = item % tiles, piece = item / tiles % pieces, of = item / (tiles * pieces);
    const int64_t group = of % args.groups, map = of / args.groups, n = map / args.maps;  // `map` of all samples
    const int64_t j = (tile * kThreads + threadIdx.x) * kVector;
    if (j >= args.width) continue;
    const auto pooled = Pack<float, kVector>::load(args.pooled + (n * args.groups + group) * args.width + j);
    const int64_t begin = piece * kRows, end = begin + kRows < rows ? begin + kRows : rows;
    int count[kVector] = {};
#pragma unroll 4
    for (int64_t row = group * rows + begin; row < group * rows + end; ++row) {
      const int64_t from = map * args.out_channels + row;
      Pack<uint8_t, kVector> edges{};
      if (args.selected[from]) {
        const Limit limit = limits[n * args.out_channels + row];
        float s[kVector];
        multiply<T, kVector>(pooled, static_cast<const T*>(args.kernel) + row * args.width + j, s);
#pragma unroll
        for (int k = 0; k < kVector; ++k) {
          edges.value[k] = __fsub_rn(s[k], limit.low) >= limit.limit;
          count[k] += edges.value[k];
        }
      }
      edges.store(args.edges + from * args.width + j);
    }
    float* counts = args.multiplicity + (map * args.groups + group) * args.width + j;
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      if (count[k] != 0) atomicAdd(counts + k, static_cast<float>(count[k]));
    }
  }
}

template <class T, int kVector>
void launch(const BackStepArgs& args, Limit* limits, cudaStream_t stream) {
  const int64_t rows = args.batch * args.out_channels;
  find_limits<T, kVector><<<grid_for(ceil_div(rows, kWarps)), kThreads, 0, stream>>>(args, rows, limits);
  check_launch("back_step", "find_limits");
  const int64_t tiles = ceil_div(args.width, kThreads * kVector);
  const int64_t pieces = ceil_div(args.out_channels / args.groups, kRows);
  const int64_t items = args.batch * args.maps * args.groups * tiles * pieces;
  keep_edges<T, kVector><<<grid_for(items), kThreads, 0, stream>>>(args, tiles, pieces, items, limits);
  check_launch("back_step", "keep_edges");
}

template <class T>
void launch(const BackStepArgs& args, Limit* limits, cudaStream_t stream) {
  const bool wide = args.width % 4 == 0 && aligned(args.pooled, 16) && aligned(args.kernel, 4 * sizeof(T)) &&
                    aligned(args.edges, 4);
  return wide ? launch<T, 4>(args, limits, stream) : launch<T, 1>(args, limits, stream);
}

}  // namespace

size_t back_step_cuda_workspace(const BackStepArgs& args) {
  return static_cast<size_t>(args.batch * args.out_channels) * sizeof(Limit);
}

void back_step_cuda(const BackStepArgs& args, void* workspace, cudaStream_t stream) {
  if (args.batch == 0 || args.maps == 0) return;
  auto* limits = static_cast<Limit*>(workspace);
  switch (args.kernel_dtype) {
    case DType::float32: return launch<float>(args, limits, stream);
    case DType::float16: return launch<__half>(args, limits, stream);
    case DType::bfloat16: return launch<__nv_bfloat16>(args, limits, stream);
    default: throw std::invalid_argument("back_step: kernel must be float32, float16 or bfloat16, got another");
  }
}

}  // namespace clipsight
