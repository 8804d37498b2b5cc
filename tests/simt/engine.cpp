// The scheduler of threads, barriers and warp operations. Compiled without sanitizers, which therefore do not see what
// it touches; it tells them what orders threads.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime_api.h"
#include "simt.h"
#include "stack.h"

namespace simt {
namespace {

constexpr size_t kSharedBytes = 48 << 10;
constexpr unsigned kMostThreads = 1024, kLanes = 32;

struct Block;

struct Fiber {
  enum class State { ready, at_barrier, in_warp, done };

  Stack stack;
  Block* block = nullptr;
  unsigned thread = 0;
  Dim3 index;
  State state = State::done;
  Site site{};
  WarpOp op{};
  unsigned mask = 0, source = 0, round = 0;
  uint64_t value = 0;
};

struct Warp {
  unsigned round = 0;
  char tag[2]{};  // by which ThreadSanitizer knows its meetings; two, for a fast lane may be one ahead
};

struct Block {
  Dim3 index;
  unsigned threads = 0, arrived = 0, left = 0, round = 0;
  std::vector<Fiber*> fibers;
  std::vector<Warp> warps;
  std::vector<std::pair<const void*, void*>> shared;
  void* dynamic = nullptr;
  size_t shared_bytes = 0;
  char tag[2]{}, shared_tag = 0;
};

struct Launch {
  const char* name;
  Config config;
  void (*body)(const void*);
  const void* closure;
  char begin_tag = 0, end_tag = 0;
};

long setting(const char* name, long otherwise) {
  const char* text = std::getenv(name);
  return text ? std::strtol(text, nullptr, 0) : otherwise;
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint64_t below(uint64_t n) {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return (state_ * 0x2545f4914f6cdd1du >> 16) % n;
  }

 private:
  uint64_t state_;
};

/// Everything that lives longer than a launch.
struct Engine {
  Stack host;
  Fiber* running = nullptr;
  Launch* launch = nullptr;
  std::vector<std::unique_ptr<Fiber>> all;
  std::vector<Fiber*> unused, ready, late;  // late: run where no other can
  std::vector<void*> to_free;
  bool block_ended = false, stuck = false;
  cudaError_t error = cudaSuccess;
  Counters counters{};
  Random random{static_cast<uint64_t>(setting("SIMT_SEED", 1))};
  unsigned grid_cap = 0;
  char fence_tag = 0;
} engine;

int poison() {
  constexpr int kBytes[] = {0xff, 0x7f, 0xfe};  // as floats NaN, 3.4e38 and -1.7e38
  return kBytes[engine.random.below(3)];
}

// ---- switching ------------------------------------------------------------------------------------------------------

/// Runs what allocates as the host: ThreadSanitizer would take it for a write of one thread.
template <class Work>
void as_host(Work work) {
  if (engine.running != nullptr) engine.host.tell_tsan();
  work();
  if (engine.running != nullptr) engine.running->stack.tell_tsan();
}

void live();

Fiber* pick() {
  if (engine.ready.empty()) engine.ready.swap(engine.late);
  const size_t i = engine.random.below(engine.ready.size());
  std::swap(engine.ready[i], engine.ready.back());
  Fiber* fiber = engine.ready.back();
  engine.ready.pop_back();
  return fiber;
}

/// Leaves the running fiber, which waits or is ready, for another, or for the host where none can run.
void give_way() {
  Fiber& self = *engine.running;
  if (engine.block_ended || (engine.ready.empty() && engine.late.empty())) {
    engine.stuck = !engine.block_ended;
    engine.running = nullptr;
    self.stack.leave_for(engine.host);
  } else {
    engine.running = pick();
    if (engine.running != &self) self.stack.leave_for(engine.running->stack);
  }
  engine.running = &self;
}

void make_ready(Fiber* fiber) {
  fiber->state = Fiber::State::ready;
  engine.ready.push_back(fiber);
}

// ---- blocks ---------------------------------------------------------------------------------------------------------

void open_barrier(Block& block) {
  const Fiber* first = nullptr;
  for (const Fiber* fiber : block.fibers) {
    if (fiber->state != Fiber::State::at_barrier) continue;
    if (first == nullptr) first = fiber;
    if (first->site.line == fiber->site.line && first->site.file == fiber->site.file) continue;
    fault("%s: threads of one block wait at different barriers: %s:%d and %s:%d", engine.launch->name, first->site.file,
          first->site.line, fiber->site.file, fiber->site.line);
    break;
  }
  if (block.left != 0 && first != nullptr) {
    fault("%s: %u threads of a block ended before the barrier at %s:%d", engine.launch->name, block.left,
          first->site.file, first->site.line);
  }
  block.arrived = 0;
  for (Fiber* fiber : block.fibers) {
    if (fiber->state == Fiber::State::at_barrier) make_ready(fiber);
  }
}

/// The life of a fiber: one thread after the other, of any block.
void live() {
  engine.running->stack.arrive();
  for (;;) {
    Fiber& self = *engine.running;
    acquire(&engine.launch->begin_tag);
    engine.launch->body(engine.launch->closure);
    release(&engine.launch->end_tag);
    Block& block = *self.block;
    self.state = Fiber::State::done;
    ++block.left;
    if (block.left == block.threads) {
      engine.block_ended = true;
    } else if (block.arrived != 0 && block.arrived + block.left == block.threads) {
      open_barrier(block);
    }
    give_way();
  }
}

std::unique_ptr<Block> start_block(Dim3 index, const Config& config) {
  auto block = std::make_unique<Block>();
  block->index = index;
  block->threads = config.block.x * config.block.y * config.block.z;
  block->warps.resize((block->threads + kLanes - 1) / kLanes);
  if (config.shared != 0) {
    block->dynamic = std::malloc(config.shared);
    std::memset(block->dynamic, poison(), config.shared);
    block->shared_bytes = config.shared;
    engine.to_free.push_back(block->dynamic);
  }
  release(&engine.launch->begin_tag);
  for (unsigned t = 0; t < block->threads; ++t) {
    if (engine.unused.empty()) {
      engine.all.push_back(std::make_unique<Fiber>());
      engine.unused.push_back(engine.all.back().get());
      engine.all.back()->stack.begin(&live);
    }
    std::swap(engine.unused[engine.random.below(engine.unused.size())], engine.unused.back());
    Fiber* fiber = engine.unused.back();
    engine.unused.pop_back();
    fiber->block = block.get();
    fiber->thread = t;
    fiber->index = {t % config.block.x, t / config.block.x % config.block.y, t / (config.block.x * config.block.y)};
    block->fibers.push_back(fiber);
    make_ready(fiber);
  }
  for (auto* waiting : {&engine.ready, &engine.late}) waiting->reserve(2 * engine.all.size());  // fibers must not allocate
  ++engine.counters.blocks;
  engine.counters.threads += block->threads;
  return block;
}

/// Every thread waits for another: says who and where, and gives them up.
void report_stuck(const std::vector<std::unique_ptr<Block>>& blocks) {
  std::string where;
  for (const auto& block : blocks) {
    for (Fiber* fiber : block->fibers) {
      if (fiber->state == Fiber::State::done) continue;
      if (where.size() < 600) {
        where += "\n  block " + std::to_string(block->index.x) + " thread " + std::to_string(fiber->thread) + " at " +
                 fiber->site.what + " " + fiber->site.file + ":" + std::to_string(fiber->site.line);
      }
      fiber->stack.begin(&live);
    }
    engine.unused.insert(engine.unused.end(), block->fibers.begin(), block->fibers.end());
  }
  engine.ready.clear();
  engine.late.clear();
  fault("%s: no thread can go on:%s", engine.launch->name, where.c_str());
  engine.error = cudaErrorLaunchFailure;
}

cudaError_t limits(const Config& c) {
  const auto count = [](Dim3 d) { return static_cast<uint64_t>(d.x) * d.y * d.z; };
  const bool sized = count(c.grid) != 0 && c.grid.x <= 0x7fffffffu && c.grid.y <= 65535 && c.grid.z <= 65535;
  if (!sized || count(c.block) == 0 || count(c.block) > kMostThreads) return cudaErrorInvalidConfiguration;
  return c.shared > kSharedBytes ? cudaErrorInvalidValue : cudaSuccess;
}

}  // namespace

void run(const char* kernel, const Config& asked, void (*body)(const void*), const void* closure) {
  static const long resident = std::max(1L, setting("SIMT_RESIDENT", 2));
  static const bool log = setting("SIMT_LOG", 0) != 0;
  ++engine.counters.launches;
  if (log) std::fprintf(stderr, "%s<<<%u, %u, %zu>>>\n", kernel, asked.grid.x, asked.block.x, asked.shared);
  if (const cudaError_t error = limits(asked); error != cudaSuccess) {
    engine.error = error;
    return;
  }
  Launch launch{kernel, asked, body, closure};
  Dim3& grid = launch.config.grid;
  if (engine.grid_cap != 0) grid.x = std::min(grid.x, engine.grid_cap);
  engine.launch = &launch;
  engine.host.adopt();

  std::vector<uint32_t> order(static_cast<size_t>(grid.x) * grid.y * grid.z);
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<uint32_t>(i);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[engine.random.below(i)]);
  std::vector<std::unique_ptr<Block>> blocks;
  for (;;) {
    while (!order.empty() && static_cast<long>(blocks.size()) < resident) {
      const uint32_t b = order.back();
      order.pop_back();
      blocks.push_back(start_block({b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)}, launch.config));
    }
    if (blocks.empty()) break;
    engine.block_ended = engine.stuck = false;
    engine.running = pick();
    engine.host.leave_for(engine.running->stack);
    engine.running = nullptr;
    if (engine.stuck) {
      report_stuck(blocks);
      break;
    }
    for (auto block = blocks.begin(); block != blocks.end();) {
      if ((*block)->left != (*block)->threads) {
        ++block;
        continue;
      }
      engine.unused.insert(engine.unused.end(), (*block)->fibers.begin(), (*block)->fibers.end());
      block = blocks.erase(block);
    }
  }
  acquire(&launch.end_tag);
  for (void* memory : engine.to_free) std::free(memory);
  engine.to_free.clear();
  engine.launch = nullptr;
}

