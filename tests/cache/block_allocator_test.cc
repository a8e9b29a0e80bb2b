// Goal: KV-1 (a block is free or in exactly one table) and KV-2 (none is lost), all or nothing on
// exhaustion. Method: the named cases, then seeded random grow and release over many tables,
// checked after each call.

#include "volley/cache/block_allocator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "volley/base/random.h"

namespace volley::cache {
namespace {

using Table = std::vector<uint32_t>;

TEST(BlockAllocator, GrowsToATotal) {
  BlockAllocator blocks(4);
  Table table;
  ASSERT_TRUE(blocks.grow(table, 2).ok());
  EXPECT_THAT(table, testing::ElementsAre(0, 1));
  ASSERT_TRUE(blocks.grow(table, 1).ok());
  EXPECT_EQ(table.size(), 2u);
  ASSERT_TRUE(blocks.grow(table, 4).ok());
  EXPECT_EQ(blocks.free_count(), 0u);
}

TEST(BlockAllocator, ExhaustionChangesNothing) {
  BlockAllocator blocks(3);
  Table first, second;
  ASSERT_TRUE(blocks.grow(first, 2).ok());
  const Status status = blocks.grow(second, 2);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(message_of(status), "2 KV blocks needed, 1 of 3 free");
  EXPECT_TRUE(second.empty());
  EXPECT_EQ(blocks.free_count(), 1u);
}

/// How often a block is not the one after the table's block before it.
size_t breaks(const Table& table) {
  size_t count = 0;
  for (size_t i = 1; i < table.size(); ++i) count += table[i] == table[i - 1] + 1 ? 0 : 1;
  return count;
}

TEST(BlockAllocator, TablesThatGrowInTurnsKeepNeighbours) {
  // 16 tables, a prompt of 8 blocks each, then one block each in turns until they have 60 of 64.
  BlockAllocator blocks(16 * 64);
  std::vector<Table> tables(16);
  for (Table& table : tables) ASSERT_TRUE(blocks.grow(table, 8).ok());
  for (uint32_t total = 9; total <= 60; ++total) {
    for (Table& table : tables) ASSERT_TRUE(blocks.grow(table, total).ok());
  }
  for (const Table& table : tables) EXPECT_LE(breaks(table), 2u);
}

TEST(BlockAllocator, ANewTableStartsWhereThereIsMostRoom) {
  BlockAllocator blocks(1024);
  std::vector<Table> ones(1024);
  for (Table& table : ones) ASSERT_TRUE(blocks.grow(table, 1).ok());
  for (Table& table : ones) {
    if (table.front() == 0 || table.front() >= 512) blocks.release(table);
  }
  for (int again = 0; again < 3; ++again) {
    Table table;
    ASSERT_TRUE(blocks.grow(table, 8).ok());
    EXPECT_EQ(breaks(table), 0u) << "starts at " << table.front();
    blocks.release(table);
  }
}

TEST(BlockAllocator, CrumbsAreUsedToTheLastBlock) {
  constexpr uint32_t kBlocks = 2'000;
  BlockAllocator blocks(kBlocks);
  std::vector<Table> tables(kBlocks);
  for (Table& table : tables) ASSERT_TRUE(blocks.grow(table, 1).ok());
  for (size_t i = 0; i < kBlocks; ++i) {
    if (tables[i].front() % 2 == 0) blocks.release(tables[i]);
  }
  Table rest;
  ASSERT_TRUE(blocks.grow(rest, kBlocks / 2).ok());
  EXPECT_EQ(blocks.free_count(), 0u);
  for (const uint32_t block : rest) EXPECT_EQ(block % 2, 0u);
}

TEST(BlockAllocator, WhatIsReleasedCanBeHadAgain) {
  BlockAllocator blocks(5);
  Table table, other;
  ASSERT_TRUE(blocks.grow(table, 3).ok());
  blocks.release(table);
  EXPECT_TRUE(table.empty());
  ASSERT_TRUE(blocks.grow(other, 5).ok());
  EXPECT_EQ(other.size(), 5u);
}

TEST(BlockAllocatorDeathTest, ReleasingAForeignBlockIsABug) {
  BlockAllocator blocks(2);
  Table stolen = {1};
  EXPECT_DEATH(blocks.release(stolen), "check failed");
}

TEST(BlockAllocator, RandomOperationsKeepTheInvariants) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE("reproduce with seed=" + std::to_string(seed));
    SplitMix64 random(seed);
    const auto block_count = static_cast<uint32_t>(random.below(400));
    BlockAllocator blocks(block_count);
    std::vector<Table> tables(1 + random.below(6));
    for (int turn = 0; turn < 60; ++turn) {
      Table& table = tables[random.below(tables.size())];
      if (random.chance(0.3)) {
        blocks.release(table);
      } else {
        const Table before = table;
        const auto total = static_cast<uint32_t>(random.below(200));
        const bool fits = total <= before.size() + blocks.free_count();
        ASSERT_EQ(blocks.grow(table, total).ok(), fits);
        ASSERT_EQ(table.size(), fits ? std::max<size_t>(before.size(), total) : before.size());
        ASSERT_TRUE(std::equal(before.begin(), before.end(), table.begin()));
      }
      std::vector<int> owners(block_count, 0);
      uint32_t used = 0;
      for (const Table& each : tables) {
        for (const uint32_t block : each) {
          ASSERT_LT(block, block_count);
          ASSERT_EQ(++owners[block], 1) << "KV-1, block " << block;
          ++used;
        }
      }
      ASSERT_EQ(used + blocks.free_count(), block_count) << "KV-2";
    }
  }
}

TEST(BlocksFor, RoundsUp) {
  EXPECT_EQ(blocks_for(0, 16), 0u);
  EXPECT_EQ(blocks_for(1, 16), 1u);
  EXPECT_EQ(blocks_for(16, 16), 1u);
  EXPECT_EQ(blocks_for(17, 16), 2u);
}

}  // namespace
}  // namespace volley::cache
