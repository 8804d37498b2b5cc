// spline_upsample on a CUDA stream: see spline_upsample.h for the contract. All pointers are device pointers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "spline_upsample.h"

namespace clipsight {

size_t spline_upsample_cuda_workspace(const SplineUpsampleArgs& args);
void spline_upsample_cuda(const SplineUpsampleArgs& args, void* workspace, cudaStream_t stream);

}  // namespace clipsight
