#include "ops/spline_plan_cuda.h"

#include <climits>
#include <cmath>
#include <tuple>
#include <vector>

#include "core/recent.h"
#include "ops/resample_plan.h"
#include "ops/spline_basis.h"

namespace clipsight {
namespace {

constexpr int kInline = 440;  // values of tables among a kernel's arguments, which have 4 KB
constexpr int64_t kSharedBytes = 40 * 1024;

struct InlineTables {
  double value[kInline];
};

/// Applies the spline prefilter along w and h to planes side by side; the block shares the lines.
__device__ void prefilter(int planes, int h, int w, double* c) {
  for (int line = threadIdx.x; line < planes * h; line += kBlock) cubic_prefilter(c + line * w, w, 1);
  __syncthreads();
  for (int line = threadIdx.x; line < planes * w; line += kBlock) {
    cubic_prefilter(c + line / w * (h * w) + line % w, h, w);
  }
  __syncthreads();
}

/// Sum and sum of squares of G over the outputs of a frame, from its coefficients c. With A_h, A_w the matrices that
/// smooth, sum G^2 = c . (A_h^T A_h x A_w^T A_w) c, and sum G is the product of c with their column sums.
__device__ void moments(const SplinePlan& plan, const double* table, const double* c, double* along_h,
                        FrameState* state) {
  const int h = static_cast<int>(plan.in.h), w = static_cast<int>(plan.in.w);
  // Row i of a Gram matrix times what `of` gives for each column.
  const auto times = [&](int axis, int n, int i, auto of) {
    const int band = static_cast<int>(plan.tables.band[axis]);
    const double* row = table + plan.tables.gram[axis] + i * (2 * band + 1) + band;
    double sum = 0;
    for (int k = max(0, i - band); k <= min(n - 1, i + band); ++k) sum = fma(row[k - i], of(k), sum);
    return sum;
  };
  for (int e = threadIdx.x; e < h * w; e += kBlock) {
    along_h[e] = times(0, h, e / w, [&](int k) { return c[k * w + e % w]; });
  }
  __syncthreads();
  const double* sums_h = table + plan.tables.gram[0] + h * (2 * plan.tables.band[0] + 1);
  const double* sums_w = table + plan.tables.gram[1] + w * (2 * plan.tables.band[1] + 1);
  double sum = 0, squares = 0;
  for (int e = threadIdx.x; e < h * w; e += kBlock) {
    const double* line = along_h + (e - e % w);
    squares += c[e] * times(1, w, e % w, [&](int k) { return line[k]; });
    sum += c[e] * sums_h[e / w] * sums_w[e % w];
  }
  squares = block_reduce(squares, Sum());
  sum = block_reduce(sum, Sum());
  if (threadIdx.x == 0) {
    state->sum = sum;
    state->sum_of_squares = squares;
  }
}

/// A cell of the grid in one frame.
struct Cell {
  const float* plane;
  int h, w;  // of the grid
  int row, column;

  __device__ Cell(const SplinePlan& plan, const float* plane, int cell)
      : plane(plane), h(static_cast<int>(plan.in.h)), w(static_cast<int>(plan.in.w)), row(cell / w), column(cell % w) {}

  /// Coefficients of the rows row - 1 .. row + 2.
  __device__ const float* line(int k) const { return plane + static_cast<int>(reflect(row - 1 + k, h)) * w; }

  /// Encloses all values of the cell: the spline is the product of two, so the control values of the one are the
  /// coefficients of the other.
  __device__ Extent enclosure(int order) const {
    int at[4];
    float control[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k) at[k] = static_cast<int>(reflect(column - 1 + k, w));
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float* c = line(k);
      cell_controls(order, c[at[0]], c[at[1]], c[at[2]], c[at[3]], control[k]);
    }
    Extent result;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float value[4];
      cell_controls(order, control[0][j], control[1][j], control[2][j], control[3][j], value);
#pragma unroll
      for (int i = 0; i < 4; ++i) result.add(value[i]);
    }
    return result;
  }

