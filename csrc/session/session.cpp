#include <clipsight/session.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <mutex>

#include "backend.h"
#include "checks.h"
#include "libraries.h"
#include "target.h"
#ifdef CLIPSIGHT_HAS_ONNXRUNTIME
#include "onnxruntime_backend.h"
#endif

namespace clipsight {

namespace {

struct Registry {
  std::mutex mutex;
  std::map<std::string, BackendFactory> factories;
};

Registry& registry() {
  static Registry* registry = [] {  // never destroyed: other libraries' statics use it
    auto* created = new Registry;
#ifdef CLIPSIGHT_HAS_ONNXRUNTIME
    created->factories["onnx"] = &open_onnxruntime;
#endif
    return created;
  }();
  return *registry;
}

BackendFactory factory_of(const std::string& path, const std::string& kind) {
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  const auto found = all.factories.find(kind);
  if (found != all.factories.end()) return found->second;
  std::string hint = "; upgrade clipsight";
  if (kind == "torchscript" || kind == "aot") {
    hint = "; link the CMake target clipsight::torch, which compiles it into your program";
  }
  if (kind == "onnx") hint = "; build clipsight with CLIPSIGHT_ONNXRUNTIME=ON";
  throw Error("open: '" + path + "' must be of a kind that this program has a back end for, got '" + kind + "'" + hint);
}

/// A file is opened as what its suffix says: .onnx is data, the others are code, which acts on the machine. A file of
/// another suffix may be data.
void check_kind(const std::string& path, const std::string& kind, const std::string& stated) {
  const std::map<std::string, std::string> kinds{{".onnx", "onnx"}, {".pt", "torchscript"}, {".pt2", "aot"}};
  const auto known = kinds.find(std::filesystem::path(path).extension().string());
  const std::string expected = !stated.empty() ? stated : known != kinds.end() ? known->second : "onnx";
  if (kind == expected) return;
  const std::string by = !stated.empty()        ? "what open_as was told"
                         : known != kinds.end() ? "its suffix '" + known->first + "'"
                                                : "a suffix that no export has";
  throw Error("open: '" + path + "' must be of the kind '" + expected + "' by " + by + ", got '" + kind +
              "'; a file that may run code is opened under its own suffix, or with open_as where you trust it");
}

}  // namespace

bool register_backend(const char* kind, BackendFactory factory) {
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  all.factories[kind] = factory;
  return true;
}

Device parse_device(const std::string& device) {
  if (device == "cpu") return {};
  if (device == "cuda") return {Device::cuda, 0};
  const std::string index = device.substr(std::min<size_t>(device.size(), 5));
  const bool digits = !index.empty() && index.size() < 4 && index.find_first_not_of("0123456789") == std::string::npos;
  if (device.compare(0, 5, "cuda:") == 0 && digits) return {Device::cuda, std::stoi(index)};
  throw Error("open: device must be 'cpu', 'cuda' or 'cuda:<number>', got '" + device + "'");
}

struct Session::State {
  Manifest manifest;
  Target target;
  Device device;
  std::unique_ptr<Backend> backend;
};

Session::State& Session::state() const {
  if (!state_) throw Error("run: session must be an open one, got one that was moved from");
  return *state_;
}

Session::Session(std::unique_ptr<State> state) : state_(std::move(state)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

Session Session::open(const std::string& path, const Options& options, int abi) {
  return open_as("", path, options, abi);
}

Session Session::open_as(const std::string& kind, const std::string& path, const Options& options, int abi) {
  if (abi != CLIPSIGHT_ABI_VERSION) {
    throw Error("open: the program must be compiled with headers of ABI version " +
                std::to_string(CLIPSIGHT_ABI_VERSION) + ", that of libclipsight.so " CLIPSIGHT_VERSION ", got " +
                std::to_string(abi));
  }
  if (options.threads < 0) throw Error("open: threads must be 0 or more, got " + std::to_string(options.threads));
  auto state = std::make_unique<State>();
  state->device = parse_device(options.device);
  state->manifest = Manifest::read(path);
  state->target = Target::read(Json::parse(state->manifest.json));
  check_kind(path, state->manifest.kind, kind);
  const BackendFactory factory = factory_of(path, state->manifest.kind);
  check_plugin_version(state->manifest);
  state->backend = factory(path, state->manifest, options);
  return Session(std::move(state));
}

const Manifest& Session::manifest() const { return state().manifest; }

std::vector<Tensor> Session::run(const std::vector<TensorView>& inputs) const {
  check_inputs(state().manifest, state().device, inputs.data(), inputs.size());
  return state().backend->run(inputs.data(), inputs.size());
}

void Session::run(const std::vector<TensorView>& inputs, const std::vector<TensorView>& outputs) const {
  run(inputs.data(), inputs.size(), outputs.data(), outputs.size());
}

void Session::run(const TensorView* inputs, size_t input_count, const TensorView* outputs, size_t output_count) const {
  const Lengths lengths = check_inputs(state().manifest, state().device, inputs, input_count);
  check_outputs(state().manifest, lengths, state().device, outputs, output_count);
  state().backend->run(inputs, input_count, outputs, output_count);
}

std::vector<Shape> Session::output_shapes(const std::vector<TensorView>& inputs) const {
  const Lengths lengths = check_inputs(state().manifest, state().device, inputs.data(), inputs.size());
  std::vector<Shape> shapes;
  for (size_t i = 0; i < state().manifest.outputs.size(); ++i) {
    shapes.push_back(output_shape(state().manifest, i, lengths));
  }
  return shapes;
}

Probability Session::probability() const { return state().target.probability; }

std::vector<TopClass> Session::top_classes(const TensorView& logits, size_t k, size_t sample) const {
  return clipsight::top_classes(state().target, logits, k, state().manifest.labels, sample);
}

std::vector<TopClass> top_classes(const TensorView& logits, size_t k, const std::vector<std::string>& labels,
                                  size_t sample) {
  const bool single = logits.shape.size() == 2 && logits.shape[1] == 1;
  return top_classes(logits, k, labels, sample, single ? Probability::sigmoid : Probability::softmax);
}

std::vector<TopClass> top_classes(const TensorView& logits, size_t k, const std::vector<std::string>& labels,
                                  size_t sample, Probability probability) {
  Target target;
  target.probability = probability;
  return top_classes(target, logits, k, labels, sample);
}

}  // namespace clipsight
