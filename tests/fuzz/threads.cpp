// ThreadSanitizer: a kernel in many threads (shared plans, workspaces of their own), and the files of a session.
#include <clipsight/session.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "core/simd_level.h"
#include "ops/checks.h"
#include "ops/saliency_tube.h"
#include "ops/selective_relevance.h"

namespace {

using namespace clipsight;

constexpr int kThreads = 8, kRounds = 100;

/// Two tubes with their motion, of the given size; the same numbers for the same arguments.
std::vector<float> tubes(int seed, int64_t size) {
  const size_t voxels = static_cast<size_t>(2 * size * size * size);
  std::vector<float> cam(2 * 4 * 7 * 7), out(2 * voxels + 2);
  for (size_t i = 0; i < cam.size(); ++i) {
    cam[i] = static_cast<float>((i * 7919 + static_cast<size_t>(seed)) % 101) / 50 - 1;
  }
  const SaliencyTubeArgs tube{cam.data(),
                              2,
                              {4, 7, 7},
                              {size, size, size},
                              3,
                              false,
                              check_normalize("tubes", "clip"),
                              DType::float32,
                              out.data()};
  const SelectiveTubeArgs both{tube, check_rule("tubes", 2.0, "replicate", "abs", "signed"), out.data() + voxels,
                               out.data() + 2 * voxels};
  selective_tube_cpu(both, Serial(), best_simd_level());
  return out;
}

}  // namespace

int main(int count, char** arguments) {
  const std::vector<float> expected = tubes(1, 9);
  std::atomic<int> differences{0};
  std::vector<std::thread> threads;
  for (int k = 0; k < kThreads; ++k) {
    threads.emplace_back([&, k] {
      for (int round = 0; round < kRounds; ++round) {
        if (tubes(1, 9) != expected) ++differences;
        tubes(k, 5 + (round + k) % 12);  // more sizes than the plans that are kept
        if (round % 10 || count < 2) continue;
        try {
          Manifest::read(arguments[1]).map_region(100, 100);
          Session::open(arguments[1]);
        } catch (const Error&) {  // without a runtime it ends there
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::printf("threads: %d of %d results differ\n", differences.load(), kThreads * kRounds);
  return differences != 0;
}
