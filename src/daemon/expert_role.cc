#include <spdlog/spdlog.h>

#include <algorithm>
#include <optional>
#include <thread>

#include "colocation.h"
#include "node_setup.h"
#include "volley/base/clock.h"
#include "volley/daemon/role.h"
#include "volley/engine/expert_engine.h"
#include "volley/protocol/expert_map.h"
#include "volley/transport/pulse_thread.h"

namespace volley::daemon {
namespace {

class ExpertRole final : public Role {
 public:
  ExpertRole(std::string name, std::shared_ptr<Colocation> colocation)
      : name_(std::move(name)), colocation_(std::move(colocation)) {}
  ~ExpertRole() override {
    if (colocation_) colocation_->stop();
    if (!engine_thread_.joinable()) return;
    begin_stop(0);
    join();
  }

  Status start(const config::ClusterConfig& config, OnFailure on_failure);

  const std::string& name() const override { return name_; }
  void begin_stop(Nanos deadline) override { engine_->stop(deadline); }
  void join() override {
    colocation_ ? colocation_->join() : engine_thread_.join();
    // Only now: as long as the engine serves, attention nodes must find it in the expert map.
    client_->stop();
    spdlog::info("{} has stopped", name_);
  }

 private:
  v1::NodeHealth health() const;
  v1::NodeProfile profile() const;

  const std::string name_;
  const std::shared_ptr<Colocation> colocation_;
  std::unique_ptr<engine::ExpertEngine> engine_;
  std::unique_ptr<transport::PulseThread> pulse_;
  std::jthread engine_thread_;
  std::unique_ptr<control::ControllerClient> client_;
};

Status ExpertRole::start(const config::ClusterConfig& config, OnFailure on_failure) {
  const auto& nodes = config.expert.nodes;
  const auto node = std::ranges::find(nodes, name_, &config::ExpertNodeConfig::name);
  if (node == nodes.end())
    return not_found("{}: expert.nodes: there is no '{}'", config.file, name_);
  VOLLEY_ASSIGN_OR_RETURN(const NodeSetup setup, set_up_node(config));
  warn_of_promises(config, name_);
  const model::ModelSpec& spec = setup.checkpoint.spec;
  const uint32_t expert_count = spec.layers.front().moe.experts;
  const std::vector<uint32_t> experts =
      !node->experts.empty()
          ? node->experts
          : protocol::default_experts(expert_count, static_cast<uint32_t>(node - nodes.begin()),
                                      static_cast<uint32_t>(nodes.size()));
  if (experts.empty()) {
    return invalid_argument("{}: {} expert nodes share {} experts; none is left for {}",
                            config.file, nodes.size(), expert_count, name_);
  }
  std::vector<model::ExpertWeights::Key> keys;
  for (uint32_t layer = 0; layer < spec.layer_count(); ++layer) {
    for (const uint32_t expert : experts) {
      if (expert >= expert_count) {
        return invalid_argument("{}: expert node {} lists expert {}; the model has {}", config.file,
                                name_, expert, expert_count);
      }
      keys.push_back({.layer = layer, .expert = expert});
    }
  }

  VOLLEY_ASSIGN_OR_RETURN(std::optional<MemoryPlacement> placement,
                          place_node(config, name_, node->cores));
  const transport::NodeIdentity self{.name = name_, .incarnation = Incarnation{random_u64()}};
  transport::LinkKey key;
  for (size_t i = 0; i < key.size(); i += sizeof(uint64_t)) {
    const uint64_t word = random_u64();
    std::copy_n(reinterpret_cast<const uint8_t*>(&word), sizeof word, key.begin() + i);
  }
  const std::string& fabric_name = config.transport.fabric;
  const bool over_network = fabric_name == "tcp" || fabric_name == "rdma";
  VOLLEY_ASSIGN_OR_RETURN(
      auto fabric, make_node_fabric(config, setup, self, key,
                                    over_network ? node->data_listen : "auto", node->rdma_ports));
  v1::NodeRegistration registration = make_registration(config, setup, v1::ROLE_EXPERT, self);
  registration.set_fabric_address(fabric->address());
  registration.set_link_key(key.data(), key.size());
  registration.mutable_experts()->Add(experts.begin(), experts.end());

  const Nanos load_start = monotonic_now();
  const Nanos link_timeout = Nanos{config.transport.link_timeout_ms} * kMillisecond;
  const engine::ExpertEngineOptions options{
      .name = name_,
      .incarnation = self.incarnation,
      .dtype = setup.dtype,
      .fp8_dispatch = setup.fp8_dispatch,
      .threads = node->threads,
      .cores = node->cores,
      .pool = colocation_ ? colocation_->pool() : nullptr,
      .geometry = setup.geometry,
      .links_max = config.transport.links_max,
      .gather_window_max = Nanos{config.transport.gather_window_us} * kMicrosecond,
      .link_timeout = link_timeout};
  if (setup.modelled) {
    VOLLEY_ASSIGN_OR_RETURN(engine_, engine::ExpertEngine::create_modelled(
                                         options, spec, keys, *setup.modelled, std::move(fabric)));
  } else {
    VOLLEY_ASSIGN_OR_RETURN(const auto source, setup.checkpoint.source());
    VOLLEY_ASSIGN_OR_RETURN(auto weights,
                            model::ExpertWeights::load(spec, *source, setup.dtype, keys));
    VOLLEY_ASSIGN_OR_RETURN(
        engine_, engine::ExpertEngine::create(options, spec, std::move(weights), *setup.kernels,
                                              std::move(fabric)));
  }
  placement.reset();
  spdlog::info("{}: {} experts of {} layers loaded in {} ms; {} kernels; data plane {} at {}",
               name_, experts.size(), spec.layer_count(),
               (monotonic_now() - load_start) / kMillisecond,
               setup.modelled ? "no" : setup.kernels->name, config.transport.fabric,
               registration.fabric_address());

  log_memory(name_);

  pulse_ = std::make_unique<transport::PulseThread>([this] { engine_->pulse(); }, link_timeout / 4);
  VOLLEY_ASSIGN_OR_RETURN(
      client_, join_cluster(
                   config, std::move(registration), [this] { return health(); },
                   [](const v1::ClusterView&) {},  // Attention nodes come to an expert node.
                   std::move(on_failure), [this] { return profile(); }));
  if (colocation_) {
    colocation_->add(*engine_);
  } else {
    engine_thread_ = std::jthread([engine = engine_.get()] { engine->run(); });
  }
  return ok_status();
}

v1::NodeHealth ExpertRole::health() const {
  const engine::ExpertStatus status = engine_->status();
  v1::NodeHealth health;
  health.set_ready(true);
  health.set_steps(status.runs);
  health.set_links(status.links);
  health.set_merged_gather_share(status.mergeable_runs == 0
                                     ? 0
                                     : static_cast<double>(status.merged_runs) /
                                           static_cast<double>(status.mergeable_runs));
  health.set_resident_bytes(resident_bytes());
  return health;
}

v1::NodeProfile ExpertRole::profile() const {
  const engine::ExpertStatus status = engine_->status();
  return profile_message(status.profile, status.profile[engine::Span::kFfn].count, status.traffic);
}

}  // namespace

Result<std::unique_ptr<Role>> start_expert(const config::ClusterConfig& config,
                                           const std::string& node, OnFailure on_failure,
                                           std::shared_ptr<Colocation> colocation) {
  auto role = std::make_unique<ExpertRole>(node, std::move(colocation));
  VOLLEY_RETURN_IF_ERROR(role->start(config, std::move(on_failure)));
  return role;
}

}  // namespace volley::daemon
