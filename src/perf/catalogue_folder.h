#pragma once

#include <string>

#include "volley/base/status.h"

namespace volley::perf {

inline constexpr size_t kCatalogueFileBytesMax = size_t{256} << 10;

/// "H20" -> DIRECTORY/h20.yaml.
std::string catalogue_file(const std::string& directory, const std::string& name);
/// kNotFound with the names that `directory` has. `what`: "device".
Status no_such_entry(const std::string& what, const std::string& directory,
                     const std::string& name);

}  // namespace volley::perf
