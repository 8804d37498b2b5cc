#include "ops/sobel_temporal.h"

#include "ops/sobel_rows.h"

namespace clipsight {

void sobel_temporal_cpu(const SobelTemporalArgs& args, const Parallel& parallel, SimdLevel level) {
  const Shape3 size = args.size;
  if (args.volumes * size.voxels() == 0) return;
  const Kernels& k = kernels(level);
  const int64_t plane = size.h * size.w;
  parallel.for_range(args.volumes * size.t, 1 + 16384 / plane, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const float* volume = args.volume + unit / size.t * size.voxels();
      SobelRows sobel(k, volume, size, args.padding, 0.0f);
      for (int64_t h = 0; h < size.h; ++h) sobel.row(unit % size.t, h, args.output + unit * plane + h * size.w);
    }
  });
}

}  // namespace clipsight
