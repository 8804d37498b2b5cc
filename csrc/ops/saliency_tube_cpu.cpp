#include "ops/saliency_tube.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>

#include "core/workspace.h"
#include "ops/resample_plan.h"

namespace clipsight {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Range {
  float low = std::numeric_limits<float>::max(), high = std::numeric_limits<float>::lowest();
  void widen(const Range& other) {
    low = std::min(low, other.low);
    high = std::max(high, other.high);
  }
};

struct Shares {
  double total = 0, kept = 0;  // sum |R|, sum |R| mask
};

/// saliency_tube where `selective` is null, else selective_tube. The work is cut by shape alone into units, a group of
/// rows of one frame; what units find is merged in order, so the result does not depend on the threads.
class TubePass {
 public:
  TubePass(const SaliencyTubeArgs& args, const SelectiveTubeArgs* selective, const Parallel& parallel, SimdLevel level)
      : args_(args), selective_(selective), parallel_(parallel), k_(kernels(level)),
        plan_(resample_plan(MapKind::value, args.in, args.out, args.order, Padding::replicate, k_.width)),
        value_(plan_->view()), first_row_(plan_->row_groups().data()),
        groups_(static_cast<int64_t>(plan_->row_groups().size()) - 1), units_(args.volumes * args.out.t * groups_),
        grain_(1 + 16384 * groups_ / (args.out.h * args.out.w)),
        coefficients_(workspace_.array<double>(args.volumes * plan_->coefficient_count())),
        finite_(workspace_.array<bool>(args.volumes)) {
    if (!selective_) return;
    derivative_plan_ = resample_plan(MapKind::derivative, args.in, args.out, args.order, selective_->rule.padding,
                                     k_.width);
    derivative_ = derivative_plan_->view();
  }

  void run() {
    filter();
    if (args_.normalize != Normalize::none || selective_) find_ranges();
    if (selective_) find_thresholds();
    write();
  }

 private:
  struct Unit {
    int64_t volume, frame, begin, end;  // rows
  };
  Unit unit(int64_t index) const {
    const int64_t frame = index / groups_, group = index % groups_;
    return {frame / args_.out.t, frame, first_row_[group], first_row_[group + 1]};
  }

  /// Buffers of one range of units, and the frame that they hold.
  struct Worker {
    double* frame;
    float* scratch;
    int64_t current = -1;
    Worker(Workspace& workspace, const Resample& r, int64_t width)
        : frame(workspace.array<double>(r.in.h * r.pitch)), scratch(workspace.array<float>(row_scratch(r, width))) {}
  };
  RowTask rows(Worker& worker, const Resample& resample, const Unit& u) const {
    if (worker.current != u.frame) {
      k_.frame_coefficients(resample, u.frame % args_.out.t, &coefficients_[u.volume * plan_->coefficient_count()],
                            worker.frame);
      worker.current = u.frame;
    }
    return {&resample, worker.frame, u.begin, u.end, worker.scratch};
  }

  void filter() {
    const int64_t voxels = args_.in.voxels(), count = plan_->coefficient_count();
    parallel_.for_range(args_.volumes, 1 + 4096 / voxels, [&](int64_t begin, int64_t end) {
      for (int64_t v = begin; v < end; ++v) {
        finite_[v] = spline_coefficients(args_.cam + v * voxels, args_.in, value_.pitch, args_.order, args_.relu,
                                         &coefficients_[v * count]);
      }
    });
  }

  int64_t range_of(const Unit& u) const { return args_.normalize == Normalize::frame ? u.frame : u.volume; }

