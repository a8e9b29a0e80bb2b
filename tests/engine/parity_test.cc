// Goal: the engine's arithmetic is that of transformers. With f32 storage the logits are equal up
// to the order of summation; with bf16 storage they stay within what rounding to bf16 explains, and
// with fp8 dispatches, of bf16 and of f32, within what rounding to E4M3 explains besides; the same
// with the sums of `combine: pre_reduce`, which are rounded once more.
// Every instruction set gives the same bits, and so does every cutting of a sequence into steps.
//
// Method: teacher forcing over the goldens of tests/data/goldens: the whole sequence of a prompt
// and its greedy tokens goes through the model, and the logits of every position are compared. The
// bounds for bf16 and for fp8 dispatches are derived in rounding_noise.cc; no such run has a part
// in them.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "engine/goldens.h"
#include "engine/must.h"
#include "engine/rounding_noise.h"
#include "model_runner.h"

namespace volley::engine {
namespace {

constexpr const char* kCases[] = {"plain",   "odd",   "tied_f16", "sharded",
                                  "sliding", "qwen3", "qwen3_raw"};

// Of the range of the golden logits of a prompt. About a thousand roundings to f32 (2^-24) lie
// between a token and its logits; the order of summation is all that may differ.
constexpr double kF32Tolerance = 1e-4;

// Of the same range, between two f32 runs of ours that add up a token's answers otherwise: in each
// layer some roundings among the thousand are others, and a router may turn each into ten.
constexpr double kF32SumTolerance = 1e-5;

// The bound on the error of a gap, in the standard deviations that bf16 is expected to cause there.
// About 190,000 gaps are compared; among as many normal numbers the largest is expected at 4.5, and
// the chance that one exceeds 5 is 10 %. The runs are deterministic: they pass always or never.
// A wider bound leaves fewer tokens decided: with 5 they are 760 of 798, with 6 only 747.
constexpr double kSigmas = 5;

// The share of all positions whose margins must exceed the bounds.
constexpr double kDecidedShare = 0.95;

// The same with fp8 dispatches, whose roundings are sixteen times as large. About 290,000 gaps are
// compared; each is divided by a deviation that 64 runs have
// estimated, so the quotient has Student's distribution: a chance of 1.0e-7 to exceed 6, and of 3 %
// that any of them does. (Beyond 5 one would be expected.)
constexpr double kFp8Sigmas = 6;
constexpr double kFp8DecidedShare = 0.4;
// The share of the positions whose routing is decided, so that the logits can be held to their
// bounds.
constexpr double kFp8ComparedShare = 0.65;

std::vector<std::string> instruction_sets() {
  std::vector<std::string> sets;
  for (const char* isa : {"reference", "avx2", "avx512", "avx512_bf16"}) {
    if (kernels::select_cpu_kernels(isa).ok()) sets.push_back(isa);
  }
  return sets;
}

ModelRunner make_runner(const GoldenCase& golden, kernels::DType dtype, const std::string& isa,
                        uint32_t pre_reduce_nodes = 0) {
  const auto checkpoint = must(model::Checkpoint::open(golden.folder));
  return ModelRunner(checkpoint.spec, *must(checkpoint.source()), dtype, isa, golden.tokens_max(),
                     pre_reduce_nodes);
}

ModelRunner::Trace run_at_once(ModelRunner& runner, const GoldenPrompt& prompt) {
  return runner.run(prompt.tokens, static_cast<uint32_t>(prompt.tokens.size()),
                    ModelRunner::Emit::kEveryPosition);
}

double largest_difference(const Table& left, const Table& right) {
  EXPECT_EQ(left.values.size(), right.values.size());
  double largest = 0;
  for (size_t i = 0; i < left.values.size(); ++i) {
    const double difference = std::abs(double{left.values[i]} - right.values[i]);
    // A NaN compares false with everything.
    largest = std::isfinite(difference) ? std::max(largest, difference) : HUGE_VAL;
  }
  return largest;
}

class Parity : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Goldens, Parity, testing::ValuesIn(kCases),
                         [](const auto& test_info) { return std::string(test_info.param); });

TEST_P(Parity, F32IsWithinTheOrderOfSummation) {
  const GoldenCase golden = load_golden_case(GetParam());
  ModelRunner runner = make_runner(golden, kernels::DType::kF32, "reference");
  double worst = 0, worst_router = 0;
  for (size_t p = 0; p < golden.prompts.size(); ++p) {
    SCOPED_TRACE(fmt::format("prompt {}", p));
    const GoldenPrompt& prompt = golden.prompts[p];
    const ModelRunner::Trace trace = run_at_once(runner, prompt);
    const double error = largest_difference(trace.logits, prompt.logits) / range_of(prompt.logits);
    EXPECT_LE(error, kF32Tolerance);
    worst = std::max(worst, error);
    for (size_t layer = 0; layer < prompt.router_logits.size(); ++layer) {
      const Table& router = prompt.router_logits[layer];
      const double router_error =
          largest_difference(trace.router_logits[layer], router) / range_of(router);
      EXPECT_LE(router_error, kF32Tolerance) << "router of layer " << layer;
      worst_router = std::max(worst_router, router_error);
    }
  }
  std::printf("%s, f32: largest error %.2g of the logits' range, %.2g of the routers'\n",
              GetParam(), worst, worst_router);
}

TEST_P(Parity, EveryInstructionSetGivesTheBitsOfTheReference) {
  const GoldenCase golden = load_golden_case(GetParam());
  for (const kernels::DType dtype : {kernels::DType::kF32, kernels::DType::kBf16}) {
    ModelRunner reference = make_runner(golden, dtype, "reference");
    for (const std::string& isa : instruction_sets()) {
      ModelRunner runner = make_runner(golden, dtype, isa);
      for (size_t p = 0; p < golden.prompts.size(); ++p) {
        EXPECT_EQ(run_at_once(runner, golden.prompts[p]), run_at_once(reference, golden.prompts[p]))
            << isa << ", " << kernels::dtype_name(dtype) << ", prompt " << p;
      }
    }
  }
}

/// Rows `first`, `first + stride`, ... and the last row.
Table last_rows(const Table& table, size_t stride) {
  Table picked{.cols = table.cols, .values = {}};
  for (size_t end = stride;; end += stride) {
    const auto row = table.row(std::min(end, table.rows()) - 1);
    picked.values.insert(picked.values.end(), row.begin(), row.end());
    if (end >= table.rows()) return picked;
  }
}

TEST_P(Parity, EveryCuttingIntoStepsGivesTheSameBits) {
  const GoldenCase golden = load_golden_case(GetParam());
  for (const kernels::DType dtype : {kernels::DType::kF32, kernels::DType::kBf16}) {
    ModelRunner runner = make_runner(golden, dtype, "auto");
    for (size_t p = 0; p < golden.prompts.size(); ++p) {
      const GoldenPrompt& prompt = golden.prompts[p];
      const ModelRunner::Trace whole = run_at_once(runner, prompt);
      for (const uint32_t step_tokens : {1u, 5u, 16u, 33u}) {
        SCOPED_TRACE(fmt::format("{}, prompt {}, {} tokens a step", kernels::dtype_name(dtype), p,
                                 step_tokens));
        EXPECT_EQ(runner.run(prompt.tokens, step_tokens, ModelRunner::Emit::kEveryPosition), whole);
        ModelRunner::Trace expected = whole;
        expected.logits = last_rows(whole.logits, step_tokens);
        EXPECT_EQ(runner.run(prompt.tokens, step_tokens, ModelRunner::Emit::kLastOfStep), expected);
      }
    }
  }
}

// ------------------------------------------------------------------------------------------- bf16

/// What a rounded run of one case was like. Errors are the largest ones, in logits.
struct RoundingReport {
  double bound = kSigmas;  ///< Of the error of a gap, in sigmas.
  size_t positions = 0;
  size_t compared = 0;  ///< Every routing margin exceeds its bound.
  size_t decided = 0;   ///< So does every logit margin.
  double error = 0, router_error = 0;
  double worst_sigmas = 0, worst_router_sigmas = 0;  ///< Errors of gaps.
};

struct GapVerdict {
  bool clear = true;  ///< All golden gaps exceed their bounds.
  double worst_sigmas = 0;
};

/// `bound` in sigmas; `floor`: what the order of summation may change of a gap, noise or not.
GapVerdict compare_gaps(std::span<const float> values, std::span<const float> golden, size_t top_k,
                        const std::vector<double>& sigmas, double bound, double floor) {
  const std::vector<double> actual = gaps(values, golden, top_k);
  const std::vector<double> exact = gaps(golden, golden, top_k);
  GapVerdict verdict;
  for (size_t i = 0; i < exact.size(); ++i) {
    verdict.clear = verdict.clear && exact[i] > bound * sigmas[i] + floor;
    const double beyond = std::abs(actual[i] - exact[i]) - floor;
    // Without a rounding before it, as at the first router of an f32 model, a gap has no sigma.
    const double deviations = beyond <= 0 ? 0 : beyond / sigmas[i];
    // A NaN compares false with everything.
    verdict.worst_sigmas =
        std::isfinite(deviations) ? std::max(verdict.worst_sigmas, deviations) : HUGE_VAL;
  }
  return verdict;
}

double largest_difference(std::span<const float> left, std::span<const float> right) {
  double largest = 0;
  for (size_t i = 0; i < left.size(); ++i) {
    largest = std::max(largest, std::abs(double{left[i]} - right[i]));
  }
  return largest;
}

/// One position of a prompt. `clear`: all its routing margins exceed their bounds. `same`: it was
/// routed as in the golden.
struct RoutingVerdict {
  bool clear = true, same = true;
};

RoutingVerdict compare_routing(const GoldenPrompt& prompt, const ModelRunner::Trace& trace,
                               const RoundingNoise& noise, size_t position,
                               RoundingReport& report) {
  RoutingVerdict verdict;
  for (size_t layer = 0; layer < prompt.router_logits.size(); ++layer) {
    const size_t top_k = trace.experts[layer].size() / prompt.tokens.size();
    const auto golden = prompt.router_logits[layer].row(position);
    const auto router = trace.router_logits[layer].row(position);
    const std::vector<uint32_t> chosen = choose(golden, top_k);
    const bool same =
        std::equal(chosen.begin(), chosen.end(),
                   trace.experts[layer].begin() + static_cast<ptrdiff_t>(position * top_k));
    const GapVerdict gap =
        compare_gaps(router, golden, top_k, noise.router_logits[layer][position], report.bound,
                     2 * kF32Tolerance * range_of(prompt.router_logits[layer]));
    // Behind a near tie that fell the other way, the next layer works on another row.
    if (verdict.same) {
      EXPECT_LE(gap.worst_sigmas, report.bound) << "router of layer " << layer;
      report.worst_router_sigmas = std::max(report.worst_router_sigmas, gap.worst_sigmas);
      report.router_error = std::max(report.router_error, largest_difference(router, golden));
    }
    verdict.clear = verdict.clear && gap.clear;
    if (verdict.clear) {
      EXPECT_TRUE(same) << "layer " << layer << " routes otherwise";
    }
    verdict.same = verdict.same && same;
  }
  return verdict;
}

void compare_logits(std::span<const float> logits, std::span<const float> golden,
                    const std::vector<double>& sigmas, double floor, RoundingReport& report) {
  const GapVerdict gap = compare_gaps(logits, golden, 1, sigmas, report.bound, floor);
  EXPECT_LE(gap.worst_sigmas, report.bound);
  ++report.compared;
  report.worst_sigmas = std::max(report.worst_sigmas, gap.worst_sigmas);
  report.error = std::max(report.error, largest_difference(logits, golden));
  if (gap.clear) {
    EXPECT_EQ(choose(logits, 1), choose(golden, 1)) << "another greedy token";
    ++report.decided;
  }
}

RoundingReport compare_rounded(const GoldenCase& golden, double bound,
                               const std::vector<RoundingNoise>& noise, ModelRunner& runner) {
  RoundingReport report{.bound = bound, .positions = golden.positions()};
  for (size_t p = 0; p < golden.prompts.size(); ++p) {
    const GoldenPrompt& prompt = golden.prompts[p];
    const ModelRunner::Trace trace = run_at_once(runner, prompt);
    bool same_context = true;
    for (size_t position = 0; position < prompt.tokens.size(); ++position) {
      SCOPED_TRACE(fmt::format("prompt {}, position {}", p, position));
      // Behind a near tie that fell the other way, keys and values are those of another row.
      if (!same_context) continue;
      const RoutingVerdict routing = compare_routing(prompt, trace, noise[p], position, report);
      same_context = routing.same;
      if (!routing.clear) continue;
      compare_logits(trace.logits.row(position), prompt.logits.row(position),
                     noise[p].logits[position], 2 * kF32Tolerance * range_of(prompt.logits),
                     report);
    }
  }
  return report;
}

RoundingReport compare_rounded(const GoldenCase& golden, const Roundings& roundings) {
  ModelRunner runner =
      make_runner(golden, roundings.bf16 ? kernels::DType::kBf16 : kernels::DType::kF32, "auto");
  if (roundings.fp8_dispatch) runner.use_fp8_dispatch();
  return compare_rounded(
      golden, roundings.fp8_dispatch ? kFp8Sigmas : kSigmas,
      expect_noise(must(model::Checkpoint::open(golden.folder)), golden, roundings), runner);
}

TEST(ParityBf16, IsWithinItsRoundingsAndNearlyAllTokensAreDecided) {
  size_t decided = 0, positions = 0;
  for (const char* name : kCases) {
    SCOPED_TRACE(name);
    const GoldenCase golden = load_golden_case(name);
    const RoundingReport report = compare_rounded(golden, {.bf16 = true});
    std::printf(
        "%s, bf16: largest error of a logit %.4f (%.4f spreads), of a router logit %.4f; of a "
        "gap %.2f sigma, of a router's gap %.2f; compared %zu, decided %zu of %zu positions\n",
        name, report.error, report.error / golden.logit_spread(), report.router_error,
        report.worst_sigmas, report.worst_router_sigmas, report.compared, report.decided,
        report.positions);
    decided += report.decided;
    positions += report.positions;
  }
  std::printf("bf16: %zu of %zu positions are decided\n", decided, positions);
  EXPECT_GE(static_cast<double>(decided), kDecidedShare * static_cast<double>(positions));
}

// ------------------------------------------------------------------------------------ pre_reduce

TEST_P(Parity, PreReducedF32IsWithinTheOrderOfSummation) {
  const GoldenCase golden = load_golden_case(GetParam());
  ModelRunner exact = make_runner(golden, kernels::DType::kF32, "auto");
  for (const uint32_t nodes : {1u, 2u, 3u}) {
    ModelRunner runner = make_runner(golden, kernels::DType::kF32, "auto", nodes);
    double worst = 0;
    for (size_t p = 0; p < golden.prompts.size(); ++p) {
      SCOPED_TRACE(fmt::format("{} nodes, prompt {}", nodes, p));
      const GoldenPrompt& prompt = golden.prompts[p];
      const ModelRunner::Trace sums = run_at_once(runner, prompt);
      const ModelRunner::Trace terms = run_at_once(exact, prompt);
      EXPECT_EQ(sums.experts, terms.experts);
      const double error = largest_difference(sums.logits, terms.logits) / range_of(prompt.logits);
      EXPECT_LE(error, kF32SumTolerance);
      worst = std::max(worst, error);
      // All of a row's experts lie on the one node: the same sum, which f32 does not round again.
      if (nodes == 1) {
        EXPECT_EQ(sums, terms);
      }
    }
    std::printf("%s, f32, sums of %u nodes: largest change %.2g of the logits' range\n", GetParam(),
                nodes, worst);
  }
}

TEST(ParityPreReduce, Bf16IsWithinItsRoundingsAndNearlyAllTokensAreDecided) {
  size_t decided = 0, positions = 0;
  for (const char* name : kCases) {
    const GoldenCase golden = load_golden_case(name);
    const std::vector<RoundingNoise> noise = expect_noise(
        must(model::Checkpoint::open(golden.folder)), golden, {.bf16 = true, .pre_reduce = true});
    for (const uint32_t nodes : {1u, 2u, 3u}) {
      SCOPED_TRACE(fmt::format("{}, {} nodes", name, nodes));
      ModelRunner runner = make_runner(golden, kernels::DType::kBf16, "auto", nodes);
      const RoundingReport report = compare_rounded(golden, kSigmas, noise, runner);
      std::printf(
          "%s, bf16, sums of %u nodes: a gap %.2f sigma, a router's gap %.2f; compared %zu, "
          "decided %zu of %zu positions\n",
          name, nodes, report.worst_sigmas, report.worst_router_sigmas, report.compared,
          report.decided, report.positions);
      decided += report.decided;
      positions += report.positions;
    }
  }
  EXPECT_GE(static_cast<double>(decided), kDecidedShare * static_cast<double>(positions));
}

// -------------------------------------------------------------------------------- fp8 dispatches

/// How far fp8 dispatches take the logits of a model from those of its own dtype, over all
/// positions, those included that they route otherwise.
struct Fp8Change {
  double square = 0, largest = 0;  ///< Of a logit's change.
  size_t logits = 0, positions = 0, other_tokens = 0, other_routes = 0;

