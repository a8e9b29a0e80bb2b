// The YAML form of a model shape, and where shapes are found.

#include <filesystem>

#include "catalogue_folder.h"
#include "sources.h"
#include "volley/config/text_file.h"
#include "volley/perf/model_shape.h"

namespace volley::perf {
namespace {

using config::YamlMap;

// As the fields of config.json are bounded (config_json.cc): all sizes stay exact in a double.
constexpr uint32_t kSizeMax = 1u << 24;
constexpr uint32_t kLayersMax = 4096;
constexpr size_t kConfigJsonBytesMax = size_t{4} << 20;

void read_format(YamlMap& map, const std::string& key, NumberFormat& format) {
  const std::vector<std::string> names(kNumberFormatNames.begin(), kNumberFormatNames.end());
  std::string name(name_of(format));
  map.choice(key, name, names);
  for (size_t i = 0; i < kNumberFormats; ++i) {
    if (name == names[i]) format = static_cast<NumberFormat>(i);
  }
}

void read_attention(YamlMap& map, AttentionShape& attention) {
  std::string kind = "grouped";
  map.choice("kind", kind, {"grouped", "latent"});
  map.required("heads");
  map.required("head_dim");
  map.integer("heads", attention.heads, 1, kSizeMax);
  map.integer("head_dim", attention.head_dim, 1, kSizeMax);
  map.integer("window", attention.window, 0, UINT32_MAX);
  if (kind == "grouped") {
    map.required("kv_heads");
    map.integer("kv_heads", attention.kv_heads, 1, kSizeMax);
    attention.value_dim = attention.head_dim;
    if (attention.kv_heads > 0 && attention.heads % attention.kv_heads != 0) {
      map.fail("kv_heads", fmt::format("{} does not divide heads, which is {}", attention.kv_heads,
                                       attention.heads));
    }
    return;
  }
  attention.kind = AttentionShape::Kind::kLatent;
  for (const char* key : {"value_dim", "kv_rank", "rope_dim"}) map.required(key);
  map.integer("value_dim", attention.value_dim, 1, kSizeMax);
  map.integer("query_rank", attention.query_rank, 0, kSizeMax);
  map.integer("kv_rank", attention.kv_rank, 1, kSizeMax);
  map.integer("rope_dim", attention.rope_dim, 0, kSizeMax);
}

void read_ffn(YamlMap& map, FfnShape& ffn) {
  map.required("width");
  map.integer("experts", ffn.experts, 1, kSizeMax);
  map.integer("top_k", ffn.top_k, 1, kSizeMax);
  map.integer("width", ffn.width, 1, kSizeMax);
  map.integer("shared_width", ffn.shared_width, 0, kSizeMax);
  if (ffn.top_k > ffn.experts) {
    map.fail("top_k", fmt::format("{} is above experts, which is {}", ffn.top_k, ffn.experts));
  }
}

void read_model(YamlMap& root, ModelShape& model) {
  for (const char* key : {"name", "hidden", "vocab", "layers"}) root.required(key);
  root.text("name", model.name);
  root.integer("hidden", model.hidden, 1, kSizeMax);
  root.integer("vocab", model.vocab, 1, kSizeMax);
  root.boolean("tied_head", model.tied_head);
  root.map("formats", [&](YamlMap& map) {
    read_format(map, "attention", model.attention_format);
    read_format(map, "experts", model.expert_format);
    read_format(map, "kv", model.kv_format);
    read_format(map, "activations", model.activation_format);
  });
  root.list("layers", [&](YamlMap& map, uint32_t) {
    LayerGroup group;
    for (const char* key : {"count", "attention", "ffn"}) map.required(key);
    map.integer("count", group.count, 1, kLayersMax);
    map.map("attention", [&](YamlMap& inner) { read_attention(inner, group.attention); });
    map.map("ffn", [&](YamlMap& inner) { read_ffn(inner, group.ffn); });
    model.layers.push_back(group);
    if (model.layers.size() > kLayersMax || model.layer_count() > kLayersMax) {
      map.fail("count", fmt::format("more than {} layers", kLayersMax));
    }
  });
  if (model.layers.empty()) root.fail("layers", "needs at least one entry");
}

bool is_json(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t\r\n");
  return first != std::string::npos && text[first] == '{';
}

}  // namespace

Result<ModelShape> parse_model_shape(const std::string& yaml, const std::string& origin) {
  VOLLEY_ASSIGN_OR_RETURN(const YAML::Node document, config::parse_yaml(yaml, origin));
  ModelShape model;
  Status status;
  YamlMap root(document, "", origin, status);
  read_model(root, model);
  const std::vector<Source> sources = read_sources(root);
  root.finish();
  if (!status.ok()) return status;
  VOLLEY_RETURN_IF_ERROR(check_sources(document, sources, {"name"}, origin));
  return model;
}

Result<ModelShape> load_model_shape(const std::string& path) {
  std::error_code error;
  const bool folder = std::filesystem::is_directory(path, error);
  const std::string file = folder ? (std::filesystem::path(path) / "config.json").string() : path;
  VOLLEY_ASSIGN_OR_RETURN(const std::string text,
                          config::read_text_file(file, kConfigJsonBytesMax));
  if (is_json(text)) return parse_config_json(text, file);
  if (text.size() > kCatalogueFileBytesMax) {
    return invalid_argument("{}: larger than {} bytes", file, kCatalogueFileBytesMax);
  }
  return parse_model_shape(text, file);
}

Result<ModelShape> find_model_shape(const std::string& directory, const std::string& name) {
  std::error_code error;
  const std::string file = catalogue_file(directory, name);
  if (name.find('/') == std::string::npos && std::filesystem::exists(file, error)) {
    return load_model_shape(file);
  }
  if (!std::filesystem::exists(name, error)) return no_such_entry("model", directory, name);
  return load_model_shape(name);
}

}  // namespace volley::perf
