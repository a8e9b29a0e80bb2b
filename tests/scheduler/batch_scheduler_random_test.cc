// Goal: SCHED-1 to SCHED-3, KV-1 and KV-2, the budget, first-in first-out admission, and that
// nothing inside a step is preempted or moved, under any interleaving of arrivals, steps, cancels,
// deadlines and preemptions. Method: one seed draws the limits and the interleaving; a model beside
// the scheduler knows what each plan must say and keeps a KV cache in which every computed token is
// written: a chunk may only be planned on blocks that still hold all its earlier tokens. Planted
// bugs show that the checks can fail.

#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <set>
#include <string>

#include "volley/base/random.h"
#include "volley/scheduler/batch_scheduler.h"

namespace volley::scheduler {
namespace {

enum class Bug : uint8_t {
  kNone,
  kSharedBlock,     ///< A chunk is given a block of another sequence that is in a step.
  kLostPreemption,  ///< A preempted sequence goes on where it was, on blocks it no longer has.
  kOutputTwice,     ///< An end is reported twice.
  kBudget,          ///< The scheduler thinks of a larger budget than was asked for.
};

struct Model {
  uint64_t order = 0;
  std::vector<int32_t> tokens;
  uint32_t new_tokens = 0, new_tokens_max = 0;
  std::vector<int32_t> stop_tokens;
  Nanos deadline = 0;
  uint32_t computed = 0;
  bool ran = false, ended = false, in_step = false;
};

/// What a KV position holds.
struct Cell {
  uint64_t sequence = 0;
  uint32_t position = 0;
  int32_t token = 0;
  bool operator==(const Cell&) const = default;
};

struct RunningStep {
  std::vector<Chunk> chunks;
  std::vector<std::vector<int32_t>> tokens;
  std::vector<std::vector<uint32_t>> blocks;
};

class SchedulerSim {
 public:
  SchedulerSim(uint64_t seed, Bug bug)
      : random_(seed), bug_(bug), options_(draw_options()), scheduler_(given_options()) {
    steps_.resize(options_.micro_batches);
    cells_.resize(size_t{options_.block_count} * options_.block_tokens);
  }

