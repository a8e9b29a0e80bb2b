// Goal: while sequences run, no thread of the data plane allocates: attention and expert engines,
// their pools, the fabric and the pulse, through attention, dispatch, grouped FFN, answer, combine,
// head and sampling, in decode steps and in steps that prefill. Method: malloc and its relatives
// are our own here and count while armed, whoever calls them; only the test's main thread is
// exempt. Armed are stretches in which sequences run and none begins or ends: taking a request in
// and giving its end out may allocate.

#include <execinfo.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <thread>
#include <utility>

#include "engine/cluster_harness.h"
#include "volley/base/clock.h"

// GCC defines macros, clang answers __has_feature.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define VOLLEY_TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define VOLLEY_TEST_SANITIZED 1
#endif
#endif

namespace {

std::atomic<bool> armed{false};
std::atomic<uint64_t> allocations{0};
std::array<void*, 24> first_caller;  // Of the first allocation, for the message.
std::atomic<int> first_depth{0};
constinit thread_local bool exempt = false;

void count_allocation() {
  if (exempt || !armed.load(std::memory_order_relaxed)) return;
  if (allocations.fetch_add(1) != 0) return;
  exempt = true;
  first_depth = ::backtrace(first_caller.data(), static_cast<int>(first_caller.size()));
  exempt = false;
}

}  // namespace

#ifndef VOLLEY_TEST_SANITIZED
// glibc lets a program bring its own malloc, and exports the one that it replaces; free() stays
// glibc's. operator new and the C library come through here too.
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t bytes) noexcept {
  count_allocation();
  return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) noexcept {
  count_allocation();
  return __libc_calloc(count, bytes);
}
void* realloc(void* memory, size_t bytes) noexcept {
  count_allocation();
  return __libc_realloc(memory, bytes);
}
void* memalign(size_t alignment, size_t bytes) noexcept {
  count_allocation();
  return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) noexcept {
  return memalign(alignment, bytes);
}
int posix_memalign(void** memory, size_t alignment, size_t bytes) noexcept {
  *memory = memalign(alignment, bytes);
  return *memory == nullptr ? ENOMEM : 0;
}
}
#endif

