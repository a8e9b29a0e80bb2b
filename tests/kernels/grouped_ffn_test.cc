// Goal: the grouped FFN has the bits of its reference on every instruction set and thread count,
// the reference is accurate, and a row's value depends on its own group alone. Method: seeded
// groups: some empty, one with all rows, odd widths; against double precision with a bound carried
// through the three products.

#include "kernel_testing.h"

namespace volley::kernels::testing {
namespace {

struct Expert {
  Weights gate;
  Weights up;
  Weights down;
};

struct Case {
  std::vector<Expert> experts;
  std::vector<FfnGroup> groups;
  RowBuffer input;
  uint32_t ffn;

  static Case random(uint64_t seed, const std::vector<uint32_t>& row_counts, uint32_t hidden,
                     uint32_t ffn, DType dtype) {
    SplitMix64 random(seed);
    uint32_t rows = 0;
    for (const uint32_t count : row_counts) rows += count;
    Case result = {.experts = {},
                   .groups = {},
                   .input = RowBuffer::random(random, rows, hidden, dtype),
                   .ffn = ffn};
    uint32_t first_row = 0;
    for (const uint32_t count : row_counts) {
      result.experts.push_back({Weights::random(random, ffn, hidden, dtype, 0.3f),
                                Weights::random(random, ffn, hidden, dtype, 0.3f),
                                Weights::random(random, hidden, ffn, dtype, 0.3f)});
      const Expert& expert = result.experts.back();
      result.groups.push_back({.weights = {.gate = expert.gate.packed,
                                           .up = expert.up.packed,
                                           .down = expert.down.packed},
                               .first_row = first_row,
                               .row_count = count});
      first_row += count;
    }
    return result;
  }

  RowBuffer run(const CpuKernels& kernels, ThreadPool& pool) const {
    return run_on(kernels, pool, groups, input.rows_in());
  }

  RowBuffer run_on(const CpuKernels& kernels, ThreadPool& pool, std::span<const FfnGroup> some,
                   ConstRows rows) const {
    RowBuffer output(rows.size(), input.width(), input.dtype());
    const AlignedBytes workspace(grouped_ffn_workspace_bytes(rows.size(), ffn, input.dtype()));
    kernels.grouped_ffn({.groups = some,
                         .input = rows,
                         .output = output.rows_out(),
                         .dtype = input.dtype(),
                         .workspace = workspace.data()},
                        pool);
    return output;
  }
};

const std::vector<uint32_t> kRowCounts[] = {{0}, {1}, {3, 0, 7, 1, 13}, {0, 0, 20, 0}, {6, 6}};
constexpr std::pair<uint32_t, uint32_t> kWidths[] = {{16, 16}, {20, 37}, {80, 150}};
constexpr DType kTypes[] = {DType::kBf16, DType::kF32};

template <class Body>
void for_each_case(uint64_t seed, Body body) {
  for (const auto& row_counts : kRowCounts) {
    for (const auto& [hidden, ffn] : kWidths) {
      for (const DType dtype : kTypes) {
        ++seed;
        body(Case::random(seed, row_counts, hidden, ffn, dtype),
             fmt::format("seed {}, {} groups, {} x {}, {}", seed, row_counts.size(), hidden, ffn,
                         dtype_name(dtype)));
      }
    }
  }
}

TEST(GroupedFfn, EveryInstructionSetHasTheBitsOfTheReference) {
  ThreadPool one(1);
  for_each_case(1000, [&](const Case& test, const std::string& what) {
    const RowBuffer expected = test.run(reference_kernels(), one);
    for_each_variant([&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
      expect_same(expected, test.run(kernels, pool), name + ", " + what);
    });
  });
}

TEST(GroupedFfn, TheReferenceIsAccurate) {
  // Errors are carried forward: e_g and e_u of the first products (gamma of their length), through
  // SiLU (slope below 1.1; 5 units for exp, sum and quotient) and the product, the rounding to
  // storage, and then through the last product. 1% covers the products of errors.
  ThreadPool one(1);
  for_each_case(2000, [&](const Case& test, const std::string& what) {
    const RowBuffer output = test.run(reference_kernels(), one);
    const size_t hidden = test.input.width();
    const double storage_unit = unit_of(test.input.dtype());
    for (size_t g = 0; g < test.groups.size(); ++g) {
      const Expert& expert = test.experts[g];
      for (uint32_t index = 0; index < test.groups[g].row_count; ++index) {
        const uint32_t row = test.groups[g].first_row + index;
        std::vector<double> inner(test.ffn);
        std::vector<double> inner_error(test.ffn);
        for (uint32_t n = 0; n < test.ffn; ++n) {
          double gate = 0, gate_magnitude = 0, up = 0, up_magnitude = 0;
          for (size_t k = 0; k < hidden; ++k) {
            const double x = test.input.at(row, k);
            gate += x * expert.gate.values[n * hidden + k];
            gate_magnitude += std::abs(x * expert.gate.values[n * hidden + k]);
            up += x * expert.up.values[n * hidden + k];
            up_magnitude += std::abs(x * expert.up.values[n * hidden + k]);
          }
          const double silu = gate / (1.0 + std::exp(-gate));
          inner[n] = silu * up;
          const double silu_error =
              1.1 * gamma(hidden) * gate_magnitude + 5 * kUnit * std::abs(silu);
          inner_error[n] = silu_error * std::abs(up) +
                           std::abs(silu) * gamma(hidden) * up_magnitude +
                           (kUnit + storage_unit) * std::abs(inner[n]);
        }
        for (size_t i = 0; i < hidden; ++i) {
          double sum = 0, bound = 0;
          for (uint32_t n = 0; n < test.ffn; ++n) {
            const double weight = expert.down.values[i * test.ffn + n];
            sum += weight * inner[n];
            bound += std::abs(weight) * (inner_error[n] + gamma(test.ffn) * std::abs(inner[n]));
          }
          bound = 1.01 * (bound + storage_unit * std::abs(sum));
          ASSERT_LE(std::abs(output.at(row, i) - sum), bound) << what << ", row " << row;
        }
      }
    }
  });
}

TEST(GroupedFfn, ARowDoesNotDependOnItsCompany) {
  const Case test = Case::random(3000, {5, 0, 9}, 48, 70, DType::kBf16);
  for_each_variant([&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
    const RowBuffer together = test.run(kernels, pool);
    for (const FfnGroup& group : test.groups) {
      for (uint32_t index = 0; index < group.row_count; ++index) {
        const FfnGroup single = {.weights = group.weights, .first_row = 0, .row_count = 1};
        const uint32_t row = group.first_row + index;
        const RowBuffer alone =
            test.run_on(kernels, pool, {&single, 1}, test.input.rows_in().subspan(row, 1));
        ASSERT_EQ(std::memcmp(alone.row(0), together.row(row), 48 * 2), 0)
            << name << ", row " << row;
      }
    }
  });
}

}  // namespace
}  // namespace volley::kernels::testing
