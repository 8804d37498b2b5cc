// The ops as torch sees them, for any device: check, allocate, forward.
//
// A Backend supplies the kernels. It is made from the first tensor of a call (device guard, stream) and has one method
// per op that takes that op's Args struct, and scratch<T>(count): memory on the device that lives as long as it does.
// register.cpp and register_cuda.cpp each name one and call register_ops.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "ops/back_step.h"
#include "ops/channel_reduce.h"
#include "ops/checks.h"
#include "ops/saliency_tube.h"
#include "ops/selective_relevance.h"
#include "ops/sobel_temporal.h"
#include "ops/spline_upsample.h"
#include "torch/stable_compat.h"

namespace clipsight {

inline Dims dims(IntHeaderOnlyArrayRef ref) { return {ref.data(), ref.size()}; }

inline DType float_dtype(const char* op, const char* argument, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::float32;
    case ScalarType::Half: return DType::float16;
    case ScalarType::BFloat16: return DType::bfloat16;
    default: fail(op, argument, "must be float32, float16 or bfloat16", name_of(tensor.scalar_type()));
  }
}

inline ScalarType scalar_type(DType dtype) {
  return dtype == DType::uint8 ? ScalarType::Byte : dtype == DType::float16 ? ScalarType::Half : ScalarType::Float;
}

inline void check_device(const char* op, const char* argument, const Tensor& tensor, const Tensor& like) {
  if (tensor.device() == like.device()) return;
  fail(op, argument, "must be on the device of the first argument, " + name_of(like.device()), name_of(tensor.device()));
}

inline bool is_aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % tensor.element_size() == 0;
}

/// A view of NumPy's memory may start between two elements: it is copied.
inline Tensor aligned(const Tensor& tensor) { return is_aligned(tensor) ? tensor : torch::stable::clone(tensor); }

inline Tensor float32_contiguous(const Tensor& tensor) {
  const bool is_float = tensor.scalar_type() == ScalarType::Float;
  if (is_float && tensor.is_contiguous()) return aligned(tensor);  // the usual case: no way through the dispatcher
  return torch::stable::contiguous(is_float ? tensor : torch::stable::to(tensor, ScalarType::Float));
}

inline Tensor empty_like_with(const Tensor& tensor, const std::vector<int64_t>& shape, ScalarType type) {
  return torch::stable::new_empty(tensor, shape, type);
}

// ---- channel_reduce --------------------------------------------------------------------------------------------------

/// features are read where they lie: contiguous, channels_last_3d, or a permuted view of [N, t, h, w, C]; only other
/// layouts are copied.
struct Reduction {
  Reduction(const char* op, const Tensor& features, const Tensor& weight, std::optional<double> threshold)
      : shape(check_reduce(op, dims(features.sizes()), dims(weight.sizes()))),
        dtype(float_dtype(op, "features", features)) {
    float_dtype(op, "weight", weight);
    check_device(op, "weight", weight, features);
    tau = check_threshold(op, threshold);
    source = aligned(features);
    strides = feature_strides(dims(source.sizes()), dims(source.strides()));
    if (!strides.direct) source = torch::stable::contiguous(source);
    rows = float32_contiguous(weight);
  }

  int64_t cam_voxels() const { return shape.batch * shape.maps * shape.grid.voxels(); }

  template <class Backend>
  void run(const Backend& backend, float* cam) const {
    if (cam_voxels() == 0) return;
    backend.channel_reduce({source.const_data_ptr(), dtype, shape.batch, shape.channels, shape.grid.voxels(), strides.n,
                            strides.c, strides.s, rows.const_data_ptr<float>(), shape.weight_stride_n, shape.maps, tau,
                            cam});
  }

  ReduceShape shape;
  DType dtype;
  float tau;
  FeatureStrides strides;
  Tensor source, rows;
};

