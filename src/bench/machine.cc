#include "volley/bench/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <ctime>
#include <fstream>
#include <set>
#include <thread>

#include "volley/base/check.h"
#include "volley/base/fd.h"

namespace volley::bench {
namespace {

constexpr uint64_t kL2BytesAssumed = uint64_t{1} << 20;
constexpr uint64_t kL3BytesAssumed = uint64_t{32} << 20;

/// Of the calling thread; 0 or errno.
int set_affinity(std::span<const uint32_t> cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const uint32_t cpu : cpus) CPU_SET(cpu, &set);
  return ::sched_setaffinity(0, sizeof set, &set) == 0 ? 0 : errno;
}

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::string cpu_directory(uint32_t cpu) {
  return fmt::format("/sys/devices/system/cpu/cpu{}/", cpu);
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

/// "32768K" in bytes; 0 for what is not such a size.
uint64_t parse_cache_size(const std::string& text) {
  uint64_t size = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), size);
  if (error != std::errc()) return 0;
  const std::string_view unit(end, text.data() + text.size());
  if (unit == "K") return size << 10;
  if (unit == "M") return size << 20;
  return 0;
}

struct Cache {
  uint64_t bytes = 0;
  std::string shared_by;  ///< The processors that share it, as a list.
};

/// The data or unified cache of `level` that serves `cpu`; 0 bytes when sysfs does not tell.
Cache find_cache(uint32_t cpu, const std::string& level) {
  for (int index = 0; index < 8; ++index) {
    const std::string directory = cpu_directory(cpu) + fmt::format("cache/index{}/", index);
    if (first_line(directory + "level") != level ||
        first_line(directory + "type") == "Instruction") {
      continue;
    }
    return {.bytes = parse_cache_size(first_line(directory + "size")),
            .shared_by = first_line(directory + "shared_cpu_list")};
  }
  return {};
}

/// `cpus` without those that share a core with an earlier one.
std::vector<uint32_t> one_per_core(const std::vector<uint32_t>& cpus) {
  std::set<uint32_t> taken;
  std::vector<uint32_t> cores;
  for (const uint32_t cpu : cpus) {
    if (!taken.insert(cpu).second) continue;
    cores.push_back(cpu);
    const auto siblings =
        parse_cpu_list(first_line(cpu_directory(cpu) + "topology/thread_siblings_list"));
    if (siblings.ok()) taken.insert(siblings->begin(), siblings->end());
  }
  return cores;
}

}  // namespace

Result<std::vector<uint32_t>> allowed_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof set, &set) != 0) {
    return unavailable("sched_getaffinity: {}", errno_text(errno));
  }
  std::vector<uint32_t> cpus;
  for (uint32_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

Status pin_this_thread(uint32_t processor) {
  const int error = set_affinity({&processor, 1});
  if (error == 0) return ok_status();
  return unavailable("cannot stay on processor {}: {}", processor, errno_text(error));
}

Result<std::vector<uint32_t>> parse_cpu_list(const std::string& text) {
  std::vector<uint32_t> cpus;
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto number = [&](uint32_t& value) {
    const auto [next, error] = std::from_chars(at, end, value);
    at = next;
    return error == std::errc() && value < CPU_SETSIZE;
  };
  while (true) {
    uint32_t first = 0;
    if (!number(first)) break;
    uint32_t last = first;
    if (at != end && *at == '-') {
      ++at;
      if (!number(last) || last < first) break;
    }
    for (uint32_t cpu = first; cpu <= last; ++cpu) cpus.push_back(cpu);
    if (at == end) return cpus;
    if (*at++ != ',') break;
  }
  return invalid_argument("'{}' is not a list of processors such as 0-3,8", text);
}

Result<Machine> inspect_machine() {
  VOLLEY_ASSIGN_OR_RETURN(const std::vector<uint32_t> cpus, allowed_processors());
  Machine machine{.cpu_name = cpu_name(), .cores = one_per_core(cpus)};
  machine.l2_bytes = find_cache(machine.cores.front(), "2").bytes;
  std::set<std::string> seen;
  for (const uint32_t core : machine.cores) {
    const Cache cache = find_cache(core, "3");
    if (cache.bytes > 0 && seen.insert(cache.shared_by).second) machine.l3_bytes += cache.bytes;
  }
  if (machine.l3_bytes == 0) {
    const long told = ::sysconf(_SC_LEVEL3_CACHE_SIZE);
    machine.l3_bytes = told > 0 ? static_cast<uint64_t>(told) : kL3BytesAssumed;
  }
  if (machine.l2_bytes == 0) {
    const long told = ::sysconf(_SC_LEVEL2_CACHE_SIZE);
    machine.l2_bytes = told > 0 ? static_cast<uint64_t>(told) : kL2BytesAssumed;
  }
  return machine;
}

std::string utc_date() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char text[32];
  return {text, std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts)};
}

Result<std::unique_ptr<PinnedPool>> PinnedPool::create(std::span<const uint32_t> cores) {
  VOLLEY_ASSIGN_OR_RETURN(std::vector<uint32_t> old_affinity, allowed_processors());
  const auto count = static_cast<uint32_t>(cores.size());
  std::unique_ptr<PinnedPool> pinned(new PinnedPool(count));
  pinned->old_affinity_ = std::move(old_affinity);
  // No tile ends before all have begun, so every thread of the pool takes exactly one.
  std::atomic<uint32_t> begun{0};
  std::atomic<int> failure{0};
  pinned->pool_.parallel_for(count, [&](uint32_t tile) {
    if (const int error = set_affinity(cores.subspan(tile, 1)); error != 0) failure = error;
    begun.fetch_add(1);
    while (begun.load() != count) std::this_thread::yield();
  });
  if (failure != 0) return unavailable("cannot pin a thread: {}", errno_text(failure));
  return pinned;
}

PinnedPool::~PinnedPool() {
  set_affinity(old_affinity_);
}

}  // namespace volley::bench
