// Checks of a run's inputs and outputs against the manifest, the same for every back end. Nothing is allocated where
// they fit; where they do not, Error says "run: clip must have shape [N, 3, 16, 112, 112], got [1, 3, 8, 112, 112]".
#pragma once

#include <clipsight/session.h>

#include <array>
#include <string>

namespace clipsight {

/// Whether a run has maps: only a file with the input `explain` may run without.
enum class Maps { wanted, unwanted, unknown };

/// What the letters of the manifest's shapes stand for in one run.
class Lengths {
 public:
  Lengths() { values_.fill(-1); }
  /// -1 where nothing determines it.
  int64_t of(const Dim& dim) const { return dim.letter.size() == 1 ? at(dim.letter[0]) : dim.length; }
  int64_t at(char letter) const { return letter >= 'A' && letter <= 'Z' ? values_[letter - 'A'] : -1; }
  void set(char letter, int64_t length) {
    if (letter >= 'A' && letter <= 'Z') values_[letter - 'A'] = length;
  }
  Maps maps = Maps::wanted;

 private:
  std::array<int64_t, 26> values_;
};

Lengths check_inputs(const Manifest& manifest, const Device& device, const TensorView* inputs, size_t count);

void check_outputs(const Manifest& manifest, const Lengths& lengths, const Device& device, const TensorView* outputs,
                   size_t count);

/// Shape of an output; throws Error where an axis is not determined by the inputs.
Shape output_shape(const Manifest& manifest, size_t index, const Lengths& lengths);

std::string to_string(const Shape& shape);

}  // namespace clipsight
