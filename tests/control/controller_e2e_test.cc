// Goal: nodes join, stay and leave over real sockets: in any start order, over restarts of the
// controller, with refusals in words, lost streams at once and silent ones at the end of their
// lease. Method: a ControllerService on 127.0.0.1, port 0, with report intervals of 100 ms;
// ControllerClients, and bare stubs where a node must misbehave. Waits end when the condition
// holds, and fail after seconds.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

#include "control/test_nodes.h"
#include "volley/base/clock.h"
#include "volley/control/cluster_view.h"
#include "volley/control/controller_client.h"
#include "volley/control/controller_service.h"
#include "volley/v1/control.grpc.pb.h"

namespace volley::control {
namespace {

using ::testing::HasSubstr;
constexpr Nanos kInterval = 100 * kMillisecond;

bool eventually(const std::function<bool()>& condition, Nanos timeout = 10 * kSecond) {
  const Nanos deadline = monotonic_now() + timeout;
  while (!condition()) {
    if (monotonic_now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

// A controller in a server of its own.
class TestController {
 public:
  explicit TestController(uint32_t term, int port = 0,
                          ControllerService::ViewListener listener = {}, Nanos interval = kInterval)
      : service_(options(interval), term, std::move(listener)) {
    grpc::ServerBuilder builder;
    apply_server_defaults(builder);
    const std::string address = "127.0.0.1:" + std::to_string(port);
    builder.AddListeningPort(address, *make_server_credentials({}, address), &port_);
    for (grpc::Service* service : service_.services()) builder.RegisterService(service);
    server_ = builder.BuildAndStart();
  }
  ~TestController() {
    service_.stop(kSecond);
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
  }
  static ControllerOptions options(Nanos interval) {
    ControllerOptions result;
    result.layers = 1;
    result.experts = 2;
    result.report_interval = interval;
    result.checkpoint_digest = kTestCheckpoint;
    return result;
  }
  ControllerService& service() { return service_; }
  int port() const { return port_; }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  size_t members() const { return static_cast<size_t>(service_.view().members_size()); }

 private:
  ControllerService service_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

// A node with its client and what the client has told it.
class TestNode {
 public:
  TestNode(const std::string& address, const v1::NodeRegistration& registration, bool ready = true)
      : ready_(ready) {
    ControllerClientOptions options{
        .address = address, .security = {}, .registration = registration};
    options.backoff_min = 20 * kMillisecond;
    options.backoff_max = 100 * kMillisecond;
    options.name_conflict_timeout = kSecond;
    client_ = *ControllerClient::start(options, {.health = [this] { return health(ready_); },
                                                 .on_view =
                                                     [this](const v1::ClusterView& view) {
                                                       const std::lock_guard lock(mutex_);
                                                       views_.push_back(view);
                                                     },
                                                 .on_refused =
                                                     [this](const Status& status) {
                                                       const std::lock_guard lock(mutex_);
                                                       refused_ = status;
                                                     },
                                                 .on_connection = {}});
  }
  std::optional<v1::ClusterView> view() const {
    const std::lock_guard lock(mutex_);
    return views_.empty() ? std::nullopt : std::optional(views_.back());
  }
  std::vector<v1::ClusterView> views() const {
    const std::lock_guard lock(mutex_);
    return views_;
  }
  std::optional<Status> refused() const {
    const std::lock_guard lock(mutex_);
    return refused_;
  }
  int members() const {
    const auto last = view();
    return last.has_value() ? last->members_size() : -1;
  }
  void set_ready(bool ready) {
    ready_ = ready;
    client_->report_now();
  }
  ControllerClient& client() { return *client_; }

 private:
  std::atomic<bool> ready_;
  mutable std::mutex mutex_;
  std::vector<v1::ClusterView> views_;
  std::optional<Status> refused_;
  std::unique_ptr<ControllerClient> client_;  // Last: its thread uses what is above.
};

v1::ClusterView status_of(const std::string& address) {
  auto stub = v1::Operator::NewStub(*make_channel({}, address));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  v1::GetStatusResponse response;
  EXPECT_TRUE(stub->GetStatus(&context, {}, &response).ok());
  return response.view();
}

TEST(ControllerEndToEnd, NodesJoinInAnyOrderAndLeaveAtOnce) {
  int port = 0;
  {
    const TestController probe(1);
    port = probe.port();
  }
  // The nodes are there before the controller.
  const std::string address = "127.0.0.1:" + std::to_string(port);
  TestNode e0(address, expert("e0", 1, {0, 1}));
  TestNode a0(address, attention("a0", 2), false);
  TestController controller(5, port);
  ASSERT_TRUE(eventually([&] { return a0.members() == 2 && e0.members() == 2; }));
  TestNode late(address, attention("a1", 3));
  ASSERT_TRUE(eventually([&] { return a0.members() == 3 && late.members() == 3; }));

  // The key of the expert node reaches the attention nodes, and no operator.
  EXPECT_EQ(a0.view()->members(2).registration().link_key().size(), 16u);
  const auto status = status_of(controller.address());
  EXPECT_EQ(status.members(2).registration().link_key(), "");
  EXPECT_EQ(status.term(), 5u);
  EXPECT_TRUE(status.serving());

  late.client().stop();
  ASSERT_TRUE(eventually([&] { return a0.members() == 2; }, kSecond));
  EXPECT_EQ(status_of(controller.address()).reason(), "no attention node is ready (a0: loading)");
  a0.set_ready(true);
  ASSERT_TRUE(eventually([&] { return a0.view()->serving(); }, kSecond));
}

TEST(ControllerEndToEnd, VersionsOfDeliveredViewsNeverGoBack) {
  TestController controller(1);
  TestNode watcher(controller.address(), attention("a0", 1));
  for (uint64_t life = 1; life <= 20; ++life) {
    TestNode node(controller.address(), expert("e0", life, {0}));
    ASSERT_TRUE(eventually([&] { return node.members() == 2; }));
  }
  ASSERT_TRUE(eventually([&] { return watcher.members() == 1; }));
  const auto views = watcher.views();
  for (size_t i = 1; i < views.size(); ++i) {
    EXPECT_LE(version_of(views[i - 1]), version_of(views[i]));
  }
}

TEST(ControllerEndToEnd, ARestartedControllerGetsItsMembersBackAndTheyKeepTheirView) {
  // A lease of 1.5 s leaves the nodes time to connect again.
  constexpr Nanos kLongInterval = 500 * kMillisecond;
  auto controller = std::make_unique<TestController>(1, 0, nullptr, kLongInterval);
  const int port = controller->port();
  TestNode e0(controller->address(), expert("e0", 1, {0, 1}));
  TestNode a0(controller->address(), attention("a0", 2));
  ASSERT_TRUE(eventually([&] { return a0.members() == 2 && a0.view()->serving(); }));
  controller.reset();
  const size_t views_before = a0.views().size();
  controller = std::make_unique<TestController>(2, port, nullptr, kLongInterval);
  ASSERT_TRUE(eventually([&] { return a0.view()->term() == 2 && e0.view()->term() == 2; }));
  // No view of the new term that lacked one of the two was delivered.
  const auto views = a0.views();
  for (size_t i = views_before; i < views.size(); ++i) EXPECT_EQ(views[i].members_size(), 2);
  EXPECT_TRUE(a0.view()->serving());
}

TEST(ControllerEndToEnd, ARefusalReachesTheNodeOnceAndNamesBothValues) {
  TestController controller(1);
  v1::NodeRegistration other = expert("e0", 1, {0});
  other.set_checkpoint_digest(0xdead);
  TestNode node(controller.address(), other);
  ASSERT_TRUE(eventually([&] { return node.refused().has_value(); }));
  EXPECT_EQ(node.refused()->code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(message_of(*node.refused()),
              HasSubstr("000000000000dead differs from 00000000000000c0"));
  EXPECT_EQ(controller.members(), 0u);
}

TEST(ControllerEndToEnd, ATakenNameIsRefusedButAReleasedOneIsWaitedFor) {
  TestController controller(1);
  auto first = std::make_unique<TestNode>(controller.address(), expert("e0", 1, {0}));
  ASSERT_TRUE(eventually([&] { return controller.members() == 1; }));
  TestNode patient(controller.address(), expert("e0", 2, {0}));
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_EQ(patient.members(), -1);
  first.reset();
  ASSERT_TRUE(eventually([&] { return patient.members() == 1; }));
  TestNode intruder(controller.address(), expert("e0", 3, {0}));
  ASSERT_TRUE(eventually([&] { return intruder.refused().has_value(); }));
  EXPECT_EQ(intruder.refused()->code(), StatusCode::kAlreadyExists);
}

// Joins with a bare stub, so that the test decides what is reported.
class BareNode {
 public:
  explicit BareNode(const std::string& address)
      : stub_(v1::Controller::NewStub(*make_channel({}, address))) {
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    stream_ = stub_->Join(&context_);
  }
  void report(const v1::NodeReport& report) { stream_->Write(report); }
  void join(const v1::NodeRegistration& node) {
    v1::NodeReport first;
    *first.mutable_registration() = node;
    *first.mutable_health() = health(true);
    report(first);
    v1::ClusterView view;
    ASSERT_TRUE(stream_->Read(&view));
  }
  grpc::Status finish() {
    v1::ClusterView view;
    while (stream_->Read(&view)) {
    }
    return stream_->Finish();
  }
  void break_off() { context_.TryCancel(); }

 private:
  std::unique_ptr<v1::Controller::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::NodeReport, v1::ClusterView>> stream_;
};

TEST(ControllerEndToEnd, ASilentNodeLosesItsLeaseAndABrokenStreamAtOnce) {
  TestController controller(1);
  BareNode silent(controller.address());
  silent.join(expert("e0", 1, {0}));
  const Nanos joined = monotonic_now();
  ASSERT_TRUE(eventually([&] { return controller.members() == 0; }));
  EXPECT_GE(monotonic_now() - joined, 2 * kInterval);
  const grpc::Status status = silent.finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_THAT(status.error_message(), HasSubstr("node e0: no report for"));

  BareNode broken(controller.address());
  broken.join(expert("e1", 1, {0}));
  broken.break_off();
  EXPECT_EQ(broken.finish().error_code(), grpc::StatusCode::CANCELLED);
  ASSERT_TRUE(eventually([&] { return controller.members() == 0; }, kSecond));
}

TEST(ControllerEndToEnd, WrongReportsEndTheStream) {
  TestController controller(1);
  BareNode unnamed(controller.address());
  unnamed.report({});
  EXPECT_THAT(unnamed.finish().error_message(), HasSubstr("missing in the first report"));

  BareNode twice(controller.address());
  twice.join(expert("e0", 1, {0}));
  v1::NodeReport again;
  *again.mutable_registration() = expert("e0", 1, {0});
  twice.report(again);
  EXPECT_THAT(twice.finish().error_message(), HasSubstr("only the first report"));
  EXPECT_TRUE(eventually([&] { return controller.members() == 0; }, kSecond));
}

TEST(ControllerEndToEnd, TheListenerInTheProcessSeesMembersAndHealth) {
  std::mutex mutex;
  v1::ClusterView last;
  TestController controller(1, 0, [&](const v1::ClusterView& view) {
    const std::lock_guard lock(mutex);
    last = view;
  });
  TestNode e0(controller.address(), expert("e0", 1, {0}), false);
  const auto ready = [&] {
    const std::lock_guard lock(mutex);
    return last.members_size() == 1 && last.members(0).health().ready();
  };
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_FALSE(ready());
  e0.set_ready(true);
  EXPECT_TRUE(eventually(ready));
}

TEST(ControllerEndToEnd, StopIsPromptWhateverTheControllerDoes) {
  // Nobody listens.
  TestNode alone("127.0.0.1:1", expert("e0", 1, {0}));
  Nanos begin = monotonic_now();
  alone.client().stop();
  EXPECT_LT(monotonic_now() - begin, kSecond);
  // The controller is there.
  TestController controller(1);
  TestNode joined(controller.address(), expert("e0", 1, {0}));
  ASSERT_TRUE(eventually([&] { return joined.members() == 1; }));
  begin = monotonic_now();
  joined.client().stop();
  EXPECT_LT(monotonic_now() - begin, kSecond);
  EXPECT_TRUE(eventually([&] { return controller.members() == 0; }, kSecond));
}

}  // namespace
}  // namespace volley::control
