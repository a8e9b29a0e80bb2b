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
  uint8_t dtype = 0;  ///< protocol::RowDType of the dispatches.
  /// A link that is silent for this long is failed.
  Nanos link_timeout = kSecond;
};

/// Where the answer to (row, j-th chosen expert) lies: row `index` of the answer in a receive slot. With
/// kPreReduce it is a sum, with the weights in it, over this and those of the row's later experts that
/// were computed with it and have no answer of their own.
struct AnswerRef {
  /// As `index`: there is no answer, because the row's sequence ended in route(), or because another one
  /// has it in its sum. Combine a row of zeros.
  static constexpr uint32_t kNone = 0xffffffff;
  LinkId link;
  uint32_t slot = 0;
  uint32_t index = 0;
};

/// What the shell computes next. In this order: combine, if [combine_begin, combine_end) is not empty; then
/// `stage`.
struct Work {
  enum class Stage : uint8_t {
    kAttention,  ///< Embed first when layer == 0. Norm ... router of `layer`; then route(), pack and post.
    kPack,       ///< The layer's next fragment: pack and post only.
    kHead,       ///< Final norm, head, sampling of the emitting chunks; then finish_step().
  };
  uint32_t micro_batch = 0;
  Stage stage = Stage::kAttention;
  uint32_t layer = 0;  ///< kHead: the last one.
  const StepPlan* plan = nullptr;
  /// Rows [begin, end) of the micro-batch whose answers are all in, to be added to the residual.
  uint32_t combine_begin = 0, combine_end = 0;
  /// [(combine_end - combine_begin) * top_k], valid until the next next_work().
  std::span<const AnswerRef> answers;
};

/// One message to build: header, entries, and the micro-batch rows to copy, in this order.
struct OutgoingDispatch {
  LinkId link;
  uint32_t slot = 0;
  /// Complete but for `link`, the number agreed in the handshake, which only the Fabric knows.
  protocol::MessageHeader header;
  std::span<const protocol::Entry> entries;
  std::span<const uint32_t> rows;            ///< Row of the micro-batch, per row of the message.
};

/// The attention node without its kernels, clock and wires: scheduler, micro-batch state machines, links
/// and the expert map. The shell (engine/attention_engine) and the simulation drive the same object.
///
/// A micro-batch goes kIdle -> kReady -> kComputing -> (kDispatched -> kReady -> kComputing)* -> kIdle, or from
/// kDispatched to kAborting and kIdle. It has no barrier with its
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

  /// A newer map; an older one or one of the same version is ignored. Steps under way keep the version they
  /// were started with, unless a node refuses it as stale. A map of other dimensions than the model's is
  /// not used, and ready() says so.
  void set_map(std::shared_ptr<const protocol::ExpertMap> map);
  /// A link to the expert node (name, incarnation) is usable. Incarnations that no map names are kept
  /// until a map does.
  void link_opened(LinkId link, const std::string& node, Incarnation incarnation);
  /// The link is gone: what was outstanding on it is lost, and so are answers on it that no Work has named
  /// yet, since its receive slots are no longer to be read. Unknown links are ignored.
  void link_closed(LinkId link);
  /// Serving is possible: the map is complete and every expert has a holder with a link. No step starts
  /// otherwise.
  /// Errors: kUnavailable naming what is missing.
  Status ready() const;

  /// A message arrived. `header` was checked by validate_header; this checks that it answers what is
  /// outstanding. Stale answers are dropped, with OK. A node's refusal aborts the step or sends the entries
  /// again by a newer map. Errors: kDataLoss, naming node, field and values: the shell closes the link and
  /// calls link_closed().
  Status on_message(LinkId link, uint32_t slot, const protocol::MessageHeader& header);

  /// Starts steps of idle micro-batches and picks the next thing to compute. False: nothing now.
  /// The shell combines before it handles another event, then ends kAttention with route() and kHead with
  /// finish_step(); kPack needs nothing but take_dispatches(), which has its messages.
  bool next_work(Work& work);
  /// The router's choice for the rows of the layer's step, ascending expert ids: [row_count * top_k].
  /// A row whose ids are kernels::kInvalidExpert (numbers went bad) ends its sequence with kInternal; it stays
  /// in the step, and none of the sequence's rows is dispatched any more.
  /// Makes the dispatches of the first fragment: one to every link whose node holds an expert of the layer,
  /// with no rows where none is for it.
  void route(uint32_t micro_batch, std::span<const uint32_t> expert);
  /// Ends the step.
  void finish_step(uint32_t micro_batch, std::span<const BatchScheduler::Sampled> sampled);

  /// Dispatches to build and post, made by route(), kPack work, a refusal or a lost link, in this order of
  /// making. The shell asks after each of these. Spans are valid until the next call that is not const.
  std::span<const OutgoingDispatch> take_dispatches();

  /// When something was last heard on an open link; the shell says so before tick().
  void heard(LinkId link, Nanos when);
  /// Ends what is past its deadline, and all sequences with kUnavailable when a lost link made the node
  /// not ready. Returns the links that are silent (a link counts as heard at the first tick() after it
  /// opened); the shell closes them and calls link_closed(). Valid until the next call that is not const.
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