template <class Backend>
Tensor channel_reduce(const Tensor& features, const Tensor& weight, std::optional<double> threshold) {
  const Backend backend(features);
  const Reduction reduction("channel_reduce", features, weight, threshold);
  const ReduceShape& shape = reduction.shape;
  Tensor cam = empty_like_with(features, {shape.batch, shape.maps, shape.grid.t, shape.grid.h, shape.grid.w},
                               ScalarType::Float);
  reduction.run(backend, cam.mutable_data_ptr<float>());
  return cam;
}

// ---- volumes ---------------------------------------------------------------------------------------------------------

/// A volume argument [..., T, H, W]: computed in float32, results go back to its own dtype.
struct Volume {
  Volume(const char* op, const Tensor& volume)
      : dtype(float_dtype(op, "volume", volume)),
        shape(check_volume(op, dims(volume.sizes()))),
        type(volume.scalar_type()),
        lead(volume.sizes().begin(), volume.sizes().end() - 3),
        data(float32_contiguous(volume)) {}

  Tensor empty(const Shape3& size) const {
    std::vector<int64_t> full = lead;
    full.insert(full.end(), {size.t, size.h, size.w});
    return empty_like_with(data, full, ScalarType::Float);
  }
  Tensor result(const Tensor& tensor) const {
    return type == ScalarType::Float ? tensor : torch::stable::to(tensor, type);
  }

  DType dtype;
  VolumeShape shape;
  ScalarType type;
  std::vector<int64_t> lead;
  Tensor data;
};

template <class Backend>
Tensor spline_upsample(const Tensor& volume, IntHeaderOnlyArrayRef size, int64_t order) {
  const char* op = "spline_upsample";
  const Backend backend(volume);
  const Volume in(op, volume);
  const Shape3 out = check_size(op, dims(size));
  const int degree = check_order(op, order);
  Tensor output = in.empty(out);
  if (output.numel() != 0) {
    backend.spline_upsample({in.data.const_data_ptr<float>(), in.shape.volumes, in.shape.size, out, degree,
                             output.mutable_data_ptr<float>()});
  }
  return in.result(output);
}

template <class Backend>
Tensor sobel_temporal(const Tensor& volume, const Text& padding) {
  const char* op = "sobel_temporal";
  const Backend backend(volume);
  const Volume in(op, volume);
  const Padding border = check_padding(op, padding);
  Tensor output = in.empty(in.shape.size);
  if (output.numel() != 0) {
    backend.sobel_temporal({in.data.const_data_ptr<float>(), in.shape.volumes, in.shape.size, border,
                            output.mutable_data_ptr<float>()});
  }
  return in.result(output);
}

/// n_sigma as data: float32 values on the device of `like`, for maps with these leading axes. Must outlive the call.
struct NSigmaOf {
  NSigmaOf(const char* op, const std::optional<Tensor>& given, const Tensor& like, Dims lead, SelectiveRule& rule) {
    if (!given) return;
    float_dtype(op, "n_sigma_of", *given);
    check_device(op, "n_sigma_of", *given, like);
    rule.volumes_per_value = check_n_sigma_of(op, dims(given->sizes()), lead);
    values = float32_contiguous(*given);
    rule.n_sigma_of = values.const_data_ptr<float>();
  }
  Tensor values;
};

template <class Backend>
std::tuple<Tensor, Tensor> selective_relevance(const Tensor& volume, double n_sigma, const Text& padding,
                                               const Text& sign, const Text& sigma_of, bool prescale,
                                               const std::optional<Tensor>& n_sigma_of) {
  const char* op = "selective_relevance";
  const Backend backend(volume);
  const Volume in(op, volume);
  SelectiveRule rule = check_rule(op, n_sigma, padding, sign, sigma_of, in.dtype);
  const NSigmaOf per_map(op, n_sigma_of, volume, in.lead, rule);
  Tensor motion = in.empty(in.shape.size);
  Tensor share = empty_like_with(in.data, in.lead, ScalarType::Float);
  if (motion.numel() != 0) {
    backend.selective_relevance({in.data.const_data_ptr<float>(), in.shape.volumes, in.shape.size, rule, prescale,
                                 motion.mutable_data_ptr<float>(), share.mutable_data_ptr<float>()});
  }
  return {in.result(motion), share};
}