  /// The first broken rule, or nothing.
  std::string run() {
    for (int turn = 0; turn < 300 && failure_.empty(); ++turn) act();
    for (int round = 0; round < 4'000 && failure_.empty() && !scheduler_.idle(); ++round)
      drain(round);
    if (failure_.empty()) check_end();
    return failure_;
  }

 private:
  uint32_t pick(uint32_t low, uint32_t high) {
    return low + static_cast<uint32_t>(random_.below(high - low + 1));
  }

  SchedulerOptions draw_options() {
    SchedulerOptions options;
    options.micro_batches = pick(1, 4);
    options.tokens_per_step_max = pick(1, 12);
    options.sequences_max = pick(1, 8);
    options.waiting_max = pick(1, 10);
    options.block_tokens = pick(1, 4);
    options.sequence_tokens_max = pick(4, 24);
    options.block_count =
        cache::blocks_for(options.sequence_tokens_max, options.block_tokens) + pick(0, 10);
    return options;
  }
  SchedulerOptions given_options() const {
    SchedulerOptions options = options_;
    if (bug_ == Bug::kBudget) ++options.tokens_per_step_max;
    return options;
  }

  void fail(const std::string& what) {
    if (failure_.empty()) failure_ = what;
  }

  void act() {
    switch (random_.below(12)) {
      case 0:
      case 1:
      case 2:
        submit();
        break;
      case 3:
      case 4:
      case 5:
        plan(pick(0, options_.micro_batches - 1));
        break;
      case 6:
      case 7:
      case 8:
        complete(pick(0, options_.micro_batches - 1));
        break;
      case 9:
        cancel();
        break;
      case 10:
        now_ += pick(0, 40);
        scheduler_.tick(now_);
        read_outputs();
        for (const auto& [id, model] : models_) {
          if (!model.ended && model.deadline != 0 && model.deadline <= now_) {
            fail("SCHED-2: a deadline passed in silence");
          }
        }
        break;
      default:
        switch (random_.below(4)) {
          case 0:
            scheduler_.set_active_micro_batches(pick(1, options_.micro_batches));
            break;
          case 1:
            abort(pick(0, options_.micro_batches - 1));
            break;
          default:
            scheduler_.preempt({pick(1, static_cast<uint32_t>(next_id_) + 1)});
        }
    }
    const auto stats = scheduler_.stats();
    uint32_t live = 0;
    for (const auto& [id, model] : models_) live += model.ended ? 0u : 1u;
    if (stats.running + stats.waiting != live) fail("SCHED-2: live sequences are not all counted");
    if (stats.running > options_.sequences_max) fail("more run than sequences_max");
    if (scheduler_.next_deadline() != first_deadline()) fail("next_deadline is wrong");
  }

  Nanos first_deadline() const {
    Nanos first = 0;
    for (const auto& [id, model] : models_) {
      if (!model.ended && model.deadline != 0 && (first == 0 || model.deadline < first)) {
        first = model.deadline;
      }
    }
    return first;
  }

  void submit() {
    SequenceRequest request;
    request.id = {++next_id_};
    request.tokens.resize(pick(0, options_.sequence_tokens_max));
    for (int32_t& token : request.tokens) token = static_cast<int32_t>(pick(0, 30));
    request.max_new_tokens = pick(0, 6);
    if (random_.chance(0.3)) request.stop_tokens = {static_cast<int32_t>(pick(0, 30))};
    if (random_.chance(0.2)) request.deadline = now_ + pick(0, 200);
    const bool valid =
        !request.tokens.empty() && request.max_new_tokens > 0 &&
        request.tokens.size() + request.max_new_tokens <= options_.sequence_tokens_max;
    Model model;
    model.order = next_id_;
    model.tokens = request.tokens;
    model.new_tokens_max = request.max_new_tokens;
    model.stop_tokens = request.stop_tokens;
    model.deadline = request.deadline;
    const bool full = scheduler_.stats().waiting >= options_.waiting_max;
    const bool late = request.deadline != 0 && request.deadline <= now_;
    const SequenceId id = request.id;
    const Status status = scheduler_.submit(std::move(request), now_);
    const StatusCode expected = !valid ? StatusCode::kInvalidArgument
                                : late ? StatusCode::kDeadlineExceeded
                                : full ? StatusCode::kResourceExhausted
                                       : StatusCode::kOk;
    if (status.code() != expected) fail("submit: " + status.ToString());
    if (status.ok()) models_.emplace(id, std::move(model));
  }

  void cancel() {
    const SequenceId id{pick(1, static_cast<uint32_t>(next_id_) + 1)};
    scheduler_.cancel(id, Status(StatusCode::kCancelled, "by the test"));
    read_outputs();
    const auto found = models_.find(id);
    if (found != models_.end() && !found->second.ended) fail("SCHED-3: a cancel ended nothing");
  }

  void plan(uint32_t micro_batch) {
    RunningStep& step = steps_[micro_batch];
    if (!step.chunks.empty()) return;
    const StepPlan& plan = scheduler_.plan(micro_batch);
    if (!plan.empty() && micro_batch >= scheduler_.active_micro_batches()) {
      fail("an inactive micro-batch took a step");
    }
    step.chunks = plan.chunks;
    step.tokens.clear();
    step.blocks.clear();
    uint32_t row = 0;
    uint64_t last_order = 0;
    for (Chunk& chunk : step.chunks) {
      const auto found = models_.find(chunk.sequence);
      if (found == models_.end()) return fail("an unknown sequence was planned");
      Model& model = found->second;
      if (bug_ == Bug::kLostPreemption && chunk.start_position == 0 && model.computed > 0) {
        chunk.start_position = model.computed;
        chunk.row_count = 1;
        chunk.tokens = std::span(model.tokens).subspan(chunk.start_position, 1);
      }
      if (model.ended) return fail("SCHED-3: an ended sequence was planned");
      if (model.in_step) return fail("a sequence is in two steps");
      if (model.order <= last_order) return fail("chunks are not oldest first");
      last_order = model.order;
      if (chunk.first_row != row || chunk.row_count == 0) return fail("rows have gaps");
      row += chunk.row_count;
      if (!model.ran) check_admission(model);
      check_chunk(chunk, model);
      model.ran = true;
      model.in_step = true;
      step.tokens.emplace_back(chunk.tokens.begin(), chunk.tokens.end());
      step.blocks.emplace_back(chunk.blocks.begin(), chunk.blocks.end());
    }
    if (row != plan.row_count && bug_ != Bug::kLostPreemption) fail("row_count is wrong");
    if (row > options_.tokens_per_step_max) fail("the token budget was exceeded");
    check_blocks_disjoint();
  }

  void check_admission(const Model& model) {
    for (const auto& [id, other] : models_) {
      if (other.order < model.order && !other.ended && !other.ran) {
        fail("a younger sequence was admitted first");
      }
    }
  }

  void check_chunk(const Chunk& chunk, Model& model) {
    const uint32_t end = chunk.start_position + chunk.row_count;
    if (chunk.start_position != model.computed) {
      if (chunk.start_position != 0) return fail("a chunk starts neither at its end nor anew");
      model.computed = 0;
      ++restarts_;
    }
    if (end > model.tokens.size()) return fail("a chunk goes beyond the known tokens");
    if (chunk.emits != (end == model.tokens.size()) && bug_ != Bug::kLostPreemption) {
      fail("emits is wrong");
    }
    if (chunk.tokens.size() != chunk.row_count ||
        !std::equal(chunk.tokens.begin(), chunk.tokens.end(),
                    model.tokens.begin() + chunk.start_position)) {
      return fail("the chunk has other tokens");
    }
    if (chunk.blocks.size() < cache::blocks_for(end, options_.block_tokens)) {
      return fail("the block table does not cover the chunk");
    }
    for (uint32_t position = 0; position < end; ++position) {
      Cell& cell =
          cells_[size_t{chunk.blocks[position / options_.block_tokens]} * options_.block_tokens +
                 position % options_.block_tokens];
      const Cell expected{chunk.sequence.value, position, model.tokens[position]};
      if (position >= chunk.start_position) cell = expected;
      if (!(cell == expected)) return fail("KV-1: an earlier token is not in the cache");
    }
  }

  void check_blocks_disjoint() {
    std::set<uint32_t> used;
    uint32_t in_steps = 0, count = 0;
    for (const RunningStep& step : steps_) {
      for (const auto& table : step.blocks) {
        ++in_steps;
        count += static_cast<uint32_t>(table.size());
        used.insert(table.begin(), table.end());
        if (bug_ == Bug::kSharedBlock && in_steps > 1) used.erase(table.front());
      }
    }
    if (used.size() != count) fail("KV-1: a block is in two tables");
    if (in_steps > options_.sequences_max) fail("more in steps than sequences_max");
    const auto stats = scheduler_.stats();
    if (stats.blocks_free + count > stats.blocks_total) fail("KV-2: blocks in steps are also free");
  }

  void complete(uint32_t micro_batch) {
    RunningStep& step = steps_[micro_batch];
    if (step.chunks.empty()) return;
    check_spans(step);
    std::vector<BatchScheduler::Sampled> sampled;
    std::vector<SequenceOutput> expected;
    for (const Chunk& chunk : step.chunks) {
      Model& model = models_.at(chunk.sequence);
      model.in_step = false;
      model.computed += chunk.row_count;
      if (!chunk.emits) continue;
      const bool bad = random_.chance(0.02);
      sampled.push_back({.token = bad ? -1 : static_cast<int32_t>(pick(0, 30)),
                         .logprob = -1.0f,
                         .logits_digest = random_.next()});
      if (model.ended) continue;
      SequenceOutput output;
      output.id = chunk.sequence;
      if (bad) {
        output.status = Status(StatusCode::kInternal, "");
      } else {
        output.token = sampled.back().token;
        output.logits_digest = sampled.back().logits_digest;
        const auto& stops = model.stop_tokens;
        if (std::find(stops.begin(), stops.end(), output.token) != stops.end()) {
          output.finish = FinishReason::kStop;
        } else if (model.new_tokens + 1 == model.new_tokens_max) {
          output.finish = FinishReason::kLength;
        }
      }
      expected.push_back(output);
    }
    step = {};
    scheduler_.complete(micro_batch, sampled);
    const std::vector<SequenceOutput> outputs = read_outputs();
    if (outputs.size() != expected.size()) return fail("a step has other outputs than samples");
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (outputs[i].id != expected[i].id || outputs[i].token != expected[i].token ||
          outputs[i].finish != expected[i].finish ||
          outputs[i].logits_digest != expected[i].logits_digest ||
          outputs[i].status.code() != expected[i].status.code()) {
        return fail("an output is not what was sampled");
      }
    }
  }

