// ONNX files. ONNX Runtime comes by dlopen, so that libclipsight.so also loads where there is none, and only its C API
// is used, which is the same for the releases of many years.
#include "onnxruntime_backend.h"

#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <mutex>

#include "libraries.h"

namespace clipsight {

namespace {

constexpr uint32_t kApi = 16;  // has all that is used here: ONNX Runtime 1.16 and later
constexpr size_t kMaxPorts = 32;

const OrtApi& load_api(const std::string& path) {
  const char* name = path.empty() ? "libonnxruntime.so.1" : path.c_str();
  void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL);  // stays loaded: its threads may outlive a session
  if (library == nullptr) {
    throw Error("open: ONNX Runtime must be where the loader finds it or at Options::onnxruntime_library, got " +
                std::string(dlerror()));
  }
  const auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"));
  if (base == nullptr) {
    throw Error(std::string("open: '") + name + "' must be ONNX Runtime, got a library without OrtGetApiBase");
  }
  const OrtApi* api = base()->GetApi(kApi);
  if (api == nullptr) {
    throw Error("open: ONNX Runtime must be 1." + std::to_string(kApi) + " or newer, got " +
                base()->GetVersionString());
  }
  return *api;
}

ONNXTensorElementDataType element_type(DType dtype) {
  constexpr ONNXTensorElementDataType types[] = {
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
      ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
      ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,    ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
      ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE};
  return types[static_cast<int>(dtype)];
}

/// One of ONNX Runtime's objects, released by the function of that name.
template <typename T, void(ORT_API_CALL* OrtApi::*Release)(T*)>
class Owned {
 public:
  explicit Owned(const OrtApi& api) : api_(&api) {}
  Owned(Owned&& other) noexcept : api_(other.api_), object_(std::exchange(other.object_, nullptr)) {}
  ~Owned() {
    if (object_) (api_->*Release)(object_);
  }
  T* get() const { return object_; }
  T** out() { return &object_; }
  T* release() { return std::exchange(object_, nullptr); }

 private:
  const OrtApi* api_;
  T* object_ = nullptr;
};

using Environment = Owned<OrtEnv, &OrtApi::ReleaseEnv>;
using SessionOptions = Owned<OrtSessionOptions, &OrtApi::ReleaseSessionOptions>;
using CudaOptions = Owned<OrtCUDAProviderOptionsV2, &OrtApi::ReleaseCUDAProviderOptions>;
using OrtSessionObject = Owned<OrtSession, &OrtApi::ReleaseSession>;
using MemoryInfo = Owned<OrtMemoryInfo, &OrtApi::ReleaseMemoryInfo>;
using Value = Owned<OrtValue, &OrtApi::ReleaseValue>;
using Binding = Owned<OrtIoBinding, &OrtApi::ReleaseIoBinding>;
using TypeInfo = Owned<OrtTypeInfo, &OrtApi::ReleaseTypeInfo>;
using ShapeInfo = Owned<OrtTensorTypeAndShapeInfo, &OrtApi::ReleaseTensorTypeAndShapeInfo>;

class OnnxRuntime final : public Backend {
 public:
  OnnxRuntime(const std::string& path, const Manifest& manifest, const Options& options)
      : manifest_(manifest),
        device_(parse_device(options.device)),
        path_(path),
        api_(load_api(options.onnxruntime_library)) {
    if (std::max(manifest.inputs.size(), manifest.outputs.size()) > kMaxPorts) {
      throw Error("open: '" + path + "' must have at most " + std::to_string(kMaxPorts) + " inputs and outputs");
    }
    check(api_.CreateEnv(ORT_LOGGING_LEVEL_ERROR, "clipsight", environment_.out()));
    check(api_.CreateMemoryInfo("Cpu", OrtDeviceAllocator, 0, OrtMemTypeDefault, host_memory_.out()));
    if (device_.kind == Device::cuda) {
      check(api_.CreateMemoryInfo("Cuda", OrtDeviceAllocator, device_.index, OrtMemTypeDefault, device_memory_.out()));
    }
    check(api_.GetAllocatorWithDefaultOptions(&allocator_));
    open(options);
    check_ports("inputs", manifest_.inputs, api_.SessionGetInputCount, api_.SessionGetInputName,
                api_.SessionGetInputTypeInfo);
    check_ports("outputs", manifest_.outputs, api_.SessionGetOutputCount, api_.SessionGetOutputName,
                api_.SessionGetOutputTypeInfo);
  }

