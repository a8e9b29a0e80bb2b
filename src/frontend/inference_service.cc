#include "volley/frontend/inference_service.h"

#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "generation.h"
#include "volley/base/check.h"
#include "volley/base/clock.h"
#include "volley/control/grpc_status.h"
#include "volley/v1/inference.grpc.pb.h"

namespace volley::frontend {
namespace {

// How long a node that could not be reached is used only when there is no other.
constexpr Nanos kSuspectTime = kSecond;

// The request's own deadline, bounded by the server's.
gpr_timespec deadline_of(const grpc::CallbackServerContext& context, Nanos longest) {
  const gpr_timespec bound =
      gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos(longest, GPR_TIMESPAN));
  return gpr_time_min(bound, gpr_convert_clock_type(context.raw_deadline(), GPR_CLOCK_MONOTONIC));
}

// Ends in OnDone, after which the generation no longer knows it.
class StreamCall final : public grpc::ServerWriteReactor<v1::GenerateChunk>, public ClientCall {
 public:
  explicit StreamCall(grpc::CallbackServerContext* context) : context_(context) {}
  void attach(std::shared_ptr<Generation> generation) { generation_ = std::move(generation); }

  bool write(v1::GenerateChunk chunk) override {
    chunk_ = std::move(chunk);
    StartWrite(&chunk_);
    return true;
  }
  void finish(const Status& status) override { Finish(control::to_grpc(status)); }
  void cut_off() override { context_->TryCancel(); }

  void OnWriteDone(bool ok) override { generation_->on_written(ok); }
  void OnCancel() override { generation_->on_client_gone(); }
  void OnDone() override {
    generation_->on_client_done();
    delete this;
  }

 private:
  grpc::CallbackServerContext* const context_;
  std::shared_ptr<Generation> generation_;
  v1::GenerateChunk chunk_;  // Belongs to gRPC until OnWriteDone.
};

// Gathers the chunks into one response.
class UnaryCall final : public grpc::ServerUnaryReactor, public ClientCall {
 public:
  UnaryCall(grpc::CallbackServerContext* context, v1::GenerateResponse* response)
      : context_(context), response_(response) {}
  void attach(std::shared_ptr<Generation> generation) { generation_ = std::move(generation); }

  bool write(v1::GenerateChunk chunk) override {
    response_->mutable_text()->append(chunk.text());
    response_->mutable_token_ids()->MergeFrom(chunk.token_ids());
    response_->mutable_logits_digests()->MergeFrom(chunk.logits_digests());
    response_->mutable_logprobs()->MergeFrom(chunk.logprobs());
    if (chunk.has_seed()) response_->set_seed(chunk.seed());
    if (!chunk.attention_node().empty()) response_->set_attention_node(chunk.attention_node());
    if (chunk.has_usage()) *response_->mutable_usage() = chunk.usage();
    response_->set_finish_reason(chunk.finish_reason());
    return false;
  }
  void finish(const Status& status) override { Finish(control::to_grpc(status)); }
  void cut_off() override { context_->TryCancel(); }

  void OnCancel() override { generation_->on_client_gone(); }
  void OnDone() override {
    generation_->on_client_done();
    delete this;
  }

 private:
  grpc::CallbackServerContext* const context_;
  v1::GenerateResponse* const response_;
  std::shared_ptr<Generation> generation_;
};

// A stream that is refused before it becomes a request.
class RefusedStream final : public grpc::ServerWriteReactor<v1::GenerateChunk> {
 public:
  explicit RefusedStream(const Status& status) { Finish(control::to_grpc(status)); }
  void OnDone() override { delete this; }
};

}  // namespace

