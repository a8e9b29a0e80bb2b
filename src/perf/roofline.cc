#include "volley/perf/roofline.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace volley::perf {
namespace {

double memory_time(const Device& device, double bytes) {
  return bytes > 0 ? bytes / (device.memory_bytes_per_s * device.efficiency.memory.at(bytes)) : 0;
}

/// `rows` share one matrix: fewer rows than a tile has leave part of it idle.
double compute_time(const Device& device, NumberFormat format, double flops, double rows) {
  return flops > 0 ? flops / (device.flops_of(format) * device.efficiency.compute.at(rows)) : 0;
}

double collective_time(const Device& device, uint32_t tp, double bytes_sent) {
  if (tp == 1 || bytes_sent <= 0) return 0;
  return device.efficiency.collective_s +
         bytes_sent / (device.link_bytes_per_s * device.efficiency.link.at(bytes_sent));
}

/// QKV and output projections; `tp` devices share the heads.
double projection_time(const ModelShape& model, const AttentionShape& attention,
                       const NodeShape& node, double rows) {
  const Device& device = node.device;
  const NumberFormat format = model.attention_format;
  const double heads = double{1} * attention.heads / node.tp;
  const double hidden = model.hidden;
  if (attention.kind == AttentionShape::Kind::kGrouped) {
    // Fewer key heads than devices: each device has a copy of one.
    const double kv_heads = std::max(1.0, double{1} * attention.kv_heads / node.tp);
    const double query_width = heads * attention.head_dim;
    const double kv_width = kv_heads * (attention.head_dim + attention.value_dim);
    return gemm_time(device, format, rows, hidden, query_width + kv_width) +
           gemm_time(device, format, rows, heads * attention.value_dim, hidden);
  }
  // Latent attention with the up-projections of keys and values absorbed into queries and outputs.
  // What every head shares is computed by each device.
  const double query_dim = attention.head_dim + attention.rope_dim;
  const double down = attention.kv_rank + attention.rope_dim;
  double time = 0;
  if (attention.query_rank > 0) {
    time += gemm_time(device, format, rows, hidden, attention.query_rank + down) +
            gemm_time(device, format, rows, attention.query_rank, heads * query_dim);
  } else {
    time += gemm_time(device, format, rows, hidden, heads * query_dim + down);
  }
  return time + gemm_time(device, format, rows, attention.head_dim, attention.kv_rank, heads) +
         gemm_time(device, format, rows, attention.kv_rank, attention.value_dim, heads) +
         gemm_time(device, format, rows, heads * attention.value_dim, hidden);
}

double score_time(const ModelShape& model, const AttentionShape& attention, const NodeShape& node,
                  const StepLoad& load) {
  const double context = attention.window == 0
                             ? load.context_tokens
                             : std::min(load.context_tokens, load.rows * attention.window);
  const double heads = double{1} * attention.heads / node.tp;
  double bytes = context * kv_bytes(model, attention);
  double flops = 0, sharing = 0;
  if (attention.kind == AttentionShape::Kind::kGrouped) {
    bytes /= std::min<double>(node.tp, attention.kv_heads);
    flops = 2 * context * heads * (attention.head_dim + attention.value_dim);
    sharing = double{1} * attention.heads / attention.kv_heads;
  } else {
    // All heads read the same vector, so every device reads all of it.
    flops = 2 * context * heads * (2.0 * attention.kv_rank + attention.rope_dim);
    sharing = heads;
  }
  const Device& device = node.device;
  const double read =
      bytes > 0 ? bytes / (device.memory_bytes_per_s * device.efficiency.attention.at(bytes)) : 0;
  return std::max(read, compute_time(device, NumberFormat::kBf16, flops, sharing));
}

/// Passes over a row besides those of GEMMs, in rows read or written: two norms (2 each), two
/// residual additions (3 each), rotation and append; a copy per dispatch and a row per answer come
/// on top.
constexpr double kRowPasses = 12;

/// One grouped FFN: `experts` with one count each, of intermediate size `width`.
double grouped_ffn_time(const ModelShape& model, double width, const NodeShape& node,
                        std::span<const double> rows_of_expert) {
  const Device& device = node.device;
  const double hidden = model.hidden;
  const double share = width / node.tp;
  const double format_bytes = bytes_of(model.expert_format);
  const double activation_bytes = bytes_of(NumberFormat::kBf16);
  double rows = 0, read = 0, compute_in = 0, compute_out = 0;
  for (const double expert_rows : rows_of_expert) {
    if (expert_rows <= 0) continue;
    rows += expert_rows;
    read += std::min(expert_rows, 1.0);
    const double in = 2 * expert_rows * hidden * 2 * share;
    const double together = std::max(expert_rows, 1.0);
    compute_in += compute_time(device, model.expert_format, in, together);
    compute_out += compute_time(device, model.expert_format, in / 2, together);
  }
  const double in_bytes =
      read * hidden * 2 * share * format_bytes + rows * (hidden + share) * activation_bytes;
  const double out_bytes =
      read * hidden * share * format_bytes + rows * (hidden + share) * activation_bytes;
  return std::max(compute_in, memory_time(device, in_bytes)) +
         std::max(compute_out, memory_time(device, out_bytes)) +
         all_reduce_time(device, node.tp, rows * hidden * activation_bytes);
}

double sum_of(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum;
}

/// Bytes of the slots of one link at one of its ends: as protocol::LinkGeometry, m slots and m
/// takeover slots with a dispatch and an answer each.
double link_bytes(const ModelShape& model, uint32_t micro_batches, double rows,
                  double experts_per_row) {
  const double row_bytes = model.hidden * bytes_of(model.activation_format);
  return 2.0 * micro_batches * rows * (1 + experts_per_row) * row_bytes;
}

}  // namespace

