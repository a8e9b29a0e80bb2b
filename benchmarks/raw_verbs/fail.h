#pragma once

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace raw_verbs {

/// Ends the program: a measurement that went wrong has no number to report.
template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  fmt::print(stderr, "{}: {}\n", program_invocation_short_name,
             fmt::format(format, std::forward<Args>(args)...));
  std::exit(1);
}

}  // namespace raw_verbs
