#include "volley/scheduler/micro_batch_controller.h"

#include <fmt/format.h>

#include <algorithm>

#include "volley/base/check.h"

namespace volley::scheduler {
namespace {

// A change must promise more than this: smaller gains are within the noise of the measured times.
constexpr double kGain = 1.05;
// Of numbers whose rates differ by less, the smallest: it has the larger batches, so it suffers
// least from what the model leaves out.
constexpr double kTie = 1.01;
// Steps of micro-batches for which the promise must hold.
constexpr uint32_t kHoldSteps = 16;
constexpr Nanos kPauseMin = 200 * kMillisecond;
constexpr Nanos kPauseMax = 20 * kSecond;
// Changes that follow each other within so many pauses are an oscillation: the pause doubles.
constexpr Nanos kCalmPauses = 4;
// Steps of each micro-batch in a trial: at least, for the mean; at most, if the size does not come
// about.
constexpr uint32_t kTrialStepsMin = 4;
constexpr uint32_t kTrialStepsMax = 16;
// From a trial's end to the next one's begin, in lengths of the trial (MBC-2).
constexpr Nanos kTrialPause = 10;
// A trial that was cut by a lack of sequences seems long.
constexpr Nanos kTrialPauseMax = 600 * kSecond;

std::string format_time(double ns) {
  return ns < 0.1 * kMillisecond ? fmt::format("{:.1f} us", ns / kMicrosecond)
                                 : fmt::format("{:.2f} ms", ns / kMillisecond);
}

}  // namespace

double pipeline_time(const PhaseTimes& times, uint32_t micro_batches, uint32_t layers) {
  const double m = micro_batches, l = layers;
  const double one = times.attention + times.expert + 2 * times.transfer;
  const double slower = std::max(times.attention, times.expert);
  return std::max(one + slower * (m * l - 1), l * one + (m - 1) * slower);
}

std::string describe(const MicroBatchDecision& decision) {
  std::string text = fmt::format("m={}: ", decision.micro_batches);
  switch (decision.why) {
    case MicroBatchDecision::Why::kConfigured:
      return text + "as configured";
    case MicroBatchDecision::Why::kSharedCores:
      return text + "attention and experts share their cores";
    case MicroBatchDecision::Why::kUnmeasured:
      return text + "not enough steps measured yet";
    case MicroBatchDecision::Why::kTrial:
      return text + fmt::format("trial, to measure {:.0f} rows", decision.rows);
    case MicroBatchDecision::Why::kPredicted:
      break;
  }
  text += fmt::format("T_a {}, T_e {}, T_c {} at {:.0f} rows; predicted {}/layer",
                      format_time(decision.times.attention), format_time(decision.times.expert),
                      format_time(decision.times.transfer), decision.rows,
                      format_time(decision.layer_ns));
  if (decision.other != 0) {
    text +=
        fmt::format(" against {} at m={}", format_time(decision.other_layer_ns), decision.other);
  }
  return text;
}

MicroBatchController::MicroBatchController(const MicroBatchControllerOptions& options)
    : options_(options) {
  VOLLEY_CHECK(options.micro_batches_max >= 1 && options.rows_max >= 1 && options.layers >= 1);
  decision_.why = options.overlap ? MicroBatchDecision::Why::kUnmeasured
                                  : MicroBatchDecision::Why::kSharedCores;
}

void MicroBatchController::on_attention(uint32_t rows, Nanos per_layer, Nanos now) {
  attention_.add(rows, per_layer, now);
}

void MicroBatchController::on_expert(uint32_t rows, Nanos time, Nanos now) {
  expert_.add(rows, time, now);
}

void MicroBatchController::on_transfer(uint32_t rows, Nanos time, bool exact, Nanos now) {
  if (exact) {
    transfer_.add(rows, time, now);
  } else {
    transfer_.add_bound(rows, time, now);
  }
}

double MicroBatchController::rows_of(uint32_t micro_batches) const {
  return std::clamp(static_cast<double>(sequences_) / micro_batches, 1.0,
                    static_cast<double>(options_.rows_max));
}

MicroBatchController::Prediction MicroBatchController::predict(uint32_t micro_batches,
                                                               const PhaseTimes& times) const {
  const uint32_t used = std::min(micro_batches, sequences_);  // The others have nothing to do.
  const double rows = rows_of(micro_batches);
  const double step = pipeline_time(times, used, options_.layers);
  return {.rows = rows, .times = times, .rate = step > 0 ? used * rows / step : 0};
}

MicroBatchController::Prediction MicroBatchController::expected(uint32_t micro_batches) const {
  const double rows = rows_of(micro_batches);
  if (!attention_.measured(rows) || !expert_.measured(rows)) return {};
  const auto transfer = transfer_.at(rows);
  if (!transfer.has_value()) return {};
  return predict(
      micro_batches,
      {.attention = *attention_.at(rows), .expert = *expert_.at(rows), .transfer = *transfer});
}

MicroBatchController::Prediction MicroBatchController::at_best(uint32_t micro_batches,
                                                               Nanos now) const {
  const double rows = rows_of(micro_batches);
  return predict(micro_batches, {.attention = attention_.lower_bound(rows, now),
                                 .expert = expert_.lower_bound(rows, now),
                                 .transfer = transfer_.lower_bound(rows, now)});
}

uint32_t MicroBatchController::best(uint32_t except) const {
  double best_rate = 0;
  uint32_t best = 0;
  const uint32_t most = std::min(options_.micro_batches_max, sequences_);
  for (uint32_t m = 1; m <= most; ++m) {
    if (m == except) continue;
    const double rate = expected(m).rate;
    if (rate > best_rate * (best == 0 ? 1 : kTie)) {
      best_rate = rate;
      best = m;
    }
  }
  return best;
}

void MicroBatchController::change_to(uint32_t micro_batches, Nanos now) {
  const bool calm = changed_ == 0 || now - changed_ > kCalmPauses * pause_;
  pause_ = calm ? kPauseMin : std::min(2 * pause_, kPauseMax);
  changed_ = now;
  candidate_ = 0;
  decision_.micro_batches = micro_batches;
}

/// False: the trial goes on.
bool MicroBatchController::end_trial(Nanos now) {
  const uint32_t trial = decision_.micro_batches;
  const double rows = rows_of(trial);
  ++trial_steps_;
  const bool seen = attention_.fresh(rows, now) && expert_.fresh(rows, now);
  const uint32_t enough = (seen ? kTrialStepsMin : kTrialStepsMax) * trial;
  if (trial_steps_ < enough) return false;
  in_trial_ = false;
  next_trial_ = now + std::min(kTrialPause * (now - trial_started_), kTrialPauseMax);
  if (expected(trial).rate > kGain * expected(before_trial_).rate) {
    change_to(trial, now);
  } else {
    decision_.micro_batches = before_trial_;
  }
  return true;
}

bool MicroBatchController::start_trial(Nanos now) {
  const uint32_t current = decision_.micro_batches;
  const double rate = expected(current).rate;
  if (rate == 0 || now < next_trial_) return false;
  double best_rate = kGain * rate;
  uint32_t trial = 0;
  for (uint32_t m = 1; m <= std::min(options_.micro_batches_max, sequences_); ++m) {
    if (m == current) continue;
    const double rows = rows_of(m);
    if (attention_.fresh(rows, now) && expert_.fresh(rows, now)) continue;
    const double promise = at_best(m, now).rate;
    if (promise > best_rate) {
      best_rate = promise;
      trial = m;
    }
  }
  if (trial == 0) return false;
  in_trial_ = true;
  before_trial_ = current;
  trial_steps_ = 0;
  trial_started_ = now;
  decision_.micro_batches = trial;
  return true;
}

void MicroBatchController::consider_change(Nanos now) {
  const uint32_t better = best(0);
  const double rate = expected(decision_.micro_batches).rate;
  // Without an expectation for the number in force there is no gain to speak of.
  if (better == 0 || rate == 0 || expected(better).rate <= kGain * rate) {
    candidate_ = 0;
    return;
  }
  candidate_steps_ = better == candidate_ ? candidate_steps_ + 1 : 1;
  candidate_ = better;
  if (candidate_steps_ >= kHoldSteps && now - changed_ >= pause_) change_to(better, now);
}

uint32_t MicroBatchController::decide(uint32_t sequences, Nanos now) {
  if (!options_.overlap || sequences == 0) return decision_.micro_batches;
  sequences_ = sequences;
  if (!in_trial_ || end_trial(now)) {
    consider_change(now);
    if (candidate_ == 0) start_trial(now);
  }
  explain();
  return decision_.micro_batches;
}

void MicroBatchController::explain() {
  const uint32_t current = decision_.micro_batches;
  const Prediction prediction = expected(current);
  decision_.rows = rows_of(current);
  decision_.times = prediction.times;
  decision_.other = 0;
  if (in_trial_) {
    decision_.why = MicroBatchDecision::Why::kTrial;
    return;
  }
  if (prediction.rate == 0) {
    decision_.why = MicroBatchDecision::Why::kUnmeasured;
    return;
  }
  const auto layer_time = [this](double rate) { return sequences_ / rate / options_.layers; };
  decision_.why = MicroBatchDecision::Why::kPredicted;
  decision_.layer_ns = layer_time(prediction.rate);
  decision_.other = best(current);
  if (decision_.other != 0) {
    decision_.other_layer_ns = layer_time(expected(decision_.other).rate);
  }
}

}  // namespace volley::scheduler