// ---- the fused ops ---------------------------------------------------------------------------------------------------

/// Everything the two tubes share but the output memory.
struct TubeOptions {
  const Tensor& features;
  const Tensor& weight;
  IntHeaderOnlyArrayRef size;
  std::optional<double> threshold;
  int64_t order;
  bool relu;
  const Text& normalize;
  const Text& dtype;
};

/// The rule of selective_tube; null in a saliency_tube.
struct RuleOptions {
  SelectiveRule rule;
  const std::optional<Tensor>& n_sigma_of;
};

/// Output memory: given by the caller (checked) or made here.
struct Outputs {
  const Tensor *tube, *motion, *share;  // null: make it
};

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> tube(const char* op, const TubeOptions& options, const RuleOptions* selective,
                                        const Outputs& given) {
  Backend backend(options.features);
  const Shape3 size = check_size(op, dims(options.size));
  const int order = check_order(op, options.order);
  const Normalize normalize = check_normalize(op, options.normalize);
  const DType dtype = check_output_dtype(op, options.dtype, normalize);
  const Reduction reduction(op, options.features, options.weight, options.threshold);
  const int64_t batch = reduction.shape.batch, maps = reduction.shape.maps;

  const auto output = [&](const char* name, const Tensor* out, const std::vector<int64_t>& expected, ScalarType type) {
    if (out == nullptr) return empty_like_with(options.features, expected, type);
    check_device(op, name, *out, options.features);
    check_out(op, name, expected, dims(out->sizes()), name_of(type), name_of(out->scalar_type()), out->is_contiguous());
    if (!is_aligned(*out)) fail(op, name, "must be aligned to its elements", "one that starts between two");
    return *out;
  };
  const std::vector<int64_t> full{batch, maps, size.t, size.h, size.w};
  Tensor tube = output(selective == nullptr ? "out" : "tube", given.tube, full, scalar_type(dtype));
  float* cam = backend.template scratch<float>(reduction.cam_voxels());
  reduction.run(backend, cam);
  const SaliencyTubeArgs args{cam, batch * maps, reduction.shape.grid, size, order, options.relu, normalize, dtype,
                              tube.mutable_data_ptr()};
  if (selective == nullptr) {
    if (tube.numel() != 0) backend.saliency_tube(args);
    return {tube, Tensor(), Tensor()};
  }
  Tensor motion = output("motion", given.motion, full, scalar_type(dtype));
  Tensor share = output("motion_share", given.share, {batch, maps}, ScalarType::Float);
  SelectiveRule rule = selective->rule;
  const NSigmaOf per_map("selective_tube", selective->n_sigma_of, options.features, {full.data(), 2}, rule);
  if (tube.numel() != 0) {
    backend.selective_tube({args, rule, motion.mutable_data_ptr(), share.mutable_data_ptr<float>()});
  }
  return {tube, motion, share};
}

template <class Backend>
Tensor saliency_tube(const Tensor& features, const Tensor& weight, IntHeaderOnlyArrayRef size,
                     std::optional<double> threshold, int64_t order, bool relu, const Text& normalize,
                     const Text& dtype) {
  const TubeOptions options{features, weight, size, threshold, order, relu, normalize, dtype};
  return std::get<0>(tube<Backend>("saliency_tube", options, nullptr, {}));
}

