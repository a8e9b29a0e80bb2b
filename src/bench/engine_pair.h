#pragma once

// One attention and one expert engine of this process, each on threads of its own, over a real
// fabric, with one micro-batch.

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "volley/engine/attention_engine.h"
#include "volley/engine/expert_engine.h"
#include "volley/model/weights.h"
#include "volley/transport/pulse_thread.h"

namespace volley::bench {

struct EnginePairOptions {
  std::string fabric = "shm";
  std::string isa = "auto";
  kernels::DType dtype = kernels::DType::kBf16;
  uint32_t threads = 1;
  std::vector<uint32_t> attention_cores, expert_cores;
  uint32_t rows_max = 64;
};

class EnginePair {
 public:
  static constexpr uint32_t kPromptTokens = 8;

  /// Loads the weights and waits until the nodes are linked. Errors: those of the parts,
  /// kDeadlineExceeded.
  static Result<std::unique_ptr<EnginePair>> start(const model::Checkpoint& checkpoint,
                                                   const EnginePairOptions& options);
  ~EnginePair();

  /// Decodes `rows` sequences together, `tokens` each, and waits for their end.
  Status decode(uint32_t rows, uint32_t tokens, Nanos deadline);

  engine::AttentionStatus attention() const { return attention_->status(); }
  engine::ExpertStatus expert() const { return expert_->status(); }

 private:
  EnginePair() = default;

  uint32_t vocab_ = 0;
  std::unique_ptr<engine::ExpertEngine> expert_;
  std::unique_ptr<engine::AttentionEngine> attention_;
  std::unique_ptr<transport::PulseThread> pulse_;
  std::jthread expert_thread_, attention_thread_;
};

}  // namespace volley::bench
