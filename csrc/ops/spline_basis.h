// The matrices of separable B-spline resampling, one row at a time, in float64, for host and device.
//
// Resampling an axis is E P: P turns samples into spline coefficients (prefilter, mirror extension about the end
// samples), E evaluates the spline on the align-corners grid. E is banded, non-negative and its rows sum to 1.
// The Sobel operator of the resampled axis is D E (derivative) or S E (smoothing), border rule included, so the
// derivative of an up-sampled map costs no more than the map itself.
// (M. Unser, A. Aldroubi, M. Eden, "B-spline signal processing", IEEE Trans. Signal Processing 41(2), 1993.)
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/types.h"

namespace clipsight {

/// Whole-sample mirror: ... 2 1 | 0 1 2 ... n-1 | n-2 ...
CLIPSIGHT_HD inline int64_t mirror_index(int64_t i, int64_t n) {
  if (i >= 0 && i < n) return i;
  if (n == 1) return 0;
  const int64_t period = 2 * (n - 1);
  i %= period;
  if (i < 0) i += period;
  return i < n ? i : period - i;
}

/// Input coordinate of output index i; an output of length 1 samples coordinate 0.
CLIPSIGHT_HD inline double align_corners(int64_t i, int64_t n_in, int64_t n_out) {
  return n_out == 1 ? 0.0 : static_cast<double>(i) * static_cast<double>(n_in - 1) / static_cast<double>(n_out - 1);
}

/// The order + 1 B-spline weights of one output; tap k belongs to coefficient mirror_index(first + k).
struct SplineTaps {
  int64_t first;
  int count;
  double weight[4];
};

CLIPSIGHT_HD inline SplineTaps spline_taps(int order, int64_t i, int64_t n_in, int64_t n_out) {
  const double x = align_corners(i, n_in, n_out);
  const int64_t cell = static_cast<int64_t>(x);  // x >= 0: truncation is floor
  const double f = x - static_cast<double>(cell), g = 1.0 - f;
  SplineTaps taps;
  if (order == 1) {
    taps = {cell, 2, {g, f, 0.0, 0.0}};
  } else {
    taps = {cell - 1, 4, {g * g * g / 6.0, 2.0 / 3.0 - f * f * (2.0 - f) / 2.0, 2.0 / 3.0 - g * g * (2.0 - g) / 2.0,
                          f * f * f / 6.0}};
  }
  return taps;
}

enum class AxisOperator { evaluate, smooth, derive };  // E, S E, D E

/// Adds `scale` times row i of E to row[0 .. n_in). Outside [0, n_out) the border rule decides.
CLIPSIGHT_HD inline void add_evaluation_row(double scale, int order, int64_t i, int64_t n_in, int64_t n_out,
                                            Padding padding, double* row) {
  if (i < 0 || i >= n_out) {
    if (padding == Padding::zeros) return;
    i = i < 0 ? 0 : n_out - 1;
  }
  const SplineTaps taps = spline_taps(order, i, n_in, n_out);
  for (int k = 0; k < taps.count; ++k) row[mirror_index(taps.first + k, n_in)] += scale * taps.weight[k];
}

/// Adds row i of E, S E or D E to row[0 .. n_in). `padding` is the Sobel border rule; E itself has none.
CLIPSIGHT_HD inline void add_axis_row(AxisOperator op, int order, int64_t i, int64_t n_in, int64_t n_out,
                                      Padding padding, double* row) {
  if (op == AxisOperator::evaluate) {
    add_evaluation_row(1.0, order, i, n_in, n_out, padding, row);
  } else if (op == AxisOperator::smooth) {
    add_evaluation_row(1.0, order, i - 1, n_in, n_out, padding, row);
    add_evaluation_row(2.0, order, i, n_in, n_out, padding, row);
    add_evaluation_row(1.0, order, i + 1, n_in, n_out, padding, row);
  } else {
    add_evaluation_row(1.0, order, i + 1, n_in, n_out, padding, row);
    add_evaluation_row(-1.0, order, i - 1, n_in, n_out, padding, row);
  }
}

/// The same, written instead of added.
CLIPSIGHT_HD inline void axis_row(AxisOperator op, int order, int64_t i, int64_t n_in, int64_t n_out, Padding padding,
                                  double* row) {
  for (int64_t j = 0; j < n_in; ++j) row[j] = 0.0;
  add_axis_row(op, order, i, n_in, n_out, padding, row);
}

/// Turns n samples into cubic spline coefficients, in place. The first causal value is the exact sum over the
/// mirrored period (not the usual truncated series), so any length is exact. Order 1 needs no prefilter.
CLIPSIGHT_HD inline void cubic_prefilter(double* line, int64_t n, int64_t stride) {
  if (n == 1) return;
  const double pole = -0.26794919243112270647;  // sqrt(3) - 2
  double power = 1.0, sum = 0.0;
  for (int64_t k = 0; k < n; ++k, power *= pole) sum += power * line[k * stride];
  for (int64_t k = n - 2; k > 0; --k, power *= pole) sum += power * line[k * stride];
  line[0] = sum / (1.0 - power);  // power == pole^(2n-2)
  for (int64_t k = 1; k < n; ++k) line[k * stride] += pole * line[(k - 1) * stride];
  double* last = line + (n - 1) * stride;
  *last = pole / (pole * pole - 1.0) * (*last + pole * last[-stride]);
  for (int64_t k = n - 2; k >= 0; --k) line[k * stride] = pole * (line[(k + 1) * stride] - line[k * stride]);
  for (int64_t k = 0; k < n; ++k) line[k * stride] *= 6.0;  // gain (1 - pole)(1 - 1/pole)
}

}  // namespace clipsight
