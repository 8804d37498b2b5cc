// selective_relevance on a CUDA stream: see selective_relevance.h for the contract. All pointers are device pointers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "selective_relevance.h"

namespace clipsight {

size_t selective_relevance_cuda_workspace(const SelectiveRelevanceArgs& args);
void selective_relevance_cuda(const SelectiveRelevanceArgs& args, void* workspace, cudaStream_t stream);

}  // namespace clipsight
