// The border rule of the Sobel operator in rows and frames of a given volume, for sobel_temporal and selective_relevance.
#pragma once

#include <algorithm>

#include "core/workspace.h"
#include "ops/levels/kernels.h"

namespace clipsight {

class SobelRows {
 public:
  /// `border` is what lies outside the volume with zero padding: 0, or what pre-scaling will turn into 0.
  SobelRows(const Kernels& kernels, const float* volume, Shape3 size, Padding padding, float border)
      : kernels_(kernels), volume_(volume), size_(size), padding_(padding),
        border_(workspace_.array<float>(size.w, border)), scratch_(workspace_.array<float>(size.w + 2)) {}

  /// Row (t, h) of G into output[size.w].
  void row(int64_t t, int64_t h, float* output) {
    SobelTask task{};
    for (int i = 0; i < 3; ++i) {
      task.before[i] = source(t - 1, h - 1 + i);
      task.after[i] = source(t + 1, h - 1 + i);
    }
    task.width = size_.w, task.padding = padding_, task.scratch = scratch_, task.row = output;
    kernels_.sobel_row(task);
  }

 private:
  const float* source(int64_t t, int64_t h) const {
    const bool inside = t >= 0 && t < size_.t && h >= 0 && h < size_.h;
    if (!inside && padding_ == Padding::zeros) return border_;
    t = std::clamp<int64_t>(t, 0, size_.t - 1), h = std::clamp<int64_t>(h, 0, size_.h - 1);
    return volume_ + (t * size_.h + h) * size_.w;
  }

  const Kernels& kernels_;
  const float* volume_;
  Shape3 size_;
  Padding padding_;
  Workspace workspace_;
  float *border_, *scratch_;
};

}  // namespace clipsight
