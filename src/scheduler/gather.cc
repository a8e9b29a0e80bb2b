#include "volley/scheduler/gather.h"

#include <algorithm>
#include <tuple>

#include "arrivals.h"
#include "volley/base/check.h"

// How the numbers in arrivals.cc were found: tests/sim/gather_model.cc with 2 to 4 attention nodes,
// m in 1..4, 4 to 32 layers, 1 to 3 expert nodes, jitter 8 %, random phases. As it stands, the
// worst share of merged runs is 0.96 for equal nodes with T_e = T_a. The worst throughput relative
// to W = 0 is 0.98 there, and 0.96 over all cases: two nodes with m = 1, which interleave by chance
// as well as one node with m = 2 does, and a third of the dispatches empty, which cannot be
// predicted.
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

bool older(const PendingDispatch& a, const PendingDispatch& b) {
  return std::tie(a.arrived, a.link, a.slot) < std::tie(b.arrived, b.link, b.slot);
}

}  // namespace

using State = DispatchStream::State;

struct GatherPolicy::Impl {
  explicit Impl(const GatherOptions& given)
      : options(given), arrivals(given), occupied(given.layers) {
    VOLLEY_CHECK(options.layers > 0);
  }

  const GatherOptions options;
  Arrivals arrivals;
  std::vector<PendingDispatch> run;
  std::vector<uint32_t> occupied;  ///< Scratch, per layer: streams that are there.
  bool running = false;
  bool run_has_entries = false;
  Nanos wait_began = -1;
  Stats stats;

  const PendingDispatch* first_empty() const;
  const PendingDispatch* overdue(Nanos now) const;
  uint32_t lagging_layer(Nanos now);
  Nanos wait_until(uint32_t layer, Nanos now) const;
  uint32_t share_per_link(uint32_t layer, Nanos now) const;
  void select(uint32_t layer, uint32_t per_link, bool empty);
  void count(uint32_t layer, Nanos now);
};

GatherPolicy::GatherPolicy(GatherOptions options) : impl_(std::make_unique<Impl>(options)) {}
GatherPolicy::~GatherPolicy() = default;

void GatherPolicy::on_link_opened(LinkId link, uint32_t micro_batches) {
  impl_->arrivals.open(link, micro_batches);
  size_t slot_count = 0;
  for (const DispatchSource& each : impl_->arrivals.links()) slot_count += each.streams.size();
  impl_->run.reserve(slot_count);
}

void GatherPolicy::on_link_closed(LinkId link) {
  impl_->arrivals.close(link);
}

void GatherPolicy::on_dispatch(const PendingDispatch& dispatch) {
  impl_->arrivals.on_dispatch(dispatch);
}

GatherDecision GatherPolicy::decide(Nanos now) {
  VOLLEY_CHECK(!impl_->running);
  bool pending = false;
  for (const DispatchSource& link : impl_->arrivals.links()) {
    for (const DispatchStream& stream : link.streams) pending |= stream.pending();
  }
  if (!pending) {
    impl_->wait_began = -1;
    return {};
  }
  impl_->stats.window = impl_->arrivals.window();

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
  for (const DispatchSource& link : arrivals.links()) {
    for (const DispatchStream& stream : link.streams) {
      if (stream.pending() && stream.dispatch.entry_count == 0) return &stream.dispatch;
    }
  }
  return nullptr;
}

/// The oldest dispatch, if it is past the age limit. Before a step was measured nobody can be said
/// to lag, and the oldest goes first.
const PendingDispatch* GatherPolicy::Impl::overdue(Nanos now) const {
  const Nanos limit =
      static_cast<Nanos>(options.age_steps_max * static_cast<double>(arrivals.step_time()));
  const PendingDispatch* oldest = nullptr;
  for (const DispatchSource& link : arrivals.links()) {
    for (const DispatchStream& stream : link.streams) {
      if (!stream.pending()) continue;
      if (oldest == nullptr || stream.dispatch.arrived < oldest->arrived) oldest = &stream.dispatch;
    }
  }
  return oldest != nullptr && now - oldest->arrived >= limit ? oldest : nullptr;
}

