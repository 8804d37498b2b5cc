#include "onnxruntime/api.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>

namespace clipsight::ort {

void check(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  throw std::runtime_error(message);
}

// ---- attributes -----------------------------------------------------------------------------------------------------

bool Attributes::has(Kind kind, const char* name) const {
  float number;
  int64_t integer;
  size_t size = 0;
  OrtStatus* status = nullptr;
  switch (kind) {
    case Kind::number: status = api_.KernelInfoGetAttribute_float(info_, name, &number); break;
    case Kind::integer: status = api_.KernelInfoGetAttribute_int64(info_, name, &integer); break;
    case Kind::text: status = api_.KernelInfoGetAttribute_string(info_, name, nullptr, &size); break;
    case Kind::integers: status = api_.KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size); break;
  }
  if (status != nullptr) api_.ReleaseStatus(status);
  return status == nullptr;
}

bool Attributes::find(Kind kind, const char* name, const char* rule) const {
  if (has(kind, name)) return true;
  // Only the text of the runtime's error would tell an absent attribute from one of another type.
  for (const auto& [other, got] : {std::pair{Kind::number, "a float"}, {Kind::integer, "an int"},
                                   {Kind::text, "a string"}, {Kind::integers, "a list of ints"}}) {
    if (other != kind && has(other, name)) fail(op, name, rule, got);
  }
  return false;
}

std::optional<double> Attributes::number(const char* name) const {
  if (!find(Kind::number, name, "must be a float")) return std::nullopt;
  float value = 0;
  check(api_, api_.KernelInfoGetAttribute_float(info_, name, &value));
  return value;
}

int64_t Attributes::integer(const char* name, int64_t otherwise) const {
  if (!find(Kind::integer, name, "must be an int")) return otherwise;
  int64_t value = 0;
  check(api_, api_.KernelInfoGetAttribute_int64(info_, name, &value));
  return value;
}

bool Attributes::flag(const char* name) const {
  const int64_t value = integer(name, 0);
  if (value != 0 && value != 1) fail(op, name, "must be 0 or 1", std::to_string(value));
  return value == 1;
}

std::string Attributes::text(const char* name, const char* otherwise) const {
  if (!find(Kind::text, name, "must be a string")) return otherwise;
  size_t size = 0;
  check(api_, api_.KernelInfoGetAttribute_string(info_, name, nullptr, &size));
  std::string value(size, '\0');
  check(api_, api_.KernelInfoGetAttribute_string(info_, name, value.data(), &size));
  value.resize(size - 1);  // without the final zero
  return value;
}

std::optional<std::vector<int64_t>> Attributes::integers(const char* name) const {
  if (!find(Kind::integers, name, "must be a list of ints")) return std::nullopt;
  size_t size = 0;
  check(api_, api_.KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size));
  std::vector<int64_t> values(size);
  if (size > 0) check(api_, api_.KernelInfoGetAttributeArray_int64(info_, name, values.data(), &size));
  return values;
}

// ---- a call ---------------------------------------------------------------------------------------------------------

int64_t Shape::count() const {
  int64_t product = 1;
  for (size_t axis = 0; axis < rank; ++axis) product *= length[axis];
  return product;
}

Shape Shape::with_size(const Shape3& size) const {
  Shape result = *this;
  result.length[rank - 3] = size.t, result.length[rank - 2] = size.h, result.length[rank - 1] = size.w;
  return result;
}

ONNXTensorElementDataType element_type(DType dtype) {
  switch (dtype) {
    case DType::float32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case DType::float16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case DType::bool_: return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    default: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  }
}

namespace {

/// Shape and element type of a tensor.
struct Description {
  Description(const Call& call, const char* name, const OrtValue* value) {
    const OrtApi& api = call.api;
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api, api.GetTensorTypeAndShape(value, &info));
    OrtStatus* status = api.GetTensorElementType(info, &type);
    if (status == nullptr) status = api.GetDimensionsCount(info, &shape.rank);
    if (status == nullptr && shape.rank <= Shape::kMaxRank) status = api.GetDimensions(info, shape.length, shape.rank);
    api.ReleaseTensorTypeAndShapeInfo(info);
    check(api, status);
    if (shape.rank > Shape::kMaxRank) {
      fail(call.op, name, "must have at most 8 axes", std::to_string(shape.rank) + " axes");
    }
  }

  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  Shape shape;
};

}  // namespace

const OrtValue* Call::value(size_t index) const {
  const OrtValue* value = nullptr;
  size_t count = 0;
  check(api, api.KernelContext_GetInputCount(context, &count));
  if (index < count) check(api, api.KernelContext_GetInput(context, index, &value));
  return value;
}

bool Call::has(size_t index) const { return value(index) != nullptr; }

Array Call::input(size_t index, const char* name) const {
  const OrtValue* tensor = value(index);
  if (tensor == nullptr) fail(op, name, "must be connected", "nothing");
  const Description description(*this, name, tensor);
  void* data = nullptr;
  check(api, api.GetTensorMutableData(const_cast<OrtValue*>(tensor), &data));
  const bool half = description.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
  return {data, half ? DType::float16 : DType::float32, description.shape};
}

void* Call::output(size_t index, const char* name, const Shape& shape, DType dtype) const {
  size_t count = 0;
  check(api, api.KernelContext_GetOutputCount(context, &count));
  OrtValue* tensor = nullptr;
  if (index < count) check(api, api.KernelContext_GetOutput(context, index, shape.length, shape.rank, &tensor));
  if (tensor == nullptr) return nullptr;
  // The graph's own declaration decides how much memory this is.
  if (Description(*this, name, tensor).type != element_type(dtype)) {
    fail(op, name, std::string("must be ") + to_string(dtype) + " in the graph, as dtype says", "another type");
  }
  void* data = nullptr;
  check(api, api.GetTensorMutableData(tensor, &data));
  return data;
}

const OrtMemoryInfo* Call::memory_of(size_t index) const {
  const OrtMemoryInfo* memory = nullptr;
  check(api, api.GetTensorMemoryInfo(value(index), &memory));
  return memory;
}

// ---- threads --------------------------------------------------------------------------------------------------------

int Pool::threads() const {
  static const int processors = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  return processors;  // the runtime does not tell the size of its pool; more ranges than threads do no harm
}

void Pool::run(int64_t count, int64_t grain, Body body, void* context) const {
  grain = std::max<int64_t>(grain, 1);
  const int64_t ranges = std::min<int64_t>((count + grain - 1) / grain, threads());
  if (ranges <= 1) return body(context, 0, count);

  struct Task {
    int64_t count, ranges;
    Body body;
    void* context;
    std::atomic<bool> failed{false};
    std::exception_ptr error = nullptr;  // of the first range that threw
  } task{count, ranges, body, context};
  const auto range = [](void* data, size_t index) noexcept {
    Task& task = *static_cast<Task*>(data);
    const int64_t i = static_cast<int64_t>(index);
    try {
      task.body(task.context, task.count * i / task.ranges, task.count * (i + 1) / task.ranges);
    } catch (...) {  // no memory for scratch: it must not reach the runtime's pool
      if (!task.failed.exchange(true)) task.error = std::current_exception();
    }
  };
  check(call_.api, call_.api.KernelContext_ParallelFor(call_.context, range, static_cast<size_t>(ranges), 0, &task));
  if (task.error) std::rethrow_exception(task.error);
}

}  // namespace clipsight::ort
