// kernels IN OUT THREADS: reads features [2, 24, 3, 5, 4] and weight [2, 3, 24] as float32, writes cam, tube, motion
// and motion_share of selective_tube at 9x31x27, then spline_upsample, sobel_temporal and selective_relevance of it, and
// edges and multiplicity of back_step from every other one of the rows of weight, with the first features as pooled.
#include <clipsight/kernels.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <limits>
#include <string>
#include <thread>
#include <vector>

using namespace clipsight;

/// A program's own threads: one per range.
class OwnThreads final : public Parallel {
 public:
  explicit OwnThreads(int count) : count_(count) {}
  void run(int64_t count, int64_t grain, Body body, void* context) const override {
    const int64_t step = std::max(grain, (count + count_ - 1) / count_);
    std::vector<std::thread> threads;
    for (int64_t begin = 0; begin < count; begin += step) {
      threads.emplace_back(body, context, begin, std::min(begin + step, count));
    }
    for (std::thread& thread : threads) thread.join();
  }
  int threads() const override { return count_; }

 private:
  int count_;
};

int main(int, char** arguments) {
  constexpr int64_t kBatch = 2, kChannels = 24, kMaps = 3, kVolumes = kBatch * kMaps;
  const Shape3 in{3, 5, 4}, out{9, 31, 27};
  std::vector<float> features(kBatch * kChannels * in.voxels()), weight(kVolumes * kChannels);
  std::ifstream file(arguments[1], std::ios::binary);
  file.read(reinterpret_cast<char*>(features.data()), features.size() * sizeof(float));
  file.read(reinterpret_cast<char*>(weight.data()), weight.size() * sizeof(float));
  if (!file) return 1;

  std::vector<float> cam(kVolumes * in.voxels());
  using Volume = std::vector<float>;
  const size_t voxels = kVolumes * out.voxels();
  Volume tube(voxels), motion(voxels), upsampled(voxels), derivative(voxels), relevant(voxels);
  std::vector<float> tube_share(kVolumes), share(kVolumes);

  const OwnThreads threads(std::stoi(arguments[3]));
  const SimdLevel level = best_simd_level();
  ChannelReduceArgs reduce{};
  reduce.features = features.data();
  reduce.features_dtype = DType::float32;
  reduce.batch = kBatch, reduce.channels = kChannels, reduce.spatial = in.voxels();
  reduce.stride_n = kChannels * in.voxels(), reduce.stride_c = in.voxels(), reduce.stride_s = 1;
  reduce.weight = weight.data();
  reduce.weight_stride_n = kMaps * kChannels;
  reduce.maps = kMaps;
  reduce.threshold = -std::numeric_limits<float>::infinity();
  reduce.cam = cam.data();
  channel_reduce_cpu(reduce, threads, level);

  SelectiveTubeArgs selective{};
  selective.tube = {cam.data(), kVolumes, in, out, 3, false, Normalize::clip, DType::float32, tube.data()};
  selective.rule.n_sigma = 2.0f;
  selective.rule.padding = Padding::replicate;
  selective.rule.sign = Sign::absolute;
  selective.rule.sigma_of = SigmaOf::signed_;
  selective.rule.noise_floor = noise_floor_of(DType::float32);
  selective.motion = motion.data();
  selective.motion_share = tube_share.data();
  selective_tube_cpu(selective, threads, level);
  Volume again(voxels);
  SaliencyTubeArgs alone = selective.tube;
  alone.tube = again.data();
  saliency_tube_cpu(alone, threads, level);
  if (again != tube) return 2;

  spline_upsample_cpu({cam.data(), kVolumes, in, out, 3, upsampled.data()}, threads, level);
  sobel_temporal_cpu({upsampled.data(), kVolumes, out, Padding::replicate, derivative.data()}, threads, level);
  SelectiveRelevanceArgs relevance{};
  relevance.volume = upsampled.data();
  relevance.volumes = kVolumes;
  relevance.size = out;
  relevance.rule = selective.rule;
  relevance.motion = relevant.data();
  relevance.motion_share = share.data();
  selective_relevance_cpu(relevance, threads, level);

  std::vector<uint8_t> selected(kVolumes * kVolumes), edges(selected.size() * kChannels);
  for (size_t i = 0; i < selected.size(); i += 2) selected[i] = 1;
  Volume multiplicity(kVolumes * kChannels);
  back_step_cpu({features.data(), weight.data(), DType::float32, selected.data(), kBatch, kMaps, 1, kVolumes, kChannels,
                 0.6f, edges.data(), multiplicity.data()},
                threads, level);
  Volume points(edges.begin(), edges.end());

  std::ofstream results(arguments[2], std::ios::binary);
  for (const Volume* values : {&cam, &tube, &motion, &tube_share, &upsampled, &derivative, &relevant, &share,
                               &points, &multiplicity}) {
    results.write(reinterpret_cast<const char*>(values->data()), values->size() * sizeof(float));
  }
  return results.good() ? 0 : 1;
}
