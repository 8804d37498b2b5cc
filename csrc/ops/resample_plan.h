// Everything about a resampling that does not depend on the data: the banded matrices, and for the derivative the
// column sums and Gram matrices from which its moments follow. Float64 throughout, then rounded once.
#pragma once

#include <memory>
#include <vector>

#include "core/aligned.h"
#include "core/workspace.h"
#include "ops/levels/kernels.h"
#include "ops/spline_basis.h"

namespace clipsight {

/// One banded matrix [n_out, n_in] and, on request, its column sums and Gram matrix (A^T A).
struct AxisMatrix {
  std::vector<int64_t> first, offset;
  std::vector<double> weight;
  std::vector<double> column_sums;  // [n_in]
  std::vector<double> gram;         // [n_in, n_in]
  int64_t gram_band = 0;            // |i - j| <= gram_band where gram is not zero

  AxisMatrix(AxisOperator op, int order, int64_t n_in, int64_t n_out, Padding padding, bool moments);
};

/// The same matrix by pieces: within a cell of the grid its rows are a cubic polynomial, four terms for many rows.
struct PiecewiseAxis {
  std::vector<Piece> pieces;
  std::vector<int64_t> of_row;
  std::vector<float> position;
  std::vector<double> weight;

  PiecewiseAxis(const AxisMatrix& matrix, AxisOperator op, int order, int64_t n_in, int64_t n_out);
};

enum class MapKind { value, derivative };

/// Immutable once built, so threads and calls can share one.
class ResamplePlan {
 public:
  ResamplePlan(MapKind kind, Shape3 in, Shape3 out, int order, Padding padding, int width);

  Resample view() const;
  int64_t coefficient_count() const { return in_.t * in_.h * pitch_; }

  /// The output rows in groups that are worth a unit of work and end where a piece ends if one does: the first row of
  /// each, then out.h.
  const std::vector<int64_t>& row_groups() const { return row_groups_; }

  /// Sum and sum of squares over all outputs of the derivative, exactly from the coefficients.
  struct Moments {
    double sum, sum_of_squares;
  };
  Moments moments(const double* coefficients, Workspace& workspace) const;

 private:
  Shape3 in_, out_;
  int64_t pitch_;
  Padding padding_;
  AxisMatrix t_, h_, w_;
  PiecewiseAxis h_pieces_;
  AlignedVector<float> w_weight_;
  std::vector<int64_t> w_first_;  // of whole vectors of outputs
  int64_t w_taps_ = 0;
  std::vector<int64_t> row_groups_;
};

/// The plan for these sizes; the last few are kept. Safe to call from any thread.
std::shared_ptr<const ResamplePlan> resample_plan(MapKind kind, Shape3 in, Shape3 out, int order, Padding padding,
                                                  int width);

/// Spline coefficients [in.t, in.h, pitch] of one map in float64 (the padding repeats the last column); false, with the
/// coefficients undefined, where the map has a non-finite value.
bool spline_coefficients(const float* map, Shape3 in, int64_t pitch, int order, bool relu, double* coefficients);

}  // namespace clipsight
