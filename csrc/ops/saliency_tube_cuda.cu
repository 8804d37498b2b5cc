// saliency_tube and selective_tube in CUDA: a range pass that writes nothing, then a pass that writes each voxel once.
//
//   plan (spline_plan_cuda.cu): coefficients of each map, banded matrices, moments of the derivative
//   a block = one tile of rows of one frame:
//     coefficients [t, h, w] --t and h stages, float64--> rows of [w] in shared memory --w stage--> voxels in registers
//
// Both passes compute R by the same operations in the same order, so the range holds for the bits that are written.
#include <cuda_fp16.h>

#include <cmath>

#include "ops/motion_share_cuda.h"
#include "ops/saliency_tube_cuda.h"
#include "ops/spline_plan_cuda.h"

namespace clipsight {
namespace {

constexpr int64_t kSharedBytes = 40 * 1024;  // rows in shared memory; leaves room for the block reductions

/// How the output is cut into blocks and threads.
struct Tiling {
  int64_t per_frame, items;  // tiles of a frame; of all volumes
  int rows;                  // of a tile
  int pitch;                 // floats of one row of coefficients, and what the widest band reads beyond it (zeros)
  int columns;               // threads side by side along w; the others take the next rows

  size_t shared_bytes(bool selective) const { return (selective ? 2 : 1) * sizeof(float) * rows * pitch; }
};

struct Tile {
  int64_t volume, frame, row;  // the first row
  int rows;

  __device__ Tile(const SplinePlan& plan, const Tiling& tiling, int64_t item) {
    const int64_t tile = item % tiling.per_frame;
    frame = item / tiling.per_frame % plan.out.t;
    volume = item / (tiling.per_frame * plan.out.t);
    row = tile * tiling.rows;
    rows = plan.out.h - row < tiling.rows ? static_cast<int>(plan.out.h - row) : tiling.rows;
  }
};

/// The t and h stages: coefficients along w of each row of the tile, zero from in.w to the pitch.
/// Bands may be wider than the axis; the weights there are zero, so any coefficient serves.
__device__ void stage_rows(const SplinePlan& plan, const Band (&band)[3], const Tile& tile, int pitch, float* rows) {
  const Shape3 in = plan.in;
  const double* coefficients = plan.coefficients + tile.volume * (in.t * in.h * in.w);
  const double* weight_t = band[0].weight + tile.frame * band[0].width;
  const int64_t first_t = band[0].first[tile.frame];
  for (int e = threadIdx.x; e < tile.rows * pitch; e += kBlock) {
    const int column = e % pitch;
    const int64_t row = tile.row + e / pitch;
    double sum = 0;
    if (column < in.w) {
      const double* weight_h = band[1].weight + row * band[1].width;
      const int64_t first_h = band[1].first[row];
      for (int a = 0; a < band[0].width; ++a) {
        const int64_t t = first_t + a < in.t ? first_t + a : in.t - 1;
        double line = 0;
        for (int b = 0; b < band[1].width; ++b) {
          const int64_t h = first_h + b < in.h ? first_h + b : in.h - 1;
          line = fma(weight_h[b], coefficients[(t * in.h + h) * in.w + column], line);
        }
        sum = fma(weight_t[a], line, sum);
      }
    }
    rows[e] = static_cast<float>(sum);
  }
}

/// The w stage of one output column; its weights stay in registers.
template <int kWidth>
struct Taps {
  int first;
  float weight[kWidth];

  __device__ void load(const Band& band, int64_t x) {
    first = band.first[x];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) weight[k] = band.weight32[x * kWidth + k];
  }
  __device__ float operator()(const float* row) const {
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum = fmaf(weight[k], row[first + k], sum);
    return sum;
  }
};

/// The same for a band of any width, which an axis that shrinks has.
template <>
struct Taps<0> {
  int first, width;
  const float* weight;

