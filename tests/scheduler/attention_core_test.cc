// Goal: each rule of AttentionCore by an example: who gets a dispatch, fragments, takeover,
// refusals, aborts, readiness, silence. What holds under any interleaving is
// attention_core_sim_test's. Method: two expert nodes with links 1 and 2, driven call by call;
// dispatches are written out as "link/slot:expert.row,...", the rows being the micro-batch's.

#include "volley/scheduler/attention_core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace volley::scheduler {
namespace {

using protocol::ExpertMap;
using protocol::LinkGeometry;
using protocol::MessageHeader;
using protocol::MessageKind;
using protocol::Refusal;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class AttentionCoreTest : public testing::Test {
 protected:
  AttentionCoreTest() {
    options_.scheduler = {.micro_batches = 2,
                          .tokens_per_step_max = 8,
                          .sequences_max = 4,
                          .waiting_max = 4,
                          .block_count = 8,
                          .block_tokens = 4,
                          .sequence_tokens_max = 32};
    options_.layers = 2;
    options_.experts = 4;
    options_.top_k = 2;
    options_.incarnation = {50};
    options_.dtype = 1;
    options_.link_timeout = 100;
    options_.geometry = LinkGeometry::make(2, 3, 2, 64);
  }

  static ExpertMap::Holding holding(const std::string& name, Incarnation incarnation,
                                    std::vector<uint32_t> experts) {
    return {.node = {.name = name, .incarnation = incarnation}, .experts = std::move(experts)};
  }

  /// Node a (incarnation 10) and node b (20) with what each holds.
  static std::shared_ptr<const ExpertMap> map_of(uint32_t number, std::vector<uint32_t> a,
                                                 std::vector<uint32_t> b) {
    const std::vector<ExpertMap::Holding> holdings = {holding("a", {10}, std::move(a)),
                                                      holding("b", {20}, std::move(b))};
    return std::make_shared<const ExpertMap>(
        ExpertMap::build({.term = 1, .number = number}, 2, 4, holdings).value());
  }

  void make(std::shared_ptr<const ExpertMap> map) {
    core_ = std::make_unique<AttentionCore>(options_);
    core_->set_map(std::move(map));
    core_->link_opened(kA, "a", {10});
    core_->link_opened(kB, "b", {20});
  }

  void submit(uint64_t id, uint32_t prompt, uint32_t max_new = 1) {
    SequenceRequest request;
    request.id = {id};
    request.tokens.assign(prompt, 7);
    request.max_new_tokens = max_new;
    ASSERT_TRUE(core_->scheduler().submit(std::move(request), 0).ok());
  }

  /// "mb0 attention 1 combine 0-2", or "" when there is nothing.
  std::string next() {
    if (!core_->next_work(work_)) return "";
    const char* const stages[] = {"attention", "pack", "head"};
    std::string text = fmt::format("mb{} {} {}", work_.micro_batch,
                                   stages[static_cast<size_t>(work_.stage)], work_.layer);
    if (work_.combine_begin != work_.combine_end) {
      text += fmt::format(" combine {}-{}", work_.combine_begin, work_.combine_end);
    }
    return text;
  }

  std::string sent() {
    std::string text;
    for (const OutgoingDispatch& dispatch : core_->take_dispatches()) {
      if (!text.empty()) text += ' ';
      text += fmt::format("{}/{}:", dispatch.link.value, dispatch.slot);
      for (size_t i = 0; i < dispatch.entries.size(); ++i) {
        text += fmt::format("{}{}.{}", i == 0 ? "" : ",", dispatch.entries[i].expert,
                            dispatch.rows[dispatch.entries[i].row]);
      }
      last_[{dispatch.link, dispatch.slot}] = dispatch.header;
    }
    return text;
  }

  MessageHeader answer_to(LinkId link, uint32_t slot) {
    MessageHeader header = last_.at({link, slot});
    header.kind = MessageKind::kAnswer;
    header.row_count = options_.geometry.answer_rows(header.row_count, header.entry_count);
    header.entry_count = 0;
    return header;
  }
  Status answer(LinkId link, uint32_t slot) {
    return core_->on_message(link, slot, answer_to(link, slot));
  }
  Status refuse(LinkId link, uint32_t slot, Refusal refusal) {
    MessageHeader header = answer_to(link, slot);
    header.kind = MessageKind::kRefusal;
    header.row_count = 0;
    header.refusal = refusal;
    return core_->on_message(link, slot, header);
  }

  /// "link/slot[index]" per (row, j); - for none.
  std::vector<std::string> answers() const {
    std::vector<std::string> list;
    for (const AnswerRef& ref : work_.answers) {
      list.push_back(ref.index == AnswerRef::kNone
                         ? "-"
                         : fmt::format("{}/{}[{}]", ref.link.value, ref.slot, ref.index));
    }
    return list;
  }

  std::vector<std::string> ends() {
    std::vector<SequenceOutput> outputs;
    core_->scheduler().take_outputs(outputs);
    std::vector<std::string> list;
    for (const SequenceOutput& output : outputs) {
      if (!output.status.ok()) {
        list.push_back(fmt::format("{} {}: {}", output.id.value,
                                   absl::StatusCodeToString(output.status.code()),
                                   message_of(output.status)));
      }
    }
    return list;
  }

  std::string state(uint32_t micro_batch) const { return core_->view(micro_batch).state; }

  static constexpr LinkId kA{1};
  static constexpr LinkId kB{2};
  static constexpr uint32_t kBad = 0xffffffff;
  AttentionCoreOptions options_;
  std::unique_ptr<AttentionCore> core_;
  Work work_;
  std::map<std::pair<LinkId, uint32_t>, MessageHeader> last_;
};

TEST_F(AttentionCoreTest, AStepGoesThroughAllLayers) {
  make(map_of(1, {0, 1}, {2, 3}));
  submit(1, 2);
  EXPECT_EQ(next(), "mb0 attention 0");
  EXPECT_EQ(work_.plan->row_count, 2u);
  EXPECT_EQ(next(), "");
  core_->route(0, std::vector<uint32_t>{0, 2, 0, 1});
  EXPECT_EQ(sent(), "1/0:0.0,0.1,1.1 2/0:2.0");
  EXPECT_EQ(sent(), "");
  const MessageHeader& header = last_[{kA, 0}];
  EXPECT_EQ(header.incarnation, 50u);
  EXPECT_EQ(header.sequence, 1u);
  EXPECT_EQ(header.row_count, 2u);
  EXPECT_EQ(header.entry_count, 3u);
  EXPECT_EQ(header.row_bytes, 64u);
  EXPECT_EQ(header.fragment_count, 1u);
  EXPECT_EQ(header.map, (protocol::MapVersion{.term = 1, .number = 1}));
  EXPECT_EQ(state(0), "dispatched");
  EXPECT_EQ(core_->view(0).answers_missing, 2u);
  ASSERT_TRUE(answer(kB, 0).ok());
  EXPECT_EQ(next(), "");
  ASSERT_TRUE(answer(kA, 0).ok());
  EXPECT_EQ(next(), "mb0 attention 1 combine 0-2");
  EXPECT_THAT(answers(), ElementsAre("1/0[0]", "2/0[0]", "1/0[1]", "1/0[2]"));
  core_->route(0, std::vector<uint32_t>{2, 3, 2, 3});
  EXPECT_EQ(sent(), "1/0: 2/0:2.0,2.1,3.0,3.1");  // Node a gets one without rows, and answers it.
  ASSERT_TRUE(answer(kB, 0).ok());
  EXPECT_EQ(next(), "");
  ASSERT_TRUE(answer(kA, 0).ok());
  EXPECT_EQ(next(), "mb0 head 1 combine 0-2");
  core_->finish_step(0, std::vector<BatchScheduler::Sampled>{{.token = 3}});
  EXPECT_EQ(state(0), "idle");
  EXPECT_TRUE(core_->scheduler().idle());
}

TEST_F(AttentionCoreTest, SumsTakeThePlaceOfTheirLowestExpert) {
  options_.geometry = LinkGeometry::make(2, 3, 2, 64, 64, protocol::Combine::kPreReduce);
  make(map_of(1, {0, 1, 3}, {1, 2, 3}));
  submit(1, 3);
  EXPECT_EQ(next(), "mb0 attention 0");
  core_->route(0, std::vector<uint32_t>{0, 1, 0, 2, 1, 3});
  EXPECT_EQ(sent(), "1/0:0.0,0.1,1.0,3.2 2/0:1.2,2.1");
  MessageHeader per_entry = answer_to(kA, 0);
  per_entry.row_count = 4;
  EXPECT_THAT(message_of(core_->on_message(kA, 0, per_entry)),
              testing::HasSubstr("row count 4, the dispatch says 3"));
  ASSERT_TRUE(answer(kA, 0).ok());
  ASSERT_TRUE(answer(kB, 0).ok());
  EXPECT_EQ(next(), "mb0 attention 1 combine 0-3");
  // Row 0 is one sum of node a; rows 1 and 2 have a part of each node.
  EXPECT_THAT(answers(), ElementsAre("1/0[0]", "-", "1/0[1]", "2/0[0]", "2/0[1]", "1/0[2]"));
}

TEST_F(AttentionCoreTest, SumsOfATakeoverStandBesideThoseOfTheOwnSlot) {
  options_.geometry = LinkGeometry::make(2, 3, 2, 64, 64, protocol::Combine::kPreReduce);
  make(map_of(1, {0, 1, 2, 3}, {2, 3}));
  submit(1, 2);
  EXPECT_EQ(next(), "mb0 attention 0");
  core_->route(0, std::vector<uint32_t>{0, 2, 2, 3});
  EXPECT_EQ(sent(), "1/0:0.0,2.0,3.1 2/0:2.1");
  ASSERT_TRUE(answer(kA, 0).ok());
  core_->link_closed(kB);
  EXPECT_EQ(sent(), "1/2:2.1");
  ASSERT_TRUE(answer(kA, 2).ok());
  EXPECT_EQ(next(), "mb0 attention 1 combine 0-2");
  // Row 1 has its expert 3 in the own slot and its expert 2 in the takeover slot of one node.
  EXPECT_THAT(answers(), ElementsAre("1/0[0]", "-", "1/2[0]", "1/0[1]"));
}

TEST_F(AttentionCoreTest, LargeStepsGoAsFragments) {
  make(map_of(1, {0, 1}, {2, 3}));
  submit(1, 5);
  EXPECT_EQ(next(), "mb0 attention 0");
  core_->route(0, std::vector<uint32_t>{0, 1, 0, 1, 0, 1, 2, 3, 2, 3});
  EXPECT_EQ(sent(), "1/0:0.0,0.1,0.2,1.0,1.1,1.2 2/0:");
  EXPECT_EQ(last_.at({kA, 0}).fragment_count, 2u);
  ASSERT_TRUE(answer(kA, 0).ok());
  ASSERT_TRUE(answer(kB, 0).ok());
  EXPECT_EQ(sent(), "");  // The next fragment is made with its work: first the shell combines.
  EXPECT_EQ(next(), "mb0 pack 0 combine 0-3");
  EXPECT_EQ(sent(), "1/0: 2/0:2.3,2.4,3.3,3.4");
  EXPECT_EQ(last_.at({kB, 0}).fragment, 1u);
  ASSERT_TRUE(answer(kA, 0).ok());
  ASSERT_TRUE(answer(kB, 0).ok());
  EXPECT_EQ(next(), "mb0 attention 1 combine 3-5");
}

TEST_F(AttentionCoreTest, MicroBatchesTakeTurnsByReadiness) {
  make(map_of(1, {0, 1}, {2, 3}));
  submit(1, 1);
  submit(2, 1);
  EXPECT_EQ(next(), "mb0 attention 0");
  core_->route(0, std::vector<uint32_t>{0, 1});
  EXPECT_EQ(next(), "mb1 attention 0");
  core_->route(1, std::vector<uint32_t>{0, 1});
  EXPECT_EQ(sent(), "1/0:0.0,1.0 2/0: 1/1:0.0,1.0 2/1:");
  for (const uint32_t slot : {1u, 0u}) {
    ASSERT_TRUE(answer(kA, slot).ok());
    ASSERT_TRUE(answer(kB, slot).ok());
  }
  EXPECT_EQ(next(), "mb1 attention 1 combine 0-1");
  EXPECT_EQ(next(), "mb0 attention 1 combine 0-1");
}

TEST_F(AttentionCoreTest, ReplicasTakeTurns) {
  make(map_of(1, {0, 1, 2, 3}, {0, 1, 2, 3}));
  submit(1, 3);
  EXPECT_EQ(next(), "mb0 attention 0");
  core_->route(0, std::vector<uint32_t>{0, 1, 0, 1, 0, 1});
  EXPECT_EQ(sent(), "1/0:0.0,0.2,1.0,1.2 2/0:0.1,1.1");
}

TEST_F(AttentionCoreTest, ALostLinksEntriesGoToTakeoverSlots) {
  make(map_of(1, {0, 1, 2, 3}, {0, 1, 2, 3}));
  submit(1, 3);
  EXPECT_EQ(next(), "mb0 attention 0");
  core_->route(0, std::vector<uint32_t>{0, 1, 0, 1, 0, 1});
  EXPECT_EQ(sent(), "1/0:0.0,0.2,1.0,1.2 2/0:0.1,1.1");
  ASSERT_TRUE(answer(kA, 0).ok());
  core_->link_closed(kA);  // Its answer was in, but nobody may read it any more.
  EXPECT_EQ(sent(), "2/2:0.0,0.2,1.0,1.2");
  ASSERT_TRUE(answer(kB, 2).ok());
  EXPECT_EQ(next(), "");
  ASSERT_TRUE(answer(kB, 0).ok());
  EXPECT_EQ(next(), "mb0 attention 1 combine 0-3");
  EXPECT_THAT(answers(), ElementsAre("2/2[0]", "2/2[2]", "2/0[0]", "2/0[1]", "2/2[1]", "2/2[3]"));
  core_->route(0, std::vector<uint32_t>{0, 1, 0, 1, 0, 1});
  EXPECT_EQ(sent(), "2/0:0.0,0.1,0.2,1.0,1.1,1.2");
}

TEST_F(AttentionCoreTest, AReturnedFragmentIsTakenBackWhenItsLinkCloses) {
  make(map_of(1, {0, 1, 2, 3}, {0, 1, 2, 3}));
  submit(1, 1);
  EXPECT_EQ(next(), "mb0 attention 0");
  core_->route(0, std::vector<uint32_t>{0, 1});
  EXPECT_EQ(sent(), "1/0:0.0,1.0 2/0:");
  ASSERT_TRUE(answer(kA, 0).ok());
  ASSERT_TRUE(answer(kB, 0).ok());
  EXPECT_EQ(state(0), "ready");
  core_->link_closed(kA);
  EXPECT_EQ(state(0), "dispatched");
  EXPECT_EQ(next(), "");
  EXPECT_EQ(sent(), "2/2:0.0,1.0");
  ASSERT_TRUE(answer(kB, 2).ok());
  EXPECT_EQ(next(), "mb0 attention 1 combine 0-1");
}

TEST_F(AttentionCoreTest, ABusyTakeoverSlotSendsEverythingAgain) {
  const std::vector<ExpertMap::Holding> holdings = {
      holding("a", {10}, {0, 3}), holding("b", {20}, {1, 3}), holding("c", {30}, {0, 1, 2, 3})};
  make(std::make_shared<const ExpertMap>(ExpertMap::build({}, 2, 4, holdings).value()));
  const LinkId c{3};
  core_->link_opened(c, "c", {30});
  submit(1, 1);
  EXPECT_EQ(next(), "mb0 attention 0");
  core_->route(0, std::vector<uint32_t>{0, 1});
  EXPECT_EQ(sent(), "1/0:0.0 2/0:1.0 3/0:");
  core_->link_closed(kA);
  EXPECT_EQ(sent(), "3/2:0.0");
  core_->link_closed(kB);
  EXPECT_EQ(sent(), "");  // Waits for the takeover slot.
  EXPECT_EQ(core_->view(0).answers_missing, 2u);
  ASSERT_TRUE(answer(c, 2).ok());
  EXPECT_EQ(sent(), "3/2:0.0,1.0");
  ASSERT_TRUE(answer(c, 0).ok());
  EXPECT_EQ(next(), "");
  ASSERT_TRUE(answer(c, 2).ok());
  EXPECT_EQ(next(), "mb0 attention 1 combine 0-1");
  EXPECT_THAT(answers(), ElementsAre("3/2[0]", "3/2[1]"));
}

TEST_F(AttentionCoreTest, WithoutAHolderTheStepIsAbortedAndDrains) {
  make(map_of(1, {0, 1}, {2, 3}));
  submit(1, 1);
  EXPECT_EQ(next(), "mb0 attention 0");
  core_->route(0, std::vector<uint32_t>{1, 2});
  EXPECT_EQ(sent(), "1/0:1.0 2/0:2.0");
  core_->link_closed(kA);
  EXPECT_THAT(ends(), ElementsAre("1 UNAVAILABLE: layer 0 expert 1 has no live holder"));
  EXPECT_EQ(state(0), "aborting");
  core_->link_opened({3}, "a", {10});
  submit(2, 1);
  EXPECT_EQ(next(), "mb1 attention 0");  // MB-4: the other one may start.
  EXPECT_EQ(next(), "");
  ASSERT_TRUE(answer(kB, 0).ok());
  EXPECT_EQ(state(0), "idle");
}

TEST_F(AttentionCoreTest, LosingReadinessEndsAllSequencesAtTheNextTick) {
  make(map_of(1, {0, 1}, {2, 3}));
  submit(1, 1, 5);
  EXPECT_TRUE(core_->ready().ok());
  core_->link_closed(kB);
  EXPECT_EQ(message_of(core_->ready()), "layer 0 expert 2 is held by b, to which there is no link");
  EXPECT_EQ(next(), "");
  EXPECT_THAT(ends(), IsEmpty());
  core_->tick(1);
  EXPECT_THAT(ends(), ElementsAre(HasSubstr("1 UNAVAILABLE: layer 0 expert 2 is held by b")));
}

TEST_F(AttentionCoreTest, WhatWaitsForTheFirstMapIsNotEnded) {
  core_ = std::make_unique<AttentionCore>(options_);
  EXPECT_EQ(message_of(core_->ready()), "no expert map is known");
  submit(1, 1);
  core_->tick(1);
  EXPECT_EQ(next(), "");
  core_->link_opened(kA, "a", {10});  // Kept until a map names it.
  core_->set_map(map_of(1, {0, 1, 2}, {}));
  EXPECT_EQ(message_of(core_->ready()), "layer 0 expert 3 has no holder in map 1.1");
  core_->set_map(map_of(2, {0, 1, 2, 3}, {}));
  EXPECT_TRUE(core_->ready().ok());
  core_->tick(2);
  EXPECT_THAT(ends(), IsEmpty());
  EXPECT_EQ(next(), "mb0 attention 0");
}

TEST_F(AttentionCoreTest, AMapOfAnotherModelIsNotUsed) {
  make(map_of(1, {0, 1}, {2, 3}));
  ExpertMap other = *map_of(2, {0, 1}, {2, 3});
  other.layers = 3;
  core_->set_map(std::make_shared<const ExpertMap>(other));
  EXPECT_EQ(message_of(core_->ready()), "map 1.2 has 3 layers and 4 experts, the model 2 and 4");
  core_->set_map(map_of(3, {0, 1}, {2, 3}));
  EXPECT_TRUE(core_->ready().ok());
}

TEST_F(AttentionCoreTest, AnotherIncarnationIsAnotherNode) {
  make(map_of(1, {0, 1}, {2, 3}));
  core_->link_closed(kB);
  core_->link_opened({3}, "b", {21});
  EXPECT_FALSE(core_->ready().ok());
}

TEST_F(AttentionCoreTest, StepsKeepTheirMapAndNewOnesTakeTheNewest) {
  make(map_of(1, {0, 1}, {2, 3}));
  submit(1, 1);
  EXPECT_EQ(next(), "mb0 attention 0");
  core_->set_map(map_of(2, {2, 3}, {0, 1}));
  submit(2, 1);
  EXPECT_EQ(next(), "mb1 attention 0");
  core_->route(0, std::vector<uint32_t>{0, 1});
  core_->route(1, std::vector<uint32_t>{0, 1});
  EXPECT_EQ(sent(), "1/0:0.0,1.0 2/0: 1/1: 2/1:0.0,1.0");
  core_->set_map(map_of(1, {0, 1, 2, 3}, {}));  // Older: ignored.
  EXPECT_EQ(last_.at({kA, 0}).map.number, 1u);
  EXPECT_EQ(last_.at({kA, 1}).map.number, 2u);
}

TEST_F(AttentionCoreTest, AStaleMapIsReplacedOrTheStepAborted) {
  make(map_of(1, {0, 1}, {2, 3}));
  submit(1, 1);
  EXPECT_EQ(next(), "mb0 attention 0");
  core_->route(0, std::vector<uint32_t>{0, 2});
  EXPECT_EQ(sent(), "1/0:0.0 2/0:2.0");
  core_->set_map(map_of(2, {2, 3}, {0, 1}));
  ASSERT_TRUE(refuse(kA, 0, Refusal::kStaleMap).ok());
  EXPECT_EQ(sent(), "2/2:0.0");
  EXPECT_EQ(last_.at({kB, 2}).map.number, 2u);
  ASSERT_TRUE(answer(kB, 0).ok());
  ASSERT_TRUE(refuse(kB, 2, Refusal::kNotHeld).ok());  // And no newer map is known.
  EXPECT_THAT(ends(),
              ElementsAre("1 UNAVAILABLE: layer 0: expert node b refuses map 1.2 and no newer "
                          "one is known"));
  EXPECT_EQ(state(0), "idle");
}

TEST_F(AttentionCoreTest, ARefusedEmptyDispatchCountsAsAnswered) {
  make(map_of(1, {0, 1}, {2, 3}));
  submit(1, 1);
  EXPECT_EQ(next(), "mb0 attention 0");
  core_->route(0, std::vector<uint32_t>{0, 1});
  EXPECT_EQ(sent(), "1/0:0.0,1.0 2/0:");
  ASSERT_TRUE(refuse(kB, 0, Refusal::kStaleMap).ok());
  ASSERT_TRUE(answer(kA, 0).ok());
  EXPECT_EQ(next(), "mb0 attention 1 combine 0-1");
}

TEST_F(AttentionCoreTest, NumbersThatAreNotFiniteAbortTheStep) {
  make(map_of(1, {0, 1}, {2, 3}));
  submit(1, 1);
  EXPECT_EQ(next(), "mb0 attention 0");
  core_->route(0, std::vector<uint32_t>{0, 2});
  sent();
  ASSERT_TRUE(refuse(kB, 0, Refusal::kNotFinite).ok());
  EXPECT_THAT(ends(),
              ElementsAre("1 INTERNAL: layer 0: expert node b met a value that is not finite"));
  EXPECT_EQ(state(0), "aborting");
  ASSERT_TRUE(answer(kA, 0).ok());
  EXPECT_EQ(state(0), "idle");
}

TEST_F(AttentionCoreTest, InvalidRowsEndTheirSequenceAndTheOthersGoOn) {
  options_.scheduler.micro_batches = 1;
  make(map_of(1, {0, 1}, {2, 3}));
  submit(1, 1);
  submit(2, 2);
  EXPECT_EQ(next(), "mb0 attention 0");
  ASSERT_EQ(work_.plan->row_count, 3u);
  core_->route(0, std::vector<uint32_t>{0, 2, 0, 1, kBad, kBad});
  EXPECT_THAT(ends(),
              ElementsAre("2 INTERNAL: layer 0: the router's logits of sequence 2 are not finite"));
  EXPECT_EQ(sent(), "1/0:0.0 2/0:2.0");
  ASSERT_TRUE(answer(kA, 0).ok());
  ASSERT_TRUE(answer(kB, 0).ok());
  EXPECT_EQ(next(), "mb0 attention 1 combine 0-3");
  EXPECT_THAT(answers(), ElementsAre("1/0[0]", "2/0[0]", "-", "-", "-", "-"));
  core_->route(0,
               std::vector<uint32_t>{0, 2, 0, 1, 0, 1});  // Still out, whatever their numbers are.
  EXPECT_EQ(sent(), "1/0:0.0 2/0:2.0");
  ASSERT_TRUE(answer(kA, 0).ok());
  ASSERT_TRUE(answer(kB, 0).ok());
  EXPECT_EQ(next(), "mb0 head 1 combine 0-3");
  core_->finish_step(0, std::vector<BatchScheduler::Sampled>{{.token = 3}, {.token = -1}});
  EXPECT_THAT(ends(), IsEmpty());
  EXPECT_TRUE(core_->scheduler().idle());
}

TEST_F(AttentionCoreTest, AnswersMustFitWhatIsOutstanding) {
  make(map_of(1, {0, 1}, {2, 3}));
  submit(1, 2);
  EXPECT_EQ(next(), "mb0 attention 0");
  core_->route(0, std::vector<uint32_t>{0, 1, 0, 2});
  sent();
  const MessageHeader good = answer_to(kA, 0);
  const auto code_with = [&](auto change) {
    MessageHeader header = good;
    change(header);
    return core_->on_message(kA, 0, header);
  };
  const auto expect_loss = [&](auto change, const std::string& text) {
    const Status status = code_with(change);
    EXPECT_EQ(status.code(), StatusCode::kDataLoss);
    EXPECT_THAT(message_of(status), HasSubstr(text));
  };
  expect_loss([](MessageHeader& h) { h.layer = 1; },
              "a: answer in slot 0 has layer 1, the dispatch says 0");
  expect_loss([](MessageHeader& h) { h.fragment = 1; }, "fragment 1");
  expect_loss([](MessageHeader& h) { h.micro_batch = 1; }, "micro-batch 1");
  expect_loss([](MessageHeader& h) { h.row_count = 2; }, "row count 2, the dispatch says 3");
  expect_loss([](MessageHeader& h) { h.kind = MessageKind::kDispatch; }, "message kind 1");
  EXPECT_EQ(core_->on_message(kA, 4, good).code(), StatusCode::kDataLoss);
  EXPECT_EQ(core_->on_message({9}, 0, good).code(), StatusCode::kDataLoss);
  EXPECT_TRUE(code_with([](MessageHeader& h) { h.sequence = 9; }).ok());  // Stale: dropped.
  EXPECT_EQ(core_->view(0).answers_missing, 2u);
  EXPECT_TRUE(core_->on_message(kA, 0, good).ok());
  EXPECT_TRUE(core_->on_message(kA, 0, good).ok());  // A duplicate is stale too.
  EXPECT_EQ(core_->view(0).answers_missing, 1u);
}

TEST_F(AttentionCoreTest, SilentLinksAreNamedUntilTheyAreClosed) {
  make(map_of(1, {0, 1}, {2, 3}));
  const auto silent_at = [&](Nanos now) {
    const auto links = core_->tick(now);
    return std::vector<LinkId>(links.begin(), links.end());
  };
  EXPECT_THAT(silent_at(1'000), IsEmpty());
  core_->heard(kA, 1'050);
  core_->heard(kA, 1'020);  // Time does not go back.
  EXPECT_THAT(silent_at(1'100), IsEmpty());
  EXPECT_THAT(silent_at(1'101), ElementsAre(kB));
  EXPECT_THAT(silent_at(1'151), ElementsAre(kA, kB));
  core_->link_closed(kA);
  core_->link_closed(kB);
  core_->link_closed(kB);
  EXPECT_THAT(silent_at(1'151), IsEmpty());
}

}  // namespace
}  // namespace volley::scheduler
