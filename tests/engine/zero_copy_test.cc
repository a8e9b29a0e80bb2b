// Goal: promise P5 on shared memory. The FFN reads the very bytes that the pack kernel wrote, and
// the combine kernel the very bytes that the FFN wrote, or with `combine: pre_reduce` the sums that
// the reduce kernel wrote; nothing copies a row on the way. Method: spies in the kernel table
// record every row's address; /proc/self/maps turns an address into (file, offset), which is the
// same for both ends' mappings of one region.

#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <mutex>
#include <set>
#include <sstream>
#include <utility>

#include "engine/cluster_harness.h"

namespace volley::engine {
namespace {

const kernels::CpuKernels& real() {
  static const kernels::CpuKernels* const kernels = kernels::select_cpu_kernels("auto").value();
  return *kernels;
}

/// What the kernels were given, from all engine threads.
struct Seen {
  std::mutex mutex;
  std::set<const void*> packed, ffn_in, ffn_out, reduced, combined;
} seen;

void spy_pack(const kernels::PackArgs& args, ThreadPool& pool) {
  {
    const std::lock_guard lock(seen.mutex);
    seen.packed.insert(args.output.begin(), args.output.end());
  }
  real().pack(args, pool);
}

void spy_ffn(const kernels::GroupedFfnArgs& args, ThreadPool& pool) {
  {
    const std::lock_guard lock(seen.mutex);
    seen.ffn_in.insert(args.input.begin(), args.input.end());
    seen.ffn_out.insert(args.output.begin(), args.output.end());
  }
  real().grouped_ffn(args, pool);
}

void spy_reduce(const kernels::ReduceArgs& args, ThreadPool& pool) {
  {
    const std::lock_guard lock(seen.mutex);
    seen.reduced.insert(args.output.begin(), args.output.end());
  }
  real().reduce(args, pool);
}

void spy_combine(const kernels::CombineArgs& args, ThreadPool& pool) {
  {
    const std::lock_guard lock(seen.mutex);
    seen.combined.insert(args.expert_row.begin(), args.expert_row.end());
  }
  real().combine(args, pool);
}

/// (inode, offset) of an address in an anonymous shared file; more than so many elsewhere fail the
/// test.
using Place = std::pair<uint64_t, uint64_t>;
std::set<Place> places_of(const std::set<const void*>& addresses, size_t elsewhere_max = 0) {
  struct Range {
    uintptr_t begin, end;
    uint64_t offset, inode;
  };
  std::vector<Range> ranges;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find("memfd:") == std::string::npos) continue;
    std::istringstream fields(line);
    Range range{};
    char dash = 0;
    std::string permissions, device;
    fields >> std::hex >> range.begin >> dash >> range.end >> permissions >> range.offset >>
        device >> std::dec >> range.inode;
    ranges.push_back(range);
  }
  std::set<Place> places;
  size_t elsewhere = 0;
  for (const void* pointer : addresses) {
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    bool found = false;
    for (const Range& range : ranges) {
      if (address < range.begin || address >= range.end) continue;
      places.emplace(range.inode, range.offset + (address - range.begin));
      found = true;
    }
    if (!found) ++elsewhere;
  }
  EXPECT_LE(elsewhere, elsewhere_max) << "rows that are in no slot";
  return places;
}

void serve(HarnessOptions options) {
  seen.packed.clear();
  seen.ffn_in.clear();
  seen.ffn_out.clear();
  seen.reduced.clear();
  seen.combined.clear();
  kernels::CpuKernels spied = real();
  spied.pack = spy_pack;
  spied.grouped_ffn = spy_ffn;
  spied.reduce = spy_reduce;
  spied.combine = spy_combine;
  options.attention_nodes = 2;
  options.expert_nodes = 3;
  options.fabric = "shm";
  options.kernels = &spied;
  ClusterHarness cluster(options, random_moe());
  const std::vector<GenerationRequest> requests = random_requests(3, 6, 199, 30, 8);
  std::vector<Stream> streams(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    cluster.submit(static_cast<uint32_t>(i) % 2, requests[i], streams[i]);
  }
  for (Stream& stream : streams) {
    ASSERT_TRUE(stream.wait());
    ASSERT_TRUE(stream.status.ok()) << stream.status;
  }
  // The mappings end with the cluster, so the addresses are looked up here.
  const std::lock_guard lock(seen.mutex);
  ASSERT_GT(seen.packed.size(), 100u);
  EXPECT_EQ(places_of(seen.ffn_in), places_of(seen.packed));
  if (options.combine == protocol::Combine::kExact) {
    EXPECT_EQ(places_of(seen.combined), places_of(seen.ffn_out));
    EXPECT_TRUE(seen.reduced.empty());
  } else {
    // Each attention node has a row of zeros for experts that are in another's sum.
    EXPECT_EQ(places_of(seen.combined, options.attention_nodes), places_of(seen.reduced));
  }
}

TEST(ZeroCopy, RowsAreReadWhereTheyWereWritten) {
  serve({});
}

TEST(ZeroCopy, SumsAreReadWhereTheyWereWritten) {
  serve({.combine = protocol::Combine::kPreReduce});
}

}  // namespace
}  // namespace volley::engine
