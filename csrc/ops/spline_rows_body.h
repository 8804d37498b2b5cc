// The row engine of spline_upsample, saliency_tube and selective_tube for one SIMD level (included by
// ops/levels/kernels_body.h). Three banded products turn spline coefficients into output rows:
//
//   coefficients [t, h, w] --t stage--> frame [h, w] --h stage--> piece [4, w] --w stage--> piece [4, W] --> rows [W]
//   (float64, tiny)                     (float64)                 (float)                   (float, L1)
//
// Output rows in one cell of the grid are a cubic polynomial of their position in it: the h stage gives its four terms,
// and all that is left per voxel are three multiply-adds.
// Both passes over the map (range, then write) run the same code in the same order, so they see the same bits.

/// Columns of a piece: whole vectors.
static inline int64_t wide_pitch(int64_t width) { return (width + kWidth - 1) / kWidth * kWidth; }

/// Half a vector of sum_k weight[k] from[k].
static inline DVec combine(const double* weight, int64_t count, const double* from, int64_t stride) {
  DVec sum = weight[0] * load_as<DVec>(from);
  for (int64_t k = 1; k < count; ++k) sum += weight[k] * load_as<DVec>(from + k * stride);
  return sum;
}

static void frame_coefficients(const Resample& resample, int64_t frame, const double* coefficients, double* out) {
  const Bands& t = resample.t;
  const int64_t plane = resample.in.h * resample.pitch, begin = t.offset[frame], count = t.offset[frame + 1] - begin;
  const double* from = coefficients + t.first[frame] * plane;
  for (int64_t p = 0; p < plane; p += kWidth / 2) store_as(out + p, combine(t.weight + begin, count, from + p, plane));
}

/// The w stage of `TERMS` rows. TAPS is resample.w.taps where that is the usual number, else 0.
template <int TERMS, int TAPS>
static inline void expand_columns(const Resample& resample, const float* narrow, float* out) {
  const BlockBands& w = resample.w;
  const int64_t pitch = resample.pitch, wide = wide_pitch(resample.out.w), taps = TAPS ? TAPS : w.taps;
  const float* weight = w.weight;
  for (int64_t x = 0, block = 0; x < wide; x += kWidth, ++block, weight += taps * kWidth) {
    const float* from = narrow + w.first[block];
    Vec sum[TERMS] = {};
    for (int64_t k = 0; k < taps; ++k) {
      const Vec column = load_as<Vec>(weight + k * kWidth);
      for (int term = 0; term < TERMS; ++term) sum[term] = fma(splat(from[term * pitch + k]), column, sum[term]);
    }
    for (int term = 0; term < TERMS; ++term) store_as(out + term * wide + x, sum[term]);
  }
}

/// The h stage of one piece, into the scratch: [TERMS][pitch].
template <int TERMS>
static inline const float* narrow_terms(const RowTask& task, const Piece& piece) {
  const int64_t pitch = task.resample->pitch;
  const double *weight = task.resample->h.weight + piece.offset, *from = task.frame + piece.first * pitch;
  for (int term = 0; term < TERMS; ++term) {
    for (int64_t p = 0; p < pitch; p += kWidth / 2) {
      const DVec sum = combine(weight + term * piece.taps, piece.taps, from + p, pitch);
      store_as(task.scratch + term * pitch + p, __builtin_convertvector(sum, HalfVec));
    }
  }
  return task.scratch;
}

/// Its w stage, behind that: [TERMS][wide_pitch]. There is room for kSlots pieces.
template <int TERMS>
static inline const float* wide_terms(const RowTask& task, const float* narrow, int slot = 0) {
  float* out = task.scratch + 4 * (task.resample->pitch + slot * wide_pitch(task.resample->out.w));
  if (task.resample->w.taps == 5) {
    expand_columns<TERMS, 5>(*task.resample, narrow, out);
  } else {
    expand_columns<TERMS, 0>(*task.resample, narrow, out);
  }
  return out;
}

static const float* expand(const RowTask& task, const Piece& piece, int slot = 0) {
  return piece.terms == 4 ? wide_terms<4>(task, narrow_terms<4>(task, piece), slot)
                          : wide_terms<1>(task, narrow_terms<1>(task, piece), slot);
}

