// Explains a video with an exported TorchScript (.pt) or compiled (.pt2) file: prints the top classes, writes the heat
// over every frame as PPM, and each output as raw numbers.
//
//   explain model.pt frames/ out/                 a folder of PPM images
//   explain model.pt video.raw out/ 16x240x320    raw RGB bytes [T, H, W, 3]
//
// Files exported with frames="uint8" take frames of any size; others take frames of exactly the network's size. The
// environment variable DEVICE=cuda runs the file on a GPU.
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/tensor.h>
#include <clipsight/session.h>
#include <clipsight/torch.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "frames.h"

using clipsight::Error;
using clipsight::Manifest;

namespace {

/// T frames, evenly spaced over the video: uint8 [T, H, W, 3].
at::Tensor choose(const video& source, int64_t count) {
  if (source.frames < count) {
    throw Error("explain: the video must have at least " + std::to_string(count) + " frames, got " +
                std::to_string(source.frames));
  }
  const at::Tensor all = at::from_blob(source.pixels, {source.frames, source.height, source.width, 3}, at::kByte);
  return all.index_select(0, at::arange(count).mul(source.frames).floor_divide(count));
}

/// Bytes [T, H, W, 3] -> normalised [1, 3, T, H, W], for files whose network starts with floats.
at::Tensor normalised(const at::Tensor& frames, const Manifest& manifest) {
  at::Tensor clip = frames.permute({3, 0, 1, 2}).to(at::kDouble);
  if (const auto& p = manifest.preprocessing) {
    const auto of_channel = [](const std::array<double, 3>& values) {
      return at::tensor({values[0], values[1], values[2]}, at::kDouble).view({3, 1, 1, 1});
    };
    if (p->bgr) clip = clip.flip(0);
    clip = clip.mul(p->scale).sub(of_channel(p->mean)).div(of_channel(p->std));
  }
  return clip.to(at::kFloat).unsqueeze(0).contiguous();
}

/// The first output that is a volume: the map of every voxel of the clip.
const at::Tensor& find_map(const std::vector<at::Tensor>& outputs) {
  for (const at::Tensor& output : outputs) {
    if (output.dim() == 5 && output.scalar_type() == at::kFloat) return output;
  }
  throw Error("explain: the file must give a float32 map [N, M, T, H, W]");
}

void explain(const char* model, const video& source, const std::string& out) {
  clipsight::Options options;
  if (const char* device = std::getenv("DEVICE")) options.device = device;
  const at::Device device(options.device);
  const clipsight::Session session = clipsight::Session::open(model, options);
  const Manifest& manifest = session.manifest();
  if (manifest.inputs.size() != 1) throw Error("explain: the file must take the video alone, got further inputs");

  at::Tensor frames = choose(source, manifest.sizes[0][0]);
  const bool bytes = manifest.inputs[0].name == "frames";
  if (!bytes && (manifest.inputs[0].layout != "NCTHW" || manifest.inputs[0].shape[1].length != 3)) {
    throw Error("explain: the file must take frames, or clips [N, 3, T, H, W]");
  }
  const at::Tensor input = (bytes ? frames.unsqueeze(0) : normalised(frames, manifest)).to(device);

  // The outputs are tensors of our own, on the device: a program that runs again and again keeps them.
  std::vector<at::Tensor> outputs;
  std::vector<clipsight::TensorView> views;
  const std::vector<clipsight::Shape> shapes = session.output_shapes({clipsight::view_of(input)});
  for (size_t i = 0; i < shapes.size(); ++i) {
    const at::IntArrayRef shape(shapes[i].data(), shapes[i].size());
    const at::TensorOptions type(clipsight::torch_type(manifest.outputs[i].dtype));
    outputs.push_back(at::empty(shape, type.device(device)));
    views.push_back(clipsight::view_of(outputs[i]));
  }
  session.run({clipsight::view_of(input)}, views);
  for (at::Tensor& output : outputs) output = output.cpu();

  for (const auto& [index, probability, label] : session.top_classes(clipsight::view_of(outputs[0]), 5)) {
    std::printf("%9.6f  %ld  %s\n", probability, static_cast<long>(index), label.c_str());
  }
  std::filesystem::create_directories(out);
  for (size_t i = 0; i < outputs.size(); ++i) {
    const char* name = manifest.outputs[i].name.c_str();
    if (!write_raw(out.c_str(), name, outputs[i].data_ptr(), outputs[i].nbytes())) {
      throw Error("explain: could not write to " + out);
    }
  }
  const at::Tensor& map = find_map(outputs);
  clipsight::Region place{0, 0, static_cast<double>(source.height), static_cast<double>(source.width)};
  if (bytes) place = manifest.map_region(source.height, source.width);
  const double region[4] = {place.top, place.left, place.height, place.width};
  for (int64_t t = 0; t < map.size(2); ++t) {
    unsigned char* frame = frames[t].data_ptr<unsigned char>();
    blend(frame, source.height, source.width, map[0][0][t].data_ptr<float>(), static_cast<int>(map.size(3)),
          static_cast<int>(map.size(4)), region);
    char name[32];
    std::snprintf(name, sizeof name, "/heat%04d.ppm", static_cast<int>(t));
    if (!write_ppm((out + name).c_str(), frame, source.height, source.width)) {
      throw Error("explain: could not write " + out + name);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4 && argc != 5) {
    std::fprintf(stderr, "usage: explain model.pt (frames/ out/ | video.raw out/ TxHxW)\n");
    return 2;
  }
  video source{};
  if (!(argc == 4 ? read_folder(argv[2], &source) : read_raw(argv[2], argv[4], &source))) {
    std::fprintf(stderr, "explain: %s must be PPM images of one size or a raw video of the size given\n", argv[2]);
    return 1;
  }
  try {
    explain(argv[1], source, argv[3]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    std::free(source.pixels);
    return 1;
  }
  std::free(source.pixels);
  return 0;
}
