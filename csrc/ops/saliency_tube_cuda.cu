// saliency_tube and selective_tube in CUDA: a plan per map (spline_plan_cuda.cu), then one pass that writes each voxel
// once.
//
//   a block has a tile of one frame: some rows, up to 248 columns
//   coefficients [h, w] of the frame --w stage--> [rows of the grid, columns of the tile] in shared memory
//   a thread has a few neighbouring columns and walks down some rows; within a cell of the grid a column is a cubic
//   polynomial, three operations a value, for the map and for its derivative alike
#include <cuda_fp16.h>

#include <cmath>

#include "core/pack_cuda.h"
#include "ops/motion_share_cuda.h"
#include "ops/saliency_tube_cuda.h"
#include "ops/spline_plan_cuda.h"

namespace clipsight {
namespace {

constexpr int64_t kSharedBytes = 40 * 1024;  // leaves room for the block reductions
constexpr int kColumns = kBlock - 8;         // of a tile: with one more on either side, no more than threads
constexpr int kHalo = 4;                     // floats beside a row in shared memory: one is used, four keep it aligned

/// How the output is cut into blocks and threads. A tile has `columns` columns and `rows` rows; a thread has `strip`
/// rows of a few columns.
struct Tiling {
  int columns, rows, strip, threads;
  int lines;  // rows of the grid that a tile may need
  int64_t tiles_w, tiles_h, per_volume, items;

  CLIPSIGHT_HD int pitch() const { return columns + 2 * kHalo; }
};

/// One row of the tile, or the row above or below it: where its coefficients begin in shared memory, and how far into
/// the cell it lies. Beyond a border of zeros: first < 0.
struct RowPosition {
  int first;
  float fraction;
};

/// A tile in shared memory.
struct Stage {
  float *map, *derivative;  // [lines, pitch]
  RowPosition* row;         // [rows + 2], from the row above the tile on

  __device__ Stage(const Tiling& tiling, bool selective, float* memory) : map(memory) {
    derivative = map + (selective ? tiling.lines * tiling.pitch() : 0);
    row = reinterpret_cast<RowPosition*>(derivative + tiling.lines * tiling.pitch());
  }
  static size_t bytes(const Tiling& tiling, bool selective) {
    const size_t lines = sizeof(float) * tiling.lines * tiling.pitch();
    return (selective ? 2 : 1) * lines + sizeof(RowPosition) * (tiling.rows + 2);
  }
};

struct Tile {
  int64_t volume, frame;
  int row, rows, column, columns;  // the first, and how many

