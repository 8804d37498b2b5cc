// torch.ops.clipsight.*: the schemas, and the CPU kernels on torch's own thread pool.
#include <algorithm>

#include "ops/cpu_backend.h"
#include "torch/arguments.h"

namespace clipsight {
namespace {

class TorchParallel final : public Parallel {
 public:
  void run(int64_t count, int64_t grain, Body body, void* context) const override {
    torch::stable::parallel_for(0, count, std::max<int64_t>(grain, 1),
                                [=](int64_t begin, int64_t end) { body(context, begin, end); });
  }
  int threads() const override { return static_cast<int>(torch::stable::get_num_threads()); }
};

struct Cpu : CpuBackend<TorchParallel> {
  explicit Cpu(const Tensor&) {}
};

#define CLIPSIGHT_TUBE \
  "(Tensor features, Tensor weight, SymInt[] size, float? threshold=None, int order=3, bool relu=False, " \
  "str normalize=\"clip\", str dtype=\"float32\""
#define CLIPSIGHT_RULE \
  "float n_sigma=2.0, str padding=\"replicate\", str sign=\"abs\", str sigma_of=\"signed\""

}  // namespace

STABLE_TORCH_LIBRARY(clipsight, m) {
  m.def("channel_reduce(Tensor features, Tensor weight, float? threshold=None) -> Tensor");
  m.def("back_step(Tensor pooled, Tensor kernel, Tensor selected, float theta, int groups=1) "
        "-> (Tensor edges, Tensor multiplicity)");
  m.def("spline_upsample(Tensor volume, SymInt[] size, int order=3) -> Tensor");
  m.def("sobel_temporal(Tensor volume, str padding=\"replicate\") -> Tensor");
  m.def("selective_relevance(Tensor volume, " CLIPSIGHT_RULE ", bool prescale=False, "
        "Tensor? n_sigma_of=None) -> (Tensor motion, Tensor motion_share)");
  m.def("saliency_tube" CLIPSIGHT_TUBE ") -> Tensor");
  m.def("saliency_tube.out" CLIPSIGHT_TUBE ", *, Tensor(a!) out) -> ()");
  m.def("selective_tube" CLIPSIGHT_TUBE ", " CLIPSIGHT_RULE
        ", Tensor? n_sigma_of=None) -> (Tensor tube, Tensor motion, Tensor motion_share)");
  m.def("selective_tube.out" CLIPSIGHT_TUBE ", " CLIPSIGHT_RULE
        ", Tensor? n_sigma_of=None, *, Tensor(a!) tube, Tensor(b!) motion, Tensor(c!) motion_share) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(clipsight, CPU, m) { register_ops<Cpu>(m); }

}  // namespace clipsight
