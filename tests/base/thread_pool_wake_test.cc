// Goal: the workers of a pool sleep while there is nothing to do, and come back for the next round.
// Method: idle stretches longer than any spin, then a round of two tiles that wait for each other
// (the worker must come), and an empty round (nobody has to wait for it). The distributions are
// printed; asserted are that every tile ran and how much of a core the idle pool used.

#include <gtest/gtest.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#include "volley/base/clock.h"
#include "volley/base/cores.h"
#include "volley/base/thread_pool.h"

namespace volley {
namespace {

constexpr int kRounds = 60;
constexpr auto kIdle = std::chrono::milliseconds(10);

// GCC defines macros, clang answers __has_feature.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
constexpr bool kSanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
constexpr bool kSanitized = false;
#endif
// An idle node may use this part of a core; instrumented code is several times slower.
constexpr Nanos kIdlePart = kSanitized ? 10 : 100;

Nanos cpu_time_of_this_process() {
  timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return Nanos{time.tv_sec} * kSecond + time.tv_nsec;
}

void print(const char* what, std::vector<Nanos> latency) {
  std::ranges::sort(latency);
  const auto at = [&](double share) {
    return static_cast<double>(
               latency[static_cast<size_t>(share * static_cast<double>(latency.size() - 1))]) /
           kMicrosecond;
  };
  std::printf("%-44s median %.1f us, p90 %.1f us, p99 %.1f us\n", what, at(0.5), at(0.9), at(0.99));
}

TEST(ThreadPoolWake, SleepsWhenIdleAndComesBack) {
  const auto cores = allowed_cores();
  ASSERT_TRUE(cores.ok());
  // Pinned where there are two cores: else the kernel may wake the worker on the caller's core.
  const bool pinned = cores->size() >= 2;
  std::jthread([&] {
    ThreadPool pool(2, pinned ? std::span(*cores) : std::span<const uint32_t>());
    ASSERT_TRUE(pool.pin_caller().ok());
    std::vector<Nanos> worker, empty;
    for (int round = 0; round < kRounds; ++round) {
      std::this_thread::sleep_for(kIdle);
      const auto caller = std::this_thread::get_id();
      std::atomic<int> arrived{0};
      std::atomic<Nanos> worker_came{0};
      Nanos start = monotonic_now();
      pool.parallel_for(2, [&](uint32_t) {
        if (std::this_thread::get_id() != caller) worker_came = monotonic_now();
        ++arrived;
        while (arrived.load() < 2) std::this_thread::yield();
      });
      ASSERT_EQ(arrived.load(), 2);
      worker.push_back(worker_came.load() - start);

      std::this_thread::sleep_for(kIdle);
      std::atomic<uint32_t> ran{0};
      start = monotonic_now();
      pool.parallel_for(2, [&](uint32_t tile) { ran.fetch_add(1u << tile); });
      empty.push_back(monotonic_now() - start);
      ASSERT_EQ(ran.load(), 3u);
    }
    print("until a sleeping worker runs its tile:", worker);
    print("empty round while the worker sleeps:", empty);

    const Nanos used_before = cpu_time_of_this_process(), begin = monotonic_now();
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    const Nanos used = cpu_time_of_this_process() - used_before;
    const Nanos elapsed = monotonic_now() - begin;
    std::printf("idle pool: %.3f %% of a core\n",
                100.0 * static_cast<double>(used) / static_cast<double>(elapsed));
    EXPECT_LT(used, elapsed / kIdlePart);
  });
}

}  // namespace
}  // namespace volley