static inline const Piece& piece_of(const RowTask& task, int64_t row) {
  const Pieces& h = task.resample->h;
  return h.piece[h.of_row[row]];
}

/// One vector of columns of a piece.
template <int TERMS>
struct Polynomial {
  Vec term[TERMS ? TERMS : 1];

  Polynomial() = default;
  inline Polynomial(const float* terms, int64_t pitch, int64_t x) {
    for (int k = 0; k < TERMS; ++k) term[k] = load_as<Vec>(terms + k * pitch + x);
  }
  inline void flip(IVec sign_bits) {
    for (int k = 0; k < TERMS; ++k) term[k] = (Vec)((IVec)term[k] ^ sign_bits);
  }
  inline Vec at(Vec position) const {
    Vec sum = term[TERMS ? TERMS - 1 : 0];
    for (int k = TERMS - 2; k >= 0; --k) sum = fma(sum, position, term[k]);
    return sum;
  }
};

/// A cubic polynomial on [0, 1] lies between the smallest and the largest of its four Bezier points.
struct BezierRange {
  Vec smallest, largest;

  explicit inline BezierRange(const Polynomial<4>& p) {
    const Vec third = p.term[1] * (1.0f / 3.0f), b1 = p.term[0] + third, b2 = b1 + third + p.term[2] * (1.0f / 3.0f);
    const Vec b3 = p.at(splat(1.0f));
    smallest = min(min(p.term[0], b1), min(b2, b3));
    largest = max(max(p.term[0], b1), max(b2, b3));
  }
};

/// Whether one of [pitch] cubic polynomials can leave the range. The margin covers rounding.
static inline bool can_leave(const float* range, const float* terms, int64_t pitch, int64_t begin, int64_t end) {
  const float low = range[0], high = range[1];
  if (low > high) return true;  // nothing was seen yet
  const float margin = 1e-5f * (high - low) + 1e-6f * ((low < 0 ? -low : low) + (high < 0 ? -high : high));
  IVec leaves{};
  for (int64_t x = begin; x < end; x += kWidth) {
    const BezierRange bounds(Polynomial<4>(terms, pitch, x));
    leaves |= (bounds.smallest < splat(low + margin)) | (bounds.largest > splat(high - margin));
  }
  return any(leaves);
}

static inline void widen(float* range, Vec smallest, Vec largest) {
  if (!any((smallest < splat(range[0])) | (largest > splat(range[1])))) return;
  for (int i = 0; i < kWidth; ++i) {
    if (smallest[i] < range[0]) range[0] = smallest[i];
    if (largest[i] > range[1]) range[1] = largest[i];
  }
}