template <class Backend>
void saliency_tube_out(const Tensor& features, const Tensor& weight, IntHeaderOnlyArrayRef size,
                       std::optional<double> threshold, int64_t order, bool relu, const Text& normalize,
                       const Text& dtype, const Tensor& out) {
  const TubeOptions options{features, weight, size, threshold, order, relu, normalize, dtype};
  tube<Backend>("saliency_tube", options, nullptr, {&out, nullptr, nullptr});
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> selective_tube(const Tensor& features, const Tensor& weight,
                                                  IntHeaderOnlyArrayRef size, std::optional<double> threshold,
                                                  int64_t order, bool relu, const Text& normalize,
                                                  const Text& dtype, double n_sigma, const Text& padding,
                                                  const Text& sign, const Text& sigma_of,
                                                  const std::optional<Tensor>& n_sigma_of) {
  const TubeOptions options{features, weight, size, threshold, order, relu, normalize, dtype};
  const RuleOptions rule{check_rule("selective_tube", n_sigma, padding, sign, sigma_of), n_sigma_of};
  return tube<Backend>("selective_tube", options, &rule, {});
}

template <class Backend>
void selective_tube_out(const Tensor& features, const Tensor& weight, IntHeaderOnlyArrayRef size,
                        std::optional<double> threshold, int64_t order, bool relu, const Text& normalize,
                        const Text& dtype, double n_sigma, const Text& padding, const Text& sign,
                        const Text& sigma_of, const std::optional<Tensor>& n_sigma_of, const Tensor& tube_out,
                        const Tensor& motion, const Tensor& motion_share) {
  const TubeOptions options{features, weight, size, threshold, order, relu, normalize, dtype};
  const RuleOptions rule{check_rule("selective_tube", n_sigma, padding, sign, sigma_of), n_sigma_of};
  tube<Backend>("selective_tube", options, &rule, {&tube_out, &motion, &motion_share});
}

// ---- back_step -------------------------------------------------------------------------------------------------------

template <class Backend>
std::tuple<Tensor, Tensor> back_step(const Tensor& pooled, const Tensor& kernel, const Tensor& selected, double theta,
                                     int64_t groups) {
  const char* op = "back_step";
  const Backend backend(pooled);
  const BackStepShape shape =
      check_back_step(op, dims(pooled.sizes()), dims(kernel.sizes()), dims(selected.sizes()), groups);
  const float checked_theta = check_theta(op, theta);
  float_dtype(op, "pooled", pooled);
  const DType dtype = float_dtype(op, "kernel", kernel);
  if (selected.scalar_type() != ScalarType::Bool) fail(op, "selected", "must be bool", name_of(selected.scalar_type()));
  check_device(op, "kernel", kernel, pooled);
  check_device(op, "selected", selected, pooled);
  const Tensor activations = float32_contiguous(pooled), rows = aligned(torch::stable::contiguous(kernel)),
               wanted = torch::stable::contiguous(selected);
  Tensor edges = empty_like_with(pooled, {shape.batch, shape.maps, shape.out_channels, shape.width}, ScalarType::Bool);
  Tensor multiplicity =
      empty_like_with(pooled, {shape.batch, shape.maps, shape.groups * shape.width}, ScalarType::Float);
  if (edges.numel() != 0) {
    backend.back_step({activations.const_data_ptr<float>(), rows.const_data_ptr(), dtype,
                       static_cast<const uint8_t*>(wanted.const_data_ptr()), shape.batch, shape.maps, shape.groups,
                       shape.out_channels, shape.width, checked_theta, static_cast<uint8_t*>(edges.mutable_data_ptr()),
                       multiplicity.mutable_data_ptr<float>()});
  }
  return {edges, multiplicity};
}

template <class Backend>
void register_ops(torch::stable::detail::StableLibrary& m) {
  m.impl("channel_reduce", TORCH_BOX(&channel_reduce<Backend>));
  m.impl("back_step", TORCH_BOX(&back_step<Backend>));
  m.impl("spline_upsample", TORCH_BOX(&spline_upsample<Backend>));
  m.impl("sobel_temporal", TORCH_BOX(&sobel_temporal<Backend>));
  m.impl("selective_relevance", TORCH_BOX(&selective_relevance<Backend>));
  m.impl("saliency_tube", TORCH_BOX(&saliency_tube<Backend>));
  m.impl("saliency_tube.out", TORCH_BOX(&saliency_tube_out<Backend>));
  m.impl("selective_tube", TORCH_BOX(&selective_tube<Backend>));
  m.impl("selective_tube.out", TORCH_BOX(&selective_tube_out<Backend>));
}

}  // namespace clipsight
