// Types and shapes of the outputs while a graph is loaded, as far as the shapes of the inputs are known by then.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "onnxruntime/api.h"

namespace clipsight::ort {

struct Dim {
  int64_t length;    // -1 where only the name is known
  std::string name;  // "N"
};

struct TypedShape {
  ONNXTensorElementDataType type;
  std::vector<Dim> dims;
};

class Inference {
 public:
  Inference(const OrtApi& api, OrtShapeInferContext* context) : api_(api), context_(context) {}

  /// Nothing where the input is absent. An axis of unknown length without a name gets one that no other axis has.
  std::optional<TypedShape> input(size_t index) const;
  std::optional<std::vector<Dim>> size() const;    // the attribute `size`
  ONNXTensorElementDataType dtype() const;         // the attribute `dtype`; float32 where it is absent
  void set(size_t index, const TypedShape& output) const;

 private:
  const OrtOpAttr* attribute(const char* name) const;

  const OrtApi& api_;
  OrtShapeInferContext* context_;
};

}  // namespace clipsight::ort
