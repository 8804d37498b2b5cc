#include "ops/convert.h"

#include "ops/levels/kernels.h"

namespace clipsight {
namespace {

constexpr int64_t kGrain = 1 << 16;  // values worth a thread

}  // namespace

void to_float32_cpu(const uint16_t* half, int64_t count, float* single, const Parallel& parallel, SimdLevel level) {
  const Kernels& k = kernels(level);
  parallel.for_range(count, kGrain,
                     [&](int64_t begin, int64_t end) { k.to_float32(half + begin, end - begin, single + begin); });
}

void to_float16_cpu(const float* single, int64_t count, uint16_t* half, const Parallel& parallel, SimdLevel level) {
  const Kernels& k = kernels(level);
  parallel.for_range(count, kGrain,
                     [&](int64_t begin, int64_t end) { k.to_float16(single + begin, end - begin, half + begin); });
}

}  // namespace clipsight
