// channel_reduce in CUDA. Two bodies, one per memory layout; both read each feature once per group of maps, with many
// loads in flight, sum in float32 over short chains and join the chains in a fixed tree: the same input gives the same
// bits.
#include "core/cuda_check.h"
#include "core/pack_cuda.h"
#include "ops/channel_reduce_cuda.h"

namespace clipsight {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr unsigned kAll = 0xffffffffu;
constexpr int kFewBlocks = 132;  // about as many as a large device has multiprocessors: fewer leave some idle

/// Number of maps in the group that starts at map m.
template <int kMaps>
__device__ int group_size(int64_t maps, int64_t m) { return maps - m < kMaps ? static_cast<int>(maps - m) : kMaps; }

/// Contiguous features [N, C, S] as blocks of `packs` packs side by side, the other threads along C; `columns` is the
/// power of two that covers them.
struct Tiles {
  int64_t packs_of_row, tiles, groups, items;
  int packs, columns;
};

///   thread (row, column): sum[m][i] = sum over c = row, row + rows, ... of gate(w[m, c]) * features[c, s + i]
template <class T, int kVector, int kMaps>
__global__ void __launch_bounds__(kThreads, kMaps == 1 ? 3 : 2)  // registers for all loads, else they go one by one
    reduce_contiguous(const __grid_constant__ ChannelReduceArgs args, const __grid_constant__ Tiles tiles) {
  constexpr int kAhead = kMaps == 1 ? 8 : 2;  // loads of features in flight; each brings its weights
  using Features = Pack<T, kVector>;
  __shared__ float of_warp[kWarps][kWarp * kVector];

  const int column = threadIdx.x % tiles.columns, row = threadIdx.x / tiles.columns, rows = kThreads / tiles.columns;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int64_t item = blockIdx.x; item < tiles.items; item += gridDim.x) {
    const int64_t pack = item % tiles.tiles * tiles.packs + column;
    const int64_t m = item / tiles.tiles % tiles.groups * kMaps;
    const int64_t n = item / (tiles.tiles * tiles.groups);
    const int maps = group_size<kMaps>(args.maps, m);
    const bool active = column < tiles.packs && pack < tiles.packs_of_row;
    const T* features = static_cast<const T*>(args.features) + n * args.stride_n + pack * kVector;
    const float* weight = args.weight + n * args.weight_stride_n + m * args.channels;

    float sum[kMaps][kVector] = {};
    const auto add = [&](const Features& feature, const float (&w)[kMaps]) {
#pragma unroll
      for (int k = 0; k < kMaps; ++k) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          sum[k][i] = fmaf(gate(w[k], args.threshold), to_float(feature.value[i]), sum[k][i]);
        }
      }
    };
    // Without a branch, so that all loads can be on their way at once: maps beyond the last have the weights of that.
    const auto load_weights = [&](int64_t c, float (&w)[kMaps]) {
#pragma unroll
      for (int k = 0; k < kMaps; ++k) w[k] = __ldg(weight + (k < maps ? k : maps - 1) * args.channels + c);
    };
    if (active) {
      int64_t c = row;
      for (; c + (kAhead - 1) * rows < args.channels; c += kAhead * rows) {
        Features feature[kAhead];
        float w[kAhead][kMaps];
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
          feature[a] = Features::load(features + (c + a * rows) * args.stride_c);
          load_weights(c + a * rows, w[a]);
        }
#pragma unroll
        for (int a = 0; a < kAhead; ++a) add(feature[a], w[a]);
      }
      for (; c < args.channels; c += rows) {
        float w[kMaps];
        load_weights(c, w);
        add(Features::load(features + c * args.stride_c), w);
      }
    }