  __device__ void load(const Band& band, int64_t x) {
    first = band.first[x];
    width = band.width;
    weight = band.weight32 + x * width;
  }
  __device__ float operator()(const float* row) const {
    float sum = 0;
    for (int k = 0; k < width; ++k) sum = fmaf(weight[k], row[first + k], sum);
    return sum;
  }
};

/// Minimum and maximum of R over each volume (and frame). With kAbsolute also sum |G|, one partial sum per tile.
template <bool kAbsolute>
__global__ void __launch_bounds__(kBlock)
    find_range(const __grid_constant__ SplinePlan plan, const __grid_constant__ Tiling tiling, double* absolute) {
  extern __shared__ float rows_of_map[];
  float* rows_of_derivative = rows_of_map + tiling.rows * tiling.pitch;
  const int column = threadIdx.x % tiling.columns, first_row = threadIdx.x / tiling.columns;

  for (int64_t item = blockIdx.x; item < tiling.items; item += gridDim.x) {
    const Tile tile(plan, tiling, item);
    if (!plan.state[tile.volume].finite) continue;
    stage_rows(plan, plan.map, tile, tiling.pitch, rows_of_map);
    if (kAbsolute) stage_rows(plan, plan.derivative, tile, tiling.pitch, rows_of_derivative);
    __syncthreads();

    float low = INFINITY, high = -INFINITY, sum = 0;
    for (int64_t x = column; x < plan.out.w; x += tiling.columns) {
      Taps<kMapWidth> map;
      Taps<0> derivative;
      map.load(plan.map[2], x);
      if (kAbsolute) derivative.load(plan.derivative[2], x);
      for (int r = first_row; r < tile.rows; r += kBlock / tiling.columns) {
        const float value = map(rows_of_map + r * tiling.pitch);
        low = fminf(low, value);
        high = fmaxf(high, value);
        if (kAbsolute) sum += fabsf(derivative(rows_of_derivative + r * tiling.pitch));
      }
    }
    low = block_reduce(low, Min());
    high = block_reduce(high, Max());
    if (threadIdx.x == 0) {
      extend(&plan.state[tile.volume].range, low, high);
      if (plan.framewise) extend(&plan.frames[tile.volume * plan.out.t + tile.frame], low, high);
    }
    if (kAbsolute) {
      const double total = block_reduce(static_cast<double>(sum), Sum());
      if (threadIdx.x == 0) absolute[item] = total;
    }
  }  // block_reduce ends in a barrier: the rows are free for the next tile
}

/// state.sum = sum |G| of each finite volume, from its tiles in a fixed order.
__global__ void __launch_bounds__(kBlock)
    join_absolute(const __grid_constant__ SplinePlan plan, const double* absolute, int64_t tiles) {
  for (int64_t v = blockIdx.x; v < plan.volumes; v += gridDim.x) {
    if (!plan.state[v].finite) continue;
    double sum = 0;
    for (int64_t i = threadIdx.x; i < tiles; i += kBlock) sum += absolute[v * tiles + i];
    sum = block_reduce(sum, Sum());
    if (threadIdx.x == 0) plan.state[v].sum = sum;
  }
}

/// Turns a raw value into the output type; also what stands where a map is not finite.
template <class T>
struct Convert;
template <>
struct Convert<float> {
  __device__ static float from(float x) { return x; }
  __device__ static float blank() { return NAN; }
};
template <>
struct Convert<__half> {
  __device__ static __half from(float x) { return __float2half_rn(x); }
  __device__ static __half blank() { return __float2half_rn(NAN); }
};
template <>
struct Convert<unsigned char> {
  __device__ static unsigned char from(float x) { return quantise(x); }
  __device__ static unsigned char blank() { return 0; }
};

struct WriteArgs {
  Normalize normalize;
  SelectiveRule rule;
  void* tube;
  void* motion;
  ShareSums* share;  // [items]
};

/// kVector neighbouring columns per thread, stored at once; kDerivative is the width of the derivative's w band, or 0.
template <class T, int kVector, bool kSelective, int kDerivative>
__global__ void __launch_bounds__(kBlock)
    write(const __grid_constant__ SplinePlan plan, const __grid_constant__ Tiling tiling,
          const __grid_constant__ WriteArgs args) {
  struct alignas(kVector * sizeof(T)) Pack { T value[kVector]; };
  extern __shared__ float rows_of_map[];
  __shared__ Normaliser normaliser;
  __shared__ float threshold;
  float* rows_of_derivative = rows_of_map + tiling.rows * tiling.pitch;
  const int column = threadIdx.x % tiling.columns, first_row = threadIdx.x / tiling.columns;

  for (int64_t item = blockIdx.x; item < tiling.items; item += gridDim.x) {
    const Tile tile(plan, tiling, item);
    const VolumeState& state = plan.state[tile.volume];
    const float low = from_ordered(state.range.low), high = from_ordered(state.range.high);
    const bool ranged = kSelective || args.normalize != Normalize::none;
    // A map whose range overflows is as good as a non-finite one.
    const bool finite = state.finite != 0 && (!ranged || isfinite(high - low));
    if (finite) {
      stage_rows(plan, plan.map, tile, tiling.pitch, rows_of_map);
      if (kSelective) stage_rows(plan, plan.derivative, tile, tiling.pitch, rows_of_derivative);
    }
    if (threadIdx.x == 0) {
      const float largest = fmaxf(fabsf(low), fabsf(high));
      if (args.normalize == Normalize::clip) normaliser = make_normaliser(low, high, largest);
      if (args.normalize == Normalize::frame) {
        const Range frame = plan.frames[tile.volume * plan.out.t + tile.frame];
        normaliser = make_normaliser(from_ordered(frame.low), from_ordered(frame.high), largest);
      }
      if (kSelective) {
        threshold = selection_threshold(state.sum, state.sum_of_squares, plan.out.t * plan.out.h * plan.out.w,
                                        largest, args.rule, tile.volume);
      }
    }
    __syncthreads();

    const int64_t frame = (tile.volume * plan.out.t + tile.frame) * plan.out.h;
    float total = 0, kept = 0;
    for (int64_t x = static_cast<int64_t>(column) * kVector; x < plan.out.w; x += tiling.columns * kVector) {
      Taps<kMapWidth> map[kVector];
      Taps<kDerivative> derivative[kVector];
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        map[i].load(plan.map[2], x + i);
        if (kSelective) derivative[i].load(plan.derivative[2], x + i);
      }
      for (int r = first_row; r < tile.rows; r += kBlock / tiling.columns) {
        Pack tube, motion;
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          if (!finite) {
            tube.value[i] = motion.value[i] = Convert<T>::blank();
            continue;
          }
          const float value = map[i](rows_of_map + r * tiling.pitch);
          tube.value[i] = Convert<T>::from(args.normalize == Normalize::none ? value : normalise(value, normaliser));
          if (kSelective) {
            const bool keep = selected(derivative[i](rows_of_derivative + r * tiling.pitch), threshold, args.rule.sign);
            motion.value[i] = keep ? tube.value[i] : Convert<T>::from(0.0f);
            total += fabsf(value);
            kept += keep ? fabsf(value) : 0.0f;
          }
        }
        const int64_t index = (frame + tile.row + r) * plan.out.w + x;
        *reinterpret_cast<Pack*>(static_cast<T*>(args.tube) + index) = tube;
        if (kSelective) *reinterpret_cast<Pack*>(static_cast<T*>(args.motion) + index) = motion;
      }
    }
    if (kSelective) {
      if (!finite) total = kept = NAN;
      const double sum = block_reduce(static_cast<double>(total), Sum());
      const double sum_kept = block_reduce(static_cast<double>(kept), Sum());
      if (threadIdx.x == 0) args.share[item] = {sum, sum_kept};
    }
    __syncthreads();  // the next tile overwrites the rows
  }
}