struct InferenceService::Impl final : public v1::Inference::CallbackService,
                                      public GenerationOwner {
  struct Request {
    std::shared_ptr<Generation> generation;
    Nanos started = 0;
    bool in_flight = false;
    std::optional<NodeDirectory::Node> node;
  };

  Impl(FrontendOptions options_in, ModelInfo model_in, GenerationDefaults defaults_in,
       std::shared_ptr<const model::Tokenizer> tokenizer_in)
      : options(std::move(options_in)),
        model(std::move(model_in)),
        defaults(defaults_in),
        tokenizer(std::move(tokenizer_in)),
        admission(options.in_flight_max, options.queue_max) {}

  grpc::ServerUnaryReactor* Generate(grpc::CallbackServerContext* context,
                                     const v1::GenerateRequest* request,
                                     v1::GenerateResponse* response) override;
  grpc::ServerWriteReactor<v1::GenerateChunk>* GenerateStream(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override;

  void withdraw(RequestId id) override;
  void node_failed(const NodeDirectory::Node& node) override;
  void ended(RequestId id, const Status& status) override;

  template <class Call>
  void begin(grpc::CallbackServerContext* context, PreparedRequest request, Call* call);
  void run(RequestId id);
  void run_waiting();
  std::string not_serving_reason() const;
  void tell_serving();
  void count_refused() {
    const std::lock_guard lock(mutex);
    ++stats.refused;
  }
  void add_retry_hint(grpc::CallbackServerContext* context, Nanos after) {
    context->AddTrailingMetadata("retry-after-ms", std::to_string(after / kMillisecond));
  }

  const FrontendOptions options;
  const ModelInfo model;
  const GenerationDefaults defaults;
  // Owners: the service and the requests that decode with it.
  const std::shared_ptr<const model::Tokenizer> tokenizer;

  // Held while the callback runs, so that its calls are in order and end with
  // on_serving_changed(nullptr).
  std::mutex serving_mutex;
  std::function<void(bool)> serving_changed;

  mutable std::mutex mutex;  // Guards all below. Never held when a Generation is called.
  std::condition_variable idle;
  Admission admission;
  NodeDirectory directory;
  // Owners of a stub: this table and the calls that run on it.
  std::map<NodeDirectory::Node, std::shared_ptr<v1::AttentionNode::Stub>> stubs;
  std::map<RequestId, Request> requests;
  uint64_t last_request = 0;
  FrontendStats stats;
  bool closed = false;
};

template <class Call>
void InferenceService::Impl::begin(grpc::CallbackServerContext* context, PreparedRequest request,
                                   Call* call) {
  RequestId id;
  {
    const std::lock_guard lock(mutex);
    id = {++last_request};
  }
  const auto generation = std::make_shared<Generation>(
      *this,
      Generation::Options{.id = id,
                          .request = std::move(request),
                          .tokenizer = tokenizer,
                          .deadline = deadline_of(*context, options.default_deadline),
                          .chunks_waiting_max = options.chunks_waiting_max},
      call);
  call->attach(generation);

  std::optional<Status> refusal;
  bool run_now = false;
  {
    const std::lock_guard lock(mutex);
    requests[id] = {.generation = generation, .started = monotonic_now(), .node = {}};
    if (const std::string reason = directory.not_serving_reason(); closed) {
      refusal = unavailable("the frontend is shutting down");
    } else if (!reason.empty()) {
      refusal = unavailable("no node can serve: {}", reason);
    } else {
      switch (admission.arrive(id)) {
        case Admission::Decision::kRun:
          requests[id].in_flight = true;
          run_now = true;
          break;
        case Admission::Decision::kWait:
          break;
        case Admission::Decision::kFull:
          refusal = resource_exhausted("the queue is full: {} requests run and {} wait",
                                       admission.in_flight(), admission.waiting());
          add_retry_hint(context, admission.retry_after());
          break;
      }
    }
    if (refusal.has_value()) ++stats.refused;
  }
  generation->arm_deadline();
  if (refusal.has_value()) generation->stop(*refusal);
  if (run_now) run(id);
}

// Sends a request that is in flight to a node, or ends it when there is none.
void InferenceService::Impl::run(RequestId id) {
  std::shared_ptr<Generation> generation;
  std::shared_ptr<v1::AttentionNode::Stub> stub;
  Result<NodeDirectory::Node> node = unavailable("");
  {
    const std::lock_guard lock(mutex);
    const auto request = requests.find(id);
    if (request == requests.end()) return;
    generation = request->second.generation;
    node = directory.pick(monotonic_now());
    if (node.ok()) {
      request->second.node = *node;
      stub = stubs.at(*node);
    }
  }
  if (node.ok()) {
    generation->run(*node, std::move(stub));
  } else {
    generation->stop(node.status());
  }
}

void InferenceService::Impl::run_waiting() {
  for (;;) {
    std::optional<RequestId> id;
    {
      const std::lock_guard lock(mutex);
      id = admission.next();
      if (!id.has_value()) return;
      requests.at(*id).in_flight = true;
    }
    run(*id);
  }
}

std::string InferenceService::Impl::not_serving_reason() const {
  const std::lock_guard lock(mutex);
  return closed ? "the frontend is shutting down" : directory.not_serving_reason();
}

void InferenceService::Impl::tell_serving() {
  const std::lock_guard lock(serving_mutex);
  if (serving_changed) serving_changed(not_serving_reason().empty());
}

void InferenceService::Impl::withdraw(RequestId id) {
  const std::lock_guard lock(mutex);
  admission.withdraw(id);
}

void InferenceService::Impl::node_failed(const NodeDirectory::Node& node) {
  const std::lock_guard lock(mutex);
  directory.suspect(node, monotonic_now() + kSuspectTime);
}

void InferenceService::Impl::ended(RequestId id, const Status& status) {
  std::shared_ptr<Generation> generation;  // Goes after the lock.
  bool freed = false;
  {
    const std::lock_guard lock(mutex);
    const auto request = requests.find(id);
    VOLLEY_CHECK(request != requests.end());
    generation = std::move(request->second.generation);
    freed = request->second.in_flight;
    if (freed) admission.leave(monotonic_now() - request->second.started);
    if (request->second.node.has_value()) directory.release(*request->second.node);
    if (status.ok()) {
      ++stats.succeeded;
    } else if (freed) {
      ++stats.failed;
    }
    requests.erase(request);
  }
  if (freed) run_waiting();
  const std::lock_guard lock(mutex);
  if (requests.empty()) idle.notify_all();
}

grpc::ServerWriteReactor<v1::GenerateChunk>* InferenceService::Impl::GenerateStream(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  auto prepared = prepare_request(*request, model, defaults, *tokenizer);
  if (!prepared.ok()) {
    count_refused();
    return new RefusedStream(prepared.status());  // Deletes itself in OnDone.
  }
  auto* call = new StreamCall(context);  // Deletes itself in OnDone.
  begin(context, *std::move(prepared), call);
  return call;
}

grpc::ServerUnaryReactor* InferenceService::Impl::Generate(grpc::CallbackServerContext* context,
                                                           const v1::GenerateRequest* request,
                                                           v1::GenerateResponse* response) {
  auto prepared = prepare_request(*request, model, defaults, *tokenizer);
  if (!prepared.ok()) {
    count_refused();
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(control::to_grpc(prepared.status()));
    return reactor;
  }
  auto* call = new UnaryCall(context, response);  // Deletes itself in OnDone.
  begin(context, *std::move(prepared), call);
  return call;
}

grpc::ServerUnaryReactor* InferenceService::Impl::Tokenize(grpc::CallbackServerContext* context,
                                                           const v1::TokenizeRequest* request,
                                                           v1::TokenizeResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (request->text().size() > kPromptBytesMax) {
    reactor->Finish(control::to_grpc(invalid_argument("text: {} bytes; allowed are at most {}",
                                                      request->text().size(), kPromptBytesMax)));
    return reactor;
  }
  const bool add_special = !request->has_add_special_tokens() || request->add_special_tokens();
  const auto ids = tokenizer->encode(request->text(), add_special);
  if (ids.ok()) response->mutable_token_ids()->Add(ids->begin(), ids->end());
  reactor->Finish(control::to_grpc(annotate(ids.status(), "text")));
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Impl::Detokenize(grpc::CallbackServerContext* context,
                                                             const v1::DetokenizeRequest* request,
                                                             v1::DetokenizeResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  for (int i = 0; i < request->token_ids_size(); ++i) {
    if (tokenizer->has_token(request->token_ids(i))) continue;
    reactor->Finish(control::to_grpc(
        invalid_argument("token_ids[{}]: {} is no token; the tokenizer's ids are below {}", i,
                         request->token_ids(i), tokenizer->vocab_size())));
    return reactor;
  }
  const std::vector<int32_t> ids(request->token_ids().begin(), request->token_ids().end());
  response->set_text(tokenizer->decode(ids, !request->keep_special_tokens()));
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Impl::GetModel(grpc::CallbackServerContext* context,
                                                           const v1::GetModelRequest*,
                                                           v1::GetModelResponse* response) {
  response->set_name(model.name);
  response->set_architecture(model.architecture);
  response->set_vocab_size(model.vocab_size);
  response->set_max_sequence_tokens(model.sequence_tokens_max);
  response->set_layers(model.layers);
  response->set_experts(model.experts);
  response->set_experts_per_token(model.experts_per_token);
  response->mutable_eos_token_ids()->Add(model.eos_token_ids.begin(), model.eos_token_ids.end());
  response->set_checkpoint_digest(model.checkpoint_digest);
  {
    const std::lock_guard lock(mutex);
    response->set_numerics_fingerprint(directory.numerics_fingerprint());
  }
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

InferenceService::InferenceService(FrontendOptions options, ModelInfo model,
                                   GenerationDefaults defaults,
                                   std::shared_ptr<const model::Tokenizer> tokenizer)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(model), defaults,
                                   std::move(tokenizer))) {}

InferenceService::~InferenceService() {
  VOLLEY_CHECK(impl_->requests.empty());
}

grpc::Service* InferenceService::service() {
  return impl_.get();
}

void InferenceService::update_view(const v1::ClusterView& view) {
  std::vector<std::pair<std::shared_ptr<Generation>, Status>> lost;
  {
    const std::lock_guard lock(impl_->mutex);
    for (const NodeDirectory::Node& gone : impl_->directory.update(view)) {
      impl_->stubs.erase(gone);
      for (const auto& [id, request] : impl_->requests) {
        if (request.node != gone) continue;
        lost.emplace_back(
            request.generation,
            unavailable("attention node {} at {} has left the cluster", gone.name, gone.address));
      }
    }
    for (const NodeDirectory::Node& node : impl_->directory.nodes()) {
      if (impl_->stubs.contains(node)) continue;
      const auto channel = control::make_channel(impl_->options.security, node.address);
      VOLLEY_CHECK(channel.ok());  // The directory keeps no node without an address.
      impl_->stubs[node] = v1::AttentionNode::NewStub(*channel);
    }
  }
  for (const auto& [generation, status] : lost) generation->node_left(status);
  impl_->tell_serving();
}

std::string InferenceService::not_serving_reason() const {
  return impl_->not_serving_reason();
}

void InferenceService::on_serving_changed(std::function<void(bool serving)> callback) {
  {
    const std::lock_guard lock(impl_->serving_mutex);
    impl_->serving_changed = std::move(callback);
  }
  impl_->tell_serving();
}

FrontendStats InferenceService::stats() const {
  const std::lock_guard lock(impl_->mutex);
  FrontendStats stats = impl_->stats;
  stats.in_flight = impl_->admission.in_flight();
  stats.waiting = impl_->admission.waiting();
  return stats;
}

void InferenceService::close() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->closed = true;
  }
  impl_->tell_serving();
}

bool InferenceService::wait_idle(Nanos timeout) {
  std::unique_lock lock(impl_->mutex);
  return impl_->idle.wait_for(lock, std::chrono::nanoseconds(timeout),
                              [&] { return impl_->requests.empty(); });
}

void InferenceService::cancel_all(const std::string& why) {
  std::vector<std::shared_ptr<Generation>> all;
  {
    const std::lock_guard lock(impl_->mutex);
    for (const auto& [id, request] : impl_->requests) all.push_back(request.generation);
  }
  for (const auto& generation : all) generation->stop(unavailable("{}", why));
}

}  // namespace volley::frontend