  /// R along one output column of the cell, by the same operations as in the pass that writes it.
  __device__ CellPolynomial polynomial(const SplinePlan& plan, int x) const {
    const Column taps(plan, x);
    float value[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float* c = line(k);
      value[k] = taps({c[taps.index[0]], c[taps.index[1]], c[taps.index[2]], c[taps.index[3]]});
    }
    return cell_polynomial(plan.order, value[0], value[1], value[2], value[3]);
  }
};

/// Minimum and maximum of R over the outputs in `count` cells, as far as the thread has a share in them: each column of
/// a cell is cut into as many parts as there are threads for.
__device__ Extent evaluate(const SplinePlan& plan, const float* plane, const int* cells, int count) {
  const GridAxis rows = plan.rows(), columns = plan.columns();
  const int wide = static_cast<int>(columns.outputs_of_cell()), tall = static_cast<int>(rows.outputs_of_cell());
  const int parts = max(1, min(kBlock / max(1, count * wide), tall)), part = (tall + parts - 1) / parts;
  Extent range;
  for (int unit = threadIdx.x; unit < count * wide * parts; unit += kBlock) {
    const Cell cell(plan, plane, cells[unit / (wide * parts)]);
    const int x = static_cast<int>(columns.first_output(cell.column)) + unit % wide;
    const int begin = static_cast<int>(rows.first_output(cell.row)) + unit / wide % parts * part;
    const int end = static_cast<int>(min(rows.first_output(cell.row + 1), rows.n_out));
    if (x >= min(columns.first_output(cell.column + 1), columns.n_out) || begin >= end) continue;
    const CellPolynomial value = cell.polynomial(plan, x);
    const int step = static_cast<int>(rows.step()), last = min(end, begin + part);
    int rest = static_cast<int>(begin * rows.step() - cell.row * rows.length());
    for (int y = begin; y < last; ++y, rest += step) range.add(value(rows.fraction(rest)));
  }
  return range;
}

/// Minimum and maximum of R over the outputs of a frame. Few are evaluated: the cells with the highest and the lowest
/// enclosure first, then only those whose enclosure goes beyond what has been seen, rounding included.
__device__ Extent find_range(const SplinePlan& plan, const float* plane, float peak) {
  __shared__ int found[kBlock];
  __shared__ int count;
  const int cells = static_cast<int>(plan.in.h * plan.in.w);

  Extent mine;
  int lowest = 0, highest = 0;
  for (int cell = threadIdx.x; cell < cells; cell += kBlock) {
    const Extent e = Cell(plan, plane, cell).enclosure(plan.order);
    if (e.low < mine.low) mine.low = e.low, lowest = cell;
    if (e.high > mine.high) mine.high = e.high, highest = cell;
  }
  if (threadIdx.x < 2) found[threadIdx.x] = 0;
  const Extent all = block_extent(mine);
  if (mine.low == all.low) atomicMax(&found[0], lowest);
  if (mine.high == all.high) atomicMax(&found[1], highest);
  __syncthreads();
  const int first = found[0], second = found[1];
  Extent range = block_extent(evaluate(plan, plane, found, 2));

  const float slack = 4e-6f * peak;
  const float low_enough = range.low + slack, high_enough = range.high - slack;
  for (int base = 0; base < cells; base += kBlock) {
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    const int cell = base + static_cast<int>(threadIdx.x);
    if (cell < cells && cell != first && cell != second) {
      const Extent e = cells <= kBlock ? mine : Cell(plan, plane, cell).enclosure(plan.order);
      if (e.low < low_enough || e.high > high_enough) found[atomicAdd(&count, 1)] = cell;
    }
    __syncthreads();
    const Extent more = evaluate(plan, plane, found, count);
    range.add(more.low, more.high);
    __syncthreads();  // the next round counts anew
  }
  return block_extent(range);
}

