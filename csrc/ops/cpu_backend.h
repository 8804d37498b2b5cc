// The ops on a host's thread pool, for every front end: at the best SIMD level, with scratch that stays with the thread.
#pragma once

#include "core/simd_level.h"
#include "core/workspace.h"
#include "ops/back_step.h"
#include "ops/channel_reduce.h"
#include "ops/saliency_tube.h"
#include "ops/selective_relevance.h"
#include "ops/sobel_temporal.h"
#include "ops/spline_upsample.h"

namespace clipsight {

/// Pool is the front end's Parallel, made from what the constructor is given.
template <class Pool>
class CpuBackend {
 public:
  template <class... Host>
  explicit CpuBackend(const Host&... host) : pool_(host...) {}

  void channel_reduce(const ChannelReduceArgs& args) const { channel_reduce_cpu(args, pool_, level_); }
  void spline_upsample(const SplineUpsampleArgs& args) const { spline_upsample_cpu(args, pool_, level_); }
  void sobel_temporal(const SobelTemporalArgs& args) const { sobel_temporal_cpu(args, pool_, level_); }
  void selective_relevance(const SelectiveRelevanceArgs& args) const { selective_relevance_cpu(args, pool_, level_); }
  void saliency_tube(const SaliencyTubeArgs& args) const { saliency_tube_cpu(args, pool_, level_); }
  void selective_tube(const SelectiveTubeArgs& args) const { selective_tube_cpu(args, pool_, level_); }
  void back_step(const BackStepArgs& args) const { back_step_cpu(args, pool_, level_); }

  template <class T>
  T* scratch(int64_t count) {
    return workspace_.array<T>(count);
  }

 protected:
  Workspace workspace_;
  Pool pool_;
  SimdLevel level_ = best_simd_level();
};

}  // namespace clipsight
