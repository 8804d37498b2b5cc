// The C API over Session: handles are checked, exceptions become a status and a message of the thread.
#include <clipsight/clipsight.h>
#include <clipsight/session.h>

#include <algorithm>
#include <array>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"

namespace {

using clipsight::Device;
using clipsight::DType;
using clipsight::Error;
using clipsight::Manifest;
using clipsight::Port;
using clipsight::Session;
using clipsight::Shape;
using clipsight::TensorView;

constexpr size_t kMaxTensors = 32;

/// The message stays in the thread's own memory: a caller in another language reads it after the call.
thread_local std::array<char, 2048> last_error{};

/// As UTF-8 without control characters, of which a file or a runtime may have put some into it.
void remember(std::string_view message) noexcept {
  size_t used = 0;
  for (size_t at = 0; at < message.size();) {
    const size_t length = clipsight::utf8_length(message, at), taken = std::max<size_t>(length, 1);
    if (used + taken >= last_error.size()) break;
    const auto first = static_cast<unsigned char>(message[at]);
    const bool control = (length == 1 && (first < 0x20 || first == 0x7f) && first != '\n') ||
                         (length == 2 && first == 0xc2 && static_cast<unsigned char>(message[at + 1]) < 0xa0);
    if (length == 0 || control) {
      last_error[used++] = '?';
    } else {
      used += message.copy(&last_error[used], length, at);
    }
    at += taken;
  }
  last_error[used] = '\0';
}

/// Runs `body`; whatever it throws stops here.
template <typename Body>
int guarded(Body body) noexcept {
  last_error[0] = '\0';
  try {
    body();
    return CLIPSIGHT_OK;
  } catch (const std::exception& error) {
    remember(error.what());
  } catch (...) {
    remember("clipsight: an exception of an unknown type");
  }
  return CLIPSIGHT_ERROR;
}

/// Throws "<op>: <rule>, got <got>".
[[noreturn]] void fail(const char* op, const std::string& rule, const std::string& got) {
  throw Error(std::string(op) + ": " + rule + ", got " + got);
}

void require(const char* op, const char* name, const void* pointer) {
  if (pointer == nullptr) fail(op, std::string(name) + " must not be null", "null");
}

/// Open sessions by number: slot + 1 in the low half, and how often the slot was used before in the high half.
class Handles {
 public:
  clipsight_session add(Session session) {
    auto opened = std::make_shared<const Session>(std::move(session));
    const std::unique_lock lock(mutex_);
    size_t slot = 0;
    while (slot < slots_.size() && slots_[slot].session) ++slot;
    if (slot == slots_.size()) slots_.emplace_back();
    slots_[slot].session = std::move(opened);
    return static_cast<uint64_t>(slots_[slot].generation) << 32 | (slot + 1);
  }

  /// The session stays alive for the call even where another thread closes it.
  std::shared_ptr<const Session> get(const char* op, clipsight_session handle) {
    const std::shared_lock lock(mutex_);
    return find(op, handle).session;
  }

  void remove(clipsight_session handle) {
    std::shared_ptr<const Session> closed;  // destroyed after the lock is given back
    const std::unique_lock lock(mutex_);
    Slot& slot = find("clipsight_close", handle);
    closed.swap(slot.session);
    ++slot.generation;
  }

 private:
  struct Slot {
    std::shared_ptr<const Session> session;
    uint32_t generation = 0;
  };

  Slot& find(const char* op, clipsight_session handle) {
    const size_t slot = (handle & 0xffffffff) - 1;
    if (slot >= slots_.size() || slots_[slot].generation != handle >> 32 || !slots_[slot].session) {
      fail(op, "session must be an open one", std::to_string(handle) + ", which was closed or never opened");
    }
    return slots_[slot];
  }

  std::shared_mutex mutex_;
  std::vector<Slot> slots_;
};

Handles& handles() {
  static auto* handles = new Handles;  // never destroyed: sessions that a program leaves open end with the process
  return *handles;
}

std::string text_or_empty(const char* text) { return text ? text : ""; }

TensorView view_of(const char* op, const clipsight_tensor& tensor) {
  if (tensor.rank < 0 || tensor.rank > CLIPSIGHT_MAX_RANK) {
    fail(op, "rank must lie in 0..8", std::to_string(tensor.rank));
  }
  if (!clipsight::is_known(static_cast<DType>(tensor.dtype))) {
    fail(op, "dtype must be one of CLIPSIGHT_FLOAT32 and its like", std::to_string(tensor.dtype));
  }
  if (tensor.device != CLIPSIGHT_CPU && tensor.device != CLIPSIGHT_CUDA) {
    fail(op, "device must be CLIPSIGHT_CPU or CLIPSIGHT_CUDA", std::to_string(tensor.device));
  }
  const Shape shape(tensor.shape, static_cast<size_t>(tensor.rank));
  const Device device{static_cast<Device::Kind>(tensor.device), tensor.device_index};
  return TensorView(tensor.data, static_cast<DType>(tensor.dtype), shape, device);
}

/// Views without an allocation.
struct Views {
  Views(const char* op, const char* name, const clipsight_tensor* tensors, size_t count) : count(count) {
    require(op, name, tensors);
    if (count > kMaxTensors) fail(op, std::string(name) + " must be at most 32 tensors", std::to_string(count));
    for (size_t i = 0; i < count; ++i) views[i] = view_of(op, tensors[i]);
  }
  std::array<TensorView, kMaxTensors> views;
  size_t count;
};

void describe(const char* op, const std::vector<Port>& ports, size_t index, clipsight_port* out) {
  require(op, "port", out);
  if (index >= ports.size()) fail(op, "index must be below " + std::to_string(ports.size()), std::to_string(index));
  const Port& port = ports[index];
  *out = {};
  out->name = port.name.c_str();
  out->dtype = static_cast<int>(port.dtype);
  out->rank = static_cast<int>(port.shape.size());
  for (size_t axis = 0; axis < port.shape.size(); ++axis) {
    const auto& [length, letter] = port.shape[axis];
    out->shape[axis] = length;
    out->letters[axis] = letter.empty() ? '=' : letter.size() == 1 ? letter[0] : '?';
  }
}

}  // namespace

