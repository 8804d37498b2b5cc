// sobel_temporal on a CUDA stream: see sobel_temporal.h for the contract. All pointers are device pointers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "sobel_temporal.h"

namespace clipsight {

size_t sobel_temporal_cuda_workspace(const SobelTemporalArgs& args);
void sobel_temporal_cuda(const SobelTemporalArgs& args, void* workspace, cudaStream_t stream);

}  // namespace clipsight
