#include "onnxruntime/inference.h"

#include <atomic>

namespace clipsight::ort {
namespace {

std::string new_name() {
  static std::atomic<int64_t> count{0};
  return "clipsight_unknown_" + std::to_string(count++);
}

}  // namespace

std::optional<TypedShape> Inference::input(size_t index) const {
  size_t count = 0;
  check(api_, api_.ShapeInferContext_GetInputCount(context_, &count));
  if (index >= count) return std::nullopt;
  OrtTensorTypeAndShapeInfo* info = nullptr;  // the context's own
  check(api_, api_.ShapeInferContext_GetInputTypeShape(context_, index, &info));
  TypedShape input;
  check(api_, api_.GetTensorElementType(info, &input.type));
  size_t rank = 0;
  check(api_, api_.GetDimensionsCount(info, &rank));
  std::vector<int64_t> lengths(rank);
  std::vector<const char*> names(rank, nullptr);
  check(api_, api_.GetDimensions(info, lengths.data(), rank));
  check(api_, api_.GetSymbolicDimensions(info, names.data(), rank));
  for (size_t axis = 0; axis < rank; ++axis) {
    std::string name = names[axis] == nullptr ? "" : names[axis];
    if (lengths[axis] < 0 && name.empty()) name = new_name();
    input.dims.push_back({lengths[axis], name});
  }
  return input;
}

const OrtOpAttr* Inference::attribute(const char* name) const {
  const OrtOpAttr* attribute = nullptr;
  OrtStatus* absent = api_.ShapeInferContext_GetAttribute(context_, name, &attribute);
  if (absent == nullptr) return attribute;
  api_.ReleaseStatus(absent);
  return nullptr;
}

std::optional<std::vector<Dim>> Inference::size() const {
  const OrtOpAttr* given = attribute("size");
  if (given == nullptr) return std::nullopt;
  int64_t lengths[3];
  size_t bytes = 0;
  check(api_, api_.ReadOpAttr(given, ORT_OP_ATTR_INTS, lengths, sizeof lengths, &bytes));
  if (bytes != sizeof lengths) return std::nullopt;
  return std::vector<Dim>{{lengths[0], ""}, {lengths[1], ""}, {lengths[2], ""}};
}

ONNXTensorElementDataType Inference::dtype() const {
  const OrtOpAttr* given = attribute("dtype");
  if (given == nullptr) return element_type(DType::float32);
  char name[16] = "";
  size_t bytes = 0;
  check(api_, api_.ReadOpAttr(given, ORT_OP_ATTR_STRING, name, sizeof name - 1, &bytes));
  return element_type(check_output_dtype("dtype", name, Normalize::clip));
}

void Inference::set(size_t index, const TypedShape& output) const {
  std::vector<int64_t> lengths;
  std::vector<const char*> names;
  for (const Dim& dim : output.dims) {
    lengths.push_back(dim.length);
    names.push_back(dim.name.c_str());
  }
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api_, api_.CreateTensorTypeAndShapeInfo(&info));
  OrtStatus* status = api_.SetTensorElementType(info, output.type);
  if (status == nullptr) status = api_.SetDimensions(info, lengths.data(), lengths.size());
  if (status == nullptr) status = api_.SetSymbolicDimensions(info, names.data(), names.size());
  if (status == nullptr) status = api_.ShapeInferContext_SetOutputTypeShape(context_, index, info);
  api_.ReleaseTensorTypeAndShapeInfo(info);
  check(api_, status);
}

}  // namespace clipsight::ort
