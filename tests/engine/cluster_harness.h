#pragma once

// A whole data plane in one process: attention and expert engines on their own threads, over any
// fabric, without gRPC. The tests drive it as the daemons would.

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "volley/engine/attention_engine.h"
#include "volley/engine/expert_engine.h"
#include "volley/model/weights.h"
#include "volley/transport/fabric.h"
#include "volley/transport/pulse_thread.h"

namespace volley::engine {

struct HarnessOptions {
  std::string fabric = "local";
  uint32_t attention_nodes = 1;
  uint32_t expert_nodes = 1;
  uint32_t micro_batches = 2;
  bool adaptive_micro_batches = false;
  uint32_t tokens_per_step_max = 64;
  uint32_t slot_rows = 64;
  uint32_t sequences_max = 64;
  uint32_t sequence_tokens_max = 256;
  uint32_t kv_blocks = 0;
  uint32_t threads = 1;
  kernels::DType dtype = kernels::DType::kBf16;
  bool fp8_dispatch = false;
  protocol::Combine combine = protocol::Combine::kExact;
  std::string isa = "auto";
  const kernels::CpuKernels* kernels = nullptr;  ///< In place of those of `isa`.
  Nanos link_timeout = 5 * kSecond;
  size_t trace_capacity = 0;
  bool replicated = false;                    ///< Every expert node holds every expert.
  std::optional<ModelledCompute> modelled{};  ///< In place of kernels and weights.
  /// Wraps every node's fabric, for example with the fault decorator.
  std::function<std::unique_ptr<transport::Fabric>(std::unique_ptr<transport::Fabric>)> decorate{};
};

/// What came out of one sequence.
class Stream : public OutputSink {
 public:
  void on_output(const scheduler::SequenceOutput& output) override;
  /// Blocks until the sequence has ended; false after ten seconds.
  bool wait();

  // Stable once wait() has returned true.
  std::vector<int32_t> tokens;
  std::vector<uint64_t> digests;
  std::vector<float> logprobs;
  scheduler::FinishReason finish = scheduler::FinishReason::kNone;
  Status status;
  /// Called on the engine thread with the number of tokens so far; set before submitting.
  std::function<void(size_t)> on_token;
  uint32_t ends = 0;

 private:
  std::mutex mutex_;
  std::condition_variable ended_;
  bool done_ = false;
};

class ClusterHarness {
 public:
  /// Aborts on errors: a harness that cannot start is a failed test.
  ClusterHarness(const HarnessOptions& options, const model::Checkpoint& checkpoint);
  ~ClusterHarness();

  AttentionEngine& attention(uint32_t index) { return *attention_[index].engine; }
  ExpertEngine& expert(uint32_t index) { return *experts_[index].engine; }
  /// Submits to an attention node; the sink's last output tells what went wrong.
  SequenceId submit(uint32_t node, GenerationRequest request, OutputSink& sink);
  /// Stops an expert node as abruptly as a process can stop another thread: its links fail.
  void kill_expert(uint32_t index);
  void wait_ready();
  /// Ends the engines' threads: from then on the engines' traces may be taken.
  void stop();

 private:
  template <class Engine>
  struct Node {
    std::unique_ptr<Engine> engine;
    std::unique_ptr<transport::PulseThread> pulse;
    std::jthread thread;
  };
  std::vector<Node<ExpertEngine>> experts_;
  std::vector<Node<AttentionEngine>> attention_;
};

/// `count` requests of seeded random prompts with 1 to `prompt_max` tokens, temperature 1.
std::vector<GenerationRequest> random_requests(uint64_t seed, uint32_t count, uint32_t vocab,
                                               uint32_t prompt_max, uint32_t new_tokens);

/// The dummy-weight model of tests/data/models/random-moe.
model::Checkpoint random_moe();
/// That of tests/data/models/random-qwen3-moe: heads are normalised. The same vocabulary.
model::Checkpoint random_qwen3_moe();

}  // namespace volley::engine