int clipsight_abi_version(void) { return CLIPSIGHT_ABI_VERSION; }
const char* clipsight_version(void) { return CLIPSIGHT_VERSION; }
const char* clipsight_last_error(void) { return last_error.data(); }

int clipsight_open(const char* path, const clipsight_options* given, clipsight_session* session) {
  return clipsight_open_as("", path, given, session);
}

int clipsight_open_as(const char* kind, const char* path, const clipsight_options* given, clipsight_session* session) {
  return guarded([&] {
    require("clipsight_open", "kind", kind);
    require("clipsight_open", "path", path);
    require("clipsight_open", "session", session);
    *session = 0;
    const clipsight_options none = CLIPSIGHT_OPTIONS;
    const clipsight_options& o = given ? *given : none;
    clipsight::Options options;
    if (o.abi == CLIPSIGHT_ABI_VERSION) {  // else Session::open_as says what is wrong
      options.device = o.device ? o.device : "cpu";
      options.threads = o.threads;
      options.onnxruntime_library = text_or_empty(o.onnxruntime_library);
      options.plugin_library = text_or_empty(o.plugin_library);
    }
    *session = handles().add(Session::open_as(kind, path, options, o.abi));
  });
}

int clipsight_close(clipsight_session session) {
  return guarded([&] { handles().remove(session); });
}

int clipsight_manifest(clipsight_session session, const char** json) {
  return guarded([&] {
    const char* op = "clipsight_manifest";
    require(op, "json", json);
    *json = handles().get(op, session)->manifest().json.c_str();
  });
}

int clipsight_counts(clipsight_session session, size_t* inputs, size_t* outputs, size_t* classes) {
  return guarded([&] {
    const auto opened = handles().get("clipsight_counts", session);
    const Manifest& manifest = opened->manifest();
    if (inputs) *inputs = manifest.inputs.size();
    if (outputs) *outputs = manifest.outputs.size();
    if (classes) *classes = static_cast<size_t>(manifest.num_classes);
  });
}

int clipsight_input(clipsight_session session, size_t index, clipsight_port* port) {
  return guarded([&] {
    const char* op = "clipsight_input";
    describe(op, handles().get(op, session)->manifest().inputs, index, port);
  });
}

int clipsight_output(clipsight_session session, size_t index, clipsight_port* port) {
  return guarded([&] {
    const char* op = "clipsight_output";
    describe(op, handles().get(op, session)->manifest().outputs, index, port);
  });
}

int clipsight_map_region(clipsight_session session, int64_t height, int64_t width, double region[4]) {
  return guarded([&] {
    const char* op = "clipsight_map_region";
    require(op, "region", region);
    const auto [top, left, rows, columns] = handles().get(op, session)->manifest().map_region(height, width);
    for (const double value : {top, left, rows, columns}) *region++ = value;
  });
}

int clipsight_output_shapes(clipsight_session session, const clipsight_tensor* inputs, size_t input_count,
                            clipsight_tensor* outputs, size_t output_count) {
  return guarded([&] {
    const char* op = "clipsight_output_shapes";
    const auto opened = handles().get(op, session);
    const Views in(op, "inputs", inputs, input_count);
    require(op, "outputs", outputs);
    const std::vector<Shape> shapes = opened->output_shapes({in.views.begin(), in.views.begin() + in.count});
    if (output_count != shapes.size()) {
      fail(op, "outputs must be " + std::to_string(shapes.size()), std::to_string(output_count));
    }
    for (size_t i = 0; i < output_count; ++i) {
      outputs[i].dtype = static_cast<int>(opened->manifest().outputs[i].dtype);
      outputs[i].rank = static_cast<int>(shapes[i].size());
      for (size_t axis = 0; axis < shapes[i].size(); ++axis) outputs[i].shape[axis] = shapes[i][axis];
    }
  });
}

int clipsight_run(clipsight_session session, const clipsight_tensor* inputs, size_t input_count,
                  const clipsight_tensor* outputs, size_t output_count) {
  return guarded([&] {
    const char* op = "clipsight_run";
    const auto opened = handles().get(op, session);
    const Views in(op, "inputs", inputs, input_count), out(op, "outputs", outputs, output_count);
    opened->run(in.views.data(), in.count, out.views.data(), out.count);
  });
}

int clipsight_probability(clipsight_session session, int* probability) {
  return guarded([&] {
    const char* op = "clipsight_probability";
    require(op, "probability", probability);
    *probability = static_cast<int>(handles().get(op, session)->probability());
  });
}

int clipsight_top_classes(clipsight_session session, const clipsight_tensor* logits, size_t sample,
                          clipsight_class* classes, size_t count) {
  return guarded([&] {
    const char* op = "clipsight_top_classes";
    const auto opened = handles().get(op, session);
    require(op, "logits", logits);
    require(op, "classes", classes);
    const auto& labels = opened->manifest().labels;
    const auto top = opened->top_classes(view_of(op, *logits), count, sample);
    if (top.size() < count) {
      fail(op, "count must be at most the number of classes", std::to_string(count));
    }
    for (size_t i = 0; i < count; ++i) {
      const char* label = labels.empty() ? nullptr : labels[static_cast<size_t>(top[i].index)].c_str();
      classes[i] = {top[i].index, top[i].probability, label};
    }
  });
}
