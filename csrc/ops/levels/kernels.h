// What a SIMD level offers to the drivers (ops/*_cpu.cpp): one table of functions, compiled once per level.
// The functions work on plain pointers and a range; drivers own memory, threads and all float64 set-up.
#pragma once

#include <cstdint>

#include "core/types.h"
#include "ops/back_step.h"
#include "ops/channel_reduce.h"
#include "ops/saliency_tube.h"

namespace clipsight {

/// Positions [begin, end) of one sample's `count` (at most 4) maps, over channels [c_begin, c_end).
struct ReduceTask {
  const void* features;  // of this sample
  int64_t stride_c, stride_s, c_begin, c_end, begin, end;
  const float* weight;   // gated; row m at weight + m * weight_stride
  int64_t weight_stride;
  int count;
  double* sums;          // [count][end - begin]; overwritten
};

/// A banded matrix: row i has the weights offset[i] .. offset[i+1], for the columns from first[i] on.
struct Bands {
  const int64_t* first;
  const int64_t* offset;
  const double* weight;
};

/// The same for whole vectors of outputs: block i has `taps` columns from first[i] on, with weights [taps][width].
struct BlockBands {
  const int64_t* first;
  int64_t taps;
  const float* weight;
};

/// Neighbouring output rows [begin, end) that are one polynomial of their position in a cell of the grid: four terms
/// (cubic, lowest power first), or a single row as it is. Each term is a banded row over the columns from first on.
struct Piece {
  int64_t begin, end;
  int64_t first, taps;
  int terms;         // 4, or 1 (a single row)
  int64_t offset;    // of its weights [terms, taps]
};

/// An axis cut into pieces.
struct Pieces {
  const Piece* piece;
  const int64_t* of_row;  // [n_out]: the index of the piece
  const float* position;  // [n_out]: in its cell, 0 to 1
  const double* weight;
};

/// Three matrices that turn spline coefficients [in.t, in.h, pitch] into a volume [out.t, out.h, out.w].
struct Resample {
  Shape3 in, out;
  int64_t pitch;  // in.w rounded up to whole vectors; the padding repeats the last column
  Bands t;
  Pieces h;
  BlockBands w;
};

/// One frame after the t stage, float64 [in.h, pitch], and the output rows that are wanted.
struct RowTask {
  const Resample* resample;
  const double* frame;
  int64_t begin, end;
  float* scratch;  // row_scratch(resample, width) values
};

constexpr int kSlots = 3;  // pieces of a derivative that one piece of the map usually meets

/// Terms of one piece before the w stage, and of kSlots pieces after it.
inline int64_t row_scratch(const Resample& r, int64_t width) {
  return 4 * (r.pitch + kSlots * ((r.out.w + width - 1) / width * width));
}

struct WriteTask {
  RowTask value;
  Normaliser normaliser;
  float ceiling;            // 1, or infinity where the map stays raw
  void* tube;               // of this frame: row r at r * out.w
  // selective only:
  RowTask derivative;
  float threshold;
  Sign sign;
  void* motion;
  double* sums;             // sum |R|, sum |R| mask; added to
};

/// One output row of the Sobel operator on a given volume, from the rows above, at and below it in the frames before
/// and after it (the driver has applied the border rule to these).
struct SobelTask {
  const float* before[3];
  const float* after[3];
  int64_t width;
  Padding padding;
  float* scratch;  // width + 2
  float* row;      // [width]: G
};

struct SelectTask {
  const float* volume;      // a row of R
  const float* derivative;  // of G
  int64_t width;
  float low, scale;         // (R - low) * scale comes first (the 2020 script's pre-scaling), else 0 and 1
  float threshold;
  Sign sign;
  float* motion;
  double* sums;             // sum |R|, sum |R| mask; added to
};

/// Rows [begin, end) of one sample, at most 255.
struct BackStepTask {
  const BackStepArgs* args;
  int64_t sample, begin, end;
  float* s;         // scratch, width values in whole vectors
  uint8_t* kept;    // scratch, width values
  uint8_t* counts;  // [M, C_in]: edges of these rows; overwritten
};

struct Kernels {
  int width;
  void (*reduce)(DType features, const ReduceTask& task);
  /// The t stage: `out` [in.h, pitch].
  void (*frame_coefficients)(const Resample& resample, int64_t frame, const double* coefficients, double* out);
  /// Widens range = {low, high} by the rows; what cannot widen it is skipped.
  void (*widen_range)(const RowTask& task, float* range);
  void (*write)(DType output, bool selective, const WriteTask& task);
  double (*sum_of_abs)(const RowTask& task);
  void (*sobel_row)(const SobelTask& task);
  /// Adds sum, sum of squares, sum of absolutes of the row to moments[0..2].
  void (*row_moments)(const float* row, int64_t width, double* moments);
  /// Widens range by the row; returns false where the row has a non-finite value.
  bool (*row_range)(const float* row, int64_t width, float* range);
  void (*select_row)(const SelectTask& task);
  void (*to_float32)(const uint16_t* half, int64_t count, float* single);
  void (*to_float16)(const float* single, int64_t count, uint16_t* half);
  void (*back_step)(const BackStepTask& task);
};

const Kernels& kernels(SimdLevel level);

extern const Kernels kernels_baseline;
#ifdef CLIPSIGHT_X86_LEVELS
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace clipsight
