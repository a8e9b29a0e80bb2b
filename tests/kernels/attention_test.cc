// Goal: paged attention has the bits of its reference on every instruction set and thread count,
// the reference is accurate, and a row depends on its sequence alone: not on the rows beside it,
// nor on which blocks hold it. Method: seeded sequences whose lengths cross block (16) and split
// (512) boundaries, with windows and several head layouts; blocks in a random permutation, all
// memory that no token owns filled with NaN.

#include <numeric>

#include "kernel_testing.h"

namespace volley::kernels::testing {
namespace {

struct Layout {
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t head_dim;
  DType dtype;
};

constexpr Layout kLayouts[] = {{4, 1, 20, DType::kBf16},
                               {4, 2, 64, DType::kF32},
                               {3, 3, 16, DType::kF32},
                               {14, 2, 40, DType::kBf16},
                               {16, 2, 128, DType::kBf16}};

/// A sequence's keys and values, and a query for each position.
struct Sequence {
  Layout layout;
  uint32_t tokens;
  std::vector<float> keys;    // [tokens, kv_heads, head_dim]
  std::vector<float> values;  // [tokens, kv_heads, head_dim]
  RowBuffer query;            // [tokens, heads * head_dim]
  float scale;

  static Sequence random(uint64_t seed, const Layout& layout, uint32_t tokens) {
    SplitMix64 random(seed);
    const size_t count = size_t{tokens} * layout.kv_heads * layout.head_dim;
    Sequence sequence = {.layout = layout,
                         .tokens = tokens,
                         .keys = random_vector(random, count, 2.0f),
                         .values = random_vector(random, count),
                         .query = RowBuffer::random(random, tokens, layout.heads * layout.head_dim,
                                                    layout.dtype, 2.0f),
                         .scale = 1.0f / std::sqrt(static_cast<float>(layout.head_dim))};
    for (float& value : sequence.keys) value = round_to(value, layout.dtype);
    for (float& value : sequence.values) value = round_to(value, layout.dtype);
    return sequence;
  }
};

/// A paged cache that holds one sequence in blocks permuted by `seed`.
class Cache {
 public:
  Cache(const Sequence& sequence, uint64_t seed)
      : block_count_((sequence.tokens + 15) / 16 + 3),
        pools_(2 * view_of(sequence.layout, block_count_).pool_bytes()) {
    const Layout& layout = sequence.layout;
    view_ = view_of(layout, block_count_);
    view_.keys = pools_.data();
    view_.values = pools_.data() + view_.pool_bytes();
    blocks_.resize(block_count_);
    std::iota(blocks_.begin(), blocks_.end(), 0u);
    SplitMix64 random(seed);
    // In every other cache some stretches stay in order: kernels may read those differently.
    for (size_t i = block_count_ - 1; i > 0; --i) {
      if (seed % 2 == 1 && i % 32 > 12) continue;
      std::swap(blocks_[i], blocks_[random.below(i + 1)]);
    }
    for (uint32_t t = 0; t < sequence.tokens; ++t) {
      for (uint32_t head = 0; head < layout.kv_heads; ++head) {
        std::byte* keys = view_.keys + view_.block_offset(head, blocks_[t / 16]);
        std::byte* values = view_.values + view_.block_offset(head, blocks_[t / 16]);
        for (uint32_t d = 0; d < layout.head_dim; ++d) {
          const size_t source = (size_t{t} * layout.kv_heads + head) * layout.head_dim + d;
          store_element(keys, layout.dtype, view_.key_index(t % 16, d), sequence.keys[source]);
          store_element(values, layout.dtype, view_.value_index(t % 16, d),
                        sequence.values[source]);
        }
      }
    }
  }

  const KvCacheView& view() const { return view_; }
  const uint32_t* blocks() const { return blocks_.data(); }

