// clipsight._kernels: the CPU kernels on NumPy arrays, at a named SIMD level, without torch.
//
// Every call runs on the calling thread and releases the interpreter lock, so callers thread over samples as they like.
// Features and the kernel of back_step are float32 or float16 arrays, or a uint16 view of bfloat16 with bfloat16=True;
// all else is float32.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "core/simd_level.h"
#include "ops/back_step.h"
#include "ops/channel_reduce.h"
#include "ops/checks.h"
#include "ops/saliency_tube.h"
#include "ops/selective_relevance.h"
#include "ops/sobel_temporal.h"
#include "ops/spline_upsample.h"

namespace py = pybind11;

namespace clipsight {
namespace {

using Sizes = std::vector<int64_t>;
// What is not so already is copied: NumPy's own arrays may start at any byte.
constexpr int kAligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_, kPlain = py::array::c_style | kAligned;
using FloatArray = py::array_t<float, kPlain>;

Sizes shape_of(const py::array& a) { return Sizes(a.shape(), a.shape() + a.ndim()); }
std::string dtype_of(const py::array& a) { return py::str(a.dtype()); }

FloatArray float_array(const char* op, const char* name, const py::array& a) {
  if (dtype_of(a) != "float32") fail(op, name, "must be float32", dtype_of(a));
  return FloatArray::ensure(a);
}

Sizes with_tail(const Sizes& shape, Shape3 size) {
  Sizes result(shape.begin(), shape.end() - 3);
  result.insert(result.end(), {size.t, size.h, size.w});
  return result;
}

/// The dtype of an array that may also be in half precision.
DType float_dtype(const char* op, const char* name, const py::array& a, bool bfloat16) {
  const std::string got = dtype_of(a);
  if (bfloat16 ? got != "uint16" : got != "float32" && got != "float16") {
    fail(op, name, bfloat16 ? "must be a uint16 view of bfloat16" : "must be float32 or float16", got);
  }
  return bfloat16 ? DType::bfloat16 : got == "float16" ? DType::float16 : DType::float32;
}

FloatArray channel_reduce_on(const char* op, const py::array& given, const py::array& weight,
                             std::optional<double> threshold, bool bfloat16, SimdLevel level) {
  const ReduceShape shape = check_reduce(op, shape_of(given), shape_of(weight));
  const DType dtype = float_dtype(op, "features", given, bfloat16);
  const py::array features = given.flags() & kAligned ? given : py::array::ensure(given, kPlain);
  const FloatArray weights = float_array(op, "weight", weight);
  Sizes strides;
  for (py::ssize_t axis = 0; axis < 5; ++axis) {
    strides.push_back(features.strides(axis) / features.itemsize());
  }
  const FeatureStrides layout = feature_strides(shape_of(features), strides);
  const py::array source = layout.direct ? features : py::array::ensure(features, kPlain);

  const auto [t, h, w] = shape.grid;
  FloatArray cam(Sizes{shape.batch, shape.maps, t, h, w});
  const ChannelReduceArgs args{source.data(), dtype, shape.batch, shape.channels, shape.grid.voxels(), layout.n, layout.c,
                               layout.s, weights.data(), shape.weight_stride_n, shape.maps,
                               check_threshold(op, threshold), cam.mutable_data()};
  py::gil_scoped_release release;
  channel_reduce_cpu(args, Serial(), level);
  return cam;
}

FloatArray channel_reduce(const py::array& features, const py::array& weight, std::optional<double> threshold,
                          bool bfloat16, const std::string& level) {
  return channel_reduce_on("channel_reduce", features, weight, threshold, bfloat16, simd_level(level));
}

py::tuple back_step(const py::array& pooled, const py::array& kernel, const py::array& selected, double theta,
                    int64_t groups, bool bfloat16, const std::string& level) {
  const char* op = "back_step";
  const BackStepShape shape = check_back_step(op, shape_of(pooled), shape_of(kernel), shape_of(selected), groups);
  const float checked_theta = check_theta(op, theta);
  const FloatArray activations = float_array(op, "pooled", pooled);
  const DType dtype = float_dtype(op, "kernel", kernel, bfloat16);
  if (dtype_of(selected) != "bool") fail(op, "selected", "must be bool", dtype_of(selected));
  const py::array rows = py::array::ensure(kernel, kPlain);
  const auto wanted = py::array_t<bool, py::array::c_style>::ensure(selected);
  py::array_t<bool> edges(Sizes{shape.batch, shape.maps, shape.out_channels, shape.width});
  FloatArray multiplicity(Sizes{shape.batch, shape.maps, shape.groups * shape.width});
  const BackStepArgs args{activations.data(), rows.data(), dtype, reinterpret_cast<const uint8_t*>(wanted.data()),
                          shape.batch, shape.maps, shape.groups, shape.out_channels, shape.width, checked_theta,
                          reinterpret_cast<uint8_t*>(edges.mutable_data()), multiplicity.mutable_data()};
  const SimdLevel simd = simd_level(level);
  {
    py::gil_scoped_release release;
    back_step_cpu(args, Serial(), simd);
  }
  return py::make_tuple(edges, multiplicity);
}

FloatArray spline_upsample(const py::array& volume, const Sizes& size, int64_t order, const std::string& level) {
  const char* op = "spline_upsample";
  const Shape3 out = check_size(op, size);
  const VolumeShape in = check_volume(op, shape_of(volume));
  const FloatArray source = float_array(op, "volume", volume);
  FloatArray result(with_tail(shape_of(volume), out));
  const SplineUpsampleArgs args{source.data(), in.volumes, in.size, out, check_order(op, order), result.mutable_data()};
  const SimdLevel simd = simd_level(level);
  py::gil_scoped_release release;
  spline_upsample_cpu(args, Serial(), simd);
  return result;
}

FloatArray sobel_temporal(const py::array& volume, const std::string& padding, const std::string& level) {
  const char* op = "sobel_temporal";
  const VolumeShape in = check_volume(op, shape_of(volume));
  const FloatArray source = float_array(op, "volume", volume);
  FloatArray result(shape_of(volume));
  const SobelTemporalArgs args{source.data(), in.volumes, in.size, check_padding(op, padding), result.mutable_data()};
  const SimdLevel simd = simd_level(level);
  py::gil_scoped_release release;
  sobel_temporal_cpu(args, Serial(), simd);
  return result;
}

py::tuple selective_relevance(const py::array& volume, double n_sigma, const std::string& padding,
                              const std::string& sign, const std::string& sigma_of, bool prescale,
                              const std::string& level) {
  const char* op = "selective_relevance";
  const Sizes shape = shape_of(volume);
  const VolumeShape in = check_volume(op, shape);
  const FloatArray source = float_array(op, "volume", volume);
  FloatArray motion(shape), share(Sizes(shape.begin(), shape.end() - 3));
  const SelectiveRelevanceArgs args{source.data(), in.volumes, in.size, check_rule(op, n_sigma, padding, sign, sigma_of),
                                    prescale, motion.mutable_data(), share.mutable_data()};
  const SimdLevel simd = simd_level(level);
  {
    py::gil_scoped_release release;
    selective_relevance_cpu(args, Serial(), simd);
  }
  return py::make_tuple(motion, share);
}

/// The caller's out= array, or a new one.
py::array output_array(const char* op, const char* name, const py::object& given, const Sizes& shape,
                       const std::string& dtype) {
  if (given.is_none()) return py::array(py::dtype(dtype), shape);
  if (!py::isinstance<py::array>(given)) fail(op, name, "must be a NumPy array", py::str(py::type::of(given)));
  const py::array array = given;
  check_out(op, name, shape, shape_of(array), dtype.c_str(), dtype_of(array).c_str(), (array.flags() & py::array::c_style) != 0);
  if (!array.writeable()) fail(op, name, "must be writeable", "a read-only array");
  if (!(array.flags() & kAligned)) fail(op, name, "must be aligned to its elements", "one that starts between two");
  return array;
}

struct TubeCall {
  FloatArray cam;
  SaliencyTubeArgs args;
  Sizes shape;  // of the tube
};

TubeCall prepare_tube(const char* op, const py::array& features, const py::array& weight, const Sizes& size,
                      std::optional<double> threshold, int64_t order, bool relu, const std::string& normalize,
                      const std::string& dtype, bool bfloat16, SimdLevel level) {
  const Shape3 out = check_size(op, size);
  const Normalize mode = check_normalize(op, normalize);
  const DType output = check_output_dtype(op, dtype, mode);
  const int checked_order = check_order(op, order);
  TubeCall call;
  call.cam = channel_reduce_on(op, features, weight, threshold, bfloat16, level);
  call.shape = with_tail(shape_of(call.cam), out);
  call.args = {call.cam.data(), call.shape[0] * call.shape[1],
               {call.cam.shape(2), call.cam.shape(3), call.cam.shape(4)}, out, checked_order, relu, mode, output, nullptr};
  return call;
}

py::array saliency_tube(const py::array& features, const py::array& weight, const Sizes& size,
                        std::optional<double> threshold, int64_t order, bool relu, const std::string& normalize,
                        const std::string& dtype, const py::object& out, bool bfloat16, const std::string& level) {
  const char* op = "saliency_tube";
  const SimdLevel simd = simd_level(level);
  TubeCall call = prepare_tube(op, features, weight, size, threshold, order, relu, normalize, dtype, bfloat16, simd);
  py::array tube = output_array(op, "out", out, call.shape, dtype);
  call.args.tube = tube.mutable_data();
  py::gil_scoped_release release;
  saliency_tube_cpu(call.args, Serial(), simd);
  return tube;
}

py::tuple selective_tube(const py::array& features, const py::array& weight, const Sizes& size,
                         std::optional<double> threshold, int64_t order, bool relu, const std::string& normalize,
                         const std::string& dtype, double n_sigma, const std::string& padding, const std::string& sign,
                         const std::string& sigma_of, const std::optional<py::tuple>& out, bool bfloat16,
                         const std::string& level) {
  const char* op = "selective_tube";
  const SimdLevel simd = simd_level(level);
  const SelectiveRule rule = check_rule(op, n_sigma, padding, sign, sigma_of);
  if (out && out->size() != 3) fail(op, "out", "must be (tube, motion, motion_share)", std::to_string(out->size()) + " items");
  TubeCall call = prepare_tube(op, features, weight, size, threshold, order, relu, normalize, dtype, bfloat16, simd);
  const auto given = [&](int i) { return out ? py::object((*out)[i]) : py::object(py::none()); };
  py::array tube = output_array(op, "tube", given(0), call.shape, dtype);
  py::array motion = output_array(op, "motion", given(1), call.shape, dtype);
  py::array share = output_array(op, "motion_share", given(2), {call.shape[0], call.shape[1]}, "float32");
  call.args.tube = tube.mutable_data();
  const SelectiveTubeArgs args{call.args, rule, motion.mutable_data(), static_cast<float*>(share.mutable_data())};
  {
    py::gil_scoped_release release;
    selective_tube_cpu(args, Serial(), simd);
  }
  return py::make_tuple(tube, motion, share);
}

py::dict build_info() {
  std::vector<std::string> levels;
  for (const SimdLevel level : available_simd_levels()) levels.push_back(to_string(level));
  std::vector<std::string> architectures;
  std::string name;
  for (const char c : std::string(CLIPSIGHT_CUDA_ARCHS) + ",") {
    if (c != ',') name += c;
    else if (!name.empty()) architectures.push_back(std::exchange(name, ""));
  }
  py::dict info;
  info["version"] = CLIPSIGHT_VERSION;
  info["compiler"] = __VERSION__;
  info["simd_levels"] = levels;
  info["simd"] = to_string(best_simd_level());
  info["cuda"] = !architectures.empty();
  info["cuda_architectures"] = architectures;
  return info;
}

}  // namespace
}  // namespace clipsight

