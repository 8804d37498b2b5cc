// Torch tensors as views of a Session and back, over the same memory; for programs that link clipsight::torch.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <clipsight/session.h>

#include <string>

namespace clipsight {

/// The memory of a contiguous tensor on the CPU or a GPU, which must outlive the view.
inline TensorView view_of(const at::Tensor& tensor) {
  TensorView view;
  switch (tensor.scalar_type()) {
    case at::kFloat: view.dtype = DType::float32; break;
    case at::kHalf: view.dtype = DType::float16; break;
    case at::kBFloat16: view.dtype = DType::bfloat16; break;
    case at::kByte: view.dtype = DType::uint8; break;
    case at::kLong: view.dtype = DType::int64; break;
    case at::kBool: view.dtype = DType::bool_; break;
    case at::kDouble: view.dtype = DType::float64; break;
    default:
      throw Error(std::string("view_of: tensor must be float64, float32, float16, bfloat16, uint8, int64 or bool, got ") +
                  c10::toString(tensor.scalar_type()));
  }
  if (!tensor.is_contiguous()) throw Error("view_of: tensor must be contiguous, got another layout");
  if (!tensor.is_cpu() && !tensor.is_cuda()) {
    throw Error("view_of: tensor must be on a CPU or CUDA device, got " + tensor.device().str());
  }
  view.shape = Shape(tensor.sizes().data(), tensor.sizes().size());
  if (tensor.is_cuda()) view.device = {Device::cuda, tensor.device().index()};
  view.data = tensor.data_ptr();
  return view;
}

inline at::Device torch_device(const Device& device) {
  return device.kind == Device::cuda ? at::Device(at::kCUDA, static_cast<at::DeviceIndex>(device.index)) : at::kCPU;
}

inline at::ScalarType torch_type(DType dtype) {
  constexpr at::ScalarType types[] = {at::kFloat, at::kHalf, at::kBFloat16, at::kByte,
                                      at::kLong,  at::kBool, at::kDouble};
  return types[static_cast<int>(dtype)];
}

/// A tensor over the view's memory, which must outlive it.
inline at::Tensor tensor_of(const TensorView& view) {
  return at::from_blob(view.data, {view.shape.data(), view.shape.size()},
                       at::TensorOptions(torch_type(view.dtype)).device(torch_device(view.device)));
}

}  // namespace clipsight