double gemm_time(const Device& device, NumberFormat format, double rows, double inner, double outer,
                 double groups) {
  if (rows <= 0 || groups <= 0) return 0;
  const double flops = groups * 2 * rows * inner * outer;
  const double bytes = groups * (inner * outer * bytes_of(format) +
                                 rows * (inner + outer) * bytes_of(NumberFormat::kBf16));
  return std::max(compute_time(device, format, flops, rows), memory_time(device, bytes));
}

double all_reduce_time(const Device& device, uint32_t tp, double bytes) {
  return collective_time(device, tp, 2 * bytes * (tp - 1) / tp);
}

double all_gather_time(const Device& device, uint32_t tp, double bytes) {
  return collective_time(device, tp, bytes * (tp - 1) / tp);
}

AttentionLayerParts attention_layer_time(const ModelShape& model, const LayerGroup& group,
                                         const NodeShape& node, const StepLoad& load) {
  const Device& device = node.device;
  const double row_bytes = model.hidden * bytes_of(NumberFormat::kBf16);
  AttentionLayerParts parts;
  parts.overhead = device.efficiency.attention_layer_s;
  if (load.rows <= 0) return parts;
  parts.projections = projection_time(model, group.attention, node, load.rows);
  parts.attention = score_time(model, group.attention, node, load);
  const double passes =
      kRowPasses + 3.0 * group.ffn.top_k;  // A copy: read, write. An answer: read.
  parts.router = memory_time(device, load.rows * passes * row_bytes);
  if (group.ffn.routed()) {
    parts.router +=
        gemm_time(device, NumberFormat::kBf16, load.rows, model.hidden, group.ffn.experts);
  }
  parts.collectives = all_reduce_time(device, node.tp, load.rows * row_bytes);
  return parts;
}

double expert_layer_time(const ModelShape& model, const LayerGroup& group, const NodeShape& node,
                         std::span<const double> rows_of_expert) {
  double time = node.device.efficiency.expert_layer_s;
  if (group.ffn.shared_width > 0 && !rows_of_expert.empty()) {
    time += grouped_ffn_time(model, group.ffn.shared_width, node, rows_of_expert.last(1));
    rows_of_expert = rows_of_expert.first(rows_of_expert.size() - 1);
  }
  return time + grouped_ffn_time(model, group.ffn.width, node, rows_of_expert);
}

RooflineTimes::RooflineTimes(ModelShape model, NodeShape attention, NodeShape expert)
    : model_(std::move(model)), attention_(std::move(attention)), expert_(std::move(expert)) {}

