#pragma once

#include <memory>
#include <string>

#include "backend.h"

namespace clipsight {

/// Opens an ".onnx" file in the ONNX Runtime of Options::onnxruntime_library; throws Error.
std::unique_ptr<Backend> open_onnxruntime(const std::string& path, const Manifest& manifest, const Options& options);

}  // namespace clipsight
