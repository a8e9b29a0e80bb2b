#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>

#include "volley/base/status.h"

namespace volley {

/// A borrowed callable `void(uint32_t)`: no allocation, valid while the callable lives.
class TileFunction {
 public:
  template <class F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, TileFunction>) TileFunction(
      F&& function)  // NOLINT(google-explicit-constructor): it reads as a parameter type.
      : object_(const_cast<void*>(static_cast<const void*>(&function))),
        call_([](void* object, uint32_t tile) {
          (*static_cast<std::remove_reference_t<F>*>(object))(tile);
        }) {}
  void operator()(uint32_t tile) const { call_(object_, tile); }

 private:
  void* object_;
  void (*call_)(void*, uint32_t);
};

/// The compute threads of one node. `parallel_for` is called by one thread at a time, the node's
/// engine thread, which works along; a pool of one thread runs everything inline and starts no
/// thread. Idle workers spin briefly and then sleep. Nothing is allocated after construction.
class ThreadPool {
 public:
  /// `thread_count` counts the calling thread; at least 1. With `cores`, of which there must be one
  /// for each thread, worker i runs on cores[i] only, and cores[0] is for the caller. A core that
  /// pin_this_thread() refuses is not pinned to.
  explicit ThreadPool(uint32_t thread_count, std::span<const uint32_t> cores = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  uint32_t thread_count() const { return thread_count_; }

  /// Pins the calling thread, the one that will call parallel_for, to the first core; does nothing
  /// in a pool without cores. Errors: as pin_this_thread.
  Status pin_caller() const;

  /// Calls `function(tile)` once for each tile in [0, tile_count), in any order and on any thread
  /// of the pool, and returns when all calls have returned. Each thread begins with a run of
  /// neighbouring tiles, the caller with the first. The work split never changes results: a tile is
  /// the unit of arithmetic, and tiles do not depend on the number of threads.
  void parallel_for(uint32_t tile_count, TileFunction function);

 private:
  struct Shared;
  uint32_t thread_count_;
  std::unique_ptr<Shared> shared_;
};

}  // namespace volley
