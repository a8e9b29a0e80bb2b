// Prediction by averages: a stream is expected after its usual turnaround, a wait is measured
// against what a merge saves. What is done with that is decided in gather.cc.

#include "arrivals.h"

#include <algorithm>
#include <cstdlib>

#include "volley/base/check.h"

namespace volley::scheduler {

namespace {

// How these were found is said in gather.cc.

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

}  // namespace

void Estimate::add(Nanos sample) {
  if (mean == 0) {
    mean = std::max<Nanos>(sample, 1);
    deviation = mean / 4;
    return;
  }
  const Nanos error = sample - mean;
  mean = std::max<Nanos>(mean + error / kMeanWeight, 1);
  deviation += (std::abs(error) - deviation) / kMeanWeight;
}

void RunCost::add(uint64_t entries, Nanos elapsed) {
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

Nanos RunCost::per_run() const {
  return n_ == 0 ? 0 : static_cast<Nanos>(std::max(0.0, (y_ - slope_ * x_) / n_));
}

// --- What is seen ---

DispatchSource* Arrivals::find(LinkId id) {
  const auto it = std::find_if(links_.begin(), links_.end(),
                               [&](const DispatchSource& each) { return each.id == id; });
  return it == links_.end() ? nullptr : &*it;
}

void Arrivals::open(LinkId link, uint32_t micro_batches) {
  VOLLEY_CHECK(find(link) == nullptr);
  DispatchSource& added = links_.emplace_back();
  added.id = link;
  added.streams.resize(size_t{2} * micro_batches);
  for (uint32_t slot = 0; slot < micro_batches; ++slot) added.streams[slot].predicted = true;
}

void Arrivals::close(LinkId link) {
  std::erase_if(links_, [&](const DispatchSource& each) { return each.id == link; });
}

void Arrivals::on_dispatch(const PendingDispatch& dispatch) {
  DispatchSource* link = find(dispatch.link);
  VOLLEY_CHECK(link != nullptr && dispatch.slot < link->streams.size());
  VOLLEY_CHECK(dispatch.layer < options_.layers);
  DispatchStream& stream = link->streams[dispatch.slot];
  VOLLEY_CHECK(stream.state == DispatchStream::State::kUnknown ||
               stream.state == DispatchStream::State::kAway);
  learn(*link, stream, dispatch);
  learn_load(dispatch);
  stream.state = DispatchStream::State::kPending;
  stream.dispatch = dispatch;
  link->last_arrival = dispatch.arrived;
}

void Arrivals::on_run(std::span<const PendingDispatch> run) {
  for (const PendingDispatch& dispatch : run) {
    find(dispatch.link)->streams[dispatch.slot].state = DispatchStream::State::kRunning;
  }
}

void Arrivals::on_answered(std::span<const PendingDispatch> run, Nanos now) {
  for (const PendingDispatch& dispatch : run) {
    DispatchSource* link = find(dispatch.link);
    if (link == nullptr) continue;
    DispatchStream& stream = link->streams[dispatch.slot];
    stream.state = DispatchStream::State::kAway;
    stream.answered = now;
  }
}

void Arrivals::learn(DispatchSource& link, DispatchStream& stream,
                     const PendingDispatch& dispatch) {
  if (stream.state != DispatchStream::State::kAway || !stream.predicted) return;
  // A further fragment of the same layer, or a step that was given up: no regular turnaround.
  if (dispatch.layer != next_layer(stream)) return;
  const Nanos away = dispatch.arrived - stream.answered;
  if (dispatch.layer != 0) {
    stream.turnaround.add(away);
    link.layer_time.add(dispatch.arrived - stream.dispatch.arrived);
    layer_time_.add(dispatch.arrived - stream.dispatch.arrived);
  } else if (step_time() > 0) {
    // A pause between requests tells nothing about the next step; cut, it still shows as a
    // deviation.
    stream.turnaround_step.add(std::min(away, 2 * step_time()));
  }
}

void Arrivals::learn_load(const PendingDispatch& dispatch) {
  if (dispatch.entry_count == 0) return;
  if (last_arrival_ >= 0) {
    // Cut, so that the first dispatches after an idle time do not look like a low load for long.
    const Nanos gap = std::min(dispatch.arrived - last_arrival_, 16 * cost_.per_run());
    arrival_gap_ += (static_cast<double>(gap) - arrival_gap_) / 64.0;
  }
  last_arrival_ = dispatch.arrived;
}

// --- What is expected ---

Nanos Arrivals::margin(const DispatchStream& stream) const {
  return std::min(kMarginDeviations * turnaround(stream).deviation,
                  kMarginSavings * cost_.per_run());
}

bool Arrivals::expected_within(const DispatchStream& stream, uint32_t layer, Nanos now,
                               Nanos limit) const {
  const Nanos expected = expected_at(stream);
  return expected >= 0 && next_layer(stream) == layer && expected <= limit &&
         expected + margin(stream) > now;
}

Nanos Arrivals::window() const {
  const Nanos saving = cost_.per_run();
  // The share of the time that unmerged runs would keep the node busy.
  const bool loaded = static_cast<double>(saving) >= kLoadMin * arrival_gap_;
  return loaded ? std::min(options_.window_max, kWindowSavings * saving) : 0;
}

/// At layer 0 a step may be held longer than W: nodes out of step would stay so for good, and once
/// in step they save a merge at every layer of every step to come. The bound is what one step in
/// step saves; and only a regular link of the same pace is held for, by whoever is less than half a
/// circle ahead.
Nanos Arrivals::arrival_of(const DispatchSource& link, uint32_t layer, Nanos since,
                           Nanos now) const {
  const bool hold = layer == 0 && keeps_pace(link, layer);
  const Nanos held_max = std::min(options_.window_max, cost_.per_run() * options_.layers);
  Nanos first = 0;
  for (const DispatchStream& stream : link.streams) {
    if (!stream.predicted || stream.state == DispatchStream::State::kUnknown) continue;
    const bool away = stream.state == DispatchStream::State::kAway;
    const uint32_t position = away ? next_layer(stream) : stream.dispatch.layer;
    const uint32_t layers_left = (layer + options_.layers - position) % options_.layers;
    Nanos expected = away ? expected_at(stream) : now;
    if (expected < 0) continue;
    if (layers_left == 0 && !away) continue;  // It is running this layer now.
    expected += layers_left * layer_time_.mean;

    Nanos limit = window();
    if (layers_left > 0 || expected - since > limit) {
      const Nanos deviation =
          std::max(stream.turnaround.deviation, stream.turnaround_step.deviation);
      const bool regular = kMarginDeviations * deviation <= held_max;
      if (!hold || !regular || layers_left > options_.layers / 2) continue;
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
bool Arrivals::keeps_pace(const DispatchSource& link, uint32_t layer) const {
  const Nanos pace = link.layer_time.mean;
  for (const DispatchSource& other : links_) {
    const Nanos difference = std::abs(other.layer_time.mean - pace);
    if (pace == 0 || other.layer_time.mean == 0 || difference > pace / kPaceShare) continue;
    for (const DispatchStream& stream : other.streams) {
      if (stream.pending_at(layer)) return true;
    }
  }
  return false;
}

}  // namespace volley::scheduler
