// late: small work that a pool kept waiting once stays on its thread for a while; large work goes on to the pool. Prints
// how often the pool was asked: of 100 small ranges, of 10 large ones, and of 10000 small ones after those.
#include <clipsight/kernels.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <thread>

using namespace clipsight;

/// Its second thread comes late, every time.
class Late final : public Parallel {
 public:
  void run(int64_t count, int64_t, Body body, void* context) const override {
    ++asked;
    std::thread second([=] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      body(context, count / 2, count);
    });
    body(context, 0, count / 2);
    second.join();
  }
  int threads() const override { return 2; }
  mutable int asked = 0;
};

int main() {
  const Late pool;
  std::atomic<int64_t> done{0};
  const auto times_asked = [&](int times, int64_t count) {
    const int before = pool.asked;
    for (int i = 0; i < times; ++i) {
      pool.for_range(count, 1, [&](int64_t begin, int64_t end) { for (; begin < end; ++begin) ++done; });
    }
    return pool.asked - before;
  };
  const int few = times_asked(100, 16), large = times_asked(10, 4096), many = times_asked(10000, 16);
  std::printf("%d %d %d\n", few, large, many);
  return done == 100 * 16 + 10 * 4096 + 10000 * 16 ? 0 : 1;
}