// ---- what a kernel calls --------------------------------------------------------------------------------------------

Dim3 thread_index() { return engine.running->index; }
Dim3 block_index() { return engine.running->block->index; }
Dim3 block_size() { return engine.launch->config.block; }
Dim3 grid_size() { return engine.launch->config.grid; }
unsigned lane() { return engine.running->thread % kLanes; }
void* dynamic_shared() { return engine.running->block->dynamic; }

void* static_shared(const void* key, size_t size, size_t alignment) {
  Block& block = *engine.running->block;
  for (const auto& [known, memory] : block.shared) {
    if (known != key) continue;
    acquire(&block.shared_tag);
    return memory;
  }
  void* memory = nullptr;
  as_host([&] {
    if (posix_memalign(&memory, std::max(alignment, sizeof(void*)), size) != 0) std::abort();
    std::memset(memory, poison(), size);
    block.shared.emplace_back(key, memory);
    engine.to_free.push_back(memory);
    release(&block.shared_tag);
  });
  acquire(&block.shared_tag);
  block.shared_bytes += size;
  if (block.shared_bytes > kSharedBytes) {
    fault("%s: %zu bytes of shared memory", engine.launch->name, block.shared_bytes);
  }
  return memory;
}

void may_give_way() {
  if (engine.random.below(8) != 0) return;
  engine.ready.push_back(engine.running);
  give_way();
}

