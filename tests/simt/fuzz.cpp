// Random calls of every CUDA kernel beside the CPU's: fuzz SEED CASES [OP]. The exit status is 1 where one differs, or
// where the emulator has found what CUDA leaves undefined.
#include "fuzz.h"

#include <cuda_bf16.h>

#include <limits>
#include <vector>

#include "core/simd_level.h"
#include "ops/back_step_cuda.h"
#include "ops/channel_reduce_cuda.h"
#include "ops/convert.h"
#include "ops/convert_cuda.h"
#include "ops/saliency_tube_cuda.h"
#include "ops/selective_relevance_cuda.h"
#include "ops/sobel_temporal_cuda.h"
#include "ops/spline_upsample_cuda.h"
#include "simt.h"

using namespace clipsight;
using fuzz::Buffer;
using fuzz::largest;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNaN = std::numeric_limits<float>::quiet_NaN();
fuzz::Random draw;
fuzz::Case now;
const Serial serial;
const SimdLevel level = best_simd_level();

/// Values of one of the types that networks store, and what they are exactly.
struct Stored {
  DType dtype;
  Buffer<float> single;
  Buffer<uint16_t> half;
  std::vector<double> exact;

  Stored(DType dtype, int64_t count, int64_t offset = 0)
      : dtype(dtype), single(dtype == DType::float32 ? count : 0, offset),
        half(dtype == DType::float32 ? 0 : count, offset), exact(static_cast<size_t>(count)) {}
  void set(int64_t i, float x) {
    if (dtype == DType::float32) single[i] = x;
    if (dtype == DType::float16) half[i] = __float2half_rn(x).bits, x = __half2float({half[i]});
    if (dtype == DType::bfloat16) half[i] = __float2bfloat16(x).bits, x = __bfloat162float({half[i]});
    exact[static_cast<size_t>(i)] = x;
  }
  const void* data() { return dtype == DType::float32 ? static_cast<const void*>(single.data()) : half.data(); }
};

DType stored_type() { return draw.of({DType::float32, DType::float16, DType::bfloat16}); }

void channel_reduce() {
  const DType dtype = stored_type();
  const bool many = draw.one_in(6);  // enough for tiles of several columns
  const int64_t n = many ? 140 : draw.size({1, 1, 2, 3}), m = draw.size({1, 1, 2, 3, 4, 5, 9});
  const int64_t c = many ? draw.size({1, 3, 31}) : draw.size({1, 2, 3, 8, 31, 37, 64, 130, 512, 2048});
  const int64_t s = many ? draw.size({1, 7, 9, 33}) : draw.size({1, 2, 7, 8, 9, 31, 33, 49, 98, 196});
  const bool last = draw.one_in(2), own_weights = draw.one_in(2), bad = draw.one_in(6);
  const int64_t padding = draw.one_in(3) ? draw.size({1, 4, 8}) : 0;
  const int64_t offset = draw.size({0, 0, 1, 2}), weight_offset = draw.size({0, 0, 1});
  const int64_t rows = last ? s : c, row = (last ? c : s) + padding, stride_n = rows * row;
  const float threshold = draw.of({-kInfinity, 0.0f, 0.25f, kInfinity});
  now.describe("channel_reduce %s n=%ld c=%ld s=%ld m=%ld %s row=%ld own weights %d offset %ld,%ld threshold %g bad %d",
               name_of(dtype), n, c, s, m, last ? "channels last" : "contiguous", row, own_weights, offset,
               weight_offset, static_cast<double>(threshold), bad);
  Stored features(dtype, n * stride_n - padding, offset);
  for (int64_t i = 0; i < n * stride_n - padding; ++i) {
    features.set(i, bad && draw.one_in(50) ? draw.of({kNaN, kInfinity, -kInfinity}) : draw.normal());
  }
  Buffer<float> weight((own_weights ? n : 1) * m * c, weight_offset), got(n * m * s), cpu(n * m * s);
  for (int64_t i = 0; i < weight.size(); ++i) weight[i] = bad && draw.one_in(100) ? kNaN : draw.normal();
  const int64_t stride_c = last ? 1 : row, stride_s = last ? row : 1, weight_stride = own_weights ? m * c : 0;
  ChannelReduceArgs args{features.data(), dtype, n, c, s, stride_n, stride_c, stride_s, weight.data(), weight_stride,
                         m, threshold, got.data()};
  now.on_device(channel_reduce_cuda_workspace(args), [&](void* w) { channel_reduce_cuda(args, w, nullptr); });
  args.cam = cpu.data();
  channel_reduce_cpu(args, serial, level);
  for (int64_t i = 0; i < n * m * s; ++i) {
    const int64_t position = i % s, map = i / s % m, sample = i / (s * m);
    double sum = 0, magnitude = 0;
    for (int64_t k = 0; k < c; ++k) {
      const auto at = static_cast<size_t>(sample * stride_n + k * stride_c + position * stride_s);
      const double product = gate(weight[sample * weight_stride + map * c + k], threshold) * features.exact[at];
      sum += product;
      magnitude += std::abs(product);
    }
    const auto near = [&](float x) {
      if (std::isfinite(sum)) return std::abs(x - sum) <= 2e-6 * magnitude + 1e-30;
      return std::isnan(sum) ? std::isnan(x) : x == sum;
    };
    if (!near(got[i])) now.fail("cam", i, got[i], sum);
    if (!near(cpu[i])) now.fail("the CPU's own cam", i, cpu[i], sum);
  }
  now.compared += n * m * s;
}

