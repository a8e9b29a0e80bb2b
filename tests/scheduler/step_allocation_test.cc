// Goal: after warm-up a step allocates nothing, from plan() to finish_step().
// Method: operator new counts; long decodes run over two links in two micro-batches, with the
// outputs taken as the shell does.

#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "volley/scheduler/attention_core.h"

namespace {
size_t allocation_count = 0;
}  // namespace

void* operator new(size_t bytes) {
  ++allocation_count;
  void* memory = std::malloc(bytes);
  if (memory == nullptr) std::abort();
  return memory;
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}

namespace volley::scheduler {
namespace {

using protocol::ExpertMap;

class StepLoop {
 public:
  StepLoop() : core_(options()) {
    std::vector<ExpertMap::Holding> holdings(2);
    for (uint32_t node = 0; node < 2; ++node) {
      holdings[node].node.name = std::string(1, static_cast<char>('a' + node));
      holdings[node].node.incarnation = {7};
      holdings[node].experts = protocol::default_experts(4, node, 2);
      core_.link_opened({node}, holdings[node].node.name, {7});
    }
    auto map = ExpertMap::build({}, 3, 4, holdings);
    core_.set_map(std::make_shared<const ExpertMap>(std::move(map).value()));
    for (uint64_t id = 1; id <= 6; ++id) {
      SequenceRequest request;
      request.id = {id};
      request.tokens.assign(9, 1);
      request.max_new_tokens = 100;
      request.deadline = kSecond;
      EXPECT_TRUE(core_.scheduler().submit(std::move(request), 0).ok());
    }
    arrived_.reserve(64);
    expert_.reserve(64);
    sampled_.reserve(64);
    outputs_.reserve(64);
  }

  /// One turn of the shell; true when a step ended.
  bool turn() {
    bool ended = false;
    core_.heard({0}, ++now_);
    core_.heard({1}, now_);
    EXPECT_TRUE(core_.tick(now_).empty());
    Work work;
    if (core_.next_work(work)) {
      if (work.stage == Work::Stage::kAttention) {
        expert_.clear();
        for (uint32_t row = 0; row < work.plan->row_count; ++row) {
          expert_.push_back(row % 3);
          expert_.push_back(3);
        }
        core_.route(work.micro_batch, expert_);
      } else if (work.stage == Work::Stage::kHead) {
        sampled_.clear();
        for (const Chunk& chunk : work.plan->chunks) {
          if (chunk.emits) sampled_.push_back({.token = 5});
        }
        core_.finish_step(work.micro_batch, sampled_);
        ended = true;
      }
    }
    arrived_.clear();
    for (const OutgoingDispatch& dispatch : core_.take_dispatches()) arrived_.push_back(dispatch);
    for (OutgoingDispatch& dispatch : arrived_) {
      dispatch.header.kind = protocol::MessageKind::kAnswer;
      dispatch.header.row_count = dispatch.header.entry_count;
      EXPECT_TRUE(core_.on_message(dispatch.link, dispatch.slot, dispatch.header).ok());
    }
    core_.scheduler().take_outputs(outputs_);
    return ended;
  }

 private:
  static AttentionCoreOptions options() {
    AttentionCoreOptions options;
    options.scheduler = {.micro_batches = 2,
                         .tokens_per_step_max = 16,
                         .sequences_max = 8,
                         .waiting_max = 8,
                         .block_count = 100,
                         .block_tokens = 4,
                         .sequence_tokens_max = 128};
    options.geometry = protocol::LinkGeometry::make(2, 2, 2, 64);
    options.layers = 3;
    options.experts = 4;
    options.top_k = 2;
    return options;
  }

  AttentionCore core_;
  Nanos now_ = 0;
  std::vector<OutgoingDispatch> arrived_;
  std::vector<uint32_t> expert_;
  std::vector<BatchScheduler::Sampled> sampled_;
  std::vector<SequenceOutput> outputs_;
};

TEST(StepPath, DoesNotAllocateAfterWarmUp) {
  StepLoop loop;
  for (int steps = 0; steps < 20;) steps += loop.turn() ? 1 : 0;
  const size_t before = allocation_count;
  ASSERT_GT(before, 0u);  // The counter counts.
  for (int steps = 0; steps < 100;) steps += loop.turn() ? 1 : 0;
  EXPECT_EQ(allocation_count - before, 0u);
}

}  // namespace
}  // namespace volley::scheduler
