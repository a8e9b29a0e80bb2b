// Goal: memory and threads lie where they were asked to: huge pages, NUMA nodes, cores.
// Method: lists and a folder of the shape of /sys/devices/system/node against known answers; what
// this machine did is read back from /proc and from the kernel.

#include <gtest/gtest.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "volley/base/cores.h"
#include "volley/base/fd.h"
#include "volley/base/numa.h"
#include "volley/base/thread_pool.h"

namespace volley {
namespace {

using Cores = std::vector<uint32_t>;

/// A folder that goes with the test.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "volley-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  void write(const std::string& name, const std::string& content) const {
    const std::filesystem::path file = std::filesystem::path(path_) / name;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << content;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

bool huge_pages_on_demand() {
  std::ifstream setting("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string text;
  std::getline(setting, text);
  return text.find("[always]") != std::string::npos || text.find("[madvise]") != std::string::npos;
}

bool aligned(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % kHugePageBytes == 0;
}

TEST(HugePages, BackALargeAllocation) {
  constexpr size_t kBytes = 9 * kHugePageBytes + 12'345;
  const size_t before = memory_use().huge_bytes;
  const Result<Mapping> mapping = Mapping::allocate(kBytes);
  ASSERT_TRUE(mapping.ok());
  ASSERT_EQ(mapping->bytes().size(), kBytes);
  EXPECT_TRUE(aligned(mapping->bytes().data()));
  for (const std::byte byte : mapping->bytes()) ASSERT_EQ(byte, std::byte{});
  std::memset(mapping->bytes().data(), 1, kBytes);
  if (!huge_pages_on_demand()) GTEST_SKIP() << "transparent huge pages are off here";
  // One huge page of slack: memory may be too fragmented for all of them.
  EXPECT_GE(memory_use().huge_bytes, before + 8 * kHugePageBytes);
}

TEST(HugePages, AlignmentLeavesNothingMappedBehind) {
  const auto address_space = [] {
    std::ifstream statm("/proc/self/statm");
    size_t pages = 0;
    statm >> pages;
    return pages * static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  };
  address_space();  // The stream's own buffers.
  const size_t before = address_space();
  for (int i = 0; i < 20; ++i) {
    const Result<Mapping> mapping = Mapping::allocate(3 * kHugePageBytes + 1);
    ASSERT_TRUE(mapping.ok());
    EXPECT_LT(address_space(), before + 4 * kHugePageBytes);
  }
  EXPECT_LT(address_space(), before + kHugePageBytes);
}

TEST(HugePages, CollapsingSharedMemoryKeepsItsContent) {
  constexpr size_t kBytes = 2 * kHugePageBytes + 4096;
  const UniqueFd fd(::memfd_create("volley-test", MFD_CLOEXEC));
  ASSERT_TRUE(fd);
  ASSERT_EQ(::ftruncate(fd.get(), kBytes), 0);
  const Result<Mapping> one = Mapping::map_shared(fd.get(), kBytes);
  const Result<Mapping> other = Mapping::map_shared(fd.get(), kBytes);
  ASSERT_TRUE(one.ok() && other.ok());
  EXPECT_TRUE(aligned(one->bytes().data()));
  for (size_t i = 0; i < kBytes; i += 512) one->bytes()[i] = static_cast<std::byte>(i / 512);
  other->collapse_to_huge_pages();
  for (size_t i = 0; i < kBytes; i += 512) {
    ASSERT_EQ(one->bytes()[i], static_cast<std::byte>(i / 512));
    ASSERT_EQ(other->bytes()[i], static_cast<std::byte>(i / 512));
  }
}

TEST(CoreList, ReadsWhatItWrites) {
  const std::pair<const char*, Cores> lists[] = {
      {"0", {0}}, {"0-3,8", {0, 1, 2, 3, 8}}, {"8,0-1", {8, 0, 1}}, {"8191", {8191}}};
  for (const auto& [text, cores] : lists) {
    const auto parsed = parse_core_list(text);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, cores);
    EXPECT_EQ(core_list_text(cores), text);
  }
  for (const char* bad : {"", "a", "-1", "1-", "3-1", "0,", ",0", "0 1", "8192", "0-8192", "1--2",
                          "99999999999", "0-8191,0"}) {
    EXPECT_EQ(parse_core_list(bad).status().code(), StatusCode::kInvalidArgument) << bad;
  }
}

TEST(Cores, PinsAndRefusesWhatIsNotThere) {
  const auto allowed = allowed_cores();
  ASSERT_TRUE(allowed.ok());
  ASSERT_FALSE(allowed->empty());
  EXPECT_TRUE(check_cores(*allowed).ok());
  const Status missing = check_cores(Cores{allowed->front(), kCoresMax - 1});
  EXPECT_EQ(missing.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(message_of(missing), "core 8191 is not among the cores " + core_list_text(*allowed) +
                                     " that this process may run on");
  std::jthread([&] {
    EXPECT_TRUE(pin_this_thread(allowed->back()).ok());
    EXPECT_EQ(static_cast<uint32_t>(::sched_getcpu()), allowed->back());
    EXPECT_EQ(*allowed_cores(), Cores{allowed->back()});
    EXPECT_EQ(check_cores(Cores{kCoresMax}).code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(pin_this_thread(kCoresMax).code(), StatusCode::kInvalidArgument);
  });
}

TEST(ThreadPool, RunsItsThreadsOnTheirCores) {
  const auto allowed = allowed_cores();
  ASSERT_TRUE(allowed.ok());
  if (allowed->size() < 2) GTEST_SKIP() << "one core only";
  const Cores cores{allowed->back(), allowed->front()};
  std::jthread([&] {
    ThreadPool pool(2, cores);
    ASSERT_TRUE(pool.pin_caller().ok());
    EXPECT_EQ(*allowed_cores(), Cores{cores[0]});
    const auto caller = std::this_thread::get_id();
    // A tile that waits for the other one makes sure that both threads run one.
    std::atomic<int> arrived{0};
    pool.parallel_for(2, [&](uint32_t) {
      ++arrived;
      while (arrived.load() < 2) std::this_thread::yield();
      const bool here = std::this_thread::get_id() == caller;
      EXPECT_EQ(*allowed_cores(), Cores{cores[here ? 0 : 1]});
    });
  });
}

TEST(Numa, ReadsTheKernelsFolder) {
  const TempFolder folder;
  folder.write("node0/cpulist", "0-3,8-9\n");
  folder.write("node2/cpulist", "4-7\n");
  folder.write("node3/cpulist", "\n");  // Memory only.
  folder.write("online", "0,2-3\n");
  const auto nodes = read_numa_nodes(folder.path());
  ASSERT_TRUE(nodes.ok()) << nodes.status();
  ASSERT_EQ(nodes->size(), 3u);
  EXPECT_EQ((*nodes)[0].cores, (Cores{0, 1, 2, 3, 8, 9}));
  EXPECT_EQ((*nodes)[1].id, 2u);
  EXPECT_EQ((*nodes)[2].cores, Cores{});
  EXPECT_EQ(numa_nodes_of(Cores{8, 2}, *nodes), Cores{0});
  EXPECT_EQ(numa_nodes_of(Cores{7, 3}, *nodes), (Cores{0, 2}));
  EXPECT_EQ(numa_nodes_of(Cores{}, *nodes), Cores{});

  folder.write("node2/cpulist", "nonsense\n");
  const Status broken = read_numa_nodes(folder.path()).status();
  EXPECT_EQ(broken.code(), StatusCode::kDataLoss);
  EXPECT_NE(message_of(broken).find("node2/cpulist"), std::string::npos);
  EXPECT_TRUE(read_numa_nodes(folder.path() + "/none")->empty());
}

/// Policy and first node of the calling thread.
std::pair<int, unsigned long> policy() {
  int mode = -1;
  unsigned long mask[kNumaNodesMax / 64] = {};
  EXPECT_EQ(::syscall(SYS_get_mempolicy, &mode, mask, kNumaNodesMax, nullptr, 0), 0);
  return {mode, mask[0]};
}

TEST(Numa, PlacementHoldsWhileItLives) {
  const auto nodes = read_numa_nodes();
  ASSERT_TRUE(nodes.ok());
  if (nodes->empty()) GTEST_SKIP() << "the kernel lists no NUMA nodes";
  const uint32_t node = nodes->front().id;
  {
    const MemoryPlacement placement(Cores{node});
    if (!placement.status().ok()) GTEST_SKIP() << placement.status();
    EXPECT_EQ(policy(), std::pair(int{MPOL_PREFERRED}, 1ul << node));
    const Result<Mapping> mapping = Mapping::allocate(kHugePageBytes);
    ASSERT_TRUE(mapping.ok());
    std::memset(mapping->bytes().data(), 1, mapping->bytes().size());
    int at = -1;
    ASSERT_EQ(::syscall(SYS_get_mempolicy, &at, nullptr, 0, mapping->bytes().data(),
                        MPOL_F_NODE | MPOL_F_ADDR),
              0);
    EXPECT_EQ(at, static_cast<int>(node));
  }
  EXPECT_EQ(policy().first, int{MPOL_DEFAULT});
  {
    const MemoryPlacement none(Cores{});
    EXPECT_EQ(policy().first, int{MPOL_DEFAULT});
    const MemoryPlacement near = MemoryPlacement::near_cores(nodes->front().cores);
    EXPECT_EQ(policy().first == MPOL_DEFAULT, nodes->size() == 1 || !near.status().ok());
  }
  EXPECT_EQ(policy().first, int{MPOL_DEFAULT});
}

}  // namespace
}  // namespace volley
