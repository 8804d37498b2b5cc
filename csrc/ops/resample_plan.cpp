#include "ops/resample_plan.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "core/recent.h"

namespace clipsight {

AxisMatrix::AxisMatrix(AxisOperator op, int order, int64_t n_in, int64_t n_out, Padding padding, bool moments)
    : first(n_out), offset(n_out + 1, 0) {
  weight.reserve(static_cast<size_t>(n_out) * 5);
  if (moments) column_sums.assign(n_in, 0.0), gram.assign(n_in * n_in, 0.0);
  std::vector<double> row(n_in, 0.0);
  for (int64_t i = 0; i < n_out; ++i) {
    // The taps of the outputs that take part; mirrored ones fall back between them.
    const int64_t reach = op == AxisOperator::evaluate ? 0 : 1, support = order == 3 ? 1 : 0;
    const int64_t earliest = std::max<int64_t>(0, i - reach), latest = std::min(n_out - 1, i + reach);
    const auto cell = [&](int64_t k) { return static_cast<int64_t>(align_corners(k, n_in, n_out)); };
    int64_t low = std::max<int64_t>(0, cell(earliest) - support);
    const int64_t high = std::min(n_in - 1, std::max(cell(latest) + 1 + support, low + order));
    low = std::max<int64_t>(0, std::min(low, high - order));  // order + 1 columns at the ends too: kernels unroll for it
    std::fill(row.begin() + low, row.begin() + high + 1, 0.0);
    add_axis_row(op, order, i, n_in, n_out, padding, row.data());
    first[i] = low;
    weight.insert(weight.end(), row.begin() + low, row.begin() + high + 1);
    offset[i + 1] = static_cast<int64_t>(weight.size());
    if (!moments) continue;
    gram_band = std::max(gram_band, high - low);
    for (int64_t j = low; j <= high; ++j) {
      column_sums[j] += row[j];
      for (int64_t k = low; k <= high; ++k) gram[j * n_in + k] += row[j] * row[k];
    }
  }
}

namespace {

/// Four terms, powers of the position in the cell, of each of its four B-splines (two for order 1).
constexpr double kCubicCell[4][4] = {
    {1 / 6.0, 4 / 6.0, 1 / 6.0, 0}, {-0.5, 0, 0.5, 0}, {0.5, -1, 0.5, 0}, {-1 / 6.0, 0.5, -0.5, 1 / 6.0}};
constexpr double kLinearCell[4][4] = {{1, 0, 0, 0}, {-1, 1, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}};

}  // namespace

PiecewiseAxis::PiecewiseAxis(const AxisMatrix& matrix, AxisOperator op, int order, int64_t n_in, int64_t n_out)
    : of_row(n_out), position(n_out, 0.0f) {
  const auto cell = [&](int64_t i) {  // the last sample is the end of the last cell
    return std::min(static_cast<int64_t>(align_corners(i, n_in, n_out)), std::max<int64_t>(n_in - 2, 0));
  };
  const auto inside = [&](int64_t i) {  // all that the operator takes comes from one cell
    return op == AxisOperator::evaluate || (i > 0 && i + 1 < n_out && cell(i - 1) == cell(i + 1));
  };
  for (int64_t i = 0; i < n_out; i = pieces.back().end) {
    const int64_t offset = static_cast<int64_t>(weight.size()), at = cell(i);
    int64_t end = i + 1;
    while (inside(i) && end < n_out && inside(end) && cell(end) == at) ++end;
    if (end - i <= 4) {  // four terms are no saving
      pieces.push_back({i, i + 1, matrix.first[i], matrix.offset[i + 1] - matrix.offset[i], 1, offset});
      const auto row = matrix.weight.begin();
      weight.insert(weight.end(), row + matrix.offset[i], row + matrix.offset[i + 1]);
    } else {
      const int64_t reach = order == 3 ? 1 : 0, low = std::max<int64_t>(0, at - reach);
      const int64_t taps = std::min(n_in, at + reach + 2) - low;
      pieces.push_back({i, end, low, taps, 4, offset});
      weight.resize(weight.size() + 4 * taps, 0.0);
      double* terms = &weight[offset];
      const auto& spline = order == 3 ? kCubicCell : kLinearCell;
      for (int term = 0; term < 4; ++term) {
        for (int k = 0; k <= order; ++k) {
          terms[term * taps + mirror_index(at - reach + k, n_in) - low] += spline[term][k];
        }
      }
      if (op == AxisOperator::smooth) {  // (x - d)^n + 2 x^n + (x + d)^n
        const double d = align_corners(1, n_in, n_out);
        for (int64_t k = 0; k < taps; ++k) {
          double* term = terms + k;
          term[0] = 4 * term[0] + 2 * d * d * term[2 * taps];
          term[taps] = 4 * term[taps] + 6 * d * d * term[3 * taps];
          term[2 * taps] *= 4, term[3 * taps] *= 4;
        }
      }
      for (int64_t row = i; row < end; ++row) {
        position[row] = static_cast<float>(align_corners(row, n_in, n_out) - static_cast<double>(at));
      }
    }
    std::fill(of_row.begin() + i, of_row.begin() + pieces.back().end, static_cast<int64_t>(pieces.size()) - 1);
  }
}

ResamplePlan::ResamplePlan(MapKind kind, Shape3 in, Shape3 out, int order, Padding padding, int width)
    : in_(in), out_(out), pitch_((in.w + width - 1) / width * width), padding_(padding),
      t_(kind == MapKind::value ? AxisOperator::evaluate : AxisOperator::derive, order, in.t, out.t, padding,
         kind == MapKind::derivative),
      h_(kind == MapKind::value ? AxisOperator::evaluate : AxisOperator::smooth, order, in.h, out.h, padding,
         kind == MapKind::derivative),
      w_(kind == MapKind::value ? AxisOperator::evaluate : AxisOperator::smooth, order, in.w, out.w, padding,
         kind == MapKind::derivative),
      h_pieces_(h_, kind == MapKind::value ? AxisOperator::evaluate : AxisOperator::smooth, order, in.h, out.h) {
  const auto end = [&](int64_t i) { return w_.first[i] + w_.offset[i + 1] - w_.offset[i]; };
  for (int64_t x = 0; x < out.w; x += width) {
    const int64_t last = std::min(x + width, out.w);
    w_first_.push_back(*std::min_element(w_.first.begin() + x, w_.first.begin() + last));
    for (int64_t i = x; i < last; ++i) w_taps_ = std::max(w_taps_, end(i) - w_first_.back());
  }
  w_weight_.assign(w_first_.size() * w_taps_ * width, 0.0f);
  for (size_t block = 0; block < w_first_.size(); ++block) {
    int64_t& first = w_first_[block] = std::min(w_first_[block], in.w - w_taps_);
    for (int64_t lane = 0; lane < width; ++lane) {
      const int64_t i = std::min(static_cast<int64_t>(block) * width + lane, out.w - 1);
      for (int64_t k = w_.first[i]; k < end(i); ++k) {
        const double weight = w_.weight[w_.offset[i] + k - w_.first[i]];
        w_weight_[(block * w_taps_ + k - first) * width + lane] = static_cast<float>(weight);
      }
    }
  }
  const int64_t rows = std::clamp<int64_t>(8192 / out.w, 8, 64);
  row_groups_.push_back(0);
  for (int64_t row = 1; row < out.h; ++row) {
    const int64_t length = row - row_groups_.back();
    const bool piece_ends = h_pieces_.of_row[row] != h_pieces_.of_row[row - 1];
    if ((length >= rows && piece_ends) || length >= 2 * rows) row_groups_.push_back(row);
  }
  row_groups_.push_back(out.h);
}

Resample ResamplePlan::view() const {
  return {in_, out_, pitch_, {t_.first.data(), t_.offset.data(), t_.weight.data()},
          {h_pieces_.pieces.data(), h_pieces_.of_row.data(), h_pieces_.position.data(), h_pieces_.weight.data()},
          {w_first_.data(), w_taps_, w_weight_.data()}};
}

namespace {

/// out[o, i, p] = sum_j gram[i, j] in[o, j, p]
void apply_gram(const AxisMatrix& axis, int64_t n, int64_t outer, int64_t inner, const double* in, double* out) {
  for (int64_t o = 0; o < outer; ++o, in += n * inner, out += n * inner) {
    for (int64_t i = 0; i < n; ++i) {
      double* to = out + i * inner;
      std::fill(to, to + inner, 0.0);
      const int64_t last = std::min(n - 1, i + axis.gram_band);
      for (int64_t j = std::max<int64_t>(0, i - axis.gram_band); j <= last; ++j) {
        const double g = axis.gram[i * n + j];
        for (int64_t p = 0; p < inner; ++p) to[p] += g * in[j * inner + p];
      }
    }
  }
}

}  // namespace

ResamplePlan::Moments ResamplePlan::moments(const double* coefficients, Workspace& workspace) const {
  const int64_t plane = in_.h * in_.w, count = in_.t * plane;
  double *c = workspace.array<double>(count), *a = workspace.array<double>(count), *b = workspace.array<double>(count);
  for (int64_t row = 0; row < in_.t * in_.h; ++row) {
    std::copy_n(coefficients + row * pitch_, in_.w, c + row * in_.w);
  }
  // With replicate borders the derivative does not see what is constant in time; without it the quadratic form does
  // not cancel on maps that hardly change.
  if (padding_ == Padding::replicate) {
    for (int64_t i = count - 1; i >= 0; --i) c[i] -= c[i % plane];
  }
  apply_gram(t_, in_.t, 1, plane, c, a);
  apply_gram(h_, in_.h, in_.t, in_.w, a, b);
  apply_gram(w_, in_.w, in_.t * in_.h, 1, b, a);
  Moments result{0.0, 0.0};
  for (int64_t t = 0, i = 0; t < in_.t; ++t) {
    for (int64_t h = 0; h < in_.h; ++h) {
      const double scale = t_.column_sums[t] * h_.column_sums[h];
      for (int64_t w = 0; w < in_.w; ++w, ++i) {
        result.sum += scale * w_.column_sums[w] * c[i];
        result.sum_of_squares += c[i] * a[i];
      }
    }
  }
  return result;
}

std::shared_ptr<const ResamplePlan> resample_plan(MapKind kind, Shape3 in, Shape3 out, int order, Padding padding,
                                                  int width) {
  using Key = std::tuple<MapKind, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int, Padding, int>;
  static Recent<Key, ResamplePlan> recent(8);
  const Key key{kind, in.t, in.h, in.w, out.t, out.h, out.w, order, padding, width};
  return recent.get(key, [&] { return ResamplePlan(kind, in, out, order, padding, width); });
}

bool spline_coefficients(const float* map, Shape3 in, int64_t pitch, int order, bool relu, double* coefficients) {
  for (int64_t row = 0; row < in.t * in.h; ++row) {
    for (int64_t w = 0; w < in.w; ++w) {
      const float x = map[row * in.w + w];
      if (!std::isfinite(x)) return false;
      coefficients[row * pitch + w] = relu && x < 0 ? 0.0 : x;
    }
  }
  if (order == 3) {
    const int64_t plane = in.h * pitch;
    for (int64_t h = 0; h < in.h; ++h) {
      for (int64_t w = 0; w < in.w; ++w) cubic_prefilter(coefficients + h * pitch + w, in.t, plane);
    }
    for (int64_t t = 0; t < in.t; ++t) {
      for (int64_t w = 0; w < in.w; ++w) cubic_prefilter(coefficients + t * plane + w, in.h, pitch);
    }
    for (int64_t row = 0; row < in.t * in.h; ++row) cubic_prefilter(coefficients + row * pitch, in.w, 1);
  }
  for (int64_t row = 0; row < in.t * in.h; ++row) {
    std::fill(coefficients + row * pitch + in.w, coefficients + (row + 1) * pitch, coefficients[row * pitch + in.w - 1]);
  }
  return true;
}

}  // namespace clipsight