PYBIND11_MODULE(_kernels, m) {
  using namespace clipsight;
  using py::literals::operator""_a;
  m.doc() = "CPU kernels on NumPy arrays; each call is serial and releases the interpreter lock. Errors are ValueError.";
  const py::object none = py::none();
  m.def("channel_reduce", &channel_reduce, "features"_a, "weight"_a, "threshold"_a = none, py::kw_only(),
        "bfloat16"_a = false, "level"_a = "best", "features [N,C,t,h,w], weight [M,C] or [N,M,C] -> cam [N,M,t,h,w]");
  m.def("back_step", &back_step, "pooled"_a, "kernel"_a, "selected"_a, "theta"_a, "groups"_a = 1, py::kw_only(),
        "bfloat16"_a = false, "level"_a = "best", "pooled [N,C_in], kernel [C_out,C_in/groups], selected [N,M,C_out] "
        "-> (edges [N,M,C_out,C_in/groups], multiplicity [N,M,C_in])");
  m.def("spline_upsample", &spline_upsample, "volume"_a, "size"_a, "order"_a = 3, py::kw_only(), "level"_a = "best",
        "volume [...,t,h,w] -> [...,T,H,W]");
  m.def("sobel_temporal", &sobel_temporal, "volume"_a, "padding"_a = "replicate", py::kw_only(), "level"_a = "best",
        "volume [...,T,H,W] -> its derivative, same shape");
  m.def("selective_relevance", &selective_relevance, "volume"_a, "n_sigma"_a = 2.0, "padding"_a = "replicate",
        "sign"_a = "abs", "sigma_of"_a = "signed", "prescale"_a = false, py::kw_only(), "level"_a = "best",
        "volume [...,T,H,W] -> (motion [...,T,H,W], motion_share [...])");
  m.def("saliency_tube", &saliency_tube, "features"_a, "weight"_a, "size"_a, "threshold"_a = none, "order"_a = 3,
        "relu"_a = false, "normalize"_a = "clip", "dtype"_a = "float32", py::kw_only(), "out"_a = none,
        "bfloat16"_a = false, "level"_a = "best", "features [N,C,t,h,w], weight [M,C] or [N,M,C] -> tube [N,M,T,H,W]");
  m.def("selective_tube", &selective_tube, "features"_a, "weight"_a, "size"_a, "threshold"_a = none, "order"_a = 3,
        "relu"_a = false, "normalize"_a = "clip", "dtype"_a = "float32", "n_sigma"_a = 2.0, "padding"_a = "replicate",
        "sign"_a = "abs", "sigma_of"_a = "signed", py::kw_only(), "out"_a = none, "bfloat16"_a = false,
        "level"_a = "best", "as saliency_tube -> (tube, motion [N,M,T,H,W], motion_share [N,M])");
  m.def("build_info", &build_info, "version, compiler, SIMD levels, CUDA architectures");
}
