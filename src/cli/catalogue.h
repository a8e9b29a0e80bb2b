#pragma once

#include <string>

#include "volley/base/status.h"

namespace volley::cli {

/// The folder of the catalogues, with hardware/ and models/: as given; else `configs` of the working
/// directory; else of the installation or of the source tree that this binary lies in.
/// Errors: kNotFound.
Result<std::string> find_catalogue(const std::string& given);

}  // namespace volley::cli