void back_step() {
  const DType dtype = stored_type();
  const int64_t groups = draw.size({1, 1, 2, 5, 32}), rows = draw.size({1, 2, 7, 33});
  const int64_t width = draw.size({1, 2, 31, 32, 33, 70, 260, 1028});
  const int64_t n = draw.size({1, 2, 3}), m = draw.size({1, 2, 40}), outs = groups * rows;
  const float theta = draw.of({0.0f, 0.55f, 0.65f, 1.0f});
  const int share = draw.of({1, 2, 50});
  const bool bad = draw.one_in(4);
  now.describe("back_step %s n=%ld m=%ld groups=%ld rows=%ld width=%ld theta %g one in %d bad %d", name_of(dtype), n, m,
               groups, rows, width, static_cast<double>(theta), share, bad);
  Buffer<float> pooled(n * groups * width);
  for (int64_t i = 0; i < pooled.size(); ++i) {
    pooled[i] = bad && draw.one_in(30) ? draw.of({kNaN, kInfinity}) : draw.normal();
  }
  Stored kernel(dtype, outs * width);
  for (int64_t i = 0; i < outs * width; ++i) {
    kernel.set(i, bad && draw.one_in(60) ? kNaN : draw.one_in(5) ? 0.5f : draw.normal());
  }
  Buffer<uint8_t> selected(n * m * outs), edges(n * m * outs * width), edges_cpu(n * m * outs * width);
  for (int64_t i = 0; i < selected.size(); ++i) selected[i] = draw.one_in(share);
  Buffer<float> count(n * m * groups * width), count_cpu(n * m * groups * width);
  BackStepArgs args{pooled.data(), kernel.data(), dtype, selected.data(), n,           m,
                    groups,        outs,          width, theta,           edges.data(), count.data()};
  now.on_device(back_step_cuda_workspace(args), [&](void* w) { back_step_cuda(args, w, nullptr); });
  args.edges = edges_cpu.data();
  args.multiplicity = count_cpu.data();
  back_step_cpu(args, serial, level);
  now.compare("edge", edges, edges_cpu, 0);
  now.compare("multiplicity", count, count_cpu, 0);
}

