// Compares selective_tube on the GPU with the CPU's: prints the largest difference of the tubes, or the error.
#include <clipsight/kernels_cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <vector>

using namespace clipsight;

int main() {
  std::vector<float> cam(2 * 3 * 5 * 4), tube(2 * 9 * 31 * 27), motion(tube.size()), share(2), copy(tube.size());
  for (size_t i = 0; i < cam.size(); ++i) cam[i] = static_cast<float>(i * 37 % 101);
  SelectiveTubeArgs args{};
  args.tube = {cam.data(), 2, {3, 5, 4}, {9, 31, 27}, 3, false, Normalize::clip, DType::float32, tube.data()};
  args.rule.n_sigma = 2.0f;
  args.rule.noise_floor = noise_floor_of(DType::float32);
  args.motion = motion.data();
  args.motion_share = share.data();
  selective_tube_cpu(args, Serial(), best_simd_level());

  void *workspace = nullptr, *on_device[4] = {};
  const size_t bytes[4] = {cam.size() * 4, tube.size() * 4, motion.size() * 4, share.size() * 4};
  for (int i = 0; i < 4; ++i) cudaMalloc(&on_device[i], bytes[i]);
  cudaMalloc(&workspace, selective_tube_cuda_workspace(args));
  cudaMemcpy(on_device[0], cam.data(), bytes[0], cudaMemcpyHostToDevice);
  args.tube.cam = static_cast<float*>(on_device[0]);
  args.tube.tube = on_device[1];
  args.motion = on_device[2];
  args.motion_share = static_cast<float*>(on_device[3]);
  try {
    cudaGetLastError();
    selective_tube_cuda(args, workspace, nullptr);
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  cudaMemcpy(copy.data(), on_device[1], bytes[1], cudaMemcpyDeviceToHost);
  float difference = 0;
  for (size_t i = 0; i < tube.size(); ++i) difference = std::max(difference, std::fabs(tube[i] - copy[i]));
  std::printf("%g\n", static_cast<double>(difference));
  return 0;
}
