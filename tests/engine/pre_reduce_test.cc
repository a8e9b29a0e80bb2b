// Goal: with `combine: pre_reduce` the engines compute what the definition says, bit for bit: each
// expert node sums a row's answers of its own in ascending expert order, the attention node adds
// the sums in the order of their lowest experts. So for one placement of the experts the bits do
// not depend on anything else; with one expert node and f32 they are those of the exact mode; and
// with replicas and a loss, where the placement changes by the moment, the logits stay within what
// the order of summation explains. Method: clusters in one process against the model on one thread
// (ModelRunner), which makes the sums by the definition. How far these are from exact is the
// business of parity_test.

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <thread>

#include "engine/cluster_harness.h"
#include "engine/must.h"
#include "model_runner.h"
#include "volley/base/clock.h"
#include "volley/base/digest.h"
#include "volley/transport/fault_fabric.h"

namespace volley::engine {
namespace {

using protocol::Combine;

constexpr uint32_t kNewTokens = 6;
constexpr uint32_t kPromptMax = 40;

const std::vector<GenerationRequest>& requests() {
  static const auto* all =
      new std::vector<GenerationRequest>(random_requests(11, 4, 199, kPromptMax, kNewTokens));
  return *all;
}

ModelRunner make_runner(kernels::DType dtype, uint32_t pre_reduce_nodes) {
  const model::Checkpoint checkpoint = random_moe();
  return ModelRunner(checkpoint.spec, *must(checkpoint.source()), dtype, "reference",
                     kPromptMax + kNewTokens, pre_reduce_nodes);
}

/// Of the logits that each of `tokens` is drawn from when they follow the prompt.
std::vector<uint64_t> digests_by_definition(ModelRunner& runner, const GenerationRequest& request,
                                            const std::vector<int32_t>& tokens) {
  std::vector<int32_t> sequence = request.tokens;
  sequence.insert(sequence.end(), tokens.begin(), tokens.end() - 1);
  const ModelRunner::Trace trace = runner.run(sequence, static_cast<uint32_t>(sequence.size()),
                                              ModelRunner::Emit::kEveryPosition);
  std::vector<uint64_t> digests;
  for (size_t row = request.tokens.size() - 1; row < sequence.size(); ++row) {
    digests.push_back(digest64(std::as_bytes(trace.logits.row(row))));
  }
  return digests;
}

void run(const HarnessOptions& options, std::vector<Stream>& streams) {
  ClusterHarness cluster(options, random_moe());
  for (size_t i = 0; i < streams.size(); ++i) {
    cluster.submit(static_cast<uint32_t>(i) % options.attention_nodes, requests()[i], streams[i]);
  }
  for (size_t i = 0; i < streams.size(); ++i) {
    ASSERT_TRUE(streams[i].wait()) << "request " << i << " hangs";
    ASSERT_TRUE(streams[i].status.ok()) << streams[i].status;
    ASSERT_EQ(streams[i].tokens.size(), kNewTokens);
  }
}

void expect_definition(const HarnessOptions& options, ModelRunner& runner) {
  SCOPED_TRACE(fmt::format(
      "{}, {}, fp8 {}, {} attention x {} expert nodes, m = {}, {} tokens a step, fragments of {}",
      options.fabric, kernels::dtype_name(options.dtype), options.fp8_dispatch,
      options.attention_nodes, options.expert_nodes, options.micro_batches,
      options.tokens_per_step_max, options.slot_rows));
  std::vector<Stream> streams(requests().size());
  run(options, streams);
  if (testing::Test::HasFatalFailure()) return;
  for (size_t i = 0; i < streams.size(); ++i) {
    EXPECT_EQ(streams[i].digests, digests_by_definition(runner, requests()[i], streams[i].tokens))
        << "request " << i;
  }
}

class PreReduce : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Fabrics, PreReduce, testing::Values("local", "shm", "tcp"),
                         [](const auto& fabric) { return std::string(fabric.param); });

TEST_P(PreReduce, OnePlacementGivesTheBitsOfTheDefinitionHoweverItIsServed) {
  for (const kernels::DType dtype : {kernels::DType::kBf16, kernels::DType::kF32}) {
    for (const uint32_t experts : {1u, 2u, 3u, 5u}) {
      ModelRunner runner = make_runner(dtype, experts);
      HarnessOptions options{.fabric = GetParam(), .expert_nodes = experts, .dtype = dtype};
      options.combine = Combine::kPreReduce;
      expect_definition(options, runner);
      options.attention_nodes = 3;
      options.micro_batches = 3;
      options.threads = 2;
      expect_definition(options, runner);
      options.tokens_per_step_max = 7;  // Prompts go in chunks.
      expect_definition(options, runner);
      options.tokens_per_step_max = 64;
      options.slot_rows = 5;  // Steps go in fragments.
      expect_definition(options, runner);
    }
  }
}

TEST_P(PreReduce, GoesWithFp8Dispatches) {
  for (const kernels::DType dtype : {kernels::DType::kBf16, kernels::DType::kF32}) {
    ModelRunner runner = make_runner(dtype, 2);
    runner.use_fp8_dispatch();
    HarnessOptions options{.fabric = GetParam(), .attention_nodes = 2, .expert_nodes = 2};
    options.dtype = dtype;
    options.fp8_dispatch = true;
    options.combine = Combine::kPreReduce;
    options.slot_rows = 13;
    expect_definition(options, runner);
  }
}

TEST(PreReduceFaults, DelayedAndRepeatedMessagesChangeNoBit) {
  ModelRunner runner = make_runner(kernels::DType::kBf16, 3);
  HarnessOptions options{.attention_nodes = 2, .expert_nodes = 3, .micro_batches = 3};
  options.combine = Combine::kPreReduce;
  uint64_t seed = 0;
  options.decorate = [&seed](std::unique_ptr<transport::Fabric> inner) {
    return transport::make_fault_fabric(std::move(inner), {.seed = ++seed,
                                                           .delay_min = 0,
                                                           .delay_max = kMillisecond / 2,
                                                           .duplicate_probability = 0.2});
  };
  expect_definition(options, runner);
}

/// The FFN of a cluster whose last pair of every run is not a number.
void bad_ffn(const kernels::GroupedFfnArgs& args, ThreadPool& pool) {
  kernels::select_cpu_kernels("auto").value()->grouped_ffn(args, pool);
  *static_cast<uint16_t*>(args.output.back()) = 0x7fc0;
}

TEST(PreReduceFaults, AValueThatIsNotFiniteEndsTheSequenceWithInternal) {
  kernels::CpuKernels bad = *kernels::select_cpu_kernels("auto").value();
  bad.grouped_ffn = bad_ffn;
  HarnessOptions options{.expert_nodes = 2, .kernels = &bad};
  options.combine = Combine::kPreReduce;
  ClusterHarness cluster(options, random_moe());
  Stream stream;
  cluster.submit(0, requests()[0], stream);
  ASSERT_TRUE(stream.wait());
  EXPECT_EQ(stream.status.code(), StatusCode::kInternal);
  EXPECT_NE(message_of(stream.status).find("not finite"), std::string::npos) << stream.status;
}

// What is kept of the exact mode, and what is not.
TEST(PreReduceBits, AreThoseOfTheExactModeForOneExpertNodeInF32AndNotOtherwise) {
  for (const kernels::DType dtype : {kernels::DType::kBf16, kernels::DType::kF32}) {
    ModelRunner exact = make_runner(dtype, 0);
    for (const uint32_t experts : {1u, 3u}) {
      SCOPED_TRACE(fmt::format("{}, {} expert nodes", kernels::dtype_name(dtype), experts));
      HarnessOptions options{.expert_nodes = experts, .dtype = dtype};
      options.combine = Combine::kPreReduce;
      std::vector<Stream> streams(requests().size());
      run(options, streams);
      if (HasFatalFailure()) return;
      size_t same = 0;
      for (size_t i = 0; i < streams.size(); ++i) {
        const bool equal =
            streams[i].digests == digests_by_definition(exact, requests()[i], streams[i].tokens);
        same += equal ? 1 : 0;
      }
      // The experts add little to the residual of this model, so some rows round to the same.
      if (dtype == kernels::DType::kF32 && experts == 1) {
        EXPECT_EQ(same, streams.size());
      } else {
        EXPECT_LT(same, streams.size());
      }
    }
  }
}

// ------------------------------------------------------------------------------- replicas, losses

// Greedy, so that a change within the bound changes no token unless two logits nearly tie.
constexpr uint32_t kLongTokens = 60;
constexpr uint32_t kStreams = 6;
// Of a log probability; the logits span about 10 here. The order of summation is all that differs
// between f32 runs: as kF32Tolerance of parity_test.
constexpr float kLogprobTolerance = 1e-3f;

void run_greedy(const HarnessOptions& options, std::vector<Stream>& streams,
                const std::function<void(ClusterHarness&)>& at_half) {
  ClusterHarness cluster(options, random_moe());
  std::atomic<bool> half{false};
  std::vector<GenerationRequest> all = random_requests(21, kStreams, 199, 20, kLongTokens);
  for (uint32_t i = 0; i < kStreams; ++i) {
    all[i].sampling.temperature = 0.0f;
    streams[i].on_token = [&half](size_t count) {
      if (count >= kLongTokens / 2) half = true;
    };
    cluster.submit(0, all[i], streams[i]);
  }
  const Nanos deadline = monotonic_now() + 10 * kSecond;
  while (!half && monotonic_now() < deadline) std::this_thread::yield();
  at_half(cluster);
  for (Stream& stream : streams) {
    ASSERT_TRUE(stream.wait());
    ASSERT_TRUE(stream.status.ok()) << stream.status;
    ASSERT_EQ(stream.tokens.size(), kLongTokens);
  }
}

TEST_P(PreReduce, LosingReplicasChangesNothingBeyondTheBound) {
  HarnessOptions options{.fabric = GetParam(), .expert_nodes = 3, .micro_batches = 3};
  options.dtype = kernels::DType::kF32;
  options.replicated = true;
  std::vector<Stream> exact(kStreams);
  run_greedy(options, exact, [](ClusterHarness&) {});
  if (HasFatalFailure()) return;
  options.combine = Combine::kPreReduce;
  for (const bool loss : {false, true}) {
    SCOPED_TRACE(loss ? "two of three nodes are lost" : "nothing is lost");
    std::vector<Stream> sums(kStreams);
    run_greedy(options, sums, [loss](ClusterHarness& cluster) {
      if (!loss) return;
      cluster.kill_expert(0);
      cluster.kill_expert(2);
    });
    if (HasFatalFailure()) return;
    float largest = 0;
    for (uint32_t i = 0; i < kStreams; ++i) {
      EXPECT_EQ(sums[i].tokens, exact[i].tokens) << "stream " << i;
      for (uint32_t t = 0; t < kLongTokens; ++t) {
        largest = std::max(largest, std::abs(sums[i].logprobs[t] - exact[i].logprobs[t]));
      }
    }
    EXPECT_LE(largest, kLogprobTolerance);
  }
}

}  // namespace
}  // namespace volley::engine
