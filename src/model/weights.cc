// What a node of each role holds: one mapping, laid out by one function that also gives its size.

#include "volley/model/weights.h"

#include <algorithm>

#include "volley/base/check.h"

namespace volley::model {
namespace {

using kernels::DType;
using kernels::PackedMatrix;

constexpr size_t kSectionAlign = 64;

/// Hands out the offsets of sections that follow each other.
class Sections {
 public:
  size_t add(size_t bytes) {
    const size_t offset = end_;
    end_ = (offset + bytes + kSectionAlign - 1) / kSectionAlign * kSectionAlign;
    return offset;
  }
  size_t add_packed(uint32_t rows, uint32_t cols, DType dtype) {
    return add(kernels::packed_bytes(rows, cols, dtype));
  }
  size_t add_vector(uint32_t count) { return add(count * sizeof(float)); }
  size_t total_bytes() const { return end_; }

 private:
  size_t end_ = 0;
};

uint32_t qkv_rows(const AttentionSpec& attention) {
  return (attention.heads + 2 * attention.kv_heads) * attention.head_dim;
}

/// Offsets of an attention node's sections.
struct AttentionLayout {
  struct Layer {
    size_t attention_norm, ffn_norm, query_norm, key_norm, qkv, output, router;
  };
  std::vector<Layer> layers;
  size_t embedding = 0;
  size_t final_norm = 0;
  size_t head = 0;  ///< The embedding when the head is tied.
  size_t total_bytes = 0;

  AttentionLayout(const ModelSpec& spec, DType dtype) {
    Sections sections;
    if (spec.tied_head) {
      embedding = head = sections.add_packed(spec.vocab, spec.hidden, dtype);
    } else {
      embedding = sections.add(size_t{spec.vocab} * spec.hidden * kernels::dtype_bytes(dtype));
      head = sections.add_packed(spec.vocab, spec.hidden, dtype);
    }
    final_norm = sections.add_vector(spec.hidden);
    for (const LayerSpec& layer : spec.layers) {
      const AttentionSpec& attention = layer.attention;
      const uint32_t head_norm = attention.qk_norm ? attention.head_dim : 0;
      layers.push_back({
          .attention_norm = sections.add_vector(spec.hidden),
          .ffn_norm = sections.add_vector(spec.hidden),
          .query_norm = sections.add_vector(head_norm),
          .key_norm = sections.add_vector(head_norm),
          .qkv = sections.add_packed(qkv_rows(attention), spec.hidden, dtype),
          .output = sections.add_packed(spec.hidden, attention.heads * attention.head_dim, dtype),
          .router = sections.add_packed(layer.moe.experts, spec.hidden, dtype),
      });
    }
    total_bytes = sections.total_bytes();
  }
};

/// Offsets of one expert's matrices from where the expert begins.
struct ExpertLayout {
  size_t gate, up, down, total_bytes;

  ExpertLayout(const ModelSpec& spec, uint32_t layer, DType dtype) {
    const uint32_t ffn = spec.layers[layer].moe.ffn;
    Sections sections;
    gate = sections.add_packed(ffn, spec.hidden, dtype);
    up = sections.add_packed(ffn, spec.hidden, dtype);
    down = sections.add_packed(spec.hidden, ffn, dtype);
    total_bytes = sections.total_bytes();
  }
};

/// Reads tensors of one source as one dtype into the sections of one mapping.
class Loader {
 public:
  Loader(WeightSource& source, DType dtype, std::span<std::byte> memory)
      : source_(source), dtype_(dtype), memory_(memory) {}

  Result<PackedMatrix> packed(const std::string& name, uint32_t rows, uint32_t cols,
                              size_t offset) {
    VOLLEY_RETURN_IF_ERROR(source_.read_packed(name, rows, cols, dtype_, at(offset)));
    return PackedMatrix{at(offset), rows, cols, dtype_};
  }

  Result<std::span<const float>> vector(const std::string& name, uint32_t count, size_t offset) {
    auto* values = static_cast<float*>(at(offset));
    VOLLEY_RETURN_IF_ERROR(source_.read_f32(name, count, values));
    return std::span<const float>(values, count);
  }

