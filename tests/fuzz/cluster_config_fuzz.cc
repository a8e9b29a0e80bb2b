// Goal: no cluster file crashes or hangs the reader; what it accepts is within the documented ranges.

#include <algorithm>
#include <cstdlib>
#include <string>

#include "volley/config/cluster_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto config =
      volley::config::parse_cluster_config(std::string(reinterpret_cast<const char*>(data), size), "fuzz.yaml");
  if (!config.ok()) return 0;
  const bool sound = !config->attention.nodes.empty() && !config->expert.nodes.empty() &&
                     config->transport.micro_batches >= 1 && config->transport.micro_batches <= 16 &&
                     config->transport.slot_rows >= 1;
  const auto threads_fit = [](const auto& node) {
    return node.cores.empty() || (node.threads >= 1 && node.threads <= node.cores.size());
  };
  if (!sound || !std::ranges::all_of(config->attention.nodes, threads_fit) ||
      !std::ranges::all_of(config->expert.nodes, threads_fit)) {
    std::abort();
  }
  return 0;
}
