// channel_reduce in CUDA. Two bodies, one per memory layout; both read each feature once per group of four maps, sum
// in float32 over short chains and join the chains in a fixed tree: the same input gives the same bits.
#include "core/cuda_check.h"
#include "ops/channel_reduce_cuda.h"

namespace clipsight {
namespace {

constexpr int kThreads = 512;
constexpr int kMaps = 4;   // maps that share one read of the features
constexpr int kWarp = 32;

/// Number of maps in the group that starts at map m.
__device__ int group_size(int64_t maps, int64_t m) { return maps - m < kMaps ? static_cast<int>(maps - m) : kMaps; }

/// Contiguous features [N, C, S]: a block owns kTile positions of s; its threads are [kThreads / kTile, kTile].
///
///   thread (c0, s): acc[m] = sum over c = c0, c0 + rows, ... of gate(w[m, c]) * features[c, s]
template <class T, int kTile>
__global__ void __launch_bounds__(kThreads) reduce_contiguous(ChannelReduceArgs args, int64_t items) {
  constexpr int kRows = kThreads / kTile;
  __shared__ float partial[kMaps][kRows][kTile];

  const int column = threadIdx.x % kTile;
  const int row = threadIdx.x / kTile;
  const int64_t tiles = ceil_div(args.spatial, kTile);
  const int64_t groups = ceil_div(args.maps, kMaps);

  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t s = item % tiles * kTile + column;
    const int64_t m = item / tiles % groups * kMaps;
    const int64_t n = item / (tiles * groups);
    const int maps = group_size(args.maps, m);
    const T* features = static_cast<const T*>(args.features) + n * args.stride_n + s;
    const float* weight = args.weight + n * args.weight_stride_n + m * args.channels;

    float acc[kMaps] = {};
    if (s < args.spatial) {
#pragma unroll 4
      for (int64_t c = row; c < args.channels; c += kRows) {
        const float feature = to_float(features[c * args.stride_c]);
#pragma unroll
        for (int k = 0; k < kMaps; ++k) {
          if (k < maps) {
            acc[k] = fmaf(gate(weight[k * args.channels + c], args.threshold), feature, acc[k]);
          }
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kMaps; ++k) partial[k][row][column] = acc[k];
    __syncthreads();
    for (int half = kRows / 2; half > 0; half /= 2) {
      if (row < half) {
#pragma unroll
        for (int k = 0; k < kMaps; ++k) partial[k][row][column] += partial[k][row + half][column];
      }
      __syncthreads();
    }
    if (row < maps && s < args.spatial) {
      args.cam[(n * args.maps + m + row) * args.spatial + s] = partial[row][0][column];
    }
    __syncthreads();  // the next item overwrites `partial`
  }
}

/// Channels-last features [N, S, C]: one warp per position, lanes side by side along C, kVector channels at a time.
template <class T, int kVector>
__global__ void __launch_bounds__(kThreads) reduce_channels_last(ChannelReduceArgs args, int64_t items) {
  constexpr int kWeights = kVector < 4 ? kVector : 4;  // 16 bytes of weights at a time
  struct alignas(kVector * sizeof(T)) Features { T value[kVector]; };
  struct alignas(kWeights * sizeof(float)) Weights { float value[kWeights]; };

  const int lane = threadIdx.x % kWarp;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  const int64_t groups = ceil_div(args.maps, kMaps);

  for (int64_t item = warp; item < items; item += warps) {
    const int64_t s = item % args.spatial;
    const int64_t m = item / args.spatial % groups * kMaps;
    const int64_t n = item / (args.spatial * groups);
    const int maps = group_size(args.maps, m);
    const T* features = static_cast<const T*>(args.features) + n * args.stride_n + s * args.stride_s;
    const float* weight = args.weight + n * args.weight_stride_n + m * args.channels;

    float acc[kMaps] = {};
#pragma unroll 2
    for (int64_t c = lane * kVector; c < args.channels; c += kWarp * kVector) {
      const Features feature = *reinterpret_cast<const Features*>(features + c);
#pragma unroll
      for (int k = 0; k < kMaps; ++k) {
        if (k < maps) {
#pragma unroll
          for (int i = 0; i < kVector; i += kWeights) {
            const Weights w = *reinterpret_cast<const Weights*>(weight + k * args.channels + c + i);
#pragma unroll
            for (int j = 0; j < kWeights; ++j) {
              acc[k] = fmaf(gate(w.value[j], args.threshold), to_float(feature.value[i + j]), acc[k]);
            }
          }
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kMaps; ++k) {
      for (int step = kWarp / 2; step > 0; step /= 2) acc[k] += __shfl_xor_sync(0xffffffffu, acc[k], step);
      if (lane == 0 && k < maps) args.cam[(n * args.maps + m + k) * args.spatial + s] = acc[k];
    }
  }
}

template <class T>
void launch(const ChannelReduceArgs& args, cudaStream_t stream) {
  const int64_t groups = ceil_div(args.maps, kMaps);
  const bool channels_last = args.stride_c == 1 && (args.stride_s != 1 || args.spatial == 1);
  if (channels_last) {
    constexpr int kVector = 16 / sizeof(T);
    const int64_t items = args.batch * groups * args.spatial;
    const unsigned grid = grid_for(ceil_div(items, kThreads / kWarp));
    const bool aligned = reinterpret_cast<uintptr_t>(args.features) % 16 == 0 &&
                         reinterpret_cast<uintptr_t>(args.weight) % 16 == 0 && args.channels % kVector == 0 &&
                         args.stride_s % kVector == 0 && args.stride_n % kVector == 0;
    if (aligned) {
      reduce_channels_last<T, kVector><<<grid, kThreads, 0, stream>>>(args, items);
    } else {
      reduce_channels_last<T, 1><<<grid, kThreads, 0, stream>>>(args, items);
    }
    check_launch("channel_reduce", "reduce_channels_last");
    return;
  }
  // Narrow tiles keep more multiprocessors busy where the batch is small.
  const int64_t wide = args.batch * groups * ceil_div(args.spatial, 32);
  if (wide >= 512) {
    reduce_contiguous<T, 32><<<grid_for(wide), kThreads, 0, stream>>>(args, wide);
  } else {
    const int64_t narrow = args.batch * groups * ceil_div(args.spatial, 8);
    reduce_contiguous<T, 8><<<grid_for(narrow), kThreads, 0, stream>>>(args, narrow);
  }
  check_launch("channel_reduce", "reduce_contiguous");
}

}  // namespace

size_t channel_reduce_cuda_workspace(const ChannelReduceArgs&) { return 0; }

void channel_reduce_cuda(const ChannelReduceArgs& args, void*, cudaStream_t stream) {
  if (args.batch == 0 || args.maps == 0 || args.spatial == 0) return;
  switch (args.features_dtype) {
    case DType::float32: return launch<float>(args, stream);
    case DType::float16: return launch<__half>(args, stream);
    case DType::bfloat16: return launch<__nv_bfloat16>(args, stream);
    default: throw std::invalid_argument("channel_reduce: features must be float32, float16 or bfloat16, got another");
  }
}

}  // namespace clipsight
