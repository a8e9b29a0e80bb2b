#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "volley/base/ids.h"
#include "volley/simulation/histogram.h"

namespace volley::simulation {

/// Where the time of a pool's nodes went, in node-seconds of the counted time.
struct AttentionTime {
  double computing = 0;
  // Waiting, by where the answer was that ended it:
  double network = 0;         ///< On its way, to or from the expert node.
  double expert_queue = 0;    ///< The dispatch lay at the expert node.
  double expert_compute = 0;  ///< The expert node computed it.
  double no_work = 0;         ///< There was no request, or one arrived for an idle micro-batch.
  double total() const { return computing + network + expert_queue + expert_compute + no_work; }
};

struct ExpertTime {
  double computing = 0;
  double gather_window = 0;  ///< Waiting for predicted dispatches, to merge them.
  // Waiting with nothing to run, by where the dispatch was that ended it:
  double network = 0;
  double attention = 0;  ///< Its attention node was busy with this micro-batch or others.
  double no_work = 0;    ///< Its attention node had no request.
  double total() const { return computing + gather_window + network + attention + no_work; }
};

/// Calls into the production code and, when they were measured, what they took of this machine.
struct CallCost {
  double calls = 0;
  double seconds = 0;
};

struct ProductionCosts {
  CallCost core_message;     ///< AttentionCore::on_message
  CallCost core_next_work;   ///< AttentionCore::next_work: batching included.
  CallCost core_route;       ///< AttentionCore::route and take_dispatches
  CallCost core_finish;      ///< AttentionCore::finish_step, take_outputs
  CallCost gather_dispatch;  ///< AnswerLink::on_dispatch, GatherPolicy::on_dispatch
  CallCost gather_decide;    ///< GatherPolicy::decide
  CallCost gather_answered;  ///< GatherPolicy::on_answered
  CallCost control;          ///< ExpertMap::build, AttentionCore::set_map, link_opened, link_closed
  bool measured = false;
};

/// A piece of work of a node, or of a message on the wire, for the timeline.
struct TraceSpan {
  enum class Kind : uint8_t { kAttention, kHead, kFfn, kGatherWindow, kSend };
  Kind kind = Kind::kAttention;
  bool expert = false;  ///< Else of an attention node. kSend: of the sender.
  uint32_t node = 0;
  uint16_t micro_batch = 0;
  uint32_t layer = 0;
  uint32_t rows = 0;   ///< kFfn: (row, expert) pairs.
  uint32_t peers = 0;  ///< kFfn: dispatches in the run; kSend: the receiver.
  Nanos begin = 0, end = 0;
};

struct Trace {
  Nanos begin = 0, end = 0;
  bool cut = false;  ///< There were more spans than were to be kept.
  std::vector<std::string> attention_names, expert_names;
  std::vector<TraceSpan> spans;  ///< By end.
};

/// All figures are of the time after the warm-up, and of all replicas, those that were folded
/// included.
struct Report {
  double counted_s = 0;
  double replicas = 0;
  uint32_t simulated_replicas = 0;
  double attention_nodes = 0, expert_nodes = 0;  ///< Means over the time.
  double gpus = 0;                               ///< Likewise.

  double tokens = 0, prefill_tokens = 0;
  double tokens_per_s = 0, tokens_per_s_per_gpu = 0;
  Histogram ttft;         ///< Of requests that got their first token: from arrival to it.
  Histogram tpot;         ///< Of requests that ended well: mean time of a token after the first.
  Histogram inter_token;  ///< Between two tokens of a request.

  // Of the whole run, the warm-up included.
  double accepted = 0, finished = 0, failed = 0, rejected = 0, in_flight_at_end = 0;
  double preemptions = 0;
  /// Ended without all their tokens: their attention node died; an expert had no holder.
  double failed_attention_died = 0, failed_unavailable = 0;
  uint32_t map_versions = 0;  ///< Of the replica with the most.

  AttentionTime attention;
  ExpertTime expert;
  double layers_computed = 0;    ///< By attention nodes, per micro-batch: the whole run.
  double batch_rows = 0;         ///< Mean rows of a micro-batch step.
  double micro_batches = 0;      ///< Mean of the active ones, over steps.
  double gather_runs = 0;        ///< With entries.
  double gather_dispatches = 0;  ///< In these.
  double mergeable_runs = 0, merged_runs = 0;
  double messages = 0, dispatch_bytes = 0, answer_bytes = 0;
  /// Rows per expert of all layers, over their mean: [experts]. Replica 0's.
  std::vector<double> expert_load;

  ProductionCosts costs;
  double events = 0;  ///< Handled by this run, not scaled.
  double wall_s = 0;
  double cpu_s = 0;  ///< Of all threads: what other processes do does not count.
  Trace trace;

  double attention_utilisation() const {
    return attention.total() > 0 ? attention.computing / attention.total() : 0;
  }
  double expert_utilisation() const {
    return expert.total() > 0 ? expert.computing / expert.total() : 0;
  }
  double merged_share() const { return mergeable_runs > 0 ? merged_runs / mergeable_runs : 0; }
};

/// For people. `wall`: with the simulation's own speed, which differs from run to run.
std::string format_report(const Report& report, bool wall);
/// For programs; keys are those of the structs. `wall` as above.
std::string report_json(const Report& report, bool wall);
/// Chrome trace events, which Perfetto (ui.perfetto.dev) opens.
std::string trace_json(const Trace& trace);
/// A self-contained SVG picture: a lane per node, a colour per micro-batch.
std::string trace_svg(const Trace& trace, const std::string& title);

}  // namespace volley::simulation
