#include "volley/scheduler/gather.h"

#include <algorithm>
#include <cstdlib>
#include <tuple>

#include "volley/base/check.h"

// How the numbers were found: tests/sim/gather_model.cc with 2 to 4 attention nodes, m in 1..4, 4
// to 32 layers, 1 to 3 expert nodes, jitter 8 %, random phases. As it stands, the worst share of
// merged runs is 0.96 for equal nodes with T_e = T_a. The worst throughput relative to W = 0 is
// 0.98 there, and 0.96 over all cases: two nodes with m = 1, which interleave by chance as well as
// one node with m = 2 does, and a third of the dispatches empty, which cannot be predicted.
//
// Tried and rejected, one at a time (worst of 4 seeds; while W was 2 savings):
// - the oldest dispatch first instead of the lagging layer: merged 0.00, throughput 0.62;
// - no hold at layer 0: merged 0.00 with m = 1;
// - W of 1, 2 and 4 savings: merged 0.76, 0.93, 0.99; 4 costs unequal nodes 6 % of throughput;
// - all dispatches of a layer in one run: merged 0.76, as two of one node go with one of its peer
//   and the peer's other one is left alone, forever;
// - margins of 2 and 3 mean deviations: merged 0.78 and 0.88;
// - holding for links of any pace: throughput 0.82 with one node three times slower;
// - holding for irregular links: throughput 0.94 with bursts;
// - waiting at any load: throughput 0.93 with T_e = T_a / 5 and unequal nodes;
// - running another layer while the lagging one waits: nodes lock at a distance, merged 0.00.

namespace volley::scheduler {

namespace {

/// W, in savings of one merge.
constexpr Nanos kWindowSavings = 3;
/// A dispatch is late by at most so many mean deviations of its turnaround, and so many savings.
constexpr Nanos kMarginDeviations = 5;
constexpr Nanos kMarginSavings = 2;
/// Links whose pace differs by at most 1/8 hold for each other.
constexpr Nanos kPaceShare = 8;
/// Below this share of busy time, if nothing merged, nothing queues and a wait buys nothing.
constexpr double kLoadMin = 0.5;
/// A new sample weighs 1/8, as in TCP's estimate of the round trip.
constexpr Nanos kMeanWeight = 8;

/// A running mean and mean absolute deviation.
struct Estimate {
  Nanos mean = 0;
  Nanos deviation = 0;

  void add(Nanos sample) {
    if (mean == 0) {
      mean = std::max<Nanos>(sample, 1);
      deviation = mean / 4;
      return;
    }
    const Nanos error = sample - mean;
    mean = std::max<Nanos>(mean + error / kMeanWeight, 1);
    deviation += (std::abs(error) - deviation) / kMeanWeight;
  }
};

/// Splits run times into a part that each run costs and a part that each entry costs, by least
/// squares over about the last 64 runs.
class RunCost {
 public:
  void add(uint64_t entries, Nanos elapsed) {
    constexpr double kDecay = 63.0 / 64.0;
    const double x = static_cast<double>(entries);
    const double y = static_cast<double>(elapsed);
    n_ = n_ * kDecay + 1.0;
    x_ = x_ * kDecay + x;
    y_ = y_ * kDecay + y;
    xx_ = xx_ * kDecay + x * x;
    xy_ = xy_ * kDecay + x * y;
    const double variance = xx_ - x_ * x_ / n_;
    // Runs of equal size say nothing about the slope: the last one known stays.
    if (variance > 1e-3 * xx_) slope_ = std::clamp((xy_ - x_ * y_ / n_) / variance, 0.0, y_ / x_);
  }
  /// What merging two runs into one saves.
  Nanos per_run() const {
    return n_ == 0 ? 0 : static_cast<Nanos>(std::max(0.0, (y_ - slope_ * x_) / n_));
  }

 private:
  double n_ = 0, x_ = 0, y_ = 0, xx_ = 0, xy_ = 0;
  double slope_ = 0;
};

bool older(const PendingDispatch& a, const PendingDispatch& b) {
  return std::tie(a.arrived, a.link, a.slot) < std::tie(b.arrived, b.link, b.slot);
}

}  // namespace

struct GatherPolicy::Impl {
  enum class State : uint8_t { kUnknown, kPending, kRunning, kAway };

