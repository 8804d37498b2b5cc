// The host's thread pool as a kernel sees it. Kernels cut their work into ranges and never start a thread:
// torch, ONNX Runtime and NumPy callers each run the ranges on the pool they already have.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <thread>
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

  /// The same with a function of (begin, end). Small work stays on the calling thread for a while after the pool kept it
  /// waiting once: where other programs use the cores, its threads come milliseconds late.
  template <class F>
  void for_range(int64_t count, int64_t grain, F&& f) const {
    if (count <= 0) return;
    grain = std::max<int64_t>(grain, 1);
    if (count <= grain || threads() == 1) return f(0, count);
    const bool small = count / grain < kSmall;
    if (small && alone() > 0) {
      --alone();
      return f(0, count);
    }
    using Fn = std::remove_reference_t<F>;
    struct Timed {
      Fn* f;
      std::thread::id caller;
      Clock::duration own;
    } timed{&f, std::this_thread::get_id(), Clock::duration::zero()};
    const auto started = Clock::now();
    run(count, grain,
        [](void* context, int64_t begin, int64_t end) {
          Timed& timed = *static_cast<Timed*>(context);
          if (std::this_thread::get_id() != timed.caller) return (*timed.f)(begin, end);
          const auto started = Clock::now();
          (*timed.f)(begin, end);
          timed.own += Clock::now() - started;
        },
        &timed);
    if (small && Clock::now() - started - timed.own > kLate) alone() = kCallsAlone;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kLate{1};  // longer than it takes to wake a thread
  static constexpr int64_t kSmall = 256;                // grains, about half a millisecond
  static constexpr int64_t kCallsAlone = 4096;          // about a thousand ops, of which one may be late

  static int64_t& alone() {
    static thread_local int64_t calls = 0;
    return calls;
  }
};

/// Runs everything on the calling thread.
class Serial final : public Parallel {
 public:
  void run(int64_t count, int64_t, Body body, void* context) const override { body(context, 0, count); }
  int threads() const override { return 1; }
};

}  // namespace clipsight
