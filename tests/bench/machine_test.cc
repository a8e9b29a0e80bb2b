// Goal: the machine is described, and threads of a pinned pool stay on cores of their own.
// Method: this machine; the affinity of every thread as the kernel tells it.

#include "volley/bench/machine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <mutex>
#include <set>
#include <thread>

namespace volley::bench {
namespace {

using ::testing::ElementsAre;

std::vector<uint32_t> affinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  EXPECT_EQ(::sched_getaffinity(0, sizeof set, &set), 0);
  std::vector<uint32_t> cpus;
  for (uint32_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

TEST(Machine, ReadsListsOfProcessors) {
  EXPECT_THAT(*parse_cpu_list("0"), ElementsAre(0));
  EXPECT_THAT(*parse_cpu_list("0-2,8,10-11"), ElementsAre(0, 1, 2, 8, 10, 11));
  for (const char* wrong :
       {"", ",", "1,", "2-1", "1-", "-1", "a", "1 2", "99999", "0-4294967295"}) {
    EXPECT_EQ(parse_cpu_list(wrong).status().code(), StatusCode::kInvalidArgument) << wrong;
  }
}

TEST(Machine, NamesCoresThatThisProcessMayUse) {
  const auto machine = inspect_machine();
  ASSERT_TRUE(machine.ok()) << machine.status();
  EXPECT_FALSE(machine->cpu_name.empty());
  EXPECT_FALSE(machine->cores.empty());
  EXPECT_GE(machine->l2_bytes, uint64_t{64} << 10);
  EXPECT_GT(machine->l3_bytes, machine->l2_bytes);
  const std::vector<uint32_t> allowed = affinity();
  for (const uint32_t core : machine->cores) EXPECT_THAT(allowed, ::testing::Contains(core));
}

TEST(Machine, EveryThreadOfAPinnedPoolHasItsCore) {
  const auto machine = inspect_machine();
  ASSERT_TRUE(machine.ok()) << machine.status();
  const std::vector<uint32_t> before = affinity();
  {
    auto pinned = PinnedPool::create(machine->cores);
    ASSERT_TRUE(pinned.ok()) << pinned.status();
    const auto count = static_cast<uint32_t>(machine->cores.size());
    std::mutex mutex;
    std::multiset<uint32_t> seen;
    std::atomic<uint32_t> begun{0};
    (*pinned)->pool().parallel_for(count, [&](uint32_t) {
      const std::vector<uint32_t> own = affinity();
      {
        const std::lock_guard lock(mutex);
        seen.insert(own.begin(), own.end());
      }
      begun.fetch_add(1);
      while (begun.load() != count) std::this_thread::yield();
    });
    EXPECT_EQ(std::vector(seen.begin(), seen.end()), machine->cores);
  }
  EXPECT_EQ(affinity(), before);
}

TEST(Machine, ACoreThatDoesNotExistIsAnError) {
  const std::vector<uint32_t> cores = {CPU_SETSIZE - 1};
  const std::vector<uint32_t> before = affinity();
  EXPECT_EQ(PinnedPool::create(cores).status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(affinity(), before);
}

}  // namespace
}  // namespace volley::bench
