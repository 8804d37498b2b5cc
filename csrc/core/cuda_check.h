// Checks and small device helpers shared by the CUDA kernels. No torch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "core/host_device.h"

namespace clipsight {

/// Throws std::runtime_error naming the op and what of CUDA has failed.
inline void check(const char* op, const std::string& what, cudaError_t error) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(op) + ": " + what + ", got " + cudaGetErrorName(error) + " (" +
                           cudaGetErrorString(error) + ")");
}

/// The same of the kernel launched before.
inline void check_launch(const char* op, const char* kernel) {
  check(op, std::string("CUDA kernel ") + kernel + " must launch", cudaGetLastError());
}

CLIPSIGHT_HD inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Blocks for a kernel that walks `items` with a grid stride: 64-bit counts fit any grid.
inline unsigned grid_for(int64_t items) {
  return static_cast<unsigned>(std::clamp<int64_t>(items, 1, int64_t{1} << 30));
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

/// Hands out aligned pieces of one workspace. With a null base it only measures.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return piece;
  }

  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace clipsight
