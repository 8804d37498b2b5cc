// The ops as ONNX Runtime sees them, for any device: attributes, inputs, outputs, and the forwarding to a kernel.
//
// An op is a struct with its name, the slots of its inputs and outputs, a constructor that reads and checks the
// attributes, compute(backend, call) and infer(inference). A Backend is made per call; it has one method per op that
// takes that op's Args struct, to_float32 and to_float16 for data in half precision, and scratch<T>(count): memory on
// the device that lives as long as it does. cpu.cpp and cuda.cpp each name one; custom_op.h does the rest.
#pragma once

#include "onnxruntime/api.h"
#include "onnxruntime/inference.h"
#include "ops/back_step.h"
#include "ops/channel_reduce.h"
#include "ops/saliency_tube.h"
#include "ops/selective_relevance.h"
#include "ops/sobel_temporal.h"
#include "ops/spline_upsample.h"

namespace clipsight::ort {

/// The element type of an input or output: float32 or float16 by the variant of the op (`first` and `second` vary
/// alone), a fixed type, or what an attribute says.
struct Slot {
  enum Type { first, second, float32, int64, boolean, by_attribute } type;
  bool optional = false;
  bool on_host = false;  // on every device
};

// ---- shared pieces --------------------------------------------------------------------------------------------------

/// features [N, C, t, h, w] and weight [M, C] or [N, M, C].
struct Reduction {
  Reduction(const Call& call)
      : features(call.input(0, "features")), weight(call.input(1, "weight")),
        shape(check_reduce(call.op, features.shape, weight.shape)) {}

  int64_t volumes() const { return shape.batch * shape.maps; }
  Shape map_shape(const Shape3& size) const { return {{shape.batch, shape.maps, size.t, size.h, size.w}, 5}; }

  template <class Backend>
  void run(Backend& backend, float threshold, float* cam) const {
    const int64_t positions = shape.grid.voxels();
    if (volumes() == 0) return;
    backend.channel_reduce({features.data, features.dtype, shape.batch, shape.channels, positions,
                            shape.channels * positions, positions, 1, backend.to_float32(weight), shape.weight_stride_n,
                            shape.maps, threshold, cam});
  }

  Array features, weight;
  ReduceShape shape;
};

/// volume [..., T, H, W]: computed in float32, results go back to its own type.
struct Volume {
  Volume(const Call& call) : array(call.input(0, "volume")), shape(check_volume(call.op, array.shape)) {}

  /// Calls kernel(volume, result), both float32, for the result at the output `index`.
  template <class Backend, class Kernel>
  void run(Backend& backend, const Call& call, size_t index, const char* name, const Shape3& size,
           const Kernel& kernel) const {
    const Shape result = array.shape.with_size(size);
    const int64_t count = result.count();
    void* output = call.output(index, name, result, array.dtype);
    if (count == 0) return;
    const bool direct = output != nullptr && array.dtype == DType::float32;
    float* values = direct ? static_cast<float*>(output) : backend.template scratch<float>(count);
    kernel(backend.to_float32(array), values);
    if (output != nullptr && !direct) backend.to_float16(values, count, static_cast<uint16_t*>(output));
  }

