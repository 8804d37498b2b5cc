// What the custom ops use of ONNX Runtime's C API. On this side of the boundary errors are exceptions; `guarded` turns
// them into OrtStatus where ONNX Runtime calls us.
#pragma once

#include <onnxruntime_c_api.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/parallel.h"
#include "ops/checks.h"

namespace clipsight::ort {

constexpr uint32_t kApiVersion = 18;  // the oldest one that has all calls below, whatever the headers offer
constexpr int64_t kAbi = 1;           // of the ops' inputs, attributes and outputs: the highest `abi` that is known

/// Throws std::runtime_error with the message of a failed call.
void check(const OrtApi& api, OrtStatus* status);

/// Runs f; what it throws comes back as a status.
template <class F>
OrtStatus* guarded(const OrtApi& api, F&& f) noexcept {
  try {
    f();
    return nullptr;
  } catch (const std::invalid_argument& error) {
    return api.CreateStatus(ORT_INVALID_ARGUMENT, error.what());
  } catch (const std::exception& error) {
    return api.CreateStatus(ORT_RUNTIME_EXCEPTION, error.what());
  } catch (...) {
    return api.CreateStatus(ORT_FAIL, "clipsight: an exception of unknown type was thrown");
  }
}

/// The attributes of one node. One that is there with another type is an error, never the default.
class Attributes {
 public:
  Attributes(const OrtApi& api, const OrtKernelInfo* info, const char* op) : op(op), api_(api), info_(info) {}

  std::optional<double> number(const char* name) const;
  int64_t integer(const char* name, int64_t otherwise) const;
  bool flag(const char* name) const;  // 0 or 1; absent is 0
  std::string text(const char* name, const char* otherwise) const;
  std::optional<std::vector<int64_t>> integers(const char* name) const;

  const char* op;  // as in messages: "channel_reduce"

 private:
  enum class Kind { number, integer, text, integers };
  bool has(Kind kind, const char* name) const;
  bool find(Kind kind, const char* name, const char* rule) const;

  const OrtApi& api_;
  const OrtKernelInfo* info_;
};

ONNXTensorElementDataType element_type(DType dtype);  // of float32, float16, uint8, bool

/// Lengths of a tensor's axes, without memory of their own.
struct Shape {
  static constexpr size_t kMaxRank = 8;
  int64_t length[kMaxRank] = {};
  size_t rank = 0;

  operator Dims() const { return {length, rank}; }  // NOLINT: implicit on purpose
  int64_t operator[](size_t axis) const { return length[axis]; }
  int64_t count() const;
  /// The first `rank - 3` axes, then `size`.
  Shape with_size(const Shape3& size) const;
  Dims lead() const { return {length, rank - 3}; }
};

struct Array {
  const void* data;
  DType dtype;  // of int64 data: not set
  Shape shape;
};

/// One call of a kernel.
class Call {
 public:
  Call(const OrtApi& api, OrtKernelContext* context, const char* op) : api(api), context(context), op(op) {}

  bool has(size_t index) const;
  Array input(size_t index, const char* name) const;
  /// Memory of an output; null where the graph does not use it.
  void* output(size_t index, const char* name, const Shape& shape, DType dtype) const;
  /// Where the memory of an input lives.
  const OrtMemoryInfo* memory_of(size_t index) const;

  const OrtApi& api;
  OrtKernelContext* context;
  const char* op;

 private:
  const OrtValue* value(size_t index) const;
};

/// The session's own thread pool.
class Pool final : public Parallel {
 public:
  explicit Pool(const Call& call) : call_(call) {}
  void run(int64_t count, int64_t grain, Body body, void* context) const override;
  int threads() const override;

 private:
  const Call& call_;
};

}  // namespace clipsight::ort
