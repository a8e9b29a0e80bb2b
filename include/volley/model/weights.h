#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/embed/embed.h"
#include "kernels/grouped_ffn/grouped_ffn.h"
#include "volley/base/fd.h"
#include "volley/base/ids.h"
#include "volley/base/status.h"
#include "volley/model/model_spec.h"

namespace volley::model {

/// Where weights come from: a checkpoint folder, or a generator (`weights: dummy`).
/// Reads tensors by name and checks their shape; a source is used by one thread at a time.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  /// Packs the matrix [rows, cols] called `name` into `out` (kernels::pack_matrix).
  /// Errors, naming file, tensor and field: kNotFound, kInvalidArgument (dtype, shape, offsets).
  virtual Status read_packed(const std::string& name, uint32_t rows, uint32_t cols,
                             kernels::DType dtype, void* out) = 0;
  /// Reads [rows, cols] row-major as `dtype`.
  virtual Status read_plain(const std::string& name, uint32_t rows, uint32_t cols,
                            kernels::DType dtype, void* out) = 0;
  /// Reads a vector as f32.
  virtual Status read_f32(const std::string& name, uint32_t count, float* out) = 0;
};

/// A checkpoint folder whose config.json (and generation_config.json) has been read and checked.
struct Checkpoint {
  ModelSpec spec;
  std::string folder;
  /// Nodes of a cluster must agree on it: it covers config.json, generation_config.json and, unless the
  /// weights are dummy, every safetensors header, the file sizes and the first 4 KiB of every tensor. For
  /// dummy weights, the seed.
  uint64_t digest = 0;
  bool dummy = false;
  uint64_t dummy_seed = 0;

  /// Reads only config files and headers. Errors name the file and the field.
  static Result<Checkpoint> open(const std::string& folder);
  /// Random weights from config.json alone: reproducible from (seed, tensor name), the same on every node,
  /// with near-uniform routing (embedding sigma 1, everything else 0.02, norms near 1).
  static Result<Checkpoint> open_dummy(const std::string& folder, uint64_t seed);
  Result<std::unique_ptr<WeightSource>> source() const;
};

/// Parses config.json (and optionally generation_config.json, "" when absent). `origin` names the file in
/// errors. Errors: kInvalidArgument (broken JSON, a missing or bad field), kFailedPrecondition (unknown
/// architecture, or a feature that is not supported, named).
Result<ModelSpec> parse_model_config(const std::string& config_json,
                                     const std::string& generation_config_json,
                                     const std::string& origin);

/// What an attention node holds: everything but the experts.
class AttentionWeights {
 public:
  struct Layer {
    std::span<const float> attention_norm;  ///< [hidden]
    std::span<const float> ffn_norm;        ///< [hidden]
    std::span<const float> query_norm;      ///< [head_dim]; null without AttentionSpec::qk_norm.
    std::span<const float> key_norm;        ///< Likewise.
    kernels::PackedMatrix qkv;              ///< [(heads + 2 kv_heads) * head_dim, hidden]
    kernels::PackedMatrix output;           ///< [hidden, heads * head_dim]
    kernels::PackedMatrix router;           ///< [experts, hidden]
  };
  /// Loads and packs the tensors. The size is known beforehand (`bytes_needed`).
  static Result<AttentionWeights> load(const ModelSpec& spec, WeightSource& source,
                                       kernels::DType dtype);
  static size_t bytes_needed(const ModelSpec& spec, kernels::DType dtype);

  const Layer& layer(uint32_t index) const { return layers_[index]; }
  const kernels::EmbeddingTable& embedding() const { return embedding_; }
  std::span<const float> final_norm() const { return final_norm_; }
  const kernels::PackedMatrix& head() const { return head_; }  ///< [vocab, hidden]
  size_t bytes() const { return memory_.bytes().size(); }

 private:
  Mapping memory_;
  std::vector<Layer> layers_;
  kernels::EmbeddingTable embedding_;
  std::span<const float> final_norm_;
  kernels::PackedMatrix head_;
};

/// The experts that an expert node holds: any set of (layer, expert).
class ExpertWeights {
 public:
  struct Key {
    uint32_t layer;
    uint32_t expert;
    auto operator<=>(const Key&) const = default;
  };
  /// Errors: kInvalidArgument also for an expert that does not exist or is listed twice.
  static Result<ExpertWeights> load(const ModelSpec& spec, WeightSource& source, kernels::DType dtype,
                                    std::span<const Key> experts);
  /// Every layer named must exist.
  static size_t bytes_needed(const ModelSpec& spec, kernels::DType dtype, std::span<const Key> experts);

  /// Null when this node does not hold it.
  const kernels::FfnWeights* find(uint32_t layer, uint32_t expert) const;
  size_t bytes() const { return memory_.bytes().size(); }

 private:
  Mapping memory_;
  uint32_t experts_per_layer_ = 0;
  std::vector<kernels::FfnWeights> weights_;  ///< [layers * experts]; `data` is null where not held.
};

}  // namespace volley::model
