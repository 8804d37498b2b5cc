// channel_reduce for one SIMD level (included by ops/levels/kernels_body.h).
//
// Each block of channels is summed in float registers and then added to float64 sums: the rounding error stays that of
// kBlock additions, below a plain float32 matrix product's, however many channels there are.

constexpr int64_t kBlock = 32;
constexpr int64_t kAhead = 8;  // channels: hardware prefetchers stop at each page

/// MAPS x VECTORS accumulators over the channels of one block; features are read once for all maps. Where the vector
/// overlaps one that was summed before, its last `valid` lanes count; a row shorter than a vector has SHORT.
template <class T, int MAPS, int VECTORS, bool SHORT = false>
static inline void reduce_tile(const ReduceTask& task, int64_t c0, int64_t c1, int64_t s, int64_t valid = kWidth) {
  const auto* features = static_cast<const typename T::type*>(task.features) + s;
  const int64_t length = task.end - task.begin;
  Vec sum[MAPS][VECTORS] = {};
  for (int64_t c = c0; c < c1; ++c) {
    const auto* row = features + c * task.stride_c;
    Vec x[VECTORS];
    for (int v = 0; v < VECTORS; ++v) {
      using Packed = typename T::Packed;
      if (!SHORT) __builtin_prefetch(row + kAhead * task.stride_c + v * kWidth);
      x[v] = T::unpack(SHORT ? load_first<Packed>(row, valid) : load_as<Packed>(row + v * kWidth));
    }
    for (int m = 0; m < MAPS; ++m) {
      const Vec weight = splat(task.weight[m * task.weight_stride + c]);
      for (int v = 0; v < VECTORS; ++v) sum[m][v] = fma(weight, x[v], sum[m][v]);
    }
  }
  for (int m = 0; m < MAPS; ++m) {
    double* out = task.sums + m * length + (s - task.begin);
    for (int v = 0; v < VECTORS; ++v) {
      if (valid == kWidth) {
        add_lanes(out + v * kWidth, sum[m][v]);
      } else {
        for (int64_t i = SHORT ? 0 : kWidth - valid, last = SHORT ? valid : kWidth; i < last; ++i) {
          out[i] += static_cast<double>(sum[m][v][i]);
        }
      }
    }
  }
}

template <class T, int MAPS>
static void reduce_contiguous(const ReduceTask& task) {
  constexpr int kVectors = (kWidth == 16 ? 2 : 1) * (MAPS <= 2 ? 4 : 2), kHalf = kVectors > 1 ? kVectors / 2 : 1;
  for (int64_t c0 = task.c_begin; c0 < task.c_end; c0 += kBlock) {
    const int64_t c1 = c0 + kBlock < task.c_end ? c0 + kBlock : task.c_end;
    int64_t s = task.begin;
    for (; s + kVectors * kWidth <= task.end; s += kVectors * kWidth) reduce_tile<T, MAPS, kVectors>(task, c0, c1, s);
    for (; s + kHalf * kWidth <= task.end; s += kHalf * kWidth) reduce_tile<T, MAPS, kHalf>(task, c0, c1, s);
    for (; s + kWidth <= task.end; s += kWidth) reduce_tile<T, MAPS, 1>(task, c0, c1, s);
    if (s == task.end) continue;
    if (s == task.begin) {
      reduce_tile<T, MAPS, 1, true>(task, c0, c1, s, task.end - s);
    } else {
      reduce_tile<T, MAPS, 1>(task, c0, c1, task.end - kWidth, task.end - s);
    }
  }
}

/// Channels last: each position is a dot product over contiguous channels, in blocks of four vectors of accumulators.
template <class T, int MAPS>
static void reduce_channels_last(const ReduceTask& task) {
  constexpr int64_t kLong = 4 * kWidth * kBlock;
  const int64_t length = task.end - task.begin;
  for (int64_t s = task.begin; s < task.end; ++s) {
    const auto* x = static_cast<const typename T::type*>(task.features) + s * task.stride_s;
    for (int64_t c0 = task.c_begin; c0 < task.c_end; c0 += kLong) {
      const int64_t c1 = c0 + kLong < task.c_end ? c0 + kLong : task.c_end;
      Vec sum[MAPS][4] = {};
      int64_t c = c0;
      for (; c + 4 * kWidth <= c1; c += 4 * kWidth) {
        for (int v = 0; v < 4; ++v) {
          const Vec xv = T::unpack(load_as<typename T::Packed>(x + c + v * kWidth));
          for (int m = 0; m < MAPS; ++m) {
            sum[m][v] = fma(load_as<Vec>(task.weight + m * task.weight_stride + c + v * kWidth), xv, sum[m][v]);
          }
        }
      }
      for (; c < c1; c += kWidth) {
        const int64_t valid = c1 - c < kWidth ? c1 - c : kWidth;
        const Vec xv = T::unpack(load_first<typename T::Packed>(x + c, valid));
        for (int m = 0; m < MAPS; ++m) {
          sum[m][0] = fma(load_first<Vec>(task.weight + m * task.weight_stride + c, valid), xv, sum[m][0]);
        }
      }
      for (int m = 0; m < MAPS; ++m) {
        double lanes[kWidth] = {}, total = 0;
        for (int v = 0; v < 4; ++v) add_lanes(lanes, sum[m][v]);
        for (int i = 0; i < kWidth; ++i) total += lanes[i];
        task.sums[m * length + (s - task.begin)] += total;
      }
    }
  }
}

template <class T>
static void reduce_as(const ReduceTask& task) {
  for (int64_t i = 0; i < task.count * (task.end - task.begin); ++i) task.sums[i] = 0;
  if (task.stride_s == 1) {
    if (task.count == 1) return reduce_contiguous<T, 1>(task);
    if (task.count == 2) return reduce_contiguous<T, 2>(task);
    if (task.count == 3) return reduce_contiguous<T, 3>(task);
    return reduce_contiguous<T, 4>(task);
  }
  if (task.count == 1) return reduce_channels_last<T, 1>(task);
  if (task.count == 2) return reduce_channels_last<T, 2>(task);
  if (task.count == 3) return reduce_channels_last<T, 3>(task);
  return reduce_channels_last<T, 4>(task);
}

static void reduce(DType features, const ReduceTask& task) {
  if (features == DType::float32) return reduce_as<Float32>(task);
  if (features == DType::float16) return reduce_as<Float16>(task);
  return reduce_as<BFloat16>(task);
}