double RooflineTimes::attention_layer(const StepLoad& load) const {
  double time = 0;
  for (const LayerGroup& group : model_.layers) {
    time += group.count * attention_layer_time(model_, group, attention_, load).total();
  }
  return time / model_.layer_count();
}

double RooflineTimes::attention_step(const StepLoad& load) const {
  const Device& device = attention_.device;
  const double share = double{1} * model_.vocab / attention_.tp;
  const double logits = load.emitting_rows * model_.vocab * bytes_of(NumberFormat::kF32);
  return device.efficiency.step_s +
         memory_time(device, load.rows * model_.hidden * 2 * bytes_of(NumberFormat::kBf16)) +
         gemm_time(device, model_.attention_format, load.emitting_rows, model_.hidden, share) +
         all_gather_time(device, attention_.tp, logits) + memory_time(device, logits);
}

double RooflineTimes::expert_layer(std::span<const double> rows_of_expert) const {
  const double top_k = model_.top_k();
  double time = 0;
  for (const LayerGroup& group : model_.layers) {
    if (group.ffn.routed() || model_.experts() == 1) {
      time += group.count * expert_layer_time(model_, group, expert_, rows_of_expert);
      continue;
    }
    // Among routed layers a dense one: the node gets its share of all tokens.
    bool shared = false;
    for (const LayerGroup& other : model_.layers) shared |= other.ffn.shared_width > 0;
    const auto routed = shared ? rows_of_expert.first(rows_of_expert.size() - 1) : rows_of_expert;
    const double rows = sum_of(routed) / top_k;
    time += group.count * expert_layer_time(model_, group, expert_, {&rows, 1});
  }
  return time / model_.layer_count();
}

AttentionMemory attention_memory(const ModelShape& model, const NodeShape& node,
                                 uint32_t expert_nodes, uint32_t micro_batches, double rows) {
  AttentionMemory memory;
  double params = embedding_params(model);
  double experts_per_row = 1, width = 0;
  for (const LayerGroup& group : model.layers) {
    params +=
        group.count * (attention_params(model, group.attention) + router_params(model, group.ffn));
    experts_per_row = std::max<double>(
        experts_per_row,
        std::min<double>(group.ffn.top_k, std::ceil(1.0 * group.ffn.experts / expert_nodes)));
    width = std::max(width, 2.0 * group.attention.heads * group.attention.head_dim);
  }
  memory.weights = params * bytes_of(model.attention_format) / node.tp;
  memory.slots = expert_nodes * link_bytes(model, micro_batches, rows, experts_per_row) / node.tp;
  memory.activations = micro_batches * rows *
                       ((3.0 * model.hidden + width / node.tp) * bytes_of(NumberFormat::kBf16) +
                        double{1} * model.vocab / node.tp * bytes_of(NumberFormat::kF32));
  memory.kv_free = node.device.usable_bytes() - memory.weights - memory.slots - memory.activations;
  return memory;
}

ExpertMemory expert_memory(const ModelShape& model, const NodeShape& node, double experts_held,
                           uint32_t attention_nodes, uint32_t micro_batches, double rows) {
  ExpertMemory memory;
  double params = 0, experts_per_row = 1, width = 0;
  for (const LayerGroup& group : model.layers) {
    const double held = group.ffn.routed() ? experts_held : 1;
    params +=
        group.count * (held * expert_params(model, group.ffn) + shared_params(model, group.ffn));
    experts_per_row = std::max(experts_per_row, std::min<double>(group.ffn.top_k, std::ceil(held)));
    width = std::max<double>(width, std::max(group.ffn.width, group.ffn.shared_width));
  }
  memory.weights = params * bytes_of(model.expert_format) / node.tp;
  memory.slots =
      attention_nodes * link_bytes(model, micro_batches, rows, experts_per_row) / node.tp;
  // One gather at a time: the intermediate rows and the answers, at most all rows of a micro-batch.
  memory.activations = attention_nodes * rows * experts_per_row *
                       (2.0 * width / node.tp + model.hidden) * bytes_of(NumberFormat::kBf16);
  memory.free = node.device.usable_bytes() - memory.weights - memory.slots - memory.activations;
  return memory;
}

}  // namespace volley::perf
