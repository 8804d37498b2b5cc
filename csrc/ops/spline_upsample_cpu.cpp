#include <algorithm>
#include <limits>

#include "core/workspace.h"
#include "ops/resample_plan.h"
#include "ops/spline_upsample.h"

namespace clipsight {

// A map with a non-finite value is NaN throughout: the prefilter reaches every sample, and a partial answer would differ
// from one device to the next.
void spline_upsample_cpu(const SplineUpsampleArgs& args, const Parallel& parallel, SimdLevel level) {
  const int64_t voxels_in = args.in.voxels(), frame_voxels = args.out.h * args.out.w;
  if (args.volumes * voxels_in * args.out.voxels() == 0) return;
  const Kernels& k = kernels(level);
  const auto plan = resample_plan(MapKind::value, args.in, args.out, args.order, Padding::replicate, k.width);
  const Resample view = plan->view();
  const int64_t count = plan->coefficient_count();
  Workspace workspace;
  double* coefficients = workspace.array<double>(args.volumes * count);
  bool* finite = workspace.array<bool>(args.volumes);
  parallel.for_range(args.volumes, 1 + 4096 / voxels_in, [&](int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; ++v) {
      finite[v] = spline_coefficients(args.volume + v * voxels_in, args.in, view.pitch, args.order, false,
                                      &coefficients[v * count]);
    }
  });

  constexpr float infinity = std::numeric_limits<float>::infinity();
  parallel.for_range(args.volumes * args.out.t, 1 + 16384 / frame_voxels, [&](int64_t begin, int64_t end) {
    Workspace own;
    double* frame = own.array<double>(args.in.h * view.pitch);
    float* scratch = own.array<float>(row_scratch(view, k.width));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t volume = unit / args.out.t;
      float* output = args.output + unit * frame_voxels;
      if (!finite[volume]) {
        std::fill_n(output, frame_voxels, std::numeric_limits<float>::quiet_NaN());
        continue;
      }
      k.frame_coefficients(view, unit % args.out.t, &coefficients[volume * count], frame);
      WriteTask task{};
      task.value = {&view, frame, 0, args.out.h, scratch};
      task.normaliser = {0.0f, 1.0f};
      task.ceiling = infinity;
      task.tube = output;
      k.write(DType::float32, false, task);
    }
  });
}

}  // namespace clipsight