 private:
  static KvCacheView view_of(const Layout& layout, size_t block_count) {
    return {.block_count = static_cast<uint32_t>(block_count),
            .kv_heads = layout.kv_heads,
            .head_dim = layout.head_dim,
            .dtype = layout.dtype};
  }

  size_t block_count_;
  AlignedBytes pools_;  // Starts as NaNs.
  KvCacheView view_;
  std::vector<uint32_t> blocks_;
};

/// The outputs of the rows at `positions`, all in one call.
RowBuffer attend(const CpuKernels& kernels, ThreadPool& pool, const Sequence& sequence,
                 const Cache& cache, const std::vector<uint32_t>& positions, uint32_t window) {
  RowBuffer output(positions.size(), sequence.query.width(), sequence.layout.dtype);
  std::vector<const void*> query;
  std::vector<AttentionRow> rows;
  for (const uint32_t position : positions) {
    query.push_back(sequence.query.row(position));
    rows.push_back({.blocks = cache.blocks(), .position = position});
  }
  kernels.attention({.query = query,
                     .output = output.rows_out(),
                     .row = rows,
                     .heads = sequence.layout.heads,
                     .cache = cache.view(),
                     .scale = sequence.scale,
                     .window = window},
                    pool);
  return output;
}

const std::vector<uint32_t> kPositions = {0,   1,   14,  15,  16,   17,   100, 510,
                                          511, 512, 513, 600, 1023, 1039, 1040};
// Odd: the last pair of tokens, and the last block, end in memory that holds NaNs.
constexpr uint32_t kTokens = 1041;
constexpr uint32_t kWindows[] = {0, 1, 37, 520};

TEST(Attention, EveryInstructionSetHasTheBitsOfTheReference) {
  uint64_t seed = 5000;
  ThreadPool one(1);
  for (const Layout& layout : kLayouts) {
    const Sequence sequence = Sequence::random(++seed, layout, kTokens);
    const Cache cache(sequence, seed);
    for (const uint32_t window : kWindows) {
      const RowBuffer expected =
          attend(reference_kernels(), one, sequence, cache, kPositions, window);
      for_each_variant([&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
        if (name == "reference, threads 1" || name == "reference, threads 2") return;
        expect_same(expected, attend(kernels, pool, sequence, cache, kPositions, window),
                    fmt::format("{}, seed {}, head_dim {}, window {}", name, seed, layout.head_dim,
                                window));
        attend(kernels, pool, sequence, cache, {}, window);
      });
    }
  }
}

TEST(Attention, TheReferenceIsAccurate) {
  // A score is within e = gamma(head_dim + 1) * scale * sum |q k| of the exact one. An exponential
  // then is off by a factor of 2 e (score and maximum), the rounding of the difference (its size
  // times u) and 2 ulp, and bf16 rounds it to storage; the merge of splits adds four roundings
  // each. Numerator and denominator are sums of at most T of these, so the quotient moves by at
  // most twice that relative error times the largest |v|. 5% covers second order.
  uint64_t seed = 6000;
  ThreadPool one(1);
  for (const Layout& layout : kLayouts) {
    const Sequence sequence = Sequence::random(++seed, layout, kTokens);
    const Cache cache(sequence, seed);
    for (const uint32_t window : kWindows) {
      const RowBuffer output =
          attend(reference_kernels(), one, sequence, cache, kPositions, window);
      for (size_t r = 0; r < kPositions.size(); ++r) {
        const uint32_t end = kPositions[r] + 1;
        const uint32_t begin = window == 0 || window > end ? 0 : end - window;
        for (uint32_t head = 0; head < layout.heads; ++head) {
          const uint32_t kv_head = head / (layout.heads / layout.kv_heads);
          const auto at = [&](const std::vector<float>& source, uint32_t t, uint32_t d) {
            return double{source[(size_t{t} * layout.kv_heads + kv_head) * layout.head_dim + d]};
          };
          std::vector<double> score(end);
          double score_error = 0, largest = -INFINITY, least = INFINITY;
          for (uint32_t t = begin; t < end; ++t) {
            double magnitude = 0;
            for (uint32_t d = 0; d < layout.head_dim; ++d) {
              const double term = sequence.query.at(kPositions[r], head * layout.head_dim + d) *
                                  at(sequence.keys, t, d);
              score[t] += term * sequence.scale;
              magnitude += std::abs(term) * sequence.scale;
            }
            score_error = std::max(score_error, gamma(layout.head_dim + 1) * magnitude);
            largest = std::max(largest, score[t]);
            least = std::min(least, score[t]);
          }
          const double splits = 1 + (end - begin) / 512 + 1;
          const double weight_error = 2 * score_error + (largest - least) * kUnit + 4 * kUnit +
                                      (end - begin + 4 * splits) * kUnit +
                                      (layout.dtype == DType::kBf16 ? unit_of(layout.dtype) : 0);
          double sum = 0;
          for (uint32_t t = begin; t < end; ++t) sum += std::exp(score[t] - largest);
          for (uint32_t d = 0; d < layout.head_dim; ++d) {
            double expected = 0, value_max = 0;
            for (uint32_t t = begin; t < end; ++t) {
              expected += std::exp(score[t] - largest) / sum * at(sequence.values, t, d);
              value_max = std::max(value_max, std::abs(at(sequence.values, t, d)));
            }
            const double bound = 1.05 * (2 * weight_error * value_max +
                                         (kUnit + unit_of(layout.dtype)) * std::abs(expected)) +
                                 unit_of(layout.dtype) * 2 * weight_error * value_max;
            ASSERT_LE(std::abs(output.at(r, head * layout.head_dim + d) - expected), bound)
                << "seed " << seed << ", position " << kPositions[r] << ", head " << head
                << ", window " << window;
          }
        }
      }
    }
  }
}

TEST(Attention, PrefillEqualsDecodeWhateverTheBlocks) {
  // Decode: one row per call, each time in another permutation of blocks. Prefill: all rows in one
  // call.
  const Layout layout = {.heads = 4, .kv_heads = 2, .head_dim = 20, .dtype = DType::kBf16};
  constexpr uint64_t kSeed = 7000;
  const Sequence sequence = Sequence::random(kSeed, layout, 530);
  std::vector<uint32_t> positions(530);
  std::iota(positions.begin(), positions.end(), 0u);
  for (const uint32_t window : {0u, 70u}) {
    for_each_variant([&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
      if (name.starts_with("reference")) return;  // Its rows share nothing by construction.
      const RowBuffer prefill =
          attend(kernels, pool, sequence, Cache(sequence, kSeed), positions, window);
      for (uint32_t position = 0; position < 530; position += position < 500 ? 23 : 1) {
        const Cache other(sequence, kSeed + 1 + position);
        const RowBuffer decode = attend(kernels, pool, sequence, other, {position}, window);
        ASSERT_EQ(std::memcmp(decode.row(0), prefill.row(position), 80 * 2), 0)
            << name << ", seed " << kSeed << ", position " << position << ", window " << window;
      }
    });
  }
}

TEST(Attention, NumbersGoneBadStayVisible) {
  const Layout layout = {.heads = 2, .kv_heads = 1, .head_dim = 20, .dtype = DType::kBf16};
  Sequence sequence = Sequence::random(8000, layout, 40);
  sequence.keys[20 * 10] = NAN;  // Token 10.
  const Cache cache(sequence, 1);
  for_each_variant([&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
    const RowBuffer output = attend(kernels, pool, sequence, cache, {9, 10, 39}, 0);
    for (uint32_t i = 0; i < 40; ++i) {
      EXPECT_TRUE(std::isfinite(output.at(0, i))) << name;
      EXPECT_TRUE(std::isnan(output.at(1, i))) << name;
      EXPECT_TRUE(std::isnan(output.at(2, i))) << name;
    }
  });
}

}  // namespace
}  // namespace volley::kernels::testing
