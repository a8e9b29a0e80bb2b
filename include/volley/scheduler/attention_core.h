#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "volley/base/ids.h"
#include "volley/base/status.h"
#include "volley/protocol/expert_map.h"
#include "volley/protocol/wire.h"
#include "volley/scheduler/batch_scheduler.h"

namespace volley::scheduler {

struct AttentionCoreOptions {
  SchedulerOptions scheduler;
  protocol::LinkGeometry geometry;
  uint32_t layers = 0;
  uint32_t experts = 0;
  uint32_t top_k = 0;
  Incarnation incarnation;
  uint8_t dtype = 0;
  /// A link that is silent for this long is failed.
  Nanos link_timeout = kSecond;
};

/// Where the answer to (row, j-th chosen expert) lies: entry `index` of the answer in a receive slot.
struct AnswerRef {
  LinkId link;
  uint32_t slot = 0;
  uint32_t index = 0;
};

/// What the shell computes next. In this order: combine, if `combine_rows` is not empty; then `stage`.
struct Work {
  enum class Stage : uint8_t {
    kAttention,  ///< Embed first when layer == 0. Norm ... router of `layer`; then route(), pack and post.
    kPack,       ///< The layer's next fragment: pack and post only.
    kHead,       ///< Final norm, head, sampling of the emitting chunks; then finish_step().
  };
  uint32_t micro_batch = 0;
  Stage stage = Stage::kAttention;
  uint32_t layer = 0;
  const StepPlan* plan = nullptr;
  /// Rows [begin, end) of the micro-batch whose answers are all in, to be added to the residual.
  uint32_t combine_begin = 0, combine_end = 0;
  std::span<const AnswerRef> answers;  ///< [(combine_end - combine_begin) * top_k]
};

/// One message to build: header, entries, and the micro-batch rows to copy, in this order.
struct OutgoingDispatch {
  LinkId link;
  uint32_t slot = 0;
  protocol::MessageHeader header;            ///< Complete.
  std::span<const protocol::Entry> entries;
  std::span<const uint32_t> rows;            ///< Row of the micro-batch, per row of the message.
};

/// The attention node without its kernels, clock and wires: scheduler, micro-batch state machines, links
/// and the expert map. The shell (engine/attention_engine) and the simulation drive the same object.
///
/// A micro-batch goes kIdle -> kReady -> (kDispatched -> kReady)* -> kIdle. It has no barrier with its
/// siblings; ready ones are served first come, first served.
///
/// Invariants, beyond those of its parts:
/// MB-1  a micro-batch has at most one fragment outstanding per link, and combines it only when every
///       link that got a dispatch of the fragment has answered;
/// MB-2  a step ends exactly once: finish_step() or abort;
/// MB-3  a dispatch lost with its link goes again to other live holders (takeover slots), or, when an
///       entry has none, the step is aborted with kUnavailable naming layer and expert;
/// MB-4  an aborted micro-batch starts no new step before its outstanding dispatches are answered or lost.
class AttentionCore {
 public:
  explicit AttentionCore(AttentionCoreOptions options);
  ~AttentionCore();

  BatchScheduler& scheduler();

  /// A newer map. Steps under way keep the version they were started with.
  void set_map(std::shared_ptr<const protocol::ExpertMap> map);
  /// A link to the expert node (name, incarnation) is usable. Incarnations that no map names are kept
  /// until a map does.
  void link_opened(LinkId link, const std::string& node, Incarnation incarnation);
  /// The link is gone: what was outstanding on it is lost.
  void link_closed(LinkId link);
  /// Serving is possible: the map is complete and every holder that is needed has a link.
  /// Errors: kUnavailable naming what is missing.
  Status ready() const;

  /// A message arrived. `slot` bytes were checked by validate_header; this checks the rest and may end the
  /// link. Errors: kDataLoss: the shell closes the link and calls link_closed().
  Status on_message(LinkId link, uint32_t slot, const protocol::MessageHeader& header);

  /// Starts steps of idle micro-batches and picks the next thing to compute. False: nothing now.
  bool next_work(Work& work);
  /// The router's choice for the rows of the layer's step, ascending expert ids: [row_count * top_k].
  /// An id of kInvalidExpert (numbers went bad) aborts the step's affected sequences with kInternal.
  /// Makes the dispatches of the first fragment.
  void route(uint32_t micro_batch, std::span<const uint32_t> expert);
  /// Ends the step.
  void finish_step(uint32_t micro_batch, std::span<const BatchScheduler::Sampled> sampled);

  /// Dispatches to build and post, made by route(), kPack work, or a lost link. Spans are valid until the
  /// next call of take_dispatches().
  std::span<const OutgoingDispatch> take_dispatches();

  /// Deadlines and silent links. `last_heard(link)` per open link is given by the shell beforehand.
  void heard(LinkId link, Nanos when);
  /// Links to close because they are silent; the shell closes them and calls link_closed().
  std::span<const LinkId> tick(Nanos now);

  /// Per micro-batch what it is doing, for status and for the flight recorder.
  struct MicroBatchView {
    const char* state;  ///< "idle", "ready", "dispatched", "aborting"
    uint32_t layer = 0;
    uint32_t rows = 0;
    uint32_t answers_missing = 0;
  };
  MicroBatchView view(uint32_t micro_batch) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace volley::scheduler
