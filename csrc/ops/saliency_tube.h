// saliency_tube and selective_tube: everything after channel_reduce in one pass, with no intermediate volume.
//
// Up-sampling and Sobel are linear and separable, so the standard deviation of the derivative follows from the
// small cam and three Gram matrices (float64) before any voxel exists; the minimum and maximum come from a pass
// that writes nothing. The second pass writes each output voxel once.
// A map with a non-finite cam value is NaN throughout (0 in uint8), its motion share too; other maps are untouched.
#pragma once

#include <cfloat>
#include <cmath>

#include "../core/host_device.h"
#include "../core/parallel.h"
#include "../core/types.h"
#include "selective_relevance.h"

namespace clipsight {

/// Min-max scaling to [0, 1]. A map or frame that is constant, to 1e-6 of the largest |R| of its volume, has scale 0
/// and gives zeros.
struct Normaliser {
  float low, scale;
};

CLIPSIGHT_HD inline Normaliser make_normaliser(float low, float high, float largest) {
  const float range = high - low;
  if (!(range > 1e-6f * largest) || range < FLT_MIN) return {low, 0.0f};
  float scale = 1.0f / range;
  while (range * scale < 1.0f) scale = nextafterf(scale, FLT_MAX);  // so that the largest voxel reaches 1 exactly
  return {low, scale};
}

CLIPSIGHT_HD inline float normalise(float r, Normaliser n) { return fminf(fmaxf((r - n.low) * n.scale, 0.0f), 1.0f); }

/// 255 x in the default rounding mode, half to even.
CLIPSIGHT_HD inline unsigned char quantise(float normalised) {
  return static_cast<unsigned char>(rintf(255.0f * normalised));
}

struct SaliencyTubeArgs {
  const float* cam;       // [V, in.t, in.h, in.w], the output of channel_reduce
  int64_t volumes;        // V = N*M
  Shape3 in, out;
  int order;              // 1 or 3
  bool relu;              // on the cam, before up-sampling
  Normalize normalize;
  DType output_dtype;     // of tube and motion: float32, float16, or uint8 (needs normalize != none)
  void* tube;             // [V, out.t, out.h, out.w]
};

struct SelectiveTubeArgs {
  SaliencyTubeArgs tube;
  SelectiveRule rule;     // acts on the raw, un-normalised map
  void* motion;           // tube * mask [V, out.t, out.h, out.w]
  float* motion_share;    // [V], on the raw map
};

void saliency_tube_cpu(const SaliencyTubeArgs& args, const Parallel& parallel, SimdLevel level);
void selective_tube_cpu(const SelectiveTubeArgs& args, const Parallel& parallel, SimdLevel level);

}  // namespace clipsight