void fence() {
  if (engine.random.below(2) != 0) {  // what was written may stay on its way until all other blocks have ended
    engine.late.push_back(engine.running);
    give_way();
  }
  release(&engine.fence_tag);
  acquire(&engine.fence_tag);
}

void barrier(Site site) {
  Fiber& self = *engine.running;
  Block& block = *self.block;
  char* tag = &block.tag[block.round % 2];
  release(tag);
  self.site = site;
  self.state = Fiber::State::at_barrier;
  ++block.arrived;
  if (block.arrived + block.left == block.threads) {
    ++block.round;
    open_barrier(block);
  }
  give_way();
  acquire(tag);
}

namespace {

/// All lanes are there: each gets what it asked for.
void meet(Block& block, Fiber& last, unsigned lanes) {
  Fiber** warp = &block.fibers[last.thread / kLanes * kLanes];
  uint64_t votes = 0, values[kLanes];
  for (unsigned i = 0; i < lanes; ++i) {
    if ((last.mask >> i & 1) == 0) continue;
    values[i] = warp[i]->value;
    votes |= (warp[i]->value & 1) << i;
    if (warp[i]->site.line != last.site.line) {
      fault("%s: lanes meet at different operations: %s:%d and :%d", engine.launch->name, last.site.file,
            last.site.line, warp[i]->site.line);
    }
  }
  for (unsigned i = 0; i < lanes; ++i) {
    if ((last.mask >> i & 1) == 0) continue;
    Fiber& lane = *warp[i];
    const bool reads_absent = lane.source >= lanes || (last.mask >> lane.source & 1) == 0;
    if (last.op == WarpOp::vote) lane.value = votes;
    if (last.op == WarpOp::shuffle) {
      if (reads_absent) {
        fault("%s: a shuffle at %s:%d reads lane %u, which takes no part", engine.launch->name, last.site.file,
              last.site.line, lane.source);
      } else {
        lane.value = values[lane.source];
      }
    }
    make_ready(&lane);
  }
}

}  // namespace