namespace volley::engine {
namespace {

constexpr uint32_t kDecoders = 6;
constexpr uint32_t kDecodeTokens = 200;
constexpr uint32_t kMeasuredTokens = 60;
constexpr uint32_t kPrefills = 3;
constexpr uint32_t kPrefillTokens = 150;
// Enough that none of them ends while the others still prefill.
constexpr uint32_t kPrefillNewTokens = 60;

/// Tells of the tokens and the end of one sequence without allocating.
class Sink final : public OutputSink {
 public:
  void on_output(const scheduler::SequenceOutput& output) override {
    if (output.token >= 0 && on_token) on_token();
    if (output.ended()) {
      failed = !output.status.ok();
      ended = true;
    }
  }
  std::atomic<bool> ended{false}, failed{false};
  std::function<void()> on_token;  // Called on the engine thread; set before submitting.
};

void wait_until(const std::function<bool()>& done) {
  const Nanos end = monotonic_now() + 60 * kSecond;
  while (!done()) {
    ASSERT_LT(monotonic_now(), end);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

GenerationRequest request(uint32_t prompt, uint32_t new_tokens, uint32_t seed) {
  GenerationRequest request;
  for (uint32_t i = 0; i < prompt; ++i) {
    request.tokens.push_back(static_cast<int32_t>((seed * 31 + i * 7) % 64));
  }
  request.max_new_tokens = new_tokens;
  request.sampling.temperature = 1.0f;
  request.sampling.seed = seed;
  // All that sampling has a scratch for.
  if (seed % 2 == 0) request.sampling.top_k = 20;
  if (seed % 3 == 0) request.sampling.top_p = 0.9f;
  return request;
}

void expect_no_allocation(HarnessOptions options) {
#ifdef VOLLEY_TEST_SANITIZED
  GTEST_SKIP() << "a sanitizer brings its own malloc";
#endif
  exempt = true;
  void* warm_up[2];
  ::backtrace(warm_up, 2);  // The first call loads a library.
  // Longer than the cluster's life, whose engine thread calls them.
  std::array<Sink, kDecoders> decoders;
  std::array<Sink, kPrefills> prefills;
  options.expert_nodes = 2;
  options.tokens_per_step_max = 16;
  options.slot_rows = 8;  // Steps go as several fragments.
  options.threads = 2;
  ClusterHarness cluster(options, random_moe());
  uint32_t seed = 0;
  const auto submit_decoders = [&] {
    for (Sink& sink : decoders) cluster.submit(0, request(8, kDecodeTokens, ++seed), sink);
  };
  const auto submit_prefills = [&] {
    for (Sink& sink : prefills) {
      cluster.submit(0, request(kPrefillTokens, kPrefillNewTokens, ++seed), sink);
    }
  };
  const auto wait_for_all = [&] {
    const auto finished = [](const Sink& sink) { return sink.ended.load(); };
    wait_until([&] {
      return std::ranges::all_of(decoders, finished) && std::ranges::all_of(prefills, finished);
    });
    for (Sink& sink : decoders) EXPECT_FALSE(sink.failed);
    for (Sink& sink : prefills) EXPECT_FALSE(sink.failed);
  };
  // Warm-up: as many sequences, as long, as the measured part has. The engines take them in, which
  // shows that allocations of their threads are counted.
  armed = true;
  submit_decoders();
  submit_prefills();
  ASSERT_NO_FATAL_FAILURE(wait_for_all());
  armed = false;
  ASSERT_GT(allocations, 0u);

  // The first decoder is the clock: its sink, called on the engine thread between two steps, arms
  // and disarms, so that no scheduling of threads changes what is measured.
  enum class Phase { kStarting, kDecoding, kTakingIn, kPrefilling, kDone };
  Phase phase =
      Phase::kStarting;  // This and the numbers below: the engine thread's, until all ended.
  uint32_t started = 0, prefilled = 0, tokens = 0;
  uint64_t in_decode = 0, in_prefill = 0, prefill_sequences_at_arming = 0;
  const auto arm = [&](Phase next) {
    phase = next;
    tokens = 0;
    allocations = 0;
    armed = true;
  };
  const auto disarm = [&](Phase next) {
    armed = false;
    if (allocations != 0) ::backtrace_symbols_fd(first_caller.data(), first_depth.load(), 2);
    phase = next;
    tokens = 0;
    return allocations.load();
  };
  const auto clock = [&] {
    ++tokens;
    if (phase == Phase::kStarting && started == kDecoders - 1) {
      arm(Phase::kDecoding);
    } else if (phase == Phase::kDecoding && tokens == kMeasuredTokens) {
      in_decode = disarm(Phase::kTakingIn);
      submit_prefills();
    } else if (phase == Phase::kTakingIn && tokens == 3) {
      // Commands are taken between any two steps.
      prefill_sequences_at_arming = kPrefills - prefilled;
      arm(Phase::kPrefilling);
    }
  };
  for (Sink& sink : decoders) {
    sink.ended = false;
    sink.on_token = [&, first = true]() mutable { started += std::exchange(first, false); };
  }
  decoders[0].on_token = clock;
  for (Sink& sink : prefills) {
    sink.ended = false;
    sink.on_token = [&, first = true]() mutable {
      if (std::exchange(first, false) && ++prefilled == kPrefills)
        in_prefill = disarm(Phase::kDone);
    };
  }
  submit_decoders();
  ASSERT_NO_FATAL_FAILURE(wait_for_all());
  ASSERT_EQ(phase, Phase::kDone);
  EXPECT_EQ(prefill_sequences_at_arming, kPrefills);
  EXPECT_EQ(in_decode, 0u);
  EXPECT_EQ(in_prefill, 0u);
}

class StepPathAllocation : public testing::TestWithParam<const char*> {};

TEST_P(StepPathAllocation, NoneInDecodeAndPrefillSteps) {
  expect_no_allocation({.fabric = GetParam()});
}

TEST_P(StepPathAllocation, NoneWithFp8Dispatches) {
  expect_no_allocation({.fabric = GetParam(), .fp8_dispatch = true});
}

TEST_P(StepPathAllocation, NoneWithSumsOnTheExpertNodes) {
  expect_no_allocation({.fabric = GetParam(), .combine = protocol::Combine::kPreReduce});
}

INSTANTIATE_TEST_SUITE_P(Fabrics, StepPathAllocation, testing::Values("local", "shm", "tcp"),
                         [](const auto& fabric) { return std::string(fabric.param); });

}  // namespace
}  // namespace volley::engine
