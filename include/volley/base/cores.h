#pragma once

// Processor cores: lists of them as text, which ones this process may use, and pinning. A core is
// what the kernel numbers as a CPU.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "volley/base/status.h"

namespace volley {

/// Ids of cores are below this; the kernel's own limit on x86-64.
inline constexpr uint32_t kCoresMax = 8192;

/// Reads the kernel's notation, "0-3,8": the ids in the order given.
/// Errors: kInvalidArgument (syntax, an id of kCoresMax or more, a range that runs backwards).
Result<std::vector<uint32_t>> parse_core_list(const std::string& text);
/// The other way round: ascending runs of ids become ranges.
std::string core_list_text(std::span<const uint32_t> cores);

/// Cores that the calling thread may run on, ascending. Errors: kResourceExhausted.
Result<std::vector<uint32_t>> allowed_cores();
/// Whether the calling thread may be pinned to each of `cores`.
/// Errors: kInvalidArgument, naming the core and the cores that there are.
Status check_cores(std::span<const uint32_t> cores);
/// The calling thread runs on `core` only, from now on. Errors: kInvalidArgument.
Status pin_this_thread(uint32_t core);

}  // namespace volley
