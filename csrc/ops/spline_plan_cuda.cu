#include "ops/spline_plan_cuda.h"

namespace clipsight {
namespace {

__host__ __device__ AxisOperator derivative_of(int axis) {
  return axis == 0 ? AxisOperator::derive : AxisOperator::smooth;
}

/// Row i of E, S E or D E. The taps of an output lie within `width` columns from the first cell that takes part, and
/// mirrored taps fall back into them.
__device__ void build_row(const Band& band, AxisOperator op, int order, Padding padding, int64_t i) {
  const int64_t earliest = op == AxisOperator::evaluate || i == 0 ? i : i - 1;
  const int64_t cell = static_cast<int64_t>(align_corners(earliest, band.n_in, band.n_out));
  const int64_t last_start = band.n_in > band.width ? band.n_in - band.width : 0;
  int64_t first = order == 3 ? cell - 1 : cell;
  first = first < 0 ? 0 : first > last_start ? last_start : first;

  double* row = band.weight + i * band.width;
  for (int k = 0; k < band.width; ++k) row[k] = 0;
  add_axis_row(op, order, i, band.n_in, band.n_out, padding, row - first);
  for (int k = 0; k < band.width; ++k) band.weight32[i * band.width + k] = static_cast<float>(row[k]);
  band.first[i] = static_cast<int>(first);
}

/// One thread per row of every matrix.
__global__ void __launch_bounds__(kBlock) build_bands(const __grid_constant__ SplinePlan plan, int64_t rows) {
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x; index < rows;
       index += static_cast<int64_t>(gridDim.x) * kBlock) {
    int64_t i = index;
    for (int b = 0; b < 6; ++b) {
      const int axis = b % 3;
      const Band& band = b < 3 ? plan.map[axis] : plan.derivative[axis];
      if (i < band.n_out) {
        build_row(band, b < 3 ? AxisOperator::evaluate : derivative_of(axis), plan.order, plan.padding, i);
        break;
      }
      i -= band.n_out;
    }
  }
}

__device__ double entry(const Band& band, int64_t row, int64_t column) {
  const int64_t k = column - band.first[row];
  return k >= 0 && k < band.width ? band.weight[row * band.width + k] : 0.0;
}

/// One warp per entry of the Gram matrices and the column sums.
__global__ void __launch_bounds__(kBlock) build_grams(const __grid_constant__ SplinePlan plan, int64_t entries) {
  const int lane = threadIdx.x % 32;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x) / 32;
  for (int64_t index = warp; index < entries; index += static_cast<int64_t>(gridDim.x) * (kBlock / 32)) {
    int64_t e = index;
    int axis = 0;
    for (; axis < 2; ++axis) {
      const int64_t here = plan.derivative[axis].n_in * (plan.derivative[axis].n_in + 1);
      if (e < here) break;
      e -= here;
    }
    const Band& band = plan.derivative[axis];
    const int64_t a = e % band.n_in, b = e / band.n_in;  // b == n_in: the column sum
    double sum = 0;
    for (int64_t i = lane; i < band.n_out; i += 32) {
      sum += entry(band, i, a) * (b < band.n_in ? entry(band, i, b) : 1.0);
    }
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) (b < band.n_in ? plan.gram[axis][e] : plan.column[axis][a]) = sum;
  }
}

/// Applies the spline prefilter along t, h and w; the block shares the lines.
__device__ void prefilter(const SplinePlan& plan, double* c) {
  const int64_t t = plan.in.t, h = plan.in.h, w = plan.in.w;
  for (int64_t line = threadIdx.x; line < t * h; line += kBlock) cubic_prefilter(c + line * w, w, 1);
  __syncthreads();
  for (int64_t line = threadIdx.x; line < t * w; line += kBlock) {
    cubic_prefilter(c + line / w * h * w + line % w, h, w);
  }
  __syncthreads();
  for (int64_t line = threadIdx.x; line < h * w; line += kBlock) cubic_prefilter(c + line, t, h * w);
  __syncthreads();
}

/// With A_t, A_h, A_w the derivative matrices, sum G^2 = c . (A_t^T A_t x A_h^T A_h x A_w^T A_w) c, and sum G is the
/// product of c with the three column sums.
__device__ void moments(const SplinePlan& plan, const double* c, double* scratch, VolumeState* state) {
  const int64_t t = plan.in.t, h = plan.in.h, w = plan.in.w, plane = h * w, voxels = t * plane;
  double* along_t = scratch;
  double* along_th = scratch + voxels;
  for (int64_t e = threadIdx.x; e < voxels; e += kBlock) {
    double sum = 0;
    for (int64_t k = 0; k < t; ++k) sum += plan.gram[0][e / plane * t + k] * c[k * plane + e % plane];
    along_t[e] = sum;
  }
  __syncthreads();
  for (int64_t e = threadIdx.x; e < voxels; e += kBlock) {
    const int64_t frame = e / plane * plane, row = e % plane / w, column = e % w;
    double sum = 0;
    for (int64_t k = 0; k < h; ++k) sum += plan.gram[1][row * h + k] * along_t[frame + k * w + column];
    along_th[e] = sum;
  }
  __syncthreads();
  double sum = 0, squares = 0;
  for (int64_t e = threadIdx.x; e < voxels; e += kBlock) {
    const int64_t column = e % w, line = e - column;
    double along_thw = 0;
    for (int64_t k = 0; k < w; ++k) along_thw += plan.gram[2][column * w + k] * along_th[line + k];
    squares += c[e] * along_thw;
    sum += c[e] * plan.column[0][e / plane] * plan.column[1][e % plane / w] * plan.column[2][column];
  }
  squares = block_reduce(squares, Sum());
  sum = block_reduce(sum, Sum());
  if (threadIdx.x == 0) {
    state->sum = sum;
    state->sum_of_squares = squares;
  }
}