  std::vector<Tensor> run(const TensorView* inputs, size_t input_count) override {
    Borrowed binding(*this);
    Values values(api_);
    bind_inputs(binding.get(), values, inputs, input_count);
    for (const Port& port : manifest_.outputs) {
      check(api_.BindOutputToDevice(binding.get(), port.name.c_str(), host_memory_.get()));
    }
    check(api_.RunWithBinding(session_.get(), nullptr, binding.get()));
    return take_outputs(binding.get());
  }

  void run(const TensorView* inputs, size_t input_count, const TensorView* outputs, size_t output_count) override {
    Borrowed binding(*this);
    Values values(api_);
    bind_inputs(binding.get(), values, inputs, input_count);
    for (size_t i = 0; i < output_count; ++i) {
      OrtValue* value = values.add(*this, outputs[i]);
      check(api_.BindOutput(binding.get(), manifest_.outputs[i].name.c_str(), value));
    }
    check(api_.RunWithBinding(session_.get(), nullptr, binding.get()));
    if (device_.kind == Device::cuda) check(api_.SynchronizeBoundOutputs(binding.get()));
  }

 private:
  /// The tensors of one run over the caller's memory.
  class Values {
   public:
    explicit Values(const OrtApi& api) : api_(api) {}
    ~Values() {
      for (size_t i = 0; i < count_; ++i) api_.ReleaseValue(values_[i]);
    }
    OrtValue* add(const OnnxRuntime& runtime, const TensorView& view) {
      const MemoryInfo& memory = view.device.kind == Device::cpu ? runtime.host_memory_ : runtime.device_memory_;
      runtime.check(api_.CreateTensorWithDataAsOrtValue(memory.get(), view.data, view.bytes(), view.shape.data(),
                                                        view.shape.size(), element_type(view.dtype), &values_[count_]));
      return values_[count_++];
    }

   private:
    const OrtApi& api_;
    std::array<OrtValue*, 2 * kMaxPorts> values_{};
    size_t count_ = 0;
  };

  /// A binding for one run, kept for the next one; there are as many as runs were ever under way at once.
  class Borrowed {
   public:
    explicit Borrowed(OnnxRuntime& runtime) : runtime_(runtime), binding_(runtime.api_) {
      const std::lock_guard lock(runtime.mutex_);
      if (runtime.idle_.empty()) {
        runtime.check(runtime.api_.CreateIoBinding(runtime.session_.get(), binding_.out()));
        runtime.idle_.reserve(++runtime.bindings_);  // so that giving back allocates nothing
      } else {
        *binding_.out() = runtime.idle_.back().release();
        runtime.idle_.pop_back();
      }
    }
    ~Borrowed() {
      runtime_.api_.ClearBoundInputs(binding_.get());
      runtime_.api_.ClearBoundOutputs(binding_.get());
      const std::lock_guard lock(runtime_.mutex_);
      runtime_.idle_.push_back(std::move(binding_));
    }
    OrtIoBinding* get() const { return binding_.get(); }

   private:
    OnnxRuntime& runtime_;
    Binding binding_;
  };

  void check(OrtStatus* status) const {
    if (status == nullptr) return;
    const std::string message = api_.GetErrorMessage(status);
    api_.ReleaseStatus(status);
    throw Error((session_.get() ? "run" : "open") + std::string(": ONNX Runtime could not ") +
                (session_.get() ? "run '" : "read '") + path_ + "': " + message);
  }

  void open(const Options& options) {
    SessionOptions session(api_);
    check(api_.CreateSessionOptions(session.out()));
    check(api_.SetSessionLogSeverityLevel(session.get(), ORT_LOGGING_LEVEL_ERROR));
    // One block for a whole run would hold every tensor of the forward pass and of the walk back at once.
    check(api_.DisableMemPattern(session.get()));
    for (const auto& [key, value] : manifest_.session) {
      check(api_.AddSessionConfigEntry(session.get(), key.c_str(), value.c_str()));
    }
    if (options.threads > 0) check(api_.SetIntraOpNumThreads(session.get(), options.threads));
    if (device_.kind == Device::cuda) add_cuda(session.get());
    if (manifest_.plugin_required) {
      const std::string plugin = find_plugin(manifest_, options);
      check(api_.RegisterCustomOpsLibrary_V2(session.get(), plugin.c_str()));
    }
    check(api_.CreateSession(environment_.get(), path_.c_str(), session.get(), session_.out()));
  }

