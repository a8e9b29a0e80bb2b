#pragma once

#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "volley/base/thread_pool.h"
#include "volley/engine/colocated.h"

namespace volley::daemon {

/// What the one attention and the one expert node of a process share: the threads that compute, and
/// the engine thread. All methods may be called from any thread.
class Colocation {
 public:
  Colocation(uint32_t threads, std::vector<uint32_t> cores)
      : threads_(threads), cores_(std::move(cores)) {}

  /// Made by the first call, not before: threads inherit the mask of signals, which
  /// run_until_stopped() sets before it starts a role.
  std::shared_ptr<ThreadPool> pool();

  /// The engine thread starts when both engines are there. They must live until join() or stop()
  /// has returned.
  void add(engine::AttentionEngine& engine);
  void add(engine::ExpertEngine& engine);
  /// Returns when both engines have stopped, or at once if the thread never started.
  void join();
  /// Stops both at once.
  void stop();

 private:
  void start_if_complete();

  const uint32_t threads_;
  const std::vector<uint32_t> cores_;
  std::mutex mutex_;  // Guards all below.
  std::shared_ptr<ThreadPool> pool_;
  engine::AttentionEngine* attention_ = nullptr;
  engine::ExpertEngine* expert_ = nullptr;
  std::jthread thread_;
};

}  // namespace volley::daemon