  __device__ Tile(const SplinePlan& plan, const Tiling& tiling, int64_t item) {
    const int64_t tile_w = item % tiling.tiles_w;
    item = divide(item, tiling.tiles_w);
    const int64_t tile_h = item % tiling.tiles_h;
    item = divide(item, tiling.tiles_h);
    volume = divide(item, plan.out.t);
    frame = item - volume * plan.out.t;
    row = static_cast<int>(tile_h) * tiling.rows;
    rows = min(tiling.rows, static_cast<int>(plan.out.h) - row);
    column = static_cast<int>(tile_w) * tiling.columns;
    columns = min(tiling.columns, static_cast<int>(plan.out.w) - column);
  }
};

/// The w stage: the coefficients that the tile's rows need, along its columns and one more on either side, which the
/// Sobel operator asks for.
template <bool kSelective>
__device__ void fill(const SplinePlan& plan, const Tiling& tiling, const Tile& tile, const Stage& stage) {
  constexpr int kAhead = 4;  // lines whose loads are on their way at once
  const int h = static_cast<int>(plan.in.h), w = static_cast<int>(plan.in.w), pitch = tiling.pitch();
  const int height = static_cast<int>(plan.out.h), width = static_cast<int>(plan.out.w);
  const int64_t offset = (tile.volume * plan.out.t + tile.frame) * h * w;
  const float *map = plan.map + offset, *derivative = plan.derivative + offset;
  const GridAxis rows = plan.rows();
  const int first = static_cast<int>(rows.position(max(tile.row - 1, 0)).cell) - 1;
  const int last = static_cast<int>(rows.position(min(tile.row + tile.rows, height - 1)).cell) + 2;
  const bool zeros = plan.rule.padding == Padding::zeros;
  for (int x = static_cast<int>(threadIdx.x) - 1; x <= tile.columns; x += blockDim.x) {
    const int inside = min(max(tile.column + x, 0), width - 1);
    const bool beyond = zeros && inside != tile.column + x;
    const Column taps(plan, inside);
    for (int line = first; line <= last; line += kAhead) {
      float m[kAhead][4], d[kAhead][4];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {  // beyond the last line those of the last
        const int from = static_cast<int>(reflect(min(line + a, last), h)) * w;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          m[a][k] = __ldg(map + from + taps.index[k]);
          if (kSelective) d[a][k] = __ldg(derivative + from + taps.index[k]);
        }
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (line + a > last) break;
        const int to = (line + a - first) * pitch + kHalo + x;
        stage.map[to] = taps(m[a]);
        if (kSelective) stage.derivative[to] = beyond ? 0.0f : taps(d[a]);
      }
    }
  }
  for (int r = threadIdx.x; r < tile.rows + 2; r += blockDim.x) {
    const int y = tile.row + r - 1, inside = min(max(y, 0), height - 1);
    const GridAxis::Position at = rows.position(inside);
    const bool beyond = zeros && y != inside;
    stage.row[r] = {beyond ? -1 : (static_cast<int>(at.cell) - 1 - first) * pitch, rows.fraction(at.rest)};
  }
}

/// Calls visit(row, values of R, values of G) for each row of the thread, from the top. Must be called by whole blocks.
template <int kVector, bool kSelective, class Visit>
__device__ void walk(const SplinePlan& plan, const Tiling& tiling, const Tile& tile, const Stage& stage, Visit visit) {
  using Values = float[kVector];
  const int packs = tiling.columns / kVector;
  const int thread = static_cast<int>(threadIdx.x), x = thread % packs * kVector, begin = thread / packs * tiling.strip;
  const int end = min(begin + tiling.strip, tile.rows);
  if (x >= tile.columns || begin >= end) return;

  const int pitch = tiling.pitch();
  CellPolynomial map[kVector]{}, derivative[kVector]{};
  int first = -2;  // whose polynomials these are
  const auto enter = [&](int cell) {
    first = cell;
    float c[4][kVector], d[4][kVector];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int at = cell + k * pitch + kHalo + x;
      memcpy(c[k], __builtin_assume_aligned(stage.map + at, kVector * 4), sizeof(c[k]));
      if (!kSelective) continue;
      float here[kVector + 2];  // with a neighbour on either side
      here[0] = stage.derivative[at - 1];
      memcpy(here + 1, __builtin_assume_aligned(stage.derivative + at, kVector * 4), sizeof(d[k]));
      here[kVector + 1] = stage.derivative[at + kVector];
#pragma unroll
      for (int i = 0; i < kVector; ++i) d[k][i] = fmaf(2.0f, here[i + 1], here[i] + here[i + 2]);
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      map[i] = cell_polynomial(plan.order, c[0][i], c[1][i], c[2][i], c[3][i]);
      if (kSelective) derivative[i] = cell_polynomial(plan.order, d[0][i], d[1][i], d[2][i], d[3][i]);
    }
  };
  if (!kSelective) {
    for (int r = begin; r < end; ++r) {
      const RowPosition at = stage.row[r + 1];
      if (at.first != first) enter(at.first);
      Values value, none{};
#pragma unroll
      for (int i = 0; i < kVector; ++i) value[i] = map[i](at.fraction);
      visit(r, x, value, none);
    }
    return;
  }
  // G of a row takes the rows above and below it, so the row waits for the one below.
  Values here{}, above{};  // `above` holds the row above and twice this one
  float fraction = 0;      // of the row that waits, whose cell the polynomials are in until the next row is entered
#pragma unroll 1  // more would cost the registers of a third block
  for (int r = begin - 1; r <= end; ++r) {
    Values value, below, g;
#pragma unroll
    for (int i = 0; i < kVector; ++i) value[i] = map[i](fraction);
    const RowPosition at = stage.row[r + 1];
    if (at.first >= 0 && at.first != first) enter(at.first);
    fraction = at.fraction;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      below[i] = at.first >= 0 ? derivative[i](fraction) : 0.0f;
      g[i] = above[i] + below[i];
      above[i] = fmaf(2.0f, below[i], here[i]);
      here[i] = below[i];
    }
    if (r > begin) visit(r - 1, x, value, g);
  }
}

