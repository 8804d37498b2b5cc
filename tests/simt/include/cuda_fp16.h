// float16 as a storage type: the compiler's own, which rounds to nearest even.
#pragma once

#include <cstdint>

#include "bits.h"

struct __half {
  uint16_t bits;
};

inline float __half2float(__half h) {
  return static_cast<float>(simt::bits_as<_Float16>(h.bits));
}

inline __half __float2half_rn(float x) {
  if (x != x) return {0x7fff};  // the device's NaN
  return {simt::bits_as<uint16_t>(static_cast<_Float16>(x))};
}