uint64_t warp(Site site, WarpOp op, unsigned mask, uint64_t value, unsigned source) {
  Fiber& self = *engine.running;
  Block& block = *self.block;
  Warp& warp = block.warps[self.thread / kLanes];
  const unsigned first = self.thread / kLanes * kLanes, lanes = std::min(kLanes, block.threads - first);
  if (lanes < kLanes && mask >> lanes != 0) {
    fault("%s: the mask at %s:%d names lanes that a warp of %u does not have", engine.launch->name, site.file,
          site.line, lanes);
    mask &= (1u << lanes) - 1;
  }
  if ((mask >> lane() & 1) == 0) {
    fault("%s: lane %u is not in the mask at %s:%d", engine.launch->name, lane(), site.file, site.line);
  }
  self.site = site, self.op = op, self.mask = mask, self.value = value, self.source = source;
  self.state = Fiber::State::in_warp;
  char* tag = &warp.tag[warp.round % 2];
  if (op == WarpOp::sync) release(tag);  // shuffles and votes order no memory
  bool all = true;
  for (unsigned i = 0; i < lanes && all; ++i) {
    const Fiber& other = *block.fibers[first + i];
    const bool here = other.state == Fiber::State::in_warp && other.mask == mask && other.op == op;
    all = here || (mask >> i & 1) == 0;
  }
  if (all) {
    ++warp.round;
    meet(block, self, lanes);
  }
  give_way();
  if (op == WarpOp::sync) acquire(tag);
  return self.value;
}

const Counters& counters() { return engine.counters; }
void set_seed(uint64_t seed) { engine.random = Random(seed); }
void set_grid_cap(unsigned most) { engine.grid_cap = most; }

void fault(const char* format, ...) {
  if (++engine.counters.faults > 50) return;
  va_list arguments;
  va_start(arguments, format);
  std::fputs("simt: ", stderr);
  std::vfprintf(stderr, format, arguments);
  std::fputs("\n", stderr);
  va_end(arguments);
}

}  // namespace simt

cudaError_t cudaGetLastError() { return std::exchange(simt::engine.error, cudaSuccess); }
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
  }
  return "unknown";
}
