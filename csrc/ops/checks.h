// Argument checks of every op, for every front end: plain shapes in, std::invalid_argument out.
// A message names op, argument, rule, expected and got:
//   channel_reduce: weight must have shape [M, C] = [*, 64] or [N, M, C] = [2, *, 64], got [2, 32]
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/types.h"
#include "ops/selective_relevance.h"

namespace clipsight {

/// A shape (or strides) that lives elsewhere.
struct Dims {
  const int64_t* data;
  size_t rank;
  Dims(const int64_t* data, size_t rank) : data(data), rank(rank) {}
  Dims(const std::vector<int64_t>& v) : data(v.data()), rank(v.size()) {}  // NOLINT: implicit on purpose
  int64_t operator[](size_t i) const { return data[i]; }
  const int64_t* begin() const { return data; }
  const int64_t* end() const { return data + rank; }
};

std::string to_string(Dims dims);  // "[2, 64]"
const char* to_string(DType dtype);

/// Throws std::invalid_argument("<op>: <argument> <rule>, got <got>").
[[noreturn]] void fail(const std::string& op, const std::string& argument, const std::string& rule,
                       const std::string& got);

/// Shapes of channel_reduce: features [N, C, t, h, w], weight [M, C] or [N, M, C].
struct ReduceShape {
  int64_t batch, channels, maps;
  Shape3 grid;
  int64_t weight_stride_n;  // 0 where the weight is shared by the batch
};
ReduceShape check_reduce(const char* op, Dims features, Dims weight);
void check_features_dtype(const char* op, DType dtype);  // float32, float16, bfloat16

/// Element strides of features as the kernel wants them. `direct` is false where a contiguous copy is needed first
/// (the strides are then those of the copy).
struct FeatureStrides {
  int64_t n, c, s;
  bool direct;
};
FeatureStrides feature_strides(Dims features, Dims strides);

/// -infinity where there is no threshold; NaN is an error.
float check_threshold(const char* op, std::optional<double> threshold);

/// [..., T, H, W] with T, H, W >= 1; `volumes` is the product of the leading axes (0 is fine: an empty result).
struct VolumeShape {
  int64_t volumes;
  Shape3 size;
};
VolumeShape check_volume(const char* op, Dims volume);

Shape3 check_size(const char* op, Dims size);           // three lengths >= 1
int check_order(const char* op, int64_t order);         // 1 or 3
Padding check_padding(const char* op, const std::string& padding);
Normalize check_normalize(const char* op, const std::string& normalize);
DType check_output_dtype(const char* op, const std::string& dtype, Normalize normalize);
SelectiveRule check_rule(const char* op, double n_sigma, const std::string& padding, const std::string& sign,
                         const std::string& sigma_of, DType storage = DType::float32);
/// Values of n_sigma that come as data: [1], or the first of the maps' leading axes (`lead`, say [N, M]: then [N] or
/// [N, M]). Returns how many maps share a value.
int64_t check_n_sigma_of(const char* op, Dims values, Dims lead);

/// Shapes of back_step: pooled [N, C_in], kernel [C_out, C_in / groups], selected [N, M, C_out].
struct BackStepShape {
  int64_t batch, maps, groups, out_channels, width;  // width: C_in / groups
};
BackStepShape check_back_step(const char* op, Dims pooled, Dims kernel, Dims selected, int64_t groups);
float check_theta(const char* op, double theta);  // 0 to 1

/// An out= argument: exact shape and dtype, contiguous. `got_dtype` is the front end's own name of the dtype.
void check_out(const char* op, const char* name, Dims expected, Dims got, const char* expected_dtype,
               const char* got_dtype, bool contiguous);

}  // namespace clipsight
