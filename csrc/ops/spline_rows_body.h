// The row engine of spline_upsample, saliency_tube and selective_tube for one SIMD level (included by
// ops/levels/kernels_body.h). Three banded products turn spline coefficients into output rows:
//
//   coefficients [t, h, w] --t stage--> [h, w] --w stage--> frame [h, W] --h stage--> output rows [W]
//   (float64, tiny)                     (float, L1)         (float, L1)                (registers)
//
// The w stage runs once per row of coefficients, so all that is left per voxel is the h stage: the same four or five
// rows of the frame for many output rows, with one weight per row and coefficient.
// Both passes over the map (range, then write) run the same code in the same order, so they see the same bits.

/// Columns of a frame: whole vectors.
static inline int64_t wide_pitch(int64_t width) { return (width + kWidth - 1) / kWidth * kWidth; }

static void frame_coefficients(const Resample& resample, int64_t frame, const double* coefficients, float* narrow,
                               float* out) {
  const Bands<double>& t = resample.t;
  const Bands<float>& w = resample.w;
  const int64_t pitch = resample.pitch, plane = resample.in.h * pitch, wide = wide_pitch(resample.out.w);
  const int64_t count = t.offset[frame + 1] - t.offset[frame];
  const double* weight = t.weight + t.offset[frame];
  const double* from = coefficients + t.first[frame] * plane;
  for (int64_t p = 0; p < plane; p += kWidth) {
    double sum[kWidth] = {};
    for (int64_t k = 0; k < count; ++k) {
      for (int i = 0; i < kWidth; ++i) sum[i] += weight[k] * from[k * plane + p + i];
    }
    for (int i = 0; i < kWidth; ++i) narrow[p + i] = static_cast<float>(sum[i]);
  }
  for (int64_t block = 0; block * kWidth < wide; ++block) {
    const int64_t begin = w.offset[block], taps = w.offset[block + 1] - begin;
    for (int64_t row = 0; row < resample.in.h; ++row) {
      const float* c = narrow + row * pitch + w.first[block];
      Vec sum{};
      for (int64_t k = 0; k < taps; ++k) sum = fma(splat(c[k]), load_as<Vec>(w.weight + (begin + k) * kWidth), sum);
      store_as(out + row * wide + block * kWidth, sum);
    }
  }
}

/// Rows of the frame that take part in some output rows, and the weights of these: [rows][count].
struct RowBand {
  const float* frame;
  const float* weight;
  int64_t count;
};

static inline RowBand row_band(const RowTask& task, int64_t row) {
  const Bands<float>& h = task.resample->h;
  return {task.frame + h.first[row] * wide_pitch(task.resample->out.w), h.weight + h.offset[row],
          h.offset[row + 1] - h.offset[row]};
}

/// How many rows from `row` on, at most `limit`, have the same rows of the frame.
static inline int64_t run_length(const RowTask& task, int64_t row, int64_t limit) {
  const Bands<float>& h = task.resample->h;
  const int64_t count = h.offset[row + 1] - h.offset[row];
  int64_t run = 1;
  while (run < limit && h.first[row + run] == h.first[row] && h.offset[row + run + 1] - h.offset[row + run] == count) ++run;
  return run;
}

/// The h stage of one vector. COUNT is `count` where that is the usual 4 or 5, so that the rows of the frame stay in
/// registers, else 0.
template <int COUNT>
struct Column {
  Vec row[COUNT ? COUNT : 1];
  const float* from;
  int64_t pitch, count;

  inline Column(const RowBand& band, int64_t pitch, int64_t x) : from(band.frame + x), pitch(pitch), count(band.count) {
    for (int k = 0; k < COUNT; ++k) row[k] = load_as<Vec>(from + k * pitch);
  }
  inline Vec at(const float* weight) const {
    Vec sum{};
    if (COUNT) {
      for (int k = 0; k < COUNT; ++k) sum = fma(splat(weight[k]), row[k], sum);
    } else {
      for (int64_t k = 0; k < count; ++k) sum = fma(splat(weight[k]), load_as<Vec>(from + k * pitch), sum);
    }
    return sum;
  }
};

