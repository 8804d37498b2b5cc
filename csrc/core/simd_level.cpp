#include "core/simd_level.h"

#include <cstdlib>
#include <stdexcept>

namespace clipsight {

const char* to_string(SimdLevel level) {
  return level == SimdLevel::avx512 ? "avx512" : level == SimdLevel::avx2 ? "avx2" : "baseline";
}

std::vector<SimdLevel> available_simd_levels() {
  std::vector<SimdLevel> levels{SimdLevel::baseline};
#ifdef CLIPSIGHT_X86_LEVELS
  // Each level asks for exactly what its file is compiled with; the builtin also checks that the system saves the registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2) levels.push_back(SimdLevel::avx2);
  if (avx2 && avx512) levels.push_back(SimdLevel::avx512);
#endif
  return levels;
}

SimdLevel simd_level(const std::string& name) {
  if (name == "best") return best_simd_level();
  std::string names;
  for (const SimdLevel level : available_simd_levels()) {
    if (name == to_string(level)) return level;
    names += std::string(", ") + to_string(level);
  }
  throw std::invalid_argument("clipsight: SIMD level must be one of best" + names + " on this machine, got " + name);
}

SimdLevel best_simd_level() {
  static const SimdLevel best = [] {
    const char* name = std::getenv("CLIPSIGHT_SIMD");
    if (name && *name && std::string(name) != "best") return simd_level(name);
    return available_simd_levels().back();
  }();
  return best;
}

}  // namespace clipsight
