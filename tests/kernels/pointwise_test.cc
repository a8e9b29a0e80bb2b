// Goal: RMSNorm, RoPE (of heads as they are and normalised) with cache append, combine, pack
// (as it is and as E4M3) and embed have the bits of their references on every instruction set and
// thread count, and the references are accurate. Method: seeded widths that are and are not
// multiples of 16, against double precision with bounds from the number of roundings.

#include "kernel_testing.h"
#include "volley/base/e4m3.h"

namespace volley::kernels::testing {
namespace {

constexpr uint32_t kWidths[] = {1, 15, 16, 40, 257};
constexpr uint32_t kRowCounts[] = {0, 1, 5};
constexpr DType kDTypes[] = {DType::kBf16, DType::kF32};

TEST(RmsNorm, EveryInstructionSetHasTheBitsOfTheReference) {
  uint64_t seed = 10;
  ThreadPool one(1);
  for (const uint32_t rows : kRowCounts) {
    for (const uint32_t width : kWidths) {
      for (const DType dtype : kDTypes) {
        SplitMix64 random(++seed);
        const auto input = RowBuffer::random(random, rows, width, DType::kF32, 3.0f);
        const std::vector<float> weight = random_vector(random, width);
        const auto run = [&](const CpuKernels& kernels, ThreadPool& pool) {
          RowBuffer output(rows, width, dtype);
          kernels.rms_norm({.input = input.rows_in(),
                            .weight = weight.data(),
                            .epsilon = 1e-5f,
                            .width = width,
                            .output = output.rows_out(),
                            .output_dtype = dtype},
                           pool);
          return output;
        };
        const RowBuffer expected = run(reference_kernels(), one);
        for_each_variant([&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
          expect_same(expected, run(kernels, pool),
                      fmt::format("{}, seed {}, {} x {}", name, seed, rows, width));
        });
        // Relative error: the sum of squares gamma(width / 16 + 5), halved by the square root; then
        // a quotient, two sums' and roots' roundings, a reciprocal, two products: 8 more units are
        // enough.
        for (uint32_t r = 0; r < rows; ++r) {
          double squares = 0;
          for (uint32_t i = 0; i < width; ++i) squares += std::pow(double{input.at(r, i)}, 2);
          const double scale = 1.0 / std::sqrt(squares / width + 1e-5);
          for (uint32_t i = 0; i < width; ++i) {
            const double exact = input.at(r, i) * scale * weight[i];
            const double relative = 1.01 * (gamma(width / 16.0 + 5 + 8) + unit_of(dtype));
            ASSERT_LE(std::abs(expected.at(r, i) - exact), relative * std::abs(exact))
                << "seed " << seed << ", row " << r << ", column " << i;
          }
        }
      }
    }
  }
}

TEST(RmsNorm, WorksInPlace) {
  SplitMix64 random(1);
  const auto input = RowBuffer::random(random, 2, 40, DType::kF32);
  const std::vector<float> weight = random_vector(random, 40);
  for_each_variant([&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
    RowBuffer apart(2, 40, DType::kF32);
    RowBuffer in_place(input);
    RmsNormArgs args = {.input = input.rows_in(),
                        .weight = weight.data(),
                        .epsilon = 1e-6f,
                        .width = 40,
                        .output = apart.rows_out(),
                        .output_dtype = DType::kF32};
    kernels.rms_norm(args, pool);
    args.input = in_place.rows_in();
    args.output = in_place.rows_out();
    kernels.rms_norm(args, pool);
    expect_same(apart, in_place, name);
  });
}

TEST(RopeAngles, AreThoseOfTheRoundedProduct) {
  const uint32_t positions[] = {0, 1, 1000, 131071};
  const float frequencies[] = {1.0f, 0.1f, 1e-4f};
  float cosine[12];
  float sine[12];
  rope_angles(positions, frequencies, cosine, sine);
  EXPECT_EQ(cosine[0], 1.0f);
  EXPECT_EQ(sine[0], 0.0f);
  EXPECT_NEAR(cosine[3], 0.5403023, 1e-7);
  EXPECT_NEAR(sine[3], 0.8414710, 1e-7);
  for (size_t i = 0; i < 12; ++i) {
    const long double angle = static_cast<float>(positions[i / 3]) * frequencies[i % 3];
    EXPECT_NEAR(cosine[i], std::cos(angle), kUnit) << i;
    EXPECT_NEAR(sine[i], std::sin(angle), kUnit) << i;
  }
}

struct RopeCase {
  uint32_t rows;
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t head_dim;
  DType dtype;
  bool norm = false;
};

/// What rope_append wrote: the queries, and the whole cache as one row of keys and one of values.
struct RopeOutput {
  RowBuffer query;
  RowBuffer cache;
};

TEST(RopeAppend, EveryInstructionSetHasTheBitsOfTheReference) {
  constexpr uint32_t kBlocks = 3;
  uint64_t seed = 20;
  ThreadPool one(1);
  for (const RopeCase& test : {RopeCase{0, 2, 1, 16, DType::kF32},
                               {1, 1, 1, 2, DType::kF32},
                               {5, 6, 2, 20, DType::kBf16},
                               {9, 4, 4, 64, DType::kF32},
                               {17, 3, 1, 96, DType::kBf16},
                               {2, 1, 1, 2, DType::kF32, true},
                               {5, 6, 2, 20, DType::kBf16, true},
                               {9, 4, 2, 128, DType::kF32, true},
                               {3, 2, 1, kHeadDimMax, DType::kBf16, true}}) {
    SplitMix64 random(++seed);
    const uint32_t half = test.head_dim / 2;
    const uint32_t kv_width = test.kv_heads * test.head_dim;
    const auto qkv = RowBuffer::random(random, test.rows, test.heads * test.head_dim + 2 * kv_width,
                                       DType::kF32);
    std::vector<float> cosine(test.rows * half);
    std::vector<float> sine(test.rows * half);
    for (size_t i = 0; i < cosine.size(); ++i) {
      const double angle = 6.3 * random.unit();
      cosine[i] = static_cast<float>(std::cos(angle));
      sine[i] = static_cast<float>(std::sin(angle));
    }
    constexpr float kEpsilon = 1e-3f;
    const std::vector<float> query_norm = random_vector(random, test.head_dim);
    const std::vector<float> key_norm = random_vector(random, test.head_dim);
    std::vector<KvPosition> positions;
    for (uint32_t r = 0; r < test.rows; ++r) {
      const uint32_t slot = (r * 7 + 5) % (kBlocks * 16);  // 7 and 48 have no common factor.
      positions.push_back({.block = slot / 16, .offset = slot % 16});
    }
    const auto run = [&](const CpuKernels& kernels, ThreadPool& pool) {
      RopeOutput output = {RowBuffer(test.rows, test.heads * test.head_dim, test.dtype),
                           RowBuffer(2, kBlocks * kv_width * 16, test.dtype)};
      const KvCacheView view = {.keys = static_cast<std::byte*>(output.cache.row(0)),
                                .values = static_cast<std::byte*>(output.cache.row(1)),
                                .block_count = kBlocks,
                                .kv_heads = test.kv_heads,
                                .head_dim = test.head_dim,
                                .dtype = test.dtype};
      kernels.rope_append({.qkv = qkv.rows_in(),
                           .cosine = cosine.data(),
                           .sine = sine.data(),
                           .heads = test.heads,
                           .query = output.query.rows_out(),
                           .cache = view,
                           .position = positions,
                           .query_norm = test.norm ? query_norm.data() : nullptr,
                           .key_norm = test.norm ? key_norm.data() : nullptr,
                           .norm_epsilon = kEpsilon},
                          pool);
      return output;
    };
    const RopeOutput expected = run(reference_kernels(), one);
    for_each_variant([&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
      const RopeOutput actual = run(kernels, pool);
      expect_same(expected.query, actual.query, fmt::format("{}, seed {}, query", name, seed));
      expect_same(expected.cache, actual.cache, fmt::format("{}, seed {}, cache", name, seed));
    });
    // Two roundings of the products' magnitude, and one to storage; those of the norm, if any, as
    // in RmsNorm above.
    const double units =
        2 * kUnit + unit_of(test.dtype) + (test.norm ? gamma(test.head_dim / 16.0 + 5 + 8) : 0.0);
    for (uint32_t r = 0; r < test.rows; ++r) {
      const auto head_element = [&](uint32_t first, uint32_t i) -> double {
        if (!test.norm) return qkv.at(r, first + i);
        double squares = 0;
        for (uint32_t j = 0; j < test.head_dim; ++j) {
          squares += std::pow(double{qkv.at(r, first + j)}, 2);
        }
        const auto& norm = first < test.heads * test.head_dim ? query_norm : key_norm;
        const double scale = 1.0 / std::sqrt(squares / test.head_dim + double{kEpsilon});
        return qkv.at(r, first + i) * scale * norm[i];
      };
      const auto expect_rotated = [&](uint32_t first, uint32_t i, float actual) {
        const double x = head_element(first, i);
        const double pair = head_element(first, i < half ? i + half : i - half);
        const double c = cosine[r * half + i % half];
        const double s = sine[r * half + i % half];
        const double exact = x * c + (i < half ? -pair * s : pair * s);
        const double magnitude = std::abs(x * c) + std::abs(pair * s);
        ASSERT_LE(std::abs(actual - exact), 1.01 * magnitude * units)
            << "seed " << seed << ", row " << r << ", feature " << first + i;
      };
      for (uint32_t i = 0; i < test.heads * test.head_dim; ++i) {
        expect_rotated(i / test.head_dim * test.head_dim, i % test.head_dim,
                       expected.query.at(r, i));
      }
      for (uint32_t head = 0; head < test.kv_heads; ++head) {
        const uint32_t key = (test.heads + head) * test.head_dim;
        const size_t block = (size_t{head} * kBlocks + positions[r].block) * test.head_dim * 16;
        for (uint32_t i = 0; i < test.head_dim; ++i) {
          const uint32_t offset = positions[r].offset;
          const bool pairs = test.dtype == DType::kBf16;
          const size_t key_index = pairs ? (i / 2 * 16 + offset) * 2 + i % 2 : i * 16 + offset;
          const size_t value_index = pairs ? (offset / 2 * test.head_dim + i) * 2 + offset % 2
                                           : offset * test.head_dim + i;
          expect_rotated(key, i, expected.cache.at(0, block + key_index));
          EXPECT_EQ(expected.cache.at(1, block + value_index),
                    round_to(qkv.at(r, key + kv_width + i), test.dtype));
        }
      }
    }
  }
}

TEST(Combine, EveryInstructionSetHasTheBitsOfTheReference) {
  uint64_t seed = 30;
  ThreadPool one(1);
  for (const uint32_t rows : kRowCounts) {
    for (const uint32_t width : kWidths) {
      for (const uint32_t top_k : {1u, 3u, 8u}) {
        for (const DType dtype : kDTypes) {
          SplitMix64 random(++seed);
          const auto expert_rows = RowBuffer::random(random, size_t{rows} * top_k, width, dtype);
          const auto initial = RowBuffer::random(random, rows, width, DType::kF32);
          const std::vector<float> weight = random_vector(random, size_t{rows} * top_k);
          const auto run = [&](const CpuKernels& kernels, ThreadPool& pool) {
            RowBuffer residual(initial);
            kernels.combine({.residual = residual.rows_out(),
                             .expert_row = expert_rows.rows_in(),
                             .weight = weight.data(),
                             .top_k = top_k,
                             .width = width,
                             .dtype = dtype},
                            pool);
            return residual;
          };
          const RowBuffer expected = run(reference_kernels(), one);
          for_each_variant(
              [&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
                expect_same(
                    expected, run(kernels, pool),
                    fmt::format("{}, seed {}, {} x {}, top {}", name, seed, rows, width, top_k));
              });
          for (uint32_t r = 0; r < rows; ++r) {
            for (uint32_t i = 0; i < width; ++i) {
              double exact = initial.at(r, i);
              double magnitude = std::abs(exact);
              for (uint32_t j = r * top_k; j < (r + 1) * top_k; ++j) {
                exact += double{weight[j]} * expert_rows.at(j, i);
                magnitude += std::abs(double{weight[j]} * expert_rows.at(j, i));
              }
              ASSERT_LE(std::abs(expected.at(r, i) - exact), gamma(top_k + 1) * magnitude);
            }
          }
        }
      }
    }
  }
}

TEST(Combine, AddsInTheOrderOfTheList) {
  // 2^24 + 1 - 2^24 is 0 in this order and 1 in any order that pairs the large numbers first.
  RowBuffer residual(1, 1, DType::kF32);
  RowBuffer expert_rows(3, 1, DType::kF32);
  expert_rows.set(0, 0, 0x1p24f);
  expert_rows.set(1, 0, 1.0f);
  expert_rows.set(2, 0, -0x1p24f);
  const float weight[3] = {1.0f, 1.0f, 1.0f};
  for_each_variant([&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
    residual.set(0, 0, 0.0f);
    kernels.combine({.residual = residual.rows_out(),
                     .expert_row = expert_rows.rows_in(),
                     .weight = weight,
                     .top_k = 3,
                     .width = 1,
                     .dtype = DType::kF32},
                    pool);
    EXPECT_EQ(residual.at(0, 0), 0.0f) << name;
  });
}

TEST(Reduce, EveryInstructionSetHasTheBitsOfTheReference) {
  uint64_t seed = 60;
  ThreadPool one(1);
  for (const uint32_t rows : kRowCounts) {
    for (const uint32_t width : kWidths) {
      for (const DType dtype : kDTypes) {
        SplitMix64 random(++seed);
        std::vector<uint32_t> first = {0};  // Rows of 0 to 8 terms.
        while (first.size() <= rows) {
          first.push_back(first.back() + static_cast<uint32_t>(random.below(9)));
        }
        const uint32_t terms = first.back();
        const auto input = RowBuffer::random(random, terms, width, dtype);
        const std::vector<float> weight = random_vector(random, terms);
        const auto run = [&](const CpuKernels& kernels, ThreadPool& pool) {
          RowBuffer output(rows, width, dtype);
          kernels.reduce({.input = input.rows_in(),
                          .weight = weight.data(),
                          .first = first,
                          .output = output.rows_out(),
                          .width = width,
                          .dtype = dtype},
                         pool);
          return output;
        };
        const RowBuffer expected = run(reference_kernels(), one);
        for_each_variant([&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
          expect_same(expected, run(kernels, pool),
                      fmt::format("{}, seed {}, {} x {}", name, seed, rows, width));
        });
        for (uint32_t r = 0; r < rows; ++r) {
          for (uint32_t i = 0; i < width; ++i) {
            double exact = 0, magnitude = 0;
            for (uint32_t j = first[r]; j < first[r + 1]; ++j) {
              exact += double{weight[j]} * input.at(j, i);
              magnitude += std::abs(double{weight[j]} * input.at(j, i));
            }
            // The sum of up to 8 terms, and its rounding to the dtype.
            const double summing = gamma(8) * magnitude;
            const double rounding =
                dtype == DType::kBf16 ? 0x1p-8 * (std::abs(exact) + summing) : 0;
            ASSERT_LE(std::abs(expected.at(r, i) - exact), summing + rounding);
          }
        }
      }
    }
  }
}

// What combine makes of a row's answers is what reduce makes of them, in f32, added to the
// residual: with one expert node the sums of `combine: pre_reduce` give the bits of the exact mode.
TEST(Reduce, InF32IsTheSumThatCombineMakes) {
  SplitMix64 random(90);
  ThreadPool pool(1);
  const uint32_t rows = 5, width = 37, top_k = 4;
  const auto input = RowBuffer::random(random, rows * top_k, width, DType::kF32);
  const std::vector<float> weight = random_vector(random, rows * top_k);
  const std::vector<float> ones(rows, 1.0f);
  const std::vector<uint32_t> first = {0, 4, 8, 12, 16, 20};
  const auto initial = RowBuffer::random(random, rows, width, DType::kF32);
  RowBuffer combined(initial), added(initial), sums(rows, width, DType::kF32);
  const CpuKernels& kernels = reference_kernels();
  kernels.combine({.residual = combined.rows_out(),
                   .expert_row = input.rows_in(),
                   .weight = weight.data(),
                   .top_k = top_k,
                   .width = width,
                   .dtype = DType::kF32},
                  pool);
  kernels.reduce({.input = input.rows_in(),
                  .weight = weight.data(),
                  .first = first,
                  .output = sums.rows_out(),
                  .width = width,
                  .dtype = DType::kF32},
                 pool);
  kernels.combine({.residual = added.rows_out(),
                   .expert_row = sums.rows_in(),
                   .weight = ones.data(),
                   .top_k = 1,
                   .width = width,
                   .dtype = DType::kF32},
                  pool);
  expect_same(combined, added, "sums");
}

TEST(Pack, CopiesEachRowToItsPlace) {
  SplitMix64 random(40);
  const auto tokens = RowBuffer::random(random, 4, 37, DType::kBf16);
  for_each_variant([&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
    RowBuffer slots(6, 37, DType::kBf16);
    const void* input[] = {tokens.row(2), tokens.row(0), tokens.row(2),
                           tokens.row(3), tokens.row(1), tokens.row(0)};
    kernels.pack({.input = input, .output = slots.rows_out(), .row_bytes = 74}, pool);
    for (size_t i = 0; i < 6; ++i) {
      EXPECT_EQ(std::memcmp(slots.row(i), input[i], 74), 0) << name << ", row " << i;
    }
    EXPECT_TRUE(slots.guards_intact()) << name;
  });
}

TEST(E4m3, ConvertsLikeTheDefinition) {
  // Every code by its definition; then every value that lies at a code, between two or at their
  // middle, where the even one wins.
  std::vector<double> value(127);
  for (uint32_t code = 0; code < 127; ++code) {
    const int exponent = static_cast<int>(code >> 3);
    const double mantissa = (code & 7) / 8.0;
    value[code] = exponent == 0 ? std::ldexp(mantissa, -6) : std::ldexp(1 + mantissa, exponent - 7);
    for (const uint8_t sign : {0x00, 0x80}) {
      const float got = to_f32(E4m3{static_cast<uint8_t>(code | sign)});
      EXPECT_EQ(got, sign != 0 ? -value[code] : value[code]);
      EXPECT_EQ(std::signbit(got), sign != 0);
      EXPECT_EQ(to_e4m3(got).bits, code | sign);
    }
  }
  EXPECT_EQ(value[126], 448);
  EXPECT_EQ(value[1], 0x1p-9);
  for (uint32_t code = 0; code < 126; ++code) {
    const auto middle = static_cast<float>((value[code] + value[code + 1]) / 2);
    const uint32_t even = code % 2 == 0 ? code : code + 1;
    EXPECT_EQ(to_e4m3(middle).bits, even) << middle;
    EXPECT_EQ(to_e4m3(std::nextafter(middle, 0.0f)).bits, code) << middle;
    EXPECT_EQ(to_e4m3(std::nextafter(middle, 500.0f)).bits, code + 1) << middle;
    EXPECT_EQ(to_e4m3(-middle).bits, even | 0x80) << middle;
  }
  for (const float beyond : {449.0f, 464.0f, 480.0f, 1e30f, INFINITY}) {
    EXPECT_EQ(to_e4m3(beyond).bits, 0x7e) << beyond;
    EXPECT_EQ(to_e4m3(-beyond).bits, 0xfe) << beyond;
  }
  EXPECT_EQ(to_e4m3(0x1p-149f).bits, 0);
  EXPECT_EQ(to_e4m3(NAN).bits & 0x7f, 0x7f);
  for (const uint8_t nan : {0x7f, 0xff}) EXPECT_TRUE(std::isnan(to_f32(E4m3{nan})));
}

/// Rows of bytes: E4M3 rows have no dtype of their own.
constexpr uint32_t e4m3_bytes(uint32_t width) {
  return (width + 4 + 3) / 4 * 4;
}

TEST(PackE4m3, EveryInstructionSetHasTheBitsOfTheReference) {
  uint64_t seed = 60;
  ThreadPool one(1);
  for (const uint32_t width : kWidths) {
    for (const DType dtype : kDTypes) {
      for (const uint32_t slack : {0u, 12u}) {
        SplitMix64 random(++seed);
        constexpr uint32_t kRows = 9;
        const uint32_t row_bytes = e4m3_bytes(width) + slack;
        auto input = RowBuffer::random(random, kRows, width, dtype, 3.0f);
        for (uint32_t i = 0; i < width; ++i) {
          input.set(1, i, i % 2 == 0 ? 0.0f : -0.0f);
          input.set(2, i, input.at(2, i) * 0x1p-130f);  // Denormal, and below the least scale.
          input.set(3, i, input.at(3, i) * 0x1p120f);
          // Over the whole range of a code: most round to denormal codes or to zero.
          input.set(4, i, input.at(4, i) * std::exp2(-static_cast<float>(i % 20)));
          // In halves of the largest code's unit: ties.
          input.set(5, i, i == 0 ? 448.0f : static_cast<float>(i % 448) / 2);
        }
        input.set(6, width - 1, NAN);
        input.set(7, width / 2, -INFINITY);
        const auto run = [&](const CpuKernels& kernels, ThreadPool& pool) {
          RowBuffer output(kRows, row_bytes / 4, DType::kF32);
          kernels.pack_e4m3({.input = input.rows_in(),
                             .output = output.rows_out(),
                             .width = width,
                             .dtype = dtype,
                             .row_bytes = row_bytes},
                            pool);
          return output;
        };
        const auto read = [&](const CpuKernels& kernels, ThreadPool& pool,
                              const RowBuffer& packed) {
          RowBuffer output(kRows, width, dtype);
          kernels.unpack_e4m3({.input = packed.rows_in(),
                               .output = output.rows_out(),
                               .width = width,
                               .dtype = dtype,
                               .row_bytes = row_bytes},
                              pool);
          return output;
        };
        const RowBuffer expected = run(reference_kernels(), one);
        const RowBuffer restored = read(reference_kernels(), one, expected);
        for_each_variant([&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
          SCOPED_TRACE(fmt::format("{}, seed {}, width {}", name, seed, width));
          const RowBuffer packed = run(kernels, pool);
          EXPECT_TRUE(packed.guards_intact());
          for (uint32_t r = 0; r < kRows; ++r) {
            EXPECT_EQ(std::memcmp(packed.row(r), expected.row(r), row_bytes), 0) << "row " << r;
          }
          expect_same(restored, read(kernels, pool, packed), "read back");
        });
        for (uint32_t r = 0; r < kRows; ++r) {
          const float scale = expected.at(r, row_bytes / 4 - 1);
          const auto* codes = static_cast<const uint8_t*>(expected.row(r));
          double amax = 0;
          for (uint32_t i = 0; i < width; ++i) {
            amax = std::max(amax, std::abs(double{input.at(r, i)}));
          }
          for (uint32_t i = width; i < row_bytes - 4; ++i) EXPECT_EQ(codes[i], 0);
          if (r == 6 || r == 7) {
            EXPECT_TRUE(std::isnan(scale));
            for (uint32_t i = 0; i < width; ++i) EXPECT_TRUE(std::isnan(restored.at(r, i)));
            continue;
          }
          EXPECT_GE(scale, 0x1p-126f);
          if (r == 1) {
            EXPECT_EQ(scale, 0x1p-126f);
          }
          for (uint32_t i = 0; i < width; ++i) {
            // Half a unit of the last place of four bits, or of the smallest code; then the
            // rounding of quotient, product and storage.
            const double x = input.at(r, i);
            const double bound = std::max(0x1p-4 * std::abs(x), 0x1p-10 * double{scale}) * 1.0001 +
                                 1.01 * unit_of(dtype) * 1.07 * std::abs(x) + 0x1p-133;
            ASSERT_LE(std::abs(restored.at(r, i) - x), bound)
                << "row " << r << ", column " << i << ": " << x << ", largest " << amax;
            if (x == 0) {
              EXPECT_EQ(std::signbit(restored.at(r, i)), std::signbit(input.at(r, i)));
            }
          }
        }
      }
    }
  }
}

TEST(UnpackE4m3, ReadsEveryCodeUnderEveryKindOfScale) {
  ThreadPool one(1);
  constexpr uint32_t kBytes = 256 + 4;
  const float scales[] = {1.0f, 0x1.234567p-7f, -3.0f, 0.0f, 0x1p-149f, 3e38f, INFINITY, NAN};
  RowBuffer packed(std::size(scales), kBytes / 4, DType::kF32);
  for (size_t r = 0; r < std::size(scales); ++r) {
    auto* codes = static_cast<uint8_t*>(packed.row(r));
    for (uint32_t code = 0; code < 256; ++code) codes[code] = static_cast<uint8_t>(code);
    packed.set(r, kBytes / 4 - 1, scales[r]);
  }
  for (const DType dtype : kDTypes) {
    for_each_variant([&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
      RowBuffer output(std::size(scales), 256, dtype);
      kernels.unpack_e4m3({.input = packed.rows_in(),
                           .output = output.rows_out(),
                           .width = 256,
                           .dtype = dtype,
                           .row_bytes = kBytes},
                          pool);
      EXPECT_TRUE(output.guards_intact());
      for (size_t r = 0; r < std::size(scales); ++r) {
        for (uint32_t code = 0; code < 256; ++code) {
          const float exact = to_f32(E4m3{static_cast<uint8_t>(code)}) * scales[r];
          EXPECT_TRUE(same_bits(output.at(r, code), round_to(exact, dtype)))
              << name << ", scale " << scales[r] << ", code " << code;
        }
      }
    });
  }
}

TEST(Embed, ReadsBothLayouts) {
  constexpr uint32_t kVocab = 37;
  constexpr uint32_t kHidden = 20;
  SplitMix64 random(50);
  const int32_t tokens[] = {0, 36, 15, 16, 15};
  for (const DType dtype : kDTypes) {
    const Weights weights = Weights::random(random, kVocab, kHidden, dtype);
    AlignedBytes row_major(kVocab * kHidden * 4);
    convert_from_f32(weights.values.data(), kVocab * kHidden, dtype, row_major.data());
    for (const bool packed : {false, true}) {
      for_each_variant([&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
        RowBuffer output(5, kHidden, DType::kF32);
        kernels.embed({.table = {.data = packed ? weights.packed.data : row_major.data(),
                                 .vocab = kVocab,
                                 .hidden = kHidden,
                                 .dtype = dtype,
                                 .packed = packed},
                       .token = tokens,
                       .output = output.rows_out()},
                      pool);
        for (uint32_t r = 0; r < 5; ++r) {
          for (uint32_t i = 0; i < kHidden; ++i) {
            const size_t index = static_cast<size_t>(tokens[r]) * kHidden + i;
            ASSERT_EQ(output.at(r, i), weights.values[index]) << name << ", packed " << packed;
          }
        }
        EXPECT_TRUE(output.guards_intact()) << name;
      });
    }
  }
}

}  // namespace
}  // namespace volley::kernels::testing
