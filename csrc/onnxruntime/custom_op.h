// One OrtCustomOp per op, device and combination of float types: the C callbacks around the structs of ops.h.
#pragma once

#include <iterator>
#include <memory>
#include <vector>

#include "onnxruntime/ops.h"

namespace clipsight::ort {

template <class Op, class Backend>
struct CustomOp : OrtCustomOp {
  CustomOp(const OrtApi& api, DType first, DType second) : OrtCustomOp{}, api(api), first(first), second(second) {
    version = kApiVersion;
    GetName = [](const OrtCustomOp*) { return Op::name; };
    GetExecutionProviderType = [](const OrtCustomOp*) { return Backend::provider; };
    GetInputTypeCount = [](const OrtCustomOp*) { return std::size(Op::inputs); };
    GetOutputTypeCount = [](const OrtCustomOp*) { return std::size(Op::outputs); };
    GetInputType = [](const OrtCustomOp* op, size_t i) { return self(op).type(Op::inputs[i]); };
    GetOutputType = [](const OrtCustomOp* op, size_t i) { return self(op).type(Op::outputs[i]); };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t i) { return presence(Op::inputs[i]); };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t i) { return presence(Op::outputs[i]); };
    GetInputMemoryType = [](const OrtCustomOp*, size_t i) {
      return Op::inputs[i].on_host ? OrtMemTypeCPUInput : OrtMemTypeDefault;
    };
    GetVariadicInputMinArity = GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
    GetVariadicInputHomogeneity = GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return 1; };
    CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
      return guarded(*api, [&] { *kernel = new Kernel(*api, info); });
    };
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      const Kernel& self = *static_cast<const Kernel*>(kernel);
      return guarded(self.api, [&] {
        const Call call(self.api, context, Op::op);
        Backend backend(call);
        self.op.compute(backend, call);
      });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    InferOutputShapeFn = [](const OrtCustomOp* op, OrtShapeInferContext* context) -> OrtStatus* {
      const OrtApi& api = self(op).api;
      // What cannot be inferred stays open: the kernel says what is wrong, in the usual words.
      if (OrtStatus* failed = guarded(api, [&] { Op::infer(Inference(api, context)); })) api.ReleaseStatus(failed);
      return nullptr;
    };
  }

  struct Kernel {
    Kernel(const OrtApi& api, const OrtKernelInfo* info) : Kernel(api, Attributes(api, info, Op::op)) {}
    Kernel(const OrtApi& api, const Attributes& attributes) : api(api), op(checked(attributes)) {}

    static const Attributes& checked(const Attributes& attributes) {
      const int64_t abi = attributes.integer("abi", 1);
      if (abi > kAbi || abi < 1) {
        const std::string rule = "must be 1 to " + std::to_string(kAbi) + " (a newer file needs a newer clipsight)";
        fail(Op::op, "abi", rule, std::to_string(abi));
      }
      return attributes;
    }

    const OrtApi& api;
    Op op;
  };

  static const CustomOp& self(const OrtCustomOp* op) { return *static_cast<const CustomOp*>(op); }

  static OrtCustomOpInputOutputCharacteristic presence(const Slot& slot) {
    return slot.optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  }

  ONNXTensorElementDataType type(const Slot& slot) const {
    const auto of = [](DType dtype) {
      return dtype == DType::float16 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    };
    switch (slot.type) {
      case Slot::first: return of(first);
      case Slot::second: return of(second);
      case Slot::float32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
      case Slot::int64: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
      case Slot::boolean: return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
      default: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;  // what the graph declares; Call::output checks it
    }
  }

  const OrtApi& api;
  DType first, second;
};

/// Adds every variant of one op.
template <class Op, class Backend>
void add_op(const OrtApi& api, OrtCustomOpDomain* domain) {
  bool two = false;
  for (const Slot& slot : Op::inputs) two = two || slot.type == Slot::second;
  for (const DType first : {DType::float32, DType::float16}) {
    for (const DType second : {DType::float32, DType::float16}) {
      if (!two && second != first) continue;
      check(api, api.CustomOpDomain_Add(domain, new CustomOp<Op, Backend>(api, first, second)));
    }
  }
}

template <class Backend>
void add_ops(const OrtApi& api, OrtCustomOpDomain* domain) {
  add_op<ChannelReduce, Backend>(api, domain);
  add_op<BackStep, Backend>(api, domain);
  add_op<SplineUpsample, Backend>(api, domain);
  add_op<SobelTemporal, Backend>(api, domain);
  add_op<SelectiveRelevance, Backend>(api, domain);
  add_op<SaliencyTube, Backend>(api, domain);
  add_op<SelectiveTube, Backend>(api, domain);
}

void add_cpu_ops(const OrtApi& api, OrtCustomOpDomain* domain);
void add_cuda_ops(const OrtApi& api, OrtCustomOpDomain* domain);

}  // namespace clipsight::ort
