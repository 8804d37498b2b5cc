#include "ops/convert_cuda.h"

#include <cuda_fp16.h>

#include "core/cuda_check.h"

namespace clipsight {
namespace {

constexpr int kThreads = 256;

__device__ void assign(__half from, float* to) { *to = __half2float(from); }
__device__ void assign(float from, __half* to) { *to = __float2half_rn(from); }

template <class From, class To>
__global__ void __launch_bounds__(kThreads) convert(const From* from, int64_t count, To* to) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (int64_t i = first; i < count; i += static_cast<int64_t>(gridDim.x) * kThreads) assign(from[i], to + i);
}

template <class From, class To>
void launch(const From* from, int64_t count, To* to, cudaStream_t stream) {
  if (count == 0) return;
  convert<<<grid_for(ceil_div(count, kThreads)), kThreads, 0, stream>>>(from, count, to);
  check_launch("convert", "convert");
}

}  // namespace

void to_float32_cuda(const uint16_t* half, int64_t count, float* single, cudaStream_t stream) {
  launch(reinterpret_cast<const __half*>(half), count, single, stream);
}

void to_float16_cuda(const float* single, int64_t count, uint16_t* half, cudaStream_t stream) {
  launch(single, count, reinterpret_cast<__half*>(half), stream);
}

}  // namespace clipsight
