// back_step for one SIMD level (included by ops/levels/kernels_body.h).

/// s = pooled * row, and its range; the range starts with NaN where the row has one. The last vector is filled up.
/// Not inlined: seen together, the product and the gate's subtraction would be fused.
template <class T>
__attribute__((noinline)) static void multiply(const float* pooled, const typename T::type* row, int64_t width,
                                               float* s, float* range) {
  using Packed = typename T::Packed;
  Vec low = splat(__builtin_inff()), high = -low;
  IVec nan{};
  for (int64_t j = 0; j < width; j += kWidth) {
    const int64_t valid = width - j;
    Vec v;
    if (valid >= kWidth) {
      v = load_as<Vec>(pooled + j) * T::unpack(load_as<Packed>(row + j));
    } else {
      v = load_first<Vec>(pooled + j, valid) * T::unpack(load_first<Packed>(row + j, valid));
      for (int64_t i = valid; i < kWidth; ++i) v[i] = v[0];
    }
    store_as(s + j, v);
    low = min(low, v);
    high = max(high, v);
    nan |= v != v;
  }
  float lows[kWidth], highs[kWidth];
  store_as(lows, low);
  store_as(highs, high);
  for (int half = kWidth / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      lows[i] = lows[i + half] < lows[i] ? lows[i + half] : lows[i];
      highs[i] = highs[i + half] > highs[i] ? highs[i + half] : highs[i];
    }
  }
  range[0] = any(nan) ? __builtin_nanf("") : lows[0];
  range[1] = highs[0];
}

// The compiler finds better code for these than for vectors of bytes.
static void gate(const float* __restrict s, int64_t width, float low, float limit, uint8_t* __restrict kept) {
  for (int64_t j = 0; j < width; ++j) kept[j] = s[j] - low >= limit;
}

static void put_edges(const uint8_t* __restrict kept, int64_t width, uint8_t* __restrict edges,
                      uint8_t* __restrict counts) {
  for (int64_t j = 0; j < width; ++j) {
    edges[j] = kept[j];
    counts[j] = static_cast<uint8_t>(counts[j] + kept[j]);
  }
}

template <class T>
static void back_step_as(const BackStepTask& task) {
  const BackStepArgs& args = *task.args;
  const int64_t channels = args.groups * args.width, rows_of_group = args.out_channels / args.groups;
  const auto* kernel = static_cast<const typename T::type*>(args.kernel);
  __builtin_memset(task.counts, 0, static_cast<size_t>(args.maps * channels));
  for (int64_t i = task.begin; i < task.end; ++i) {
    const int64_t first = i / rows_of_group * args.width;
    bool ready = false;
    for (int64_t m = 0; m < args.maps; ++m) {
      const int64_t row = (task.sample * args.maps + m) * args.out_channels + i;
      uint8_t* edges = args.edges + row * args.width;
      if (!args.selected[row]) {
        __builtin_memset(edges, 0, static_cast<size_t>(args.width));
        continue;
      }
      if (!ready) {
        float range[2];
        multiply<T>(args.pooled + task.sample * channels + first, kernel + i * args.width, args.width, task.s, range);
        gate(task.s, args.width, range[0], back_step_limit(range[0], range[1], args.theta), task.kept);
        ready = true;
      }
      put_edges(task.kept, args.width, edges, task.counts + m * channels + first);
    }
  }
}

static void back_step(const BackStepTask& task) {
  const DType kernel = task.args->kernel_dtype;
  if (kernel == DType::float32) return back_step_as<Float32>(task);
  if (kernel == DType::float16) return back_step_as<Float16>(task);
  return back_step_as<BFloat16>(task);
}
