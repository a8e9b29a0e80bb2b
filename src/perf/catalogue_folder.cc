#include "catalogue_folder.h"

#include <fmt/ranges.h>

#include <cctype>
#include <filesystem>
#include <set>

namespace volley::perf {

namespace fs = std::filesystem;

std::string catalogue_file(const std::string& directory, const std::string& name) {
  std::string lower = name;
  for (char& letter : lower) {
    letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  }
  return (fs::path(directory) / (lower + ".yaml")).string();
}

Status no_such_entry(const std::string& what, const std::string& directory,
                     const std::string& name) {
  std::set<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() == ".yaml") names.insert(it->path().stem().string());
  }
  if (names.empty()) return not_found("no {} '{}': {} has none", what, name, directory);
  return not_found("no {} '{}': {} has {}", what, name, directory, fmt::join(names, ", "));
}

}  // namespace volley::perf