  /// Query, key and value rows as one matrix. Their row counts need not be multiples of a panel, so
  /// the panels are made of all rows together; the row-major copy lives only until then.
  Result<PackedMatrix> qkv(const ModelSpec& spec, const LayerSpec& layer, size_t offset) {
    const uint32_t rows = qkv_rows(layer.attention);
    const size_t row_bytes = size_t{spec.hidden} * kernels::dtype_bytes(dtype_);
    VOLLEY_ASSIGN_OR_RETURN(const Mapping plain, Mapping::allocate(rows * row_bytes));
    const uint32_t query_rows = layer.attention.heads * layer.attention.head_dim;
    const uint32_t kv_rows = layer.attention.kv_heads * layer.attention.head_dim;
    struct Part {
      const std::string& name;
      uint32_t rows;
    };
    std::byte* target = plain.bytes().data();
    for (const Part& part : {Part{spec.names.query, query_rows}, Part{spec.names.key, kv_rows},
                             Part{spec.names.value, kv_rows}}) {
      VOLLEY_RETURN_IF_ERROR(
          source_.read_plain(layer.prefix + part.name, part.rows, spec.hidden, dtype_, target));
      target += part.rows * row_bytes;
    }
    const auto from =
        dtype_ == DType::kBf16 ? kernels::SourceDType::kBf16 : kernels::SourceDType::kF32;
    kernels::pack_matrix(plain.bytes().data(), from, rows, spec.hidden, dtype_, at(offset));
    return PackedMatrix{at(offset), rows, spec.hidden, dtype_};
  }

  void* at(size_t offset) const { return memory_.data() + offset; }

 private:
  WeightSource& source_;
  const DType dtype_;
  const std::span<std::byte> memory_;
};

/// "experts.{}.w1" with the expert's number.
std::string expert_tensor(const LayerSpec& layer, const std::string& name, uint32_t expert) {
  const size_t hole = name.find("{}");
  VOLLEY_CHECK(hole != std::string::npos);
  return layer.prefix + name.substr(0, hole) + std::to_string(expert) + name.substr(hole + 2);
}

uint32_t experts_per_layer(const ModelSpec& spec) {
  uint32_t most = 0;
  for (const LayerSpec& layer : spec.layers) most = std::max(most, layer.moe.experts);
  return most;
}

Status check_experts(const ModelSpec& spec, std::span<const ExpertWeights::Key> experts) {
  std::vector<ExpertWeights::Key> sorted(experts.begin(), experts.end());
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) {
    return invalid_argument("expert {} of layer {} is asked for twice", twice->expert,
                            twice->layer);
  }
  for (const ExpertWeights::Key& key : sorted) {
    if (key.layer >= spec.layer_count()) {
      return invalid_argument("layer {} is asked for, the model has {}", key.layer,
                              spec.layer_count());
    }
    const uint32_t count = spec.layers[key.layer].moe.experts;
    if (key.expert >= count) {
      return invalid_argument("expert {} of layer {} is asked for, the layer has {}", key.expert,
                              key.layer, count);
    }
  }
  return ok_status();
}

}  // namespace

size_t AttentionWeights::bytes_needed(const ModelSpec& spec, DType dtype) {
  return AttentionLayout(spec, dtype).total_bytes;
}

