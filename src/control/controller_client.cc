#include "volley/control/controller_client.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "volley/base/check.h"
#include "volley/base/clock.h"
#include "volley/control/grpc_status.h"
#include "volley/v1/control.grpc.pb.h"

namespace volley::control {
namespace {

// How long stop() lets the controller acknowledge the half-close, and then a cancelled call end.
constexpr Nanos kLeaveTimeout = 300 * kMillisecond;

bool is_permanent(StatusCode code) {
  switch (code) {
    case StatusCode::kFailedPrecondition:
    case StatusCode::kInvalidArgument:
    case StatusCode::kUnauthenticated:
    case StatusCode::kPermissionDenied:
    case StatusCode::kUnimplemented:
      return true;
    default:
      return false;
  }
}

// What the client's thread and the reactor of a call share.
struct Shared {
  std::mutex mutex;
  std::condition_variable changed;
  bool stopping = false;
  bool report_wanted = false;
};

// One Join call. Owned by the client's thread; gRPC uses it until OnDone, which the owner waits
// for.
class JoinCall final : public grpc::ClientBidiReactor<v1::NodeReport, v1::ClusterView> {
 public:
  JoinCall(Shared& shared, v1::Controller::Stub& stub) : shared_(shared) {
    stub.async()->Join(&context_, this);
    AddHold();  // For the writes, which do not start inside reactions.
    StartRead(&incoming_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    const std::lock_guard lock(shared_.mutex);
    if (ok) {
      view_ = incoming_;
      StartRead(&incoming_);
    } else {
      broken_ = true;
    }
    shared_.changed.notify_all();
  }
  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(shared_.mutex);
    writing_ = false;
    if (!ok) broken_ = true;
    shared_.changed.notify_all();
  }
  void OnWritesDoneDone(bool) override {}
  void OnDone(const grpc::Status& status) override {
    const std::lock_guard lock(shared_.mutex);
    status_ = from_grpc(status);
    shared_.changed.notify_all();
  }

  // The shared mutex is held for the methods below.

  bool can_write() const { return !writing_ && !broken_ && !released_; }
  void write(v1::NodeReport report) {
    outgoing_ = std::move(report);
    writing_ = true;
    StartWrite(&outgoing_);
  }
  void half_close() { StartWritesDone(); }
  void cancel() { context_.TryCancel(); }
  // After it nothing may be written; OnDone follows once the server has ended the call.
  void release() {
    if (!std::exchange(released_, true)) RemoveHold();
  }
  std::optional<v1::ClusterView> take_view() { return std::exchange(view_, std::nullopt); }
  bool has_view() const { return view_.has_value(); }
  bool broken() const { return broken_; }
  const std::optional<Status>& status() const { return status_; }

 private:
  Shared& shared_;
  grpc::ClientContext context_;
  v1::NodeReport outgoing_;   // Belongs to gRPC while writing_.
  v1::ClusterView incoming_;  // Belongs to gRPC until OnReadDone.
  std::optional<v1::ClusterView> view_;
  std::optional<Status> status_;
  bool writing_ = false;
  bool broken_ = false;
  bool released_ = false;
};

}  // namespace

struct ControllerClient::Impl {
  Impl(ControllerClientOptions options_in, Callbacks callbacks_in,
       std::shared_ptr<grpc::Channel> channel)
      : options(std::move(options_in)),
        callbacks(std::move(callbacks_in)),
        stub(v1::Controller::NewStub(channel)),
        thread([this] { run(); }) {}

  void run();
  /// Asks for what the next report says.
  void fill(v1::NodeReport& report) const;
  Status run_call();
  void end_call(std::unique_lock<std::mutex>& lock, JoinCall& call, bool politely);
  void deliver(const v1::ClusterView& view);
  template <class Predicate>
  bool wait_until(std::unique_lock<std::mutex>& lock, Nanos deadline, Predicate predicate) {
    const Nanos left = std::max<Nanos>(deadline - monotonic_now(), 0);
    return shared.changed.wait_for(lock, std::chrono::nanoseconds(left), predicate);
  }
  void notify_connection(const Status& status) {
    if (callbacks.on_connection) callbacks.on_connection(status);
  }

