#include "libraries.h"

#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <filesystem>

namespace clipsight {

namespace {

std::filesystem::path find_own_folder() {
  Dl_info info{};
  dladdr(reinterpret_cast<const void*>(&find_own_folder), &info);
  return std::filesystem::absolute(info.dli_fname ? info.dli_fname : "").parent_path();
}

/// Found as the library is loaded: its path may be relative to the folder where the program is then.
const std::filesystem::path own_folder = find_own_folder();

/// The first three numbers of a version.
std::array<long, 3> numbers_of(const std::string& version) {
  std::array<long, 3> numbers{};
  const char* at = version.c_str();
  for (long& number : numbers) {
    char* end = nullptr;
    number = std::strtol(at, &end, 10);
    if (*end != '.') break;
    at = end + 1;
  }
  return numbers;
}

}  // namespace

void check_plugin_version(const Manifest& manifest) {
  if (!manifest.plugin_required || numbers_of(CLIPSIGHT_VERSION) >= numbers_of(manifest.plugin_minimum_version)) return;
  throw Error("open: the file needs clipsight " + manifest.plugin_minimum_version + " or newer for its ops, got " +
              CLIPSIGHT_VERSION + "; upgrade clipsight");
}

std::string find_plugin(const Manifest& manifest, const Options& options) {
  const std::string name = "lib" + manifest.plugin_library + ".so";
  std::filesystem::path path = options.plugin_library;
  if (path.empty()) path = own_folder / name;
  std::error_code error;
  if (std::filesystem::is_regular_file(path, error)) return path.string();
  throw Error("open: the file calls ops of " + name + ", which must lie beside libclipsight.so or at "
              "Options::plugin_library, got no file '" + path.string() + "'; or export with plugin=False");
}

}  // namespace clipsight