/// One block per frame of a map.
__global__ void __launch_bounds__(kBlock)
    prepare(const __grid_constant__ SplinePlan plan, const __grid_constant__ InlineTables tables, const float* cam,
            bool relu, bool planes_shared) {
  extern __shared__ double memory[];
  __shared__ double shared_table[kInline];
  const int h = static_cast<int>(plan.in.h), w = static_cast<int>(plan.in.w), plane = h * w;
  const int samples = static_cast<int>(plan.in.t), planes = plan.selective ? 2 : 1;
  const double* table = plan.table;
  if (plan.tables.count <= kInline) {
    for (int i = threadIdx.x; i < plan.tables.count; i += kBlock) shared_table[i] = tables.value[i];
    table = shared_table;
  }
  for (int64_t item = blockIdx.x; item < plan.volumes * plan.out.t; item += gridDim.x) {
    const int64_t v = divide(item, plan.out.t), t = item - v * plan.out.t;
    const float* x = cam + v * samples * plane;
    const auto sample = [&](int e) { return relu && x[e] < 0 ? 0.0f : x[e]; };
    float peak = 0;
    for (int e = threadIdx.x; e < samples * plane; e += kBlock) {
      peak = fmaxf(peak, isfinite(x[e]) ? fabsf(sample(e)) : INFINITY);
    }
    peak = block_reduce(peak, Max());
    const bool finite = isfinite(peak);
    const int exponent = finite && peak > 0 ? ilogbf(peak) : 0;
    if (t == 0 && threadIdx.x == 0) plan.volume[v] = {finite, ldexpf(1.0f, exponent), 0u, 0.0};
    if (!finite) continue;

    // The samples to the frame, in float64: what changes little in time must not drown in rounding.
    double* c = planes_shared ? memory : plan.planes + 3 * item * plane;
    const double scale = ldexp(1.0, -exponent);
    for (int e = threadIdx.x; e < planes * plane; e += kBlock) {
      const double* row = table + (e < plane ? 0 : plan.tables.derivative) + t * samples;
      double sum = 0;
      for (int k = 0; k < samples; ++k) sum = fma(row[k], static_cast<double>(sample(k * plane + e % plane)), sum);
      c[e] = sum * scale;
    }
    __syncthreads();
    if (plan.order == 3) prefilter(planes, h, w, c);
    float* map = plan.map + item * plane;
    float* for_range = planes_shared ? reinterpret_cast<float*>(c + 3 * plane) : map;
    peak = 0;
    for (int e = threadIdx.x; e < plane; e += kBlock) {
      for_range[e] = map[e] = static_cast<float>(c[e]);
      peak = fmaxf(peak, fabsf(map[e]));
      if (plan.selective) plan.derivative[item * plane + e] = static_cast<float>(c[plane + e]);
    }
    peak = block_reduce(peak, Max());
    FrameState* state = plan.frame + item;
    if (plan.selective) moments(plan, table, c + plane, c + 2 * plane, state);
    if (plan.ranged()) {
      const Extent range = find_range(plan, for_range, peak);
      if (threadIdx.x == 0) state->low = range.low, state->high = range.high;
    }
  }  // what is shared is overwritten behind the barriers in the next frame's first block_reduce
}

/// Tables that are too long for one kernel's arguments, piece by piece.
__global__ void store_tables(const __grid_constant__ InlineTables piece, double* to, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) to[i] = piece.value[i];
}

struct HostTables {
  Tables layout;
  std::vector<double> value;
};