/// The w stage is an average, so a piece whose terms before it stay in the range does so after it. What cannot widen
/// the range is not evaluated.
static void widen_range(const RowTask& task, float* range) {
  const int64_t pitch = task.resample->pitch, wide = wide_pitch(task.resample->out.w);
  const float* position = task.resample->h.position;
  for (int64_t row = task.begin, end; row < task.end; row = end) {
    const Piece& piece = piece_of(task, row);
    end = piece.end < task.end ? piece.end : task.end;
    if (piece.terms == 1) {
      const float* terms = wide_terms<1>(task, narrow_terms<1>(task, piece));
      for (int64_t x = 0; x < wide; x += kWidth) widen(range, load_as<Vec>(terms + x), load_as<Vec>(terms + x));
      continue;
    }
    const float* narrow = narrow_terms<4>(task, piece);
    if (!can_leave(range, narrow, pitch, 0, pitch)) continue;
    const float* terms = wide_terms<4>(task, narrow);
    for (int64_t x = 0; x < wide; x += kWidth) {  // lanes beyond the row repeat its last column
      if (!can_leave(range, terms, wide, x, x + kWidth)) continue;
      const Polynomial<4> rows(terms, wide, x);
      Vec smallest = rows.at(splat(position[row])), largest = smallest;
      for (int64_t r = row + 1; r < end; ++r) {
        const Vec v = rows.at(splat(position[r]));
        smallest = min(smallest, v);
        largest = max(largest, v);
      }
      widen(range, smallest, largest);
    }
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
  Vec low, scale, ceiling, threshold;
  IVec magnitude_bits, sign_bits;  // (G ^ sign_bits) & magnitude_bits is |G|, G or -G
  Vec total, kept;                 // sum |R|, sum |R| mask of the current rows
};

/// Whether |G| can exceed the threshold in VECTORS vectors of columns from x on. In most of a map it does not.
template <int VECTORS>
static inline bool can_select(const float* terms, int64_t pitch, int64_t x, Vec threshold) {
  IVec selects{};
  for (int v = 0; v < VECTORS; ++v) {
    const BezierRange bounds(Polynomial<4>(terms, pitch, x + v * kWidth));
    selects |= max(abs(bounds.smallest), abs(bounds.largest)) >= threshold * (1.0f - 1e-5f);  // the margin: rounding
  }
  return any(selects);
}

/// Rows of one piece of the map and, where there is a derivative, of one piece of that.
struct Stretch {
  int64_t begin, end;
  const float* derivative;
  int terms;
};

/// DERIVATIVE is 0 where nothing is selected.
template <class T, bool SELECTIVE, int VALUE, int DERIVATIVE, int VECTORS, bool TAIL>
static inline void write_stretch(const WriteTask& task, const Polynomial<VALUE> (&value)[VECTORS],
                                 const Stretch& stretch, int64_t x, WriteState& state) {
  const int64_t width = task.value.resample->out.w, valid = width - x;
  const float* position = task.value.resample->h.position;
  void *const tube_out = task.tube, *const motion_out = task.motion;
  Polynomial<DERIVATIVE> d0(stretch.derivative, wide_pitch(width), x);
  Polynomial<DERIVATIVE> d1(stretch.derivative, wide_pitch(width), x + (VECTORS - 1) * kWidth);
  d0.flip(state.sign_bits);
  d1.flip(state.sign_bits);
  Vec total = state.total, kept = state.kept;
  for (int64_t r = stretch.begin; r < stretch.end; ++r) {
    const Vec at = splat(position[r]);
    for (int v = 0; v < VECTORS; ++v) {
      const int64_t index = r * width + x + v * kWidth;
      const Vec raw = value[v].at(at);
      // No raw value lies below `low`: the pass that found it saw the same bits.
      const Vec tube = min((raw - state.low) * state.scale, state.ceiling);
      put<T, TAIL>(tube_out, index, tube, valid);
      if (!SELECTIVE) continue;
      Vec magnitude = abs(raw);
      if (TAIL) magnitude = load_first<Vec>(reinterpret_cast<const float*>(&magnitude), valid);
      total += magnitude;
      if (DERIVATIVE == 0) {
        put<T, TAIL>(motion_out, index, Vec{}, valid);
        continue;
      }
      const Vec g = (v ? d1 : d0).at(at);
      const IVec mask = (Vec)((IVec)g & state.magnitude_bits) > state.threshold;
      put<T, TAIL>(motion_out, index, mask ? tube : Vec{}, valid);
      kept = mask ? kept + magnitude : kept;
    }
  }
  state.total = total;
  state.kept = kept;
}

/// VECTORS vectors of columns from x on: the map's terms stay in registers for all stretches.
template <class T, bool SELECTIVE, int VALUE, int VECTORS, bool TAIL>
static inline void write_columns(const WriteTask& task, const float* terms, const Stretch* stretch, int stretches,
                                 int64_t x, WriteState& state) {
  const int64_t pitch = wide_pitch(task.value.resample->out.w);
  Polynomial<VALUE> value[VECTORS];
  for (int v = 0; v < VECTORS; ++v) value[v] = Polynomial<VALUE>(terms, pitch, x + v * kWidth);
  WriteState strip = state;
  strip.total = strip.kept = Vec{};
  for (int i = 0; i < stretches; ++i) {
    if (!SELECTIVE) {
      write_stretch<T, false, VALUE, 0, VECTORS, TAIL>(task, value, stretch[i], x, strip);
    } else if (stretch[i].terms == 4 && !can_select<VECTORS>(stretch[i].derivative, pitch, x, state.threshold)) {
      write_stretch<T, true, VALUE, 0, VECTORS, TAIL>(task, value, stretch[i], x, strip);
    } else if (VALUE == 4 && stretch[i].terms == 4) {
      write_stretch<T, true, VALUE, 4, VECTORS, TAIL>(task, value, stretch[i], x, strip);
    } else {
      write_stretch<T, true, VALUE, 1, VECTORS, TAIL>(task, value, stretch[i], x, strip);
    }
  }
  state.total += strip.total;
  state.kept += strip.kept;
}

template <class T, bool SELECTIVE, int VALUE>
static void write_stretches(const WriteTask& task, const float* terms, const Stretch* stretch, int stretches,
                            WriteState& state) {
  constexpr int kVectors = kWidth == 16 ? 2 : 1;  // as many as the registers hold
  const int64_t width = task.value.resample->out.w;
  int64_t x = 0;
  for (; x + kVectors * kWidth <= width; x += kVectors * kWidth) {
    write_columns<T, SELECTIVE, VALUE, kVectors, false>(task, terms, stretch, stretches, x, state);
  }
  for (; x + kWidth <= width; x += kWidth) {
    write_columns<T, SELECTIVE, VALUE, 1, false>(task, terms, stretch, stretches, x, state);
  }
  if (x < width) write_columns<T, SELECTIVE, VALUE, 1, true>(task, terms, stretch, stretches, x, state);
}

template <class T, bool SELECTIVE>
static void write_rows(const WriteTask& task) {
  WriteState state{splat(task.normaliser.low), splat(task.normaliser.scale), splat(task.ceiling), splat(task.threshold),
                   IVec{} + (task.sign == Sign::absolute ? 0x7fffffff : -1),
                   IVec{} + (task.sign == Sign::falling ? INT32_MIN : 0), Vec{}, Vec{}};
  double total[kWidth] = {}, kept[kWidth] = {};
  for (int64_t row = task.value.begin; row < task.value.end;) {
    const Piece& value = piece_of(task.value, row);
    const int64_t end = value.end < task.value.end ? value.end : task.value.end;
    const float* terms = expand(task.value, value);
    while (row < end) {
      // The derivative's pieces are those of the map, less single rows where it reaches into the next cell.
      Stretch stretch[kSlots] = {{row, end, nullptr, 0}};
      int stretches = 1;
      if (SELECTIVE) {
        for (stretches = 0; stretches < kSlots && row < end; row = stretch[stretches++].end) {
          const Piece& piece = piece_of(task.derivative, row);
          stretch[stretches] = {row, piece.end < end ? piece.end : end, expand(task.derivative, piece, stretches),
                                piece.terms};
        }
      } else {
        row = end;
      }
      state.total = state.kept = Vec{};
      if (value.terms == 4) {
        write_stretches<T, SELECTIVE, 4>(task, terms, stretch, stretches, state);
      } else {
        write_stretches<T, SELECTIVE, 1>(task, terms, stretch, stretches, state);
      }
      if (SELECTIVE) {
        add_lanes(total, state.total);
        add_lanes(kept, state.kept);
      }
    }
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

template <int TERMS>
static void add_abs(const RowTask& task, const float* terms, int64_t row, int64_t end, double* lanes) {
  const int64_t width = task.resample->out.w;
  for (int64_t x = 0; x < width; x += kWidth) {
    const Polynomial<TERMS> rows(terms, wide_pitch(width), x);
    Vec sum{};
    for (int64_t r = row; r < end; ++r) sum += abs(rows.at(splat(task.resample->h.position[r])));
    if (width - x < kWidth) sum = load_first<Vec>(reinterpret_cast<const float*>(&sum), width - x);
    add_lanes(lanes, sum);
  }
}

static double sum_of_abs(const RowTask& task) {
  double lanes[kWidth] = {}, sum = 0;
  for (int64_t row = task.begin, end; row < task.end; row = end) {
    const Piece& piece = piece_of(task, row);
    end = piece.end < task.end ? piece.end : task.end;
    const float* terms = expand(task, piece);
    if (piece.terms == 4) {
      add_abs<4>(task, terms, row, end, lanes);
    } else {
      add_abs<1>(task, terms, row, end, lanes);
    }
  }
  for (int i = 0; i < kWidth; ++i) sum += lanes[i];
  return sum;
}
