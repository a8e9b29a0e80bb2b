#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "volley/base/ids.h"
#include "volley/base/status.h"
#include "volley/frontend/admission.h"
#include "volley/frontend/node_directory.h"
#include "volley/frontend/request.h"
#include "volley/v1/node.grpc.pb.h"

namespace volley::frontend {

class Generation;
class RunCall;

/// The service, as its requests see it. Called without the request's lock.
class GenerationOwner {
 public:
  virtual ~GenerationOwner() = default;
  /// Takes the request out of the queue if it still waits there: it will not be run.
  virtual void withdraw(RequestId id) = 0;
  /// The node could not be reached, or went away.
  virtual void node_failed(const NodeDirectory::Node& node) = 0;
  /// Both calls have ended; the last thing that a request says.
  virtual void ended(RequestId id, const Status& status) = 0;
};

/// The call from the client, streaming or unary. Called with the request's lock held.
class ClientCall {
 public:
  virtual ~ClientCall() = default;
  /// True when the chunk is under way and Generation::on_written() will follow; false when it was
  /// taken at once.
  virtual bool write(v1::GenerateChunk chunk) = 0;
  virtual void finish(const Status& status) = 0;
  /// Cuts a client off that does not read.
  virtual void cut_off() = 0;
};

/// One request: joins the call from the client with the call to the attention node, until both have
/// ended.
///
/// Thread: any; a mutex of its own. Lives as long as the calls and the service refer to it.
/// Memory: at most `chunks_waiting_max` chunks.
class Generation final : public std::enable_shared_from_this<Generation> {
 public:
  struct Options {
    RequestId id;
    PreparedRequest request;
    /// Owners: the service and the requests that decode with it.
    std::shared_ptr<const model::Tokenizer> tokenizer;
    gpr_timespec deadline;  ///< GPR_CLOCK_MONOTONIC
    uint32_t chunks_waiting_max = 1;
  };
  Generation(GenerationOwner& owner, Options options, ClientCall* client);

  RequestId id() const { return options_.id; }

  /// Arms the deadline. Once, before anything else.
  void arm_deadline();
  /// Runs it on the node. Nothing happens when it has been stopped in the meantime.
  void run(const NodeDirectory::Node& node, std::shared_ptr<v1::AttentionNode::Stub> stub);
  /// Ends it with `cause`, wherever it is. Only the first cause counts.
  void stop(const Status& cause);
  /// Its node is no longer a member of the cluster: ends it with `cause`, unless its last chunks come
  /// in a moment. Once.
  void node_left(const Status& cause);

  // From the client's call.
  void on_written(bool ok);
  void on_client_gone();
  void on_client_done();

  // From the call to the attention node.
  void on_chunk(const v1::RunChunk* chunk);  ///< Null: no more come.
  void on_run_done(const Status& status);

 private:
  void on_deadline();
  void on_cut_off();
  v1::GenerateChunk translate(const v1::RunChunk& chunk);
  void pump();
  void cancel_run();
  Status run_result(const Status& status) const;
  bool deadline_passed() const;
  void tell_if_ended(std::unique_lock<std::mutex> lock);

  GenerationOwner& owner_;
  const Options options_;
  std::mutex mutex_;  // Guards all below.
  grpc::Alarm deadline_alarm_;
  grpc::Alarm cut_off_alarm_;
  grpc::Alarm left_alarm_;
  ClientCall* client_;  // Valid until on_client_done().
  std::optional<NodeDirectory::Node> node_;
  RunCall* run_ = nullptr;  // Valid until on_run_done().
  std::deque<v1::GenerateChunk> chunks_;
  model::StreamDecoder decoder_;
  std::optional<Status> cause_;  // Why it was stopped from our side.
  std::optional<Status> end_;    // What the client is told.
  uint32_t completion_tokens_ = 0;
  bool first_chunk_ = true;
  bool last_chunk_seen_ = false;
  bool run_read_to_end_ = false;
  bool reading_ = false;
  bool writing_ = false;
  bool finished_ = false;
  bool client_done_ = false;
  bool client_lost_ = false;
  bool told_ended_ = false;
};

/// The call to the attention node. Deletes itself when gRPC is done with it.
class RunCall final : public grpc::ClientReadReactor<v1::RunChunk> {
 public:
  RunCall(std::shared_ptr<Generation> generation, std::shared_ptr<v1::AttentionNode::Stub> stub,
          const v1::RunRequest& request, gpr_timespec deadline);

  void start();
  void read() { StartRead(&chunk_); }
  void cancel() { context_.TryCancel(); }
  /// No further read will be started.
  void release();

  void OnReadDone(bool ok) override { generation_->on_chunk(ok ? &chunk_ : nullptr); }
  void OnDone(const grpc::Status& status) override;

 private:
  // Owners of the generation: its two calls and the service's table.
  const std::shared_ptr<Generation> generation_;
  // Owners of the stub: the service's table of nodes and the calls that run on it.
  const std::shared_ptr<v1::AttentionNode::Stub> stub_;
  const v1::RunRequest& request_;  // The generation's.
  grpc::ClientContext context_;
  v1::RunChunk chunk_;
  bool released_ = false;
};

}  // namespace volley::frontend
