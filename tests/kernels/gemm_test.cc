// Goal: GEMM has the bits of its reference on every instruction set and thread count, the reference
// is accurate, and a row does not depend on the rows beside it. Method: seeded shapes around every
// blocking boundary (6 rows, 16 and 64 features, pairs of inputs and 512 of them), all dtypes.

#include "kernel_testing.h"

namespace volley::kernels::testing {
namespace {

struct Shape {
  uint32_t rows;
  uint32_t features;
  uint32_t inputs;
};

constexpr Shape kShapes[] = {{0, 16, 16}, {1, 1, 1},     {1, 16, 33},   {1, 150, 517},
                             {2, 31, 20}, {3, 129, 64},  {4, 100, 7},   {5, 17, 515},
                             {6, 64, 80}, {7, 200, 100}, {13, 45, 530}, {100, 33, 19}};

struct Types {
  DType input;  // And of the weights.
  DType output;
  bool add;
};

constexpr Types kTypes[] = {{DType::kF32, DType::kF32, false},  {DType::kF32, DType::kF32, true},
                            {DType::kF32, DType::kBf16, false}, {DType::kBf16, DType::kBf16, false},
                            {DType::kBf16, DType::kF32, false}, {DType::kBf16, DType::kF32, true}};

std::string describe(const Shape& shape, const Types& types, uint64_t seed) {
  return fmt::format("seed {}: {} rows, {} features, {} inputs, {} -> {}{}", seed, shape.rows,
                     shape.features, shape.inputs, dtype_name(types.input),
                     dtype_name(types.output), types.add ? " +=" : "");
}

GemmArgs arguments(const RowBuffer& input, const Weights& weights, const RowBuffer& output,
                   bool add) {
  return {.input = input.rows_in(),
          .weight = weights.packed,
          .output = output.rows_out(),
          .output_dtype = output.dtype(),
          .add_to_output = add};
}

TEST(Gemm, EveryInstructionSetHasTheBitsOfTheReference) {
  uint64_t seed = 100;
  ThreadPool one(1);
  for (const Shape& shape : kShapes) {
    for (const Types& types : kTypes) {
      SplitMix64 random(++seed);
      const auto input = RowBuffer::random(random, shape.rows, shape.inputs, types.input);
      const auto weights = Weights::random(random, shape.features, shape.inputs, types.input);
      const auto initial = RowBuffer::random(random, shape.rows, shape.features, types.output);
      RowBuffer expected(initial);
      reference_kernels().gemm(arguments(input, weights, expected, types.add), one);
      for_each_variant([&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
        RowBuffer actual(initial);
        kernels.gemm(arguments(input, weights, actual, types.add), pool);
        expect_same(expected, actual, name + ", " + describe(shape, types, seed));
      });
    }
  }
}

TEST(Gemm, TheReferenceIsAccurate) {
  // A chain of K fused additions is within gamma(K) of the exact sum, relative to the sum of
  // magnitudes; the last addition and the rounding to storage add one unit roundoff each of what
  // they round.
  uint64_t seed = 200;
  ThreadPool one(1);
  for (const Shape& shape : kShapes) {
    for (const Types& types : kTypes) {
      SplitMix64 random(++seed);
      const auto input = RowBuffer::random(random, shape.rows, shape.inputs, types.input);
      const auto weights = Weights::random(random, shape.features, shape.inputs, types.input);
      const auto initial = RowBuffer::random(random, shape.rows, shape.features, types.output);
      RowBuffer output(initial);
      reference_kernels().gemm(arguments(input, weights, output, types.add), one);
      for (uint32_t r = 0; r < shape.rows; ++r) {
        for (uint32_t n = 0; n < shape.features; ++n) {
          double sum = 0.0;
          double magnitude = 0.0;
          for (uint32_t k = 0; k < shape.inputs; ++k) {
            const double term =
                double{input.at(r, k)} * weights.values[size_t{n} * shape.inputs + k];
            sum += term;
            magnitude += std::abs(term);
          }
          const double sum_error = gamma(shape.inputs) * magnitude;
          if (types.add) sum += initial.at(r, n);
          const double bound = sum_error + (std::abs(sum) + sum_error) *
                                               (unit_of(types.output) + (types.add ? kUnit : 0.0));
          ASSERT_LE(std::abs(output.at(r, n) - sum), bound)
              << describe(shape, types, seed) << ", row " << r << ", feature " << n;
        }
      }
    }
  }
}

TEST(Gemm, ARowDoesNotDependOnItsCompany) {
  constexpr uint64_t kSeed = 300;
  SplitMix64 random(kSeed);
  const auto input = RowBuffer::random(random, 65, 531, DType::kBf16);
  const auto weights = Weights::random(random, 150, 531, DType::kBf16);
  for_each_variant([&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
    if (name.starts_with("reference")) return;  // It computes each element on its own.
    RowBuffer together(65, 150, DType::kF32);
    kernels.gemm(arguments(input, weights, together, false), pool);
    RowBuffer alone(65, 150, DType::kF32);
    for (uint32_t r = 0; r < 65; ++r) {
      GemmArgs args = arguments(input, weights, alone, false);
      args.input = args.input.subspan(r, 1);
      args.output = args.output.subspan(r, 1);
      kernels.gemm(args, pool);
    }
    expect_same(together, alone, fmt::format("{}, seed {}", name, kSeed));
  });
}

TEST(Gemm, DenormalsAreFlushedAlike) {
  // Factors down to 2^-70, so that products and sums cross the denormals, and denormal factors.
  constexpr uint64_t kSeed = 350;
  SplitMix64 random(kSeed);
  const auto weights = Weights::random(random, 70, 37, DType::kBf16, 0x1p-62f);
  auto input = RowBuffer::random(random, 9, 37, DType::kBf16, 0x1p-63f);
  for (uint32_t i = 0; i < 37; i += 5) input.set(4, i, random_f32(random, 0x1p-126f));
  for (uint32_t i = 1; i < 37; i += 5) input.set(5, i, random_f32(random, 0x1p60f));
  ThreadPool one(1);
  RowBuffer expected(9, 70, DType::kF32);
  reference_kernels().gemm(arguments(input, weights, expected, false), one);
  uint32_t zeros = 0;
  for (uint32_t r = 0; r < 9; ++r) {
    for (uint32_t n = 0; n < 70; ++n) {
      const float sum = expected.at(r, n);
      EXPECT_TRUE(sum == 0.0f || std::isnormal(sum)) << r << ", " << n << ": " << sum;
      zeros += sum == 0.0f ? 1 : 0;
    }
  }
  EXPECT_GT(zeros, 0u);
  EXPECT_LT(zeros, 9u * 70u);
  for_each_variant([&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
    RowBuffer actual(9, 70, DType::kF32);
    kernels.gemm(arguments(input, weights, actual, false), pool);
    expect_same(expected, actual, fmt::format("{}, seed {}", name, kSeed));
  });
}

TEST(Gemm, NumbersGoneBadStayVisible) {
  SplitMix64 random(400);
  const auto weights = Weights::random(random, 20, 40, DType::kBf16);
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    auto input = RowBuffer::random(random, 3, 40, DType::kBf16);
    input.set(1, 17, bad);
    for_each_variant([&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
      RowBuffer output(3, 20, DType::kBf16);
      kernels.gemm(arguments(input, weights, output, false), pool);
      for (uint32_t n = 0; n < 20; ++n) {
        EXPECT_TRUE(std::isfinite(output.at(0, n))) << name;
        EXPECT_FALSE(std::isfinite(output.at(1, n))) << name;
        EXPECT_TRUE(std::isfinite(output.at(2, n))) << name;
      }
    });
  }
}

}  // namespace
}  // namespace volley::kernels::testing
