#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <optional>
#include <thread>

#include "attention_service.h"
#include "colocation.h"
#include "node_setup.h"
#include "volley/base/clock.h"
#include "volley/control/cluster_view.h"
#include "volley/control/credentials.h"
#include "volley/daemon/role.h"
#include "volley/engine/attention_engine.h"
#include "volley/transport/pulse_thread.h"

namespace volley::daemon {
namespace {

class AttentionRole final : public Role {
 public:
  AttentionRole(std::string name, std::shared_ptr<Colocation> colocation)
      : name_(std::move(name)), colocation_(std::move(colocation)) {}
  ~AttentionRole() override {
    if (colocation_) colocation_->stop();
    if (!engine_thread_.joinable()) return;
    begin_stop(0);
    join();
  }

  Status start(const config::ClusterConfig& config, OnFailure on_failure);

  const std::string& name() const override { return name_; }
  void begin_stop(Nanos deadline) override {
    engine_->stop(deadline);
    client_->report_now();  // The frontend sends nothing more.
  }
  void join() override {
    colocation_ ? colocation_->join() : engine_thread_.join();
    // The engine has ended every sequence; this lets the last chunks and statuses out. Only then
    // does the node leave: what still runs on a node that has left is lost.
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
    client_->stop();
    spdlog::info("{} has stopped", name_);
  }

 private:
  Status listen(const std::string& address, std::string& bound);
  void on_view(const v1::ClusterView& view);
  v1::NodeHealth health() const;
  v1::NodeProfile profile() const;