/// The B-spline weights are non-negative and sum to 1, so a voxel lies between the smallest and the largest value of
/// its column; the margin covers rounding. (Not so for the derivative: only the map itself is pruned.)
template <int COUNT>
static inline void widen_by_run(const RowTask& task, int64_t begin, int64_t run, float* range) {
  const int64_t pitch = wide_pitch(task.resample->out.w);
  const RowBand band = row_band(task, begin);
  for (int64_t x = 0; x < pitch; x += kWidth) {  // lanes beyond the row repeat its last column
    const float low = range[0], high = range[1];
    if (low <= high) {  // else nothing was seen yet
      const float margin = 1e-5f * (high - low) + 1e-6f * ((low < 0 ? -low : low) + (high < 0 ? -high : high));
      Vec smallest = load_as<Vec>(band.frame + x), largest = smallest;
      for (int64_t k = 1; k < band.count; ++k) {
        const Vec c = load_as<Vec>(band.frame + k * pitch + x);
        smallest = min(smallest, c);
        largest = max(largest, c);
      }
      if (!any((smallest < splat(low + margin)) | (largest > splat(high - margin)))) continue;
    }
    const Column<COUNT> column(band, pitch, x);
    Vec smallest = column.at(band.weight), largest = smallest;
    for (int64_t r = 1; r < run; ++r) {
      const Vec v = column.at(band.weight + r * band.count);
      smallest = min(smallest, v);
      largest = max(largest, v);
    }
    for (int i = 0; i < kWidth; ++i) {
      if (smallest[i] < range[0]) range[0] = smallest[i];
      if (largest[i] > range[1]) range[1] = largest[i];
    }
  }
}

static void widen_range(const RowTask& task, float* range) {
  for (int64_t row = task.begin; row < task.end;) {
    const int64_t run = run_length(task, row, task.end - row);
    if (row_band(task, row).count == 4) {
      widen_by_run<4>(task, row, run, range);
    } else {
      widen_by_run<0>(task, row, run, range);
    }
    row += run;
  }
}

template <class T, bool TAIL>
static inline void put(void* to, int64_t index, Vec v, int64_t valid) {
  auto* p = static_cast<typename T::type*>(to) + index;
  if (TAIL) {
    store_first(p, T::pack(v), valid);
  } else {
    store_as(p, T::pack(v));
  }
}

struct WriteState {
  Vec low, scale, floor, ceiling, threshold;
  IVec magnitude_bits, sign_bits;  // G & magnitude_bits ^ sign_bits is |G|, G or -G
  Vec total, kept;                 // sum |R|, sum |R| mask of the current rows
};

/// Rows row .. row + run (one band) of VECTORS vectors from column x on.
template <class T, bool SELECTIVE, int VALUE, int DERIVATIVE, int VECTORS, bool TAIL>
static inline void write_columns(const WriteTask& task, const RowBand& value, const RowBand& derivative, int64_t row,
                                 int64_t run, int64_t x, WriteState& state) {
  const int64_t width = task.value.resample->out.w, pitch = wide_pitch(width), valid = width - x;
  void *const tube_out = task.tube, *const motion_out = task.motion;
  const Column<VALUE> v0(value, pitch, x), v1(value, pitch, x + (VECTORS - 1) * kWidth);
  const Column<DERIVATIVE> d0(derivative, pitch, x), d1(derivative, pitch, x + (VECTORS - 1) * kWidth);
  Vec total = state.total, kept = state.kept;
  for (int64_t r = 0; r < run; ++r) {
    for (int v = 0; v < VECTORS; ++v) {
      const int64_t index = (row + r) * width + x + v * kWidth;
      const Vec raw = (v ? v1 : v0).at(value.weight + r * value.count);
      const Vec tube = min(max((raw - state.low) * state.scale, state.floor), state.ceiling);
      put<T, TAIL>(tube_out, index, tube, valid);
      if (!SELECTIVE) continue;
      const Vec g = (v ? d1 : d0).at(derivative.weight + r * derivative.count);
      const IVec mask = (Vec)(((IVec)g & state.magnitude_bits) ^ state.sign_bits) > state.threshold;
      put<T, TAIL>(motion_out, index, mask ? tube : Vec{}, valid);
      Vec magnitude = abs(raw);
      if (TAIL) magnitude = load_first<Vec>(reinterpret_cast<const float*>(&magnitude), valid);
      total += magnitude;
      kept += mask ? magnitude : Vec{};
    }
  }
  state.total = total;
  state.kept = kept;
}

