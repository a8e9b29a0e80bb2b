#include "volley/base/cores.h"

#include <sched.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>

#include "volley/base/fd.h"

namespace volley {
namespace {

// Larger than cpu_set_t, whose 1,024 cores the kernel refuses on a larger machine.
using CoreMask = std::array<cpu_set_t, kCoresMax / CPU_SETSIZE>;

bool parse_id(const char*& at, const char* end, uint32_t& id) {
  const auto [next, error] = std::from_chars(at, end, id);
  if (error != std::errc() || id >= kCoresMax) return false;
  at = next;
  return true;
}

}  // namespace

Result<std::vector<uint32_t>> parse_core_list(const std::string& text) {
  std::vector<uint32_t> cores;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (true) {
    uint32_t first = 0, last = 0;
    bool good = parse_id(at, end, first);
    last = first;
    if (good && at != end && *at == '-') good = parse_id(++at, end, last) && first <= last;
    if (!good || (at != end && *at != ',')) {
      return invalid_argument("'{}' is not a list of cores below {}, like 0-3,8", text, kCoresMax);
    }
    for (uint32_t core = first; core <= last; ++core) cores.push_back(core);
    // A list of distinct cores is shorter; what names them again and again must not take memory.
    if (cores.size() > kCoresMax) {
      return invalid_argument("'{}' lists more than {} cores", text, kCoresMax);
    }
    if (at == end) return cores;
    ++at;
  }
}

std::string core_list_text(std::span<const uint32_t> cores) {
  std::string text;
  for (size_t i = 0; i < cores.size();) {
    size_t next = i + 1;
    while (next < cores.size() && cores[next] == cores[next - 1] + 1) ++next;
    if (!text.empty()) text += ',';
    text += std::to_string(cores[i]);
    if (next > i + 1) text += '-' + std::to_string(cores[next - 1]);
    i = next;
  }
  return text;
}

Result<std::vector<uint32_t>> allowed_cores() {
  CoreMask mask{};
  if (::sched_getaffinity(0, sizeof mask, mask.data()) != 0) {
    return resource_exhausted("sched_getaffinity: {}", errno_text(errno));
  }
  std::vector<uint32_t> cores;
  for (uint32_t core = 0; core < kCoresMax; ++core) {
    if (CPU_ISSET_S(core, sizeof mask, mask.data())) cores.push_back(core);
  }
  return cores;
}

Status check_cores(std::span<const uint32_t> cores) {
  VOLLEY_ASSIGN_OR_RETURN(const std::vector<uint32_t> allowed, allowed_cores());
  for (const uint32_t core : cores) {
    if (!std::ranges::binary_search(allowed, core)) {
      return invalid_argument("core {} is not among the cores {} that this process may run on",
                              core, core_list_text(allowed));
    }
  }
  return ok_status();
}

Status pin_this_thread(uint32_t core) {
  CoreMask mask{};
  if (core < kCoresMax) CPU_SET_S(core, sizeof mask, mask.data());
  if (::sched_setaffinity(0, sizeof mask, mask.data()) != 0) {
    return invalid_argument("pinning a thread to core {}: {}", core, errno_text(errno));
  }
  return ok_status();
}

}  // namespace volley