Shape3 grid_size() {
  return {draw.size({1, 1, 2, 3, 4, 5, 8, 9, 17}), draw.size({1, 2, 3, 5, 7, 16, 20}),
          draw.size({1, 2, 4, 5, 7, 16, 33})};
}
Shape3 clip_size() {
  return {draw.size({1, 1, 2, 3, 7, 8, 9, 16}), draw.size({1, 2, 3, 7, 16, 17, 33, 40}),
          draw.size({1, 3, 4, 5, 12, 28, 33, 64, 260, 300})};
}
/// Mostly larger; one time in four as large, or a little smaller along some axes.
Shape3 resampled(Shape3 in) {
  if (!draw.one_in(4)) return clip_size();
  for (int64_t* n : {&in.t, &in.h, &in.w}) {
    if (!draw.one_in(3)) *n = std::max<int64_t>(1, *n - draw.below(*n / 2 + 1));
  }
  return in;
}

/// Some maps are constant, empty, positive, very small or very large, and some have one value that is no number.
void fill_maps(Buffer<float>& maps) {
  const auto kind = draw.of({"constant", "zeros", "positive", "1e-30", "1e30", "normal", "normal", "normal"});
  now.name += std::string("; ") + kind;
  const float size = kind[0] == '1' ? (kind[2] == '-' ? 1e-30f : 1e30f) : 1.0f;
  for (int64_t i = 0; i < maps.size(); ++i) {
    const float x = size * (draw.normal() + 0.3f);
    maps[i] = kind[0] == 'c' ? 3.5f : kind[0] == 'z' ? 0.0f : kind[0] == 'p' ? std::abs(x) : x;
  }
  if (draw.one_in(4)) maps[draw.below(maps.size())] = draw.of({kNaN, kInfinity, -kInfinity});
}

void spline_upsample() {
  const Shape3 in = grid_size(), out = resampled(in);
  const int64_t v = draw.size({1, 2, 3}), offset = draw.size({0, 0, 1});
  const int order = draw.of({1, 3});
  now.describe("spline_upsample v=%ld %ldx%ldx%ld -> %ldx%ldx%ld order %d offset %ld", v, in.t, in.h, in.w, out.t,
               out.h, out.w, order, offset);
  Buffer<float> volume(v * in.voxels()), got(v * out.voxels(), offset), want(v * out.voxels(), offset);
  fill_maps(volume);
  SplineUpsampleArgs args{volume.data(), v, in, out, order, got.data()};
  now.on_device(spline_upsample_cuda_workspace(args), [&](void* w) { spline_upsample_cuda(args, w, nullptr); });
  args.output = want.data();
  spline_upsample_cpu(args, serial, level);
  now.compare("value", got, want, 1e-5 * largest(volume));
}

/// inf - inf: where the CPU takes the difference in time first, it may keep an infinity that is NaN here.
void forgive_infinities(Buffer<float>& got, Buffer<float>& want) {
  for (int64_t i = 0; i < got.size(); ++i) {
    if (std::isnan(got[i]) && std::isinf(want[i])) want[i] = kNaN;
  }
}

void sobel_temporal() {
  const Shape3 size = clip_size();
  const int64_t v = draw.size({1, 2, 3});
  const Padding padding = draw.of({Padding::replicate, Padding::zeros});
  now.describe("sobel_temporal v=%ld %ldx%ldx%ld padding %d", v, size.t, size.h, size.w, static_cast<int>(padding));
  Buffer<float> volume(v * size.voxels()), got(v * size.voxels()), want(v * size.voxels());
  fill_maps(volume);
  SobelTemporalArgs args{volume.data(), v, size, padding, got.data()};
  now.on_device(sobel_temporal_cuda_workspace(args), [&](void* w) { sobel_temporal_cuda(args, w, nullptr); });
  args.output = want.data();
  sobel_temporal_cpu(args, serial, level);
  forgive_infinities(got, want);
  now.compare("derivative", got, want, 1.3e-4 * largest(volume));
}

