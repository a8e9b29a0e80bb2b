#include "sim/gather_model.h"

#include <algorithm>
#include <deque>
#include <queue>

#include "volley/base/check.h"
#include "volley/base/random.h"

namespace volley::sim {

namespace {

using scheduler::GatherDecision;
using scheduler::GatherPolicy;
using scheduler::PendingDispatch;

class Model {
 public:
  explicit Model(const GatherModelOptions& options) : options_(options), random_(options.seed) {
    for (uint32_t e = 0; e < options.expert_nodes; ++e) {
      experts_.emplace_back(scheduler::GatherOptions{
          .layers = options.layers, .window_max = options.wait ? options.window_max : 0});
      for (uint32_t a = 0; a < options.attention_nodes; ++a) {
        experts_[e].policy.on_link_opened(LinkId{a}, options.micro_batches);
      }
    }
    nodes_.resize(options.attention_nodes);
    // Unmerged, a step takes about this long; nodes start anywhere within it.
    const Nanos spread = options.start_spread >= 0
                             ? options.start_spread
                             : options.layers * (options.attention + options.expert_base);
    for (uint32_t a = 0; a < options.attention_nodes; ++a) {
      nodes_[a].streams.resize(options.micro_batches);
      nodes_[a].pauses = SplitMix64(options.seed * 1'000 + a);
      const Nanos start = spread == 0 ? 0 : static_cast<Nanos>(random_.below(spread + 1));
      for (uint32_t slot = 0; slot < options.micro_batches; ++slot) {
        push({.at = start, .kind = Event::kReady, .node = a, .slot = slot});
      }
    }
  }

  GatherModelResult run() {
    bool warm = false;
    std::vector<GatherPolicy::Stats> before(experts_.size());
    while (!events_.empty() && events_.top().at <= options_.duration) {
      const Event event = events_.top();
      events_.pop();
      now_ = event.at;
      if (!warm && now_ >= options_.warm_up) {
        warm = true;
        for (size_t e = 0; e < experts_.size(); ++e) before[e] = experts_[e].policy.stats();
        for (Node& node : nodes_) node.answered_warm = node.answered;
        result_.longest_wait = 0;
      }
      handle(event);
    }
    uint64_t merged = 0, mergeable = 0, runs = 0, dispatches = 0;
    for (size_t e = 0; e < experts_.size(); ++e) {
      const auto stats = experts_[e].policy.stats();
      merged += stats.merged_runs - before[e].merged_runs;
      mergeable += stats.mergeable_runs - before[e].mergeable_runs;
      runs += stats.runs - before[e].runs;
      dispatches += stats.dispatches - before[e].dispatches;
    }
    const double seconds = static_cast<double>(options_.duration - options_.warm_up) / kSecond;
    result_.merged_share = mergeable == 0 ? 0 : static_cast<double>(merged) / mergeable;
    for (const Node& node : nodes_) {
      result_.node_rate.push_back((node.answered - node.answered_warm) / seconds);
      result_.layers_per_second += result_.node_rate.back();
    }
    result_.entries_per_run = runs == 0 ? 0 : double(dispatches) * options_.entries / runs;
    result_.waited_share =
        static_cast<double>(experts_[0].policy.stats().waited - before[0].waited) /
        static_cast<double>(options_.duration - options_.warm_up);
    return result_;
  }

 private:
  struct Event {
    enum Kind : uint8_t { kReady, kComputed, kDispatch, kRunDone, kAnswer, kWake };
    Nanos at = 0;
    uint64_t order = 0;
    Kind kind = kReady;
    uint32_t node = 0, slot = 0, expert = 0;
    bool operator<(const Event& other) const {  // std::priority_queue gives the largest first.
      return at != other.at ? at > other.at : order > other.order;
    }
  };
  struct Stream {
    uint32_t layer = 0;
    uint32_t steps = 0;
    uint32_t answers_missing = 0;
  };
  struct Node {
    std::vector<Stream> streams;
    SplitMix64 pauses{0};  ///< Of its own, so that two policies meet the same pauses.
    std::deque<uint32_t> ready;
    bool computing = false;
    uint64_t answered = 0, answered_warm = 0;
  };
  struct Expert {
    explicit Expert(scheduler::GatherOptions gather) : policy(gather) {}
    GatherPolicy policy;
    bool running = false;
    std::vector<PendingDispatch> run;
    Nanos elapsed = 0;
    Nanos wake = -1;
  };

  void push(Event event) {
    event.order = ++order_;
    events_.push(event);
  }
  Nanos jittered(double mean) {
    return static_cast<Nanos>(mean * (1.0 + options_.jitter * (2.0 * random_.unit() - 1.0)));
  }
  double slowness(uint32_t node) const {
    return node < options_.slowness.size() ? options_.slowness[node] : 1.0;
  }

  void compute_next(uint32_t a) {
    Node& node = nodes_[a];
    if (node.computing || node.ready.empty()) return;
    const uint32_t slot = node.ready.front();
    node.ready.pop_front();
    node.computing = true;
    Stream& stream = node.streams[slot];
    double time = static_cast<double>(options_.attention);
    if (stream.layer == 0 && stream.steps > 0) time += static_cast<double>(options_.head);
    push({.at = now_ + jittered(time * slowness(a)),
          .kind = Event::kComputed,
          .node = a,
          .slot = slot});
  }

  void serve(uint32_t e) {
    Expert& expert = experts_[e];
    if (expert.running) return;
    const GatherDecision decision = expert.policy.decide(now_);
    switch (decision.kind) {
      case GatherDecision::Kind::kIdle:
        return;
      case GatherDecision::Kind::kWait:
        VOLLEY_CHECK(decision.wait_until > now_);
        if (expert.wake != decision.wait_until) {
          expert.wake = decision.wait_until;
          push({.at = decision.wait_until, .kind = Event::kWake, .expert = e});
        }
        return;
      case GatherDecision::Kind::kRun:
        break;
    }
    expert.running = true;
    expert.run.assign(decision.dispatches.begin(), decision.dispatches.end());
    uint64_t entries = 0;
    for (const auto& dispatch : expert.run) {
      VOLLEY_CHECK(dispatch.layer == decision.layer);
      entries += dispatch.entry_count;
      result_.longest_wait = std::max(result_.longest_wait, now_ - dispatch.arrived);
    }
    const double time = entries == 0 ? 500.0
                                     : static_cast<double>(options_.expert_base) +
                                           static_cast<double>(options_.expert_row) * entries;
    expert.elapsed = jittered(time);
    push({.at = now_ + expert.elapsed, .kind = Event::kRunDone, .expert = e});
  }

  void handle(const Event& event) {
    switch (event.kind) {
      case Event::kReady:
        nodes_[event.node].ready.push_back(event.slot);
        compute_next(event.node);
        return;
      case Event::kComputed: {
        nodes_[event.node].computing = false;
        nodes_[event.node].streams[event.slot].answers_missing = options_.expert_nodes;
        for (uint32_t e = 0; e < options_.expert_nodes; ++e) {
          push({.at = now_ + jittered(options_.transfer),
                .kind = Event::kDispatch,
                .node = event.node,
                .slot = event.slot,
                .expert = e});
        }
        compute_next(event.node);
        return;
      }
      case Event::kDispatch: {
        const Stream& stream = nodes_[event.node].streams[event.slot];
        const bool empty = options_.empty_share > 0 && random_.chance(options_.empty_share);
        experts_[event.expert].policy.on_dispatch({.link = LinkId{event.node},
                                                   .slot = event.slot,
                                                   .layer = stream.layer,
                                                   .entry_count = empty ? 0 : options_.entries,
                                                   .arrived = now_});
        ++result_.dispatches;
        serve(event.expert);
        return;
      }
      case Event::kRunDone: {
        Expert& expert = experts_[event.expert];
        expert.running = false;
        for (const auto& dispatch : expert.run) {
          push({.at = now_ + jittered(options_.transfer),
                .kind = Event::kAnswer,
                .node = dispatch.link.value,
                .slot = dispatch.slot});
          ++result_.answered;
        }
        expert.policy.on_answered(now_, expert.elapsed);
        serve(event.expert);
        return;
      }
      case Event::kAnswer: {
        Node& node = nodes_[event.node];
        Stream& stream = node.streams[event.slot];
        if (--stream.answers_missing > 0) return;
        ++node.answered;
        stream.layer = (stream.layer + 1) % options_.layers;
        Nanos pause = 0;
        if (stream.layer == 0) {
          ++stream.steps;
          if (options_.burst_steps > 0 && stream.steps % options_.burst_steps == 0) {
            pause =
                static_cast<Nanos>(2.0 * node.pauses.unit() * static_cast<double>(options_.pause));
          }
        }
        push({.at = now_ + pause, .kind = Event::kReady, .node = event.node, .slot = event.slot});
        return;
      }
      case Event::kWake:
        if (experts_[event.expert].wake == now_) experts_[event.expert].wake = -1;
        serve(event.expert);
        return;
    }
  }

  GatherModelOptions options_;
  SplitMix64 random_;
  std::deque<Expert> experts_;
  std::vector<Node> nodes_;
  std::priority_queue<Event> events_;
  uint64_t order_ = 0;
  Nanos now_ = 0;
  GatherModelResult result_;
};

}  // namespace

GatherModelResult run_gather_model(const GatherModelOptions& options) {
  return Model(options).run();
}

}  // namespace volley::sim
