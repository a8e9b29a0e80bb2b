#include "volley/base/thread_pool.h"

#include <atomic>
#include <thread>
#include <vector>

#include "volley/base/check.h"

namespace volley {
namespace {

// How often an idle thread polls before it sleeps: about 20 us on current cores, below the cost of
// a sleep and wake-up, and short enough that an idle node uses no measurable CPU.
constexpr int kSpinCount = 2'000;

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

struct ThreadPool::Shared {
  // One round of work: the caller stores the fields below and then increments `round` (release);
  // workers acquire it.
  alignas(64) std::atomic<uint32_t> round{0};
  alignas(64) std::atomic<uint32_t> next_tile{0};
  alignas(64) std::atomic<uint32_t> busy_workers{0};
  const TileFunction* function = nullptr;
  uint32_t tile_count = 0;
  std::atomic<bool> stop{false};
  std::vector<std::jthread> workers;

  void run_tiles() {
    while (true) {
      const uint32_t tile = next_tile.fetch_add(1, std::memory_order_relaxed);
      if (tile >= tile_count) return;
      (*function)(tile);
    }
  }

  void work() {
    uint32_t seen = 0;
    while (true) {
      for (int spin = 0; spin < kSpinCount && round.load(std::memory_order_acquire) == seen;
           ++spin) {
        pause_cpu();
      }
      round.wait(seen, std::memory_order_acquire);
      seen = round.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_relaxed)) return;
      run_tiles();
      // Release: the caller's acquire of zero sees every store that the tiles made.
      if (busy_workers.fetch_sub(1, std::memory_order_release) == 1) busy_workers.notify_one();
    }
  }
};

ThreadPool::ThreadPool(uint32_t thread_count)
    : thread_count_(thread_count), shared_(std::make_unique<Shared>()) {
  VOLLEY_CHECK(thread_count >= 1);
  for (uint32_t i = 1; i < thread_count; ++i) {
    shared_->workers.emplace_back([shared = shared_.get()] { shared->work(); });
  }
}

ThreadPool::~ThreadPool() {
  shared_->stop.store(true, std::memory_order_relaxed);
  shared_->round.fetch_add(1, std::memory_order_release);
  shared_->round.notify_all();
}

void ThreadPool::parallel_for(uint32_t tile_count, TileFunction function) {
  if (thread_count_ == 1 || tile_count <= 1) {
    for (uint32_t tile = 0; tile < tile_count; ++tile) function(tile);
    return;
  }
  shared_->function = &function;
  shared_->tile_count = tile_count;
  shared_->next_tile.store(0, std::memory_order_relaxed);
  shared_->busy_workers.store(thread_count_ - 1, std::memory_order_relaxed);
  shared_->round.fetch_add(1, std::memory_order_release);
  shared_->round.notify_all();
  shared_->run_tiles();
  for (int spin = 0; spin < kSpinCount; ++spin) {
    if (shared_->busy_workers.load(std::memory_order_acquire) == 0) return;
    pause_cpu();
  }
  for (uint32_t busy = shared_->busy_workers.load(std::memory_order_acquire); busy != 0;
       busy = shared_->busy_workers.load(std::memory_order_acquire)) {
    shared_->busy_workers.wait(busy, std::memory_order_acquire);
  }
}

}  // namespace volley
