#include "colocation.h"

#include "volley/config/cluster_config.h"
#include "volley/daemon/role.h"

namespace volley::daemon {

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
  const bool attention_has_more = attention.threads >= expert.threads;
  return std::make_shared<Colocation>(
      attention_has_more ? std::make_shared<ThreadPool>(attention.threads, attention.cores)
                         : std::make_shared<ThreadPool>(expert.threads, expert.cores));
}

}  // namespace volley::daemon
