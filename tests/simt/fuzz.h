// What the fuzzer draws and compares with.
#pragma once

#include <cuda_fp16.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace fuzz {

class Random {
 public:
  void seed(uint64_t state) { state_ = state; }
  uint64_t next() {  // splitmix64
    uint64_t x = state_ += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  bool one_in(int64_t n) { return below(n) == 0; }
  float normal() {  // nearly: the sum of twelve uniform ones
    float sum = -6;
    for (int i = 0; i < 12; ++i) sum += static_cast<float>(next() >> 40) / 16777216.0f;
    return sum;
  }
  template <class T>
  T of(std::initializer_list<T> list) {
    return list.begin()[below(static_cast<int64_t>(list.size()))];
  }
  int64_t size(std::initializer_list<int> list) { return of(list); }

 private:
  uint64_t state_ = 1;
};

/// `count` values with all bits set that begin `offset` values behind an aligned address, and end where they end.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count, int64_t offset = 0) : count_(count) {
    const size_t bytes = static_cast<size_t>(count + offset) * sizeof(T);
    if (posix_memalign(&memory_, 256, bytes) != 0) std::abort();
    if (bytes != 0) std::memset(memory_, 0xff, bytes);
    data_ = static_cast<T*>(memory_) + offset;
  }
  ~Buffer() { std::free(memory_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  int64_t size() const { return count_; }

 private:
  void* memory_ = nullptr;
  T* data_;
  int64_t count_;
};

inline double number(float x) { return x; }
inline double number(uint8_t x) { return x; }
inline double number(uint16_t x) { return __half2float({x}); }

/// One call of an op: what it is, and what was wrong with it.
class Case {
 public:
  std::string name;
  long wrong = 0, compared = 0;

  template <class... Values>
  void describe(const char* format, Values... values) {
    char text[400];
    std::snprintf(text, sizeof text, format, values...);
    name = text;
  }
  void fail(const char* what, int64_t at, double got, double want) {
    if (++wrong > 20) return;
    std::printf("%s\n    %s at %lld: %g, the CPU %g\n", name.c_str(), what, static_cast<long long>(at), got, want);
  }
  /// NaN where the other is NaN, else no farther apart than `bound`; `exceptions` values may be.
  template <class T>
  void compare(const char* what, Buffer<T>& got, Buffer<T>& want, double bound, int64_t exceptions = 0) {
    int64_t off = 0, first = 0;
    for (int64_t i = 0; i < got.size(); ++i) {
      const double a = number(got[i]), b = number(want[i]);
      if (std::isnan(a) && std::isnan(b)) continue;
      if (!(a == b || std::abs(a - b) <= bound) && off++ == 0) first = i;
    }
    compared += got.size();
    if (off > exceptions) fail(what, first, number(got[first]), number(want[first]));
  }
  /// Runs a kernel on a workspace of just the bytes that it asks for.
  template <class Op>
  void on_device(size_t workspace_bytes, Op op) {
    Buffer<char> workspace(static_cast<int64_t>(workspace_bytes));
    try {
      op(workspace.data());
    } catch (const std::exception& error) {
      ++wrong;
      std::printf("%s\n    %s\n", name.c_str(), error.what());
    }
  }
};

inline double largest(Buffer<float>& values) {
  double most = 0;
  for (int64_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i])) most = std::max(most, std::abs(static_cast<double>(values[i])));
  }
  return most;
}

}  // namespace fuzz
