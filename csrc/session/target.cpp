#include "target.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "checks.h"

namespace clipsight {

namespace {

const char* const kBestOther = "best_other";

void need(bool holds, const std::string& rule) {
  if (!holds) throw std::invalid_argument("the manifest's " + rule);
}

Probability probability_of(const Json* json, int64_t classes) {
  if (!json) return classes == 1 ? Probability::sigmoid : Probability::softmax;  // a file of an earlier version
  const std::string& name = json->string();
  return name == "softmax" ? Probability::softmax : name == "sigmoid" ? Probability::sigmoid : Probability::none;
}

void check_against(const Json& against, int64_t classes) {
  if (against.kind() == Json::Kind::string) {
    need(against.string() == kBestOther, std::string("target.against must be a class or ") + kBestOther);
  } else {
    need(against.integer() < classes, "target.against must be a class");
  }
}

void check_choice(const Json& classes, size_t heads) {
  if (classes.kind() != Json::Kind::array) return;
  for (const Json& each : classes.items()) {
    const size_t count = each.kind() == Json::Kind::array ? each.items().size() : 0;
    need(count == heads, "classes must name a class of each head");
  }
}

/// A logit of any floating type.
double element(const TensorView& view, int64_t i) {
  if (view.dtype == DType::float32) return static_cast<const float*>(view.data)[i];
  if (view.dtype == DType::float64) return static_cast<const double*>(view.data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(view.data)[i];
  if (view.dtype == DType::bfloat16) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double magnitude = exponent == 31  ? (fraction ? std::nan("") : std::numeric_limits<double>::infinity())
                           : exponent == 0 ? std::ldexp(fraction, -24)
                                           : std::ldexp(1024 + fraction, exponent - 25);
  return bits >> 15 ? -magnitude : magnitude;
}

/// One class's score, of logits that lie `stride` elements apart.
double reduced(const Target& target, const TensorView& logits, int64_t first, int64_t steps, int64_t stride) {
  if (target.steps == Target::Steps::one) {
    return element(logits, first + (target.step < 0 ? target.step + steps : target.step) * stride);
  }
  double sum = 0, largest = element(logits, first);
  for (int64_t i = 0; i < steps; ++i) {
    const double logit = element(logits, first + i * stride);
    sum += logit;
    largest = std::isnan(logit) ? logit : std::max(largest, logit);
  }
  return target.steps == Target::Steps::mean ? sum / static_cast<double>(steps) : largest;
}

std::vector<double> scores_of(const Target& target, const TensorView& logits, size_t sample) {
  const auto length = [&](char axis) {
    const size_t at = target.layout.find(axis);
    return at == std::string::npos ? int64_t{1} : logits.shape[at];
  };
  const int64_t classes = length('K'), steps = length('T');
  if (target.step >= steps || target.step < -steps) {
    throw Error("top_classes: logits must have the step " + std::to_string(target.step) + " of the target, got " +
                to_string(logits.shape));
  }
  const bool steps_last = target.layout == "NKT";
  std::vector<double> scores;
  for (int64_t k = 0; k < classes; ++k) {
    const int64_t first = static_cast<int64_t>(sample) * classes * steps + k * (steps_last ? steps : 1);
    const double score = reduced(target, logits, first, steps, steps_last ? 1 : classes);
    scores.push_back(std::isnan(score) ? -std::numeric_limits<double>::infinity() : score);
  }
  return scores;
}

/// In place: the scores of one head become its probabilities.
void soften(double* first, double* last) {
  const double largest = *std::max_element(first, last);
  double sum = 0;
  for (double* value = first; value != last; ++value) sum += *value = std::exp(*value - largest);
  for (double* value = first; value != last; ++value) *value /= sum;
}

std::vector<double> probabilities_of(const Target& target, std::vector<double> scores) {
  if (target.probability == Probability::sigmoid) {
    for (double& value : scores) value = 1 / (1 + std::exp(-value));
  }
  if (target.probability == Probability::softmax) {
    double* first = scores.data();
    for (const int64_t count : target.head_classes) {
      soften(first, first + count);
      first += count;
    }
    if (target.head_classes.empty()) soften(first, first + scores.size());
  }
  return scores;
}

void check_logits(const Target& target, const TensorView& logits, size_t sample) {
  const Shape& shape = logits.shape;
  const bool floating = logits.dtype <= DType::bfloat16 || logits.dtype == DType::float64;
  const bool empty = std::any_of(shape.begin() + std::min<size_t>(shape.size(), 1), shape.end(),
                                 [](int64_t length) { return length < 1; });
  if (shape.size() != target.layout.size() || empty || !floating || logits.data == nullptr ||
      logits.device.kind != Device::cpu) {
    std::string axes;
    for (const char axis : target.layout) axes += (axes.empty() ? "" : ", ") + std::string(1, axis);
    throw Error("top_classes: logits must be floating [" + axes + "] in the host's memory, got " +
                name_of(logits.dtype) + " " + to_string(shape) + (logits.data ? "" : " at a null pointer"));
  }
  if (sample >= static_cast<size_t>(shape[0])) {
    throw Error("top_classes: sample must be below " + std::to_string(shape[0]) + ", got " + std::to_string(sample));
  }
}

}  // namespace

Target Target::read(const Json& manifest) {
  Target result;
  const int64_t classes = manifest.at("num_classes").integer();
  result.probability = probability_of(manifest.find("probability"), classes);
  const Json* target = manifest.find("target");
  if (const Json* against = target ? target->find("against") : nullptr) check_against(*against, classes);
  const Json* steps = target ? target->find("steps") : nullptr;
  const Json* layout = target ? target->find("layout") : nullptr;
  if (steps && steps->kind() == Json::Kind::string) {
    const std::string& how = steps->string();
    need(how == "mean" || how == "max", "target.steps must be a step, mean or max");
    result.steps = how == "mean" ? Steps::mean : Steps::max;
  } else if (steps) {
    result.steps = Steps::one;
    result.step = steps->integer();
  }
  need(!steps == !layout, "target.layout must be there where steps are");
  if (layout) result.layout = layout->string();
  need(result.layout != "NT" || classes == 1, "target.layout must have the classes");
  if (const Json* sizes = target ? target->find("head_classes") : nullptr) {
    for (const Json& size : sizes->items()) result.head_classes.push_back(size.integer());
  }
  const Json* heads = target ? target->find("heads") : nullptr;
  const size_t count = result.head_classes.size();
  need((heads ? heads->items().size() : 0) == count, "target.head_classes must be one for each head");
  const int64_t together = std::accumulate(result.head_classes.begin(), result.head_classes.end(), int64_t{0});
  need(count == 0 || together == classes, "target.head_classes must be num_classes together");
  check_choice(manifest.at("classes"), count);
  return result;
}

std::vector<TopClass> top_classes(const Target& target, const TensorView& logits, size_t k,
                                  const std::vector<std::string>& labels, size_t sample) {
  check_logits(target, logits, sample);
  const std::vector<double> scores = scores_of(target, logits, sample);
  if (!labels.empty() && labels.size() != scores.size()) {
    throw Error("top_classes: labels must be one for each of " + std::to_string(scores.size()) + " classes, got " +
                std::to_string(labels.size()));
  }
  const int64_t together = std::accumulate(target.head_classes.begin(), target.head_classes.end(), int64_t{0});
  if (!target.head_classes.empty() && together != static_cast<int64_t>(scores.size())) {
    throw Error("top_classes: logits must have " + std::to_string(together) + " classes, got " +
                std::to_string(scores.size()));
  }
  const std::vector<double> probabilities = probabilities_of(target, scores);
  // By the scores, which tell apart what rounds to one probability; those of several heads have no common scale.
  const std::vector<double>& by = target.head_classes.empty() ? scores : probabilities;
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return by[a] > by[b]; });
  std::vector<TopClass> top;
  for (size_t i = 0; i < std::min(k, order.size()); ++i) {
    const auto probability = static_cast<float>(probabilities[order[i]]);
    top.push_back({static_cast<int64_t>(order[i]), probability, labels.empty() ? "" : labels[order[i]]});
  }
  return top;
}

}  // namespace clipsight
