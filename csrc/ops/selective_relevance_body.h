// sobel_temporal and selective_relevance on a given volume, for one SIMD level (included by ops/levels/kernels_body.h).

static void sobel_row(const SobelTask& task) {
  const float *const *a = task.after, *const *b = task.before;
  float* d = task.scratch + 1;  // S_h D_t of this row, with one border value on either side
  // The difference in time comes first: it is exact where the frames are alike.
  for (int64_t x = 0; x < task.width; ++x) d[x] = (a[0][x] - b[0][x]) + 2.0f * (a[1][x] - b[1][x]) + (a[2][x] - b[2][x]);
  d[-1] = task.padding == Padding::zeros ? 0.0f : d[0];
  d[task.width] = task.padding == Padding::zeros ? 0.0f : d[task.width - 1];
  for (int64_t x = 0; x < task.width; ++x) task.row[x] = d[x - 1] + 2.0f * d[x] + d[x + 1];
}

static void row_moments(const float* row, int64_t width, double* moments) {
  double sum[kWidth] = {}, squares[kWidth] = {}, absolutes[kWidth] = {};
  for (int64_t x = 0; x < width; x += kWidth) {
    const Vec v = load_first<Vec>(row + x, width - x < kWidth ? width - x : kWidth);
    for (int i = 0; i < kWidth; ++i) {
      const double g = static_cast<double>(v[i]);
      sum[i] += g;
      squares[i] += g * g;
      absolutes[i] += g < 0 ? -g : g;
    }
  }
  for (int i = 0; i < kWidth; ++i) {
    moments[0] += sum[i];
    moments[1] += squares[i];
    moments[2] += absolutes[i];
  }
}

static bool row_range(const float* row, int64_t width, float* range) {
  Vec low = splat(range[0]), high = splat(range[1]);
  IVec odd{};
  int64_t x = 0;
  for (; x + kWidth <= width; x += kWidth) {
    const Vec v = load_as<Vec>(row + x);
    low = min(low, v);
    high = max(high, v);
    odd |= (v - v) != 0.0f;  // NaN and Inf
  }
  bool finite = !any(odd);
  for (int i = 0; i < kWidth; ++i) {
    if (low[i] < range[0]) range[0] = low[i];
    if (high[i] > range[1]) range[1] = high[i];
  }
  for (; x < width; ++x) {
    finite = finite && row[x] - row[x] == 0.0f;
    if (row[x] < range[0]) range[0] = row[x];
    if (row[x] > range[1]) range[1] = row[x];
  }
  return finite;
}

template <bool TAIL>
static inline void select_block(const SelectTask& task, int64_t x, double* total, double* kept) {
  const int64_t valid = task.width - x;
  Vec value = TAIL ? load_first<Vec>(task.volume + x, valid) : load_as<Vec>(task.volume + x);
  value = (value - task.low) * task.scale;
  if (TAIL) value = load_first<Vec>(reinterpret_cast<const float*>(&value), valid);
  Vec g = TAIL ? load_first<Vec>(task.derivative + x, valid) : load_as<Vec>(task.derivative + x);
  if (task.sign == Sign::absolute) g = abs(g);
  if (task.sign == Sign::falling) g = -g;
  const Vec motion = g > splat(task.threshold) ? value : Vec{};
  if (TAIL) {
    store_first(task.motion + x, motion, valid);
  } else {
    store_as(task.motion + x, motion);
  }
  add_lanes(total, abs(value));
  add_lanes(kept, abs(motion));
}

static void select_row(const SelectTask& task) {
  double total[kWidth] = {}, kept[kWidth] = {};
  int64_t x = 0;
  for (; x + kWidth <= task.width; x += kWidth) select_block<false>(task, x, total, kept);
  if (x < task.width) select_block<true>(task, x, total, kept);
  for (int i = 0; i < kWidth; ++i) {
    task.sums[0] += total[i];
    task.sums[1] += kept[i];
  }
}
