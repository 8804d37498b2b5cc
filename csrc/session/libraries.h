// Where the libraries lie that a file may need, and whether they will do.
#pragma once

#include <clipsight/session.h>

#include <string>

namespace clipsight {

/// Path of the native library that the file's ops need: Options::plugin_library, or the one beside libclipsight.so.
/// Throws Error where there is none, or where this release is older than the file asks for.
std::string find_plugin(const Manifest& manifest, const Options& options);

/// Throws Error where the file needs a newer clipsight than this one.
void check_plugin_version(const Manifest& manifest);

}  // namespace clipsight