/// state.absolute = sum |G| of each finite volume.
__global__ void __launch_bounds__(kBlock)
    sum_absolute(const __grid_constant__ SplinePlan plan, const __grid_constant__ Tiling tiling, double* sums) {
  extern __shared__ float memory[];
  const Stage stage(tiling, true, memory);
  for (int64_t item = blockIdx.x; item < tiling.items; item += gridDim.x) {
    const Tile tile(plan, tiling, item);
    VolumeState& state = plan.volume[tile.volume];
    if (!state.finite) continue;
    fill<true>(plan, tiling, tile, stage);
    __syncthreads();
    float sum = 0;
    walk<1, true>(plan, tiling, tile, stage,
                  [&](int, int, const float (&)[1], const float (&g)[1]) { sum += fabsf(g[0]); });
    const double total = block_reduce(static_cast<double>(sum), Sum());
    double* of_volume = sums + tile.volume * tiling.per_volume;
    if (threadIdx.x == 0) sums[item] = total;
    if (!is_last_block(&state.arrived, static_cast<unsigned>(tiling.per_volume))) continue;
    const double of_all = join_sums(of_volume, tiling.per_volume);
    if (threadIdx.x == 0) {
      state.absolute = of_all;
      state.arrived = 0;  // the next pass counts anew
    }
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
  void* tube;
  void* motion;
  ShareSums* share;  // [items]
  float* motion_share;
};

/// kVector neighbouring columns per thread, stored at once.
template <class T, int kVector, bool kSelective>
__global__ void __launch_bounds__(kBlock, 3)
    write(const __grid_constant__ SplinePlan plan, const __grid_constant__ Tiling tiling,
          const __grid_constant__ WriteArgs args) {
  extern __shared__ float memory[];
  __shared__ FrameRule rule;
  const Stage stage(tiling, kSelective, memory);
  for (int64_t item = blockIdx.x; item < tiling.items; item += gridDim.x) {
    const Tile tile(plan, tiling, item);
    VolumeState& state = plan.volume[tile.volume];
    const int64_t offset =
        ((tile.volume * plan.out.t + tile.frame) * plan.out.h + tile.row) * plan.out.w + tile.column;
    T* tube = static_cast<T*>(args.tube) + offset;
    T* motion = static_cast<T*>(args.motion) + offset;
    float total = 0, kept = 0;
    if (threadIdx.x / 32 == blockDim.x / 32 - 1) {  // the warp with the least to do in `fill`
      const FrameRule found = frame_rule(plan, tile.volume, tile.frame);
      if (threadIdx.x % 32 == 0) rule = found;
    }
    if (state.finite) fill<kSelective>(plan, tiling, tile, stage);
    __syncthreads();
    if (rule.finite) {
      const bool raw = plan.normalize == Normalize::none;
      const Normaliser normaliser = rule.normaliser;
      const float unit = rule.unit, threshold = rule.threshold;
      const Side side(plan.rule.sign);
      const int width = static_cast<int>(plan.out.w);  // times the rows of a tile still an int
      walk<kVector, kSelective>(plan, tiling, tile, stage,
                                [&](int r, int x, const float (&value)[kVector], const float (&g)[kVector]) {
        Pack<T, kVector> shown, moving;
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          shown.value[i] = Convert<T>::from(raw ? value[i] * unit : normalise(value[i], normaliser));
          if (!kSelective) continue;
          const bool keep = side(g[i]) > threshold;
          moving.value[i] = keep ? shown.value[i] : Convert<T>::from(0.0f);
          total += fabsf(value[i]);
          kept += keep ? fabsf(value[i]) : 0.0f;
        }
        const int at = r * width + x;
        shown.store(tube + at);
        if (kSelective) moving.store(motion + at);
      });
    } else {
      for (int e = threadIdx.x; e < tile.rows * tile.columns; e += blockDim.x) {
        const int64_t at = static_cast<int64_t>(e / tile.columns) * plan.out.w + e % tile.columns;
        tube[at] = Convert<T>::blank();
        if (kSelective) motion[at] = Convert<T>::blank();
      }
      total = kept = NAN;
    }
    if (kSelective) {
      const double sum = block_reduce(static_cast<double>(total), Sum());
      const double sum_kept = block_reduce(static_cast<double>(kept), Sum());
      if (threadIdx.x == 0) args.share[item] = {sum, sum_kept};
      if (is_last_block(&state.arrived, static_cast<unsigned>(tiling.per_volume))) {
        const float share = join_share(args.share + tile.volume * tiling.per_volume, tiling.per_volume);
        if (threadIdx.x == 0) args.motion_share[tile.volume] = share;
      }
    }
    __syncthreads();  // the next tile overwrites the stage
  }
}

