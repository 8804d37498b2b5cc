// An exported video network in a C++ program, without Python: open a file, feed frames, get logits and maps.
//
//   clipsight::Session session = clipsight::Session::open("movers.onnx");
//   std::vector<clipsight::Tensor> outputs = session.run(
//       {{frames.data(), clipsight::DType::uint8, {1, 16, 240, 320, 3}}});
//   for (const auto& top : session.top_classes(outputs[0], 5)) ...
//
// ONNX files run in the ONNX Runtime that the loader finds (libonnxruntime.so.1); TorchScript and .pt2 files in
// programs that link the CMake target clipsight::torch. These are code, and ONNX files are data: open only those that you
// trust. Every failure is a clipsight::Error.
#pragma once

#include <clipsight/clipsight.h>
#include <clipsight/dtype.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace clipsight {

/// Every failure; `what()` says operation, argument, rule and what was found instead.
class CLIPSIGHT_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Lengths of the axes of a tensor, in elements; at most `max_rank` of them, held without an allocation.
class Shape {
 public:
  static constexpr size_t max_rank = CLIPSIGHT_MAX_RANK;

  Shape() = default;
  Shape(std::initializer_list<int64_t> lengths) : Shape(lengths.begin(), lengths.size()) {}
  Shape(const std::vector<int64_t>& lengths) : Shape(lengths.data(), lengths.size()) {}  // NOLINT: implicit on purpose
  Shape(const int64_t* lengths, size_t rank) : rank_(rank) {
    if (rank > max_rank) throw Error("Shape: rank must be at most 8, got " + std::to_string(rank));
    for (size_t i = 0; i < rank; ++i) lengths_[i] = lengths[i];
  }

  size_t size() const { return rank_; }
  const int64_t* data() const { return lengths_.data(); }
  const int64_t* begin() const { return lengths_.data(); }
  const int64_t* end() const { return lengths_.data() + rank_; }
  int64_t operator[](size_t i) const { return lengths_[i]; }
  int64_t& operator[](size_t i) { return lengths_[i]; }
  /// Product of the lengths; 1 for a scalar. Throws Error where one is negative, or it does not fit into 60 bits.
  int64_t elements() const {
    int64_t product = 1;
    for (int64_t length : *this) {
      if (length < 0 || (length > 0 && product > (int64_t{1} << 60) / length)) {
        throw Error("Shape: lengths must be 0 or more and their product at most 2^60, got a length of " +
                    std::to_string(length));
      }
      product *= length;
    }
    return product;
  }
  bool operator==(const Shape& other) const {
    if (rank_ != other.rank_) return false;
    for (size_t i = 0; i < rank_; ++i) {
      if (lengths_[i] != other.lengths_[i]) return false;
    }
    return true;
  }
  bool operator!=(const Shape& other) const { return !(*this == other); }

 private:
  std::array<int64_t, max_rank> lengths_{};
  size_t rank_ = 0;
};

struct Device {
  enum Kind { cpu = CLIPSIGHT_CPU, cuda = CLIPSIGHT_CUDA };
  Kind kind = cpu;
  int index = 0;  // of the GPU
  bool operator==(const Device& other) const { return kind == other.kind && index == other.index; }
  bool operator!=(const Device& other) const { return !(*this == other); }
};

/// A contiguous tensor in memory that belongs to the caller. An input is only read.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::float32;
  Shape shape;
  Device device;

  TensorView() = default;
  TensorView(const void* data, DType dtype, Shape shape, Device device = {})
      : data(const_cast<void*>(data)), dtype(dtype), shape(shape), device(device) {}
  size_t bytes() const { return static_cast<size_t>(shape.elements()) * size_of(dtype); }
};

/// A tensor that holds its memory; copies share it.
class Tensor : public TensorView {
 public:
  Tensor() = default;
  /// Zeros in the host's memory.
  Tensor(DType dtype, const Shape& shape) : TensorView(nullptr, dtype, shape) {
    memory_ = std::shared_ptr<void>(new uint64_t[bytes() / sizeof(uint64_t) + 1](),
                                    [](void* memory) { delete[] static_cast<uint64_t*>(memory); });
    data = memory_.get();
  }
  /// Memory of a runtime, which lives as long as `owner` does.
  Tensor(const TensorView& view, std::shared_ptr<void> owner) : TensorView(view), memory_(std::move(owner)) {}

  /// The elements as T, whose size must be the dtype's.
  template <typename T>
  T* as() const {
    if (sizeof(T) != size_of(dtype)) throw Error(std::string("Tensor: T must be a type for ") + name_of(dtype));
    return static_cast<T*>(data);
  }

 private:
  std::shared_ptr<void> memory_;
};

/// One axis of an input or output: a fixed length, or -1 and the letter of a length that the caller chooses:
/// N (batch), M (explained classes), T, H, W.
struct Dim {
  int64_t length = -1;
  std::string letter;
};

/// An input or output of the file.
struct Port {
  std::string name;
  DType dtype = DType::float32;
  std::vector<Dim> shape;
  std::vector<Dim> full_shape;  // of an output that may be empty: its shape in a run with maps
  std::string layout;  // of the video input, the order of its axes: "NCTHW", "NTCHW" or "NTHWC"
  std::string meaning;
  std::optional<double> initial;  // of an option (tau, n_sigma, explain): the value that the export was made with
};

