// Manifest::read: from the JSON that clipsight.export wrote to plain structures.
#include <clipsight/session.h>

#include <algorithm>
#include <cmath>
#include <regex>
#include <set>
#include <stdexcept>
#include <string_view>

#include "json.h"
#include "manifest_schema.h"
#include "manifest_text.h"
#include "target.h"

namespace clipsight {

namespace {

constexpr int64_t kFormatVersion = 2;
constexpr int64_t kMostElements = int64_t{1} << 40;  // of a tensor

DType dtype_of(const std::string& name) {
  int i = 0;
  while (name != name_of(static_cast<DType>(i))) ++i;  // the schema knows the same names
  return static_cast<DType>(i);
}

std::string text_or(const Json& object, const char* name, const char* otherwise) {
  const Json* value = object.find(name);
  return value ? value->string() : otherwise;
}

std::vector<Dim> read_shape(const Json& json) {
  std::vector<Dim> shape;
  for (const Json& dim : json.items()) {
    shape.push_back(dim.kind() == Json::Kind::string ? Dim{-1, dim.string()} : Dim{dim.integer(), ""});
  }
  return shape;
}

Port read_output(const Json& json) {
  Port port;
  port.name = json.at("name").string();
  port.dtype = dtype_of(json.at("dtype").string());
  port.shape = read_shape(json.at("shape"));
  if (const Json* full = json.find("full_shape"); full && !full->is_null()) port.full_shape = read_shape(*full);
  port.meaning = json.at("meaning").string();
  return port;
}

/// The video: an axis in which the sizes differ has a letter, and so have the height and width of frames.
Port read_video(const Json& input, const std::vector<std::array<int64_t, 3>>& sizes) {
  Port port;
  port.name = text_or(input, "name", "clip");
  port.dtype = dtype_of(input.at("dtype").string());
  port.layout = text_or(input, "layout", "NCTHW");
  port.meaning = port.name == "frames" ? "RGB bytes" : "preprocessed video";
  const Json* channels = input.find("channels");
  for (const char letter : port.layout) {
    const size_t axis = std::string_view("THW").find(letter);
    if (letter == 'C') {
      port.shape.push_back({channels ? channels->integer() : 3, ""});
    } else if (axis > 2) {
      port.shape.push_back({-1, "N"});
    } else {
      const auto same = [&](const auto& size) { return size[axis] == sizes[0][axis]; };
      const bool fixed = std::all_of(sizes.begin(), sizes.end(), same) && !(port.name == "frames" && axis > 0);
      port.shape.push_back(fixed ? Dim{sizes[0][axis], ""} : Dim{-1, std::string(1, letter)});
    }
  }
  return port;
}

Port read_option(const Json& json) {
  Port port;
  port.name = json.at("name").string();
  port.dtype = dtype_of(json.at("dtype").string());
  port.shape = {{-1, "N"}};
  port.meaning = json.at("meaning").string();
  const Json& initial = json.at("default");
  port.initial = initial.kind() == Json::Kind::boolean ? initial.boolean() : initial.number();
  if ((port.name == "explain") != (port.dtype == DType::bool_) ||
      (port.name == "explain") != (initial.kind() == Json::Kind::boolean)) {
    throw std::invalid_argument("the manifest's " + port.name + " must have its type");
  }
  return port;
}

Preprocessing read_preprocessing(const Json& json) {
  Preprocessing p;
  p.frames = json.at("frames").integer();
  p.stride = json.at("stride").integer();
  p.scale = json.at("scale").number();
  p.bgr = json.at("channel_order").string() == "BGR";
  const Json& resize = json.at("resize");
  if (resize.kind() == Json::Kind::number) p.resize = {resize.integer()};
  if (resize.kind() == Json::Kind::array) p.resize = {resize.items()[0].integer(), resize.items()[1].integer()};
  for (size_t i = 0; i < 2; ++i) p.crop[i] = json.at("crop").items()[i].integer();
  const auto& means = json.at("mean").items();
  const auto& deviations = json.at("std").items();
  if (means.size() != deviations.size() || means.size() == 2) {
    throw std::invalid_argument("Preprocessing: mean and std must have 3 values each, or 1 for gray clips");
  }
  for (size_t i = 0; i < 3; ++i) {  // of gray, too: the luma of three that are normalised alike is that of one
    p.mean[i] = means[i % means.size()].number();
    p.std[i] = deviations[i % deviations.size()].number();
    if (p.std[i] == 0) throw std::invalid_argument("Preprocessing: std must not be zero");
  }
  return p;
}

/// First of all: a newer format may break any other rule.
void check_version(const Json& json) {
  const Json* version = json.kind() == Json::Kind::object ? json.find("format_version") : nullptr;
  if (!version || !version->is_integer() || version->number() <= kFormatVersion) return;
  const Json* by = json.find("clipsight_version");
  throw Error("open: the manifest's format_version must be at most " + std::to_string(kFormatVersion) + ", got " +
              std::to_string(static_cast<int64_t>(std::min(version->number(), 1e15))) + " (written by clipsight " +
              (by && by->kind() == Json::Kind::string ? by->string() : "?") + "); upgrade clipsight to read this file");
}

void need(bool holds, const std::string& rule) {
  if (!holds) throw std::invalid_argument("the manifest's " + rule);
}

/// "" or "1.2.3", with or without what a release candidate adds.
bool is_version(const std::string& text) {
  static const std::regex version("([0-9]{1,6}\\.[0-9]{1,6}\\.[0-9]{1,6}([.+a-z-][0-9a-z.+-]{0,40})?)?");
  return text.size() < 80 && std::regex_match(text, version);
}

void check_names(const char* what, const std::vector<Port>& ports) {
  std::set<std::string> names;
  for (const Port& port : ports) names.insert(port.name);
  need(names.size() == ports.size(), std::string(what) + " must have different names");
}

void check_elements(const std::vector<Dim>& shape) {
  int64_t product = 1;
  for (const Dim& dim : shape) {
    need(dim.length < 0 || product <= kMostElements / dim.length,
         "shapes must have at most " + std::to_string(kMostElements) + " elements");
    if (dim.length > 0) product *= dim.length;
  }
}

/// Throws where members do not fit each other: what a schema cannot say. python/clipsight/manifest.py is the same.
void check_consistent(const Manifest& m) {
  const Port& video = m.inputs[0];
  const bool frames = video.name == "frames";
  need(!frames || video.layout == "NTHWC", "input must be frames in the layout NTHWC, or a clip");
  need(!frames || video.dtype == DType::uint8, "frames must be uint8");
  need(!frames || m.preprocessing, "preprocessing must be there where the input is frames");
  need(is_version(m.plugin_minimum_version), "plugin.minimum_version must be a version, or empty");
  check_names("inputs", m.inputs);
  check_names("outputs", m.outputs);
  const Dim channels = video.shape[video.layout.find('C')];
  for (const auto& [t, h, w] : m.sizes) check_elements({channels, {t, ""}, {h, ""}, {w, ""}});
  for (const Port& port : m.outputs) {
    need(port.full_shape.empty() || port.full_shape.size() == port.shape.size(),
         "full_shape must have the axes of shape");
    check_elements(port.shape);
    check_elements(port.full_shape);
  }
}

Manifest read_manifest(const Json& json) {
  static const Json schema = Json::parse(kManifestSchema);
  check_version(json);
  check_schema(json, schema);
  Manifest m;
  m.format_version = json.at("format_version").integer();
  m.kind = json.at("kind").string();
  m.model = json.at("model").string();
  m.num_classes = json.at("num_classes").integer();
  m.clipsight_version = json.at("clipsight_version").string();
  for (const Json& size : json.at("input").at("sizes").items()) {
    m.sizes.push_back({size.items()[0].integer(), size.items()[1].integer(), size.items()[2].integer()});
  }
  m.inputs.push_back(read_video(json.at("input"), m.sizes));
  if (!json.at("classes_input").is_null()) {
    need(json.at("classes_input").at("num_classes").integer() == m.num_classes, "classes_input must have num_classes");
    const std::vector<Dim> shape{{-1, "N"}, {-1, "M"}};
    m.inputs.push_back({"classes", DType::int64, shape, {}, "", "indices of the explained classes", {}});
  }
  if (const Json* options = json.find("option_inputs")) {
    for (const Json& option : options->items()) m.inputs.push_back(read_option(option));
  }
  for (const Json& port : json.at("outputs").items()) m.outputs.push_back(read_output(port));
  if (const Json& labels = json.at("labels"); !labels.is_null()) {
    for (const Json& label : labels.items()) m.labels.push_back(label.string());
    need(m.labels.size() == static_cast<size_t>(m.num_classes), "labels must be one for each class");
  }
  if (const Json& p = json.at("preprocessing"); !p.is_null()) m.preprocessing = read_preprocessing(p);
  if (const Json* session = json.find("session")) {
    for (const std::string& key : session->names()) m.session.emplace_back(key, session->at(key.c_str()).string());
  }
  const Json& plugin = json.at("plugin");
  m.plugin_required = plugin.at("required").boolean();
  m.plugin_library = text_or(plugin, "library", "clipsight_torch");
  m.plugin_minimum_version = text_or(plugin, "minimum_version", "");
  Target::read(json);  // which checks it
  check_consistent(m);
  return m;
}

}  // namespace

Manifest Manifest::read(const std::string& path) {
  std::string text = read_manifest_text(path);
  try {
    Manifest manifest = read_manifest(Json::parse(text));
    manifest.json = std::move(text);
    return manifest;
  } catch (const std::invalid_argument& error) {
    throw Error("open: the manifest of '" + path + "' must be one that clipsight wrote: " + error.what());
  }
}

Region Manifest::map_region(int64_t height, int64_t width) const {
  constexpr int64_t most = 2147483647;  // of any length in a manifest, too: no product overflows
  if (height < 1 || width < 1 || height > most || width > most) {
    throw Error("map_region: height and width must lie in 1.." + std::to_string(most) + ", got " +
                std::to_string(height) + " and " + std::to_string(width));
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