/// The same tiles whatever the width of the stores, so that sums have one order.
Tiling make_tiling(const char* op, const SplinePlan& plan) {
  Tiling tiling{};
  tiling.columns = static_cast<int>(std::min<int64_t>((plan.out.w + 3) / 4 * 4, kColumns));
  const int64_t frames = plan.volumes * plan.out.t;
  const auto lines_of = [&](int64_t rows) {
    const GridAxis axis = plan.rows();
    return std::min((rows + 1) * axis.step() / axis.length() + 1, axis.step()) + 4;
  };
  tiling.tiles_w = ceil_div(plan.out.w, tiling.columns);
  // Enough tiles to fill a device several times over, few enough that the w stage does not count.
  tiling.rows = static_cast<int>(std::min<int64_t>(plan.out.h, 112));
  while (tiling.rows > 16 && frames * tiling.tiles_w * ceil_div(plan.out.h, tiling.rows) < 2048) {
    tiling.rows = static_cast<int>(ceil_div(tiling.rows, 2));
  }
  const auto fits = [&] {
    tiling.lines = static_cast<int>(lines_of(tiling.rows));
    return Stage::bytes(tiling, plan.selective) <= static_cast<size_t>(kSharedBytes);
  };
  while (!fits()) {
    if (tiling.rows > 1) {
      tiling.rows = (tiling.rows + 1) / 2;
    } else if (tiling.columns > 4) {
      tiling.columns = (tiling.columns / 2 + 3) / 4 * 4;
    } else {
      throw std::invalid_argument(std::string(op) + ": a row of the output must depend on fewer rows of the map before "
                                  "up-sampling on CUDA, got " + std::to_string(tiling.lines));
    }
  }
  tiling.tiles_w = ceil_div(plan.out.w, tiling.columns);
  tiling.tiles_h = ceil_div(plan.out.h, tiling.rows);
  tiling.per_volume = plan.out.t * tiling.tiles_h * tiling.tiles_w;
  tiling.items = plan.volumes * tiling.per_volume;
  return tiling;
}

/// Threads for `vector` columns each.
Tiling with_threads(Tiling tiling, int vector) {
  const int packs = tiling.columns / vector;
  tiling.strip = static_cast<int>(ceil_div(tiling.rows, std::max(1, kBlock / packs)));
  const int walking = packs * static_cast<int>(ceil_div(tiling.rows, tiling.strip));
  tiling.threads = static_cast<int>(ceil_div(std::max(walking, tiling.columns + 2), 32)) * 32;
  return tiling;
}

template <class T>
void launch_write(const char* op, const SplinePlan& plan, const Tiling& tiling, const WriteArgs& args,
                  cudaStream_t stream) {
  constexpr size_t kPack = 4 * sizeof(T);
  const bool wide = plan.out.w % 4 == 0 && aligned(args.tube, kPack) && aligned(args.motion, kPack);
  const Tiling cut = with_threads(tiling, wide ? 4 : 1);
  const unsigned grid = grid_for(cut.items);
  const size_t shared = Stage::bytes(cut, plan.selective);
  if (plan.selective && wide) {
    write<T, 4, true><<<grid, cut.threads, shared, stream>>>(plan, cut, args);
  } else if (plan.selective) {
    write<T, 1, true><<<grid, cut.threads, shared, stream>>>(plan, cut, args);
  } else if (wide) {
    write<T, 4, false><<<grid, cut.threads, shared, stream>>>(plan, cut, args);
  } else {
    write<T, 1, false><<<grid, cut.threads, shared, stream>>>(plan, cut, args);
  }
  check_launch(op, "write");
}

/// The workspace of a call: the plan, and sums per tile.
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
  const Workspace work(op, args, rule, workspace);
  prepare_plan(op, work.plan, args.cam, args.relu, stream);
  if (rule != nullptr && rule->sigma_of == SigmaOf::absolute) {
    const Tiling cut = with_threads(work.tiling, 1);
    sum_absolute<<<grid_for(cut.items), cut.threads, Stage::bytes(cut, true), stream>>>(work.plan, cut, work.absolute);
    check_launch(op, "sum_absolute");
  }
  const WriteArgs write_args{args.tube, motion, work.share, motion_share};
  switch (args.output_dtype) {
    case DType::float32: return launch_write<float>(op, work.plan, work.tiling, write_args, stream);
    case DType::float16: return launch_write<__half>(op, work.plan, work.tiling, write_args, stream);
    case DType::uint8: return launch_write<unsigned char>(op, work.plan, work.tiling, write_args, stream);
    default: throw std::invalid_argument(std::string(op) + ": dtype must be float32, float16 or uint8, got another");
  }
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
