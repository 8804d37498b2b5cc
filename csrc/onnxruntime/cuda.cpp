// The ops on ONNX Runtime's CUDA provider: its stream, scratch from its allocator, no synchronisation.
#include <cuda_runtime_api.h>

#include <array>

#include "onnxruntime/custom_op.h"
#include "ops/back_step_cuda.h"
#include "ops/channel_reduce_cuda.h"
#include "ops/convert_cuda.h"
#include "ops/saliency_tube_cuda.h"
#include "ops/selective_relevance_cuda.h"
#include "ops/sobel_temporal_cuda.h"
#include "ops/spline_upsample_cuda.h"

namespace clipsight::ort {
namespace {

class Cuda {
 public:
  static constexpr const char* provider = "CUDAExecutionProvider";

  explicit Cuda(const Call& call) : call_(call), memory_(call.memory_of(0)) {
    void* stream = nullptr;
    check(call.api, call.api.KernelContext_GetGPUComputeStream(call.context, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
    check(call.api, call.api.KernelContext_GetAllocator(call.context, memory_, &allocator_));
  }
  /// The launches are queued by now. The runtime ties the pieces to its stream, so freeing them does not wait.
  ~Cuda() {
    for (size_t i = 0; i < used_; ++i) allocator_->Free(allocator_, pieces_[i]);
    call_.api.ReleaseAllocator(allocator_);
  }
  Cuda(const Cuda&) = delete;
  Cuda& operator=(const Cuda&) = delete;

#define CLIPSIGHT_FORWARD(op, Args)                                            \
  void op(const Args& args) {                                                  \
    op##_cuda(args, scratch<char>(op##_cuda_workspace(args)), stream_);        \
  }
  CLIPSIGHT_FORWARD(channel_reduce, ChannelReduceArgs)
  CLIPSIGHT_FORWARD(back_step, BackStepArgs)
  CLIPSIGHT_FORWARD(spline_upsample, SplineUpsampleArgs)
  CLIPSIGHT_FORWARD(sobel_temporal, SobelTemporalArgs)
  CLIPSIGHT_FORWARD(selective_relevance, SelectiveRelevanceArgs)
  CLIPSIGHT_FORWARD(saliency_tube, SaliencyTubeArgs)
  CLIPSIGHT_FORWARD(selective_tube, SelectiveTubeArgs)
#undef CLIPSIGHT_FORWARD

  template <class T>
  T* scratch(int64_t count) {
    if (count == 0) return nullptr;
    if (used_ == pieces_.size()) throw std::runtime_error(std::string(call_.op) + ": scratch must be 8 pieces at most");
    void* piece = nullptr;
    check(call_.api, call_.api.KernelContext_GetScratchBuffer(call_.context, memory_, count * sizeof(T), &piece));
    return static_cast<T*>(pieces_[used_++] = piece);
  }

  const float* to_float32(const Array& array) {
    if (array.dtype == DType::float32) return static_cast<const float*>(array.data);
    float* single = scratch<float>(array.shape.count());
    to_float32_cuda(static_cast<const uint16_t*>(array.data), array.shape.count(), single, stream_);
    return single;
  }
  void to_float16(const float* single, int64_t count, uint16_t* half) const {
    to_float16_cuda(single, count, half, stream_);
  }

 private:
  const Call& call_;
  const OrtMemoryInfo* memory_;
  cudaStream_t stream_ = nullptr;
  OrtAllocator* allocator_ = nullptr;
  std::array<void*, 8> pieces_{};
  size_t used_ = 0;
};

}  // namespace

void add_cuda_ops(const OrtApi& api, OrtCustomOpDomain* domain) { add_ops<Cuda>(api, domain); }

}  // namespace clipsight::ort
