// Goal: the number formats, generators and the thread pool do what their contracts say.
// Method: exhaustive or published values; the pool by counting every tile exactly once.

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "volley/base/bf16.h"
#include "volley/base/digest.h"
#include "volley/base/fd.h"
#include "volley/base/random.h"
#include "volley/base/thread_pool.h"

namespace volley {
namespace {

TEST(Bf16, EveryValueSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Bf16 value{static_cast<uint16_t>(bits)};
    const float wide = to_f32(value);
    if (std::isnan(wide)) {
      EXPECT_TRUE(std::isnan(to_f32(to_bf16(wide))));
    } else {
      ASSERT_EQ(to_bf16(wide).bits, value.bits);
    }
  }
}

TEST(Bf16, RoundsToNearestEven) {
  EXPECT_EQ(to_bf16(1.0f + 0x1p-8f).bits, 0x3f80);              // A tie goes down to even.
  EXPECT_EQ(to_bf16(1.0f + 3 * 0x1p-8f).bits, 0x3f82);          // A tie goes up to even.
  EXPECT_EQ(to_bf16(1.0f + 0x1p-8f + 0x1p-20f).bits, 0x3f81);   // Above the tie.
  EXPECT_EQ(to_bf16(std::numeric_limits<float>::max()).bits, 0x7f80);
}

TEST(F16, MatchesTheFormatDefinition) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint32_t exponent = (bits >> 10) & 31;
    const uint32_t mantissa = bits & 1023;
    const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
    const float actual = f16_to_f32(static_cast<uint16_t>(bits));
    if (exponent == 31) {
      EXPECT_EQ(std::isinf(actual), mantissa == 0);
      EXPECT_EQ(std::isnan(actual), mantissa != 0);
      continue;
    }
    const double expected = exponent == 0 ? std::ldexp(mantissa, -24)
                                          : std::ldexp(1024.0 + mantissa, static_cast<int>(exponent) - 25);
    ASSERT_EQ(actual, sign * expected) << "bits " << bits;
  }
}

// The known-answer vectors that Random123 publishes for philox4x32-10.
TEST(Philox, KnownAnswers) {
  const std::array<uint32_t, 4> zero = philox4x32({0, 0, 0, 0}, {0, 0});
  EXPECT_EQ(zero, (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const uint32_t ones = 0xffffffff;
  EXPECT_EQ(philox4x32({ones, ones, ones, ones}, {ones, ones}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Digest, DependsOnEveryByteAndTheSeed) {
  std::vector<std::byte> bytes(257);
  const uint64_t original = digest64(bytes);
  for (std::byte& byte : bytes) {
    byte = std::byte{1};
    EXPECT_NE(digest64(bytes), original);
    byte = std::byte{0};
  }
  EXPECT_NE(digest64(bytes, 1), original);
  EXPECT_EQ(to_hex(0xabcu), "0000000000000abc");
}

TEST(ThreadPool, RunsEveryTileOnce) {
  for (uint32_t threads : {1u, 2u, 3u, 8u}) {
    ThreadPool pool(threads);
    for (uint32_t tiles : {0u, 1u, 2u, 7u, 1000u}) {
      std::vector<std::atomic<int>> counts(tiles);
      pool.parallel_for(tiles, [&](uint32_t tile) { counts[tile].fetch_add(1); });
      for (const auto& count : counts) ASSERT_EQ(count.load(), 1);
    }
  }
}

TEST(ThreadPool, ManyShortRoundsFinish) {
  ThreadPool pool(3);
  std::vector<uint64_t> sums(5);
  for (int round = 0; round < 5000; ++round) {
    pool.parallel_for(5, [&](uint32_t tile) { sums[tile] += tile; });
  }
  for (uint32_t tile = 0; tile < 5; ++tile) EXPECT_EQ(sums[tile], 5000u * tile);
}

TEST(Mapping, NamesTheFileInItsErrors) {
  const auto missing = Mapping::map_file("/nonexistent/weights");
  ASSERT_EQ(missing.status().code(), StatusCode::kNotFound);
  EXPECT_NE(message_of(missing.status()).find("/nonexistent/weights"), std::string::npos);
  EXPECT_EQ(Mapping::map_file("/").status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace volley