/// n sigma is never 0: then rounding decides.
SelectiveRule rule_of(Buffer<float>& n_sigma) {
  const int64_t volumes = n_sigma.size();
  SelectiveRule rule{draw.of({0.25f, 0.5f, 1.5f, 2.0f}), draw.of({Padding::replicate, Padding::zeros}),
                     draw.of({Sign::absolute, Sign::rising, Sign::falling}),
                     draw.of({SigmaOf::signed_, SigmaOf::absolute}),
                     noise_floor_of(draw.of({DType::float32, DType::float32, DType::float16})), nullptr, 0};
  if (draw.one_in(3)) {
    for (int64_t i = 0; i < volumes; ++i) n_sigma[i] = draw.of({0.25f, 1.0f, 2.5f, -1.0f, kNaN});
    rule.n_sigma_of = n_sigma.data();
    rule.volumes_per_value = volumes % 2 == 0 && draw.one_in(2) ? 2 : 1;
  }
  char text[120];
  std::snprintf(text, sizeof text, " n=%g padding %d sign %d sigma of %d floor %g as data %d",
                static_cast<double>(rule.n_sigma), static_cast<int>(rule.padding), static_cast<int>(rule.sign),
                static_cast<int>(rule.sigma_of), static_cast<double>(rule.noise_floor), rule.n_sigma_of != nullptr);
  now.name += text;
  return rule;
}

void selective_relevance() {
  const Shape3 size = clip_size();
  const int64_t v = draw.size({1, 2, 3, 4});
  const bool prescale = draw.one_in(2);
  now.describe("selective_relevance v=%ld %ldx%ldx%ld prescale %d", v, size.t, size.h, size.w, prescale);
  Buffer<float> n_sigma(v), volume(v * size.voxels()), got(v * size.voxels()), want(v * size.voxels());
  Buffer<float> share(v), share_cpu(v);
  const SelectiveRule rule = rule_of(n_sigma);
  fill_maps(volume);
  SelectiveRelevanceArgs args{volume.data(), v, size, rule, prescale, got.data(), share.data()};
  now.on_device(selective_relevance_cuda_workspace(args), [&](void* w) { selective_relevance_cuda(args, w, nullptr); });
  args.motion = want.data();
  args.motion_share = share_cpu.data();
  selective_relevance_cpu(args, serial, level);
  // A voxel at the threshold may fall on either side.
  now.compare("motion", got, want, 1e-6 * largest(volume), got.size() / 1000 + 2);
  now.compare("share", share, share_cpu, 2e-3 + 2.0 / static_cast<double>(size.voxels()));
}

template <class T>
void tube_of(DType dtype) {
  const Shape3 in = grid_size(), out = resampled(in);
  const int64_t v = draw.size({1, 2, 3, 4}), voxels = v * out.voxels();
  const int order = draw.of({1, 3});
  const bool selective = !draw.one_in(3), relu = draw.one_in(2);
  const int64_t offset = draw.size({0, 0, 0, 1}), motion_offset = draw.size({0, 0, 0, 1});
  const Normalize normalize = dtype != DType::uint8 && draw.one_in(3) ? Normalize::none
                                                                      : draw.of({Normalize::clip, Normalize::frame});
  now.describe("tube %s v=%ld %ldx%ldx%ld -> %ldx%ldx%ld order %d relu %d normalize %d offset %ld,%ld selective %d",
               name_of(dtype), v, in.t, in.h, in.w, out.t, out.h, out.w, order, relu, static_cast<int>(normalize),
               offset, motion_offset, selective);
  Buffer<float> n_sigma(v), cam(v * in.voxels()), share(v), share_cpu(v);
  const SelectiveRule rule = rule_of(n_sigma);
  fill_maps(cam);
  Buffer<T> tube(voxels, offset), tube_cpu(voxels, offset);
  Buffer<T> motion(voxels, motion_offset), motion_cpu(voxels, motion_offset);
  SaliencyTubeArgs args{cam.data(), v, in, out, order, relu, normalize, dtype, tube.data()};
  SelectiveTubeArgs both{args, rule, motion.data(), share.data()};
  if (selective) {
    now.on_device(selective_tube_cuda_workspace(both), [&](void* w) { selective_tube_cuda(both, w, nullptr); });
    both.tube.tube = tube_cpu.data();
    both.motion = motion_cpu.data();
    both.motion_share = share_cpu.data();
    selective_tube_cpu(both, serial, level);
  } else {
    now.on_device(saliency_tube_cuda_workspace(args), [&](void* w) { saliency_tube_cuda(args, w, nullptr); });
    args.tube = tube_cpu.data();
    saliency_tube_cpu(args, serial, level);
  }
  const double scale = normalize != Normalize::none ? 1 : largest(cam);
  const bool overflows = dtype == DType::float16 && scale > 65504;  // even the sign of what is nearly 0 is rounding
  // A frame that spans little of its map magnifies the rounding of its values.
  const double bound = dtype == DType::uint8 ? 1
                                             : (normalize == Normalize::frame ? 2e-3 : 2e-5) * scale +
                                                   (dtype == DType::float16 ? 1.1e-3 * scale : 0);
  const int64_t exceptions = overflows ? voxels : normalize == Normalize::frame ? voxels / 50 + 2 : 0;
  now.compare("tube", tube, tube_cpu, bound, exceptions);
  if (!selective) return;
  now.compare("motion", motion, motion_cpu, bound, exceptions + voxels / 1000 + 2);
  // Where a map is sampled in so few places that all are nearly 0, the share is one of roundings.
  if (out.voxels() >= 8) now.compare("share", share, share_cpu, 2e-3 + 2.0 / static_cast<double>(out.voxels()));
}

