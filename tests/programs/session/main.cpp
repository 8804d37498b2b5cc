// Checks of <clipsight/session.h> that the tests drive; ONNX Runtime is named by the environment variable ONNXRUNTIME.
//   session open FILE [PLUGIN]    prints what opening the file says
//   session run FILE CLIP OUT     float32 clip -> all outputs one after another, by both kinds of run
//   session outputs FILE OUT INPUT...  the same for inputs of any kind, raw values with their shape: PATH:2x3x4x10x8;
//                                 prints the model, the inputs and the outputs that the manifest names
//   session inputs FILE           prints what a run says of every wrong input and output
//   session threads FILE          eight threads against one
//   session optional FILE         elements of each output where one sample, and where none, asks for its maps
//   session allocations FILE [N]  allocations of libclipsight.so in later runs, N runs before it counts
#include <clipsight/session.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "allocations.h"

using namespace clipsight;

namespace {

Session open(const char* file, const char* plugin = "") {
  Options options;
  if (const char* library = std::getenv("ONNXRUNTIME")) options.onnxruntime_library = library;
  options.plugin_library = plugin;
  return Session::open(file, options);
}

/// A clip of the file's first size with values that depend on the seed.
std::vector<float> random_clip(const Manifest& manifest, int64_t batch, unsigned seed) {
  const auto& [t, h, w] = manifest.sizes[0];
  std::vector<float> clip(static_cast<size_t>(batch * 3 * t * h * w));
  std::mt19937 generator(seed);
  for (float& value : clip) value = static_cast<float>(generator()) / 4294967296.0f - 0.5f;
  return clip;
}

TensorView view_of(const std::vector<float>& clip, const Manifest& manifest) {
  const auto& [t, h, w] = manifest.sizes[0];
  return TensorView(clip.data(), DType::float32, {static_cast<int64_t>(clip.size()) / (3 * t * h * w), 3, t, h, w});
}

struct Buffers {
  Buffers(const Session& session, const std::vector<TensorView>& inputs) {
    const std::vector<Shape> shapes = session.output_shapes(inputs);
    for (size_t i = 0; i < shapes.size(); ++i) tensors.emplace_back(session.manifest().outputs[i].dtype, shapes[i]);
    views.assign(tensors.begin(), tensors.end());
  }
  std::vector<Tensor> tensors;
  std::vector<TensorView> views;
};

bool same(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Tensor& x, const Tensor& y) {
    return x.dtype == y.dtype && x.shape == y.shape && std::memcmp(x.data, y.data, x.bytes()) == 0;
  });
}

std::string read_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write_bytes(const char* path, const std::vector<Tensor>& tensors) {
  std::ofstream out(path, std::ios::binary);
  for (const Tensor& tensor : tensors) {
    out.write(static_cast<char*>(tensor.data), static_cast<std::streamsize>(tensor.bytes()));
  }
}

int run(const char* file, const char* clip_path, const char* out_path) {
  Session session = open(file);
  const std::string bytes = read_bytes(clip_path);
  std::vector<float> clip(bytes.size() / sizeof(float));
  std::memcpy(clip.data(), bytes.data(), bytes.size());
  const std::vector<TensorView> inputs{view_of(clip, session.manifest())};
  const std::vector<Tensor> returned = session.run(inputs);
  const Buffers buffers(session, inputs);
  session.run(inputs, buffers.views);
  write_bytes(out_path, returned);
  return same(returned, buffers.tensors) ? 0 : 1;
}

int outputs(const char* file, const char* out_path, const std::vector<std::string>& given) {
  const Session session = open(file);
  const Manifest& manifest = session.manifest();
  std::printf("%s %s\n", manifest.kind.c_str(), manifest.model.c_str());
  for (const auto* ports : {&manifest.inputs, &manifest.outputs}) {
    for (const Port& port : *ports) std::printf("%s %s\n", port.name.c_str(), name_of(port.dtype));
  }
  std::vector<std::string> bytes;
  for (const std::string& input : given) bytes.push_back(read_bytes(input.substr(0, input.rfind(':'))));
  std::vector<TensorView> inputs;
  for (size_t i = 0; i < given.size(); ++i) {
    std::vector<int64_t> shape;
    for (size_t at = given[i].rfind(':'); at != std::string::npos; at = given[i].find('x', at + 1)) {
      shape.push_back(std::atoll(given[i].c_str() + at + 1));
    }
    inputs.emplace_back(bytes[i].data(), manifest.inputs.at(i).dtype, shape);
    if (inputs.back().bytes() != bytes[i].size()) return 2;
  }
  write_bytes(out_path, session.run(inputs));
  return 0;
}