  Array array;
  VolumeShape shape;
};

inline SelectiveRule read_rule(const Attributes& a) {
  return check_rule(a.op, a.number("n_sigma").value_or(2.0), a.text("padding", "replicate"), a.text("sign", "abs"),
                    a.text("sigma_of", "signed"));
}

/// Puts the optional input n_sigma_of into the rule.
inline void read_n_sigma_of(const Call& call, size_t index, Dims lead, SelectiveRule* rule) {
  if (!call.has(index)) return;
  const Array values = call.input(index, "n_sigma_of");
  rule->volumes_per_value = check_n_sigma_of(call.op, values.shape, lead);
  rule->n_sigma_of = static_cast<const float*>(values.data);
}

/// [N, M, size] of an op with features and weight, or [N, M]; nothing where an input has another rank.
inline std::optional<TypedShape> infer_maps(const Inference& inference, ONNXTensorElementDataType type,
                                            const std::vector<Dim>& size) {
  const auto features = inference.input(0), weight = inference.input(1);
  if (!features || !weight || features->dims.size() != 5 || weight->dims.size() < 2) return std::nullopt;
  TypedShape maps{type, {features->dims[0], weight->dims.end()[-2]}};
  maps.dims.insert(maps.dims.end(), size.begin(), size.end());
  return maps;
}

/// Attributes that the two tubes share.
struct TubeOptions {
  explicit TubeOptions(const Attributes& a)
      : size(check_size(a.op, a.integers("size").value_or(std::vector<int64_t>{}))),
        threshold(check_threshold(a.op, a.number("threshold"))), order(check_order(a.op, a.integer("order", 3))),
        relu(a.flag("relu")), normalize(check_normalize(a.op, a.text("normalize", "clip"))),
        dtype(check_output_dtype(a.op, a.text("dtype", "float32"), normalize)) {}

  /// Memory of a map: the output, or scratch where the graph does not use it.
  template <class Backend>
  void* map(Backend& backend, const Call& call, size_t index, const char* name, const Reduction& reduction) const {
    const Shape shape = reduction.map_shape(size);
    void* output = call.output(index, name, shape, dtype);
    return output != nullptr ? output : backend.template scratch<char>(shape.count() * size_of(dtype));
  }

  /// Everything of the kernel's arguments; computes the cam.
  template <class Backend>
  SaliencyTubeArgs args(Backend& backend, const Reduction& reduction, void* tube) const {
    const int64_t volumes = reduction.volumes();
    float* cam = backend.template scratch<float>(volumes * reduction.shape.grid.voxels());
    reduction.run(backend, threshold, cam);
    return {cam, volumes, reduction.shape.grid, size, order, relu, normalize, dtype, tube};
  }

  Shape3 size;
  float threshold;
  int order;
  bool relu;
  Normalize normalize;
  DType dtype;
};

// ---- the ops --------------------------------------------------------------------------------------------------------

struct ChannelReduce {
  static constexpr const char *name = "ChannelReduce", *op = "channel_reduce";
  static constexpr Slot inputs[] = {{Slot::first}, {Slot::second}};
  static constexpr Slot outputs[] = {{Slot::float32}};

  explicit ChannelReduce(const Attributes& a) : threshold(check_threshold(op, a.number("threshold"))) {}

  template <class Backend>
  void compute(Backend& backend, const Call& call) const {
    const Reduction reduction(call);
    void* cam = call.output(0, "cam", reduction.map_shape(reduction.shape.grid), DType::float32);
    if (cam != nullptr) reduction.run(backend, threshold, static_cast<float*>(cam));
  }

  static void infer(const Inference& inference) {
    const auto features = inference.input(0);
    if (!features || features->dims.size() != 5) return;
    const std::vector<Dim> grid(features->dims.begin() + 2, features->dims.end());
    if (const auto cam = infer_maps(inference, element_type(DType::float32), grid)) inference.set(0, *cam);
  }

  float threshold;
};

struct BackStep {
  static constexpr const char *name = "BackStep", *op = "back_step";
  static constexpr Slot inputs[] = {{Slot::first}, {Slot::second}, {Slot::boolean}};
  static constexpr Slot outputs[] = {{Slot::boolean, true}, {Slot::float32, true}};

  explicit BackStep(const Attributes& a) : groups(a.integer("groups", 1)) {
    const auto given = a.number("theta");
    if (!given) fail(op, "theta", "must be given as an attribute", "none");
    theta = check_theta(op, *given);
  }