/// Rows per tile: enough blocks to fill the device, few enough that their set-up does not count.
Tiling make_tiling(const char* op, const SplinePlan& plan) {
  const int widest = plan.selective ? std::max(kMapWidth, plan.derivative[2].width) : kMapWidth;
  const int64_t pitch = std::max<int64_t>(plan.in.w, widest);
  const int64_t row_bytes = (plan.selective ? 2 : 1) * static_cast<int64_t>(sizeof(float)) * pitch;
  const int64_t fitting = kSharedBytes / row_bytes;
  if (fitting == 0) {
    throw std::invalid_argument(std::string(op) + ": the map must have at most " +
                                std::to_string(kSharedBytes / (row_bytes / pitch)) +
                                " columns before up-sampling on CUDA, got " + std::to_string(plan.in.w));
  }
  const int64_t frames = plan.volumes * plan.out.t;
  const int64_t wanted = frames * ceil_div(plan.out.h, 32) >= 1024 ? 32 : 16;
  Tiling tiling{};
  tiling.rows = static_cast<int>(std::min({wanted, fitting, plan.out.h}));
  tiling.pitch = static_cast<int>(pitch);
  tiling.per_frame = ceil_div(plan.out.h, tiling.rows);
  tiling.items = frames * tiling.per_frame;
  return tiling;
}

/// The smallest power of two that covers the row, at most a block: it divides the block evenly.
int columns_for(int64_t width) {
  int columns = 1;
  while (columns < kBlock && columns < width) columns *= 2;
  return columns;
}

