// back_step on a CUDA stream: see back_step.h for the contract. All pointers are device pointers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "back_step.h"

namespace clipsight {

size_t back_step_cuda_workspace(const BackStepArgs& args);
void back_step_cuda(const BackStepArgs& args, void* workspace, cudaStream_t stream);

}  // namespace clipsight