template <class T, bool SELECTIVE, int VALUE, int DERIVATIVE>
static void write_run(const WriteTask& task, const RowBand& value, const RowBand& derivative, int64_t row, int64_t run,
                      WriteState& state) {
  const int64_t width = task.value.resample->out.w;
  int64_t x = 0;
  for (; x + 2 * kWidth <= width; x += 2 * kWidth) {
    write_columns<T, SELECTIVE, VALUE, DERIVATIVE, 2, false>(task, value, derivative, row, run, x, state);
  }
  for (; x + kWidth <= width; x += kWidth) {
    write_columns<T, SELECTIVE, VALUE, DERIVATIVE, 1, false>(task, value, derivative, row, run, x, state);
  }
  if (x < width) write_columns<T, SELECTIVE, 0, 0, 1, true>(task, value, derivative, row, run, x, state);
}

template <class T, bool SELECTIVE>
static void write_rows(const WriteTask& task) {
  WriteState state{splat(task.normaliser.low), splat(task.normaliser.scale), splat(task.floor), splat(task.ceiling),
                   splat(task.threshold), IVec{} + (task.sign == Sign::absolute ? 0x7fffffff : -1),
                   IVec{} + (task.sign == Sign::falling ? INT32_MIN : 0), Vec{}, Vec{}};
  double total[kWidth] = {}, kept[kWidth] = {};
  for (int64_t row = task.value.begin; row < task.value.end;) {
    const int64_t left = task.value.end - row;
    int64_t run = run_length(task.value, row, left < kRowGroup ? left : kRowGroup);
    if (SELECTIVE) run = run_length(task.derivative, row, run);
    const RowBand value = row_band(task.value, row), derivative = SELECTIVE ? row_band(task.derivative, row) : RowBand{};
    state.total = state.kept = Vec{};
    if (value.count == 4 && (!SELECTIVE || derivative.count == 4)) {
      write_run<T, SELECTIVE, 4, SELECTIVE ? 4 : 0>(task, value, derivative, row, run, state);
    } else if (SELECTIVE && value.count == 4 && derivative.count == 5) {
      write_run<T, SELECTIVE, 4, 5>(task, value, derivative, row, run, state);
    } else {
      write_run<T, SELECTIVE, 0, 0>(task, value, derivative, row, run, state);
    }
    if (SELECTIVE) {
      add_lanes(total, state.total);
      add_lanes(kept, state.kept);
    }
    row += run;
  }
  for (int i = 0; SELECTIVE && i < kWidth; ++i) {
    task.sums[0] += total[i];
    task.sums[1] += kept[i];
  }
}

static void write(DType output, bool selective, const WriteTask& task) {
  if (output == DType::float32) return selective ? write_rows<Float32, true>(task) : write_rows<Float32, false>(task);
  if (output == DType::float16) return selective ? write_rows<Float16, true>(task) : write_rows<Float16, false>(task);
  return selective ? write_rows<UInt8, true>(task) : write_rows<UInt8, false>(task);
}

static double sum_of_abs(const RowTask& task) {
  double lanes[kWidth] = {}, sum = 0;
  const int64_t width = task.resample->out.w;
  for (int64_t row = task.begin; row < task.end; ++row) {
    const RowBand band = row_band(task, row);
    for (int64_t x = 0; x < width; x += kWidth) {
      Vec magnitude = abs(Column<0>(band, wide_pitch(width), x).at(band.weight));
      if (width - x < kWidth) magnitude = load_first<Vec>(reinterpret_cast<const float*>(&magnitude), width - x);
      add_lanes(lanes, magnitude);
    }
  }
  for (int i = 0; i < kWidth; ++i) sum += lanes[i];
  return sum;
}
