// The host's thread pool as a kernel sees it. Kernels cut their work into ranges and never start a thread:
// torch, ONNX Runtime and NumPy callers each run the ranges on the pool they already have.
#pragma once

#include <cstdint>
#include <type_traits>

namespace clipsight {

class Parallel {
 public:
  using Body = void (*)(void* context, int64_t begin, int64_t end);

  virtual ~Parallel() = default;

  /// Calls body(context, begin, end) on disjoint ranges that cover [0, count). `grain` is the smallest
  /// range worth a thread. Returns when all ranges are done. The body does not throw.
  virtual void run(int64_t count, int64_t grain, Body body, void* context) const = 0;

  /// Upper bound on the ranges that run at one time.
  virtual int threads() const = 0;

  template <class F>
  void for_range(int64_t count, int64_t grain, F&& f) const {
    if (count <= 0) return;
    using Fn = std::remove_reference_t<F>;
    run(count, grain,
        [](void* context, int64_t begin, int64_t end) { (*static_cast<Fn*>(context))(begin, end); },
        const_cast<void*>(static_cast<const void*>(&f)));
  }
};

/// Runs everything on the calling thread.
class Serial final : public Parallel {
 public:
  void run(int64_t count, int64_t, Body body, void* context) const override { body(context, 0, count); }
  int threads() const override { return 1; }
};

}  // namespace clipsight