#pragma unroll
    for (int k = 0; k < kMaps; ++k) {
      if (k >= maps) break;
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        float value = sum[k][i];
        for (int step = kWarp / 2; step >= tiles.columns; step /= 2) value += __shfl_xor_sync(kAll, value, step);
        if (lane < tiles.columns) of_warp[warp][lane * kVector + i] = value;
      }
      __syncthreads();
      const int s = static_cast<int>(threadIdx.x);
      const int64_t position = item % tiles.tiles * tiles.packs * kVector + s;
      if (s < tiles.packs * kVector && position < args.spatial) {
        float total = of_warp[0][s];
#pragma unroll
        for (int other = 1; other < kWarps; ++other) total += of_warp[other][s];
        args.cam[(n * args.maps + m + k) * args.spatial + position] = total;
      }
      __syncthreads();  // the next map overwrites of_warp
    }
  }
}

/// Channels-last features [N, S, C]: lanes side by side along C. A warp takes kPositions positions, which share the
/// weights, or, with kSplit, the block's warps share one.
template <class T, int kVector, int kPositions, bool kSplit, int kMaps>
__global__ void __launch_bounds__(kSplit ? 4 * kWarp : kThreads)
    reduce_channels_last(const __grid_constant__ ChannelReduceArgs args, int64_t items) {
  constexpr int kParts = kSplit ? 4 : 1;
  constexpr int kWeights = kVector < 4 ? kVector : 4;  // 16 bytes of weights at a time
  static_assert(!kSplit || kPositions == 1, "warps that share a position have one");
  __shared__ float of_warp[kParts][kMaps];

  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t first = kSplit ? blockIdx.x : blockIdx.x * static_cast<int64_t>(kWarps) + warp;
  const int64_t stride = kSplit ? gridDim.x : gridDim.x * static_cast<int64_t>(kWarps);
  const int64_t tiles = ceil_div(args.spatial, kPositions), groups = ceil_div(args.maps, kMaps);

  for (int64_t item = first; item < items; item += stride) {
    const int64_t s = item % tiles * kPositions;
    const int64_t m = item / tiles % groups * kMaps;
    const int64_t n = item / (tiles * groups);
    const int maps = group_size<kMaps>(args.maps, m);
    const T* features = static_cast<const T*>(args.features) + n * args.stride_n;
    const float* weight = args.weight + n * args.weight_stride_n + m * args.channels;
    const T* at[kPositions];  // the last position stands in for those beyond the end
#pragma unroll
    for (int p = 0; p < kPositions; ++p) {
      at[p] = features + (s + p < args.spatial ? s + p : args.spatial - 1) * args.stride_s;
    }

    float sum[kPositions][kMaps] = {};
#pragma unroll(kMaps == 1 ? 4 : 1)
    for (int64_t c = ((kSplit ? warp : 0) * kWarp + lane) * kVector; c < args.channels; c += kParts * kWarp * kVector) {
      Pack<T, kVector> feature[kPositions];
#pragma unroll
      for (int p = 0; p < kPositions; ++p) feature[p] = Pack<T, kVector>::load(at[p] + c);
#pragma unroll
      for (int k = 0; k < kMaps; ++k) {  // maps beyond the last have the weights of that, without a branch
#pragma unroll
        for (int i = 0; i < kVector; i += kWeights) {
          const auto w = Pack<float, kWeights>::load(weight + (k < maps ? k : maps - 1) * args.channels + c + i);
#pragma unroll
          for (int j = 0; j < kWeights; ++j) {
            const float gated = gate(w.value[j], args.threshold);
#pragma unroll
            for (int p = 0; p < kPositions; ++p) {
              sum[p][k] = fmaf(gated, to_float(feature[p].value[i + j]), sum[p][k]);
            }
          }
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kMaps; ++k) {
      if (k >= maps) break;
#pragma unroll
      for (int p = 0; p < kPositions; ++p) {
        float value = sum[p][k];
        for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAll, value, step);
        if (kSplit && lane == 0) of_warp[kSplit ? warp : 0][k] = value;
        if (!kSplit && lane == 0 && s + p < args.spatial) {
          args.cam[(n * args.maps + m + k) * args.spatial + s + p] = value;
        }
      }
    }
    if (kSplit) {
      __syncthreads();
      const int k = static_cast<int>(threadIdx.x);
      if (k < maps) {
        float total = of_warp[0][k];
#pragma unroll
        for (int part = 1; part < kParts; ++part) total += of_warp[part][k];
        args.cam[(n * args.maps + m + k) * args.spatial + s] = total;
      }
      __syncthreads();  // the next item overwrites of_warp
    }
  }
}

template <class T, int kVector, int kMaps>
void launch_contiguous(const ChannelReduceArgs& args, cudaStream_t stream) {
  Tiles tiles{};
  tiles.packs_of_row = ceil_div(args.spatial, kVector);
  tiles.groups = ceil_div(args.maps, kMaps);
  // Tiles of one length as far as the row allows. Narrow ones keep more multiprocessors busy where the batch is small.
  for (int64_t widest = 8; ; widest /= 2) {
    tiles.packs = static_cast<int>(ceil_div(tiles.packs_of_row, ceil_div(tiles.packs_of_row, widest)));
    tiles.tiles = ceil_div(tiles.packs_of_row, tiles.packs);
    tiles.items = args.batch * tiles.groups * tiles.tiles;
    if (widest == 1 || tiles.items >= kFewBlocks) break;
  }
  for (tiles.columns = 1; tiles.columns < tiles.packs;) tiles.columns *= 2;
  reduce_contiguous<T, kVector, kMaps><<<grid_for(tiles.items), kThreads, 0, stream>>>(args, tiles);
  check_launch("channel_reduce", "reduce_contiguous");
}

template <class T, int kVector, int kMaps>
void launch_channels_last(const ChannelReduceArgs& args, cudaStream_t stream) {
  constexpr int kPositions = 4;
  const int64_t groups = args.batch * ceil_div(args.maps, kMaps);
  const int64_t items = groups * ceil_div(args.spatial, kPositions);
  if (ceil_div(items, kWarps) >= kFewBlocks) {
    const unsigned grid = grid_for(ceil_div(items, kWarps));
    reduce_channels_last<T, kVector, kPositions, false, kMaps><<<grid, kThreads, 0, stream>>>(args, items);
  } else {
    const int64_t positions = groups * args.spatial;
    const unsigned grid = grid_for(positions);
    reduce_channels_last<T, kVector, 1, true, kMaps><<<grid, 4 * kWarp, 0, stream>>>(args, positions);
  }
  check_launch("channel_reduce", "reduce_channels_last");
}

template <class T, int kMaps>
void launch_maps(const ChannelReduceArgs& args, cudaStream_t stream) {
  constexpr int kWide = 16 / sizeof(T);
  const auto fits = [&](int64_t vector, int64_t row_stride, int64_t length) {
    return length % vector == 0 && row_stride % vector == 0 && args.stride_n % vector == 0 &&
           aligned(args.features, vector * sizeof(T));
  };
  if (args.stride_c == 1 && (args.stride_s != 1 || args.spatial == 1)) {
    if (fits(kWide, args.stride_s, args.channels) && aligned(args.weight, 16)) {
      return launch_channels_last<T, kWide, kMaps>(args, stream);
    }
    return launch_channels_last<T, 1, kMaps>(args, stream);
  }
  constexpr int kPack = kMaps == 1 ? kWide : 4;  // more would leave too few registers for loads in flight
  if (fits(kPack, args.stride_c, args.spatial)) return launch_contiguous<T, kPack, kMaps>(args, stream);
  if (fits(kPack / 2, args.stride_c, args.spatial)) return launch_contiguous<T, kPack / 2, kMaps>(args, stream);
  return launch_contiguous<T, 1, kMaps>(args, stream);
}

template <class T>
void launch(const ChannelReduceArgs& args, cudaStream_t stream) {
  return args.maps == 1 ? launch_maps<T, 1>(args, stream) : launch_maps<T, 8>(args, stream);
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
