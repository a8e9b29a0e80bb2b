// Goal: the controller admits, refuses and removes as its contract says, and CTL-1, CTL-2 and CTL-3
// hold under any order of events. Method: tables of registrations with one field wrong; then random
// operations by seed on a virtual clock, checked after every step against what the test knows.

#include "volley/control/controller_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <set>
#include <string>

#include "control/test_nodes.h"
#include "volley/base/random.h"
#include "volley/control/cluster_view.h"

namespace volley::control {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kExperts = 4;

ControllerOptions options() {
  ControllerOptions result;
  result.layers = 2;
  result.experts = kExperts;
  result.report_interval = kSecond;
  result.checkpoint_digest = kTestCheckpoint;
  return result;
}

class ControllerStateTest : public ::testing::Test {
 protected:
  Result<SessionId> join(const v1::NodeRegistration& node, bool ready = true) {
    actions_ = {};
    return state_.join(node, health(ready), now_, actions_);
  }

  Nanos now_ = 0;
  ControllerState state_{options(), 7, 0};
  ControllerState::Actions actions_;
};

TEST_F(ControllerStateTest, ServesOnceEveryExpertHasAReadyHolderAndAnAttentionNodeIsReady) {
  EXPECT_EQ(state_.not_serving_reason(), "expert 0 has no holder");
  ASSERT_TRUE(join(expert("e0", 1, {0, 2})).ok());
  EXPECT_EQ(state_.not_serving_reason(), "expert 1 has no holder");
  const auto second = join(expert("e1", 2, {1, 3}), false);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(state_.not_serving_reason(), "expert 1 has no holder");
  ASSERT_TRUE(state_.report(*second, health(true), now_, actions_).ok());
  EXPECT_EQ(state_.not_serving_reason(), "no attention node has joined");
  const auto third = join(attention("a0", 3), false);
  ASSERT_TRUE(third.ok());
  EXPECT_EQ(state_.not_serving_reason(), "no attention node is ready (a0: loading)");
  ASSERT_TRUE(state_.report(*third, health(true), now_, actions_).ok());
  EXPECT_EQ(state_.not_serving_reason(), "");
  const auto view = state_.view(Audience::kOther);
  EXPECT_TRUE(view.serving());
  EXPECT_EQ(view.members_size(), 3);

  const auto map = expert_map_of(view, 2, kExperts);
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_TRUE(map->complete());
  EXPECT_EQ(map->version, state_.version());
}

TEST_F(ControllerStateTest, LinkKeysGoToAttentionNodesOnly) {
  ASSERT_TRUE(join(expert("e0", 1, {0})).ok());
  EXPECT_EQ(state_.view(Audience::kAttention).members(0).registration().link_key().size(), 16u);
  EXPECT_EQ(state_.view(Audience::kOther).members(0).registration().link_key(), "");
}

TEST_F(ControllerStateTest, RefusesWhatDiffersAndNamesBothValues) {
  ASSERT_TRUE(join(expert("e0", 1, {0})).ok());
  struct Case {
    std::function<void(v1::NodeRegistration&)> change;
    StatusCode code;
    std::string message;
  };
  const Case cases[] = {
      {[](auto& n) { n.set_wire_version(9); }, StatusCode::kFailedPrecondition,
       "node x: wire version 9 differs from 4 of the controller"},
      {[](auto& n) { n.set_checkpoint_digest(0xab); }, StatusCode::kFailedPrecondition,
       "node x: checkpoint digest 00000000000000ab differs from 00000000000000c0 of the "
       "controller"},
      {[](auto& n) { n.set_numerics_fingerprint("avx512"); }, StatusCode::kFailedPrecondition,
       "node x: numerics fingerprint 'avx512' differs from 'avx2' of e0"},
      {[](auto& n) { n.set_fabric("tcp"); }, StatusCode::kFailedPrecondition,
       "node x: fabric 'tcp' differs from 'shm' of e0"},
      {[](auto& n) { n.mutable_geometry()->set_rows_max(65); }, StatusCode::kFailedPrecondition,
       "rows_max 65, entries_max 128, row_bytes 256 and 256, weight_bytes 0 differs from "
       "micro_batches 2, rows_max 64"},
      {[](auto& n) { n.mutable_geometry()->set_answer_row_bytes(512); },
       StatusCode::kFailedPrecondition, "row_bytes 256 and 512, weight_bytes 0 differs from"},
      {[](auto& n) { n.mutable_geometry()->set_weight_bytes(4); }, StatusCode::kFailedPrecondition,
       "row_bytes 256 and 256, weight_bytes 4 differs from"},
      {[](auto& n) { n.set_name("e0"); }, StatusCode::kAlreadyExists,
       "node e0: the name is taken by the live incarnation 0000000000000001"},
      {[](auto& n) { n.set_name(""); }, StatusCode::kInvalidArgument, "name ''"},
      {[](auto& n) { n.set_name("a b"); }, StatusCode::kInvalidArgument, "name 'a b'"},
      {[](auto& n) { n.set_name(std::string(64, 'x')); }, StatusCode::kInvalidArgument, "1 to 63"},
      {[](auto& n) { n.set_role(v1::ROLE_UNSPECIFIED); }, StatusCode::kInvalidArgument, "role 0"},
      {[](auto& n) { n.set_incarnation(0); }, StatusCode::kInvalidArgument, "incarnation is 0"},
      {[](auto& n) { n.set_fabric(""); }, StatusCode::kInvalidArgument, "fabric is empty"},
      {[](auto& n) { n.clear_geometry(); }, StatusCode::kInvalidArgument, "geometry is missing"},
      {[](auto& n) { n.set_numerics_fingerprint(""); }, StatusCode::kInvalidArgument,
       "numerics_fingerprint is empty"},
      {[](auto& n) { n.set_fabric_address(""); }, StatusCode::kInvalidArgument,
       "fabric_address is empty"},
      {[](auto& n) { n.set_link_key("abc"); }, StatusCode::kInvalidArgument,
       "link_key has 3 bytes; it must have 16"},
      {[](auto& n) { n.clear_experts(); }, StatusCode::kInvalidArgument, "at least one expert"},
      {[](auto& n) { n.add_experts(4); }, StatusCode::kInvalidArgument, "expert 4 is out of range"},
      {[](auto& n) { n.add_experts(1); }, StatusCode::kInvalidArgument, "expert 1 appears twice"},
      {[](auto& n) {
         n.set_role(v1::ROLE_ATTENTION);
         n.clear_experts();
       },
       StatusCode::kInvalidArgument, "grpc_address is empty"},
  };
  const auto before = state_.version();
  for (const Case& one : cases) {
    SCOPED_TRACE(one.message);
    v1::NodeRegistration node = expert("x", 2, {1});
    one.change(node);
    const auto session = join(node);
    EXPECT_EQ(session.status().code(), one.code);
    EXPECT_THAT(message_of(session.status()), HasSubstr(one.message));
  }
  EXPECT_EQ(state_.version(), before);
  ASSERT_TRUE(join(expert("x", 2, {1})).ok());
}

TEST_F(ControllerStateTest, AFrontendNeedsOnlyTheCheckpointInCommon) {
  ASSERT_TRUE(join(expert("e0", 1, {0})).ok());
  v1::NodeRegistration frontend;
  frontend.set_role(v1::ROLE_FRONTEND);
  frontend.set_name("f0");
  frontend.set_incarnation(5);
  frontend.set_wire_version(protocol::kWireVersion);
  EXPECT_EQ(join(frontend).status().code(), StatusCode::kFailedPrecondition);
  frontend.set_checkpoint_digest(kTestCheckpoint);
  EXPECT_TRUE(join(frontend).ok());
}

TEST_F(ControllerStateTest, ADeadIncarnationIsReplacedAndNeverComesBack) {
  const auto first = join(expert("e0", 1, {0}));
  ASSERT_TRUE(first.ok());
  state_.stream_closed(*first, actions_);
  EXPECT_EQ(state_.member_count(), 0u);
  ASSERT_TRUE(join(expert("e0", 1, {0})).ok());  // The same process, after a broken connection.
  now_ = 3 * kSecond;
  EXPECT_EQ(join(expert("e0", 2, {0})).status().code(), StatusCode::kAlreadyExists);
  now_ = 3 * kSecond + 1;  // The lease has run out, even before a tick.
  ASSERT_TRUE(join(expert("e0", 2, {0})).ok());
  ASSERT_EQ(actions_.ended.size(), 1u);
  EXPECT_EQ(actions_.ended[0].why.code(), StatusCode::kDeadlineExceeded);
  const auto late = join(expert("e0", 1, {0}));
  EXPECT_EQ(late.status().code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(message_of(late.status()), HasSubstr("was replaced"));
}

TEST_F(ControllerStateTest, ASecondStreamOfOneIncarnationTakesOverAndTheOldOneCannotRemoveIt) {
  const auto first = join(expert("e0", 1, {0}));
  const auto second = join(expert("e0", 1, {0}));
  ASSERT_TRUE(first.ok() && second.ok());
  ASSERT_EQ(actions_.ended.size(), 1u);
  EXPECT_EQ(actions_.ended[0].session, *first);
  state_.stream_closed(*first, actions_);
  EXPECT_EQ(state_.member_count(), 1u);
  EXPECT_EQ(state_.report(*first, health(true), now_, actions_).code(), StatusCode::kNotFound);
}

TEST_F(ControllerStateTest, HealthAloneDoesNotChangeTheVersion) {
  const auto session = join(attention("a0", 1));
  ASSERT_TRUE(session.ok());
  const auto before = state_.version();
  v1::NodeHealth busy = health(true);
  busy.set_running(5);
  actions_ = {};
  ASSERT_TRUE(state_.report(*session, busy, now_, actions_).ok());
  EXPECT_TRUE(actions_.health_changed);
  EXPECT_FALSE(actions_.view_changed);
  EXPECT_EQ(state_.version(), before);
}

TEST_F(ControllerStateTest, ProfilesAreForOperatorsAndGoWithTheirNode) {
  const auto session = join(attention("a0", 1));
  ASSERT_TRUE(session.ok());
  EXPECT_TRUE(state_.status().profiles().empty());
  v1::NodeProfile profile;
  profile.set_wall_ns(7);
  state_.profile(*session, profile);
  const v1::GetStatusResponse status = state_.status();
  ASSERT_EQ(status.profiles().count("a0"), 1u);
  EXPECT_EQ(status.profiles().at("a0").wall_ns(), 7u);
  EXPECT_EQ(status.view().SerializeAsString(), state_.view(Audience::kOther).SerializeAsString());
  state_.stream_closed(*session, actions_);
  state_.profile(*session, profile);
  EXPECT_TRUE(state_.status().profiles().empty());
}

TEST_F(ControllerStateTest, TheViewIsSettledAfterOneLease) {
  state_.tick(3 * kSecond - 1, actions_);
  EXPECT_FALSE(state_.view(Audience::kOther).settled());
  EXPECT_FALSE(actions_.view_changed);
  state_.tick(3 * kSecond, actions_);
  EXPECT_TRUE(state_.view(Audience::kOther).settled());
  EXPECT_TRUE(actions_.view_changed);
}

// What must hold, seen from outside.
class RandomRun {
 public:
  explicit RandomRun(uint64_t seed) : random_(seed), state_(options(), 1, 0) {}

  void run() {
    for (int step = 0; step < 300 && !::testing::Test::HasFailure(); ++step) {
      now_ += static_cast<Nanos>(random_.below(700)) * kMillisecond;
      ControllerState::Actions actions;
      switch (random_.below(5)) {
        case 0:
        case 1:
          join(actions);
          break;
        case 2:
          report(actions);
          break;
        case 3:
          close(actions);
          break;
        default:
          tick(actions);
          break;
      }
      for (const auto& ended : actions.ended) sessions_.erase(ended.session);
      check(actions);
    }
  }

 private:
  void join(ControllerState::Actions& actions) {
    const std::string name = fmt::format("e{}", random_.below(4));
    const uint64_t incarnation = 1 + random_.below(40);
    std::vector<uint32_t> held;
    for (uint32_t e = 0; e < kExperts; ++e) {
      if (random_.chance(0.5)) held.push_back(e);
    }
    if (held.empty()) held.push_back(0);
    const auto session =
        state_.join(expert(name, incarnation, held), health(random_.chance(0.8)), now_, actions);
    const bool replaced = replaced_.contains({name, incarnation});
    if (!session.ok()) return;
    EXPECT_FALSE(replaced) << "CTL-2: " << name << " " << incarnation;
    const auto last = last_.find(name);
    if (last != last_.end() && last->second != incarnation) replaced_.insert({name, last->second});
    last_[name] = incarnation;
    sessions_[*session] = now_;
  }
  void report(ControllerState::Actions& actions) {
    if (sessions_.empty()) return;
    auto session = std::next(sessions_.begin(), static_cast<long>(random_.below(sessions_.size())));
    EXPECT_TRUE(state_.report(session->first, health(random_.chance(0.8)), now_, actions).ok());
    session->second = now_;
  }
  void close(ControllerState::Actions& actions) {
    if (sessions_.empty()) return;
    auto session = std::next(sessions_.begin(), static_cast<long>(random_.below(sessions_.size())));
    state_.stream_closed(session->first, actions);
    sessions_.erase(session);
  }
  void tick(ControllerState::Actions& actions) {
    state_.tick(now_, actions);
    for (const auto& ended : actions.ended) sessions_.erase(ended.session);
    for (const auto& [session, reported] : sessions_) {
      EXPECT_LE(now_ - reported, state_.lease()) << "CTL-3";
    }
  }

  void check(const ControllerState::Actions& actions) {
    const v1::ClusterView view = state_.view(Audience::kOther);
    EXPECT_EQ(state_.member_count(), sessions_.size());
    std::set<std::string> names;
    std::string content;
    std::map<uint32_t, std::set<std::string>> holders;
    for (const auto& member : view.members()) {
      const auto& node = member.registration();
      EXPECT_TRUE(names.insert(node.name()).second) << "CTL-2";
      EXPECT_FALSE(replaced_.contains({node.name(), node.incarnation()})) << "CTL-2";
      content += node.SerializeAsString() + (member.health().ready() ? "+" : "-");
      if (!member.health().ready()) continue;
      for (const uint32_t e : node.experts()) holders[e].insert(node.name());
    }
    const auto version = state_.version();
    EXPECT_GE(version, version_) << "CTL-1";
    if (version == version_) {
      EXPECT_EQ(content, content_) << "CTL-1";
    }
    if (version != version_) {
      EXPECT_TRUE(actions.view_changed);
    }
    version_ = version;
    content_ = content;

    const auto map = expert_map_of(view, 2, kExperts);
    ASSERT_TRUE(map.ok()) << map.status();
    for (uint32_t e = 0; e < kExperts; ++e) {
      std::set<std::string> mapped;
      for (const uint32_t node : map->holders_of(1, e)) mapped.insert(map->nodes[node].name);
      EXPECT_EQ(mapped, holders[e]) << "expert " << e;
    }
  }

  SplitMix64 random_;
  ControllerState state_;
  Nanos now_ = 0;
  std::map<SessionId, Nanos> sessions_;
  std::map<std::string, uint64_t> last_;
  std::set<std::pair<std::string, uint64_t>> replaced_;
  protocol::MapVersion version_ = state_.version();
  std::string content_;
};

TEST(ControllerStateRandom, InvariantsHold) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RandomRun(seed).run();
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace volley::control
