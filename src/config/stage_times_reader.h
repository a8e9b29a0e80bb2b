#pragma once

#include "volley/config/stage_times.h"
#include "volley/config/yaml_reader.h"

namespace volley::config {

/// Reads all coefficients, each of which must be there.
void read_stage_times(YamlMap& map, StageTimesConfig& times);

}  // namespace volley::config