/// One block per map: finite check, ReLU, coefficients, moments; and empty ranges for the pass that fills them.
__global__ void __launch_bounds__(kBlock)
    prepare(const __grid_constant__ SplinePlan plan, const float* cam, bool relu) {
  const int64_t voxels = plan.in.t * plan.in.h * plan.in.w;
  for (int64_t v = blockIdx.x; v < plan.volumes; v += gridDim.x) {
    double* c = plan.coefficients + v * voxels;
    int bad = 0;
    for (int64_t e = threadIdx.x; e < voxels; e += kBlock) {
      const float x = cam[v * voxels + e];
      if (!isfinite(x)) bad = 1;
      c[e] = relu && x < 0 ? 0.0 : static_cast<double>(x);
    }
    bad = __syncthreads_or(bad);
    if (threadIdx.x == 0) plan.state[v] = {!bad, empty_range(), 0.0, 0.0};
    if (plan.framewise) {
      for (int64_t t = threadIdx.x; t < plan.out.t; t += kBlock) plan.frames[v * plan.out.t + t] = empty_range();
    }
    __syncthreads();
    if (bad) continue;
    if (plan.order == 3) prefilter(plan, c);
    if (plan.selective) moments(plan, c, plan.scratch + 2 * v * voxels, &plan.state[v]);
  }
}

Band take_band(Carver& workspace, int64_t n_in, int64_t n_out, int width) {
  Band band{n_in, n_out, width, nullptr, nullptr, nullptr};
  band.first = workspace.take<int>(n_out);
  band.weight = workspace.take<double>(n_out * width);
  band.weight32 = workspace.take<float>(n_out * width);
  return band;
}

/// Neighbouring outputs lie `step` input samples apart, so their taps start within ceil(2 step) columns.
int derivative_width(int64_t n_in, int64_t n_out) {
  const int64_t spread = n_out > 1 ? ceil_div(2 * (n_in - 1), n_out - 1) : 0;
  return static_cast<int>(std::max<int64_t>(kDerivativeWidth, std::min<int64_t>(n_in, kMapWidth + spread)));
}

}  // namespace

SplinePlan make_plan(const SaliencyTubeArgs& args, const SelectiveRule* rule, Carver& workspace) {
  SplinePlan plan{};
  plan.in = args.in;
  plan.out = args.out;
  plan.volumes = args.volumes;
  plan.order = args.order;
  plan.padding = rule ? rule->padding : Padding::replicate;
  plan.selective = rule != nullptr;
  plan.framewise = args.normalize == Normalize::frame;
  const int64_t n_in[3] = {args.in.t, args.in.h, args.in.w}, n_out[3] = {args.out.t, args.out.h, args.out.w};
  for (int axis = 0; axis < 3; ++axis) {
    plan.map[axis] = take_band(workspace, n_in[axis], n_out[axis], kMapWidth);
    if (!plan.selective) continue;
    plan.derivative[axis] = take_band(workspace, n_in[axis], n_out[axis], derivative_width(n_in[axis], n_out[axis]));
    plan.gram[axis] = workspace.take<double>(n_in[axis] * n_in[axis]);
    plan.column[axis] = workspace.take<double>(n_in[axis]);
  }
  if (plan.selective) plan.scratch = workspace.take<double>(2 * plan.volumes * plan.in.voxels());
  plan.coefficients = workspace.take<double>(plan.volumes * plan.in.voxels());
  plan.state = workspace.take<VolumeState>(plan.volumes);
  if (plan.framewise) plan.frames = workspace.take<Range>(plan.volumes * plan.out.t);
  return plan;
}

void prepare_plan(const char* op, const SplinePlan& plan, const float* cam, bool relu, cudaStream_t stream) {
  const int64_t rows = (plan.out.t + plan.out.h + plan.out.w) * (plan.selective ? 2 : 1);
  build_bands<<<grid_for(ceil_div(rows, kBlock)), kBlock, 0, stream>>>(plan, rows);
  check_launch(op, "build_bands");
  if (plan.selective) {
    int64_t entries = 0;
    for (const Band& band : plan.derivative) entries += band.n_in * (band.n_in + 1);
    build_grams<<<grid_for(ceil_div(entries, kBlock / 32)), kBlock, 0, stream>>>(plan, entries);
    check_launch(op, "build_grams");
  }
  prepare<<<grid_for(plan.volumes), kBlock, 0, stream>>>(plan, cam, relu);
  check_launch(op, "prepare");
}

}  // namespace clipsight