HostTables build_tables(Shape3 in, Shape3 out, int order, Padding padding, bool selective) {
  HostTables tables{};
  // Rows of E P and D E P along t: P turns samples into coefficients.
  std::vector<double> filter(in.t * in.t, 0.0);  // [sample, coefficient]
  for (int64_t k = 0; k < in.t; ++k) {
    filter[k * in.t + k] = 1;
    if (order == 3) cubic_prefilter(&filter[k * in.t], in.t, 1);
  }
  std::vector<double> row(in.t);
  const auto append_rows = [&](AxisOperator op) {
    for (int64_t t = 0; t < out.t; ++t) {
      axis_row(op, order, t, in.t, out.t, padding, row.data());
      for (int64_t k = 0; k < in.t; ++k) {
        double sum = 0;
        for (int64_t j = 0; j < in.t; ++j) sum += row[j] * filter[k * in.t + j];
        tables.value.push_back(sum);
      }
    }
  };
  append_rows(AxisOperator::evaluate);
  if (selective) {
    tables.layout.derivative = static_cast<int64_t>(tables.value.size());
    append_rows(AxisOperator::derive);
    const int64_t n_in[2] = {in.h, in.w}, n_out[2] = {out.h, out.w};
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t n = n_in[axis];
      const AxisMatrix matrix(AxisOperator::smooth, order, n, n_out[axis], padding, true);
      const int64_t band = tables.layout.band[axis] = matrix.gram_band;
      tables.layout.gram[axis] = static_cast<int64_t>(tables.value.size());
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t k = i - band; k <= i + band; ++k) {
          tables.value.push_back(k >= 0 && k < n ? matrix.gram[i * n + k] : 0.0);
        }
      }
      tables.value.insert(tables.value.end(), matrix.column_sums.begin(), matrix.column_sums.end());
    }
  }
  tables.layout.count = static_cast<int64_t>(tables.value.size());
  return tables;
}

std::shared_ptr<const HostTables> host_tables(const SplinePlan& plan) {
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int, Padding, bool>;
  static Recent<Key, HostTables> recent(8);
  const Shape3 in = plan.in, out = plan.out;
  const Key key{in.t, in.h, in.w, out.t, out.h, out.w, plan.order, plan.rule.padding, plan.selective};
  return recent.get(key, [&] { return build_tables(in, out, plan.order, plan.rule.padding, plan.selective); });
}

int64_t shared_bytes(const SplinePlan& plan) {
  return plan.in.h * plan.in.w * static_cast<int64_t>(3 * sizeof(double) + sizeof(float));
}

}  // namespace

SplinePlan make_plan(const SaliencyTubeArgs& args, const SelectiveRule* rule, Carver& workspace) {
  SplinePlan plan{};
  plan.in = args.in;
  plan.out = args.out;
  plan.volumes = args.volumes;
  plan.order = args.order;
  plan.selective = rule != nullptr;
  plan.normalize = args.normalize;
  if (rule) plan.rule = *rule;
  plan.tables = host_tables(plan)->layout;
  const int64_t frames = plan.volumes * plan.out.t, plane = plan.in.h * plan.in.w;
  if (plan.tables.count > kInline) plan.table = workspace.take<double>(plan.tables.count);
  if (shared_bytes(plan) > kSharedBytes) plan.planes = workspace.take<double>(3 * frames * plane);
  plan.map = workspace.take<float>(frames * plane);
  if (plan.selective) plan.derivative = workspace.take<float>(frames * plane);
  plan.volume = workspace.take<VolumeState>(plan.volumes);
  plan.frame = workspace.take<FrameState>(frames);
  return plan;
}

void prepare_plan(const char* op, const SplinePlan& plan, const float* cam, bool relu, cudaStream_t stream) {
  if (plan.in.voxels() > INT_MAX) {
    throw std::invalid_argument(std::string(op) + ": a map before up-sampling must have fewer than 2^31 values on " +
                                "CUDA, got " + std::to_string(plan.in.voxels()));
  }
  const auto host = host_tables(plan);
  InlineTables piece{};
  for (int64_t first = 0; first < plan.tables.count; first += kInline) {
    const int count = static_cast<int>(std::min<int64_t>(kInline, plan.tables.count - first));
    std::copy_n(host->value.begin() + first, count, piece.value);
    if (plan.tables.count <= kInline) break;  // they come with the arguments
    store_tables<<<1, kBlock, 0, stream>>>(piece, plan.table + first, count);
    check_launch(op, "store_tables");
  }
  const bool shared = shared_bytes(plan) <= kSharedBytes;
  const unsigned grid = grid_for(plan.volumes * plan.out.t);
  prepare<<<grid, kBlock, shared ? shared_bytes(plan) : 0, stream>>>(plan, piece, cam, relu, shared);
  check_launch(op, "prepare");
}

}  // namespace clipsight
