#include "ops/selective_relevance.h"

#include <limits>

#include "core/workspace.h"
#include "ops/saliency_tube.h"
#include "ops/sobel_rows.h"

namespace clipsight {
namespace {

/// What the first pass learns of one frame; frames are merged in order, so the threads do not matter.
struct FrameStatistics {
  float range[2] = {std::numeric_limits<float>::max(), std::numeric_limits<float>::lowest()};
  bool finite = true;
  double moments[3] = {0, 0, 0};  // sum G, sum G^2, sum |G|
  double sums[2] = {0, 0};        // sum |R|, sum |R| mask (second pass)
};

/// What the second pass needs of one volume.
struct VolumeRule {
  bool finite = true;
  Normaliser prescale{0.0f, 1.0f};
  float threshold = 0;
};

}  // namespace

// Three passes over frames: range, moments of G, mask. No intermediate volume: G is computed twice, a row at a time.
void selective_relevance_cpu(const SelectiveRelevanceArgs& args, const Parallel& parallel, SimdLevel level) {
  const Shape3 size = args.size;
  if (args.volumes * size.voxels() == 0) return;
  const Kernels& k = kernels(level);
  const SelectiveRule& rule = args.rule;
  const int64_t plane = size.h * size.w, units = args.volumes * size.t, grain = 1 + 16384 / plane;
  Workspace workspace;
  FrameStatistics* frames = workspace.array<FrameStatistics>(units, {});
  VolumeRule* volumes = workspace.array<VolumeRule>(args.volumes, {});

  parallel.for_range(units, grain, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      frames[unit].finite = k.row_range(args.volume + unit * plane, plane, frames[unit].range);
    }
  });
  float *lows = workspace.array<float>(args.volumes), *highs = workspace.array<float>(args.volumes);
  for (int64_t v = 0; v < args.volumes; ++v) {
    FrameStatistics all;
    for (int64_t unit = v * size.t; unit < (v + 1) * size.t; ++unit) {
      all.range[0] = std::min(all.range[0], frames[unit].range[0]);
      all.range[1] = std::max(all.range[1], frames[unit].range[1]);
      all.finite = all.finite && frames[unit].finite;
    }
    lows[v] = all.range[0], highs[v] = all.range[1];
    volumes[v].finite = all.finite;
    if (args.prescale && lows[v] < 0) {
      volumes[v].prescale = make_normaliser(lows[v], highs[v], std::max(-lows[v], std::fabs(highs[v])));
    }
  }

  // Pre-scaling multiplies G and sigma alike, so both stay in the units of the given volume.
  parallel.for_range(units, grain, [&](int64_t begin, int64_t end) {
    Workspace own;
    float* derivative = own.array<float>(size.w);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t v = unit / size.t;
      if (!volumes[v].finite) continue;
      SobelRows sobel(k, args.volume + v * size.voxels(), size, rule.padding, volumes[v].prescale.low);
      for (int64_t h = 0; h < size.h; ++h) {
        sobel.row(unit % size.t, h, derivative);
        k.row_moments(derivative, size.w, frames[unit].moments);
      }
    }
  });
  for (int64_t v = 0; v < args.volumes; ++v) {
    double moments[3] = {0, 0, 0};
    for (int64_t unit = v * size.t; unit < (v + 1) * size.t; ++unit) {
      for (int i = 0; i < 3; ++i) moments[i] += frames[unit].moments[i];
    }
    const bool prescaled = args.prescale && lows[v] < 0;
    const float largest = prescaled ? highs[v] - lows[v] : std::max(std::fabs(lows[v]), std::fabs(highs[v]));
    volumes[v].threshold = selection_threshold(moments[rule.sigma_of == SigmaOf::absolute ? 2 : 0], moments[1],
                                               size.voxels(), largest, rule, v);
  }

  parallel.for_range(units, grain, [&](int64_t begin, int64_t end) {
    Workspace own;
    float* derivative = own.array<float>(size.w);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t v = unit / size.t;
      const VolumeRule& volume = volumes[v];
      if (!volume.finite) {
        std::fill_n(args.motion + unit * plane, plane, std::numeric_limits<float>::quiet_NaN());
        continue;
      }
      SobelRows sobel(k, args.volume + v * size.voxels(), size, rule.padding, volume.prescale.low);
      for (int64_t h = 0; h < size.h; ++h) {
        sobel.row(unit % size.t, h, derivative);
        const int64_t at = unit * plane + h * size.w;
        k.select_row({args.volume + at, derivative, size.w, volume.prescale.low, volume.prescale.scale,
                      volume.threshold, rule.sign, args.motion + at, frames[unit].sums});
      }
    }
  });
  for (int64_t v = 0; v < args.volumes; ++v) {
    double total = 0, kept = 0;
    for (int64_t unit = v * size.t; unit < (v + 1) * size.t; ++unit) {
      total += frames[unit].sums[0], kept += frames[unit].sums[1];
    }
    args.motion_share[v] = !volumes[v].finite ? std::numeric_limits<float>::quiet_NaN()
                                              : static_cast<float>(total > 0 ? kept / total : 0.0);
  }
}

}  // namespace clipsight
