// parse_model_config: what all architectures share, and the choice of the architecture.

#include <algorithm>

#include "arch/architectures.h"
#include "volley/model/weights.h"

namespace volley::model {
namespace {

using nlohmann::json;

constexpr config::JsonLimits kConfigLimits{4u << 20, 16, 100'000};
constexpr size_t kEosTokensMax = 64;
constexpr double kTemperatureMax = 100;
constexpr double kTopPMin = 1e-6;
constexpr uint32_t kVocabMax = 1u << 24;

Result<const Architecture*> choose_architecture(const json& config, const std::string& origin) {
  const auto names = config.find("architectures");
  const bool valid =
      names != config.end() && names->is_array() && names->size() == 1 && (*names)[0].is_string();
  if (!valid) {
    return invalid_argument("{}: architectures is {}, it must be a list of one name", origin,
                            names == config.end() ? "missing" : config::shown(*names));
  }
  std::string supported;
  for (const Architecture& architecture : architectures()) {
    if ((*names)[0] == architecture.name) return &architecture;
    supported += supported.empty() ? "" : ", ";
    supported += architecture.name;
  }
  return failed_precondition("{}: architectures is {}; supported: {}", origin,
                             config::shown(*names), supported);
}

Result<int32_t> read_token(const config::JsonFields& config, const std::string& field,
                           const json& value, uint32_t vocab) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() >= vocab) {
    return config.bad(field, "is {}, a token id must be an integer from 0 to {}",
                      config::shown(value), vocab - 1);
  }
  return value.get<int32_t>();
}

/// Overwrites the special tokens with those that this file states.
Status read_special_tokens(const config::JsonFields& config, ModelSpec& spec) {
  if (const json* bos = config.find("bos_token_id")) {
    VOLLEY_ASSIGN_OR_RETURN(spec.bos_token, read_token(config, "bos_token_id", *bos, spec.vocab));
  }
  const json* eos = config.find("eos_token_id");
  if (eos == nullptr) return ok_status();
  const json list = eos->is_array() ? *eos : json::array({*eos});
  if (list.size() > kEosTokensMax) {
    return config.bad("eos_token_id", "has {} tokens, at most {} are allowed", list.size(),
                      kEosTokensMax);
  }
  spec.eos_tokens.clear();
  for (const json& token : list) {
    VOLLEY_ASSIGN_OR_RETURN(const int32_t id,
                            read_token(config, "eos_token_id", token, spec.vocab));
    spec.eos_tokens.push_back(id);
  }
  return ok_status();
}

/// `do_sample: false` is greedy whatever the other fields say, as in transformers.
Status read_sampling(const config::JsonFields& config, SamplingDefaults& sampling) {
  const auto number = [&](const std::string& field, double min, double max, float& value) {
    if (config.find(field) == nullptr) return ok_status();
    VOLLEY_ASSIGN_OR_RETURN(const double read, config.number(field, min, max));
    value = static_cast<float>(read);
    return ok_status();
  };
  VOLLEY_RETURN_IF_ERROR(number("temperature", 0, kTemperatureMax, sampling.temperature));
  VOLLEY_RETURN_IF_ERROR(number("top_p", kTopPMin, 1, sampling.top_p));
  VOLLEY_RETURN_IF_ERROR(number("min_p", 0, 1, sampling.min_p));
  VOLLEY_ASSIGN_OR_RETURN(sampling.top_k, config.integer_or("top_k", {0, kVocabMax}, 0));
  VOLLEY_ASSIGN_OR_RETURN(const bool sample, config.boolean_or("do_sample", true));
  if (!sample) sampling.temperature = 0;
  return ok_status();
}

/// "…/config.json" names its neighbour; any other origin is named with a word added.
std::string generation_origin(const std::string& origin) {
  static const std::string kConfig = "config.json";
  if (origin.ends_with(kConfig)) {
    return origin.substr(0, origin.size() - kConfig.size()) + "generation_config.json";
  }
  return origin + " (generation config)";
}

}  // namespace

Result<ModelSpec> parse_model_config(const std::string& config_json,
                                     const std::string& generation_config_json,
                                     const std::string& origin) {
  VOLLEY_ASSIGN_OR_RETURN(const json document,
                          config::parse_json_object(config_json, kConfigLimits, origin));
  VOLLEY_ASSIGN_OR_RETURN(const Architecture* architecture, choose_architecture(document, origin));
  const config::JsonFields config(document, origin);
  VOLLEY_ASSIGN_OR_RETURN(ModelSpec spec, architecture->fill(config));
  spec.architecture = architecture->name;
  VOLLEY_RETURN_IF_ERROR(read_special_tokens(config, spec));
  if (generation_config_json.empty()) return spec;

  const std::string place = generation_origin(origin);
  VOLLEY_ASSIGN_OR_RETURN(const json generation,
                          config::parse_json_object(generation_config_json, kConfigLimits, place));
  const config::JsonFields reader(generation, place);
  VOLLEY_RETURN_IF_ERROR(read_special_tokens(reader, spec));
  VOLLEY_RETURN_IF_ERROR(read_sampling(reader, spec.sampling));
  return spec;
}

}  // namespace volley::model
