#pragma once

#include <span>
#include <string>

#include "volley/config/json_fields.h"
#include "volley/model/model_spec.h"

namespace volley::model {

/// One architecture: what config.json calls it, and the function that fills a ModelSpec from it
/// (all but `architecture` and the bos and eos tokens, which every architecture has in the same
/// place).
struct Architecture {
  const char* name;
  Result<ModelSpec> (*fill)(const config::JsonFields& config);
};

/// Every supported architecture. A new one is a file beside this one and a line in the table.
std::span<const Architecture> architectures();

}  // namespace volley::model