  const ControllerClientOptions options;
  const Callbacks callbacks;
  const std::unique_ptr<v1::Controller::Stub> stub;
  Shared shared;
  bool joined = false;  // By the last call. Of the client's thread, as are the next two.
  Nanos conflict_since = 0;
  std::optional<uint32_t> term;  // Of the last view that was delivered.
  std::thread thread;
};

// Tries for ever, with growing pauses that a successful join resets, until stop() or a permanent
// refusal.
void ControllerClient::Impl::run() {
  Nanos backoff = options.backoff_min;
  for (;;) {
    joined = false;
    const Status status = run_call();
    {
      const std::lock_guard lock(shared.mutex);
      if (shared.stopping) return;
    }
    const Nanos now = monotonic_now();
    const bool conflict = status.code() == StatusCode::kAlreadyExists;
    if (!conflict) {
      conflict_since = 0;
    } else if (conflict_since == 0) {
      conflict_since = now;
    }
    if (is_permanent(status.code()) ||
        (conflict && now - conflict_since >= options.name_conflict_timeout)) {
      if (callbacks.on_refused) callbacks.on_refused(status);
      return;
    }
    notify_connection(annotate(status, "controller " + options.address));
    if (joined) backoff = options.backoff_min;
    std::unique_lock lock(shared.mutex);
    if (wait_until(lock, now + backoff, [&] { return shared.stopping; })) return;
    backoff = std::min(2 * backoff, options.backoff_max);
  }
}

// A controller that has just restarted does not know all members yet; taking its first views over
// would end what runs on nodes that are alive.
void ControllerClient::Impl::deliver(const v1::ClusterView& view) {
  if (term.has_value() && *term != view.term() && !view.settled()) return;
  term = view.term();
  callbacks.on_view(view);
}

void ControllerClient::Impl::fill(v1::NodeReport& report) const {
  *report.mutable_health() = callbacks.health();
  if (callbacks.profile) *report.mutable_profile() = callbacks.profile();
}

// One call from its registration to its end. The result says why it ended.
Status ControllerClient::Impl::run_call() {
  v1::NodeReport report;
  *report.mutable_registration() = options.registration;
  fill(report);
  JoinCall call(shared, *stub);
  std::unique_lock lock(shared.mutex);
  call.write(std::move(report));
  const Nanos join_deadline = monotonic_now() + options.join_timeout;
  Nanos next_report = join_deadline;
  Nanos interval = options.join_timeout;
  for (;;) {
    const bool woken = wait_until(lock, joined ? next_report : join_deadline, [&] {
      return shared.stopping || call.broken() || call.has_view() ||
             (joined && shared.report_wanted && call.can_write());
    });
    if (shared.stopping || call.broken()) {
      end_call(lock, call, shared.stopping && !call.broken());
      return *call.status();
    }
    if (!woken && !joined) {
      end_call(lock, call, false);
      return make_status(StatusCode::kDeadlineExceeded, "no answer within {} ms",
                         options.join_timeout / kMillisecond);
    }
    if (auto view = call.take_view()) {
      lock.unlock();
      if (!joined) notify_connection(ok_status());
      deliver(*view);
      lock.lock();
      interval = std::max<Nanos>(view->report_interval_ms() * kMillisecond, kMillisecond);
      if (!joined) next_report = monotonic_now() + interval;
      joined = true;
    }
    const bool due = monotonic_now() >= next_report;
    if (joined && (due || shared.report_wanted) && call.can_write()) {
      shared.report_wanted = false;
      lock.unlock();
      v1::NodeReport health_report;
      fill(health_report);
      lock.lock();
      if (call.can_write()) call.write(std::move(health_report));
    }
    if (due) next_report = monotonic_now() + interval;
  }
}

// Ends the call and waits until gRPC is done with it.
void ControllerClient::Impl::end_call(std::unique_lock<std::mutex>& lock, JoinCall& call,
                                      bool politely) {
  const auto done = [&] { return call.status().has_value(); };
  if (politely) {
    wait_until(lock, monotonic_now() + kLeaveTimeout,
               [&] { return call.can_write() || call.broken(); });
    if (call.can_write()) call.half_close();
    call.release();
    if (wait_until(lock, monotonic_now() + kLeaveTimeout, done)) return;
  } else if (!call.broken()) {
    call.cancel();
  }
  call.release();
  if (wait_until(lock, monotonic_now() + kLeaveTimeout, done)) return;
  call.cancel();
  // A cancelled call ends without the peer; this wait is as long as gRPC takes to run its
  // callbacks.
  shared.changed.wait(lock, done);
}

Result<std::unique_ptr<ControllerClient>> ControllerClient::start(ControllerClientOptions options,
                                                                  Callbacks callbacks) {
  VOLLEY_CHECK(callbacks.health && callbacks.on_view);
  VOLLEY_ASSIGN_OR_RETURN(auto channel, make_channel(options.security, options.address));
  return std::unique_ptr<ControllerClient>(new ControllerClient(
      std::make_unique<Impl>(std::move(options), std::move(callbacks), std::move(channel))));
}

ControllerClient::ControllerClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ControllerClient::~ControllerClient() {
  stop();
}

void ControllerClient::report_now() {
  const std::lock_guard lock(impl_->shared.mutex);
  impl_->shared.report_wanted = true;
  impl_->shared.changed.notify_all();
}

void ControllerClient::stop() {
  {
    const std::lock_guard lock(impl_->shared.mutex);
    impl_->shared.stopping = true;
    impl_->shared.changed.notify_all();
  }
  if (impl_->thread.joinable()) impl_->thread.join();
}

}  // namespace volley::control
