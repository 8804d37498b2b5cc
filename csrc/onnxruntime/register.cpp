// The one exported symbol: adds the domain `clipsight` to the options of a session.
#include <map>
#include <mutex>

#include "onnxruntime/custom_op.h"

namespace clipsight::ort {
namespace {

/// The domain of one copy of ONNX Runtime; a process may hold several. It and its ops live as long as the process:
/// sessions keep pointers to them.
OrtCustomOpDomain* domain_of(const OrtApi& api) {
  static std::mutex mutex;
  static auto& domains = *new std::map<const OrtApi*, OrtCustomOpDomain*>;
  const std::lock_guard<std::mutex> lock(mutex);
  OrtCustomOpDomain*& domain = domains[&api];
  if (domain != nullptr) return domain;
  OrtCustomOpDomain* created = nullptr;
  check(api, api.CreateCustomOpDomain("clipsight", &created));
  add_cpu_ops(api, created);
#ifdef CLIPSIGHT_WITH_CUDA
  add_cuda_ops(api, created);
#endif
  return domain = created;
}

}  // namespace
}  // namespace clipsight::ort

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                                                           const OrtApiBase* base) {
  using namespace clipsight::ort;
  const OrtApi* api = base->GetApi(kApiVersion);
  if (api == nullptr) {
    const std::string message = std::string("clipsight: ONNX Runtime must be 1.") + std::to_string(kApiVersion) +
                                " or newer, got " + base->GetVersionString();
    return base->GetApi(1)->CreateStatus(ORT_FAIL, message.c_str());
  }
  return guarded(*api, [&] { check(*api, api->AddCustomOpDomain(options, domain_of(*api))); });
}
