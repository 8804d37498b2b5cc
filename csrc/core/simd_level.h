// Which instruction set the CPU kernels use: the best one that was compiled and that this processor has, or the one
// named by the environment variable CLIPSIGHT_SIMD (baseline, avx2, avx512), read once.
#pragma once

#include <string>
#include <vector>

#include "types.h"

namespace clipsight {

const char* to_string(SimdLevel level);
std::vector<SimdLevel> available_simd_levels();  // ascending; baseline comes first and is always there
SimdLevel best_simd_level();                     // std::invalid_argument where CLIPSIGHT_SIMD names no available level

/// "best" or a level's name; std::invalid_argument where it is unknown or not available here.
SimdLevel simd_level(const std::string& name);

}  // namespace clipsight
