// Goal: AttentionCore keeps LINK-1 to LINK-3 and MB-1 to MB-4, combines exactly the answers of its
// own rows and experts, and ends every accepted sequence once, whatever the links and nodes do.
// Method: a fake expert pool in virtual time under one seed. An expert "computes" by echoing (row
// token, experts, layer), so a wrong or overwritten answer shows when it is combined, and so does
// an expert that is missing or comes twice in the sums of `combine: pre_reduce`; receive slots are
// wiped when the other direction is posted or the link closes, as the Fabric contract allows.
// Answers are delayed, doubled and overtaken; nodes refuse; links close and come back under new
// maps. Then the faults stop and everything must end. Planted bugs in the shell and in the network
// show that the checks can fail.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "volley/base/random.h"
#include "volley/scheduler/attention_core.h"

namespace volley::scheduler {
namespace {

using protocol::Combine;
using protocol::Entry;
using protocol::ExpertMap;
using protocol::LinkGeometry;
using protocol::MapVersion;
using protocol::MessageHeader;
using protocol::MessageKind;
using protocol::Refusal;

enum class Bug : uint8_t {
  kNone,
  kAcceptStale,    ///< An old answer is taken for the outstanding one.
  kShiftedAnswer,  ///< The shell combines the neighbour of the answer it was told.
  kLateCombine,    ///< The shell posts the next fragment before it combines the last.
  kForgetClosed,   ///< The shell does not say that a link closed.
  kMuteWhenEmpty,  ///< A node does not answer dispatches without rows.
  kLostPost,       ///< A dispatch is never sent.
};

/// One answer row: what an expert makes of a row, or with kPreReduce the sum of what a node's
/// experts make of it, in this order.
struct Echo {
  uint64_t row_token = 0;
  std::vector<uint32_t> experts;
  uint32_t layer = 0;
  bool operator==(const Echo&) const = default;
};

struct Slot {
  MessageHeader sent;
  std::vector<Echo> received;  ///< The receive slot; empty once it may have been overwritten.
  bool outstanding = false;
};

struct FakeLink {
  LinkId id;
  uint32_t node = 0;
  Incarnation incarnation;
  std::vector<Slot> slots;
  Nanos heard = 0;
  bool mute = false;
};

struct InFlight {
  Nanos when = 0;
  uint64_t order = 0;
  LinkId link;
  uint32_t slot = 0;
  MessageHeader header;
  std::vector<Echo> rows;
};

struct Node {
  Incarnation incarnation{1};
  std::vector<uint32_t> experts;
};

/// What the shell knows of a micro-batch's step.
struct StepState {
  bool active = false;
  uint64_t serial = 0;
  uint32_t rows = 0;
  uint32_t layer = 0;
  uint32_t combined = 0;  ///< Rows of the layer.
  std::vector<uint32_t> expert;
  std::vector<bool> bad;
};

class CoreSim {
 public:
  CoreSim(uint64_t seed, Bug bug, Combine combine = Combine::kExact) : random_(seed), bug_(bug) {
    draw_cluster(combine);
    core_ = std::make_unique<AttentionCore>(options_);
    steps_.resize(options_.scheduler.micro_batches);
  }

