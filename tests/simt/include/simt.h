// The CUDA programming model on one host thread: see README.md. translate.py makes C++ of kernels that includes this.
#pragma once

#include <math.h>  // isfinite, fmaf and so on without a namespace, as in CUDA
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "bits.h"

namespace simt {

struct Dim3 {
  unsigned x, y, z;
  constexpr Dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

/// Where in the source a thread waits.
struct Site {
  const char* file;
  int line;
  const char* what;
};

// ---- what a kernel calls: engine.cpp, in which no sanitizer looks ---------------------------------------------------
Dim3 thread_index();
Dim3 block_index();
Dim3 block_size();
Dim3 grid_size();
unsigned lane();
void* dynamic_shared();
void* static_shared(const void* key, size_t size, size_t alignment);
void barrier(Site site);
void fence();
void may_give_way();

enum class WarpOp { shuffle, vote, sync };
/// All lanes of `mask` meet. A shuffle gives the value of the lane `source`, a vote one bit of each lane's value.
uint64_t warp(Site site, WarpOp op, unsigned mask, uint64_t value, unsigned source);

template <class T>
T& shared(const void* key) {
  return *static_cast<T*>(static_shared(key, sizeof(T), alignof(T)));
}

template <class T>
T shuffle(Site site, unsigned mask, T value, unsigned source) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp(site, WarpOp::shuffle, mask, bits, source < 32 ? source : lane());  // beyond the ends: its own
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

/// Reads, changes and writes in one step that orders nothing else, as on a device.
template <class T, class Change>
T atomic(T* address, Change change) {
  may_give_way();
  T old, next;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  do next = change(old);
  while (!__atomic_compare_exchange(address, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

// ---- what the host calls --------------------------------------------------------------------------------------------
struct Config {
  Dim3 grid, block;
  size_t shared = 0;
  const void* stream = nullptr;
};

void run(const char* kernel, const Config& config, void (*body)(const void*), const void* closure);

/// Every thread has its own copy of the arguments.
template <class Kernel, class... Args>
void launch(const char* name, const Config& config, Kernel kernel, Args... args) {
  const auto call = [&] { kernel(args...); };
  run(name, config, [](const void* closure) { (*static_cast<const decltype(call)*>(closure))(); }, &call);
}

struct Counters {
  long launches, blocks, threads, faults;
};
const Counters& counters();
/// Reports what CUDA leaves undefined.
void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));
void set_seed(uint64_t seed);      // of the order of threads and blocks
void set_grid_cap(unsigned most);  // blocks of a launch, so that kernels walk on in strides; 0: all

}  // namespace simt

// ---- CUDA's names ---------------------------------------------------------------------------------------------------
#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define threadIdx (simt::thread_index())
#define blockIdx (simt::block_index())
#define blockDim (simt::block_size())
#define gridDim (simt::grid_size())

using dim3 = simt::Dim3;

#define SIMT_SITE(what) simt::Site{__FILE__, __LINE__, what}
#define __syncthreads() simt::barrier(SIMT_SITE("__syncthreads"))
#define __syncwarp() (void)simt::warp(SIMT_SITE("__syncwarp"), simt::WarpOp::sync, 0xffffffffu, 0, 0)
#define __shfl_xor_sync(mask, value, bits) \
  simt::shuffle(SIMT_SITE("__shfl_xor_sync"), mask, value, simt::lane() ^ (bits))
#define __shfl_up_sync(mask, value, by) simt::shuffle(SIMT_SITE("__shfl_up_sync"), mask, value, simt::lane() - (by))
#define __shfl_down_sync(mask, value, by) simt::shuffle(SIMT_SITE("__shfl_down_sync"), mask, value, simt::lane() + (by))
#define __any_sync(mask, p) (simt::warp(SIMT_SITE("__any_sync"), simt::WarpOp::vote, mask, (p) ? 1 : 0, 0) != 0)
#define __threadfence() simt::fence()

template <class T> T atomicAdd(T* p, T v) { return simt::atomic(p, [=](T old) { return static_cast<T>(old + v); }); }
template <class T> T atomicMax(T* p, T v) { return simt::atomic(p, [=](T old) { return v > old ? v : old; }); }
template <class T> T __ldg(const T* p) { return *p; }

template <class A, class B>
std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

inline unsigned __float_as_uint(float x) { return simt::bits_as<unsigned>(x); }
inline float __uint_as_float(unsigned bits) { return simt::bits_as<float>(bits); }
// Not inline, so that no compiler fuses them with a neighbor.
__attribute__((noinline)) inline float __fmul_rn(float a, float b) { return a * b; }
__attribute__((noinline)) inline float __fsub_rn(float a, float b) { return a - b; }
