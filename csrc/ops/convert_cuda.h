// float16 to float32 and back on a CUDA stream: see convert.h. All pointers are device pointers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace clipsight {

void to_float32_cuda(const uint16_t* half, int64_t count, float* single, cudaStream_t stream);
void to_float16_cuda(const float* single, int64_t count, uint16_t* half, cudaStream_t stream);

}  // namespace clipsight
