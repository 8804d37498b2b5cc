#include "checks.h"

#include <algorithm>
#include <cstdint>

namespace clipsight {

namespace {

[[noreturn]] void fail(const std::string& argument, const std::string& rule, const std::string& got) {
  throw Error("run: " + argument + " must " + rule + ", got " + got);
}

std::string to_string(const std::vector<Dim>& shape) {
  std::string text = "[";
  for (const Dim& dim : shape) {
    text += (text.size() > 1 ? ", " : "") + (dim.length < 0 ? dim.letter : std::to_string(dim.length));
  }
  return text + "]";
}

std::string to_string(const Device& device) {
  return device.kind == Device::cpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

std::string names_of(const std::vector<Port>& ports) {
  std::string text;
  for (const Port& port : ports) text += (text.empty() ? "" : ", ") + port.name;
  return text;
}

void check_count(const char* what, const std::vector<Port>& ports, const TensorView* views, size_t count) {
  if (count != ports.size()) {
    fail(what, "be " + std::to_string(ports.size()) + " (" + names_of(ports) + ")", std::to_string(count));
  }
  if (views == nullptr) fail(what, "not be null", "null");
}

void check_memory(const Port& port, const Device& device, const TensorView& view) {
  if (view.dtype != port.dtype) {
    fail(port.name, std::string("be ") + name_of(port.dtype), name_of(view.dtype));
  }
  if (view.device.kind != Device::cpu && view.device != device) {
    fail(port.name, "lie in the host's memory or on the session's device " + to_string(device), to_string(view.device));
  }
  if (view.data == nullptr && view.shape.elements() != 0) fail(port.name, "not be null", "a null pointer");
  const size_t size = size_of(port.dtype), past = reinterpret_cast<uintptr_t>(view.data) % size;
  if (past) fail(port.name, "be aligned to " + std::to_string(size) + " bytes", std::to_string(past) + " past it");
}

/// The first axes of the video that the file takes, in words.
std::string expected_video(const Manifest& manifest, const Port& port) {
  if (port.name == "frames") return to_string(port.shape);
  std::string text;
  for (const auto& size : manifest.sizes) {
    std::vector<Dim> shape = port.shape;
    for (size_t i = 0; i < 3; ++i) shape[port.layout.find("THW"[i])] = {size[i], ""};
    text += (text.empty() ? "" : " or ") + to_string(shape);
  }
  return text;
}

/// Letters take the length of the first input that has them. `first`: the video, whose T, H and W are bound later.
bool fits(const Port& port, const Shape& shape, bool first, Lengths& lengths) {
  if (shape.size() != port.shape.size()) return false;
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    const Dim& dim = port.shape[axis];
    const int64_t known = lengths.of(dim), length = shape[axis];
    if (length < 1 || (known >= 0 && known != length)) return false;
    if (known < 0 && dim.letter.size() == 1 && (!first || dim.letter == "N")) lengths.set(dim.letter[0], length);
  }
  return true;
}

/// Finds the clip size of the network that the video has. Bytes may have any height and width: their T decides, and
/// several sizes with one T leave H and W open.
bool bind_size(const Manifest& manifest, const Port& port, const Shape& shape, Lengths& lengths) {
  const bool bytes = port.name == "frames";
  size_t found = 0;
  for (const auto& size : manifest.sizes) {
    bool same = true;
    for (size_t i = 0; i < (bytes ? 1 : 3); ++i) same &= shape[port.layout.find("THW"[i])] == size[i];
    if (!same) continue;
    const bool open = ++found > 1;
    for (size_t axis = 0; axis < 3; ++axis) lengths.set("THW"[axis], open && axis ? -1 : size[axis]);
  }
  return found > 0;
}

void check_classes(const Manifest& manifest, const TensorView& view) {
  const auto* classes = static_cast<const int64_t*>(view.data);
  for (int64_t i = 0; i < view.shape.elements(); ++i) {
    if (classes[i] < 0 || classes[i] >= manifest.num_classes) {
      fail("classes", "lie in 0.." + std::to_string(manifest.num_classes - 1), std::to_string(classes[i]));
    }
  }
}

Maps wanted_maps(const TensorView& explain) {
  const auto* wanted = static_cast<const unsigned char*>(explain.data);
  const bool any = std::any_of(wanted, wanted + explain.shape[0], [](unsigned char w) { return w != 0; });
  return any ? Maps::wanted : Maps::unwanted;
}

/// Length of an axis of an output, or -1 where it is not known before the run.
int64_t length_of(const Port& port, bool map, size_t axis, const Lengths& lengths) {
  const size_t rank = port.shape.size();
  // Maps that nobody wants: [N, M, 0, ...] or [N, 0].
  if (map && lengths.maps == Maps::unwanted && axis + 1 >= std::min<size_t>(3, rank)) return 0;
  const bool full = lengths.maps == Maps::wanted && port.full_shape.size() == rank;
  return lengths.of((full ? port.full_shape : port.shape)[axis]);
}

}  // namespace

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (int64_t length : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(length);
  return text + "]";
}

Lengths check_inputs(const Manifest& manifest, const Device& device, const TensorView* inputs, size_t count) {
  check_count("inputs", manifest.inputs, inputs, count);
  Lengths lengths;
  for (size_t i = 0; i < count; ++i) {
    const Port& port = manifest.inputs[i];
    const TensorView& view = inputs[i];
    check_memory(port, device, view);
    if (view.shape.size() && view.shape[0] == 0) fail(port.name, "have at least one sample", to_string(view.shape));
    if (!fits(port, view.shape, i == 0, lengths) || (i == 0 && !bind_size(manifest, port, view.shape, lengths))) {
      const std::string expected = i == 0 ? expected_video(manifest, port) : to_string(port.shape);
      const std::string beside = i == 0 ? "" : " beside " + std::to_string(lengths.at('N')) + " samples";
      fail(port.name, "have shape " + expected, to_string(view.shape) + beside);
    }
    // Throws where the crop does not fit: compiled code would not check.
    if (port.name == "frames") manifest.map_region(view.shape[2], view.shape[3]);
    const bool at_hand = view.device.kind == Device::cpu;
    if (port.name == "classes" && at_hand) check_classes(manifest, view);
    if (port.name == "explain") lengths.maps = at_hand ? wanted_maps(view) : Maps::unknown;
  }
  return lengths;
}

void check_outputs(const Manifest& manifest, const Lengths& lengths, const Device& device, const TensorView* outputs,
                   size_t count) {
  check_count("outputs", manifest.outputs, outputs, count);
  for (size_t i = 0; i < count; ++i) {
    const Port& port = manifest.outputs[i];
    const TensorView& view = outputs[i];
    check_memory(port, device, view);
    bool good = view.shape.size() == port.shape.size();
    for (size_t axis = 0; good && axis < view.shape.size(); ++axis) {
      const int64_t known = length_of(port, i > 0, axis, lengths);
      good = view.shape[axis] >= 0 && (known < 0 || known == view.shape[axis]);
    }
    if (!good) fail(port.name, "have shape " + to_string(port.shape), to_string(view.shape));
  }
}

Shape output_shape(const Manifest& manifest, size_t index, const Lengths& lengths) {
  const Port& port = manifest.outputs[index];
  std::vector<int64_t> shape;
  for (size_t axis = 0; axis < port.shape.size(); ++axis) {
    const int64_t length = length_of(port, index > 0, axis, lengths);
    if (length < 0) {
      throw Error("output_shapes: the manifest must say the shape of '" + port.name + "', got " +
                  to_string(port.shape) + "; use the run that returns its outputs");
    }
    shape.push_back(length);
  }
  return shape;
}

}  // namespace clipsight
