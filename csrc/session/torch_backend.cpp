// The torch back end of a Session: TorchScript (.pt) and AOTInductor packages (.pt2). The target clipsight::torch
// compiles this file in the user's program, because torch's C++ ABI changes with its releases.
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/InferenceMode.h>
#include <clipsight/torch.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/cuda.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <exception>
#include <memory>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "backend.h"

namespace clipsight {
namespace {

using Tensors = std::vector<at::Tensor>;

/// Calls f under inference mode; what torch throws becomes an Error.
template <class F>
auto guarded(const std::string& what, F&& f) {
  try {
    const c10::InferenceMode mode;
    return f();
  } catch (const Error&) {
    throw;
  } catch (const c10::Error& error) {
    throw Error(what + ": " + error.what_without_backtrace());
  } catch (const std::exception& error) {
    throw Error(what + ": " + error.what());
  }
}

/// True where torch can call the fused ops on this device.
bool has_ops(c10::DispatchKey key) {
  const auto op = c10::Dispatcher::singleton().findSchema({"clipsight::selective_tube", ""});
  return op && op->hasKernelForDispatchKey(key);
}

/// Loads a library of ops that the program does not have yet: `path`, or `name` beside libclipsight.so.
void load_ops(std::string path, const char* name) {
  Dl_info session;
  if (path.empty() && dladdr(reinterpret_cast<const void*>(&register_backend), &session)) {
    path = session.dli_fname;
    path = path.substr(0, path.rfind('/') + 1) + name;
  }
  if (dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return;
  throw Error(std::string("open: the file calls ops of ") + name + ", which must be loaded, got: " + dlerror() +
              "; install clipsight again, or export with plugin=False");
}

/// Moves tensors between the caller's memory and the module; a subclass runs the module.
class TorchBackend : public Backend {
 public:
  TorchBackend(const Manifest& manifest, const Options& options)
      : outputs_(manifest.outputs.size()),
        threads_(options.threads),
        device_(torch_device(parse_device(options.device))) {
    if (device_.is_cuda() && device_.index() >= torch::cuda::device_count()) {
      throw Error("open: device must be one that torch has, got '" + options.device + "', but torch finds " +
                  std::to_string(torch::cuda::device_count()) + " CUDA devices");
    }
    if (!manifest.plugin_required) return;
    if (!has_ops(c10::DispatchKey::CPU)) load_ops(options.plugin_library, "libclipsight_torch.so");
    if (device_.is_cuda() && !has_ops(c10::DispatchKey::CUDA)) load_ops("", "libclipsight_torch_cuda.so");
  }

  std::vector<Tensor> run(const TensorView* inputs, size_t input_count) override {
    return guarded("run", [&] {
      Run run;
      run.call(*this, inputs, input_count);
      std::vector<Tensor> results;
      results.reserve(outputs_);
      for (const at::Tensor& output : run.outputs) {
        const auto owner = std::make_shared<at::Tensor>(output.cpu().contiguous());
        results.emplace_back(view_of(*owner), owner);
      }
      return results;
    });
  }

  void run(const TensorView* inputs, size_t input_count, const TensorView* outputs, size_t output_count) override {
    guarded("run", [&] {
      Run run;
      run.call(*this, inputs, input_count);
      for (size_t i = 0; i < output_count; ++i) {
        const at::Tensor target = tensor_of(outputs[i]);
        if (target.sizes() != run.outputs[i].sizes()) {
          throw Error("run: output " + std::to_string(i) + " must have shape " + c10::str(run.outputs[i].sizes()) +
                      ", got " + c10::str(target.sizes()));
        }
        target.copy_(run.outputs[i], /*non_blocking=*/true);
      }
      if (device_.is_cuda()) torch::cuda::synchronize(device_.index());
    });
  }

 protected:
  /// Appends to outputs; may take the inputs.
  virtual void forward(Tensors& inputs, Tensors& outputs) = 0;

  const size_t outputs_;
  const int threads_;
  const at::Device device_;

 private:
  /// One call of the module. Its lists stay with the thread, so that later runs allocate none; the tensors go.
  struct Run {
    ~Run() {
      inputs.clear();
      outputs.clear();
    }
    void call(TorchBackend& backend, const TensorView* views, size_t count) {
      // torch keeps this number for each of the program's threads; it is left as it is from then on.
      if (backend.threads_ > 0 && at::get_num_threads() != backend.threads_) at::set_num_threads(backend.threads_);
      for (size_t i = 0; i < count; ++i) inputs.push_back(tensor_of(views[i]).to(backend.device_));
      backend.forward(inputs, outputs);
      if (outputs.size() == backend.outputs_) return;
      throw Error("run: the file must return " + std::to_string(backend.outputs_) +
                  " outputs as its manifest says, got " + std::to_string(outputs.size()));
    }
    static Tensors& list(int which) {
      thread_local Tensors lists[2];
      return lists[which];
    }

    Tensors &inputs = list(0), &outputs = list(1);
  };
};

class TorchScript final : public TorchBackend {
 public:
  TorchScript(const std::string& path, const Manifest& manifest, const Options& options)
      : TorchBackend(manifest, options),
        module_(torch::jit::load(path, device_)),
        forward_(module_.get_method("forward")) {}

 private:
  void forward(Tensors& inputs, Tensors& outputs) override {
    thread_local torch::jit::Stack stack;
    stack.assign(inputs.begin(), inputs.end());
    forward_.run(stack);
    const c10::IValue result = std::move(stack.back());
    stack.clear();
    if (result.isTensor()) return outputs.push_back(result.toTensor());
    for (const c10::IValue& value : result.toTupleRef().elements()) outputs.push_back(value.toTensor());
  }

  torch::jit::Module module_;
  torch::jit::Method forward_;
};

/// A package has one compiled model per clip size, size0, size1, ... in the manifest's order, and for files with the
/// input `explain` another one for calls in which nobody wants a map; no model takes that input itself.
class Aot final : public TorchBackend {
 public:
  Aot(const std::string& path, const Manifest& manifest, const Options& options)
      : TorchBackend(manifest, options), manifest_(manifest), frames_(manifest.inputs.at(0).name == "frames") {
    const auto is_explain = [](const Port& port) { return port.name == "explain"; };
    const auto found = std::find_if(manifest.inputs.begin(), manifest.inputs.end(), is_explain);
    if (found != manifest.inputs.end()) explain_ = found - manifest.inputs.begin();
    for (size_t i = 0; i < manifest.sizes.size(); ++i) {
      const std::string name = "size" + std::to_string(i);
      models_.push_back(load(path, name));
      if (explain_ >= 0) without_maps_.push_back(load(path, name + "_without_maps"));
    }
  }

 private:
  using Loader = torch::inductor::AOTIModelPackageLoader;

  std::unique_ptr<Loader> load(const std::string& path, const std::string& name) const {
    check_machine(Loader::load_metadata_from_package(path, name));
    // As many copies of the code as can run at one time; they share the weights.
    const size_t runners = std::max(1u, std::thread::hardware_concurrency());
    return std::make_unique<Loader>(path, name, /*run_single_threaded=*/false, runners, device_.index());
  }

  /// Compiled code is native code: what it asks of the machine is known before it crashes there.
  void check_machine(const std::unordered_map<std::string, std::string>& compiled) const {
    const auto device = compiled.find("AOTI_DEVICE_KEY");
    const std::string have = device_.is_cuda() ? "cuda" : "cpu";
    if (device != compiled.end() && device->second != have) {
      throw Error("open: device must be '" + device->second + "', for which the file was compiled, got '" + have + "'");
    }
#if defined(__x86_64__)
    const auto isa = compiled.find("AOTI_CPU_ISA");
    if (isa == compiled.end()) return;
    const auto wants = [&](const char* name) { return isa->second.find(name) != std::string::npos; };
    if ((wants("AVX2") && !__builtin_cpu_supports("avx2")) ||
        (wants("AVX512") && !__builtin_cpu_supports("avx512bw"))) {
      throw Error("open: the CPU must have " + isa->second + ", for which the file was compiled, got one without");
    }
#endif
  }

  void forward(Tensors& inputs, Tensors& outputs) override {
    const at::IntArrayRef shape = inputs[0].sizes();
    const std::string& layout = manifest_.inputs[0].layout;
    const auto fits = [&](const std::array<int64_t, 3>& size) {
      bool same = true;
      for (size_t i = 0; i < (frames_ ? 1 : 3); ++i) {  // frames come in any height and width
        same &= shape[layout.find("THW"[i])] == size[i];
      }
      return same;
    };
    const auto& sizes = manifest_.sizes;
    const auto size = std::find_if(sizes.begin(), sizes.end(), fits);
    if (size == sizes.end()) {
      throw Error("run: clip must be of a size that the file was exported for, got " + c10::str(shape));
    }
    bool maps = true;
    if (explain_ >= 0) {
      maps = inputs[static_cast<size_t>(explain_)].any().item<bool>();
      inputs.erase(inputs.begin() + explain_);
    }
    outputs = (maps ? models_ : without_maps_)[static_cast<size_t>(size - sizes.begin())]->run(inputs);
  }

  const Manifest manifest_;
  const bool frames_;
  std::ptrdiff_t explain_ = -1;  // the index of that input
  std::vector<std::unique_ptr<Loader>> models_, without_maps_;
};

template <class T>
std::unique_ptr<Backend> open(const std::string& path, const Manifest& manifest, const Options& options) {
  return guarded("open: '" + path + "'", [&]() -> std::unique_ptr<Backend> {
    return std::make_unique<T>(path, manifest, options);
  });
}

[[maybe_unused]] const bool torchscript = register_backend("torchscript", &open<TorchScript>);
[[maybe_unused]] const bool aot = register_backend("aot", &open<Aot>);

}  // namespace
}  // namespace clipsight