  const std::string name_;
  const std::shared_ptr<Colocation> colocation_;
  uint32_t layers_ = 0, experts_ = 0;
  protocol::MapVersion last_version_;  // Of the view in force; used by the client's thread.
  std::unique_ptr<engine::AttentionEngine> engine_;
  std::unique_ptr<transport::PulseThread> pulse_;
  std::unique_ptr<AttentionService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::jthread engine_thread_;
  std::unique_ptr<control::ControllerClient> client_;
};

Status AttentionRole::listen(const std::string& address, std::string& bound) {
  VOLLEY_ASSIGN_OR_RETURN(const auto credentials, control::make_server_credentials({}, address));
  service_ = std::make_unique<AttentionService>(*engine_);
  grpc::ServerBuilder builder;
  control::apply_server_defaults(builder);
  int port = 0;
  builder.AddListeningPort(address, credentials, &port);
  builder.RegisterService(service_.get());
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port == 0)
    return unavailable("{}: cannot listen on {}", name_, address);
  bound = address.substr(0, address.rfind(':') + 1) + std::to_string(port);
  return ok_status();
}

Status AttentionRole::start(const config::ClusterConfig& config, OnFailure on_failure) {
  const auto& nodes = config.attention.nodes;
  const auto node = std::ranges::find(nodes, name_, &config::AttentionNodeConfig::name);
  if (node == nodes.end())
    return not_found("{}: attention.nodes: there is no '{}'", config.file, name_);
  VOLLEY_ASSIGN_OR_RETURN(const NodeSetup setup, set_up_node(config));
  warn_of_promises(config, name_);
  const model::ModelSpec& spec = setup.checkpoint.spec;
  layers_ = spec.layer_count();
  experts_ = spec.layers.front().moe.experts;

  VOLLEY_ASSIGN_OR_RETURN(std::optional<MemoryPlacement> placement,
                          place_node(config, name_, node->cores));
  const transport::NodeIdentity self{.name = name_, .incarnation = Incarnation{random_u64()}};
  VOLLEY_ASSIGN_OR_RETURN(auto fabric,
                          make_node_fabric(config, setup, self, {}, "", node->rdma_ports));
  const Nanos load_start = monotonic_now();
  const Nanos link_timeout = Nanos{config.transport.link_timeout_ms} * kMillisecond;
  const engine::AttentionEngineOptions options{
      .name = name_,
      .incarnation = self.incarnation,
      .dtype = setup.dtype,
      .fp8_dispatch = setup.fp8_dispatch,
      .threads = node->threads,
      .cores = node->cores,
      .pool = colocation_ ? colocation_->pool() : nullptr,
      .micro_batches = config.transport.micro_batches,
      .adaptive_micro_batches = config.transport.adaptive_micro_batches,
      // `local` runs all roles in one process, on the same cores.
      .shares_cores_with_experts = config.transport.fabric == "local",
      .tokens_per_step_max = config.attention.tokens_per_step,
      .sequences_max = config.attention.sequences_max,
      .waiting_max = config.attention.waiting_max,
      .sequence_tokens_max = setup.sequence_tokens_max,
      .kv_blocks = config.attention.kv_blocks,
      .geometry = setup.geometry,
      .link_timeout = link_timeout,
      // The frontend should know at once, not at the next report.
      .on_ready_changed = [this] { client_->report_now(); }};
  if (setup.modelled) {
    VOLLEY_ASSIGN_OR_RETURN(engine_, engine::AttentionEngine::create_modelled(
                                         options, spec, *setup.modelled, std::move(fabric)));
  } else {
    VOLLEY_ASSIGN_OR_RETURN(const auto source, setup.checkpoint.source());
    VOLLEY_ASSIGN_OR_RETURN(auto weights,
                            model::AttentionWeights::load(spec, *source, setup.dtype));
    VOLLEY_ASSIGN_OR_RETURN(
        engine_, engine::AttentionEngine::create(options, spec, std::move(weights), *setup.kernels,
                                                 std::move(fabric)));
  }
  placement.reset();
  v1::NodeRegistration registration = make_registration(config, setup, v1::ROLE_ATTENTION, self);
  std::string address;
  VOLLEY_RETURN_IF_ERROR(listen(node->listen, address));
  registration.set_grpc_address(address);
  spdlog::info("{}: weights loaded in {} ms; {} kernels; sequences at {}", name_,
               (monotonic_now() - load_start) / kMillisecond,
               setup.modelled ? "no" : setup.kernels->name, address);

  log_memory(name_);

  pulse_ = std::make_unique<transport::PulseThread>([this] { engine_->pulse(); }, link_timeout / 4);
  VOLLEY_ASSIGN_OR_RETURN(client_, join_cluster(
                                       config, std::move(registration), [this] { return health(); },
                                       [this](const v1::ClusterView& view) { on_view(view); },
                                       std::move(on_failure), [this] { return profile(); }));
  // Last: from here on nothing fails, so the destructor finds a client wherever it finds a thread.
  if (colocation_) {
    colocation_->add(*engine_);
  } else {
    engine_thread_ = std::jthread([engine = engine_.get()] { engine->run(); });
  }
  return ok_status();
}

void AttentionRole::on_view(const v1::ClusterView& view) {
  const protocol::MapVersion version = control::version_of(view);
  if (version == last_version_) return;  // Only health has changed.
  auto map = control::expert_map_of(view, layers_, experts_);
  if (!map.ok()) {
    spdlog::error("{}: view {}.{} has no sound expert map: {}", name_, view.term(), view.number(),
                  message_of(map.status()));
    return;
  }
  last_version_ = version;
  engine::ClusterUpdate update;
  for (const v1::ClusterMember& member : view.members()) {
    const v1::NodeRegistration& node = member.registration();
    if (node.role() != v1::ROLE_EXPERT) continue;
    engine::ExpertPeer peer{.name = node.name(),
                            .incarnation = Incarnation{node.incarnation()},
                            .fabric_address = node.fabric_address()};
    if (node.link_key().size() != peer.link_key.size()) {
      spdlog::error("{}: the view has a link key of {} bytes for {}", name_, node.link_key().size(),
                    node.name());
      continue;
    }
    std::memcpy(peer.link_key.data(), node.link_key().data(), peer.link_key.size());
    update.experts.push_back(std::move(peer));
  }
  update.map = std::make_shared<const protocol::ExpertMap>(std::move(map).value());
  engine_->update_cluster(std::move(update));
}

v1::NodeHealth AttentionRole::health() const {
  const engine::AttentionStatus status = engine_->status();
  v1::NodeHealth health;
  health.set_ready(status.ready);
  health.set_reason(status.reason);
  health.set_steps(status.steps);
  health.set_waiting(status.waiting);
  health.set_running(status.running);
  health.set_kv_blocks_free(status.kv_blocks_free);
  health.set_kv_blocks_total(status.kv_blocks_total);
  health.set_tokens_generated(status.tokens_generated);
  health.set_links(status.links);
  health.set_micro_batches(status.active_micro_batches);
  health.set_resident_bytes(resident_bytes());
  return health;
}

v1::NodeProfile AttentionRole::profile() const {
  const engine::AttentionStatus status = engine_->status();
  v1::NodeProfile profile = profile_message(status.profile, status.steps, status.traffic);
  profile.set_micro_batches_reason(scheduler::describe(status.micro_batches));
  for (const engine::MeasuredTimes& times : status.measured) {
    if (times.rows == 0) continue;
    v1::NodeProfile::Measured& measured = *profile.add_measured();
    measured.set_rows(times.rows);
    measured.set_attention_ns(static_cast<uint64_t>(times.attention));
    measured.set_expert_ns(static_cast<uint64_t>(times.expert));
    measured.set_transfer_ns(static_cast<uint64_t>(times.transfer));
  }
  return profile;
}

}  // namespace

Result<std::unique_ptr<Role>> start_attention(const config::ClusterConfig& config,
                                              const std::string& node, OnFailure on_failure,
                                              std::shared_ptr<Colocation> colocation) {
  auto role = std::make_unique<AttentionRole>(node, std::move(colocation));
  VOLLEY_RETURN_IF_ERROR(role->start(config, std::move(on_failure)));
  return role;
}

}  // namespace volley::daemon
