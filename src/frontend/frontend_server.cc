#include "volley/frontend/frontend_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/server_builder_option.h>

#include <chrono>
#include <list>
#include <utility>

namespace volley::frontend {
namespace {

constexpr Nanos kCancelTimeout = 2 * kSecond;
constexpr std::chrono::milliseconds kShutdownGrace(500);

// Reflection for one server, after apply_server_defaults() has taken away what linking it gives to
// all.
class ReflectionOption final : public grpc::ServerBuilderOption {
 public:
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    plugins->push_back(std::make_unique<grpc::reflection::ProtoServerReflectionPlugin>());
  }
};

std::string with_port(const std::string& address, int port) {
  if (address.starts_with("unix:") || address.starts_with("unix-abstract:")) return address;
  return address.substr(0, address.rfind(':') + 1) + std::to_string(port);
}

}  // namespace

Result<std::unique_ptr<FrontendServer>> FrontendServer::start(
    const FrontendServerOptions& options, InferenceService& inference,
    const std::vector<grpc::Service*>& others) {
  if (options.listen.empty()) return invalid_argument("listen: no address to listen on");
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  control::apply_server_defaults(builder);
  if (options.reflection) builder.SetOption(std::make_unique<ReflectionOption>());
  std::list<int> ports;  // gRPC keeps pointers to them.
  for (const std::string& address : options.listen) {
    VOLLEY_ASSIGN_OR_RETURN(auto credentials,
                            control::make_server_credentials(options.security, address));
    builder.AddListeningPort(address, credentials, &ports.emplace_back(0));
  }
  builder.RegisterService(inference.service());
  for (grpc::Service* service : others) builder.RegisterService(service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  std::vector<std::string> addresses;
  auto port = ports.begin();
  for (const std::string& address : options.listen) {
    if (server == nullptr || *port == 0) return unavailable("cannot listen on {}", address);
    addresses.push_back(with_port(address, *port++));
  }
  return std::unique_ptr<FrontendServer>(
      new FrontendServer(inference, std::move(server), std::move(addresses)));
}

FrontendServer::FrontendServer(InferenceService& inference, std::unique_ptr<grpc::Server> server,
                               std::vector<std::string> addresses)
    : inference_(inference), server_(std::move(server)), addresses_(std::move(addresses)) {
  grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService();
  health->SetServingStatus("liveness", true);
  inference_.on_serving_changed([health](bool serving) {
    health->SetServingStatus("", serving);
    health->SetServingStatus("volley.v1.Inference", serving);
  });
}

FrontendServer::~FrontendServer() {
  stop();
}

void FrontendServer::drain(Nanos timeout) {
  inference_.close();
  if (inference_.wait_idle(timeout)) return;
  inference_.cancel_all("the frontend is shutting down");
  inference_.wait_idle(kCancelTimeout);
}

void FrontendServer::stop() {
  if (server_ == nullptr) return;
  inference_.close();
  inference_.on_serving_changed(nullptr);
  server_->Shutdown(std::chrono::system_clock::now() + kShutdownGrace);
  server_->Wait();
  server_.reset();
}

}  // namespace volley::frontend