  /// The range in the rows next to the extremes of the cam: close to the final one, so that from there on most of the
  /// map is seen not to widen it.
  Range first_range(Worker& worker, int64_t volume) const {
    const auto nearest = [](int64_t i, int64_t n_in, int64_t n_out) { return n_in == 1 ? 0 : i * (n_out - 1) / (n_in - 1); };
    const float* cam = args_.cam + volume * args_.in.voxels();
    const auto [smallest, largest] = std::minmax_element(cam, cam + args_.in.voxels());
    float bounds[2] = {Range().low, Range().high};
    for (const float* extreme : {smallest, largest}) {
      const int64_t line = (extreme - cam) / args_.in.w;
      const int64_t frame = nearest(line / args_.in.h, args_.in.t, args_.out.t);
      const int64_t row = nearest(line % args_.in.h, args_.in.h, args_.out.h);
      k_.widen_range(rows(worker, value_, {volume, volume * args_.out.t + frame, row, row + 1}), bounds);
    }
    return {bounds[0], bounds[1]};
  }

  void find_ranges() {
    Range* found = workspace_.array<Range>(units_, Range());
    parallel_.for_range(units_, grain_, [&](int64_t begin, int64_t end) {
      Workspace workspace;
      Worker worker(workspace, value_, k_.width);
      Range range;
      for (int64_t i = begin; i < end; ++i) {
        const Unit u = unit(i);
        if (!finite_[u.volume]) continue;
        if (i == begin || range_of(u) != range_of(unit(i - 1))) {
          range = args_.normalize == Normalize::frame ? Range() : first_range(worker, u.volume);
        }
        float bounds[2] = {range.low, range.high};
        k_.widen_range(rows(worker, value_, u), bounds);
        found[i] = range = {bounds[0], bounds[1]};
      }
    });
    const int64_t per_volume = args_.normalize == Normalize::frame ? args_.out.t : 1;
    ranges_ = workspace_.array<Range>(args_.volumes * per_volume, Range());
    for (int64_t i = 0; i < units_; ++i) ranges_[range_of(unit(i))].widen(found[i]);
    largest_ = workspace_.array<float>(args_.volumes, 0.0f);
    for (int64_t i = 0; i < args_.volumes * per_volume; ++i) {  // a map that overflows float32 is as good as a non-finite one
      if (!std::isfinite(ranges_[i].high - ranges_[i].low)) finite_[i / per_volume] = false;
      float& largest = largest_[i / per_volume];
      largest = std::max({largest, std::fabs(ranges_[i].low), std::fabs(ranges_[i].high)});
    }
  }

  void find_thresholds() {
    const SelectiveRule& rule = selective_->rule;
    double* sums = nullptr;  // of |G|, per unit
    if (rule.sigma_of == SigmaOf::absolute) {
      sums = workspace_.array<double>(units_, 0.0);
      parallel_.for_range(units_, grain_, [&](int64_t begin, int64_t end) {
        Workspace workspace;
        Worker worker(workspace, derivative_, k_.width);
        for (int64_t i = begin; i < end; ++i) {
          if (finite_[unit(i).volume]) sums[i] = k_.sum_of_abs(rows(worker, derivative_, unit(i)));
        }
      });
    }
    const int64_t units_per_volume = units_ / args_.volumes;
    thresholds_ = workspace_.array<float>(args_.volumes, kInfinity);
    for (int64_t v = 0; v < args_.volumes; ++v) {
      if (!finite_[v]) continue;
      Workspace workspace;
      const double* coefficients = &coefficients_[v * plan_->coefficient_count()];
      ResamplePlan::Moments moments = derivative_plan_->moments(coefficients, workspace);
      if (sums) {
        moments.sum = 0;
        for (int64_t i = 0; i < units_per_volume; ++i) moments.sum += sums[v * units_per_volume + i];
      }
      thresholds_[v] =
          selection_threshold(moments.sum, moments.sum_of_squares, args_.out.voxels(), largest_[v], rule, v);
    }
  }

