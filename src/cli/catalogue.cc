#include "catalogue.h"

#include <filesystem>
#include <vector>

namespace volley::cli {

Result<std::string> find_catalogue(const std::string& given) {
  namespace fs = std::filesystem;
  std::error_code error;
  const auto is_catalogue = [&](const fs::path& path) {
    return fs::is_directory(path / "hardware", error);
  };
  if (!given.empty()) {
    if (is_catalogue(given)) return given;
    return not_found("--catalogue {}: has no folder 'hardware'", given);
  }
  std::vector<fs::path> places = {"configs"};
  const fs::path binary = fs::read_symlink("/proc/self/exe", error);
  if (!error) {
    places.push_back(binary.parent_path() / "../share/volley/configs");
    places.push_back(binary.parent_path() / "../../../configs");
  }
  for (const fs::path& place : places) {
    if (is_catalogue(place)) return place.lexically_normal().string();
  }
  return not_found(
      "no catalogue: neither 'configs' here nor beside the binary has a folder "
      "'hardware'; give one with --catalogue");
}

}  // namespace volley::cli