void tube() {
  switch (draw.below(3)) {
    case 0: return tube_of<float>(DType::float32);
    case 1: return tube_of<uint16_t>(DType::float16);
    default: return tube_of<uint8_t>(DType::uint8);
  }
}

void convert() {
  const int64_t count = draw.size({0, 1, 255, 256, 257, 1000});
  now.describe("convert %ld", count);
  Buffer<float> single(count), back(count), back_cpu(count);
  Buffer<uint16_t> half(count), half_cpu(count);
  for (int64_t i = 0; i < count; ++i) {
    single[i] = draw.one_in(9) ? draw.of({kNaN, kInfinity, 65519.9f, 65520.0f, 1e-8f}) : draw.normal();
  }
  to_float16_cuda(single.data(), count, half.data(), nullptr);
  to_float16_cpu(single.data(), count, half_cpu.data(), serial, level);
  to_float32_cuda(half_cpu.data(), count, back.data(), nullptr);
  to_float32_cpu(half_cpu.data(), count, back_cpu.data(), serial, level);
  now.compare("half", half, half_cpu, 0);
  now.compare("float", back, back_cpu, 0);
}

constexpr struct {
  const char* name;
  void (*run)();
} kOps[] = {{"channel_reduce", channel_reduce}, {"back_step", back_step},
            {"spline_upsample", spline_upsample}, {"sobel_temporal", sobel_temporal},
            {"selective_relevance", selective_relevance}, {"tube", tube}, {"convert", convert}};

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) return std::fprintf(stderr, "usage: %s SEED CASES [OP]\n", arguments[0]), 2;
  const uint64_t seed = std::strtoull(arguments[1], nullptr, 0);
  const int64_t cases = std::atoll(arguments[2]);
  const std::string only = count > 3 ? arguments[3] : "";
  for (int64_t i = 0; i < cases; ++i) {
    draw.seed(seed * 1000003 + static_cast<uint64_t>(i));
    simt::set_seed(draw.next());
    simt::set_grid_cap(draw.of({0u, 0u, 1u, 3u}));
    for (const auto& op : kOps) {
      if (only.empty() || only == op.name) op.run();
    }
  }
  const auto& c = simt::counters();
  std::printf("seed %llu, %lld cases of %s: %ld values, %ld wrong, %ld faults; %ld launches, %ld blocks, %ld threads\n",
              static_cast<unsigned long long>(seed), static_cast<long long>(cases),
              only.empty() ? "every op" : only.c_str(), now.compared, now.wrong, c.faults, c.launches, c.blocks,
              c.threads);
  return now.wrong != 0 || c.faults != 0;
}