template <class T>
void launch_write(const char* op, const SplinePlan& plan, Tiling tiling, const WriteArgs& args, cudaStream_t stream) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % (4 * sizeof(T)) == 0; };
  const bool fast = plan.out.w % 4 == 0 && aligned(args.tube) && aligned(args.motion) &&
                    (!plan.selective || plan.derivative[2].width == kDerivativeWidth);
  tiling.columns = columns_for(fast ? plan.out.w / 4 : plan.out.w);
  const unsigned grid = grid_for(tiling.items);
  const size_t shared = tiling.shared_bytes(plan.selective);
  if (plan.selective && fast) {
    write<T, 4, true, kDerivativeWidth><<<grid, kBlock, shared, stream>>>(plan, tiling, args);
  } else if (plan.selective) {
    write<T, 1, true, 0><<<grid, kBlock, shared, stream>>>(plan, tiling, args);
  } else if (fast) {
    write<T, 4, false, 0><<<grid, kBlock, shared, stream>>>(plan, tiling, args);
  } else {
    write<T, 1, false, 0><<<grid, kBlock, shared, stream>>>(plan, tiling, args);
  }
  check_launch(op, "write");
}

/// The workspace of a call: the plan, and partial sums per tile.
struct Workspace {
  Workspace(const char* op, const SaliencyTubeArgs& args, const SelectiveRule* rule, void* base) : carver(base) {
    plan = make_plan(args, rule, carver);
    tiling = make_tiling(op, plan);
    if (rule == nullptr) return;
    share = carver.take<ShareSums>(tiling.items);
    if (rule->sigma_of == SigmaOf::absolute) absolute = carver.take<double>(tiling.items);
  }

  Carver carver;
  SplinePlan plan;
  Tiling tiling;
  ShareSums* share = nullptr;
  double* absolute = nullptr;
};

void run(const char* op, const SaliencyTubeArgs& args, const SelectiveRule* rule, void* motion, float* motion_share,
         void* workspace, cudaStream_t stream) {
  if (args.volumes == 0) return;
  Workspace work(op, args, rule, workspace);
  const SplinePlan& plan = work.plan;
  Tiling& tiling = work.tiling;
  prepare_plan(op, plan, args.cam, args.relu, stream);

  tiling.columns = columns_for(plan.out.w);
  const unsigned grid = grid_for(tiling.items);
  const bool absolute = rule != nullptr && rule->sigma_of == SigmaOf::absolute;
  if (absolute) {
    find_range<true><<<grid, kBlock, tiling.shared_bytes(true), stream>>>(plan, tiling, work.absolute);
    check_launch(op, "find_range");
    join_absolute<<<grid_for(plan.volumes), kBlock, 0, stream>>>(plan, work.absolute, tiling.items / plan.volumes);
    check_launch(op, "join_absolute");
  } else if (rule != nullptr || args.normalize != Normalize::none) {
    find_range<false><<<grid, kBlock, tiling.shared_bytes(false), stream>>>(plan, tiling, nullptr);
    check_launch(op, "find_range");
  }

  const WriteArgs write_args{args.normalize, rule ? *rule : SelectiveRule{}, args.tube, motion, work.share};
  switch (args.output_dtype) {
    case DType::float32: launch_write<float>(op, plan, tiling, write_args, stream); break;
    case DType::float16: launch_write<__half>(op, plan, tiling, write_args, stream); break;
    case DType::uint8: launch_write<unsigned char>(op, plan, tiling, write_args, stream); break;
    default: throw std::invalid_argument(std::string(op) + ": dtype must be float32, float16 or uint8, got another");
  }
  if (rule == nullptr) return;
  join_share<<<grid_for(plan.volumes), kBlock, 0, stream>>>(work.share, tiling.items / plan.volumes, plan.volumes,
                                                            motion_share);
  check_launch(op, "join_share");
}

}  // namespace

size_t saliency_tube_cuda_workspace(const SaliencyTubeArgs& args) {
  return Workspace("saliency_tube", args, nullptr, nullptr).carver.used();
}

void saliency_tube_cuda(const SaliencyTubeArgs& args, void* workspace, cudaStream_t stream, const char* op) {
  run(op, args, nullptr, nullptr, nullptr, workspace, stream);
}

size_t selective_tube_cuda_workspace(const SelectiveTubeArgs& args) {
  return Workspace("selective_tube", args.tube, &args.rule, nullptr).carver.used();
}

void selective_tube_cuda(const SelectiveTubeArgs& args, void* workspace, cudaStream_t stream) {
  run("selective_tube", args.tube, &args.rule, args.motion, args.motion_share, workspace, stream);
}

}  // namespace clipsight
