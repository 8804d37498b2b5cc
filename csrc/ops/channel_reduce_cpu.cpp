#include <algorithm>
#include <cmath>

#include "core/workspace.h"
#include "ops/channel_reduce.h"
#include "ops/levels/kernels.h"

namespace clipsight {
namespace {

constexpr int64_t kMapTile = 4;          // maps that share one reading of the features
constexpr int64_t kPositionTile = 2048;  // bounds the float64 sums of a unit
constexpr int64_t kWork = 1 << 16;       // multiply-adds worth a unit of their own

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

// Work is cut into units by shape alone, never by thread count, so a result does not depend on the threads. Where samples
// and maps are few, the channels are cut too and the ranges' sums added in order.
void channel_reduce_cpu(const ChannelReduceArgs& args, const Parallel& parallel, SimdLevel level) {
  const int64_t n_count = args.batch, c_count = args.channels, s_count = args.spatial, m_count = args.maps;
  if (n_count * m_count * s_count == 0) return;
  const Kernels& k = kernels(level);

  Workspace workspace;
  const float* weight = args.weight;
  if (args.threshold > -INFINITY) {
    const int64_t count = (args.weight_stride_n ? n_count : 1) * m_count * c_count;
    float* gated = workspace.array<float>(count);
    std::transform(weight, weight + count, gated, [&](float w) { return gate(w, args.threshold); });
    weight = gated;
  }

  const bool channels_last = args.stride_s != 1;
  const int64_t map_tiles = divide_up(m_count, kMapTile);
  // Channels last reads whole positions; else whole rows of positions, as long as the sums stay small.
  const int64_t tile = channels_last ? std::clamp<int64_t>(kWork / c_count, 1, 256) : std::min(s_count, kPositionTile);
  const int64_t tiles = divide_up(s_count, tile);
  const int64_t whole = n_count * map_tiles * tiles;
  const int64_t ranges = channels_last || whole >= 16 ? 1 : std::clamp<int64_t>(c_count * tile / kWork, 1, 16);
  const int64_t range = divide_up(divide_up(c_count, ranges), 32) * 32;

  const auto position_count = [&](int64_t t) { return std::min(tile, s_count - t * tile); };
  const int64_t slot = kMapTile * tile;
  double* partial = workspace.array<double>(ranges > 1 ? whole * ranges * slot : 0);
  const auto finish = [&](int64_t n, int64_t m0, int64_t t, const double* sums, int64_t parts) {
    const int64_t maps = std::min(kMapTile, m_count - m0), positions = position_count(t);
    for (int64_t m = 0; m < maps; ++m) {
      float* cam = args.cam + (n * m_count + m0 + m) * s_count + t * tile;
      for (int64_t s = 0; s < positions; ++s) {
        double sum = 0;
        for (int64_t part = 0; part < parts; ++part) sum += sums[part * slot + m * positions + s];
        cam[s] = static_cast<float>(sum);
      }
    }
  };

  const int64_t unit_work = c_count / ranges * tile * std::min(kMapTile, m_count);
  parallel.for_range(whole * ranges, 1 + kWork / (2 * std::max<int64_t>(unit_work, 1)), [&](int64_t begin, int64_t end) {
    Workspace scratch;
    double* own = scratch.array<double>(ranges > 1 ? 0 : slot);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t part = unit % ranges, t = unit / ranges % tiles, m0 = unit / ranges / tiles % map_tiles * kMapTile;
      const int64_t n = unit / ranges / tiles / map_tiles;
      const int64_t item = args.features_dtype == DType::float32 ? 4 : 2;
      ReduceTask task{};
      task.features = static_cast<const char*>(args.features) + n * args.stride_n * item;
      task.stride_c = args.stride_c, task.stride_s = args.stride_s;
      task.c_begin = std::min(part * range, c_count), task.c_end = std::min(task.c_begin + range, c_count);
      task.begin = t * tile, task.end = task.begin + position_count(t);
      task.weight = weight + n * args.weight_stride_n + m0 * c_count;
      task.weight_stride = c_count;
      task.count = static_cast<int>(std::min(kMapTile, m_count - m0));
      task.sums = ranges > 1 ? &partial[unit * slot] : own;
      k.reduce(args.features_dtype, task);
      if (ranges == 1) finish(n, m0, t, own, 1);
    }
  });
  for (int64_t i = 0; ranges > 1 && i < whole; ++i) {
    finish(i / tiles / map_tiles, i / tiles % map_tiles * kMapTile, i % tiles, &partial[i * ranges * slot], ranges);
  }
}

const Kernels& kernels(SimdLevel level) {
#ifdef CLIPSIGHT_X86_LEVELS
  if (level == SimdLevel::avx512) return kernels_avx512;
  if (level == SimdLevel::avx2) return kernels_avx2;
#endif
  (void)level;
  return kernels_baseline;
}

}  // namespace clipsight