int wrong_inputs(const char* file) {
  Session session = open(file);
  const Manifest& manifest = session.manifest();
  const std::vector<float> clip = random_clip(manifest, 1, 1);
  const TensorView good = view_of(clip, manifest);
  const Buffers buffers(session, {good});
  const auto attempt = [&](const char* name, const std::function<void()>& call) {
    try {
      call();
      std::printf("%s: nothing\n", name);
    } catch (const Error& error) {
      std::printf("%s: %s\n", name, error.what());
    }
  };
  const auto input = [&](const char* name, const std::function<void(TensorView&)>& change) {
    TensorView changed = good;
    change(changed);
    attempt(name, [&] { session.run({changed}); });
  };
  input("size", [](TensorView& v) { v.shape[4] = 31; });
  input("rank", [](TensorView& v) { v.shape = {1, 3}; });
  input("channels", [](TensorView& v) { v.shape[1] = 4; });
  input("empty batch", [](TensorView& v) { v.shape[0] = 0; });
  input("type", [](TensorView& v) { v.dtype = DType::uint8; });
  input("null", [](TensorView& v) { v.data = nullptr; });
  input("device", [](TensorView& v) { v.device = {Device::cuda, 0}; });
  attempt("no inputs", [&] { session.run(std::vector<TensorView>{}); });
  attempt("two inputs", [&] { session.run({good, good}); });
  attempt("null inputs", [&] { session.run(nullptr, 1, buffers.views.data(), buffers.views.size()); });
  const auto output = [&](const char* name, const std::function<void(std::vector<TensorView>&)>& change) {
    std::vector<TensorView> changed = buffers.views;
    change(changed);
    attempt(name, [&] { session.run({good}, changed); });
  };
  output("output size", [](auto& v) { v[1].shape[4] = 31; });
  output("output type", [](auto& v) { v[1].dtype = DType::float16; });
  output("output null", [](auto& v) { v[0].data = nullptr; });
  output("output count", [](auto& v) { v.pop_back(); });
  attempt("nine axes", [] { Shape(std::vector<int64_t>(9, 1)); });
  attempt("labels", [&] { top_classes(buffers.views[0], 1, {"one"}); });
  attempt("sample", [&] { top_classes(buffers.views[0], 1, {}, 7); });
  const Session moved = std::move(session);
  attempt("moved", [&] { session.run({good}); });
  attempt("abi", [&] { Session::open(file, {}, CLIPSIGHT_ABI_VERSION + 1); });
  attempt("device name", [&] {
    Options options;
    options.device = "tpu";
    Session::open(file, options);
  });
  return 0;
}

int threads(const char* file) {
  const Session session = open(file);
  std::vector<std::vector<float>> clips;
  std::vector<std::vector<Tensor>> expected;
  for (unsigned i = 0; i < 8; ++i) {
    clips.push_back(random_clip(session.manifest(), 1 + i % 3, i));
    expected.push_back(session.run({view_of(clips[i], session.manifest())}));
  }
  if (same(expected[0], expected[3])) return 2;  // the comparison must be able to fail
  std::vector<int> wrong(8, 0);
  std::vector<std::thread> workers;
  for (size_t i = 0; i < 8; ++i) {
    workers.emplace_back([&, i] {
      const std::vector<TensorView> inputs{view_of(clips[i], session.manifest())};
      const Buffers buffers(session, inputs);
      for (int round = 0; round < 10; ++round) {
        session.run(inputs, buffers.views);
        wrong[i] += !same(buffers.tensors, expected[i]) + !same(session.run(inputs), expected[i]);
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  return std::count(wrong.begin(), wrong.end(), 0) == 8 ? 0 : 1;
}

int optional(const char* file) {
  const Session session = open(file);
  const std::vector<float> clip = random_clip(session.manifest(), 2, 1);
  for (const unsigned char wanted : {1, 0}) {
    const unsigned char explain[2] = {0, wanted};
    const TensorView flags(explain, DType::bool_, {2});
    for (const Tensor& output : session.run({view_of(clip, session.manifest()), flags})) {
      std::printf("%ld ", static_cast<long>(output.shape.elements()));
    }
    std::printf("\n");
  }
  return 0;
}

/// The classes of the logits 0, -1, 2, ... as the file reads them, then without a file, then by each probability.
int top(const char* file) {
  const Session session = open(file);
  std::vector<float> logits;
  for (int64_t i = 0; i < session.manifest().num_classes; ++i) logits.push_back(i % 2 ? -float(i) : float(i));
  const TensorView view(logits.data(), DType::float32, {1, session.manifest().num_classes});
  const auto print = [](const std::vector<TopClass>& classes) {
    for (const TopClass& each : classes) {
      std::printf("%ld:%.7g:%s ", static_cast<long>(each.index), each.probability, each.label.c_str());
    }
    std::printf("\n");
  };
  std::printf("%d\n", static_cast<int>(session.probability()));
  print(session.top_classes(view, 3));
  print(top_classes(view, 3));
  for (const auto p : {Probability::softmax, Probability::sigmoid, Probability::none}) {
    print(top_classes(view, 3, {}, 0, p));
  }
  return 0;
}

int allocations(const char* file, int runs) {
  const Session session = open(file);
  const std::vector<float> clip = random_clip(session.manifest(), 2, 1);
  const std::vector<TensorView> inputs{view_of(clip, session.manifest())};
  const Buffers buffers(session, inputs);
  const auto count = [](const std::function<void()>& call) {
    count_allocations();
    call();
    return counted_allocations();
  };
  for (int i = 0; i < runs; ++i) session.run(inputs, buffers.views);
  const int first = count([&] { session.run(inputs, buffers.views); });
  const int later = count([&] { session.run(inputs, buffers.views); });
  const int returned = count([&] { session.run(inputs); });
  std::printf("%d %d %d\n", first, later, returned);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 2 ? argv[1] : "";
  try {
    if (mode == "open") {
      std::printf("opened %s\n", open(argv[2], argc > 3 ? argv[3] : "").manifest().model.c_str());
      return 0;
    }
    if (mode == "run" && argc == 5) return run(argv[2], argv[3], argv[4]);
    if (mode == "outputs" && argc > 4) return outputs(argv[2], argv[3], {argv + 4, argv + argc});
    if (mode == "inputs") return wrong_inputs(argv[2]);
    if (mode == "threads") return threads(argv[2]);
    if (mode == "optional") return optional(argv[2]);
    if (mode == "top") return top(argv[2]);
    if (mode == "allocations") return allocations(argv[2], argc > 3 ? std::atoi(argv[3]) : 0);
  } catch (const Error& error) {
    std::printf("%s\n", error.what());
    return 3;
  }
  return 4;
}
