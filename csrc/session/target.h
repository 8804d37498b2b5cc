// What a file's logits are: scores of classes, and probabilities; python/clipsight/targets.py is the same.
#pragma once

#include <clipsight/session.h>

#include <string>
#include <vector>

#include "json.h"

namespace clipsight {

struct Target {
  Probability probability = Probability::softmax;
  enum class Steps { none, mean, max, one } steps = Steps::none;  // of logits per time step, for a score
  int64_t step = 0;                                               // negative from the end
  std::string layout = "NK";                                      // axes of the logits: also NKT, NTK, NT
  std::vector<int64_t> head_classes;                              // of each head, where there are several

  /// Of a manifest that the schema allows. Throws std::invalid_argument where the members do not fit each other.
  static Target read(const Json& manifest);
};

/// As the public function, for logits of any target. Throws Error where they do not fit it.
std::vector<TopClass> top_classes(const Target& target, const TensorView& logits, size_t k,
                                  const std::vector<std::string>& labels, size_t sample);

}  // namespace clipsight