  void add_cuda(OrtSessionOptions* session) {
    CudaOptions cuda(api_);
    check(api_.CreateCUDAProviderOptions(cuda.out()));
    const std::string index = std::to_string(device_.index);
    const char *key = "device_id", *value = index.c_str();
    check(api_.UpdateCUDAProviderOptions(cuda.get(), &key, &value, 1));
    check(api_.SessionOptionsAppendExecutionProvider_CUDA_V2(session, cuda.get()));
  }

  /// The graph must be the one that the manifest describes: views are bound by the manifest's names and types.
  template <typename Count, typename Name, typename Type>
  void check_ports(const char* what, const std::vector<Port>& ports, Count count, Name name_at, Type type_at) {
    size_t found = 0;
    check(count(session_.get(), &found));
    bool same = found == ports.size();
    for (size_t i = 0; same && i < found; ++i) {
      char* name = nullptr;
      check(name_at(session_.get(), i, allocator_, &name));
      const auto port = std::find_if(ports.begin(), ports.end(), [&](const Port& p) { return p.name == name; });
      check(api_.AllocatorFree(allocator_, name));
      TypeInfo info(api_);
      check(type_at(session_.get(), i, info.out()));
      const OrtTensorTypeAndShapeInfo* tensor = nullptr;  // belongs to `info`
      check(api_.CastTypeInfoToTensorInfo(info.get(), &tensor));
      ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
      if (tensor) check(api_.GetTensorElementType(tensor, &type));
      same = port != ports.end() && type == element_type(port->dtype);
    }
    if (same) return;
    throw Error("open: '" + path_ + "' must have the " + what + " of its manifest, got others; export it again");
  }

  void bind_inputs(OrtIoBinding* binding, Values& values, const TensorView* inputs, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      check(api_.BindInput(binding, manifest_.inputs[i].name.c_str(), values.add(*this, inputs[i])));
    }
  }

  std::vector<Tensor> take_outputs(OrtIoBinding* binding) {
    OrtValue** values = nullptr;
    size_t count = 0;
    check(api_.GetBoundOutputValues(binding, allocator_, &values, &count));
    std::vector<Tensor> outputs;
    std::vector<std::shared_ptr<void>> owners;
    for (size_t i = 0; i < count; ++i) {
      owners.emplace_back(values[i], [api = &api_](void* value) { api->ReleaseValue(static_cast<OrtValue*>(value)); });
    }
    check(api_.AllocatorFree(allocator_, values));
    for (size_t i = 0; i < count; ++i) outputs.push_back(view_of(manifest_.outputs[i].dtype, std::move(owners[i])));
    return outputs;
  }

  Tensor view_of(DType dtype, std::shared_ptr<void> owner) {
    auto* value = static_cast<OrtValue*>(owner.get());
    ShapeInfo info(api_);
    check(api_.GetTensorTypeAndShape(value, info.out()));
    size_t rank = 0;
    check(api_.GetDimensionsCount(info.get(), &rank));
    std::vector<int64_t> lengths(rank);
    check(api_.GetDimensions(info.get(), lengths.data(), rank));
    void* data = nullptr;
    check(api_.GetTensorMutableData(value, &data));
    return Tensor(TensorView(data, dtype, Shape(lengths)), std::move(owner));
  }

  const Manifest manifest_;
  const Device device_;
  const std::string path_;
  const OrtApi& api_;
  OrtAllocator* allocator_ = nullptr;  // ONNX Runtime's own, never released
  Environment environment_{api_};
  MemoryInfo host_memory_{api_}, device_memory_{api_};
  OrtSessionObject session_{api_};
  std::mutex mutex_;
  std::vector<Binding> idle_;
  size_t bindings_ = 0;
};

}  // namespace

std::unique_ptr<Backend> open_onnxruntime(const std::string& path, const Manifest& manifest, const Options& options) {
  return std::make_unique<OnnxRuntime>(path, manifest, options);
}

}  // namespace clipsight
