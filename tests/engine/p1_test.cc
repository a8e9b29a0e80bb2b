// Goal: promise P1. The tokens and the 64-bit digest of every logits row of a request are the same
// on every topology, micro-batch count, fabric, chunk size, batch company, and with preemptions in
// the middle, and so with fp8 dispatches. Method: random weights and temperature 1, so that any
// wrong bit shows; one reference run, alone on the smallest cluster, then every variation against
// it.

#include <gtest/gtest.h>

#include <map>

#include "engine/cluster_harness.h"
#include "volley/base/clock.h"
#include "volley/transport/fault_fabric.h"

namespace volley::engine {
namespace {

constexpr uint32_t kNewTokens = 6;

struct Expected {
  std::vector<int32_t> tokens;
  std::vector<uint64_t> digests;
};

const std::vector<GenerationRequest>& requests() {
  static const auto* all =
      new std::vector<GenerationRequest>(random_requests(11, 4, 199, 40, kNewTokens));
  return *all;
}

/// Each request alone on 1 x 1 nodes with one micro-batch.
std::vector<Expected> run_alone(const model::Checkpoint& checkpoint,
                                const HarnessOptions& options = {.micro_batches = 1}) {
  std::vector<Expected> results;
  ClusterHarness cluster(options, checkpoint);
  for (const GenerationRequest& request : requests()) {
    Stream stream;
    cluster.submit(0, request, stream);
    if (!stream.wait()) abort();
    results.push_back({stream.tokens, stream.digests});
  }
  return results;
}

const std::vector<Expected>& expected() {
  static const auto* all = new std::vector<Expected>(run_alone(random_moe()));
  return *all;
}

void run_and_compare(const HarnessOptions& options, const model::Checkpoint& checkpoint,
                     const std::vector<Expected>& expected) {
  ClusterHarness cluster(options, checkpoint);
  std::vector<Stream> streams(requests().size());
  for (size_t i = 0; i < streams.size(); ++i) {
    cluster.submit(static_cast<uint32_t>(i) % options.attention_nodes, requests()[i], streams[i]);
  }
  for (size_t i = 0; i < streams.size(); ++i) {
    ASSERT_TRUE(streams[i].wait()) << "request " << i << " hangs";
    ASSERT_TRUE(streams[i].status.ok()) << streams[i].status;
    EXPECT_EQ(streams[i].tokens, expected[i].tokens) << "request " << i;
    EXPECT_EQ(streams[i].digests, expected[i].digests) << "request " << i;
    EXPECT_EQ(streams[i].ends, 1u);
  }
}

void run_and_compare(const HarnessOptions& options) {
  run_and_compare(options, random_moe(), expected());
}

void expect_no_two_rows_alike(const std::vector<Expected>& all) {
  std::map<uint64_t, int> seen;
  for (const Expected& one : all) {
    ASSERT_EQ(one.tokens.size(), kNewTokens);
    for (const uint64_t digest : one.digests) ++seen[digest];
  }
  EXPECT_EQ(seen.size(), requests().size() * kNewTokens);
}

TEST(P1, TheReferenceIsNotDegenerate) {
  expect_no_two_rows_alike(expected());
}

class P1Topology : public testing::TestWithParam<std::string> {};

TEST_P(P1Topology, EveryTopologyGivesTheSameBits) {
  for (const uint32_t attention : {1u, 2u, 3u}) {
    for (const uint32_t experts : {1u, 2u, 3u, 5u}) {
      for (const uint32_t micro_batches : {1u, 2u, 3u, 4u}) {
        SCOPED_TRACE(fmt::format("{} attention x {} expert nodes, m = {}", attention, experts,
                                 micro_batches));
        HarnessOptions options{
            .attention_nodes = attention, .expert_nodes = experts, .micro_batches = micro_batches};
        options.fabric = GetParam();
        if (GetParam() == "fault") {
          options.fabric = "local";
          uint64_t seed = attention * 100 + experts * 10 + micro_batches;
          options.decorate = [seed](std::unique_ptr<transport::Fabric> inner) mutable {
            return transport::make_fault_fabric(std::move(inner), {.seed = ++seed,
                                                                   .delay_min = 0,
                                                                   .delay_max = kMillisecond / 2,
                                                                   .duplicate_probability = 0.2});
          };
        }
        run_and_compare(options);
        if (HasFatalFailure()) return;
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Fabrics, P1Topology, testing::Values("local", "shm", "tcp", "fault"));

TEST(P1, AnyChunkSizeAndFragmentSizeGiveTheSameBits) {
  for (const uint32_t tokens_per_step : {1u, 3u, 7u, 16u, 33u}) {
    SCOPED_TRACE(fmt::format("{} tokens a step", tokens_per_step));
    run_and_compare({.expert_nodes = 2, .tokens_per_step_max = tokens_per_step});
  }
  for (const uint32_t slot_rows : {1u, 2u, 5u, 13u}) {
    SCOPED_TRACE(fmt::format("fragments of {} rows", slot_rows));
    run_and_compare({.expert_nodes = 3, .slot_rows = slot_rows});
  }
}

TEST(P1, ChoosingTheMicroBatchesWhileServingGivesTheSameBits) {
  for (int round = 0; round < 3; ++round) {
    run_and_compare({.expert_nodes = 2, .micro_batches = 4, .adaptive_micro_batches = true});
  }
}

TEST(P1, ThreadsAndInstructionSetsGiveTheSameBits) {
  for (const char* isa : {"reference", "avx2", "avx512", "avx512_bf16"}) {
    if (!kernels::select_cpu_kernels(isa).ok()) continue;
    for (const uint32_t threads : {1u, 2u, 3u}) {
      SCOPED_TRACE(fmt::format("{} with {} threads", isa, threads));
      run_and_compare({.expert_nodes = 2, .threads = threads, .isa = isa});
    }
  }
}

TEST(P1, ASequenceAmidSixtyFourOthersGivesTheSameBits) {
  ClusterHarness cluster({.expert_nodes = 3, .micro_batches = 3, .sequences_max = 128},
                         random_moe());
  const std::vector<GenerationRequest> others = random_requests(99, 64, 199, 30, 12);
  std::vector<Stream> noise(others.size());
  std::vector<Stream> streams(requests().size());
  for (size_t i = 0; i < others.size(); ++i) {
    cluster.submit(0, others[i], noise[i]);
    if (i % 16 == 7) cluster.submit(0, requests()[i / 16], streams[i / 16]);
  }
  for (size_t i = 0; i < streams.size(); ++i) {
    ASSERT_TRUE(streams[i].wait());
    EXPECT_EQ(streams[i].digests, expected()[i].digests) << "request " << i;
  }
  for (Stream& stream : noise) {
    ASSERT_TRUE(stream.wait());
    EXPECT_TRUE(stream.status.ok()) << stream.status;
  }
}

TEST(P1, PreemptionAndRecomputationGiveTheSameBits) {
  ClusterHarness cluster({.expert_nodes = 2}, random_moe());
  for (size_t i = 0; i < requests().size(); ++i) {
    Stream stream;
    std::atomic<uint64_t> id{0};
    stream.on_token = [&](size_t count) {
      // Each token but the last is followed by a preemption: what decode had produced is computed
      // again by prefill.
      if (count < kNewTokens && id != 0) cluster.attention(0).preempt(SequenceId{id});
    };
    id = cluster.submit(0, requests()[i], stream).value;
    ASSERT_TRUE(stream.wait());
    EXPECT_EQ(stream.tokens, expected()[i].tokens);
    EXPECT_EQ(stream.digests, expected()[i].digests);
  }
  // The status is published every few milliseconds.
  const Nanos deadline = monotonic_now() + 5 * kSecond;
  while (cluster.attention(0).status().preemptions == 0 && monotonic_now() < deadline) {
    std::this_thread::yield();
  }
  EXPECT_GT(cluster.attention(0).status().preemptions, 0u);
}

TEST(P1, ScarceKvBlocksPreemptAndStillGiveTheSameBits) {
  // Room for one full sequence and a little: several sequences at once can only run by preemption.
  ClusterHarness cluster({.expert_nodes = 2, .sequence_tokens_max = 64, .kv_blocks = 5},
                         random_moe());
  std::vector<Stream> streams(requests().size());
  for (size_t i = 0; i < streams.size(); ++i) cluster.submit(0, requests()[i], streams[i]);
  for (size_t i = 0; i < streams.size(); ++i) {
    ASSERT_TRUE(streams[i].wait());
    ASSERT_TRUE(streams[i].status.ok()) << streams[i].status;
    EXPECT_EQ(streams[i].digests, expected()[i].digests) << "request " << i;
  }
}

TEST(P1, RecomputingByPrefillWhatDecodeProducedGivesTheSameBits) {
  ClusterHarness cluster({.expert_nodes = 2}, random_moe());
  for (size_t i = 0; i < requests().size(); ++i) {
    for (uint32_t emitted = 1; emitted < kNewTokens; ++emitted) {
      GenerationRequest replay = requests()[i];
      replay.tokens.insert(replay.tokens.end(), expected()[i].tokens.begin(),
                           expected()[i].tokens.begin() + emitted);
      replay.max_new_tokens = kNewTokens - emitted;
      Stream stream;
      cluster.submit(0, replay, stream);
      ASSERT_TRUE(stream.wait());
      EXPECT_EQ(stream.digests, std::vector<uint64_t>(expected()[i].digests.begin() + emitted,
                                                      expected()[i].digests.end()))
          << "request " << i << " after " << emitted << " tokens";
    }
  }
}

TEST(P1, NormalisedHeadsGiveTheSameBits) {
  const model::Checkpoint qwen3 = random_qwen3_moe();
  const std::vector<Expected> alone = run_alone(qwen3);
  expect_no_two_rows_alike(alone);
  for (const char* fabric : {"local", "shm", "tcp"}) {
    SCOPED_TRACE(fabric);
    run_and_compare({.fabric = fabric, .expert_nodes = 2}, qwen3, alone);
    run_and_compare({.fabric = fabric, .attention_nodes = 2, .expert_nodes = 3, .micro_batches = 3},
                    qwen3, alone);
    run_and_compare({.fabric = fabric, .attention_nodes = 3, .expert_nodes = 1, .micro_batches = 4},
                    qwen3, alone);
  }
  for (const uint32_t tokens_per_step : {1u, 7u}) {
    SCOPED_TRACE(fmt::format("{} tokens a step", tokens_per_step));
    run_and_compare({.expert_nodes = 2, .tokens_per_step_max = tokens_per_step}, qwen3, alone);
  }
  for (const char* isa : {"reference", "avx2", "avx512"}) {
    if (!kernels::select_cpu_kernels(isa).ok()) continue;
    SCOPED_TRACE(isa);
    run_and_compare({.expert_nodes = 2, .threads = 2, .isa = isa}, qwen3, alone);
  }
}

TEST(P1, Fp8DispatchesGiveTheSameBits) {
  for (const kernels::DType dtype : {kernels::DType::kBf16, kernels::DType::kF32}) {
    SCOPED_TRACE(kernels::dtype_name(dtype));
    const std::vector<Expected> model =
        run_alone(random_moe(), {.micro_batches = 1, .dtype = dtype});
    const std::vector<Expected> alone =
        run_alone(random_moe(),
                  {.micro_batches = 1, .dtype = dtype, .fp8_dispatch = true, .isa = "reference"});
    expect_no_two_rows_alike(alone);
    for (size_t i = 0; i < alone.size(); ++i) {
      EXPECT_NE(alone[i].digests, model[i].digests) << "request " << i << " was not rounded";
    }
    const HarnessOptions fp8{.dtype = dtype, .fp8_dispatch = true};
    const auto compare = [&](HarnessOptions options) {
      SCOPED_TRACE(fmt::format(
          "{}, {} attention x {} expert nodes, m = {}, {} tokens a step, "
          "fragments of {}, {}",
          options.fabric, options.attention_nodes, options.expert_nodes, options.micro_batches,
          options.tokens_per_step_max, options.slot_rows, options.isa));
      run_and_compare(options, random_moe(), alone);
    };
    for (const char* fabric : {"local", "shm", "tcp"}) {
      for (const uint32_t attention : {1u, 3u}) {
        for (const uint32_t experts : {1u, 2u, 5u}) {
          HarnessOptions options = fp8;
          options.fabric = fabric;
          options.attention_nodes = attention;
          options.expert_nodes = experts;
          options.micro_batches = 1 + experts % 3;
          compare(options);
        }
      }
    }
    for (const uint32_t rows : {1u, 7u}) {
      HarnessOptions options = fp8;
      options.expert_nodes = 2;
      options.tokens_per_step_max = rows;
      compare(options);
      options.tokens_per_step_max = 64;
      options.slot_rows = rows;
      compare(options);
    }
    for (const char* isa : {"reference", "avx2", "avx512", "avx512_bf16"}) {
      if (!kernels::select_cpu_kernels(isa).ok()) continue;
      HarnessOptions options = fp8;
      options.expert_nodes = 2;
      options.threads = 2;
      options.isa = isa;
      compare(options);
    }
    // What decode produced, computed again by prefill.
    ClusterHarness cluster(fp8, random_moe());
    GenerationRequest replay = requests()[0];
    replay.tokens.insert(replay.tokens.end(), alone[0].tokens.begin(), alone[0].tokens.end() - 2);
    replay.max_new_tokens = 2;
    Stream stream;
    cluster.submit(0, replay, stream);
    ASSERT_TRUE(stream.wait());
    EXPECT_EQ(stream.digests,
              std::vector<uint64_t>(alone[0].digests.end() - 2, alone[0].digests.end()));
  }
}

}  // namespace
}  // namespace volley::engine
