// The emulator's own test: `selftest NAME` runs a sound kernel, `selftest no_NAME` its twin with one fault. The exit
// status is 0 where the result is right and nothing was reported.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

constexpr int kThreads = 128;
constexpr unsigned kAll = 0xffffffffu;

template <bool kSound>
__global__ void __launch_bounds__(kThreads) reverse_tiles(const float* in, float* out, int n) {
  __shared__ float tile[kThreads];
  for (int base = blockIdx.x * kThreads; base < n; base += gridDim.x * kThreads) {
    tile[threadIdx.x] = in[base + threadIdx.x];
    __syncthreads();
    out[base + threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
    if (kSound) __syncthreads();  // else the next tile overwrites what others still read
  }
}

template <bool kSound>
__global__ void sum_of_warp(const float* in, float* out) {
  float value = in[threadIdx.x];
  if (kSound || threadIdx.x < 31) {
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kAll, value, step);
  }
  out[threadIdx.x] = value;
}

template <bool kSound>
__global__ void meet_at_a_barrier(float* out) {
  __shared__ float one;
  if (threadIdx.x == 0) one = 1;
  const bool waits = kSound || threadIdx.x < 7;
  if (waits) __syncthreads();
  out[threadIdx.x] = waits ? one : 1;
}

template <bool kSound>
__global__ void read_what_was_written(float* out) {
  extern __shared__ float memory[];
  if (kSound) memory[threadIdx.x] = 1;
  out[threadIdx.x] = memory[threadIdx.x];
}

template <bool kSound>
__global__ void stay_inside(float* out) {
  extern __shared__ float memory[];
  memory[threadIdx.x + (kSound ? 0 : 1)] = 1;
  __syncthreads();
  out[threadIdx.x] = 1;
}

template <bool kSound>
__global__ void count(int* total) {
  if (kSound) atomicAdd(total, 1);
  else *total = *total + 1;
}

template <bool kSound>
__global__ void through_shared(float* out) {  // lanes of a warp do not run in step since Volta
  __shared__ float memory[32];
  memory[threadIdx.x] = 1;
  if (kSound) __syncwarp();
  out[threadIdx.x] = memory[31 - threadIdx.x];
}

/// The block that comes last reads what the others have left.
template <bool kSound>
__global__ void join_blocks(float* parts, unsigned* arrived, float* out) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = 1;
    if (kSound) __threadfence();
    last = atomicAdd(arrived, 1u) == gridDim.x - 1;
    if (kSound) __threadfence();
  }
  __syncthreads();
  if (last && threadIdx.x < gridDim.x) out[threadIdx.x] = parts[threadIdx.x];
}

bool launch_limits() {
  int total = 0;
  const auto refused = [&](dim3 grid, dim3 block, size_t shared, cudaError_t error) {
    count<true><<<grid, block, shared>>>(&total);
    return cudaGetLastError() == error && cudaGetLastError() == cudaSuccess;
  };
  return refused(0, 64, 0, cudaErrorInvalidConfiguration) && refused(1, 2048, 0, cudaErrorInvalidConfiguration) &&
         refused(dim3(1, 70000), 1, 0, cudaErrorInvalidConfiguration) &&
         refused(1, 64, 50000, cudaErrorInvalidValue) && total == 0;
}

/// Every value of 16 bits survives the way to float32 and back.
bool halves() {
  for (unsigned i = 0; i < 0x10000; ++i) {
    const float half = __half2float({static_cast<uint16_t>(i)}), b = __bfloat162float({static_cast<uint16_t>(i)});
    if (!std::isnan(half) && __float2half_rn(half).bits != i) return false;
    if (!std::isnan(b) && __float2bfloat16(b).bits != i) return false;
  }
  return true;
}

template <bool kSound>
int run(const std::string& name) {
  std::vector<float> in(1024), out(1024, 1.0f), parts(64, NAN);
  for (int i = 0; i < 1024; ++i) in[i] = static_cast<float>(i);
  bool right = true;
  if (name == "barrier") {
    reverse_tiles<kSound><<<3, kThreads>>>(in.data(), out.data(), 1024);
    for (int i = 0; i < 1024; ++i) right = right && out[i] == in[i / kThreads * kThreads + kThreads - 1 - i % kThreads];
  } else if (name == "warp") {
    sum_of_warp<kSound><<<1, 32>>>(in.data(), out.data());
    for (int i = 0; i < 32; ++i) right = right && out[i] == 496;
  } else if (name == "atomic") {
    int total = 0;
    count<kSound><<<16, 64>>>(&total);
    right = total == 1024;
  } else if (name == "limits") {
    right = launch_limits();
  } else if (name == "halves") {
    right = halves();
  } else {
    unsigned arrived = 0;
    if (name == "all_arrive") meet_at_a_barrier<kSound><<<1, 64>>>(out.data());
    else if (name == "written") read_what_was_written<kSound><<<1, 64, 256>>>(out.data());
    else if (name == "inside") stay_inside<kSound><<<1, 64, 256>>>(out.data());
    else if (name == "syncwarp") through_shared<kSound><<<1, 32>>>(out.data());
    else if (name == "last_block") join_blocks<kSound><<<16, 64>>>(parts.data(), &arrived, out.data());
    else return 2;
    for (float x : out) right = right && x == 1;
  }
  if (!right) std::printf("%s: a wrong result\n", name.c_str());
  return right && simt::counters().faults == 0 ? 0 : 1;
}

int main(int, char** arguments) {
  const std::string name = arguments[1];
  return name.rfind("no_", 0) == 0 ? run<false>(name.substr(3)) : run<true>(name);
}
