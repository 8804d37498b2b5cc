// The ops on ONNX Runtime's CPU provider: the session's thread pool, and scratch that stays with the thread.
#include "core/simd_level.h"
#include "core/workspace.h"
#include "onnxruntime/custom_op.h"
#include "ops/convert.h"

namespace clipsight::ort {
namespace {

class Cpu {
 public:
  static constexpr const char* provider = nullptr;  // the CPU provider

  explicit Cpu(const Call& call) : pool_(call) {}

  void channel_reduce(const ChannelReduceArgs& args) const { channel_reduce_cpu(args, pool_, level_); }
  void spline_upsample(const SplineUpsampleArgs& args) const { spline_upsample_cpu(args, pool_, level_); }
  void sobel_temporal(const SobelTemporalArgs& args) const { sobel_temporal_cpu(args, pool_, level_); }
  void selective_relevance(const SelectiveRelevanceArgs& args) const { selective_relevance_cpu(args, pool_, level_); }
  void saliency_tube(const SaliencyTubeArgs& args) const { saliency_tube_cpu(args, pool_, level_); }
  void selective_tube(const SelectiveTubeArgs& args) const { selective_tube_cpu(args, pool_, level_); }

  template <class T>
  T* scratch(int64_t count) {
    return workspace_.array<T>(count);
  }

  const float* to_float32(const Array& array) {
    if (array.dtype == DType::float32) return static_cast<const float*>(array.data);
    float* single = scratch<float>(array.shape.count());
    to_float32_cpu(static_cast<const uint16_t*>(array.data), array.shape.count(), single, pool_, level_);
    return single;
  }
  void to_float16(const float* single, int64_t count, uint16_t* half) const {
    to_float16_cpu(single, count, half, pool_, level_);
  }

 private:
  Workspace workspace_;
  Pool pool_;
  SimdLevel level_ = best_simd_level();
};

}  // namespace

void add_cpu_ops(const OrtApi& api, OrtCustomOpDomain* domain) { add_ops<Cpu>(api, domain); }

}  // namespace clipsight::ort