Result<AttentionWeights> AttentionWeights::load(const ModelSpec& spec, WeightSource& source,
                                                DType dtype) {
  const AttentionLayout layout(spec, dtype);
  AttentionWeights weights;
  VOLLEY_ASSIGN_OR_RETURN(weights.memory_, Mapping::allocate(layout.total_bytes));
  Loader loader(source, dtype, weights.memory_.bytes());
  const TensorNames& names = spec.names;

  const std::string& head_name = spec.tied_head ? names.embedding : names.head;
  VOLLEY_ASSIGN_OR_RETURN(weights.head_,
                          loader.packed(head_name, spec.vocab, spec.hidden, layout.head));
  if (!spec.tied_head) {
    VOLLEY_RETURN_IF_ERROR(source.read_plain(names.embedding, spec.vocab, spec.hidden, dtype,
                                             loader.at(layout.embedding)));
  }
  weights.embedding_ = {.data = loader.at(layout.embedding),
                        .vocab = spec.vocab,
                        .hidden = spec.hidden,
                        .dtype = dtype,
                        .packed = spec.tied_head};
  VOLLEY_ASSIGN_OR_RETURN(weights.final_norm_,
                          loader.vector(names.final_norm, spec.hidden, layout.final_norm));
  for (uint32_t index = 0; index < spec.layer_count(); ++index) {
    const LayerSpec& layer = spec.layers[index];
    const AttentionLayout::Layer& offset = layout.layers[index];
    const uint32_t output_cols = layer.attention.heads * layer.attention.head_dim;
    Layer loaded;
    VOLLEY_ASSIGN_OR_RETURN(
        loaded.attention_norm,
        loader.vector(layer.prefix + names.attention_norm, spec.hidden, offset.attention_norm));
    if (layer.attention.qk_norm) {
      const uint32_t head_dim = layer.attention.head_dim;
      VOLLEY_ASSIGN_OR_RETURN(loaded.query_norm, loader.vector(layer.prefix + names.query_norm,
                                                               head_dim, offset.query_norm));
      VOLLEY_ASSIGN_OR_RETURN(
          loaded.key_norm, loader.vector(layer.prefix + names.key_norm, head_dim, offset.key_norm));
    }
    VOLLEY_ASSIGN_OR_RETURN(loaded.qkv, loader.qkv(spec, layer, offset.qkv));
    VOLLEY_ASSIGN_OR_RETURN(loaded.output, loader.packed(layer.prefix + names.output, spec.hidden,
                                                         output_cols, offset.output));
    VOLLEY_ASSIGN_OR_RETURN(loaded.ffn_norm, loader.vector(layer.prefix + names.ffn_norm,
                                                           spec.hidden, offset.ffn_norm));
    VOLLEY_ASSIGN_OR_RETURN(
        loaded.router,
        loader.packed(layer.prefix + names.router, layer.moe.experts, spec.hidden, offset.router));
    weights.layers_.push_back(loaded);
  }
  return weights;
}

size_t ExpertWeights::bytes_needed(const ModelSpec& spec, DType dtype,
                                   std::span<const Key> experts) {
  size_t bytes = 0;
  for (const Key& key : experts) {
    VOLLEY_CHECK(key.layer < spec.layer_count());
    bytes += ExpertLayout(spec, key.layer, dtype).total_bytes;
  }
  return bytes;
}

Result<ExpertWeights> ExpertWeights::load(const ModelSpec& spec, WeightSource& source, DType dtype,
                                          std::span<const Key> experts) {
  VOLLEY_RETURN_IF_ERROR(check_experts(spec, experts));
  ExpertWeights weights;
  weights.experts_per_layer_ = experts_per_layer(spec);
  weights.weights_.resize(size_t{spec.layer_count()} * weights.experts_per_layer_);
  VOLLEY_ASSIGN_OR_RETURN(weights.memory_, Mapping::allocate(bytes_needed(spec, dtype, experts)));
  Loader loader(source, dtype, weights.memory_.bytes());
  size_t begin = 0;
  for (const Key& key : experts) {
    const LayerSpec& layer = spec.layers[key.layer];
    const uint32_t ffn = layer.moe.ffn;
    const ExpertLayout offset(spec, key.layer, dtype);
    kernels::FfnWeights loaded;
    VOLLEY_ASSIGN_OR_RETURN(
        loaded.gate, loader.packed(expert_tensor(layer, spec.names.expert_gate, key.expert), ffn,
                                   spec.hidden, begin + offset.gate));
    VOLLEY_ASSIGN_OR_RETURN(
        loaded.up, loader.packed(expert_tensor(layer, spec.names.expert_up, key.expert), ffn,
                                 spec.hidden, begin + offset.up));
    VOLLEY_ASSIGN_OR_RETURN(loaded.down,
                            loader.packed(expert_tensor(layer, spec.names.expert_down, key.expert),
                                          spec.hidden, ffn, begin + offset.down));
    weights.weights_[size_t{key.layer} * weights.experts_per_layer_ + key.expert] = loaded;
    begin += offset.total_bytes;
  }
  return weights;
}

const kernels::FfnWeights* ExpertWeights::find(uint32_t layer, uint32_t expert) const {
  if (expert >= experts_per_layer_) return nullptr;
  const size_t index = size_t{layer} * experts_per_layer_ + expert;
  if (index >= weights_.size() || weights_[index].gate.data == nullptr) return nullptr;
  return &weights_[index];
}

}  // namespace volley::model
