// Goal: a map says truly who holds what, names the first gap, and refuses holdings that cannot be.
// Method: small maps built by hand; the default placement over all small counts.

#include "volley/protocol/expert_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace volley::protocol {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

ExpertMap::Holding holding(const std::string& name, std::vector<uint32_t> experts) {
  return {.node = {.name = name, .incarnation = {7}}, .experts = std::move(experts)};
}

TEST(ExpertMap, ListsHoldersAscending) {
  const std::vector<ExpertMap::Holding> holdings = {holding("a", {2, 0}), holding("b", {1, 2, 2})};
  const Result<ExpertMap> map = ExpertMap::build({.term = 1, .number = 4}, 2, 3, holdings);
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_TRUE(map->complete());
  EXPECT_EQ(map->first_missing(), "");
  EXPECT_EQ(map->version, (MapVersion{.term = 1, .number = 4}));
  for (uint32_t layer = 0; layer < 2; ++layer) {
    EXPECT_THAT(map->holders_of(layer, 0), ElementsAre(0));
    EXPECT_THAT(map->holders_of(layer, 1), ElementsAre(1));
    EXPECT_THAT(map->holders_of(layer, 2), ElementsAre(0, 1));
  }
}

TEST(ExpertMap, NamesTheFirstGap) {
  const std::vector<ExpertMap::Holding> holdings = {holding("a", {0, 2})};
  Result<ExpertMap> map = ExpertMap::build({}, 4, 3, holdings);
  ASSERT_TRUE(map.ok());
  EXPECT_FALSE(map->complete());
  EXPECT_EQ(map->first_missing(), "layer 0 expert 1");
  for (uint32_t layer = 0; layer < 3; ++layer) map->holders[size_t{layer} * 3 + 1] = {0};
  EXPECT_EQ(map->first_missing(), "layer 3 expert 1");
}

TEST(ExpertMap, WithoutNodesNothingIsHeld) {
  const Result<ExpertMap> map = ExpertMap::build({}, 1, 1, {});
  ASSERT_TRUE(map.ok());
  EXPECT_EQ(map->first_missing(), "layer 0 expert 0");
}

TEST(ExpertMap, RefusesExpertsOutOfRangeAndTwins) {
  const std::vector<ExpertMap::Holding> range = {holding("a", {0, 3})};
  const auto out_of_range = ExpertMap::build({}, 1, 3, range);
  EXPECT_EQ(out_of_range.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(message_of(out_of_range.status()), HasSubstr("a says it holds expert 3"));
  const std::vector<ExpertMap::Holding> twins = {holding("a", {0}), holding("a", {1})};
  const auto twice = ExpertMap::build({}, 1, 3, twins);
  EXPECT_EQ(twice.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(message_of(twice.status()), HasSubstr("a appears twice"));
}

TEST(DefaultExperts, CoverAllOnceAndEvenly) {
  for (uint32_t experts = 1; experts <= 9; ++experts) {
    for (uint32_t count = 1; count <= 12; ++count) {
      std::vector<int> holders(experts, 0);
      for (uint32_t index = 0; index < count; ++index) {
        const std::vector<uint32_t> held = default_experts(experts, index, count);
        EXPECT_GE(held.size(), experts / count);
        EXPECT_LE(held.size(), (experts + count - 1) / count);
        for (const uint32_t expert : held) ++holders[expert];
      }
      EXPECT_THAT(holders, testing::Each(1)) << experts << " experts on " << count;
    }
  }
  EXPECT_THAT(default_experts(8, 1, 3), ElementsAre(1, 4, 7));
}

}  // namespace
}  // namespace volley::protocol
