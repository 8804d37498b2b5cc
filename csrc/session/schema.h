// Holds a manifest against manifest.schema.json: types and ranges of its members.
#pragma once

#include "json.h"

namespace clipsight {

/// Throws std::invalid_argument: "the manifest's outputs[0].shape must have at most 8 items, got 9".
void check_schema(const Json& manifest);

}  // namespace clipsight
