#pragma once

// A client of the public API for the end-to-end tests: streams that run at the same time.

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "volley/v1/inference.grpc.pb.h"

namespace volley::e2e {

/// A seeded request at temperature 1 with `prompt_tokens` token ids, that asks for digests and goes
/// on after end-of-sequence tokens.
v1::GenerateRequest seeded_request(uint64_t seed, uint32_t prompt_tokens, uint32_t max_new_tokens);

/// One streamed generation, read on a thread of its own.
class Stream {
 public:
  Stream(v1::Inference::Stub& stub, const v1::GenerateRequest& request,
         std::chrono::milliseconds deadline = std::chrono::seconds(60));
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  /// Cancels what still runs.
  ~Stream();

  void cancel() { context_.TryCancel(); }
  /// Waits for so many tokens; false when the stream ended before, or they did not come in time.
  bool wait_tokens(size_t count, std::chrono::milliseconds timeout = std::chrono::seconds(20));
  /// False: it still runs after `timeout`.
  bool wait_end(std::chrono::milliseconds timeout = std::chrono::seconds(30));
  /// The node that serves; known once a token has come.
  std::string attention_node();

  // Stable once wait_end() has returned true.
  std::vector<int32_t> tokens;
  std::vector<uint64_t> digests;
  std::vector<std::string> texts;  ///< Of each chunk.
  v1::GenerateChunk last;
  grpc::Status status;
  std::chrono::steady_clock::time_point ended_at;

 private:
  void run(v1::Inference::Stub& stub, const v1::GenerateRequest& request);

  grpc::ClientContext context_;
  std::mutex mutex_;  // Guards the results while the thread runs.
  std::condition_variable changed_;
  std::string node_;
  bool ended_ = false;
  std::jthread thread_;  // Last: it uses everything above.
};

}  // namespace volley::e2e
