#pragma once

// What the stages of a layer take: the meeting point of everything that predicts time. The roofline
// of a device (roofline.h), times measured on a machine, and the times that `compute: modelled`
// daemons sleep are all StageTimes; the search, the simulator and the daemons ask nothing else.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "volley/config/stage_times.h"

namespace volley::perf {

/// What one step of one micro-batch is on an attention node. Numbers, not integers: the search asks
/// for averages.
struct StepLoad {
  double rows = 0;  ///< Tokens: one per decoding sequence, and those of prefill chunks.
  double context_tokens =
      0;  ///< Sum over the rows of the positions that each sees, itself included.
  double emitting_rows = 0;  ///< Rows that end in the head and the sampler.
};

/// Seconds that one node computes. Row counts of zero take what an empty message costs.
/// Threads: const methods may be called from any thread.
class StageTimes {
 public:
  virtual ~StageTimes() = default;
  /// Mean over the layers of one layer's norm, QKV, attention, output projection, router and pack,
  /// and the combine of its answers: T_a.
  virtual double attention_layer(const StepLoad& load) const = 0;
  /// Once per step: bookkeeping, embedding, final norm, head, sampling.
  virtual double attention_step(const StepLoad& load) const = 0;
  /// One grouped FFN: T_e. One count per expert that the node holds, zeros included: an expert
  /// without rows is not read.
  virtual double expert_layer(std::span<const double> rows_of_expert) const = 0;
};

/// Times that are linear in the load: the form of the paper (T_a = k1 b + k2, T_e = k3 b + k4) with
/// the context in it. Seconds.
struct LinearTimes {
  double layer = 0;          ///< Attention: of a layer, whatever the rows.
  double layer_row = 0;      ///< Per row.
  double layer_context = 0;  ///< Per context token.
  double step = 0;           ///< Per step.
  double step_row = 0;       ///< Per row of the step: embedding, bookkeeping.
  double step_emit = 0;      ///< Per emitting row: head, sampling.
  double expert_layer = 0;   ///< Expert: of a run.
  double expert = 0;         ///< Per expert that has rows: reading its weights.
  double expert_row = 0;     ///< Per (row, expert).
  bool operator==(const LinearTimes&) const = default;
};

/// From and to what files say.
LinearTimes linear_times(const config::StageTimesConfig& times);
config::StageTimesConfig to_config(const LinearTimes& times);

class LinearStageTimes final : public StageTimes {
 public:
  explicit LinearStageTimes(const LinearTimes& times) : times_(times) {}
  double attention_layer(const StepLoad& load) const override;
  double attention_step(const StepLoad& load) const override;
  double expert_layer(std::span<const double> rows_of_expert) const override;
  const LinearTimes& times() const { return times_; }

 private:
  const LinearTimes times_;
};

/// One way between nodes: the sender's NIC takes bytes / bytes_per_s for a message, one after the
/// other, then the message needs `latency_s`, and the receiver's NIC takes in messages at the same
/// rate. The paper's fit of its own library: 28 us + bytes / 24.2 GB/s.
struct NetworkTimes {
  double latency_s = 0;
  double bytes_per_s = 0;
  /// T_c of a phase in which each sender sends `send_bytes` in total and each receiver gets
  /// `receive_bytes`: equation (6) with a constant rate.
  double phase(double send_bytes, double receive_bytes) const;
};

}  // namespace volley::perf
