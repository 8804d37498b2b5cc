// Element types of tensors, under the names that manifests and Python use.
#pragma once

#include <cstddef>

namespace clipsight {

enum class DType { float32, float16, bfloat16, uint8, int64, bool_, float64 };

constexpr bool is_known(DType dtype) { return dtype >= DType::float32 && dtype <= DType::float64; }

inline const char* name_of(DType dtype) {
  constexpr const char* names[] = {"float32", "float16", "bfloat16", "uint8", "int64", "bool", "float64"};
  return is_known(dtype) ? names[static_cast<int>(dtype)] : "an unknown type";
}

/// Bytes of one element.
inline size_t size_of(DType dtype) {
  constexpr size_t sizes[] = {4, 2, 2, 1, 8, 1, 8};
  return is_known(dtype) ? sizes[static_cast<int>(dtype)] : 0;
}

}  // namespace clipsight
