#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace volley::sim {

/// What the checkers found: an invariant's id, a colon, and the facts.
class Violations {
 public:
  template <class... Args>
  void add(const char* id, fmt::format_string<Args...> format, Args&&... args) {
    if (list_.size() < 20)
      list_.push_back(std::string(id) + ": " + fmt::format(format, std::forward<Args>(args)...));
  }
  bool empty() const { return list_.empty(); }
  bool has(const std::string& id) const {
    return std::any_of(list_.begin(), list_.end(),
                       [&](const std::string& each) { return each.rfind(id + ":", 0) == 0; });
  }
  std::string text() const { return fmt::format("{}", fmt::join(list_, "\n")); }

 private:
  std::vector<std::string> list_;
};

}  // namespace volley::sim
