// The one place that knows torch's stable ABI: what the registrations include, and what the ABI does not offer yet.
// Everything here must exist in torch 2.11, the oldest release that loads the libraries (TORCH_TARGET_VERSION).
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <string>

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // its name before torch 2.12
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace clipsight {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

/// A text argument. Torch's own conversion to std::string, 2.13's still, returns a copy of one that nobody deletes.
struct Text : std::string {
  using std::string::string;
};

/// "float32" where ScalarType prints "Float": the name that a Python user knows. Remove when the ABI has one.
inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Bool: return "bool";
    default: return torch::headeronly::toString(type);
  }
}

/// "cpu", "cuda:0". Remove when torch::stable::Device has a str() (c10::Device has).
inline std::string name_of(const torch::stable::Device& device) {
  if (device.is_cpu()) return "cpu";
  return (device.is_cuda() ? "cuda:" : "device:") + std::to_string(device.index());
}

}  // namespace clipsight

template <>
struct torch::stable::detail::ToImpl<clipsight::Text> {
  static clipsight::Text call(StableIValue value, uint64_t, bool) {
    const auto handle = torch::stable::detail::to<StringHandle>(value);
    size_t length = 0;
    const char* data = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    clipsight::Text text(data, length);
    STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};