/// Layers are a circle, and the largest stretch of it without a stream lies behind the streams that
/// lag: the first layer with a pending dispatch after that stretch.
uint32_t GatherPolicy::Impl::lagging_layer(Nanos now) {
  std::fill(occupied.begin(), occupied.end(), 0);
  for (const DispatchSource& link : arrivals.links()) {
    for (const DispatchStream& stream : link.streams) {
      const bool here = stream.pending() || stream.state == State::kRunning;
      if (here) ++occupied[stream.dispatch.layer];
      if (arrivals.returns_soon(stream, now)) ++occupied[arrivals.next_layer(stream)];
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
    for (const DispatchSource& link : arrivals.links()) {
      for (const DispatchStream& stream : link.streams) {
        if (stream.pending_at(layer)) return layer;
      }
    }
  }
}

/// Until when the layer waits for links that are missing in it; not after `now`: it runs.
Nanos GatherPolicy::Impl::wait_until(uint32_t layer, Nanos now) const {
  if (arrivals.window() == 0) return 0;
  Nanos since = now;
  for (const DispatchSource& link : arrivals.links()) {
    for (const DispatchStream& stream : link.streams) {
      if (stream.pending_at(layer)) since = std::min(since, stream.dispatch.arrived);
    }
  }
  Nanos until = 0;
  for (const DispatchSource& link : arrivals.links()) {
    const bool here =
        std::any_of(link.streams.begin(), link.streams.end(),
                    [&](const DispatchStream& stream) { return stream.pending_at(layer); });
    if (!here) until = std::max(until, arrivals.arrival_of(link, layer, since, now));
  }
  return until;
}

/// How many dispatches of each link to run now. Where a link has more of them here than another,
/// whose next one is to come soon, the surplus is left to be merged with that one.
uint32_t GatherPolicy::Impl::share_per_link(uint32_t layer, Nanos now) const {
  if (arrivals.window() == 0) return UINT32_MAX;
  const Nanos soon = now + arrivals.window() + arrivals.saving();
  uint32_t share = UINT32_MAX;
  for (const DispatchSource& link : arrivals.links()) {
    uint32_t here = 0;
    bool more = false;
    for (const DispatchStream& stream : link.streams) {
      if (stream.predicted && stream.pending_at(layer)) ++here;
      more |= arrivals.expected_within(stream, layer, now, soon);
    }
    if (here > 0 && more) share = std::min(share, here);
  }
  return share;
}

/// Moves up to `per_link` dispatches per link, oldest first, into the run, within rows_max.
void GatherPolicy::Impl::select(uint32_t layer, uint32_t per_link, bool empty) {
  run.clear();
  for (const DispatchSource& link : arrivals.links()) {
    const size_t begin = run.size();
    for (const DispatchStream& stream : link.streams) {
      if (stream.pending_at(layer) && (stream.dispatch.entry_count == 0) == empty) {
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
  arrivals.on_run(run);
}

void GatherPolicy::Impl::count(uint32_t layer, Nanos now) {
  ++stats.runs;
  stats.dispatches += run.size();
  uint32_t active = 0, merged = 0;
  for (const DispatchSource& link : arrivals.links()) {
    bool busy = link.last_arrival >= 0 && now - link.last_arrival <= arrivals.step_time();
    bool in_run = false;
    for (const DispatchStream& stream : link.streams) {
      busy |= stream.pending() || stream.state == State::kRunning;
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
  for (const PendingDispatch& dispatch : impl_->run) entries += dispatch.entry_count;
  impl_->arrivals.on_answered(impl_->run, now);
  if (impl_->run_has_entries) impl_->arrivals.add_cost(entries, elapsed);
}

GatherPolicy::Stats GatherPolicy::stats() const {
  return impl_->stats;
}

}  // namespace volley::scheduler