  /// The dispatches of one slot of one link.
  struct Stream {
    State state = State::kUnknown;
    bool predicted = false;    ///< Takeover slots are not.
    PendingDispatch dispatch;  ///< The last one.
    Nanos answered = 0;
    Estimate turnaround;  ///< From the answer of a layer to the dispatch of the next one.
    Estimate
        turnaround_step;  ///< The same from the last layer to layer 0: head, sampling, planning.
  };
  struct Link {
    LinkId id;
    Nanos last_arrival = -1;
    Estimate layer_time;  ///< Of one stream, from dispatch to dispatch: the pace of the node.
    std::vector<Stream> streams;  ///< By slot.
  };

  GatherOptions options;
  std::vector<Link> links;  ///< In order of opening.
  std::vector<PendingDispatch> run;
  std::vector<uint32_t> occupied;  ///< Scratch, per layer: streams that are there.
  bool running = false;
  bool run_has_entries = false;
  RunCost cost;
  Estimate layer_time;
  double arrival_gap = 0;  ///< Mean time between dispatches with entries.
  Nanos last_arrival = -1;
  Nanos wait_began = -1;
  Stats stats;

  Link* find(LinkId id) {
    const auto it =
        std::find_if(links.begin(), links.end(), [&](const Link& l) { return l.id == id; });
    return it == links.end() ? nullptr : &*it;
  }
  Nanos step_time() const { return layer_time.mean * options.layers; }
  uint32_t next_layer(const Stream& stream) const {
    return stream.dispatch.layer + 1 == options.layers ? 0 : stream.dispatch.layer + 1;
  }
  const Estimate& turnaround(const Stream& stream) const {
    return next_layer(stream) == 0 ? stream.turnaround_step : stream.turnaround;
  }
  static bool pending_at(const Stream& stream, uint32_t layer) {
    return stream.state == State::kPending && stream.dispatch.layer == layer;
  }
  /// When the stream is expected with its next layer; -1: not at all.
  Nanos expected_at(const Stream& stream) const {
    if (!stream.predicted || stream.state != State::kAway || turnaround(stream).mean == 0)
      return -1;
    return stream.answered + turnaround(stream).mean;
  }
  Nanos margin(const Stream& stream) const {
    return std::min(kMarginDeviations * turnaround(stream).deviation,
                    kMarginSavings * cost.per_run());
  }
  Nanos window() const {
    const Nanos saving = cost.per_run();
    // The share of the time that unmerged runs would keep the node busy.
    const bool loaded = static_cast<double>(saving) >= kLoadMin * arrival_gap;
    return loaded ? std::min(options.window_max, kWindowSavings * saving) : 0;
  }

