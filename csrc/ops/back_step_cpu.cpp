#include "ops/back_step.h"

#include <algorithm>

#include "core/workspace.h"
#include "ops/levels/kernels.h"

namespace clipsight {
namespace {

constexpr int64_t kRows = 128;       // of a unit: a byte counts them
constexpr int64_t kWork = 1 << 15;   // products or counts worth a thread

}  // namespace

// Rows of one sample make a unit, which counts its edges in bytes of its own; the units' counts are then added.
void back_step_cpu(const BackStepArgs& args, const Parallel& parallel, SimdLevel level) {
  const int64_t volumes = args.batch * args.maps, channels = args.groups * args.width;
  if (volumes == 0) return;
  const Kernels& k = kernels(level);
  const int64_t units = (args.out_channels + kRows - 1) / kRows;
  Workspace workspace;
  uint8_t* counts = workspace.array<uint8_t>(units * volumes * channels);
  parallel.for_range(args.batch * units, 1 + kWork / (kRows * args.width), [&](int64_t begin, int64_t end) {
    Workspace scratch;
    BackStepTask task{};
    task.args = &args;
    task.s = scratch.array<float>(args.width + k.width);
    task.kept = scratch.array<uint8_t>(args.width);
    for (int64_t unit = begin; unit < end; ++unit) {
      task.sample = unit / units;
      task.begin = unit % units * kRows;
      task.end = std::min(task.begin + kRows, args.out_channels);
      task.counts = counts + unit * args.maps * channels;
      k.back_step(task);
    }
  });
  parallel.for_range(volumes, 1 + kWork / (units * channels), [&](int64_t begin, int64_t end) {
    for (int64_t volume = begin; volume < end; ++volume) {
      float* multiplicity = args.multiplicity + volume * channels;
      std::fill_n(multiplicity, channels, 0.0f);
      for (int64_t unit = volume / args.maps * units, end_unit = unit + units; unit < end_unit; ++unit) {
        const uint8_t* part = counts + (unit * args.maps + volume % args.maps) * channels;
        for (int64_t c = 0; c < channels; ++c) multiplicity[c] += part[c];
      }
    }
  });
}

}  // namespace clipsight
