#include "volley/control/controller_service.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "volley/base/check.h"
#include "volley/base/clock.h"
#include "volley/control/grpc_status.h"
#include "volley/v1/control.grpc.pb.h"

namespace volley::control {

struct ControllerService::Impl {
  class JoinReactor;
  class Controller final : public v1::Controller::CallbackService {
   public:
    explicit Controller(Impl* impl) : impl_(impl) {}
    grpc::ServerBidiReactor<v1::NodeReport, v1::ClusterView>* Join(
        grpc::CallbackServerContext* context) override;

   private:
    Impl* impl_;
  };
  class Operator final : public v1::Operator::CallbackService {
   public:
    explicit Operator(Impl* impl) : impl_(impl) {}
    grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context,
                                        const v1::GetStatusRequest* request,
                                        v1::GetStatusResponse* response) override;

   private:
    Impl* impl_;
  };

  Impl(ControllerOptions options, uint32_t term, ViewListener view_listener)
      : tick_interval(std::max<Nanos>(options.report_interval / 4, kMillisecond)),
        listener(std::move(view_listener)),
        state(std::move(options), term, monotonic_now()),
        controller(this),
        operator_service(this),
        ticker([this] { run_ticker(); }) {}

  // Does what the state machine asked for. The mutex is held.
  void apply(const ControllerState::Actions& actions);
  void push(bool only_frontends);
  void run_ticker();

  const Nanos tick_interval;
  const ViewListener listener;
  std::mutex mutex;
  std::condition_variable wake;        // Of the ticker: something changed, or stopping.
  std::condition_variable all_closed;  // Of stop(): a stream has ended.
  ControllerState state;               // Guarded by mutex, as all below.
  std::set<JoinReactor*> streams;
  bool stopping = false;
  bool view_is_new = true;  // For the listener.
  bool health_is_new = false;
  Controller controller;
  Operator operator_service;
  std::thread ticker;  // Last: it uses everything above.
};

// One Join stream. Lives from the call's start to OnDone; all of its state is guarded by the
// service's mutex.
class ControllerService::Impl::JoinReactor final
    : public grpc::ServerBidiReactor<v1::NodeReport, v1::ClusterView> {
 public:
  JoinReactor(Impl* impl, grpc::CallbackServerContext* context) : impl_(impl), context_(context) {
    const std::lock_guard lock(impl_->mutex);
    impl_->streams.insert(this);
    if (impl_->stopping) {
      end(unavailable("the controller is stopping"));
    } else {
      StartRead(&report_);
    }
  }

  void OnReadDone(bool ok) override {
    const std::lock_guard lock(impl_->mutex);
    if (ended_.has_value()) return;
    ControllerState::Actions actions;
    if (!ok) {
      leave();
      end(ok_status());
      return;
    }
    const Status status = accept(actions);
    impl_->apply(actions);
    if (!status.ok()) {
      leave();
      end(status);
    } else if (!ended_.has_value()) {
      StartRead(&report_);
    }
  }

  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(impl_->mutex);
    writing_ = false;
    if (ended_.has_value()) {
      finish_once();
    } else if (!ok) {
      waiting_.reset();  // The stream is broken; the read reports it.
    } else if (waiting_.has_value()) {
      write(std::move(*std::exchange(waiting_, std::nullopt)));
    }
  }

  void OnDone() override {
    const std::lock_guard lock(impl_->mutex);
    leave();
    impl_->streams.erase(this);
    impl_->all_closed.notify_all();
    delete this;
  }

  // The service's mutex is held for the methods below.

  const std::optional<SessionId>& session() const { return session_; }
  bool gets_keys() const { return role_ == v1::ROLE_ATTENTION; }
  bool is_frontend() const { return role_ == v1::ROLE_FRONTEND; }

  void push(const v1::ClusterView& view) {
    if (ended_.has_value()) return;
    if (writing_) {
      waiting_ = view;
    } else {
      write(view);
    }
  }

  // Ends the stream. A write that the peer does not read is cut off rather than waited for.
  void end(const Status& why) {
    if (ended_.has_value()) return;
    ended_ = why;
    session_.reset();
    if (writing_) {
      context_->TryCancel();
    } else {
      finish_once();
    }
  }

 private:
  Status accept(ControllerState::Actions& actions) {
    const Nanos now = monotonic_now();
    if (session_.has_value()) {
      if (report_.has_registration()) {
        return invalid_argument("registration: only the first report of a stream has one");
      }
      impl_->state.profile(*session_, report_.profile());
      return impl_->state.report(*session_, report_.health(), now, actions);
    }
    if (!report_.has_registration()) {
      return invalid_argument("registration: missing in the first report");
    }
    role_ = report_.registration().role();
    auto session = impl_->state.join(report_.registration(), report_.health(), now, actions);
    if (!session.ok()) return session.status();
    session_ = *session;
    impl_->state.profile(*session_, report_.profile());
    return ok_status();
  }

  void leave() {
    if (!session_.has_value()) return;
    ControllerState::Actions actions;
    impl_->state.stream_closed(*std::exchange(session_, std::nullopt), actions);
    impl_->apply(actions);
  }

  void write(v1::ClusterView view) {
    outgoing_ = std::move(view);
    writing_ = true;
    StartWrite(&outgoing_);
  }

  void finish_once() {
    if (std::exchange(finished_, true)) return;
    Finish(to_grpc(*ended_));
  }

  Impl* const impl_;
  grpc::CallbackServerContext* const context_;
  v1::NodeReport report_;
  v1::ClusterView outgoing_;                // Belongs to gRPC while writing_.
  std::optional<v1::ClusterView> waiting_;  // The newest view that is not being written yet.
  std::optional<SessionId> session_;
  std::optional<Status> ended_;
  v1::Role role_ = v1::ROLE_UNSPECIFIED;
  bool writing_ = false;
  bool finished_ = false;
};