  void learn(Link& link, Stream& stream, const PendingDispatch& dispatch);
  void learn_load(const PendingDispatch& dispatch);
  const PendingDispatch* first_empty() const;
  const PendingDispatch* overdue(Nanos now) const;
  uint32_t lagging_layer(Nanos now);
  Nanos wait_until(uint32_t layer, Nanos now) const;
  Nanos arrival_of(const Link& link, uint32_t layer, Nanos since, Nanos now) const;
  bool keeps_pace(const Link& link, uint32_t layer) const;
  uint32_t share_per_link(uint32_t layer, Nanos now) const;
  void select(uint32_t layer, uint32_t per_link, bool empty);
  void count(uint32_t layer, Nanos now);
};

GatherPolicy::GatherPolicy(GatherOptions options) : impl_(std::make_unique<Impl>()) {
  VOLLEY_CHECK(options.layers > 0);
  impl_->options = options;
  impl_->occupied.resize(options.layers);
}
GatherPolicy::~GatherPolicy() = default;

void GatherPolicy::on_link_opened(LinkId link, uint32_t micro_batches) {
  VOLLEY_CHECK(impl_->find(link) == nullptr);
  Impl::Link& added = impl_->links.emplace_back();
  added.id = link;
  added.streams.resize(size_t{2} * micro_batches);
  for (uint32_t slot = 0; slot < micro_batches; ++slot) added.streams[slot].predicted = true;
  size_t slot_count = 0;
  for (const Impl::Link& each : impl_->links) slot_count += each.streams.size();
  impl_->run.reserve(slot_count);
}

void GatherPolicy::on_link_closed(LinkId link) {
  std::erase_if(impl_->links, [&](const Impl::Link& each) { return each.id == link; });
}

void GatherPolicy::on_dispatch(const PendingDispatch& dispatch) {
  Impl::Link* link = impl_->find(dispatch.link);
  VOLLEY_CHECK(link != nullptr && dispatch.slot < link->streams.size());
  VOLLEY_CHECK(dispatch.layer < impl_->options.layers);
  Impl::Stream& stream = link->streams[dispatch.slot];
  VOLLEY_CHECK(stream.state == Impl::State::kUnknown || stream.state == Impl::State::kAway);
  impl_->learn(*link, stream, dispatch);
  impl_->learn_load(dispatch);
  stream.state = Impl::State::kPending;
  stream.dispatch = dispatch;
  link->last_arrival = dispatch.arrived;
}

void GatherPolicy::Impl::learn(Link& link, Stream& stream, const PendingDispatch& dispatch) {
  if (stream.state != State::kAway || !stream.predicted) return;
  // A further fragment of the same layer, or a step that was given up: no regular turnaround.
  if (dispatch.layer != next_layer(stream)) return;
  const Nanos away = dispatch.arrived - stream.answered;
  if (dispatch.layer != 0) {
    stream.turnaround.add(away);
    link.layer_time.add(dispatch.arrived - stream.dispatch.arrived);
    layer_time.add(dispatch.arrived - stream.dispatch.arrived);
  } else if (step_time() > 0) {
    // A pause between requests tells nothing about the next step; cut, it still shows as a
    // deviation.
    stream.turnaround_step.add(std::min(away, 2 * step_time()));
  }
}

void GatherPolicy::Impl::learn_load(const PendingDispatch& dispatch) {
  if (dispatch.entry_count == 0) return;
  if (last_arrival >= 0) {
    // Cut, so that the first dispatches after an idle time do not look like a low load for long.
    const Nanos gap = std::min(dispatch.arrived - last_arrival, 16 * cost.per_run());
    arrival_gap += (static_cast<double>(gap) - arrival_gap) / 64.0;
  }
  last_arrival = dispatch.arrived;
}

GatherDecision GatherPolicy::decide(Nanos now) {
  VOLLEY_CHECK(!impl_->running);
  bool pending = false;
  for (const Impl::Link& link : impl_->links) {
    for (const Impl::Stream& stream : link.streams)
      pending |= stream.state == Impl::State::kPending;
  }
  if (!pending) {
    impl_->wait_began = -1;
    return {};
  }
  impl_->stats.window = impl_->window();

  uint32_t layer = 0;
  const PendingDispatch* empty = impl_->first_empty();
  if (empty != nullptr) {
    layer = empty->layer;
    impl_->select(layer, UINT32_MAX, true);
  } else if (const PendingDispatch* old = impl_->overdue(now); old != nullptr) {
    layer = old->layer;
    impl_->select(layer, UINT32_MAX, false);
  } else {
    layer = impl_->lagging_layer(now);
    if (const Nanos until = impl_->wait_until(layer, now); until > now) {
      if (impl_->wait_began < 0) impl_->wait_began = now;
      return {.kind = GatherDecision::Kind::kWait,
              .layer = layer,
              .dispatches = {},
              .wait_until = until};
    }
    impl_->select(layer, impl_->share_per_link(layer, now), false);
  }
  if (impl_->wait_began >= 0) impl_->stats.waited += now - impl_->wait_began;
  impl_->wait_began = -1;
  impl_->running = true;
  impl_->run_has_entries = empty == nullptr;
  if (impl_->run_has_entries) impl_->count(layer, now);
  return {.kind = GatherDecision::Kind::kRun,
          .layer = layer,
          .dispatches = impl_->run,
          .wait_until = 0};
}

/// Empty dispatches need no merge: they only tell that the node has passed the layer.
const PendingDispatch* GatherPolicy::Impl::first_empty() const {
  for (const Link& link : links) {
    for (const Stream& stream : link.streams) {
      if (stream.state == State::kPending && stream.dispatch.entry_count == 0)
        return &stream.dispatch;
    }
  }
  return nullptr;
}

/// The oldest dispatch, if it is past the age limit. Before a step was measured nobody can be said
/// to lag, and the oldest goes first.
const PendingDispatch* GatherPolicy::Impl::overdue(Nanos now) const {
  const Nanos limit = static_cast<Nanos>(options.age_steps_max * static_cast<double>(step_time()));
  const PendingDispatch* oldest = nullptr;
  for (const Link& link : links) {
    for (const Stream& stream : link.streams) {
      if (stream.state != State::kPending) continue;
      if (oldest == nullptr || stream.dispatch.arrived < oldest->arrived) oldest = &stream.dispatch;
    }
  }
  return oldest != nullptr && now - oldest->arrived >= limit ? oldest : nullptr;
}

/// Layers are a circle, and the largest stretch of it without a stream lies behind the streams that
/// lag: the first layer with a pending dispatch after that stretch.
uint32_t GatherPolicy::Impl::lagging_layer(Nanos now) {
  std::fill(occupied.begin(), occupied.end(), 0);
  for (const Link& link : links) {
    for (const Stream& stream : link.streams) {
      const bool here = stream.state == State::kPending || stream.state == State::kRunning;
      const bool soon = expected_at(stream) >= 0 &&
                        now - stream.answered < 4 * turnaround(stream).mean;  // Else it is idle.
      if (here) ++occupied[stream.dispatch.layer];
      if (soon) ++occupied[next_layer(stream)];
    }
  }
  const uint32_t layers = options.layers;
  uint32_t first = 0;
  while (occupied[first] == 0) ++first;  // Something is pending.
  uint32_t start = first, gap = 0, gap_longest = 0;
  for (uint32_t offset = 1; offset <= layers; ++offset) {
    const uint32_t layer = (first + offset) % layers;
    ++gap;
    if (occupied[layer] == 0) continue;
    if (gap > gap_longest) {
      gap_longest = gap;
      start = layer;
    }
    gap = 0;
  }
  for (uint32_t offset = 0;; ++offset) {
    VOLLEY_CHECK(offset < layers);
    const uint32_t layer = (start + offset) % layers;
    for (const Link& link : links) {
      for (const Stream& stream : link.streams) {
        if (pending_at(stream, layer)) return layer;
      }
    }
  }
}

/// Until when the layer waits for links that are missing in it; not after `now`: it runs.
Nanos GatherPolicy::Impl::wait_until(uint32_t layer, Nanos now) const {
  if (window() == 0) return 0;
  Nanos since = now;
  for (const Link& link : links) {
    for (const Stream& stream : link.streams) {
      if (pending_at(stream, layer)) since = std::min(since, stream.dispatch.arrived);
    }
  }
  Nanos until = 0;
  for (const Link& link : links) {
    const bool here = std::any_of(link.streams.begin(), link.streams.end(),
                                  [&](const Stream& stream) { return pending_at(stream, layer); });
    if (!here) until = std::max(until, arrival_of(link, layer, since, now));
  }
  return until;
}

/// The latest time at which the first stream of the link should be here, if that is worth waiting
/// for.
///
/// At layer 0 a step may be held longer than W: nodes out of step would stay so for good, and once
/// in step they save a merge at every layer of every step to come. The bound is what one step in
/// step saves; and only a regular link of the same pace is held for, by whoever is less than half a
/// circle ahead.
Nanos GatherPolicy::Impl::arrival_of(const Link& link, uint32_t layer, Nanos since,
                                     Nanos now) const {
  const bool hold = layer == 0 && keeps_pace(link, layer);
  const Nanos held_max = std::min(options.window_max, cost.per_run() * options.layers);
  Nanos first = 0;
  for (const Stream& stream : link.streams) {
    if (!stream.predicted || stream.state == State::kUnknown) continue;
    const bool away = stream.state == State::kAway;
    const uint32_t position = away ? next_layer(stream) : stream.dispatch.layer;
    const uint32_t layers_left = (layer + options.layers - position) % options.layers;
    Nanos expected = away ? expected_at(stream) : now;
    if (expected < 0) continue;
    if (layers_left == 0 && !away) continue;  // It is running this layer now.
    expected += layers_left * layer_time.mean;

    Nanos limit = window();
    if (layers_left > 0 || expected - since > limit) {
      const Nanos deviation =
          std::max(stream.turnaround.deviation, stream.turnaround_step.deviation);
      const bool regular = kMarginDeviations * deviation <= held_max;
      if (!hold || !regular || layers_left > options.layers / 2) continue;
      limit = std::max(limit, held_max);
    }
    const Nanos latest = std::min(expected, since + limit) + margin(stream);
    if (latest <= now) continue;  // Overdue: no longer predicted.
    if (first == 0 || latest < first) first = latest;
  }
  return first;
}

/// Some link that waits at the layer moves as fast as `link`. Nodes of different pace drift apart
/// again.
bool GatherPolicy::Impl::keeps_pace(const Link& link, uint32_t layer) const {
  const Nanos pace = link.layer_time.mean;
  for (const Link& other : links) {
    const Nanos difference = std::abs(other.layer_time.mean - pace);
    if (pace == 0 || other.layer_time.mean == 0 || difference > pace / kPaceShare) continue;
    for (const Stream& stream : other.streams) {
      if (pending_at(stream, layer)) return true;
    }
  }
  return false;
}

/// How many dispatches of each link to run now. Where a link has more of them here than another,
/// whose next one is to come soon, the surplus is left to be merged with that one.
uint32_t GatherPolicy::Impl::share_per_link(uint32_t layer, Nanos now) const {
  const Nanos soon = now + window() + cost.per_run();
  if (window() == 0) return UINT32_MAX;
  uint32_t share = UINT32_MAX;
  for (const Link& link : links) {
    uint32_t here = 0;
    bool more = false;
    for (const Stream& stream : link.streams) {
      if (stream.predicted && pending_at(stream, layer)) ++here;
      const Nanos expected = expected_at(stream);
      more |= expected >= 0 && next_layer(stream) == layer && expected <= soon &&
              expected + margin(stream) > now;
    }
    if (here > 0 && more) share = std::min(share, here);
  }
  return share;
}

/// Moves up to `per_link` dispatches per link, oldest first, into the run, within rows_max.
void GatherPolicy::Impl::select(uint32_t layer, uint32_t per_link, bool empty) {
  run.clear();
  for (const Link& link : links) {
    const size_t begin = run.size();
    for (const Stream& stream : link.streams) {
      if (pending_at(stream, layer) && (stream.dispatch.entry_count == 0) == empty) {
        run.push_back(stream.dispatch);
      }
    }
    if (run.size() - begin > per_link) {
      std::sort(run.begin() + static_cast<std::ptrdiff_t>(begin), run.end(), older);
      run.resize(begin + per_link);
    }
  }
  uint64_t entries = 0;
  for (const PendingDispatch& dispatch : run) entries += dispatch.entry_count;
  if (entries > options.rows_max) {
    std::sort(run.begin(), run.end(), older);
    size_t taken = 0;
    uint64_t sum = 0;
    while (taken < run.size() && (taken == 0 || sum + run[taken].entry_count <= options.rows_max)) {
      sum += run[taken++].entry_count;
    }
    run.resize(taken);
  }
  for (const PendingDispatch& dispatch : run) {
    find(dispatch.link)->streams[dispatch.slot].state = State::kRunning;
  }
}

void GatherPolicy::Impl::count(uint32_t layer, Nanos now) {
  ++stats.runs;
  stats.dispatches += run.size();
  uint32_t active = 0, merged = 0;
  for (const Link& link : links) {
    bool busy = link.last_arrival >= 0 && now - link.last_arrival <= step_time();
    bool in_run = false;
    for (const Stream& stream : link.streams) {
      busy |= stream.state == State::kPending || stream.state == State::kRunning;
      in_run |= stream.state == State::kRunning;
      // It passed the layer with no entries: there was nothing to merge.
      in_run |= stream.state == State::kAway && stream.dispatch.layer == layer &&
                stream.dispatch.entry_count == 0;
    }
    active += busy ? 1 : 0;
    merged += busy && in_run ? 1 : 0;
  }
  if (active < 2) return;
  ++stats.mergeable_runs;
  if (merged == active) ++stats.merged_runs;
}

void GatherPolicy::on_answered(Nanos now, Nanos elapsed) {
  VOLLEY_CHECK(impl_->running);
  impl_->running = false;
  uint64_t entries = 0;
  for (const PendingDispatch& dispatch : impl_->run) {
    entries += dispatch.entry_count;
    Impl::Link* link = impl_->find(dispatch.link);
    if (link == nullptr) continue;  // Closed meanwhile.
    Impl::Stream& stream = link->streams[dispatch.slot];
    stream.state = Impl::State::kAway;
    stream.answered = now;
  }
  if (impl_->run_has_entries) impl_->cost.add(entries, elapsed);
}

GatherPolicy::Stats GatherPolicy::stats() const {
  return impl_->stats;
}

}  // namespace volley::scheduler
