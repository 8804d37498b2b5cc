// spline_upsample in CUDA: the tube without ReLU and normalisation.
#include "ops/saliency_tube_cuda.h"
#include "ops/spline_upsample_cuda.h"

namespace clipsight {
namespace {

SaliencyTubeArgs raw_tube(const SplineUpsampleArgs& args) {
  return {args.volume, args.volumes,    args.in,        args.out,   args.order,
          false,       Normalize::none, DType::float32, args.output};
}

}  // namespace

size_t spline_upsample_cuda_workspace(const SplineUpsampleArgs& args) {
  return saliency_tube_cuda_workspace(raw_tube(args));
}

void spline_upsample_cuda(const SplineUpsampleArgs& args, void* workspace, cudaStream_t stream) {
  saliency_tube_cuda(raw_tube(args), workspace, stream, "spline_upsample");
}

}  // namespace clipsight
