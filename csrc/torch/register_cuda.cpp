// torch.ops.clipsight.* on CUDA: torch's current stream, its device guard, and workspace from its allocator. A library
// of its own, loaded after libclipsight_torch.so (which defines the schemas) where torch has CUDA.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include <optional>

#include "ops/back_step_cuda.h"
#include "ops/channel_reduce_cuda.h"
#include "ops/saliency_tube_cuda.h"
#include "ops/selective_relevance_cuda.h"
#include "ops/sobel_temporal_cuda.h"
#include "ops/spline_upsample_cuda.h"
#include "torch/arguments.h"

namespace clipsight {
namespace {

class Cuda {
 public:
  /// A first argument that is not on CUDA gets no device: the argument checks then refuse the mixture by name.
  explicit Cuda(const Tensor& first) : first_(first) {
    if (!first.device().is_cuda()) return;
    guard_.emplace(first.device().index());
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(first.device().index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

#define CLIPSIGHT_FORWARD(op, Args)                               \
  void op(const Args& args) const {                               \
    const Tensor workspace = bytes(op##_cuda_workspace(args));    \
    op##_cuda(args, workspace.mutable_data_ptr(), stream_);       \
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
    scratch_ = bytes(count * sizeof(T));
    return static_cast<T*>(scratch_.mutable_data_ptr());
  }

 private:
  /// Freed when the launches are queued: the allocator reuses it on the same stream only.
  Tensor bytes(size_t count) const {
    return empty_like_with(first_, {static_cast<int64_t>(count)}, ScalarType::Byte);
  }

  const Tensor& first_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  cudaStream_t stream_ = nullptr;
  Tensor scratch_;
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(clipsight, CUDA, m) { register_ops<Cuda>(m); }

}  // namespace clipsight
