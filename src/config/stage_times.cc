#include "volley/config/stage_times.h"

#include <array>

#include "stage_times_reader.h"
#include "volley/config/text_file.h"

namespace volley::config {
namespace {

constexpr double kTimeMaxUs = 1e9;
constexpr size_t kFileBytesMax = size_t{1} << 16;

struct Coefficient {
  const char* key;
  double StageTimesConfig::*value;
};
constexpr std::array kCoefficients{
    Coefficient{"layer_us", &StageTimesConfig::layer_us},
    Coefficient{"layer_row_us", &StageTimesConfig::layer_row_us},
    Coefficient{"layer_context_us", &StageTimesConfig::layer_context_us},
    Coefficient{"step_us", &StageTimesConfig::step_us},
    Coefficient{"step_row_us", &StageTimesConfig::step_row_us},
    Coefficient{"step_emit_us", &StageTimesConfig::step_emit_us},
    Coefficient{"expert_layer_us", &StageTimesConfig::expert_layer_us},
    Coefficient{"expert_us", &StageTimesConfig::expert_us},
    Coefficient{"expert_row_us", &StageTimesConfig::expert_row_us},
};

}  // namespace

void read_stage_times(YamlMap& map, StageTimesConfig& times) {
  for (const Coefficient& coefficient : kCoefficients) {
    map.required(coefficient.key);
    map.number(coefficient.key, times.*coefficient.value, 0, kTimeMaxUs);
  }
}

Result<StageTimesConfig> parse_stage_times(const std::string& text, const std::string& origin) {
  VOLLEY_ASSIGN_OR_RETURN(const YAML::Node document, parse_yaml(text, origin));
  Status status;
  StageTimesConfig times;
  YamlMap root(document, "", origin, status);
  std::string about;
  root.string("about", about);
  read_stage_times(root, times);
  root.finish();
  if (!status.ok()) return status;
  return times;
}

Result<StageTimesConfig> load_stage_times(const std::string& file) {
  VOLLEY_ASSIGN_OR_RETURN(const std::string text, read_text_file(file, kFileBytesMax));
  return parse_stage_times(text, file);
}

std::string format_stage_times(const StageTimesConfig& times, const std::string& about) {
  YAML::Emitter about_text;
  about_text << YAML::DoubleQuoted << about;
  std::string text = fmt::format("about: {}\n", about_text.c_str());
  for (const Coefficient& coefficient : kCoefficients) {
    text += fmt::format("{}: {}\n", coefficient.key, times.*coefficient.value);
  }
  return text;
}

}  // namespace volley::config
