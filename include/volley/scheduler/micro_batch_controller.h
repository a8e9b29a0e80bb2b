#pragma once

// How many micro-batches an attention node runs (`micro_batches: auto`): from measured T_a, T_e and
// T_c, by the pipeline model of MegaScale-Infer. docs/design.md derives it.

#include <cstdint>
#include <string>

#include "volley/base/ids.h"
#include "volley/scheduler/time_curve.h"

namespace volley::scheduler {

/// What one layer takes for one micro-batch, in ns.
struct PhaseTimes {
  double attention = 0;  ///< T_a: on the attention node, with its share of head and sampling.
  double expert = 0;     ///< T_e: on the slowest expert node.
  double transfer = 0;   ///< T_c: one way.
};

/// The time of a step of all m micro-batches in ns, each with the phase times given:
/// max(X + T_f (m L - 1), L X + (m - 1) T_f), X = T_a + T_e + 2 T_c, T_f = max(T_a, T_e).
double pipeline_time(const PhaseTimes& times, uint32_t micro_batches, uint32_t layers);

struct MicroBatchControllerOptions {
  uint32_t micro_batches_max = 1;  ///< At least 1.
  uint32_t rows_max = 256;         ///< Of a micro-batch step.
  uint32_t layers = 1;
  /// Experts compute while the attention node does. False when both share their cores: then more
  /// micro-batches only make batches smaller, and the decision is 1.
  bool overlap = true;
};

/// What the controller has decided, and why. Plain data, so that it can be published cheaply.
struct MicroBatchDecision {
  enum class Why : uint8_t {
    kConfigured,   ///< No controller: a fixed number.
    kSharedCores,  ///< Attention and experts share their cores.
    kUnmeasured,   ///< Nothing to go by.
    kPredicted,    ///< The best by the model, or within the hysteresis of it.
    kTrial,        ///< For a few steps, to measure at another batch size.
  };
  Why why = Why::kConfigured;
  uint32_t micro_batches = 1;
  double rows = 0;      ///< Of one micro-batch.
  PhaseTimes times{};   ///< At `rows`.
  double layer_ns = 0;  ///< Predicted for the whole batch.
  /// The best of the other numbers; 0: there is none to compare with.
  uint32_t other = 0;
  double other_layer_ns = 0;
};

/// "m=3: T_a 1.10 ms, T_e 1.05 ms, T_c 0.32 ms at 16 rows; predicted 3.40 ms/layer against 4.10 at
/// m=2"
std::string describe(const MicroBatchDecision& decision);

/// Learns T_a, T_e and T_c by batch size and chooses m for the most tokens per time.
///
/// For m micro-batches of a batch of B sequences each has b = B / m rows (at most rows_max), with
/// times interpolated from the measured sizes. A change needs a predicted gain of more than 5 % for
/// some steps on end, and a pause since the last one, which doubles while changes follow each other
/// closely (MBC-1: fewer than one change per pause). A size that was never measured, or not for
/// half a minute, is tried for a few steps when it could pay off by more than 5 % at best, in less
/// than a tenth of the time (MBC-2). With nothing measured m stays what it is.
///
/// Pure: events and times in, decisions out; deterministic. Allocates nothing.
class MicroBatchController {
 public:
  /// Starts with m = 1: alone a micro-batch shows T_c, which hides as soon as others overlap it.
  explicit MicroBatchController(const MicroBatchControllerOptions& options);

  /// A decode step of one micro-batch took `per_layer` of the attention node's time per layer.
  void on_attention(uint32_t rows, Nanos per_layer, Nanos now);
  /// The slowest answers to the step's dispatches took `time` to compute, in the mean of the
  /// layers.
  void on_expert(uint32_t rows, Nanos time, Nanos now);
  /// One way of a round trip. `exact`: neither end was busy when a message came; otherwise the time
  /// has some waiting in it and is an upper bound.
  void on_transfer(uint32_t rows, Nanos time, bool exact, Nanos now);

  /// After each step of a micro-batch, with the number of sequences that decode: the number of
  /// micro-batches from now on.
  uint32_t decide(uint32_t sequences, Nanos now);

  const MicroBatchDecision& decision() const { return decision_; }
  const TimeCurve& attention() const { return attention_; }
  const TimeCurve& expert() const { return expert_; }
  const TimeCurve& transfer() const { return transfer_; }

 private:
  struct Prediction {
    double rows = 0;
    PhaseTimes times;
    double rate = 0;  ///< Tokens per ns; 0: unknown.
  };

  double rows_of(uint32_t micro_batches) const;
  Prediction predict(uint32_t micro_batches, const PhaseTimes& times) const;
  /// By the measured times; a rate of 0 when the size was never measured.
  Prediction expected(uint32_t micro_batches) const;
  /// By the shortest times that what is measured admits.
  Prediction at_best(uint32_t micro_batches, Nanos now) const;
  /// The best number by expected(), other than `except`; 0: none has an expectation.
  uint32_t best(uint32_t except) const;

  bool end_trial(Nanos now);
  bool start_trial(Nanos now);
  void consider_change(Nanos now);
  void change_to(uint32_t micro_batches, Nanos now);
  void explain();

  const MicroBatchControllerOptions options_;
  TimeCurve attention_, expert_, transfer_;
  MicroBatchDecision decision_;
  uint32_t sequences_ = 0;  // At the last decide().

  uint32_t candidate_ = 0;  // Promised more than the number in force, candidate_steps_ on end.
  uint32_t candidate_steps_ = 0;
  Nanos changed_ = 0;
  Nanos pause_ = 0;  // From changed_ to the next change at least.

  bool in_trial_ = false;
  uint32_t before_trial_ = 1;
  uint32_t trial_steps_ = 0;
  Nanos trial_started_ = 0;
  Nanos next_trial_ = 0;
};

}  // namespace volley::scheduler
