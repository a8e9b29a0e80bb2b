// Goal: sequences go to the node with the most room, as far as it can be known, and the counts come
// out even. Method: views written by hand; picks and releases checked one by one, then at random.

#include "volley/frontend/node_directory.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "volley/base/random.h"

namespace volley::frontend {
namespace {

v1::ClusterMember* add_node(v1::ClusterView& view, const std::string& name, uint64_t incarnation,
                            uint32_t blocks_free, bool ready = true) {
  v1::ClusterMember* member = view.add_members();
  member->mutable_registration()->set_role(v1::ROLE_ATTENTION);
  member->mutable_registration()->set_name(name);
  member->mutable_registration()->set_incarnation(incarnation);
  member->mutable_registration()->set_grpc_address("127.0.0.1:1");
  member->mutable_health()->set_ready(ready);
  member->mutable_health()->set_kv_blocks_free(blocks_free);
  member->mutable_health()->set_kv_blocks_total(100);
  view.set_serving(true);
  return member;
}

TEST(NodeDirectory, SaysTheControllersReasonWhenNobodyServes) {
  NodeDirectory directory;
  EXPECT_EQ(message_of(directory.pick(0).status()),
            "no node can serve: no view of the cluster yet");
  v1::ClusterView view;
  view.set_reason("expert 3 has no holder");
  directory.update(view);
  EXPECT_EQ(directory.pick(0).status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(directory.not_serving_reason(), "expert 3 has no holder");
  add_node(view, "a0", 1, 10, false);
  directory.update(view);
  EXPECT_FALSE(directory.serving());
}

TEST(NodeDirectory, PrefersFreeBlocksAndCountsWhatItSentSinceTheReport) {
  NodeDirectory directory;
  v1::ClusterView view;
  add_node(view, "a0", 1, 100);
  // Two sequences hold 40 blocks, so the next is expected to take 20.
  add_node(view, "a1", 1, 60)->mutable_health()->set_running(2);
  add_node(view, "a2", 1, 100, false);
  directory.update(view);
  std::vector<NodeDirectory::Node> picked;
  for (int i = 0; i < 41; ++i) {
    picked.push_back(*directory.pick(0));
    EXPECT_EQ(picked.back().name, i < 40 ? "a0" : "a1") << i;
  }
  // The same health again says nothing new about what was sent.
  directory.update(view);
  EXPECT_EQ(directory.in_flight("a0"), 40u);
  EXPECT_EQ(directory.pick(0)->name, "a0");
}

TEST(NodeDirectory, EqualNodesShareEvenly) {
  NodeDirectory directory;
  v1::ClusterView view;
  for (const char* name : {"a0", "a1", "a2"}) add_node(view, name, 1, 100);
  directory.update(view);
  for (int i = 0; i < 30; ++i) ASSERT_TRUE(directory.pick(0).ok());
  for (const char* name : {"a0", "a1", "a2"}) EXPECT_EQ(directory.in_flight(name), 10u);
}

TEST(NodeDirectory, ASuspectIsTheLastResort) {
  NodeDirectory directory;
  v1::ClusterView view;
  add_node(view, "a0", 1, 100);
  add_node(view, "a1", 1, 1);
  directory.update(view);
  const auto first = directory.pick(0);
  EXPECT_EQ(first->name, "a0");
  directory.release(*first);
  directory.suspect(*first, 10);
  EXPECT_EQ(directory.pick(9)->name, "a1");
  EXPECT_EQ(directory.pick(10)->name, "a0");
}

TEST(NodeDirectory, ReportsWhoIsGoneAndForgetsWhatRanThere) {
  NodeDirectory directory;
  v1::ClusterView view;
  add_node(view, "a0", 1, 100);
  directory.update(view);
  const NodeDirectory::Node old = *directory.pick(0);
  EXPECT_TRUE(directory.update(view).empty());

  v1::ClusterView next;
  add_node(next, "a0", 2, 100);
  const auto gone = directory.update(next);
  ASSERT_EQ(gone.size(), 1u);
  EXPECT_EQ(gone[0], old);
  EXPECT_EQ(directory.in_flight("a0"), 0u);
  directory.release(old);
  EXPECT_EQ(directory.in_flight("a0"), 0u);

  // The same incarnation, away and back: what ran there before is still not counted.
  directory.update({});
  directory.update(next);
  const NodeDirectory::Node again = *directory.pick(0);
  directory.update({});
  directory.update(next);
  directory.release(again);
  EXPECT_EQ(directory.in_flight("a0"), 0u);
}

TEST(NodeDirectory, RandomPicksAndReleasesComeOutEven) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SplitMix64 random(seed);
    NodeDirectory directory;
    std::vector<NodeDirectory::Node> held;
    for (int step = 0; step < 200; ++step) {
      switch (random.below(3)) {
        case 0: {
          v1::ClusterView view;
          for (const char* name : {"a0", "a1", "a2"}) {
            if (random.chance(0.7)) {
              add_node(view, name, 1 + random.below(2), static_cast<uint32_t>(random.below(100)),
                       random.chance(0.8));
            }
          }
          const auto gone = directory.update(view);
          const std::set<NodeDirectory::Node> lost(gone.begin(), gone.end());
          std::erase_if(held, [&](const auto& node) { return lost.contains(node); });
          break;
        }
        case 1:
          if (auto node = directory.pick(0); node.ok()) held.push_back(*node);
          break;
        default:
          if (held.empty()) break;
          directory.release(held.back());
          held.pop_back();
      }
      uint32_t counted = 0;
      for (const char* name : {"a0", "a1", "a2"}) counted += directory.in_flight(name);
      ASSERT_EQ(counted, held.size());
    }
  }
}

}  // namespace
}  // namespace volley::frontend
