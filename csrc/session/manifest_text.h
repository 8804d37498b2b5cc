// Finds the manifest's JSON in an exported file without a library for its format.
#pragma once

#include <cstdint>
#include <string>

namespace clipsight {

/// Reads from a TorchScript archive or .pt2 package (zip) or an ONNX model (protobuf); the content decides which.
/// Throws Error where the file is missing, damaged, or carries no manifest.
std::string read_manifest_text(const std::string& path);

/// The check sum of zip archives.
uint32_t crc32(const std::string& bytes);

}  // namespace clipsight
