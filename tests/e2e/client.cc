#include "e2e/client.h"

namespace volley::e2e {

v1::GenerateRequest seeded_request(uint64_t seed, uint32_t prompt_tokens, uint32_t max_new_tokens) {
  constexpr uint64_t kFirstId = 3, kIds = 190;  // Ordinary tokens of every model of these tests.
  v1::GenerateRequest request;
  for (uint64_t i = 0; i < prompt_tokens; ++i) {
    request.mutable_token_ids()->add_ids(
        static_cast<int32_t>(kFirstId + (seed * 31 + i * 17) % kIds));
  }
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_seed(seed);
  request.set_max_new_tokens(max_new_tokens);
  request.set_ignore_eos(true);
  request.set_return_logits_digests(true);
  return request;
}

Stream::Stream(v1::Inference::Stub& stub, const v1::GenerateRequest& request,
               std::chrono::milliseconds deadline) {
  context_.set_deadline(std::chrono::system_clock::now() + deadline);
  thread_ = std::jthread([this, &stub, request] { run(stub, request); });
}

Stream::~Stream() {
  cancel();
}

void Stream::run(v1::Inference::Stub& stub, const v1::GenerateRequest& request) {
  const auto reader = stub.GenerateStream(&context_, request);
  v1::GenerateChunk chunk;
  while (reader->Read(&chunk)) {
    const std::lock_guard lock(mutex_);
    tokens.insert(tokens.end(), chunk.token_ids().begin(), chunk.token_ids().end());
    digests.insert(digests.end(), chunk.logits_digests().begin(), chunk.logits_digests().end());
    texts.push_back(chunk.text());
    if (!chunk.attention_node().empty()) node_ = chunk.attention_node();
    last = chunk;
    changed_.notify_all();
  }
  const grpc::Status end = reader->Finish();
  const std::lock_guard lock(mutex_);
  status = end;
  ended_at = std::chrono::steady_clock::now();
  ended_ = true;
  changed_.notify_all();
}

bool Stream::wait_tokens(size_t count, std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout, [&] { return ended_ || tokens.size() >= count; });
  return tokens.size() >= count;
}

bool Stream::wait_end(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, timeout, [&] { return ended_; });
}

std::string Stream::attention_node() {
  const std::lock_guard lock(mutex_);
  return node_;
}

}  // namespace volley::e2e
