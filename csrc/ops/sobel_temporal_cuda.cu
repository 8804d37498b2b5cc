#include "ops/sobel_temporal_cuda.h"

#include "ops/sobel_march_cuda.h"

namespace clipsight {
namespace {

template <int kVector>
__global__ void __launch_bounds__(kBlock, 3)
    derive(const __grid_constant__ SobelTemporalArgs args, const __grid_constant__ MarchGrid grid) {
  const int64_t voxels = args.size.t * args.size.h * args.size.w;
  for (int64_t item = blockIdx.x; item < grid.items; item += gridDim.x) {
    const int64_t offset = item / grid.per_volume * voxels;
    float* output = args.output + offset;
    march<kVector>(grid, item, args.volume + offset, args.padding, Identity(),
                   [=](int64_t index, const auto&, const auto& g) { g.store(output + index); });
  }
}

template <int kVector>
void launch(const SobelTemporalArgs& args, cudaStream_t stream) {
  const MarchGrid grid(args.volumes, args.size, kVector);
  derive<kVector><<<grid_for(grid.items), kBlock, 0, stream>>>(args, grid);
  check_launch("sobel_temporal", "derive");
}

}  // namespace

size_t sobel_temporal_cuda_workspace(const SobelTemporalArgs&) { return 0; }

void sobel_temporal_cuda(const SobelTemporalArgs& args, void*, cudaStream_t stream) {
  if (args.volumes == 0 || args.size.voxels() == 0) return;
  if (march_vector(args.size, {args.volume, args.output}) == 4) return launch<4>(args, stream);
  launch<1>(args, stream);
}

}  // namespace clipsight