  std::string run() {
    publish_map();
    for (uint32_t node = 0; node < nodes_.size(); ++node) open_link(node);
    while (failure_.empty() && now_ < 3'000) turn(true);
    heal();
    const Nanos limit = now_ + 60'000;
    while (failure_.empty() && now_ < limit && !finished()) turn(false);
    if (failure_.empty()) check_end();
    return failure_;
  }
  uint64_t hash() const { return hash_; }
  uint64_t combined_rows() const { return combined_rows_; }
  uint64_t summed_rows() const { return summed_rows_; }
  uint64_t takeovers() const { return takeovers_; }
  uint64_t finished_sequences() const { return core_->scheduler().stats().finished; }

 private:
  uint32_t pick(uint32_t low, uint32_t high) {
    return low + static_cast<uint32_t>(random_.below(high - low + 1));
  }
  void fail(const std::string& what) {
    if (failure_.empty()) failure_ = what;
  }
  void note(uint64_t value) { hash_ = (hash_ ^ value) * 0x100000001b3ull; }

  void draw_cluster(Combine combine) {
    options_.layers = pick(1, 3);
    options_.experts = pick(1, 6);
    options_.top_k = pick(1, std::min(3u, options_.experts));
    options_.incarnation = {77};
    options_.dtype = 1;
    options_.link_timeout = 400;
    options_.scheduler.micro_batches = pick(1, 3);
    options_.scheduler.tokens_per_step_max = pick(1, 12);
    options_.scheduler.sequences_max = pick(1, 8);
    options_.scheduler.waiting_max = 8;
    options_.scheduler.block_tokens = 4;
    options_.scheduler.sequence_tokens_max = 24;
    options_.scheduler.block_count = pick(6, 20);
    options_.geometry = LinkGeometry::make(options_.scheduler.micro_batches, pick(1, 5),
                                           options_.top_k, 64, 64, combine);
    const uint32_t node_count = pick(1, 4);
    nodes_.resize(node_count);
    for (uint32_t expert = 0; expert < options_.experts; ++expert) {
      const uint32_t replicas = pick(1, node_count);
      for (uint32_t i = 0; i < replicas; ++i) {
        nodes_[(expert + i) % node_count].experts.push_back(expert);
      }
    }
  }

  std::string name_of(uint32_t node) const { return "expert-" + std::to_string(node); }

  void publish_map() {
    std::vector<ExpertMap::Holding> holdings;
    for (uint32_t node = 0; node < nodes_.size(); ++node) {
      holdings.push_back({.node = {.name = name_of(node), .incarnation = nodes_[node].incarnation},
                          .experts = nodes_[node].experts});
    }
    const MapVersion version{.term = 1, .number = ++map_number_};
    auto map = ExpertMap::build(version, options_.layers, options_.experts, holdings);
    map_ = std::make_shared<const ExpertMap>(std::move(map).value());
    maps_[version] = map_;
    core_->set_map(map_);
  }

  void open_link(uint32_t node) {
    const LinkId id{++next_link_};
    FakeLink link{.id = id,
                  .node = node,
                  .incarnation = nodes_[node].incarnation,
                  .slots = std::vector<Slot>(options_.geometry.slot_count()),
                  .heard = now_,
                  .mute = false};
    links_.emplace(id, std::move(link));
    core_->link_opened(id, name_of(node), nodes_[node].incarnation);
  }

  void close_link(LinkId id) {
    std::erase_if(wire_, [&](const InFlight& message) { return message.link == id; });
    links_.erase(id);
    if (bug_ != Bug::kForgetClosed) core_->link_closed(id);
    post_soon();
  }

  bool finished() { return core_->scheduler().idle() && wire_.empty(); }

  void turn(bool faults) {
    now_ += pick(1, 10);
    if (faults && random_.chance(0.15)) submit();
    if (faults && random_.chance(0.01)) {
      core_->scheduler().cancel({pick(1, static_cast<uint32_t>(next_sequence_) + 1)},
                                Status(StatusCode::kCancelled, "by the test"));
    }
    if (faults && random_.chance(0.01)) {
      core_->scheduler().preempt({pick(1, static_cast<uint32_t>(next_sequence_) + 1)});
    }
    if (faults) inject();
    if (unposted_) post_all();
    deliver();
    // A slow shell: micro-batches stay ready, and messages unsent, while other things happen.
    const uint32_t works_max = pick(0, 3);
    for (uint32_t works = 0; works < works_max && failure_.empty(); ++works) {
      Work work;
      if (!core_->next_work(work)) break;
      compute(work);
    }
    for (auto& [id, link] : links_) {
      if (!link.mute) core_->heard(id, now_);
    }
    const std::span<const LinkId> silent = core_->tick(now_);
    for (const LinkId id : std::vector<LinkId>(silent.begin(), silent.end())) close_link(id);
    read_outputs();
    check_views();
  }

  void inject() {
    if (random_.chance(0.004) && !links_.empty()) {
      auto place = links_.begin();
      std::advance(place, random_.below(links_.size()));
      if (random_.chance(0.3)) {
        place->second.mute = true;  // Falls silent; the timeout must find it.
        std::erase_if(wire_, [&](const InFlight& message) { return message.link == place->first; });
      } else {
        const uint32_t node = place->second.node;
        close_link(place->first);
        if (random_.chance(0.5)) {
          nodes_[node].incarnation = {nodes_[node].incarnation.value + 1};
          publish_map();
          post_all();
        }
      }
    }
    if (random_.chance(0.01)) {
      const uint32_t node = pick(0, static_cast<uint32_t>(nodes_.size()) - 1);
      const bool linked = std::any_of(links_.begin(), links_.end(), [&](const auto& each) {
        return each.second.node == node && each.second.incarnation == nodes_[node].incarnation;
      });
      if (!linked) open_link(node);
    }
    if (random_.chance(0.003)) publish_map();
  }

  /// The faults stop: every node has a link of its present incarnation and the map says so.
  void heal() {
    std::vector<LinkId> old;
    for (const auto& [id, link] : links_) {
      if (link.mute || link.incarnation != nodes_[link.node].incarnation) old.push_back(id);
    }
    for (const LinkId id : old) close_link(id);
    publish_map();
    for (uint32_t node = 0; node < nodes_.size(); ++node) {
      const bool linked = std::any_of(links_.begin(), links_.end(),
                                      [&](const auto& each) { return each.second.node == node; });
      if (!linked) open_link(node);
    }
    if (failure_.empty() && !core_->ready().ok()) fail("not ready: " + core_->ready().ToString());
    healed_ = true;
  }

  void submit() {
    SequenceRequest request;
    request.id = {next_sequence_ + 1};
    request.tokens.assign(pick(1, 16), 3);
    request.max_new_tokens = pick(1, 8);
    if (random_.chance(0.1)) request.deadline = now_ + pick(1, 2'000);
    if (!core_->ready().ok()) return;  // As the shell does.
    if (!core_->scheduler().submit(std::move(request), now_).ok()) return;
    ++next_sequence_;
    ended_[{next_sequence_}] = false;
  }

  uint64_t row_token(uint32_t micro_batch, uint32_t row) const {
    return steps_[micro_batch].serial * 1'000 + row;
  }

  // --- The shell ---

  void compute(const Work& work) {
    StepState& step = steps_[work.micro_batch];
    note(work.micro_batch * 16 + static_cast<uint64_t>(work.stage));
    if (work.stage == Work::Stage::kAttention && work.layer == 0 &&
        work.combine_begin == work.combine_end) {
      begin_step(work, step);
    } else {
      if (!step.active) return fail("MB-2: work for a step that is not under way");
      if (bug_ == Bug::kLateCombine) post_all();
      combine(work, step);
    }
    if (!failure_.empty()) return;
    switch (work.stage) {
      case Work::Stage::kAttention:
        if (work.layer > 0) {
          if (step.combined != step.rows) return fail("MB-1: a layer ended before all its rows");
          if (work.layer != step.layer + 1) return fail("a layer was left out");
        }
        step.layer = work.layer;
        step.combined = 0;
        route(work, step);
        break;
      case Work::Stage::kPack:
        if (work.layer != step.layer) fail("a pack of another layer");
        break;
      case Work::Stage::kHead:
        if (step.layer + 1 != options_.layers || step.combined != step.rows) {
          fail("MB-1: a step ended before all its rows");
        }
        finish(work, step);
        break;
    }
    post_soon();
  }

  void begin_step(const Work& work, StepState& step) {
    for (const auto& [id, link] : links_) {
      for (uint32_t slot = work.micro_batch; slot < link.slots.size();
           slot += options_.geometry.micro_batches) {
        if (link.slots[slot].outstanding) fail("MB-4: a step started with dispatches outstanding");
      }
    }
    // The last step of this micro-batch was aborted if it is still active here: its sequences have
    // ended.
    step = {};
    step.active = true;
    step.serial = ++step_serial_;
    step.rows = work.plan->row_count;
    step.bad.assign(step.rows, false);
  }

  void route(const Work& work, StepState& step) {
    step.expert.clear();
    for (uint32_t row = 0; row < step.rows; ++row) {
      const bool bad = random_.chance(healed_ ? 0.0 : 0.002);
      std::set<uint32_t> chosen;
      while (chosen.size() < options_.top_k) chosen.insert(pick(0, options_.experts - 1));
      for (const uint32_t expert : chosen) step.expert.push_back(bad ? 0xffffffff : expert);
      if (!bad) continue;
      for (const Chunk& chunk : work.plan->chunks) {
        if (row < chunk.first_row || row >= chunk.first_row + chunk.row_count) continue;
        std::fill_n(step.bad.begin() + chunk.first_row, chunk.row_count, true);
      }
    }
    core_->route(work.micro_batch, step.expert);
  }

  void combine(const Work& work, StepState& step) {
    if (work.combine_begin != step.combined) return fail("MB-1: rows combined out of order");
    if (work.answers.size() != size_t{work.combine_end - work.combine_begin} * options_.top_k) {
      return fail("the answer references do not cover the rows");
    }
    for (uint32_t row = work.combine_begin; row < work.combine_end; ++row) {
      const std::span<const uint32_t> chosen =
          std::span(step.expert).subspan(size_t{row} * options_.top_k, options_.top_k);
      std::vector<uint32_t> summed;  // Of the row: the experts in what is combined.
      for (uint32_t j = 0; j < options_.top_k; ++j) {
        AnswerRef ref = work.answers[size_t{row - work.combine_begin} * options_.top_k + j];
        const bool none = ref.index == AnswerRef::kNone;
        const bool in_another = std::find(summed.begin(), summed.end(), chosen[j]) != summed.end();
        if (none != (step.bad[row] || in_another)) return fail("kNone is at the wrong places");
        if (none) continue;
        const auto link = links_.find(ref.link);
        if (link == links_.end()) return fail("an answer is to be read from a closed link");
        const std::vector<Echo>& rows = link->second.slots[ref.slot].received;
        if (bug_ == Bug::kShiftedAnswer && rows.size() > 1)
          ref.index = (ref.index + 1) % rows.size();
        if (ref.index >= rows.size()) return fail("the answer was overwritten or never came");
        const Echo& echo = rows[ref.index];
        const bool sum = options_.geometry.combine() == Combine::kPreReduce;
        if (echo.row_token != row_token(work.micro_batch, row) || echo.layer != step.layer ||
            echo.experts.empty() || echo.experts.front() != chosen[j] ||
            (!sum && echo.experts.size() != 1)) {
          return fail("MB-1: a wrong answer was combined");
        }
        summed.insert(summed.end(), echo.experts.begin(), echo.experts.end());
        combined_rows_ += 1;
        summed_rows_ += echo.experts.size() > 1 ? 1 : 0;
        note(echo.row_token * 31 + chosen[j]);
      }
      if (step.bad[row]) continue;
      std::sort(summed.begin(), summed.end());
      if (!std::equal(summed.begin(), summed.end(), chosen.begin(), chosen.end())) {
        return fail("MB-1: a row did not get each of its experts once");
      }
    }
    step.combined = work.combine_end;
  }

  void finish(const Work& work, StepState& step) {
    std::vector<BatchScheduler::Sampled> sampled;
    for (const Chunk& chunk : work.plan->chunks) {
      if (!chunk.emits) continue;
      const bool bad = step.bad[chunk.first_row];
      sampled.push_back({.token = bad ? -1 : static_cast<int32_t>(pick(0, 9))});
    }
    step.active = false;
    core_->finish_step(work.micro_batch, sampled);
  }

  // --- The network and the nodes ---

  void post_soon() {
    unposted_ = random_.chance(0.2);
    if (!unposted_) post_all();
  }

  void post_all() {
    unposted_ = false;
    for (const OutgoingDispatch& dispatch : core_->take_dispatches()) {
      if (!failure_.empty()) return;
      post(dispatch);
    }
  }

  void post(const OutgoingDispatch& dispatch) {
    const MessageHeader& header = dispatch.header;
    const auto found = links_.find(dispatch.link);
    if (found == links_.end()) {
      if (bug_ != Bug::kForgetClosed) fail("a dispatch for a closed link");
      return;
    }
    FakeLink& link = found->second;
    Slot& slot = link.slots[dispatch.slot];
    if (slot.outstanding) return fail("LINK-2: a slot was posted to while outstanding");
    const uint32_t micro_batches = options_.geometry.micro_batches;
    if (dispatch.slot % micro_batches != header.micro_batch)
      return fail("a slot of another micro-batch");
    if (dispatch.slot >= micro_batches) ++takeovers_;
    for (uint32_t other = header.micro_batch; other < link.slots.size(); other += micro_batches) {
      const MessageHeader& sent = link.slots[other].sent;
      if (link.slots[other].outstanding &&
          (sent.fragment != header.fragment || sent.layer != header.layer)) {
        return fail("MB-1: two fragments of a micro-batch on one link");
      }
    }
    check_dispatch(dispatch, link);
    if (!failure_.empty()) return;
    slot.sent = header;
    slot.outstanding = true;
    slot.received.clear();
    if (link.mute) return;
    if (bug_ == Bug::kLostPost && random_.chance(0.01)) return;
    if (bug_ == Bug::kMuteWhenEmpty && dispatch.entries.empty()) return;

    InFlight answer{.when = now_ + pick(1, 60),
                    .order = ++message_order_,
                    .link = dispatch.link,
                    .slot = dispatch.slot,
                    .header = header,
                    .rows = {}};
    answer.header.incarnation = link.incarnation.value;
    answer.header.kind = MessageKind::kAnswer;
    answer.header.row_count = options_.geometry.answer_rows(header.row_count, header.entry_count);
    answer.header.entry_count = 0;
    const bool stale = header.map < map_->version && random_.chance(0.3);
    const bool not_finite = !healed_ && random_.chance(0.0005);
    const bool not_held = !healed_ && random_.chance(0.0005);
    if (stale || not_finite || not_held) {
      answer.header.kind = MessageKind::kRefusal;
      answer.header.row_count = 0;
      answer.header.refusal = stale        ? Refusal::kStaleMap
                              : not_finite ? Refusal::kNotFinite
                                           : Refusal::kNotHeld;
    } else {
      answer.rows = echo(dispatch);
    }
    if (random_.chance(0.1)) {
      InFlight again = answer;
      again.when += pick(1, 400);
      again.order = ++message_order_;
      wire_.push_back(std::move(again));
    }
    wire_.push_back(std::move(answer));
  }

  std::vector<Echo> echo(const OutgoingDispatch& dispatch) const {
    const MessageHeader& header = dispatch.header;
    const bool sum = options_.geometry.combine() == Combine::kPreReduce;
    std::vector<Echo> rows(options_.geometry.answer_rows(header.row_count, header.entry_count));
    for (size_t i = 0; i < dispatch.entries.size(); ++i) {
      const Entry& entry = dispatch.entries[i];
      Echo& row = rows[sum ? entry.row : i];
      row.row_token = row_token(header.micro_batch, dispatch.rows[entry.row]);
      row.layer = header.layer;
      row.experts.push_back(entry.expert);
    }
    return rows;
  }

  void check_dispatch(const OutgoingDispatch& dispatch, const FakeLink& link) {
    const MessageHeader& header = dispatch.header;
    if (header.kind != MessageKind::kDispatch || header.incarnation != options_.incarnation.value ||
        header.slot != dispatch.slot || header.dtype != options_.dtype ||
        header.row_bytes != options_.geometry.dispatch.row_bytes ||
        header.layer >= options_.layers || header.fragment >= header.fragment_count ||
        header.row_count != dispatch.rows.size() || header.entry_count != dispatch.entries.size() ||
        header.sequence == 0) {
      return fail("the header is not what is sent");
    }
    const auto map = maps_.find(header.map);
    if (map == maps_.end()) return fail("an unknown map version");
    const uint32_t rows_max = options_.geometry.dispatch.rows_max;
    if (header.row_count > rows_max ||
        header.entry_count > options_.geometry.dispatch.entries_max) {
      return fail("a dispatch does not fit its slot");
    }
    std::set<uint32_t> rows(dispatch.rows.begin(), dispatch.rows.end());
    if (rows.size() != dispatch.rows.size()) return fail("a row is sent twice to one node");
    for (const uint32_t row : rows) {
      if (row / rows_max != header.fragment) return fail("a row of another fragment");
      if (steps_[header.micro_batch].bad[row]) return fail("a row of an ended sequence is sent");
    }
    const Entry* last = nullptr;
    for (const Entry& entry : dispatch.entries) {
      if (entry.row >= dispatch.rows.size()) return fail("an entry names no row");
      if (last != nullptr &&
          std::tie(last->expert, last->row) >= std::tie(entry.expert, entry.row)) {
        return fail("entries are not sorted by (expert, row)");
      }
      last = &entry;
      bool held = false;
      for (const uint32_t holder : map->second->holders_of(header.layer, entry.expert)) {
        const ExpertMap::Node& node = map->second->nodes[holder];
        held |= node.name == name_of(link.node) && node.incarnation == link.incarnation;
      }
      if (!held)
        return fail("an expert was asked of a node that does not hold it in the map named");
    }
  }

  void deliver() {
    std::sort(wire_.begin(), wire_.end(), [](const InFlight& a, const InFlight& b) {
      return std::tie(a.when, a.order) < std::tie(b.when, b.order);
    });
    while (failure_.empty() && !wire_.empty() && wire_.front().when <= now_) {
      InFlight message = std::move(wire_.front());
      wire_.erase(wire_.begin());
      const auto found = links_.find(message.link);
      if (found == links_.end()) continue;
      Slot& slot = found->second.slots[message.slot];
      bool matches = slot.outstanding && slot.sent.sequence == message.header.sequence;
      if (bug_ == Bug::kAcceptStale && slot.outstanding && !matches) {
        message.header.sequence = slot.sent.sequence;
        message.header.layer = slot.sent.layer;
        message.header.fragment = slot.sent.fragment;
        message.header.row_count =
            options_.geometry.answer_rows(slot.sent.row_count, slot.sent.entry_count);
        matches = true;
      }
      // A stale answer finds no room: a fabric gives a receive slot to the answer of its last post.
      if (matches) {
        slot.received = message.rows;
        slot.outstanding = false;
      }
      note(message.header.sequence);
      const Status status = core_->on_message(message.link, message.slot, message.header);
      if (!status.ok()) fail("an honest answer was refused: " + status.ToString());
      post_soon();
    }
  }

  // --- Checks ---

  void read_outputs() {
    std::vector<SequenceOutput> outputs;
    core_->scheduler().take_outputs(outputs);
    for (const SequenceOutput& output : outputs) {
      bool& ended = ended_.at(output.id);
      if (ended) fail("SCHED-2: an output after the end");
      ended = output.ended();
    }
  }

  void check_views() {
    for (uint32_t index = 0; index < steps_.size(); ++index) {
      const auto view = core_->view(index);
      uint32_t outstanding = 0;
      for (const auto& [id, link] : links_) {
        for (uint32_t slot = index; slot < link.slots.size();
             slot += options_.geometry.micro_batches) {
          outstanding += link.slots[slot].outstanding ? 1u : 0u;
        }
      }
      const std::string state = view.state;
      if (bug_ == Bug::kForgetClosed || unposted_) continue;
      if (view.answers_missing != outstanding)
        fail("LINK-1: answers_missing is not what is outstanding");
      if ((state == "idle" || state == "ready") && outstanding != 0) {
        fail("MB-1: " + state + " with dispatches outstanding");
      }
      if ((state == "dispatched" || state == "aborting") && outstanding == 0) {
        fail("LINK-1: " + state + " with nothing outstanding");
      }
    }
  }

  void check_end() {
    read_outputs();
    if (!core_->scheduler().idle()) return fail("MB-2: a step or a sequence never ends");
    for (const auto& [id, ended] : ended_) {
      if (!ended) return fail("SCHED-2: an accepted sequence never ended");
    }
    for (uint32_t index = 0; index < steps_.size(); ++index) {
      if (std::string(core_->view(index).state) != "idle") return fail("a micro-batch never ends");
    }
    const auto stats = core_->scheduler().stats();
    if (stats.blocks_free != stats.blocks_total) return fail("KV-2: blocks were lost");
  }

  SplitMix64 random_;
  Bug bug_;
  AttentionCoreOptions options_;
  std::unique_ptr<AttentionCore> core_;
  std::vector<Node> nodes_;
  std::shared_ptr<const ExpertMap> map_;
  std::map<MapVersion, std::shared_ptr<const ExpertMap>> maps_;
  std::map<LinkId, FakeLink> links_;
  std::vector<InFlight> wire_;
  std::vector<StepState> steps_;
  std::map<SequenceId, bool> ended_;
  std::string failure_;
  Nanos now_ = 0;
  uint32_t map_number_ = 0;
  uint32_t next_link_ = 0;
  uint64_t next_sequence_ = 0;
  uint64_t step_serial_ = 0;
  uint64_t message_order_ = 0;
  uint64_t combined_rows_ = 0;
  uint64_t summed_rows_ = 0;  ///< Of these, sums of more than one expert.
  uint64_t takeovers_ = 0;
  uint64_t hash_ = 0xcbf29ce484222325ull;
  bool healed_ = false;
  bool unposted_ = false;  ///< The core may have messages that were not asked for yet.
};

TEST(AttentionCoreSim, KeepsItsRules) {
  uint64_t combined = 0, takeovers = 0, finished = 0;
  for (uint64_t seed = 0; seed < 2'000; ++seed) {
    CoreSim sim(seed, Bug::kNone);
    ASSERT_EQ(sim.run(), "") << "reproduce with seed=" << seed;
    combined += sim.combined_rows();
    takeovers += sim.takeovers();
    finished += sim.finished_sequences();
  }
  // The faults must not keep the simulation from doing what it is for.
  EXPECT_GT(combined, 100'000u);
  EXPECT_GT(takeovers, 500u);
  EXPECT_GT(finished, 5'000u);
}

TEST(AttentionCoreSim, KeepsItsRulesWithSumsOnTheExpertNodes) {
  uint64_t combined = 0, summed = 0, takeovers = 0, finished = 0;
  for (uint64_t seed = 0; seed < 2'000; ++seed) {
    CoreSim sim(seed, Bug::kNone, Combine::kPreReduce);
    ASSERT_EQ(sim.run(), "") << "reproduce with seed=" << seed;
    combined += sim.combined_rows();
    summed += sim.summed_rows();
    takeovers += sim.takeovers();
    finished += sim.finished_sequences();
  }
  EXPECT_GT(combined, 50'000u);
  EXPECT_GT(summed, 10'000u);
  EXPECT_GT(takeovers, 500u);
  EXPECT_GT(finished, 5'000u);
}

TEST(AttentionCoreSim, OneSeedGivesOneHistory) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    CoreSim first(seed, Bug::kNone), second(seed, Bug::kNone);
    first.run();
    second.run();
    EXPECT_EQ(first.hash(), second.hash()) << "seed " << seed;
  }
}

class PlantedBug : public testing::TestWithParam<std::pair<Bug, std::vector<std::string>>> {};

TEST_P(PlantedBug, IsCaught) {
  const auto& [bug, expected] = GetParam();
  for (const Combine combine : {Combine::kExact, Combine::kPreReduce}) {
    std::string failure;
    for (uint64_t seed = 0; seed < 300 && failure.empty(); ++seed) {
      failure = CoreSim(seed, bug, combine).run();
    }
    EXPECT_TRUE(std::find(expected.begin(), expected.end(), failure) != expected.end())
        << "got: " << failure;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shell, PlantedBug,
    testing::Values(std::pair(Bug::kAcceptStale,
                              std::vector<std::string>{"MB-1: a wrong answer was combined",
                                                       "the answer was overwritten or never came"}),
                    std::pair(Bug::kShiftedAnswer,
                              std::vector<std::string>{"MB-1: a wrong answer was combined"}),
                    std::pair(Bug::kLateCombine,
                              std::vector<std::string>{"the answer was overwritten or never came"}),
                    std::pair(Bug::kForgetClosed,
                              std::vector<std::string>{
                                  "MB-2: a step or a sequence never ends",
                                  "an answer is to be read from a closed link"}),
                    std::pair(Bug::kMuteWhenEmpty,
                              std::vector<std::string>{"MB-2: a step or a sequence never ends"}),
                    std::pair(Bug::kLostPost,
                              std::vector<std::string>{"MB-2: a step or a sequence never ends"})));

}  // namespace
}  // namespace volley::scheduler