  void write() {
    const int64_t item = args_.output_dtype == DType::float32 ? 4 : args_.output_dtype == DType::float16 ? 2 : 1;
    Shares* shares = selective_ ? workspace_.array<Shares>(units_, Shares()) : nullptr;
    parallel_.for_range(units_, grain_, [&](int64_t begin, int64_t end) {
      Workspace workspace;
      Worker value(workspace, value_, k_.width);
      std::optional<Worker> derivative;
      if (selective_) derivative.emplace(workspace, derivative_, k_.width);
      for (int64_t i = begin; i < end; ++i) {
        const Unit u = unit(i);
        const int64_t offset = u.frame * args_.out.h * args_.out.w * item;
        WriteTask task{};
        task.tube = static_cast<char*>(args_.tube) + offset;
        if (selective_) task.motion = static_cast<char*>(selective_->motion) + offset;
        if (!finite_[u.volume]) {
          fill_undefined(task.tube, u);
          if (selective_) fill_undefined(task.motion, u);
          continue;
        }
        const bool raw = args_.normalize == Normalize::none;
        const Range range = raw ? Range() : ranges_[range_of(u)];
        task.value = rows(value, value_, u);
        task.normaliser = raw ? Normaliser{0.0f, 1.0f} : make_normaliser(range.low, range.high, largest_[u.volume]);
        task.ceiling = raw ? kInfinity : 1.0f;
        double sums[2] = {0, 0};
        if (selective_) {
          task.derivative = rows(*derivative, derivative_, u);
          task.threshold = thresholds_[u.volume];
          task.sign = selective_->rule.sign;
          task.sums = sums;
        }
        k_.write(args_.output_dtype, selective_ != nullptr, task);
        if (selective_) shares[i] = {sums[0], sums[1]};
      }
    });
    if (!selective_) return;
    const int64_t per_volume = units_ / args_.volumes;
    for (int64_t v = 0; v < args_.volumes; ++v) {
      Shares all;
      for (int64_t i = v * per_volume; i < (v + 1) * per_volume; ++i) {
        all.total += shares[i].total, all.kept += shares[i].kept;
      }
      selective_->motion_share[v] =
          !finite_[v] ? kNaN : static_cast<float>(all.total > 0 ? all.kept / all.total : 0.0);
    }
  }

  /// NaN, or 0 in uint8, in the rows of a unit.
  void fill_undefined(void* frame, const Unit& u) const {
    const int64_t first = u.begin * args_.out.w, count = (u.end - u.begin) * args_.out.w;
    switch (args_.output_dtype) {
      case DType::float32: std::fill_n(static_cast<float*>(frame) + first, count, kNaN); break;
      case DType::float16: std::fill_n(static_cast<uint16_t*>(frame) + first, count, uint16_t{0x7e00}); break;
      default: std::fill_n(static_cast<uint8_t*>(frame) + first, count, uint8_t{0});
    }
  }

  const SaliencyTubeArgs& args_;
  const SelectiveTubeArgs* selective_;
  const Parallel& parallel_;
  const Kernels& k_;
  std::shared_ptr<const ResamplePlan> plan_, derivative_plan_;
  Resample value_, derivative_{};
  Workspace workspace_;
  const int64_t* first_row_;  // of each group, then out.h
  int64_t groups_, units_, grain_;
  double* coefficients_;
  bool* finite_;              // per volume
  Range* ranges_ = nullptr;   // per volume, or per frame
  float* largest_ = nullptr;  // |R| per volume
  float* thresholds_ = nullptr;
};

}  // namespace

void saliency_tube_cpu(const SaliencyTubeArgs& args, const Parallel& parallel, SimdLevel level) {
  if (args.volumes * args.in.voxels() * args.out.voxels() == 0) return;
  TubePass(args, nullptr, parallel, level).run();
}

void selective_tube_cpu(const SelectiveTubeArgs& args, const Parallel& parallel, SimdLevel level) {
  if (args.tube.volumes * args.tube.in.voxels() * args.tube.out.voxels() == 0) return;
  TubePass(args.tube, &args, parallel, level).run();
}

}  // namespace clipsight