  template <class Backend>
  void compute(Backend& backend, const Call& call) const {
    const Array pooled = call.input(0, "pooled"), kernel = call.input(1, "kernel");
    const Array selected = call.input(2, "selected");
    const BackStepShape shape = check_back_step(op, pooled.shape, kernel.shape, selected.shape, groups);
    const Shape all{{shape.batch, shape.maps, shape.out_channels, shape.width}, 4};
    const Shape channels{{shape.batch, shape.maps, shape.groups * shape.width}, 3};
    void* edges = call.output(0, "edges", all, DType::bool_);
    void* multiplicity = call.output(1, "multiplicity", channels, DType::float32);
    if (all.count() == 0) return;
    if (edges == nullptr) edges = backend.template scratch<uint8_t>(all.count());
    if (multiplicity == nullptr) multiplicity = backend.template scratch<float>(channels.count());
    backend.back_step({backend.to_float32(pooled), kernel.data, kernel.dtype,
                       static_cast<const uint8_t*>(selected.data), shape.batch, shape.maps, groups, shape.out_channels,
                       shape.width, theta, static_cast<uint8_t*>(edges), static_cast<float*>(multiplicity)});
  }

  static void infer(const Inference& inference) {
    const auto pooled = inference.input(0), kernel = inference.input(1), selected = inference.input(2);
    if (!pooled || !kernel || !selected) return;
    if (pooled->dims.size() != 2 || kernel->dims.size() != 2 || selected->dims.size() != 3) return;
    const Dim n = pooled->dims[0], m = selected->dims[1];
    inference.set(0, {element_type(DType::bool_), {n, m, kernel->dims[0], kernel->dims[1]}});
    inference.set(1, {element_type(DType::float32), {n, m, pooled->dims[1]}});
  }

  float theta;
  int64_t groups;
};

struct SplineUpsample {
  static constexpr const char *name = "SplineUpsample", *op = "spline_upsample";
  static constexpr Slot inputs[] = {{Slot::first}, {Slot::int64, true, true}};
  static constexpr Slot outputs[] = {{Slot::first}};

  explicit SplineUpsample(const Attributes& a) : order(check_order(op, a.integer("order", 3))) {
    if (const auto given = a.integers("size")) size = check_size(op, *given);
  }

  template <class Backend>
  void compute(Backend& backend, const Call& call) const {
    const Volume volume(call);
    const Shape3 out = size ? *size : size_input(call);
    volume.run(backend, call, 0, "output", out, [&](const float* in, float* result) {
      backend.spline_upsample({in, volume.shape.volumes, volume.shape.size, out, order, result});
    });
  }

  /// `size` as the second input, where there is no attribute.
  static Shape3 size_input(const Call& call) {
    if (!call.has(1)) fail(op, "size", "must be given as an attribute or as the second input", "neither");
    const Array lengths = call.input(1, "size");
    const Shape& shape = lengths.shape;
    if (shape.rank != 1 || shape[0] != 3) fail(op, "size", "must have shape [3]", to_string(shape));
    return check_size(op, {static_cast<const int64_t*>(lengths.data), 3});
  }

  static void infer(const Inference& inference) {
    auto volume = inference.input(0);
    const auto size = inference.size();
    if (!volume || !size || volume->dims.size() < 3) return;
    std::copy(size->begin(), size->end(), volume->dims.end() - 3);
    inference.set(0, *volume);
  }

  int order;
  std::optional<Shape3> size;
};

struct SobelTemporal {
  static constexpr const char *name = "SobelTemporal", *op = "sobel_temporal";
  static constexpr Slot inputs[] = {{Slot::first}};
  static constexpr Slot outputs[] = {{Slot::first}};

  explicit SobelTemporal(const Attributes& a) : padding(check_padding(op, a.text("padding", "replicate"))) {}

  template <class Backend>
  void compute(Backend& backend, const Call& call) const {
    const Volume volume(call);
    const Shape3 size = volume.shape.size;
    volume.run(backend, call, 0, "output", size, [&](const float* in, float* result) {
      backend.sobel_temporal({in, volume.shape.volumes, size, padding, result});
    });
  }

  static void infer(const Inference& inference) {
    const auto volume = inference.input(0);
    if (volume && volume->dims.size() >= 3) inference.set(0, *volume);
  }