grpc::ServerBidiReactor<v1::NodeReport, v1::ClusterView>* ControllerService::Impl::Controller::Join(
    grpc::CallbackServerContext* context) {
  return new JoinReactor(impl_, context);  // Deletes itself in OnDone.
}

grpc::ServerUnaryReactor* ControllerService::Impl::Operator::GetStatus(
    grpc::CallbackServerContext* context, const v1::GetStatusRequest*,
    v1::GetStatusResponse* response) {
  {
    const std::lock_guard lock(impl_->mutex);
    *response = impl_->state.status();
  }
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

void ControllerService::Impl::apply(const ControllerState::Actions& actions) {
  for (const ControllerState::Ended& ended : actions.ended) {
    const auto stream = std::find_if(streams.begin(), streams.end(), [&](const JoinReactor* one) {
      return one->session() == ended.session;
    });
    if (stream != streams.end()) (*stream)->end(ended.why);
  }
  if (actions.view_changed) {
    view_is_new = true;
    push(false);
    wake.notify_one();
  } else if (actions.health_changed) {
    health_is_new = true;  // Goes out with the next tick: one push for the reports of all nodes.
  }
}

void ControllerService::Impl::push(bool only_frontends) {
  if (streams.empty()) return;
  const v1::ClusterView plain = state.view(Audience::kOther);
  const v1::ClusterView with_keys = state.view(Audience::kAttention);
  for (JoinReactor* stream : streams) {
    if (!stream->session().has_value() || (only_frontends && !stream->is_frontend())) continue;
    stream->push(stream->gets_keys() ? with_keys : plain);
  }
}

void ControllerService::Impl::run_ticker() {
  std::unique_lock lock(mutex);
  Nanos next_tick = monotonic_now();
  while (!stopping) {
    if (const Nanos now = monotonic_now(); now >= next_tick) {
      next_tick = now + tick_interval;
      ControllerState::Actions actions;
      state.tick(now, actions);
      apply(actions);
      if (std::exchange(health_is_new, false)) {
        view_is_new = true;
        push(true);
      }
    }
    if (std::exchange(view_is_new, false) && listener) {
      const v1::ClusterView latest = state.view(Audience::kOther);
      lock.unlock();
      listener(latest);
      lock.lock();
      continue;
    }
    wake.wait_for(lock, std::chrono::nanoseconds(std::max<Nanos>(next_tick - monotonic_now(), 0)),
                  [&] { return stopping || view_is_new; });
  }
}

ControllerService::ControllerService(ControllerOptions options, uint32_t term,
                                     ViewListener listener)
    : impl_(std::make_unique<Impl>(std::move(options), term, std::move(listener))) {}

ControllerService::~ControllerService() {
  stop(0);
  VOLLEY_CHECK(impl_->streams.empty());  // The server must have been shut down before.
}

std::vector<grpc::Service*> ControllerService::services() {
  return {&impl_->controller, &impl_->operator_service};
}

v1::ClusterView ControllerService::view() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->state.view(Audience::kOther);
}

void ControllerService::stop(Nanos timeout) {
  std::unique_lock lock(impl_->mutex);
  impl_->stopping = true;
  impl_->wake.notify_all();
  for (auto* stream : impl_->streams) stream->end(unavailable("the controller is stopping"));
  impl_->all_closed.wait_for(lock, std::chrono::nanoseconds(timeout),
                             [&] { return impl_->streams.empty(); });
  lock.unlock();
  if (impl_->ticker.joinable()) impl_->ticker.join();
}

}  // namespace volley::control
