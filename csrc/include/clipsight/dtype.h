// Element types of tensors, under the names that manifests and Python use.
#pragma once

#include <cstddef>

namespace clipsight {

enum class DType { float32, float16, bfloat16, uint8, int64, bool_ };

inline const char* name_of(DType dtype) {
  constexpr const char* names[] = {"float32", "float16", "bfloat16", "uint8", "int64", "bool"};
  return names[static_cast<int>(dtype)];
}

/// Bytes of one element.
inline size_t size_of(DType dtype) {
  constexpr size_t sizes[] = {4, 2, 2, 1, 8, 1};
  return sizes[static_cast<int>(dtype)];
}

}  // namespace clipsight
