#include "format.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace volley::cli {

std::string format_table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += i + 1 == row.size() ? row[i] : fmt::format("{:<{}}  ", row[i], widths[i]);
    }
    out += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return out;
}

std::string role_name(v1::Role role) {
  switch (role) {
    case v1::ROLE_FRONTEND:
      return "frontend";
    case v1::ROLE_ATTENTION:
      return "attention";
    case v1::ROLE_EXPERT:
      return "expert";
    default:
      return "unknown";
  }
}

std::string format_cluster(const v1::GetStatusResponse& status) {
  std::vector<std::vector<std::string>> rows = {{"NODE", "ROLE", "STATE", "ADDRESS", "LINKS",
                                                 "RUNNING", "WAITING", "KV FREE", "STEPS", "TOKENS",
                                                 "MEMORY", "HOLDS"}};
  for (const v1::ClusterMember& member : status.view().members()) {
    const v1::NodeRegistration& node = member.registration();
    const v1::NodeHealth& health = member.health();
    const bool attention = node.role() == v1::ROLE_ATTENTION;
    const bool expert = node.role() == v1::ROLE_EXPERT;
    rows.push_back(
        {node.name(), role_name(node.role()), health.ready() ? "ready" : health.reason(),
         expert ? node.fabric() : node.grpc_address(),
         attention || expert ? std::to_string(health.links()) : "-",
         attention ? std::to_string(health.running()) : "-",
         attention ? std::to_string(health.waiting()) : "-",
         attention ? fmt::format("{}/{}", health.kv_blocks_free(), health.kv_blocks_total()) : "-",
         std::to_string(health.steps()),
         attention ? std::to_string(health.tokens_generated()) : "-",
         fmt::format("{} MiB", health.resident_bytes() >> 20),
         expert ? fmt::format("experts {}", fmt::join(node.experts(), ",")) : "-"});
  }
  std::string reasons;
  for (const v1::ClusterMember& member : status.view().members()) {
    const auto profile = status.profiles().find(member.registration().name());
    if (profile == status.profiles().end() || profile->second.micro_batches_reason().empty())
      continue;
    reasons += fmt::format("{}: {}\n", profile->first, profile->second.micro_batches_reason());
  }
  return format_table(rows) + reasons +
         (status.view().serving() ? "serving\n" : "not serving: " + status.view().reason() + "\n");
}

}  // namespace volley::cli
