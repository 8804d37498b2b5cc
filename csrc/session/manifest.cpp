// Manifest::read: from the JSON that clipsight.export wrote to plain structures.
#include <clipsight/session.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "json.h"
#include "manifest_text.h"

namespace clipsight {

namespace {

constexpr int64_t kFormatVersion = 2;

DType dtype_of(const std::string& name) {
  for (int i = 0; i <= static_cast<int>(DType::bool_); ++i) {
    if (name == name_of(static_cast<DType>(i))) return static_cast<DType>(i);
  }
  throw std::invalid_argument("dtype must be one that clipsight knows, got '" + name + "'");
}

std::string text_or_empty(const Json& object, const char* name) {
  const Json* value = object.find(name);
  return value && !value->is_null() ? value->string() : std::string();
}

std::vector<Dim> read_shape(const Json& json) {
  std::vector<Dim> shape;
  for (const Json& dim : json.items()) {
    shape.push_back(dim.kind() == Json::Kind::string ? Dim{-1, dim.string()} : Dim{dim.integer(), ""});
  }
  if (shape.size() > Shape::max_rank) throw std::invalid_argument("a shape must have at most 8 axes");
  return shape;
}

Port read_port(const Json& json) {
  Port port;
  port.name = json.at("name").string();
  port.dtype = dtype_of(json.at("dtype").string());
  port.shape = read_shape(json.at("shape"));
  if (const Json* full = json.find("full_shape"); full && !full->is_null()) port.full_shape = read_shape(*full);
  port.layout = text_or_empty(json, "layout");
  port.meaning = text_or_empty(json, "meaning");
  return port;
}

/// Format 1 describes the clip and the classes in fields of their own.
std::vector<Port> read_first_format(const Json& json, const std::vector<std::array<int64_t, 3>>& sizes) {
  const Json& input = json.at("input");
  Port clip;
  clip.name = input.at("name").string();
  clip.dtype = dtype_of(input.at("dtype").string());
  clip.layout = "NCTHW";
  clip.shape = {{-1, "N"}, {input.at("channels").integer(), ""}};
  for (size_t axis = 0; axis < 3; ++axis) {
    const bool one = sizes.size() == 1;
    clip.shape.push_back({one ? sizes[0][axis] : -1, one ? "" : std::string(1, "THW"[axis])});
  }
  std::vector<Port> inputs{clip};
  if (!json.at("classes_input").is_null()) inputs.push_back(read_port(json.at("classes_input")));
  return inputs;
}

Preprocessing read_preprocessing(const Json& json) {
  Preprocessing p;
  p.frames = json.at("frames").integer();
  p.stride = json.at("stride").integer();
  p.scale = json.at("scale").number();
  p.bgr = json.at("channel_order").string() == "BGR";
  const Json& resize = json.at("resize");
  if (resize.kind() == Json::Kind::number) p.resize = {resize.integer()};
  if (resize.kind() == Json::Kind::array) p.resize = {resize.items().at(0).integer(), resize.items().at(1).integer()};
  for (size_t i = 0; i < 2; ++i) p.crop[i] = json.at("crop").items().at(i).integer();
  for (size_t i = 0; i < 3; ++i) {
    p.mean[i] = json.at("mean").items().at(i).number();
    p.std[i] = json.at("std").items().at(i).number();
  }
  return p;
}

void check_version(const Json& json) {
  const int64_t version = json.at("format_version").integer();
  if (version <= kFormatVersion) return;
  throw Error("open: the manifest's format_version must be at most " + std::to_string(kFormatVersion) + ", got " +
              std::to_string(version) + " (written by clipsight " + text_or_empty(json, "clipsight_version") +
              "); upgrade clipsight to read this file");
}

/// Throws where the file asks more of a machine than an export does: any library could be named here, and entries of a
/// session name files that ONNX Runtime would write or load.
void check_safe(const Manifest& m) {
  if (!m.plugin_library.empty() && m.plugin_library != "clipsight_torch" && m.plugin_library != "clipsight_onnxruntime") {
    throw Error("open: the manifest's plugin must be clipsight_torch or clipsight_onnxruntime, got '" +
                m.plugin_library + "'");
  }
  if (m.plugin_required && m.plugin_library.empty()) throw Error("open: the manifest's plugin must have a name, got ''");
  for (const auto& [key, value] : m.session) {
    if (key == "session.disable_prepacking" && value == "1") continue;
    throw Error("open: the manifest's session must have the entry session.disable_prepacking = 1 only, got '" + key +
                "' = '" + value + "'");
  }
}

Manifest read_manifest(const Json& json) {
  check_version(json);
  Manifest m;
  m.format_version = json.at("format_version").integer();
  m.kind = json.at("kind").string();
  m.model = json.at("model").string();
  m.num_classes = json.at("num_classes").integer();
  m.clipsight_version = json.at("clipsight_version").string();
  for (const Json& size : json.at("input").at("sizes").items()) {
    m.sizes.push_back({size.items().at(0).integer(), size.items().at(1).integer(), size.items().at(2).integer()});
  }
  if (m.sizes.empty()) throw std::invalid_argument("sizes must not be empty");
  if (const Json* inputs = json.find("inputs")) {
    for (const Json& port : inputs->items()) m.inputs.push_back(read_port(port));
    for (const Json& option : json.at("option_inputs").items()) {
      const Json& initial = option.at("default");
      const double value = initial.kind() == Json::Kind::boolean ? initial.boolean() : initial.number();
      for (Port& port : m.inputs) {
        if (port.name == option.at("name").string()) port.initial = value;
      }
    }
  } else {
    m.inputs = read_first_format(json, m.sizes);
  }
  for (const Json& port : json.at("outputs").items()) m.outputs.push_back(read_port(port));
  if (m.inputs.empty() || m.outputs.empty()) throw std::invalid_argument("inputs and outputs must not be empty");
  if (const Json& labels = json.at("labels"); !labels.is_null()) {
    for (const Json& label : labels.items()) m.labels.push_back(label.string());
  }
  if (const Json& p = json.at("preprocessing"); !p.is_null()) m.preprocessing = read_preprocessing(p);
  if (const Json* session = json.find("session")) {
    for (const std::string& key : session->names()) m.session.emplace_back(key, session->at(key.c_str()).string());
  }
  const Json& plugin = json.at("plugin");
  m.plugin_required = plugin.at("required").boolean();
  m.plugin_library = text_or_empty(plugin, "library");
  m.plugin_minimum_version = text_or_empty(plugin, "minimum_version");
  check_safe(m);
  return m;
}

}  // namespace

Manifest Manifest::read(const std::string& path) {
  std::string text = read_manifest_text(path);
  try {
    Manifest manifest = read_manifest(Json::parse(text));
    manifest.json = std::move(text);
    return manifest;
  } catch (const std::logic_error& error) {  // of the JSON reader, and std::out_of_range of a list that is too short
    throw Error("open: the manifest of '" + path + "' must be clipsight's JSON, got '" + text.substr(0, 60) +
                "': " + error.what());
  }
}

Region Manifest::map_region(int64_t height, int64_t width) const {
  if (height < 1 || width < 1) {
    throw Error("map_region: height and width must be at least 1, got " + std::to_string(height) + " and " +
                std::to_string(width));
  }
  const std::array<int64_t, 2> source{height, width};
  std::array<int64_t, 2> resized = source;
  std::array<double, 2> begin{}, length{};
  if (!preprocessing) return {0, 0, static_cast<double>(height), static_cast<double>(width)};
  const std::vector<int64_t>& resize = preprocessing->resize;
  const std::array<int64_t, 2>& crop = preprocessing->crop;
  for (size_t axis = 0; axis < 2; ++axis) {
    if (resize.size() == 1) resized[axis] = resize[0] * source[axis] / std::min(height, width);
    if (resize.size() == 2) resized[axis] = resize[axis];
    if (resized[axis] < crop[axis]) {
      throw Error("map_region: the crop must fit into the resized frame, got " + std::to_string(resized[axis]) +
                  " pixels for " + std::to_string(crop[axis]));
    }
    const double scale = static_cast<double>(source[axis]) / static_cast<double>(resized[axis]);
    begin[axis] = std::nearbyint(static_cast<double>(resized[axis] - crop[axis]) / 2) * scale;  // as Python rounds
    length[axis] = static_cast<double>(crop[axis]) * scale;
  }
  return {begin[0], begin[1], length[0], length[1]};
}

}  // namespace clipsight
