// saliency_tube and selective_tube on a CUDA stream: see saliency_tube.h for the contract. All pointers are device
// pointers; `workspace` holds the bytes that <op>_cuda_workspace asks for, 256-byte aligned.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "saliency_tube.h"

namespace clipsight {

size_t saliency_tube_cuda_workspace(const SaliencyTubeArgs& args);
/// `op` is the name that errors carry.
void saliency_tube_cuda(const SaliencyTubeArgs& args, void* workspace, cudaStream_t stream,
                        const char* op = "saliency_tube");

size_t selective_tube_cuda_workspace(const SelectiveTubeArgs& args);
void selective_tube_cuda(const SelectiveTubeArgs& args, void* workspace, cudaStream_t stream);

}  // namespace clipsight
