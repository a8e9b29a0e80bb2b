#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

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
  /// `thread_count` counts the calling thread; at least 1.
  explicit ThreadPool(uint32_t thread_count);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  uint32_t thread_count() const { return thread_count_; }

  /// Calls `function(tile)` once for each tile in [0, tile_count), in any order and on any thread
  /// of the pool, and returns when all calls have returned. The work split never changes results: a
  /// tile is the unit of arithmetic, and tiles do not depend on the number of threads.
  void parallel_for(uint32_t tile_count, TileFunction function);

 private:
  struct Shared;
  uint32_t thread_count_;
  std::unique_ptr<Shared> shared_;
};

}  // namespace volley