/// How the network wants its frames; see clipsight.Preprocessing in Python.
struct Preprocessing {
  int64_t frames = 0, stride = 1;
  std::array<int64_t, 2> crop{};    // height, width in pixels
  std::vector<int64_t> resize;      // empty, {short side}, or {height, width} in pixels
  std::array<double, 3> mean{}, std{};  // three times the same where the network sees gray
  bool bgr = false;
  double scale = 1.0 / 255;
};

/// A part of a frame, in pixels from its top left corner.
struct Region {
  double top = 0, left = 0, height = 0, width = 0;
};

/// What an exported file says about itself.
struct Manifest {
  int64_t format_version = 0;
  std::string kind;  // "onnx", "torchscript" or "aot"
  std::string model;
  std::vector<Port> inputs, outputs;             // in the order of Session::run
  std::vector<std::array<int64_t, 3>> sizes;     // clip sizes (T, H, W) that the network takes
  int64_t num_classes = 0;
  std::vector<std::string> labels;               // one per class, or empty
  std::optional<Preprocessing> preprocessing;
  bool plugin_required = false;
  std::string plugin_library, plugin_minimum_version;
  std::vector<std::pair<std::string, std::string>> session;  // configuration entries of an ONNX Runtime session
  std::string clipsight_version;                 // that wrote the file
  std::string json;                              // the whole manifest

  /// Reads no weights and needs no runtime. Throws Error where the file is missing, damaged, newer, or has no manifest.
  CLIPSIGHT_API static Manifest read(const std::string& path);

  /// Where the network's centre crop, and so every map, lies in a source frame of this many pixels; the whole frame
  /// where the manifest has no preprocessing. Throws Error where the frame is smaller than the crop.
  CLIPSIGHT_API Region map_region(int64_t height, int64_t width) const;
};

struct Options {
  std::string device = "cpu";        // "cpu", "cuda" or "cuda:1"
  int threads = 0;                   // of one run; 0: the runtime's own choice
  std::string onnxruntime_library;   // by default libonnxruntime.so.1 as the loader finds it
  std::string plugin_library;        // by default the one that lies beside libclipsight.so
};

/// What logits are read as.
enum class Probability {
  softmax = CLIPSIGHT_SOFTMAX,  // over the classes (of each head, where a file has several)
  sigmoid = CLIPSIGHT_SIGMOID,  // of each class by itself
  none = CLIPSIGHT_NONE         // they are scores of another kind, and shown as they are
};

struct TopClass {
  int64_t index = 0;
  float probability = 0;  // the score itself where the logits are read as none
  std::string label;      // empty where there are no labels
};

class Backend;

/// An opened file. All members may be called by several threads at once.
class CLIPSIGHT_API Session {
 public:
  /// Throws Error where the file, a library or the device is missing or does not fit. `abi` is not for the caller: it
  /// tells the library which header the program was compiled with.
  static Session open(const std::string& path, const Options& options = {}, int abi = CLIPSIGHT_ABI_VERSION);
  /// A file of a kind that its suffix does not say: "onnx", or "torchscript" or "aot", which are code.
  static Session open_as(const std::string& kind, const std::string& path, const Options& options = {},
                         int abi = CLIPSIGHT_ABI_VERSION);
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  const Manifest& manifest() const;
  /// What the file's logits are read as.
  Probability probability() const;

  /// The k most probable classes of one sample of the file's logits, in the host's memory, most probable first; by the
  /// file's own probability, and reduced over the steps as it says where it has logits per time step.
  std::vector<TopClass> top_classes(const TensorView& logits, size_t k, size_t sample = 0) const;

  /// Inputs in the order of manifest().inputs, in the host's memory or on the session's device; returns the outputs in
  /// the order of manifest().outputs, in the host's memory. Returns when they are complete.
  std::vector<Tensor> run(const std::vector<TensorView>& inputs) const;

  /// The same into memory of the caller (host or the session's device), of exactly the shape and type of each output;
  /// after the first run of a thread nothing is allocated here. The runtimes allocate by their own rules.
  void run(const std::vector<TensorView>& inputs, const std::vector<TensorView>& outputs) const;
  void run(const TensorView* inputs, size_t input_count, const TensorView* outputs, size_t output_count) const;

  /// Shape of each output for these inputs; throws Error where the manifest does not determine it.
  std::vector<Shape> output_shapes(const std::vector<TensorView>& inputs) const;

 private:
  struct State;
  explicit Session(std::unique_ptr<State> state);
  State& state() const;
  std::unique_ptr<State> state_;
};

/// The k most probable classes of one sample of logits [N, K] in the host's memory, most probable first. Without a
/// probability by softmax, or sigmoid of a single logit; Session::top_classes knows what a file says of its own.
CLIPSIGHT_API std::vector<TopClass> top_classes(const TensorView& logits, size_t k,
                                                const std::vector<std::string>& labels = {}, size_t sample = 0);
CLIPSIGHT_API std::vector<TopClass> top_classes(const TensorView& logits, size_t k,
                                                const std::vector<std::string>& labels, size_t sample,
                                                Probability probability);

}  // namespace clipsight
