// Plain value types shared by every kernel and front end. No torch, no ONNX Runtime, no Python.
#pragma once

#include <clipsight/dtype.h>

#include <cstdint>

namespace clipsight {

/// Instruction sets a CPU kernel body is compiled for; `baseline` always exists.
enum class SimdLevel { baseline, avx2, avx512 };

/// Size of a volume in voxels: frames, rows, columns.
struct Shape3 {
  int64_t t, h, w;
  int64_t voxels() const { return t * h * w; }
};

enum class Normalize { none, clip, frame };     // min-max over the clip volume, or per frame
enum class Padding { replicate, zeros };        // border rule of the Sobel operator
enum class Sign { absolute, rising, falling };  // which side of the derivative counts
enum class SigmaOf { signed_, absolute };       // standard deviation of G or of |G|

}  // namespace clipsight
