#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "node_setup.h"
#include "volley/base/clock.h"
#include "volley/control/cluster_view.h"
#include "volley/control/controller_client.h"
#include "volley/control/controller_service.h"
#include "volley/control/credentials.h"
#include "volley/control/term_store.h"
#include "volley/daemon/role.h"
#include "volley/frontend/frontend_server.h"
#include "volley/frontend/inference_service.h"

namespace volley::daemon {
namespace {

// Controller streams and the last calls get this long once the requests have ended.
constexpr Nanos kCloseTimeout = kSecond;

uint32_t microseconds_within_second() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<uint32_t>(std::chrono::duration_cast<std::chrono::microseconds>(now).count() %
                               1'000'000);
}

/// The public API and, on a port of its own, the controller.
class FrontendRole final : public Role {
 public:
  explicit FrontendRole(std::string name) : name_(std::move(name)) {}
  ~FrontendRole() override {
    begin_stop(0);
    join();
  }

  Status start(const config::ClusterConfig& config, OnFailure on_failure);

  const std::string& name() const override { return name_; }
  void begin_stop(Nanos deadline) override {
    // join() may run on another thread by the second call, so that must not touch what join() ends.
    if (std::exchange(stopping_, true)) {
      if (inference_) inference_->cancel_all(name_ + " is shutting down");  // Cuts the drain short.
      return;
    }
    if (server_ == nullptr) return;
    drainer_ = std::thread(
        [this, deadline] { server_->drain(std::max<Nanos>(0, deadline - monotonic_now())); });
  }
  void join() override {
    if (drainer_.joinable()) drainer_.join();
    if (client_) client_->stop();
    if (controller_) controller_->stop(kCloseTimeout);
    if (control_server_) control_server_->Shutdown(std::chrono::system_clock::now());
    if (server_) {
      server_->stop();
      spdlog::info("{} has stopped", name_);
    }
    server_.reset();
    control_server_.reset();
  }

 private:
  Status start_control_server(const std::string& address);

  const std::string name_;
  std::unique_ptr<frontend::InferenceService> inference_;
  std::unique_ptr<control::ControllerService> controller_;
  std::unique_ptr<grpc::Server> control_server_;
  std::unique_ptr<frontend::FrontendServer> server_;
  std::unique_ptr<control::ControllerClient> client_;
  std::thread drainer_;
  bool stopping_ = false;  // Of the thread that calls begin_stop().
};

Status FrontendRole::start_control_server(const std::string& address) {
  VOLLEY_ASSIGN_OR_RETURN(const auto credentials, control::make_server_credentials({}, address));
  grpc::ServerBuilder builder;
  control::apply_server_defaults(builder);
  int port = 0;
  builder.AddListeningPort(address, credentials, &port);
  for (grpc::Service* service : controller_->services()) builder.RegisterService(service);
  control_server_ = builder.BuildAndStart();
  if (control_server_ == nullptr || port == 0) {
    return unavailable("controller.listen: cannot listen on {}", address);
  }
  return ok_status();
}

Status FrontendRole::start(const config::ClusterConfig& config, OnFailure on_failure) {
  VOLLEY_ASSIGN_OR_RETURN(const NodeSetup setup, set_up_node(config));
  const model::ModelSpec& spec = setup.checkpoint.spec;
  const model::MoeSpec& moe = spec.layers.front().moe;
  VOLLEY_ASSIGN_OR_RETURN(auto tokenizer, model::Tokenizer::load(config.model.path));
  if (tokenizer->vocab_size() > spec.vocab) {
    return failed_precondition("{}: the tokenizer has {} tokens, the model {}", config.model.path,
                               tokenizer->vocab_size(), spec.vocab);
  }
  inference_ = std::make_unique<frontend::InferenceService>(
      frontend::FrontendOptions{.in_flight_max = config.frontend.in_flight_max,
                                .queue_max = config.frontend.queue_max},
      frontend::ModelInfo{.name = config.cluster,
                          .architecture = spec.architecture,
                          .vocab_size = spec.vocab,
                          .sequence_tokens_max = setup.sequence_tokens_max,
                          .layers = spec.layer_count(),
                          .experts = moe.experts,
                          .experts_per_token = moe.top_k,
                          .eos_token_ids = spec.eos_tokens,
                          .checkpoint_digest = setup.checkpoint.digest},
      frontend::GenerationDefaults{.temperature = spec.sampling.temperature,
                                   .top_k = spec.sampling.top_k,
                                   .top_p = spec.sampling.top_p,
                                   .min_p = spec.sampling.min_p},
      std::shared_ptr<const model::Tokenizer>(std::move(tokenizer)));

  VOLLEY_ASSIGN_OR_RETURN(const uint32_t term,
                          control::take_next_term(config.controller.state_dir));
  controller_ = std::make_unique<control::ControllerService>(
      control::ControllerOptions{
          .layers = spec.layer_count(),
          .experts = moe.experts,
          .report_interval = Nanos{config.controller.report_interval_ms} * kMillisecond,
          .first_number = microseconds_within_second(),
          .checkpoint_digest = setup.checkpoint.digest,
          .numerics_fingerprint = {},
          .fabric = config.transport.fabric,
          .geometry = control::to_proto(setup.geometry)},
      term, [this](const v1::ClusterView& view) { inference_->update_view(view); });
  VOLLEY_RETURN_IF_ERROR(start_control_server(config.controller.listen));
  VOLLEY_ASSIGN_OR_RETURN(
      server_, frontend::FrontendServer::start(
                   {.listen = {config.frontend.listen}, .reflection = config.frontend.reflection},
                   *inference_, {}));
  spdlog::info("{}: API at {}, controller at {}", name_, server_->addresses().front(),
               config.controller.listen);

  // The frontend is a member of its own cluster, so that operators see it beside the others.
  const transport::NodeIdentity self{.name = name_, .incarnation = Incarnation{random_u64()}};
  v1::NodeRegistration registration = make_registration(config, setup, v1::ROLE_FRONTEND, self);
  registration.set_grpc_address(server_->addresses().front());
  VOLLEY_ASSIGN_OR_RETURN(
      client_, control::ControllerClient::start(
                   {.address = config.controller.listen, .registration = std::move(registration)},
                   {.health =
                        [this] {
                          const frontend::FrontendStats stats = inference_->stats();
                          v1::NodeHealth health;
                          health.set_reason(inference_->not_serving_reason());
                          health.set_ready(health.reason().empty());
                          health.set_running(stats.in_flight);
                          health.set_waiting(stats.waiting);
                          health.set_resident_bytes(resident_bytes());
                          return health;
                        },
                    .on_view = [](const v1::ClusterView&) {},
                    .on_refused = std::move(on_failure),
                    .on_connection = {}}));
  return ok_status();
}

}  // namespace

Result<std::unique_ptr<Role>> start_frontend(const config::ClusterConfig& config,
                                             OnFailure on_failure) {
  auto role = std::make_unique<FrontendRole>(config.frontend.name);
  VOLLEY_RETURN_IF_ERROR(role->start(config, std::move(on_failure)));
  return role;
}

}  // namespace volley::daemon
