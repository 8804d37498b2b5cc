#include "ops/checks.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace clipsight {

std::string to_string(Dims dims) {
  std::string text = "[";
  for (size_t i = 0; i < dims.rank; ++i) text += (i ? ", " : "") + std::to_string(dims[i]);
  return text + "]";
}

const char* to_string(DType dtype) {
  switch (dtype) {
    case DType::float32: return "float32";
    case DType::float16: return "float16";
    case DType::bfloat16: return "bfloat16";
    default: return "uint8";
  }
}

void fail(const std::string& op, const std::string& argument, const std::string& rule, const std::string& got) {
  throw std::invalid_argument(op + ": " + argument + " " + rule + ", got " + got);
}

namespace {

bool product_fits(Dims dims) {
  int64_t product = 1;
  for (const int64_t n : dims) {
    if (n != 0 && product > std::numeric_limits<int64_t>::max() / 8 / n) return false;
    product *= n;
  }
  return true;
}

std::string quoted(const std::string& text) { return "\"" + text + "\""; }

}  // namespace

ReduceShape check_reduce(const char* op, Dims features, Dims weight) {
  if (features.rank != 5) fail(op, "features", "must have shape [N, C, t, h, w]", to_string(features));
  for (size_t axis = 1; axis < 5; ++axis) {
    if (features[axis] < 1) fail(op, "features", "must have no empty axis but the batch", to_string(features));
  }
  const int64_t n = features[0], c = features[1];
  const bool shared = weight.rank == 2 && weight[1] == c;
  const bool own = weight.rank == 3 && weight[0] == n && weight[2] == c;
  if (!shared && !own) {
    const std::string rule = "must have shape [M, C] = [M, " + std::to_string(c) + "] or [N, M, C] = [" +
                             std::to_string(n) + ", M, " + std::to_string(c) + "]";
    fail(op, "weight", rule, to_string(weight));
  }
  const int64_t maps = weight[shared ? 0 : 1];
  return {n, c, maps, {features[2], features[3], features[4]}, shared ? 0 : maps * c};
}

void check_features_dtype(const char* op, DType dtype) {
  if (dtype == DType::uint8) fail(op, "features", "must be float32, float16 or bfloat16", to_string(dtype));
}

FeatureStrides feature_strides(Dims features, Dims strides) {
  const int64_t c = features[1], s = features[2] * features[3] * features[4];
  // Strides of axes of length 1 say nothing, so only the others are compared.
  int64_t expected = 0, step = 0;
  bool spatial = true;
  for (int axis = 4; axis >= 2; --axis) {
    if (features[axis] == 1) continue;
    if (step == 0) step = expected = strides[axis];
    spatial = spatial && strides[axis] == expected;
    expected = strides[axis] * features[axis];
  }
  if (step == 0) step = 1;  // a single position
  const int64_t stride_c = c == 1 ? 1 : strides[1], stride_n = features[0] <= 1 ? c * s : strides[0];
  const bool direct = spatial && step > 0 && stride_c > 0 && stride_n >= 0 && (step == 1 || stride_c == 1);
  if (!direct) return {c * s, s, 1, false};
  return {stride_n, stride_c, step, true};
}

float check_threshold(const char* op, std::optional<double> threshold) {
  if (!threshold) return -std::numeric_limits<float>::infinity();
  if (std::isnan(*threshold)) fail(op, "threshold", "must be a number or None", "NaN");
  return static_cast<float>(*threshold);
}

VolumeShape check_volume(const char* op, Dims volume) {
  if (volume.rank < 3) fail(op, "volume", "must have shape [..., T, H, W]", to_string(volume));
  const size_t lead = volume.rank - 3;
  for (size_t axis = lead; axis < volume.rank; ++axis) {
    if (volume[axis] < 1) fail(op, "volume", "must have T, H, W >= 1", to_string(volume));
  }
  int64_t volumes = 1;
  for (size_t axis = 0; axis < lead; ++axis) volumes *= volume[axis];
  return {volumes, {volume[lead], volume[lead + 1], volume[lead + 2]}};
}

Shape3 check_size(const char* op, Dims size) {
  if (size.rank != 3 || size[0] < 1 || size[1] < 1 || size[2] < 1) {
    fail(op, "size", "must be three lengths (T, H, W) >= 1", to_string(size));
  }
  if (!product_fits(size)) fail(op, "size", "must be a volume that 64 bits can address", to_string(size));
  return {size[0], size[1], size[2]};
}

int check_order(const char* op, int64_t order) {
  if (order != 1 && order != 3) fail(op, "order", "must be 1 or 3", std::to_string(order));
  return static_cast<int>(order);
}

Padding check_padding(const char* op, const std::string& padding) {
  if (padding == "replicate") return Padding::replicate;
  if (padding == "zeros") return Padding::zeros;
  fail(op, "padding", "must be \"replicate\" or \"zeros\"", quoted(padding));
}