  /// A step's spans must read the same at its end as when it was planned.
  void check_spans(const RunningStep& step) {
    for (size_t i = 0; i < step.chunks.size(); ++i) {
      const Chunk& chunk = step.chunks[i];
      if (!std::equal(chunk.tokens.begin(), chunk.tokens.end(), step.tokens[i].begin(),
                      step.tokens[i].end()) ||
          !std::equal(chunk.blocks.begin(), chunk.blocks.end(), step.blocks[i].begin(),
                      step.blocks[i].end())) {
        fail("a span changed inside its step");
      }
    }
  }

  void abort(uint32_t micro_batch) {
    RunningStep& step = steps_[micro_batch];
    if (step.chunks.empty()) return;
    scheduler_.abort_step(micro_batch, Status(StatusCode::kUnavailable, "by the test"));
    read_outputs();
    for (const Chunk& chunk : step.chunks) {
      Model& model = models_.at(chunk.sequence);
      model.in_step = false;
      if (!model.ended) fail("SCHED-2: an aborted step left a sequence alive");
    }
    step = {};
  }

  std::vector<SequenceOutput> read_outputs() {
    std::vector<SequenceOutput> outputs;
    scheduler_.take_outputs(outputs);
    if (bug_ == Bug::kOutputTwice && !outputs.empty() && outputs.back().ended()) {
      outputs.push_back(outputs.back());
    }
    for (const SequenceOutput& output : outputs) {
      Model& model = models_.at(output.id);
      if (model.ended) fail("SCHED-2: an output after the end");
      if (output.status.ok() != (output.token >= 0)) fail("an output has neither token nor status");
      if (output.token >= 0) {
        model.tokens.push_back(output.token);
        ++model.new_tokens;
      }
      model.ended = output.ended();
    }
    return outputs;
  }

