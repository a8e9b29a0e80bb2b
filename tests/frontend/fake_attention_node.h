#pragma once

// An attention node without a model: a gRPC server whose Run does what the test says.

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "volley/base/ids.h"
#include "volley/control/credentials.h"
#include "volley/control/grpc_status.h"
#include "volley/v1/node.grpc.pb.h"

namespace volley::frontend {

class FakeAttentionNode final : public v1::AttentionNode::CallbackService {
 public:
  /// What one run does: sends the chunks in order, `pause` before each, and ends with the status;
  /// or hangs after the chunks until it is cancelled.
  struct Script {
    std::vector<v1::RunChunk> chunks;
    Status end;
    Nanos pause = 0;
    bool hang = false;
  };
  using Author = std::function<Script(const v1::RunRequest&)>;

  explicit FakeAttentionNode(Author author) : author_(std::move(author)) {
    grpc::ServerBuilder builder;
    control::apply_server_defaults(builder);
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeAttentionNode() override {
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
  }

  int port() const { return port_; }
  int runs() const { return runs_; }
  int runs_active() const { return active_; }
  int runs_cancelled() const { return cancelled_; }
  int chunks_written() const { return written_; }
  v1::RunRequest last_request() const {
    const std::lock_guard lock(mutex_);
    return last_request_;
  }

  grpc::ServerWriteReactor<v1::RunChunk>* Run(grpc::CallbackServerContext*,
                                              const v1::RunRequest* request) override {
    {
      const std::lock_guard lock(mutex_);
      last_request_ = *request;
    }
    ++runs_;
    ++active_;
    return new Reactor(this, author_(*request));
  }

 private:
  class Reactor final : public grpc::ServerWriteReactor<v1::RunChunk> {
   public:
    Reactor(FakeAttentionNode* node, Script script) : node_(node), script_(std::move(script)) {
      const std::lock_guard lock(mutex_);
      advance();
    }
    void OnWriteDone(bool ok) override {
      const std::lock_guard lock(mutex_);
      if (ok) ++node_->written_;
      writing_ = false;
      advance();
    }
    void OnCancel() override {
      const std::lock_guard lock(mutex_);
      ++node_->cancelled_;
      cancelled_ = true;
      alarm_.Cancel();
      advance();
    }
    void OnDone() override {
      {
        const std::lock_guard lock(mutex_);
        gone_ = true;
        if (pausing_) return;  // The alarm is still to come; it deletes.
      }
      --node_->active_;
      delete this;
    }

   private:
    void advance() {
      if (writing_ || pausing_ || finished_) return;
      if (cancelled_) {
        finished_ = true;
        Finish(grpc::Status::CANCELLED);
      } else if (next_ < script_.chunks.size()) {
        if (script_.pause > 0 && !std::exchange(paused_, true)) return pause();
        paused_ = false;
        writing_ = true;
        StartWrite(&script_.chunks[next_++]);
      } else if (!script_.hang) {
        finished_ = true;
        Finish(control::to_grpc(script_.end));
      }
    }
    void pause() {
      pausing_ = true;
      alarm_.Set(gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                              gpr_time_from_nanos(script_.pause, GPR_TIMESPAN)),
                 [this](bool) {
                   bool gone = false;
                   {
                     const std::lock_guard lock(mutex_);
                     pausing_ = false;
                     gone = gone_;
                     if (!gone) advance();
                   }
                   if (gone) {
                     --node_->active_;
                     delete this;
                   }
                 });
    }

    FakeAttentionNode* const node_;
    Script script_;
    std::mutex mutex_;
    grpc::Alarm alarm_;
    size_t next_ = 0;
    bool writing_ = false, pausing_ = false, paused_ = false;
    bool cancelled_ = false, finished_ = false, gone_ = false;
  };

  const Author author_;
  std::atomic<int> runs_ = 0, active_ = 0, cancelled_ = 0, written_ = 0;
  mutable std::mutex mutex_;
  v1::RunRequest last_request_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

/// One chunk per byte of `text`, in the test tokenizer's ids, and then the end.
inline FakeAttentionNode::Script say(const std::string& text,
                                     v1::FinishReason finish = v1::FINISH_REASON_STOP) {
  FakeAttentionNode::Script script;
  const auto add = [&](int32_t id) {
    v1::RunChunk& chunk = script.chunks.emplace_back();
    chunk.add_token_ids(id);
    chunk.add_logits_digests(static_cast<uint64_t>(id) + 1000);
    chunk.add_logprobs(-0.5f);
  };
  for (const char byte : text) add(static_cast<uint8_t>(byte));
  if (finish == v1::FINISH_REASON_STOP) add(256);
  script.chunks.back().set_finish_reason(finish);
  return script;
}

inline FakeAttentionNode::Script say_and_hang(const std::string& text) {
  FakeAttentionNode::Script script = say(text, v1::FINISH_REASON_UNSPECIFIED);
  script.hang = true;
  return script;
}

}  // namespace volley::frontend
