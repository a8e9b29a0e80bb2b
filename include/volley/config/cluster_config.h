#pragma once

// The cluster file: one YAML document that every daemon of a cluster reads. docs/configuration.md
// lists the keys; the reader is strict: an unknown key, a duplicate or a bad value is an error that
// names file, line, key and what is allowed.

#include <cstdint>
#include <string>
#include <vector>

#include "volley/base/ids.h"
#include "volley/base/status.h"
#include "volley/config/stage_times.h"

namespace volley::config {

struct ModelConfig {
  std::string path;  ///< Hugging Face folder; a relative path is relative to the cluster file.
  bool dummy_weights = false;  ///< weights: checkpoint | dummy
  uint64_t dummy_seed = 0;
  std::string dtype = "bf16";  ///< bf16 | f32
};

/// One RDMA port of a node; see rdma::PortSelector.
struct RdmaPortConfig {
  std::string device;
  std::string ip;
  std::string near;
  int32_t gid_index = -1;
};
/// Of fabric: rdma.
struct RdmaConfig {
  std::vector<RdmaPortConfig> ports{RdmaPortConfig{}};  ///< Of nodes that do not list their own.
  uint32_t queue_pairs = 1;                             ///< Of a link, on each port.
  uint32_t service_level = 0;
  uint32_t traffic_class = 0;
  uint32_t control_service_level = 0;
  uint32_t control_traffic_class = 0;
  uint32_t ack_timeout_us = 67'108;
  uint32_t retries = 6;
};

struct TransportConfig {
  std::string fabric = "shm";  ///< local | shm | tcp | rdma
  RdmaConfig rdma;
  uint32_t micro_batches = 2;  ///< m, or with `auto` the most that may be used
  bool adaptive_micro_batches = false;
  uint32_t slot_rows = 0;  ///< Token rows of a slot; 0: tokens_per_step of the attention pool.
  uint32_t links_max = 8;  ///< Attention nodes that one expert node can serve.
  uint32_t link_timeout_ms = 1000;
  uint32_t gather_window_us = 2000;
  bool fp8_dispatch = false;  ///< dispatch_dtype: model | fp8_e4m3
  bool pre_reduce = false;    ///< combine: exact | pre_reduce
};

struct ControllerConfig {
  std::string listen = "127.0.0.1:7070";
  std::string state_dir;  ///< "" keeps the term nowhere: versions start from the clock.
  uint32_t report_interval_ms = 200;
};

struct FrontendConfig {
  std::string name = "frontend-0";
  std::string listen = "127.0.0.1:7080";
  uint32_t in_flight_max = 256;
  uint32_t queue_max = 1024;
  bool reflection = true;
};

struct AttentionNodeConfig {
  std::string name;
  std::string listen = "127.0.0.1:0";  ///< gRPC; the frontend finds it through the controller.
  uint32_t threads = 1;
  /// Thread i of those that compute runs on cores[i] only; empty: wherever the kernel puts it.
  std::vector<uint32_t> cores;
  std::vector<RdmaPortConfig> rdma_ports;  ///< Empty: transport.rdma.ports.
};
/// What attention nodes share.
struct AttentionPoolConfig {
  uint32_t tokens_per_step = 256;
  uint32_t sequences_max = 256;
  uint32_t waiting_max = 1024;
  uint32_t sequence_tokens = 0;  ///< 0: the model's maximum, at most 8192.
  uint32_t kv_blocks = 0;        ///< 0: see AttentionEngineOptions.
  std::vector<AttentionNodeConfig> nodes;
};

struct ExpertNodeConfig {
  std::string name;
  std::string data_listen = "127.0.0.1:0";  ///< tcp and rdma only
  uint32_t threads = 1;
  std::vector<uint32_t> cores;    ///< As AttentionNodeConfig.
  std::vector<uint32_t> experts;  ///< Empty: its share by position, see protocol::default_experts.
  std::vector<RdmaPortConfig> rdma_ports;  ///< Empty: transport.rdma.ports.
};
struct ExpertPoolConfig {
  std::vector<ExpertNodeConfig> nodes;
};

/// Of compute: modelled.
struct ModelledConfig {
  StageTimesConfig times;
  uint64_t seed = 0;       ///< Of the choice of experts.
  double expert_skew = 0;  ///< Zipf's exponent of that choice; 0: all experts alike.
};

struct ClusterConfig {
  std::string file;  ///< Where it was read from, for messages.
  std::string cluster;
  ModelConfig model;
  TransportConfig transport;
  ControllerConfig controller;
  FrontendConfig frontend;
  AttentionPoolConfig attention;
  ExpertPoolConfig expert;
  bool modelled_compute = false;  ///< compute: real | modelled
  ModelledConfig modelled;
  std::string cpu_isa = "auto";       ///< auto | reference | avx2 | avx512
  uint32_t stop_timeout_ms = 30'000;  ///< How long SIGTERM lets sequences finish.
};

/// Reads and checks a cluster file. Errors: kNotFound, kInvalidArgument ("FILE:LINE: KEY: ...").
Result<ClusterConfig> load_cluster_config(const std::string& file);
/// The same from text; `origin` names it in messages and anchors relative paths.
Result<ClusterConfig> parse_cluster_config(const std::string& text, const std::string& origin);

}  // namespace volley::config
