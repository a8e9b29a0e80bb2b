#include "colocation.h"

#include "volley/config/cluster_config.h"
#include "volley/daemon/role.h"

namespace volley::daemon {

std::shared_ptr<ThreadPool> Colocation::pool() {
  const std::lock_guard lock(mutex_);
  if (!pool_) pool_ = std::make_shared<ThreadPool>(threads_, cores_);
  return pool_;
}

void Colocation::add(engine::AttentionEngine& engine) {
  const std::lock_guard lock(mutex_);
  attention_ = &engine;
  start_if_complete();
}

void Colocation::add(engine::ExpertEngine& engine) {
  const std::lock_guard lock(mutex_);
  expert_ = &engine;
  start_if_complete();
}

void Colocation::start_if_complete() {
  if (attention_ == nullptr || expert_ == nullptr) return;
  thread_ = std::jthread(
      [attention = attention_, expert = expert_] { engine::run_colocated(*attention, *expert); });
}

void Colocation::join() {
  const std::lock_guard lock(mutex_);
  if (thread_.joinable()) thread_.join();
}

void Colocation::stop() {
  const std::lock_guard lock(mutex_);
  if (!thread_.joinable()) return;
  attention_->stop(0);
  expert_->stop(0);
  thread_.join();
}

std::shared_ptr<Colocation> make_colocation(const config::ClusterConfig& config) {
  if (config.attention.nodes.size() != 1 || config.expert.nodes.size() != 1) return nullptr;
  const config::AttentionNodeConfig& attention = config.attention.nodes.front();
  const config::ExpertNodeConfig& expert = config.expert.nodes.front();
  const bool by_attention = attention.threads > expert.threads ||
                            (attention.threads == expert.threads && !attention.cores.empty());
  return by_attention ? std::make_shared<Colocation>(attention.threads, attention.cores)
                      : std::make_shared<Colocation>(expert.threads, expert.cores);
}

}  // namespace volley::daemon
