// The strict reader of simulation.yaml.

#include "volley/simulation/simulation_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "volley/config/text_file.h"
#include "volley/config/yaml_reader.h"
#include "volley/perf/device.h"
#include "volley/perf/model_shape.h"
#include "volley/perf/roofline.h"
#include "volley/protocol/wire.h"

namespace volley::simulation {
namespace {

using config::YamlMap;

constexpr size_t kFileBytesMax = size_t{1} << 20;
constexpr uint32_t kNodesMax = 100'000;
constexpr uint32_t kTokensMax = 4'000'000;
constexpr double kSecondsMax = 1e6;
constexpr double kUsMax = 1e9;

/// What the file says, before names are looked up.
struct Draft {
  SimulationOptions options;
  std::string model;
  bool roofline = false;
  perf::LinearTimes linear;
  std::string times_file;
  std::string attention_device, expert_device;
  uint32_t attention_tp = 1, expert_tp = 1;
  bool has_network = false;
  std::string requests_file;
};

/// "expert-12" -> {true, 12}. False: neither pool.
bool parse_node(const std::string& name, bool& expert, uint32_t& node) {
  for (const bool pool : {false, true}) {
    const std::string prefix = pool ? "expert-" : "attention-";
    uint64_t number = 0;
    if (!name.starts_with(prefix)) continue;
    if (!config::parse_decimal(name.substr(prefix.size()), kNodesMax, number)) return false;
    expert = pool;
    node = static_cast<uint32_t>(number);
    return true;
  }
  return false;
}

struct Verb {
  const char* name;
  ChangeOptions::Kind kind;
};
constexpr Verb kVerbs[] = {{"kill", ChangeOptions::Kind::kKill},
                           {"add", ChangeOptions::Kind::kAdd},
                           {"remove", ChangeOptions::Kind::kRemove}};

void read_microseconds(YamlMap& map, const std::string& key, double& seconds) {
  double us = seconds * 1e6;
  map.number(key, us, 0, kUsMax);
  seconds = us * 1e-6;
}

void read_cluster(YamlMap& map, ClusterOptions& cluster) {
  map.required("attention_nodes");
  map.required("expert_nodes");
  map.integer("attention_nodes", cluster.attention_nodes, 1, kNodesMax);
  map.integer("expert_nodes", cluster.expert_nodes, 1, kNodesMax);
  map.integer("attention_gpus", cluster.attention_gpus, 0, 1024);
  map.integer("expert_gpus", cluster.expert_gpus, 0, 1024);
  if (map.has("micro_batches") && map.raw("micro_batches") == "auto") {
    cluster.adaptive_micro_batches = true;
    cluster.micro_batches = 4;
  } else {
    map.integer("micro_batches", cluster.micro_batches, 1, protocol::kMicroBatchesMax);
  }
  map.integer("micro_batches_max", cluster.micro_batches, 1, protocol::kMicroBatchesMax);
  map.integer("tokens_per_step", cluster.tokens_per_step, 1, 1 << 20);
  map.integer("slot_rows", cluster.slot_rows, 0, 1 << 20);
  map.integer("sequences", cluster.sequences, 1, 1 << 20);
  map.integer("waiting", cluster.waiting, 1, 1 << 22);
  map.integer("kv_blocks", cluster.kv_blocks, 0, UINT32_MAX);
  map.integer("block_tokens", cluster.block_tokens, 1, 1 << 16);
  std::string combine;
  map.choice("combine", combine, {"exact", "pre_reduce"});
  cluster.pre_reduce = combine == "pre_reduce";
  read_microseconds(map, "gather_window_us", cluster.gather_window_s);
  map.integer("gather_rows", cluster.gather_rows, 1, 1 << 30);
  map.list("held", [&](YamlMap& node, uint32_t) {
    node.required("experts");
    node.integers("experts", cluster.held.emplace_back(), kNodesMax);
  });
}

void read_model(YamlMap& map, Draft& draft) {
  ClusterOptions& cluster = draft.options.cluster;
  map.text("name", draft.model);
  if (!draft.model.empty()) return;
  for (const char* key : {"layers", "experts", "top_k", "row_bytes"}) map.required(key);
  map.integer("layers", cluster.layers, 1, 10'000);
  map.integer("experts", cluster.experts, 1, kNodesMax);
  map.integer("top_k", cluster.top_k, 1, kNodesMax);
  map.integer("row_bytes", cluster.row_bytes, 1, 1 << 20);
  cluster.answer_row_bytes = cluster.row_bytes;
  map.integer("answer_row_bytes", cluster.answer_row_bytes, 1, 1 << 20);
}

void read_times(YamlMap& map, Draft& draft) {
  int given = 0;
  for (const char* key : {"file", "linear", "roofline"}) given += map.has(key) ? 1 : 0;
  if (given != 1) return map.fail("", "one of file, linear and roofline must be given");
  map.text("file", draft.times_file);
  map.map("linear", [&](YamlMap& linear) {
    perf::LinearTimes& times = draft.linear;
    read_microseconds(linear, "layer_us", times.layer);
    read_microseconds(linear, "layer_row_us", times.layer_row);
    read_microseconds(linear, "layer_context_us", times.layer_context);
    read_microseconds(linear, "step_us", times.step);
    read_microseconds(linear, "step_row_us", times.step_row);
    read_microseconds(linear, "step_emit_us", times.step_emit);
    read_microseconds(linear, "expert_layer_us", times.expert_layer);
    read_microseconds(linear, "expert_us", times.expert);
    read_microseconds(linear, "expert_row_us", times.expert_row);
  });
  map.map("roofline", [&](YamlMap& roofline) {
    draft.roofline = true;
    roofline.required("attention");
    roofline.required("expert");
    roofline.text("attention", draft.attention_device);
    roofline.text("expert", draft.expert_device);
    roofline.integer("attention_tp", draft.attention_tp, 1, 1024);
    roofline.integer("expert_tp", draft.expert_tp, 1, 1024);
  });
}

void read_network(YamlMap& map, Draft& draft) {
  SimulationOptions& options = draft.options;
  draft.has_network = true;
  read_microseconds(map, "latency_us", options.network.latency_s);
  map.required("attention_bytes_per_s");
  map.number("attention_bytes_per_s", options.network.bytes_per_s, 1, 1e15);
  map.number("expert_bytes_per_s", options.expert_bytes_per_s, 1, 1e15);
}

void read_length(YamlMap& map, LengthOptions& length) {
  uint32_t a = 1, b = 1;
  if (map.has("fixed")) {
    map.integer("fixed", a, 1, kTokensMax);
  } else if (map.has("from")) {
    length.kind = LengthOptions::Kind::kUniform;
    map.required("to");
    map.integer("from", a, 1, kTokensMax);
    map.integer("to", b, 1, kTokensMax);
    length.b = b;
  } else if (map.has("median")) {
    length.kind = LengthOptions::Kind::kLognormal;
    map.required("sigma");
    map.required("max");
    map.integer("median", a, 1, kTokensMax);
    map.number("sigma", length.b, 0, 5);
    map.integer("max", length.max, 1, kTokensMax);
  } else {
    return map.fail("", "must have fixed, from and to, or median, sigma and max");
  }
  length.a = a;
}

void read_workload(YamlMap& map, Draft& draft) {
  WorkloadOptions& load = draft.options.workload;
  std::string arrivals;
  map.required("arrivals");
  map.choice("arrivals", arrivals, {"closed", "poisson", "constant", "file"});
  if (arrivals == "closed") {
    map.required("streams");
    map.integer("streams", load.streams, 1, 16'000'000);
    map.number("spread_s", load.spread_s, 0, kSecondsMax);
    map.number("retry_s", load.retry_s, 1e-3, kSecondsMax);
    map.boolean("aged", load.aged);
  } else if (arrivals == "file") {
    load.arrivals = WorkloadOptions::Arrivals::kListed;
    map.required("file");
    map.text("file", draft.requests_file);
  } else {
    load.arrivals = arrivals == "poisson" ? WorkloadOptions::Arrivals::kPoisson
                                          : WorkloadOptions::Arrivals::kConstant;
    map.required("requests_per_s");
    map.number("requests_per_s", load.rate, 1e-6, 1e9);
  }
  if (arrivals != "file") {
    map.required("input");
    map.required("output");
    map.map("input", [&](YamlMap& input) { read_length(input, load.input); });
    map.map("output", [&](YamlMap& output) { read_length(output, load.output); });
  }
  map.boolean("prefilled", load.prefilled);
}

void read_change(YamlMap& map, ChangeOptions& change) {
  map.required("at_s");
  map.number("at_s", change.at_s, 0, kSecondsMax);
  map.integer("replica", change.replica, 0, kNodesMax);
  uint32_t verbs = 0;
  for (const Verb& verb : kVerbs) {
    if (!map.has(verb.name)) continue;
    ++verbs;
    change.kind = verb.kind;
    if (const std::string name = map.raw(verb.name);
        !parse_node(name, change.expert, change.node)) {
      map.fail(verb.name,
               fmt::format("'{}' is no node; nodes are attention-0, expert-0 and so on", name));
    }
  }
  if (verbs != 1) map.fail("", "must have one of kill, add and remove");
}

void read_run(YamlMap& map, SimulationOptions& options) {
  map.required("duration_s");
  map.number("duration_s", options.duration_s, 1e-6, kSecondsMax);
  map.number("warm_up_s", options.warm_up_s, 0, kSecondsMax);
  map.boolean("drain", options.drain);
  map.integer("replicas", options.replicas, 1, 1'000'000);
  map.integer("simulated", options.simulated, 0, 1'000'000);
  map.integer64("seed", options.seed);
}

void read_document(YamlMap& map, Draft& draft) {
  SimulationOptions& options = draft.options;
  for (const char* key : {"cluster", "model", "times", "workload", "run"}) map.required(key);
  map.map("cluster", [&](YamlMap& child) { read_cluster(child, options.cluster); });
  map.map("model", [&](YamlMap& child) { read_model(child, draft); });
  map.map("times", [&](YamlMap& child) { read_times(child, draft); });
  map.map("network", [&](YamlMap& child) { read_network(child, draft); });
  map.map("overheads", [&](YamlMap& child) {
    read_microseconds(child, "attention_turn_us", options.overheads.attention_turn);
    read_microseconds(child, "attention_message_us", options.overheads.attention_message);
    read_microseconds(child, "expert_turn_us", options.overheads.expert_turn);
    read_microseconds(child, "expert_message_us", options.overheads.expert_message);
  });
  map.map("workload", [&](YamlMap& child) { read_workload(child, draft); });
  map.map("router", [&](YamlMap& child) {
    child.number("zipf", options.router.zipf, 0, 10);
    child.boolean("per_layer", options.router.per_layer);
    child.number("drift_s", options.router.drift_s, 0, kSecondsMax);
    child.number("drift_share", options.router.drift_share, 0, 1);
  });
  map.map("control", [&](YamlMap& child) {
    child.number("detection_s", options.detection_s, 0, 1e4);
    child.number("map_s", options.control_s, 0, 1e4);
    child.number("drain_s", options.drain_s, 0, 1e4);
  });
  map.list("changes",
           [&](YamlMap& child, uint32_t) { read_change(child, options.changes.emplace_back()); });
  map.map("run", [&](YamlMap& child) { read_run(child, options); });
  map.map("trace", [&](YamlMap& child) {
    child.number("from_s", options.trace.from_s, 0, kSecondsMax);
    child.number("length_s", options.trace.length_s, 0, kSecondsMax);
    child.integer("nodes", options.trace.nodes_max, 1, 1000);
    child.integer("spans", options.trace.spans_max, 1, 10'000'000);
  });
}

Status look_up_model(Draft& draft, const std::string& directory, perf::ModelShape& model) {
  VOLLEY_ASSIGN_OR_RETURN(model, perf::find_model_shape(directory + "/models", draft.model));
  ClusterOptions& cluster = draft.options.cluster;
  cluster.layers = model.layer_count();
  cluster.experts = model.experts();
  cluster.top_k = model.top_k();
  cluster.shared_experts =
      draft.roofline && std::ranges::any_of(model.layers, [](const perf::LayerGroup& group) {
        return group.ffn.shared_width > 0;
      });
  cluster.row_bytes = static_cast<uint32_t>(model.hidden * bytes_of(model.activation_format));
  cluster.answer_row_bytes = cluster.row_bytes;
  return ok_status();
}

Result<perf::NodeShape> look_up_node(const std::string& directory, const std::string& name,
                                     uint32_t tp) {
  VOLLEY_ASSIGN_OR_RETURN(perf::Device device, perf::find_device(directory + "/hardware", name));
  if (tp > device.per_node) {
    return invalid_argument("{}: tensor parallelism of {} spans nodes, which have {} devices",
                            device.name, tp, device.per_node);
  }
  return perf::NodeShape{.device = std::move(device), .tp = tp};
}

/// Of a node, whose devices each send their share of every row.
double network_rate(const perf::NodeShape& node, uint32_t row_bytes) {
  // The efficiency is that of a phase; a phase has some hundred rows.
  constexpr double kRowsOfPhase = 256;
  return node.device.network_bytes_per_s * node.tp *
         node.device.efficiency.network.at(kRowsOfPhase * row_bytes);
}

Status use_roofline(Draft& draft, const std::string& directory, const perf::ModelShape& model,
                    Simulation& result) {
  VOLLEY_ASSIGN_OR_RETURN(const perf::NodeShape attention,
                          look_up_node(directory, draft.attention_device, draft.attention_tp));
  VOLLEY_ASSIGN_OR_RETURN(const perf::NodeShape expert,
                          look_up_node(directory, draft.expert_device, draft.expert_tp));
  SimulationOptions& options = draft.options;
  options.cluster.attention_gpus = draft.attention_tp;
  options.cluster.expert_gpus = draft.expert_tp;
  if (!draft.has_network) {
    options.network = {.latency_s = std::max(attention.device.efficiency.message_s,
                                             expert.device.efficiency.message_s),
                       .bytes_per_s = network_rate(attention, options.cluster.row_bytes)};
    options.expert_bytes_per_s = network_rate(expert, options.cluster.row_bytes);
  }
  result.times = std::make_unique<perf::RooflineTimes>(model, attention, expert);
  return ok_status();
}

/// A path in the file `origin`: absolute, or relative to its folder.
std::string beside(const std::string& origin, const std::string& path) {
  const size_t slash = origin.rfind('/');
  if (path.starts_with('/') || slash == std::string::npos) return path;
  return origin.substr(0, slash + 1) + path;
}

}  // namespace

Result<ChangeOptions> parse_change(const std::string& text) {
  std::istringstream words(text);
  std::string at, verb, node, more;
  words >> at >> verb >> node;
  ChangeOptions change;
  const auto bad = [&](const char* why) {
    return invalid_argument("change '{}': {}; write it as \"10 kill expert-1\"", text, why);
  };
  if (node.empty() || (words >> more)) return bad("it must have three words");
  if (!config::parse_number(at, change.at_s) || !(change.at_s >= 0 && change.at_s <= kSecondsMax)) {
    return bad("the time must be in [0, 1e6] seconds");
  }
  const auto* found = std::find_if(std::begin(kVerbs), std::end(kVerbs),
                                   [&](const Verb& each) { return verb == each.name; });
  if (found == std::end(kVerbs)) return bad("the verb must be kill, add or remove");
  change.kind = found->kind;
  if (!parse_node(node, change.expert, change.node)) return bad("there is no such node");
  return change;
}

Result<Simulation> parse_simulation(const std::string& text, const std::string& origin,
                                    const std::string& directory) {
  VOLLEY_ASSIGN_OR_RETURN(const YAML::Node document, config::parse_yaml(text, origin));
  Draft draft;
  Status status;
  YamlMap map(document, "", origin, status);
  if (status.ok()) read_document(map, draft);
  map.finish();
  VOLLEY_RETURN_IF_ERROR(status);

  Simulation result;
  perf::ModelShape model;
  if (!draft.model.empty()) VOLLEY_RETURN_IF_ERROR(look_up_model(draft, directory, model));
  if (draft.roofline) {
    if (draft.model.empty()) {
      return invalid_argument("{}: times.roofline needs a model by its name", origin);
    }
    VOLLEY_RETURN_IF_ERROR(annotate(use_roofline(draft, directory, model, result), origin));
  } else {
    if (!draft.times_file.empty()) {
      VOLLEY_ASSIGN_OR_RETURN(const config::StageTimesConfig measured,
                              config::load_stage_times(beside(origin, draft.times_file)));
      draft.linear = perf::linear_times(measured);
    }
    result.times = std::make_unique<perf::LinearStageTimes>(draft.linear);
  }
  if (!draft.requests_file.empty()) {
    VOLLEY_ASSIGN_OR_RETURN(draft.options.workload.requests,
                            load_requests(beside(origin, draft.requests_file)));
  }
  VOLLEY_RETURN_IF_ERROR(annotate(draft.options.validate(), origin));
  result.options = std::move(draft.options);
  return result;
}

Result<Simulation> load_simulation(const std::string& file, const std::string& directory) {
  VOLLEY_ASSIGN_OR_RETURN(const std::string text, config::read_text_file(file, kFileBytesMax));
  return parse_simulation(text, file, directory);
}

}  // namespace volley::simulation
