#include "ops/sobel_temporal_cuda.h"

#include "ops/sobel_march_cuda.h"

namespace clipsight {
namespace {

__global__ void __launch_bounds__(kBlock) derive(SobelTemporalArgs args, MarchGrid grid) {
  const int64_t voxels = args.size.t * args.size.h * args.size.w;
  for (int64_t item = blockIdx.x; item < grid.items; item += gridDim.x) {
    const int64_t offset = item / (grid.tiles * grid.pieces) * voxels;
    float* output = args.output + offset;
    march(grid, item, args.volume + offset, args.padding, Identity(),
          [=](int64_t index, float, float derivative) { output[index] = derivative; });
  }
}

}  // namespace

size_t sobel_temporal_cuda_workspace(const SobelTemporalArgs&) { return 0; }

void sobel_temporal_cuda(const SobelTemporalArgs& args, void*, cudaStream_t stream) {
  const MarchGrid grid(args.volumes, args.size);
  if (grid.items == 0) return;
  derive<<<grid_for(grid.items), kBlock, 0, stream>>>(args, grid);
  check_launch("sobel_temporal", "derive");
}

}  // namespace clipsight