Normalize check_normalize(const char* op, const std::string& normalize) {
  if (normalize == "clip") return Normalize::clip;
  if (normalize == "frame") return Normalize::frame;
  if (normalize == "none") return Normalize::none;
  fail(op, "normalize", "must be \"clip\", \"frame\" or \"none\"", quoted(normalize));
}

DType check_output_dtype(const char* op, const std::string& dtype, Normalize normalize) {
  if (dtype == "float32") return DType::float32;
  if (dtype == "float16") return DType::float16;
  if (dtype != "uint8") fail(op, "dtype", "must be \"float32\", \"float16\" or \"uint8\"", quoted(dtype));
  if (normalize == Normalize::none) {
    fail(op, "dtype", "\"uint8\" needs normalize \"clip\" or \"frame\"", "normalize \"none\"");
  }
  return DType::uint8;
}

SelectiveRule check_rule(const char* op, double n_sigma, const std::string& padding, const std::string& sign,
                         const std::string& sigma_of, DType storage) {
  if (!(n_sigma >= 0) || std::isinf(n_sigma)) {
    fail(op, "n_sigma", "must be finite and not negative", std::to_string(n_sigma));
  }
  SelectiveRule rule{};
  rule.n_sigma = static_cast<float>(n_sigma);
  rule.padding = check_padding(op, padding);
  if (sign == "abs") rule.sign = Sign::absolute;
  else if (sign == "rising") rule.sign = Sign::rising;
  else if (sign == "falling") rule.sign = Sign::falling;
  else fail(op, "sign", "must be \"abs\", \"rising\" or \"falling\"", quoted(sign));
  if (sigma_of == "signed") rule.sigma_of = SigmaOf::signed_;
  else if (sigma_of == "abs") rule.sigma_of = SigmaOf::absolute;
  else fail(op, "sigma_of", "must be \"signed\" or \"abs\"", quoted(sigma_of));
  rule.noise_floor = noise_floor_of(storage);
  return rule;
}

int64_t check_n_sigma_of(const char* op, Dims values, Dims lead) {
  const bool leading = values.rank <= lead.rank && std::equal(values.begin(), values.end(), lead.begin());
  const bool one = values.rank == 1 && values[0] == 1;
  if (!leading && !one) {
    fail(op, "n_sigma_of", "must have shape [1] or that of the first axes of the maps, " + to_string(lead),
         to_string(values));
  }
  int64_t shared = 1;
  for (size_t axis = leading ? values.rank : 0; axis < lead.rank; ++axis) shared *= lead[axis];
  return std::max<int64_t>(shared, 1);
}

BackStepShape check_back_step(const char* op, Dims pooled, Dims kernel, Dims selected, int64_t groups) {
  if (pooled.rank != 2 || pooled[1] < 1) {
    fail(op, "pooled", "must have shape [N, C_in] with C_in >= 1", to_string(pooled));
  }
  if (kernel.rank != 2 || kernel[0] < 1) {
    fail(op, "kernel", "must have shape [C_out, C_in / groups] with C_out >= 1", to_string(kernel));
  }
  const int64_t n = pooled[0], in = pooled[1], out = kernel[0];
  if (groups < 1 || in % groups != 0 || out % groups != 0) {
    fail(op, "groups", "must divide C_in = " + std::to_string(in) + " and C_out = " + std::to_string(out),
         std::to_string(groups));
  }
  const int64_t width = in / groups;
  if (kernel[1] != width) {
    fail(op, "kernel", "must have shape [C_out, C_in / groups] = [C_out, " + std::to_string(width) + "]",
         to_string(kernel));
  }
  if (selected.rank != 3 || selected[0] != n || selected[2] != out) {
    fail(op, "selected", "must have shape [N, M, C_out] = [" + std::to_string(n) + ", M, " + std::to_string(out) + "]",
         to_string(selected));
  }
  return {n, selected[1], groups, out, width};
}

float check_theta(const char* op, double theta) {
  if (!(theta >= 0 && theta <= 1)) fail(op, "theta", "must be 0 to 1", std::to_string(theta));
  return static_cast<float>(theta);
}

void check_out(const char* op, const char* name, Dims expected, Dims got, const char* expected_dtype,
               const char* got_dtype, bool contiguous) {
  if (!std::equal(expected.begin(), expected.end(), got.begin(), got.end())) {
    fail(op, name, "must have shape " + to_string(expected), to_string(got));
  }
  if (std::strcmp(expected_dtype, got_dtype) != 0) fail(op, name, std::string("must be ") + expected_dtype, got_dtype);
  if (!contiguous) fail(op, name, "must be contiguous", "another layout");
}

}  // namespace clipsight
