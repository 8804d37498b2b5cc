// libFuzzer: bytes become a file (a manifest in an ONNX model or in an archive, or the whole file). Where it is taken,
// every check that a run makes gets tensors of shapes, types and contents from the same bytes.
#include <clipsight/session.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "checks.h"
#include "manifest_text.h"
#include "target.h"

namespace {

using namespace clipsight;

constexpr size_t kTensors = 48;  // bytes after the first, of which the tensors are made

/// Little-endian.
std::string number(uint64_t value, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i) text += i < 8 ? static_cast<char>(value >> 8 * i) : '\0';
  return text;
}

std::string field(char tag, const std::string& content) {
  std::string text(1, tag);
  uint64_t length = content.size();
  for (; length > 127; length >>= 7) text += static_cast<char>(length | 128);
  return text + static_cast<char>(length) + content;
}

std::string in_model(const std::string& manifest) {
  return field('\x72', field('\x0a', "clipsight") + field('\x12', manifest));
}

std::string in_archive(const std::string& manifest) {
  const std::string name = "m/extra/clipsight.json";
  const std::string sizes = number(crc32(manifest), 4) + number(manifest.size(), 4) + number(manifest.size(), 4);
  const std::string local = "PK\3\4" + number(20, 10) + sizes + number(name.size(), 4) + name + manifest;
  const std::string directory =
      "PK\1\2" + number(20, 2) + number(20, 10) + sizes + number(name.size(), 2) + std::string(16, '\0') + name;
  return local + directory + "PK\5\6" + number(0, 4) + number(1, 2) + number(1, 2) + number(directory.size(), 4) +
         number(local.size(), 4) + number(0, 2);
}

/// Numbers out of bytes: mostly small ones, now and then those at which arithmetic ends.
class Numbers {
 public:
  Numbers(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}
  uint8_t byte() { return at_ < end_ ? *at_++ : 0; }
  int64_t length() {
    const uint8_t kind = byte();
    if (kind < 160) return kind % 20;
    if (kind < 208) return int64_t{1} << (kind & 63);
    int64_t value = 0;
    for (int i = 0; i < 8; ++i) value = static_cast<int64_t>(static_cast<uint64_t>(value) << 8 | byte());
    return value;
  }

 private:
  const uint8_t *at_, *end_;
};

template <class F>
void may_refuse(F&& f) {
  try {
    f();
  } catch (const Error&) {
  }
}

/// Memory of exactly the size of a small tensor, so that a read past its end is seen.
TensorView view(const Port& port, const Shape& shape, DType dtype, std::vector<std::vector<uint64_t>>& memory) {
  int64_t elements = 4096;
  may_refuse([&] { elements = shape.elements(); });
  const size_t bytes = elements < 4096 ? static_cast<size_t>(elements) * size_of(dtype) : 0;
  memory.emplace_back((bytes + 7) / 8);
  const bool read_in_full = port.name == "classes" || port.name == "explain";
  void* data = read_in_full && elements >= 4096 ? nullptr : static_cast<void*>(memory.back().data());
  return TensorView(data, dtype, shape);
}

void use(const Manifest& manifest, Numbers numbers) {
  may_refuse([&] { manifest.map_region(numbers.length(), numbers.length()); });
  std::vector<std::vector<uint64_t>> memory;
  std::vector<TensorView> inputs, outputs;
  for (const Port& port : manifest.inputs) {
    std::vector<int64_t> shape;
    const bool fits = numbers.byte() % 4;
    const size_t rank = fits ? port.shape.size() : std::min<size_t>(numbers.byte() % 12, Shape::max_rank);
    for (size_t axis = 0; axis < rank; ++axis) {
      const bool fixed = axis < port.shape.size() && port.shape[axis].length >= 0 && (fits || numbers.byte() % 4);
      shape.push_back(fixed ? port.shape[axis].length : numbers.length());
    }
    const DType dtype = numbers.byte() % 8 ? port.dtype : static_cast<DType>(numbers.byte() % 9);
    inputs.push_back(view(port, Shape(shape), dtype, memory));
  }
  may_refuse([&] {
    const Lengths lengths = check_inputs(manifest, {}, inputs.data(), inputs.size());
    for (size_t i = 0; i < manifest.outputs.size(); ++i) {
      outputs.emplace_back();
      may_refuse([&] {
        const Shape shape = output_shape(manifest, i, lengths);
        outputs.back() = view(manifest.outputs[i], shape, manifest.outputs[i].dtype, memory);
        (void)outputs.back().bytes();
      });
    }
    check_outputs(manifest, lengths, {}, outputs.data(), outputs.size());
  });
  may_refuse([&] {
    const Shape shape({int64_t{numbers.byte()} % 5, int64_t{numbers.byte()} % 50});
    const auto dtype = static_cast<DType>(numbers.byte() % 9);
    const TensorView logits = view({}, shape, dtype, memory);
    top_classes(logits, numbers.byte(), manifest.labels, numbers.byte() % 6);
  });
  may_refuse([&] {
    const Target target = Target::read(Json::parse(manifest.json));
    std::vector<int64_t> lengths;
    const size_t rank = numbers.byte() % 4 ? target.layout.size() : numbers.byte() % 5;
    for (size_t axis = 0; axis < rank; ++axis) lengths.push_back(numbers.byte() % 10);
    const TensorView logits = view({}, Shape(lengths), static_cast<DType>(numbers.byte() % 9), memory);
    top_classes(target, logits, numbers.byte(), manifest.labels, numbers.byte() % 6);
  });
}

unsigned long inputs_seen = 0, manifests_taken = 0;

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  std::atexit([] { std::fprintf(stderr, "fuzz: %lu inputs, %lu manifests taken\n", inputs_seen, manifests_taken); });
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const int file = memfd_create("fuzz", 0);
  static const std::string path = "/proc/self/fd/" + std::to_string(file);
  if (size < 1 + kTensors) return 0;
  ++inputs_seen;
  const std::string text(reinterpret_cast<const char*>(data + 1 + kTensors), size - 1 - kTensors);
  const Numbers numbers(data + 1, kTensors);
  if (data[0] % 4 == 3) {  // one that is sure to be taken
    static const Manifest good = Manifest::read(std::getenv("CLIPSIGHT_MANIFEST"));
    use(good, numbers);
    return 0;
  }
  const std::string bytes = data[0] % 4 == 0 ? in_model(text) : data[0] % 4 == 1 ? in_archive(text) : text;
  if (ftruncate(file, 0) || pwrite(file, bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) return 0;
  may_refuse([&] {
    const Manifest manifest = Manifest::read(path);
    ++manifests_taken;
    use(manifest, numbers);
  });
  return 0;
}
