// channel_reduce on a CUDA stream: see channel_reduce.h for the contract. All pointers are device pointers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "channel_reduce.h"

namespace clipsight {

size_t channel_reduce_cuda_workspace(const ChannelReduceArgs& args);
void channel_reduce_cuda(const ChannelReduceArgs& args, void* workspace, cudaStream_t stream);

}  // namespace clipsight
