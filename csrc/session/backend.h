// What a runtime gives to a Session: one object per opened file, registered by the kind of file that it runs.
//
// The ONNX Runtime back end is compiled into libclipsight.so. The torch back end is compiled in the user's program,
// because torch's C++ ABI changes with its releases, and registers itself there.
#pragma once

#include <clipsight/session.h>

#include <memory>
#include <string>
#include <vector>

namespace clipsight {

class CLIPSIGHT_API Backend {
 public:
  virtual ~Backend() = default;

  /// The session has checked every view against the manifest: count, type, shape, device, no null pointer. Both must
  /// be safe to call from several threads at once, and throw Error.
  virtual std::vector<Tensor> run(const TensorView* inputs, size_t input_count) = 0;
  /// Outputs have the shapes of the caller: where the file gives another shape, an Error. No allocation of ours but in
  /// a thread's first run.
  virtual void run(const TensorView* inputs, size_t input_count, const TensorView* outputs, size_t output_count) = 0;
};

/// Opens a file of the back end's kind; throws Error.
using BackendFactory = std::unique_ptr<Backend> (*)(const std::string& path, const Manifest& manifest,
                                                    const Options& options);

/// `kind` as in the manifest: "onnx", "torchscript", "aot". A static object of the back end's source file calls it; a
/// later registration replaces an earlier one. Thread-safe. Returns true, for use as a static's initialiser.
CLIPSIGHT_API bool register_backend(const char* kind, BackendFactory factory);

/// Options::device as a Device; throws Error where it is neither "cpu", "cuda" nor "cuda:<number>".
CLIPSIGHT_API Device parse_device(const std::string& device);

}  // namespace clipsight