  double root_mean_square() const { return std::sqrt(square / static_cast<double>(logits)); }
};

Fp8Change change_by_fp8(const GoldenCase& golden, kernels::DType dtype) {
  ModelRunner plain = make_runner(golden, dtype, "auto");
  ModelRunner fp8 = make_runner(golden, dtype, "auto");
  fp8.use_fp8_dispatch();
  Fp8Change change;
  for (const GoldenPrompt& prompt : golden.prompts) {
    const ModelRunner::Trace before = run_at_once(plain, prompt);
    const ModelRunner::Trace after = run_at_once(fp8, prompt);
    for (size_t i = 0; i < before.logits.values.size(); ++i) {
      const double difference = double{after.logits.values[i]} - before.logits.values[i];
      change.square += difference * difference;
    }
    change.logits += before.logits.values.size();
    change.positions += prompt.tokens.size();
    change.largest = std::max(change.largest, largest_difference(after.logits, before.logits));
    for (size_t position = 0; position < prompt.tokens.size(); ++position) {
      if (choose(after.logits.row(position), 1) != choose(before.logits.row(position), 1)) {
        ++change.other_tokens;
      }
      for (size_t layer = 0; layer < before.experts.size(); ++layer) {
        const size_t top_k = before.experts[layer].size() / prompt.tokens.size();
        const auto first = static_cast<ptrdiff_t>(position * top_k);
        if (std::equal(before.experts[layer].begin() + first,
                       before.experts[layer].begin() + first + static_cast<ptrdiff_t>(top_k),
                       after.experts[layer].begin() + first)) {
          continue;
        }
        ++change.other_routes;
        break;
      }
    }
  }
  return change;
}

TEST(ParityFp8, IsWithinItsRoundings) {
  for (const kernels::DType dtype : {kernels::DType::kF32, kernels::DType::kBf16}) {
    size_t compared = 0, decided = 0, positions = 0, other_tokens = 0;
    for (const char* name : kCases) {
      SCOPED_TRACE(fmt::format("{}, {}", name, kernels::dtype_name(dtype)));
      const GoldenCase golden = load_golden_case(name);
      const RoundingReport report =
          compare_rounded(golden, {.bf16 = dtype == kernels::DType::kBf16, .fp8_dispatch = true});
      const Fp8Change change = change_by_fp8(golden, dtype);
      std::printf(
          "%s, %s, fp8 dispatches: a gap %.2f sigma, a router's gap %.2f; compared %zu, decided "
          "%zu "
          "of %zu positions. Against %s: change of a logit %.4f spreads (largest %.3f), other "
          "greedy token at %zu positions, other experts at %zu\n",
          name, kernels::dtype_name(dtype), report.worst_sigmas, report.worst_router_sigmas,
          report.compared, report.decided, report.positions, kernels::dtype_name(dtype),
          change.root_mean_square() / golden.logit_spread(), change.largest / golden.logit_spread(),
          change.other_tokens, change.other_routes);
      compared += report.compared;
      decided += report.decided;
      positions += report.positions;
      other_tokens += change.other_tokens;
    }
    std::printf("%s, fp8 dispatches: %zu compared, %zu decided, %zu other greedy tokens of %zu\n",
                kernels::dtype_name(dtype), compared, decided, other_tokens, positions);
    // Else the bounds would have been held by nothing.
    EXPECT_GE(static_cast<double>(compared), kFp8ComparedShare * static_cast<double>(positions));
    EXPECT_GE(static_cast<double>(decided), kFp8DecidedShare * static_cast<double>(positions));
  }
}

}  // namespace
}  // namespace volley::engine
