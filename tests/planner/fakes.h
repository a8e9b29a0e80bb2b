#pragma once

// Devices, models and node models of the planner's tests.

#include <functional>
#include <memory>
#include <utility>

#include "volley/planner/plan.h"

namespace volley::planner {

/// A device with figures of the size of an 80 GB Ampere GPU.
inline perf::Device test_device(const std::string& name) {
  perf::Device device;
  device.name = name;
  device.memory_bytes = 80e9;
  device.memory_bytes_per_s = 2.039e12;
  device.flops[static_cast<size_t>(perf::NumberFormat::kBf16)] = 312e12;
  device.link_bytes_per_s = 200e9;
  device.network_bytes_per_s = 25e9;
  device.per_node = 8;
  device.price = 1;
  device.watts = 400;
  return device;
}

inline perf::AttentionShape grouped_attention(uint32_t heads, uint32_t kv_heads,
                                              uint32_t head_dim) {
  perf::AttentionShape attention;
  attention.heads = heads;
  attention.kv_heads = kv_heads;
  attention.head_dim = head_dim;
  attention.value_dim = head_dim;
  return attention;
}

inline perf::ModelShape test_model(uint32_t layers, uint32_t hidden,
                                   const perf::AttentionShape& attention,
                                   const perf::FfnShape& ffn) {
  perf::ModelShape model;
  model.name = "test";
  model.hidden = hidden;
  model.vocab = 32000;
  model.layers.push_back({.count = layers, .attention = attention, .ffn = ffn});
  return model;
}

/// DBRX: 40 layers, 16 experts, 4 of them per token.
inline perf::ModelShape dbrx() {
  return test_model(40, 6144, grouped_attention(48, 8, 128),
                    {.experts = 16, .top_k = 4, .width = 10752});
}

/// Times and memory from functions, for figures that were measured elsewhere.
class FakeNodes final : public NodeModel {
 public:
  std::function<double(const perf::NodeShape&, const perf::StepLoad&)> attention_layer;
  std::function<double(const perf::NodeShape&, std::span<const double>)> expert_layer;
  double kv_bytes_free = 1e15;
  double experts_max = 1e9;  ///< That an expert node has room for.

  std::unique_ptr<const perf::StageTimes> times(const perf::NodeShape& node) const override {
    return std::make_unique<Times>(*this, node);
  }
  perf::AttentionMemory attention_memory(const perf::NodeShape&, uint32_t, uint32_t,
                                         double) const override {
    perf::AttentionMemory memory;
    memory.kv_free = kv_bytes_free;
    return memory;
  }
  perf::ExpertMemory expert_memory(const perf::NodeShape&, double experts_held, uint32_t, uint32_t,
                                   double) const override {
    perf::ExpertMemory memory;
    memory.weights = experts_held;
    memory.free = experts_max - experts_held;
    return memory;
  }

 private:
  class Times final : public perf::StageTimes {
   public:
    Times(const FakeNodes& nodes, perf::NodeShape node) : nodes_(nodes), node_(std::move(node)) {}
    double attention_layer(const perf::StepLoad& load) const override {
      return nodes_.attention_layer(node_, load);
    }
    double attention_step(const perf::StepLoad&) const override { return 0; }
    double expert_layer(std::span<const double> rows) const override {
      return nodes_.expert_layer(node_, rows);
    }

   private:
    const FakeNodes& nodes_;
    const perf::NodeShape node_;
  };
};

}  // namespace volley::planner