  /// No more arrivals or disturbances: the oldest must advance although steps of others last
  /// (SCHED-1).
  void drain(int round) {
    if (round == 0) scheduler_.set_active_micro_batches(options_.micro_batches);
    for (uint32_t micro_batch = 0; micro_batch < options_.micro_batches; ++micro_batch) {
      if (round % 4 == 3 || random_.chance(0.5)) complete(micro_batch);
      if (failure_.empty()) plan(micro_batch);
    }
    const Model* oldest = nullptr;
    for (const auto& [id, model] : models_) {
      if (!model.ended && (oldest == nullptr || model.order < oldest->order)) oldest = &model;
    }
    if (oldest == nullptr) return;
    const uint64_t progress = (oldest->order << 32) + oldest->computed;
    if (progress != last_progress_) {
      last_progress_ = progress;
      progress_round_ = round;
    }
    if (round - progress_round_ > 16) fail("SCHED-1: the oldest sequence does not advance");
  }

  void check_end() {
    if (!scheduler_.idle()) return fail("SCHED-1: it does not come to an end");
    const auto stats = scheduler_.stats();
    for (const auto& [id, model] : models_) {
      if (!model.ended) return fail("SCHED-2: an accepted sequence never ended");
    }
    if (stats.blocks_free != stats.blocks_total) return fail("KV-2: blocks were lost");
    if (stats.accepted != models_.size() || stats.finished + stats.failed != stats.accepted) {
      return fail("the counts do not add up");
    }
    if (restarts_ > stats.preemptions) return fail("a sequence restarted without a preemption");
  }

  SplitMix64 random_;
  Bug bug_;
  SchedulerOptions options_;
  BatchScheduler scheduler_;
  std::string failure_;
  std::map<SequenceId, Model> models_;
  std::vector<RunningStep> steps_;
  std::vector<Cell> cells_;
  uint64_t next_id_ = 0;
  uint64_t restarts_ = 0;
  uint64_t last_progress_ = 0;
  int progress_round_ = 0;
  Nanos now_ = 1'000;
};

TEST(BatchSchedulerRandom, KeepsItsRules) {
  for (uint64_t seed = 0; seed < 4'000; ++seed) {
    ASSERT_EQ(SchedulerSim(seed, Bug::kNone).run(), "") << "reproduce with seed=" << seed;
  }
}

TEST(BatchSchedulerRandom, PlantedBugsAreCaught) {
  const auto caught_as = [](Bug bug) -> std::string {
    for (uint64_t seed = 0; seed < 200; ++seed) {
      const std::string failure = SchedulerSim(seed, bug).run();
      if (!failure.empty()) return failure;
    }
    return "not caught";
  };
  EXPECT_EQ(caught_as(Bug::kSharedBlock), "KV-1: a block is in two tables");
  EXPECT_EQ(caught_as(Bug::kLostPreemption), "KV-1: an earlier token is not in the cache");
  EXPECT_EQ(caught_as(Bug::kOutputTwice), "SCHED-2: an output after the end");
  EXPECT_EQ(caught_as(Bug::kBudget), "the token budget was exceeded");
}

}  // namespace
}  // namespace volley::scheduler
