// float16 to float32 and back (rounded to nearest even), for front ends that keep volumes in half precision.
#pragma once

#include "core/parallel.h"
#include "core/types.h"

namespace clipsight {

void to_float32_cpu(const uint16_t* half, int64_t count, float* single, const Parallel& parallel, SimdLevel level);
void to_float16_cpu(const float* single, int64_t count, uint16_t* half, const Parallel& parallel, SimdLevel level);

}  // namespace clipsight
