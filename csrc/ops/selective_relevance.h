// selective_relevance: keep the voxels whose temporal Sobel derivative exceeds n sigma (Selective Relevance,
// section 3) of a relevance volume that already exists. selective_tube does the same without one.
#pragma once

#include <cmath>

#include "../core/host_device.h"
#include "../core/parallel.h"
#include "../core/types.h"

namespace clipsight {

/// The rule that turns a derivative into a mask; shared with selective_tube.
struct SelectiveRule {
  float n_sigma;       // strict: |G| > n_sigma * sigma
  Padding padding;
  Sign sign;
  SigmaOf sigma_of;
  float noise_floor;   // sigma < noise_floor * max|R| counts as no motion: 1e-5, or 32 eps of a half storage type
  const float* n_sigma_of;      // where not null, volume v has n_sigma_of[v / volumes_per_value] instead of n_sigma
  int64_t volumes_per_value;
};

/// 1e-5 for float32; a map stored in half precision carries steps of its own size in time, so 32 eps there.
CLIPSIGHT_HD inline float noise_floor_of(DType storage) {
  return storage == DType::float16 ? 32.0f / 1024 : storage == DType::bfloat16 ? 32.0f / 128 : 1e-5f;
}

/// n sigma from the moments of G (or of |G|) over `count` voxels: sigma is unbiased and about the mean, the comparison
/// is around zero. Infinity, which selects nothing, where the derivative is only rounding noise, or where n, which may
/// be data, is negative or NaN.
CLIPSIGHT_HD inline float selection_threshold(double sum, double sum_of_squares, int64_t count, double max_abs,
                                              const SelectiveRule& rule, int64_t volume) {
  const float n_sigma = rule.n_sigma_of ? rule.n_sigma_of[volume / rule.volumes_per_value] : rule.n_sigma;
  const double n = static_cast<double>(count);
  const double spread = sum_of_squares - sum * sum / n;
  const double sigma = count > 1 && spread > 0 ? std::sqrt(spread / (n - 1)) : 0.0;
  if (sigma < static_cast<double>(rule.noise_floor) * max_abs || !(n_sigma >= 0)) return INFINITY;
  return static_cast<float>(static_cast<double>(n_sigma) * sigma);
}

CLIPSIGHT_HD inline bool selected(float derivative, float threshold, Sign sign) {
  if (sign == Sign::rising) return derivative > threshold;
  if (sign == Sign::falling) return -derivative > threshold;
  return (derivative < 0 ? -derivative : derivative) > threshold;
}

struct SelectiveRelevanceArgs {
  const float* volume;   // R [V, T, H, W]
  int64_t volumes;
  Shape3 size;
  SelectiveRule rule;
  bool prescale;         // min-max R to [0, 1] first where it has a negative value (the 2020 script)
  float* motion;         // R * mask [V, T, H, W]
  float* motion_share;   // sum |R| mask / sum |R| [V]; 0 for an empty map
};

void selective_relevance_cpu(const SelectiveRelevanceArgs& args, const Parallel& parallel, SimdLevel level);

}  // namespace clipsight
