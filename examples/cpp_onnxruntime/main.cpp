// Explains a video with an exported ONNX file: prints the top classes, writes the heat over every frame as
// PPM, and each output as raw numbers.
//
//   explain model.onnx frames/ out/                 a folder of PPM images
//   explain model.onnx video.raw out/ 16x240x320    raw RGB bytes [T, H, W, 3]
//
// Files exported with frames="uint8" take frames of any size; others take frames of exactly the network's size. ONNX
// Runtime is found as any library is (LD_LIBRARY_PATH), or named by the environment variable ONNXRUNTIME.
#include <clipsight/session.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "frames.h"

using clipsight::DType;
using clipsight::Error;
using clipsight::Manifest;
using clipsight::TensorView;

namespace {

/// T frames, evenly spaced over the video.
std::vector<unsigned char> choose(const video& source, int64_t count) {
  if (source.frames < count) {
    throw Error("explain: the video must have at least " + std::to_string(count) + " frames, got " +
                std::to_string(source.frames));
  }
  std::vector<unsigned char> chosen;
  for (int64_t i = 0; i < count; ++i) {
    const unsigned char* frame = source.pixels + static_cast<size_t>(i * source.frames / count) * frame_bytes(&source);
    chosen.insert(chosen.end(), frame, frame + frame_bytes(&source));
  }
  return chosen;
}

/// Bytes [T, H, W, 3] -> normalised [3, T, H, W], for files whose network starts with floats.
std::vector<float> normalised(const std::vector<unsigned char>& frames, const Manifest& manifest) {
  const clipsight::Preprocessing p = manifest.preprocessing.value_or(clipsight::Preprocessing{});
  const size_t pixels = frames.size() / 3;
  std::vector<float> clip(frames.size());
  for (size_t c = 0; c < 3; ++c) {
    const double std = p.std[c] != 0 ? p.std[c] : 1;
    for (size_t i = 0; i < pixels; ++i) {
      clip[c * pixels + i] = static_cast<float>((frames[i * 3 + (p.bgr ? 2 - c : c)] * p.scale - p.mean[c]) / std);
    }
  }
  return clip;
}

/// The first output that is a volume: the map of every voxel of the clip.
size_t find_map(const Manifest& manifest) {
  for (size_t i = 0; i < manifest.outputs.size(); ++i) {
    if (manifest.outputs[i].shape.size() == 5 && manifest.outputs[i].dtype == DType::float32) return i;
  }
  throw Error("explain: the file must give a float32 map [N, M, T, H, W]");
}

void explain(const char* model, const video& source, const std::string& out) {
  clipsight::Options options;
  if (const char* library = std::getenv("ONNXRUNTIME")) options.onnxruntime_library = library;
  const clipsight::Session session = clipsight::Session::open(model, options);
  const Manifest& manifest = session.manifest();
  if (manifest.inputs.size() != 1) throw Error("explain: the file must take the video alone, got further inputs");

  std::vector<unsigned char> frames = choose(source, manifest.sizes[0][0]);
  const int64_t count = manifest.sizes[0][0], height = source.height, width = source.width;
  std::vector<float> clip;
  TensorView input(frames.data(), DType::uint8, {1, count, height, width, 3});
  const bool bytes = manifest.inputs[0].name == "frames";
  if (!bytes) {
    if (manifest.inputs[0].layout != "NCTHW" || manifest.inputs[0].shape[1].length != 3) {
      throw Error("explain: the file must take frames, or clips [N, 3, T, H, W]");
    }
    clip = normalised(frames, manifest);
    input = TensorView(clip.data(), DType::float32, {1, 3, count, height, width});
  }
  const std::vector<clipsight::Tensor> outputs = session.run({input});

  for (const auto& [index, probability, label] : session.top_classes(outputs[0], 5)) {
    std::printf("%9.6f  %ld  %s\n", probability, static_cast<long>(index), label.c_str());
  }
  const clipsight::Tensor& map = outputs[find_map(manifest)];
  const int rows = static_cast<int>(map.shape[3]), columns = static_cast<int>(map.shape[4]);
  clipsight::Region place{0, 0, static_cast<double>(height), static_cast<double>(width)};
  if (bytes) place = manifest.map_region(height, width);
  const double region[4] = {place.top, place.left, place.height, place.width};
  std::filesystem::create_directories(out);
  for (size_t i = 0; i < outputs.size(); ++i) {
    const bool written = write_raw(out.c_str(), manifest.outputs[i].name.c_str(), outputs[i].data, outputs[i].bytes());
    if (!written) throw Error("explain: could not write to " + out);
  }
  for (int64_t t = 0; t < map.shape[2]; ++t) {
    unsigned char* frame = frames.data() + static_cast<size_t>(t) * frame_bytes(&source);
    blend(frame, source.height, source.width, map.as<float>() + t * rows * columns, rows, columns, region);
    char name[32];
    std::snprintf(name, sizeof name, "/heat%04d.ppm", static_cast<int>(t));
    if (!write_ppm((out + name).c_str(), frame, source.height, source.width)) {
      throw Error("explain: out must be a folder that can be written to, got " + out);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4 && argc != 5) {
    std::fprintf(stderr, "usage: explain model.onnx (frames/ out/ | video.raw out/ TxHxW)\n");
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
