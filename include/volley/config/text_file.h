#pragma once

#include <cstddef>
#include <string>

#include "volley/base/status.h"

namespace volley::config {

/// The whole file. Errors: kNotFound (it cannot be opened), kInvalidArgument (it cannot be read, or
/// has more than `bytes_max` bytes).
Result<std::string> read_text_file(const std::string& file, size_t bytes_max);

}  // namespace volley::config
