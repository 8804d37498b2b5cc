// The ops on ONNX Runtime's CPU provider: the session's thread pool, and scratch that stays with the thread.
#include "onnxruntime/custom_op.h"
#include "ops/convert.h"
#include "ops/cpu_backend.h"

namespace clipsight::ort {
namespace {

class Cpu : public CpuBackend<Pool> {
 public:
  static constexpr const char* provider = nullptr;  // the CPU provider

  explicit Cpu(const Call& call) : CpuBackend(call) {}

  const float* to_float32(const Array& array) {
    if (array.dtype == DType::float32) return static_cast<const float*>(array.data);
    float* single = scratch<float>(array.shape.count());
    to_float32_cpu(static_cast<const uint16_t*>(array.data), array.shape.count(), single, pool_, level_);
    return single;
  }
  void to_float16(const float* single, int64_t count, uint16_t* half) const {
    to_float16_cpu(single, count, half, pool_, level_);
  }
};

}  // namespace

void add_cpu_ops(const OrtApi& api, OrtCustomOpDomain* domain) { add_ops<Cpu>(api, domain); }

}  // namespace clipsight::ort
