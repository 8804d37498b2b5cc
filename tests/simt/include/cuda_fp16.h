// float16 as a storage type: the compiler's own, which rounds to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half h) {
  _Float16 x;
  std::memcpy(&x, &h.bits, sizeof x);
  return static_cast<float>(x);
}

inline __half __float2half_rn(float x) {
  if (x != x) return {0x7fff};  // the device's NaN
  const auto half = static_cast<_Float16>(x);
  __half h;
  std::memcpy(&h.bits, &half, sizeof half);
  return h;
}
