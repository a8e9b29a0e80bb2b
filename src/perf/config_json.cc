// The shape of a model from the config.json of its checkpoint.

#include <algorithm>
#include <filesystem>
#include <set>
#include <string_view>

#include "volley/config/json_fields.h"
#include "volley/config/json_reader.h"
#include "volley/perf/model_shape.h"

namespace volley::perf {
namespace {

using config::JsonFields;
using nlohmann::json;

constexpr config::JsonLimits kLimits{size_t{4} << 20, 16, 100'000};
// Far above any model that exists: what keeps all sizes exact in a double.
constexpr JsonFields::Range kSize{1, 1u << 24};
constexpr JsonFields::Range kSizeOrNone{0, 1u << 24};
constexpr JsonFields::Range kLayers{1, 4096};
constexpr JsonFields::Range kAnyNumber{0, UINT32_MAX};
constexpr uint32_t kGptOssWindow = 128;

// --- what several architectures have in common ---

Status read_formats(const JsonFields& fields, ModelShape& model) {
  const char* key = fields.find("dtype") != nullptr ? "dtype" : "torch_dtype";
  VOLLEY_ASSIGN_OR_RETURN(const std::string dtype, fields.text_or(key, "bfloat16"));
  if (dtype != "bfloat16" && dtype != "float16" && dtype != "float32") {
    return fields.bad(key, "is {}, it must be bfloat16, float16 or float32",
                      config::in_quotes(dtype));
  }
  const NumberFormat format = dtype == "float32" ? NumberFormat::kF32 : NumberFormat::kBf16;
  model.attention_format = model.expert_format = format;
  model.kv_format = model.activation_format = format;

  VOLLEY_ASSIGN_OR_RETURN(const json* quantization, fields.object("quantization_config"));
  if (quantization == nullptr) return ok_status();
  const JsonFields method_of(*quantization, fields.origin() + ": quantization_config");
  VOLLEY_ASSIGN_OR_RETURN(const std::string method, method_of.text_or("quant_method", ""));
  if (method == "fp8") {
    model.attention_format = model.expert_format = NumberFormat::kFp8;
  } else if (method == "mxfp4") {
    model.expert_format = NumberFormat::kFp4;
  } else {
    return method_of.unsupported("quant_method", "is {}; known: \"fp8\", \"mxfp4\"",
                                 config::in_quotes(method));
  }
  return ok_status();
}

Result<ModelShape> read_sizes(const JsonFields& fields, const char* hidden_key) {
  ModelShape model;
  VOLLEY_RETURN_IF_ERROR(read_formats(fields, model));
  VOLLEY_ASSIGN_OR_RETURN(model.hidden, fields.integer(hidden_key, kSize));
  VOLLEY_ASSIGN_OR_RETURN(model.vocab, fields.integer("vocab_size", kSize));
  VOLLEY_ASSIGN_OR_RETURN(model.tied_head, fields.boolean_or("tie_word_embeddings", false));
  return model;
}

/// `kv_fields` has `kv_key`; DBRX keeps it apart.
Result<AttentionShape> read_heads(const JsonFields& fields, const char* heads_key,
                                  const JsonFields& kv_fields, const char* kv_key,
                                  uint32_t hidden) {
  AttentionShape attention;
  VOLLEY_ASSIGN_OR_RETURN(attention.heads, fields.integer(heads_key, kSize));
  VOLLEY_ASSIGN_OR_RETURN(attention.kv_heads, kv_fields.integer_or(kv_key, kSize, attention.heads));
  if (attention.heads % attention.kv_heads != 0) {
    return kv_fields.bad(kv_key, "is {}, it must divide {}, which is {}", attention.kv_heads,
                         heads_key, attention.heads);
  }
  if (fields.find("head_dim") == nullptr && hidden % attention.heads != 0) {
    return fields.bad("head_dim", "is missing, and {} heads do not divide the hidden size {}",
                      attention.heads, hidden);
  }
  VOLLEY_ASSIGN_OR_RETURN(attention.head_dim,
                          fields.integer_or("head_dim", kSize, hidden / attention.heads));
  attention.value_dim = attention.head_dim;
  return attention;
}

Result<AttentionShape> read_heads(const JsonFields& fields, uint32_t hidden) {
  return read_heads(fields, "num_attention_heads", fields, "num_key_value_heads", hidden);
}

Result<FfnShape> read_experts(const JsonFields& fields, const char* experts_key,
                              const char* top_k_key, const char* width_key) {
  FfnShape ffn;
  VOLLEY_ASSIGN_OR_RETURN(ffn.experts, fields.integer(experts_key, kSize));
  VOLLEY_ASSIGN_OR_RETURN(ffn.top_k, fields.integer(top_k_key, kSize));
  VOLLEY_ASSIGN_OR_RETURN(ffn.width, fields.integer(width_key, kSize));
  if (ffn.top_k > ffn.experts) {
    return fields.bad(top_k_key, "is {}, it must be at most {}, which is {}", ffn.top_k,
                      experts_key, ffn.experts);
  }
  return ffn;
}

Result<FfnShape> read_dense_ffn(const JsonFields& fields) {
  FfnShape ffn;
  VOLLEY_ASSIGN_OR_RETURN(ffn.width, fields.integer("intermediate_size", kSize));
  return ffn;
}

/// Which layers have a window where the file has no layer_types.
enum class Windowed { kAll, kFromMaxWindowLayers, kEven };

/// The window of every layer, 0 for none.
Result<std::vector<uint32_t>> read_windows(const JsonFields& fields, uint32_t layers,
                                           Windowed windowed, uint32_t absent) {
  VOLLEY_ASSIGN_OR_RETURN(uint32_t window, fields.integer_or("sliding_window", kAnyNumber, absent));
  // Qwen names a window without using it.
  VOLLEY_ASSIGN_OR_RETURN(
      const bool used,
      fields.boolean_or("use_sliding_window", windowed != Windowed::kFromMaxWindowLayers));
  if (!used) window = 0;
  std::vector<uint32_t> windows(layers, 0);

  if (const json* types = fields.find("layer_types")) {
    if (!types->is_array() || types->size() != layers) {
      return fields.bad("layer_types", "is {}, it must be a list of {} names",
                        config::shown(*types), layers);
    }
    for (uint32_t layer = 0; layer < layers; ++layer) {
      const json& type = (*types)[layer];
      if (type == "full_attention") continue;
      if (type != "sliding_attention") {
        return fields.unsupported("layer_types",
                                  "has {}; known: \"full_attention\", \"sliding_attention\"",
                                  config::shown(type));
      }
      if (window == 0) return fields.bad("sliding_window", "is missing, but layer_types uses it");
      windows[layer] = window;
    }
    return windows;
  }

  VOLLEY_ASSIGN_OR_RETURN(const uint32_t first,
                          fields.integer_or("max_window_layers", kAnyNumber, 0));
  for (uint32_t layer = 0; layer < layers; ++layer) {
    const bool here = windowed == Windowed::kAll ||
                      (windowed == Windowed::kFromMaxWindowLayers && layer >= first) ||
                      (windowed == Windowed::kEven && layer % 2 == 0);
    if (here) windows[layer] = window;
  }
  return windows;
}

/// Alike layers become one group, wherever they are.
void add_layer(const AttentionShape& attention, const FfnShape& ffn, ModelShape& model) {
  for (LayerGroup& group : model.layers) {
    if (group.attention == attention && group.ffn == ffn) {
      ++group.count;
      return;
    }
  }
  model.layers.push_back({1, attention, ffn});
}

/// Layers that differ in nothing but their window.
void add_layers(AttentionShape attention, const FfnShape& ffn, const std::vector<uint32_t>& windows,
                ModelShape& model) {
  for (const uint32_t window : windows) {
    attention.window = window;
    add_layer(attention, ffn, model);
  }
}

// --- the architectures ---

Result<ModelShape> read_mixtral(const JsonFields& fields) {
  VOLLEY_ASSIGN_OR_RETURN(ModelShape model, read_sizes(fields, "hidden_size"));
  VOLLEY_ASSIGN_OR_RETURN(const AttentionShape attention, read_heads(fields, model.hidden));
  VOLLEY_ASSIGN_OR_RETURN(
      const FfnShape ffn,
      read_experts(fields, "num_local_experts", "num_experts_per_tok", "intermediate_size"));
  VOLLEY_ASSIGN_OR_RETURN(const uint32_t layers, fields.integer("num_hidden_layers", kLayers));
  VOLLEY_ASSIGN_OR_RETURN(const std::vector<uint32_t> windows,
                          read_windows(fields, layers, Windowed::kAll, 0));
  add_layers(attention, ffn, windows, model);
  return model;
}

Result<ModelShape> read_dbrx(const JsonFields& fields) {
  VOLLEY_ASSIGN_OR_RETURN(ModelShape model, read_sizes(fields, "d_model"));
  VOLLEY_ASSIGN_OR_RETURN(const json* attention_object, fields.object("attn_config"));
  VOLLEY_ASSIGN_OR_RETURN(const json* ffn_object, fields.object("ffn_config"));
  if (attention_object == nullptr) return fields.bad("attn_config", "is missing");
  if (ffn_object == nullptr) return fields.bad("ffn_config", "is missing");
  const JsonFields attention_fields(*attention_object, fields.origin() + ": attn_config");
  const JsonFields ffn_fields(*ffn_object, fields.origin() + ": ffn_config");
  VOLLEY_ASSIGN_OR_RETURN(
      const AttentionShape attention,
      read_heads(fields, "n_heads", attention_fields, "kv_n_heads", model.hidden));
  VOLLEY_ASSIGN_OR_RETURN(const FfnShape ffn, read_experts(ffn_fields, "moe_num_experts",
                                                           "moe_top_k", "ffn_hidden_size"));
  VOLLEY_ASSIGN_OR_RETURN(const uint32_t layers, fields.integer("n_layers", kLayers));
  model.layers.push_back({layers, attention, ffn});
  return model;
}

/// The layers that mlp_only_layers names.
Result<std::set<uint64_t>> read_dense_layers(const JsonFields& fields) {
  std::set<uint64_t> dense;
  const json* list = fields.find("mlp_only_layers");
  if (list == nullptr) return dense;
  const bool valid = list->is_array() && std::all_of(list->begin(), list->end(), [](const json& x) {
                       return x.is_number_unsigned();
                     });
  if (!valid) {
    return fields.bad("mlp_only_layers", "is {}, it must be a list of layers",
                      config::shown(*list));
  }
  for (const json& layer : *list) dense.insert(layer.get<uint64_t>());
  return dense;
}

Result<ModelShape> read_qwen3_moe(const JsonFields& fields) {
  VOLLEY_ASSIGN_OR_RETURN(ModelShape model, read_sizes(fields, "hidden_size"));
  VOLLEY_ASSIGN_OR_RETURN(AttentionShape attention, read_heads(fields, model.hidden));
  // transformers 4 and published checkpoints say num_experts, transformers 5 num_local_experts.
  const char* experts_key =
      fields.find("num_experts") != nullptr ? "num_experts" : "num_local_experts";
  VOLLEY_ASSIGN_OR_RETURN(
      const FfnShape experts,
      read_experts(fields, experts_key, "num_experts_per_tok", "moe_intermediate_size"));
  VOLLEY_ASSIGN_OR_RETURN(const uint32_t layers, fields.integer("num_hidden_layers", kLayers));
  VOLLEY_ASSIGN_OR_RETURN(const std::vector<uint32_t> windows,
                          read_windows(fields, layers, Windowed::kFromMaxWindowLayers, 0));
  VOLLEY_ASSIGN_OR_RETURN(const uint32_t step,
                          fields.integer_or("decoder_sparse_step", {1, UINT32_MAX}, 1));
  VOLLEY_ASSIGN_OR_RETURN(const std::set<uint64_t> dense_layers, read_dense_layers(fields));
  for (uint32_t layer = 0; layer < layers; ++layer) {
    attention.window = windows[layer];
    if ((layer + 1) % step == 0 && !dense_layers.contains(layer)) {
      add_layer(attention, experts, model);
      continue;
    }
    VOLLEY_ASSIGN_OR_RETURN(const FfnShape dense, read_dense_ffn(fields));
    add_layer(attention, dense, model);
  }
  return model;
}

Result<AttentionShape> read_latent_attention(const JsonFields& fields) {
  AttentionShape attention;
  attention.kind = AttentionShape::Kind::kLatent;
  VOLLEY_ASSIGN_OR_RETURN(attention.heads, fields.integer("num_attention_heads", kSize));
  VOLLEY_ASSIGN_OR_RETURN(attention.head_dim, fields.integer("qk_nope_head_dim", kSize));
  VOLLEY_ASSIGN_OR_RETURN(attention.value_dim, fields.integer("v_head_dim", kSize));
  VOLLEY_ASSIGN_OR_RETURN(attention.query_rank, fields.integer_or("q_lora_rank", kSizeOrNone, 0));
  VOLLEY_ASSIGN_OR_RETURN(attention.kv_rank, fields.integer("kv_lora_rank", kSize));
  VOLLEY_ASSIGN_OR_RETURN(attention.rope_dim, fields.integer("qk_rope_head_dim", kSizeOrNone));
  return attention;
}

Result<ModelShape> read_deepseek(const JsonFields& fields) {
  VOLLEY_ASSIGN_OR_RETURN(ModelShape model, read_sizes(fields, "hidden_size"));
  VOLLEY_ASSIGN_OR_RETURN(const AttentionShape attention, read_latent_attention(fields));
  VOLLEY_ASSIGN_OR_RETURN(
      FfnShape experts,
      read_experts(fields, "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size"));
  VOLLEY_ASSIGN_OR_RETURN(const uint32_t shared,
                          fields.integer_or("n_shared_experts", {0, 1024}, 0));
  if (uint64_t{shared} * experts.width > kSize.max) {
    return fields.bad("n_shared_experts", "is {}, too many of width {}", shared, experts.width);
  }
  experts.shared_width = shared * experts.width;
  VOLLEY_ASSIGN_OR_RETURN(const uint32_t layers, fields.integer("num_hidden_layers", kLayers));
  VOLLEY_ASSIGN_OR_RETURN(const uint32_t first,
                          fields.integer_or("first_k_dense_replace", kAnyNumber, 0));
  VOLLEY_ASSIGN_OR_RETURN(const uint32_t step,
                          fields.integer_or("moe_layer_freq", {1, UINT32_MAX}, 1));
  for (uint32_t layer = 0; layer < layers; ++layer) {
    if (layer >= first && layer % step == 0) {
      add_layer(attention, experts, model);
      continue;
    }
    VOLLEY_ASSIGN_OR_RETURN(const FfnShape dense, read_dense_ffn(fields));
    add_layer(attention, dense, model);
  }
  return model;
}

Result<ModelShape> read_gpt_oss(const JsonFields& fields) {
  VOLLEY_ASSIGN_OR_RETURN(ModelShape model, read_sizes(fields, "hidden_size"));
  VOLLEY_ASSIGN_OR_RETURN(const AttentionShape attention, read_heads(fields, model.hidden));
  const char* top_k_key =
      fields.find("num_experts_per_tok") != nullptr ? "num_experts_per_tok" : "experts_per_token";
  VOLLEY_ASSIGN_OR_RETURN(const FfnShape ffn, read_experts(fields, "num_local_experts", top_k_key,
                                                           "intermediate_size"));
  VOLLEY_ASSIGN_OR_RETURN(const uint32_t layers, fields.integer("num_hidden_layers", kLayers));
  VOLLEY_ASSIGN_OR_RETURN(const std::vector<uint32_t> windows,
                          read_windows(fields, layers, Windowed::kEven, kGptOssWindow));
  add_layers(attention, ffn, windows, model);
  return model;
}

Result<ModelShape> read_dense(const JsonFields& fields, Windowed windowed) {
  VOLLEY_ASSIGN_OR_RETURN(ModelShape model, read_sizes(fields, "hidden_size"));
  VOLLEY_ASSIGN_OR_RETURN(const AttentionShape attention, read_heads(fields, model.hidden));
  VOLLEY_ASSIGN_OR_RETURN(const FfnShape ffn, read_dense_ffn(fields));
  VOLLEY_ASSIGN_OR_RETURN(const uint32_t layers, fields.integer("num_hidden_layers", kLayers));
  VOLLEY_ASSIGN_OR_RETURN(const std::vector<uint32_t> windows,
                          read_windows(fields, layers, windowed, 0));
  add_layers(attention, ffn, windows, model);
  return model;
}

Result<ModelShape> read_llama(const JsonFields& fields) {
  return read_dense(fields, Windowed::kAll);
}

Result<ModelShape> read_qwen(const JsonFields& fields) {
  return read_dense(fields, Windowed::kFromMaxWindowLayers);
}

struct Architecture {
  std::string_view name;
  Result<ModelShape> (*read)(const JsonFields&);
};

constexpr Architecture kArchitectures[] = {
    {"MixtralForCausalLM", read_mixtral},     {"DbrxForCausalLM", read_dbrx},
    {"Qwen3MoeForCausalLM", read_qwen3_moe},  {"DeepseekV2ForCausalLM", read_deepseek},
    {"DeepseekV3ForCausalLM", read_deepseek}, {"GptOssForCausalLM", read_gpt_oss},
    {"LlamaForCausalLM", read_llama},         {"MistralForCausalLM", read_llama},
    {"Qwen2ForCausalLM", read_qwen},          {"Qwen3ForCausalLM", read_qwen},
};

Result<const Architecture*> choose_architecture(const JsonFields& fields) {
  const json* names = fields.find("architectures");
  const bool valid =
      names != nullptr && names->is_array() && names->size() == 1 && (*names)[0].is_string();
  if (!valid) {
    return fields.bad("architectures", "is {}, it must be a list of one name",
                      names == nullptr ? "missing" : config::shown(*names));
  }
  std::string known;
  for (const Architecture& architecture : kArchitectures) {
    if ((*names)[0] == architecture.name) return &architecture;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", architecture.name);
  }
  return fields.unsupported("architectures", "is {}; known: {}", config::shown(*names), known);
}

/// ".../mixtral/config.json" is mixtral.
std::string name_of_checkpoint(const std::string& origin, const Architecture& architecture) {
  const std::string folder = std::filesystem::path(origin).parent_path().filename().string();
  const bool says_nothing = folder.empty() || folder == "." || folder == "..";
  return says_nothing ? std::string(architecture.name) : folder;
}

}  // namespace

Result<ModelShape> parse_config_json(const std::string& text, const std::string& origin) {
  VOLLEY_ASSIGN_OR_RETURN(const json document, config::parse_json_object(text, kLimits, origin));
  const JsonFields fields(document, origin);
  VOLLEY_ASSIGN_OR_RETURN(const Architecture* architecture, choose_architecture(fields));
  VOLLEY_ASSIGN_OR_RETURN(ModelShape model, architecture->read(fields));
  model.name = name_of_checkpoint(origin, *architecture);
  return model;
}

}  // namespace volley::perf
