#pragma once

// Times from the sizes of a model and the figures of a device: per operator, max(work / rate, bytes
// / bandwidth) with the efficiencies of the device's file.

#include <cstdint>

#include "volley/perf/device.h"
#include "volley/perf/model_shape.h"
#include "volley/perf/stage_times.h"

namespace volley::perf {

/// Some devices of one kind that compute as one node, by tensor parallelism inside it.
struct NodeShape {
  Device device;
  uint32_t tp = 1;  ///< At most device.per_node.
};

/// Where the time of an attention layer goes; seconds.
struct AttentionLayerParts {
  double projections = 0;  ///< QKV and output, the latent ones included.
  double attention = 0;    ///< Keys and values read, scores.
  double router = 0;  ///< Gate, norms, residuals, pack and combine: what reads and writes rows.
  double collectives = 0;  ///< Of tensor parallelism.
  double overhead = 0;
  double total() const { return projections + attention + router + collectives + overhead; }
};

/// One GEMM of `rows` x `inner` by `inner` x `outer` on one device; seconds. `groups` matrices of
/// that size, each with `rows` rows.
double gemm_time(const Device& device, NumberFormat format, double rows, double inner, double outer,
                 double groups = 1);
/// Each of `tp` devices holds `bytes` of a sum, and each ends with the whole: ring all-reduce.
double all_reduce_time(const Device& device, uint32_t tp, double bytes);
/// Each of `tp` devices holds bytes / tp, and each ends with all of it.
double all_gather_time(const Device& device, uint32_t tp, double bytes);

/// The attention stage of one layer of `group` (FFN left out).
AttentionLayerParts attention_layer_time(const ModelShape& model, const LayerGroup& group,
                                         const NodeShape& node, const StepLoad& load);
/// The grouped FFN of one layer. Collectives of tensor parallelism included; what the network does
/// is not.
double expert_layer_time(const ModelShape& model, const LayerGroup& group, const NodeShape& node,
                         std::span<const double> rows_of_expert);

/// A deployment's stages: an attention node here, an expert node there, both the mean over the
/// model's layers. Shared experts are computed by the expert nodes, among which their rows are
/// shared out: where FfnShape::shared_width is not 0, the last count of `rows_of_expert` is the
/// node's share of them. A dense FFN is held whole by every expert node; its rows are those of the
/// routed experts over top-k.
class RooflineTimes final : public StageTimes {
 public:
  RooflineTimes(ModelShape model, NodeShape attention, NodeShape expert);
  double attention_layer(const StepLoad& load) const override;
  double attention_step(const StepLoad& load) const override;
  double expert_layer(std::span<const double> rows_of_expert) const override;

 private:
  const ModelShape model_;
  const NodeShape attention_, expert_;
};

/// Bytes per device of an attention node, and what they leave for keys and values.
struct AttentionMemory {
  double weights = 0;      ///< Attention, router, shared experts, embedding and head, over tp.
  double slots = 0;        ///< M2N slots of all links.
  double activations = 0;  ///< Of the m micro-batches.
  double kv_free = 0;      ///< Of usable_bytes(); negative: it does not fit.
};
AttentionMemory attention_memory(const ModelShape& model, const NodeShape& node,
                                 uint32_t expert_nodes, uint32_t micro_batches, double rows);

/// Bytes per device of an expert node.
struct ExpertMemory {
  double weights = 0;
  double slots = 0;
  double activations = 0;
  double free = 0;  ///< Of usable_bytes(); negative: it does not fit.
};
/// `experts_held`: per layer, replicas and spare room included. `rows`: of one micro-batch of one
/// attention node.
ExpertMemory expert_memory(const ModelShape& model, const NodeShape& node, double experts_held,
                           uint32_t attention_nodes, uint32_t micro_batches, double rows);

}  // namespace volley::perf