  Padding padding;
};

struct SelectiveRelevance {
  static constexpr const char *name = "SelectiveRelevance", *op = "selective_relevance";
  static constexpr Slot inputs[] = {{Slot::first}, {Slot::float32, true}};
  static constexpr Slot outputs[] = {{Slot::first}, {Slot::float32, true}};

  explicit SelectiveRelevance(const Attributes& a) : rule(read_rule(a)), prescale(a.flag("prescale")) {}

  template <class Backend>
  void compute(Backend& backend, const Call& call) const {
    const Volume volume(call);
    const Shape3 size = volume.shape.size;
    SelectiveRule own = rule;
    own.noise_floor = noise_floor_of(volume.array.dtype);
    read_n_sigma_of(call, 1, volume.array.shape.lead(), &own);
    Shape lead = volume.array.shape;
    lead.rank -= 3;
    void* output = call.output(1, "motion_share", lead, DType::float32);
    float* share = output ? static_cast<float*>(output) : backend.template scratch<float>(volume.shape.volumes);
    volume.run(backend, call, 0, "motion", size, [&](const float* in, float* result) {
      backend.selective_relevance({in, volume.shape.volumes, size, own, prescale, result, share});
    });
  }

  static void infer(const Inference& inference) {
    const auto volume = inference.input(0);
    if (!volume || volume->dims.size() < 3) return;
    inference.set(0, *volume);
    inference.set(1, {element_type(DType::float32), {volume->dims.begin(), volume->dims.end() - 3}});
  }

  SelectiveRule rule;
  bool prescale;
};

struct SaliencyTube {
  static constexpr const char *name = "SaliencyTube", *op = "saliency_tube";
  static constexpr Slot inputs[] = {{Slot::first}, {Slot::second}};
  static constexpr Slot outputs[] = {{Slot::by_attribute, true}};

  explicit SaliencyTube(const Attributes& a) : options(a) {}

  template <class Backend>
  void compute(Backend& backend, const Call& call) const {
    const Reduction reduction(call);
    void* tube = options.map(backend, call, 0, "tube", reduction);
    if (reduction.volumes() != 0) backend.saliency_tube(options.args(backend, reduction, tube));
  }

  static void infer(const Inference& inference) {
    const auto size = inference.size();
    if (!size) return;
    if (const auto tube = infer_maps(inference, inference.dtype(), *size)) inference.set(0, *tube);
  }

  TubeOptions options;
};

struct SelectiveTube {
  static constexpr const char *name = "SelectiveTube", *op = "selective_tube";
  static constexpr Slot inputs[] = {{Slot::first}, {Slot::second}, {Slot::float32, true}};
  static constexpr Slot outputs[] = {{Slot::by_attribute, true}, {Slot::by_attribute, true}, {Slot::float32, true}};

  explicit SelectiveTube(const Attributes& a) : options(a), rule(read_rule(a)) {}

  template <class Backend>
  void compute(Backend& backend, const Call& call) const {
    const Reduction reduction(call);
    SelectiveRule own = rule;
    const Shape maps{{reduction.shape.batch, reduction.shape.maps}, 2};
    read_n_sigma_of(call, 2, maps, &own);
    void* tube = options.map(backend, call, 0, "tube", reduction);
    void* motion = options.map(backend, call, 1, "motion", reduction);
    void* output = call.output(2, "motion_share", maps, DType::float32);
    float* share = output ? static_cast<float*>(output) : backend.template scratch<float>(maps.count());
    if (maps.count() != 0) backend.selective_tube({options.args(backend, reduction, tube), own, motion, share});
  }

  static void infer(const Inference& inference) {
    const auto size = inference.size();
    const auto maps = infer_maps(inference, inference.dtype(), size.value_or(std::vector<Dim>{}));
    if (!maps || !size) return;
    inference.set(0, *maps);
    inference.set(1, *maps);
    inference.set(2, {element_type(DType::float32), {maps->dims[0], maps->dims[1]}});
  }

  TubeOptions options;
  SelectiveRule rule;
};

}  // namespace clipsight::ort
