// B-spline resampling in float32, for kernels that compute the taps of an output where they need them: where an output
// lies, the weights of its taps, and the spline within one cell of the grid as a polynomial.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/host_device.h"

namespace clipsight {

/// Of what is not negative. A 64-bit division takes a device several times as long as a 32-bit one.
CLIPSIGHT_HD inline int64_t divide(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

/// The resampling of one axis in float32, for kernels that compute the taps of an output where they need them. Integers
/// place the output, so what is rounded is the position within a cell, not the coordinate. Fewer than 2^31 samples.
struct GridAxis {
  int64_t n_in, n_out;

  struct Position {
    int64_t cell;
    int32_t rest;  // of the cell's length
  };
  CLIPSIGHT_HD int64_t step() const { return n_in - 1; }                     // from one output to the next
  CLIPSIGHT_HD int64_t length() const { return n_out > 1 ? n_out - 1 : 1; }  // of a cell, in the same units
  CLIPSIGHT_HD float fraction(int32_t rest) const {
    return static_cast<float>(rest) * (1.0f / static_cast<float>(static_cast<int32_t>(length())));
  }
  CLIPSIGHT_HD Position position(int64_t i) const {
    const int64_t at = i * step(), cell = divide(at, length());
    return {cell, static_cast<int32_t>(at - cell * length())};
  }
  /// The first output in or beyond a cell.
  CLIPSIGHT_HD int64_t first_output(int64_t cell) const {
    return cell == 0 ? 0 : n_in == 1 ? n_out : divide(cell * length() + step() - 1, step());
  }
  /// The most outputs that lie in one cell.
  CLIPSIGHT_HD int64_t outputs_of_cell() const { return n_in == 1 ? n_out : divide(length() + step() - 1, step()); }
};

/// mirror_index for what a tap reaches: i in [-1, n + 1].
CLIPSIGHT_HD inline int64_t reflect(int64_t i, int64_t n) {
  if (n == 1) return 0;
  const int64_t once = i < 0 ? -i : i, other = 2 * (n - 1) - once;
  return once < n ? once : other < 0 ? -other : other;
}

/// Weights of the coefficients cell - 1 .. cell + 2 at a fraction of the cell.
CLIPSIGHT_HD inline void spline_weights(int order, float f, float (&weight)[4]) {
  const float g = 1.0f - f;
  if (order == 1) {
    weight[0] = 0, weight[1] = g, weight[2] = f, weight[3] = 0;
  } else {
    weight[0] = g * g * g * (1.0f / 6), weight[3] = f * f * f * (1.0f / 6);
    weight[1] = fmaf(f * f, fmaf(0.5f, f, -1.0f), 2.0f / 3);
    weight[2] = fmaf(g * g, fmaf(0.5f, g, -1.0f), 2.0f / 3);
  }
}

/// The spline within one cell as a polynomial of the fraction: three operations a value.
struct CellPolynomial {
  float term[4];

  CLIPSIGHT_HD float operator()(float f) const { return fmaf(fmaf(fmaf(term[3], f, term[2]), f, term[1]), f, term[0]); }
};

/// From the coefficients cell - 1 .. cell + 2.
CLIPSIGHT_HD inline CellPolynomial cell_polynomial(int order, float a, float b, float c, float d) {
  if (order == 1) return {{b, c - b, 0.0f, 0.0f}};
  const float sixth = 1.0f / 6;
  return {{fmaf(4.0f, b, a + c) * sixth, 0.5f * (c - a), fmaf(0.5f, a + c, -b), fmaf(0.5f, b - c, (d - a) * sixth)}};
}

/// The same as a Bezier curve: its four control values enclose all values of the cell.
CLIPSIGHT_HD inline void cell_controls(int order, float a, float b, float c, float d, float (&control)[4]) {
  const float third = 1.0f / 3;
  control[0] = order == 1 ? b : fmaf(4.0f, b, a + c) * (third / 2);
  control[1] = fmaf(2.0f, b, c) * third;
  control[2] = fmaf(2.0f, c, b) * third;
  control[3] = order == 1 ? c : fmaf(4.0f, c, b + d) * (third / 2);
}

}  // namespace clipsight
