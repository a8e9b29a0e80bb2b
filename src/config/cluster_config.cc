#include "volley/config/cluster_config.h"

#include <cctype>
#include <filesystem>
#include <set>

#include "stage_times_reader.h"
#include "volley/base/cores.h"
#include "volley/config/text_file.h"
#include "volley/config/yaml_reader.h"

namespace volley::config {
namespace {

constexpr uint32_t kMicroBatchesMax = 16;
constexpr uint32_t kMicroBatchesAuto =
    4;  // The paper's N_m: more makes the experts' GEMMs too thin.
constexpr uint32_t kThreadsMax = 1024;
constexpr uint32_t kRowsMax =
    65'535;  // Even in fragments of one row a step fits the header's 16-bit count.
constexpr uint32_t kRdmaRailsMax = 8;
constexpr size_t kNameMax = 63;  // Fits the handshake of every fabric.
constexpr size_t kFileBytesMax = size_t{1} << 20;

/// Node names appear in metrics, logs and handshakes: letters, digits, '-', '_' and '.'.
bool valid_name(const std::string& name) {
  if (name.empty() || name.size() > kNameMax) return false;
  for (const char c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '-' && c != '_' && c != '.')
      return false;
  }
  return true;
}

void read_name(YamlMap& map, const std::string& key, std::string& name,
               std::set<std::string>& taken) {
  map.text(key, name);
  if (!valid_name(name)) {
    map.fail(key, fmt::format("'{}' is not a name: 1 to {} letters, digits, '-', '_' or '.'", name,
                              kNameMax));
  } else if (!taken.insert(name).second) {
    map.fail(key, fmt::format("'{}' is the name of another node", name));
  }
}

/// `port_min` 0 lets the system pick a port; 1 is for addresses that others read from this file.
void read_address(YamlMap& map, const std::string& key, std::string& address,
                  uint64_t port_min = 0) {
  map.text(key, address);
  const size_t colon = address.rfind(':');
  uint64_t port = 0;
  if (colon == std::string::npos || colon == 0 ||
      address.find_first_of(" \t") != std::string::npos ||
      !parse_decimal(address.substr(colon + 1), 65535, port) || port < port_min) {
    map.fail(key,
             fmt::format("'{}' is not HOST:PORT with a port in [{}, 65535]", address, port_min));
  }
}

/// An address that the node announces to its peers: it must name one host.
void read_data_address(YamlMap& map, const std::string& key, std::string& address) {
  read_address(map, key, address);
  if (address.starts_with("0.0.0.0:") || address.starts_with("[::]:")) {
    map.fail(key, fmt::format("'{}' names no host that peers could connect to", address));
  }
}

/// Threads and the cores that they are pinned to: a list like [0, 1], or text like "0-3,8".
void read_threads(YamlMap& map, uint32_t& threads, std::vector<uint32_t>& cores) {
  map.integer("threads", threads, 1, kThreadsMax);
  if (map.is_list("cores")) {
    map.integers("cores", cores, kCoresMax - 1);
  } else if (const std::string text = map.raw("cores"); map.has("cores")) {
    Result<std::vector<uint32_t>> parsed = parse_core_list(text);
    if (!parsed.ok()) return map.fail("cores", message_of(parsed.status()));
    cores = *std::move(parsed);
  }
  if (!map.has("cores")) return;
  if (cores.empty()) return map.fail("cores", "needs at least one core");
  if (cores.size() > kThreadsMax) {
    return map.fail("cores", fmt::format("lists {} cores; a node has {} threads at most",
                                         cores.size(), kThreadsMax));
  }
  std::set<uint32_t> distinct;
  for (const uint32_t core : cores) {
    if (!distinct.insert(core).second) {
      return map.fail("cores", fmt::format("core {} is listed twice", core));
    }
  }
  if (!map.has("threads")) {
    threads = static_cast<uint32_t>(cores.size());
  } else if (threads > cores.size()) {
    map.fail("threads",
             fmt::format("{} threads are more than the {} cores listed", threads, cores.size()));
  }
}

void read_model(YamlMap& map, ModelConfig& model, const std::string& origin) {
  map.required("path");
  map.text("path", model.path);
  std::string weights = "checkpoint";
  map.choice("weights", weights, {"checkpoint", "dummy"});
  model.dummy_weights = weights == "dummy";
  map.integer64("seed", model.dummy_seed);
  if (map.has("seed") && !model.dummy_weights) map.fail("seed", "only dummy weights have a seed");
  map.choice("dtype", model.dtype, {"bf16", "f32"});
  const std::filesystem::path path(model.path);
  if (path.is_relative()) {
    model.path = (std::filesystem::path(origin).parent_path() / path).lexically_normal().string();
  }
}

/// One or more ports, each a map of what selects it.
void read_rdma_ports(YamlMap& map, const std::string& key, std::vector<RdmaPortConfig>& ports) {
  if (!map.has(key)) return;
  ports.clear();
  map.list(key, [&](YamlMap& entry, uint32_t) {
    RdmaPortConfig port;
    entry.text("device", port.device);
    entry.text("ip", port.ip);
    entry.text("near", port.near);
    uint32_t gid_index = 0;
    entry.integer("gid_index", gid_index, 0, 255);
    if (entry.has("gid_index")) port.gid_index = static_cast<int32_t>(gid_index);
    ports.push_back(std::move(port));
  });
  if (ports.empty() || ports.size() > kRdmaRailsMax) {
    map.fail(key, fmt::format("lists {} ports, allowed: 1 to {}", ports.size(), kRdmaRailsMax));
  }
}

void read_rdma(YamlMap& map, RdmaConfig& rdma) {
  read_rdma_ports(map, "ports", rdma.ports);
  map.integer("queue_pairs", rdma.queue_pairs, 1, kRdmaRailsMax);
  map.integer("service_level", rdma.service_level, 0, 15);
  map.integer("traffic_class", rdma.traffic_class, 0, 255);
  map.integer("control_service_level", rdma.control_service_level, 0, 15);
  map.integer("control_traffic_class", rdma.control_traffic_class, 0, 255);
  map.integer("ack_timeout_us", rdma.ack_timeout_us, 9, 8'000'000);
  map.integer("retries", rdma.retries, 0, 6);
}

void read_transport(YamlMap& map, TransportConfig& transport) {
  map.choice("fabric", transport.fabric, {"local", "shm", "tcp", "rdma"});
  map.map("rdma", [&](YamlMap& rdma) { read_rdma(rdma, transport.rdma); });
  if (map.has("rdma") && transport.fabric != "rdma") {
    map.fail("rdma", fmt::format("has no meaning with fabric '{}'", transport.fabric));
  }
  if (map.raw("micro_batches") == "auto") {
    transport.adaptive_micro_batches = true;
    transport.micro_batches = kMicroBatchesAuto;
  } else {
    map.integer("micro_batches", transport.micro_batches, 1, kMicroBatchesMax);
  }
  map.integer("slot_rows", transport.slot_rows, 1, kRowsMax);
  map.integer("links_max", transport.links_max, 1, 4096);
  map.integer("link_timeout_ms", transport.link_timeout_ms, 10, 600'000);
  map.integer("gather_window_us", transport.gather_window_us, 0, 1'000'000);
  std::string dispatch_dtype = "model";
  map.choice("dispatch_dtype", dispatch_dtype, {"model", "fp8_e4m3"});
  transport.fp8_dispatch = dispatch_dtype == "fp8_e4m3";
  std::string combine = "exact";
  map.choice("combine", combine, {"exact", "pre_reduce"});
  transport.pre_reduce = combine == "pre_reduce";
}

/// `times` is a file, relative to this one, or the coefficients themselves.
void read_modelled(YamlMap& map, ModelledConfig& modelled, const std::string& origin) {
  map.required("times");
  if (map.is_map("times")) {
    map.map("times", [&](YamlMap& times) { read_stage_times(times, modelled.times); });
  } else {
    std::string file;
    map.text("times", file);
    if (!file.empty()) {
      const std::filesystem::path path = std::filesystem::path(origin).parent_path() / file;
      Result<StageTimesConfig> times = load_stage_times(path.lexically_normal().string());
      if (!times.ok()) return map.fail("times", message_of(times.status()));
      modelled.times = *times;
    }
  }
  map.integer64("seed", modelled.seed);
  map.number("expert_skew", modelled.expert_skew, 0, 10);
}

/// Ends of a link need the same number of rails, and every node may link with every other.
Status check_rdma(const ClusterConfig& config) {
  const RdmaConfig& rdma = config.transport.rdma;
  std::string first;
  size_t first_rails = 0;
  const auto check = [&](const std::string& name, const std::vector<RdmaPortConfig>& own) {
    if (!own.empty() && config.transport.fabric != "rdma") {
      return invalid_argument("{}: {}: rdma_ports has no meaning with fabric '{}'", config.file,
                              name, config.transport.fabric);
    }
    const size_t rails = (own.empty() ? rdma.ports : own).size() * rdma.queue_pairs;
    if (rails > kRdmaRailsMax) {
      return invalid_argument(
          "{}: {}: its ports with {} queue pairs each make {} rails, allowed: 1 to {}", config.file,
          name, rdma.queue_pairs, rails, kRdmaRailsMax);
    }
    if (first.empty()) {
      first = name;
      first_rails = rails;
    }
    if (rails == first_rails) return ok_status();
    return invalid_argument("{}: {} has {} rails and {} has {}; all nodes need the same number",
                            config.file, first, first_rails, name, rails);
  };
  for (const AttentionNodeConfig& node : config.attention.nodes) {
    VOLLEY_RETURN_IF_ERROR(check(node.name, node.rdma_ports));
  }
  for (const ExpertNodeConfig& node : config.expert.nodes) {
    VOLLEY_RETURN_IF_ERROR(check(node.name, node.rdma_ports));
  }
  return ok_status();
}

}  // namespace

Result<ClusterConfig> parse_cluster_config(const std::string& text, const std::string& origin) {
  ClusterConfig config;
  config.file = origin;
  VOLLEY_ASSIGN_OR_RETURN(const YAML::Node document, parse_yaml(text, origin));
  Status status;
  std::set<std::string> names;
  YamlMap root(document, "", origin, status);
  root.required("cluster");
  root.required("model");
  root.required("attention");
  root.required("expert");
  root.text("cluster", config.cluster);
  root.map("model", [&](YamlMap& map) { read_model(map, config.model, origin); });
  root.map("transport", [&](YamlMap& map) { read_transport(map, config.transport); });
  root.map("controller", [&](YamlMap& map) {
    read_address(map, "listen", config.controller.listen, 1);
    map.text("state_dir", config.controller.state_dir);
    map.integer("report_interval_ms", config.controller.report_interval_ms, 10, 60'000);
  });
  if (!root.has("frontend")) names.insert(config.frontend.name);  // It runs under its default name.
  root.map("frontend", [&](YamlMap& map) {
    read_name(map, "name", config.frontend.name, names);
    read_address(map, "listen", config.frontend.listen);
    map.integer("in_flight_max", config.frontend.in_flight_max, 1, 1'000'000);
    map.integer("queue_max", config.frontend.queue_max, 0, 1'000'000);
    map.boolean("reflection", config.frontend.reflection);
  });
  root.map("attention", [&](YamlMap& map) {
    map.integer("tokens_per_step", config.attention.tokens_per_step, 1, kRowsMax);
    map.integer("sequences_max", config.attention.sequences_max, 1, 65'536);
    map.integer("waiting_max", config.attention.waiting_max, 1, 1'000'000);
    map.integer("sequence_tokens", config.attention.sequence_tokens, 2, 16'777'216);
    map.integer("kv_blocks", config.attention.kv_blocks, 1, 1u << 30);
    map.required("nodes");
    map.list("nodes", [&](YamlMap& entry, uint32_t) {
      AttentionNodeConfig node;
      entry.required("name");
      read_name(entry, "name", node.name, names);
      read_address(entry, "listen", node.listen);
      read_threads(entry, node.threads, node.cores);
      read_rdma_ports(entry, "rdma_ports", node.rdma_ports);
      config.attention.nodes.push_back(std::move(node));
    });
    if (status.ok() && config.attention.nodes.empty()) map.fail("nodes", "needs at least one node");
  });
  root.map("expert", [&](YamlMap& map) {
    map.required("nodes");
    map.list("nodes", [&](YamlMap& entry, uint32_t) {
      ExpertNodeConfig node;
      entry.required("name");
      read_name(entry, "name", node.name, names);
      read_data_address(entry, "data_listen", node.data_listen);
      read_threads(entry, node.threads, node.cores);
      read_rdma_ports(entry, "rdma_ports", node.rdma_ports);
      entry.integers("experts", node.experts, 1023);
      if (entry.has("experts") && node.experts.empty())
        entry.fail("experts", "needs at least one expert");
      config.expert.nodes.push_back(std::move(node));
    });
    if (status.ok() && config.expert.nodes.empty()) map.fail("nodes", "needs at least one node");
  });
  std::string compute = "real";
  root.choice("compute", compute, {"real", "modelled"});
  config.modelled_compute = compute == "modelled";
  if (config.modelled_compute) root.required("modelled");
  root.map("modelled", [&](YamlMap& map) { read_modelled(map, config.modelled, origin); });
  if (root.has("modelled") && !config.modelled_compute) {
    root.fail("modelled", "has no meaning without compute: modelled");
  }
  root.choice("cpu_isa", config.cpu_isa, {"auto", "reference", "avx2", "avx512", "avx512_bf16"});
  root.integer("stop_timeout_ms", config.stop_timeout_ms, 0, 3'600'000);
  root.finish();
  if (!status.ok()) return status;
  if (config.transport.links_max < config.attention.nodes.size()) {
    return invalid_argument("{}: transport.links_max: {} links are too few for {} attention nodes",
                            origin, config.transport.links_max, config.attention.nodes.size());
  }
  VOLLEY_RETURN_IF_ERROR(check_rdma(config));
  if (config.transport.slot_rows == 0)
    config.transport.slot_rows = config.attention.tokens_per_step;
  return config;
}

Result<ClusterConfig> load_cluster_config(const std::string& file) {
  VOLLEY_ASSIGN_OR_RETURN(const std::string text, read_text_file(file, kFileBytesMax));
  return parse_cluster_config(text, file);
}

}  // namespace volley::config
