#pragma once

#include <cstddef>
#include <mutex>
#include <utility>
#include <vector>

namespace volley {

/// A bounded queue from any thread to one: producers push, the consumer takes everything at once.
/// For commands, which are rare next to the messages of the data plane. Both sides keep their
/// memory.
template <class T>
class Mailbox {
 public:
  explicit Mailbox(size_t capacity) : capacity_(capacity) {
    items_.reserve(capacity < 64 ? capacity : 64);
  }

  enum class Push { kOk, kFull, kClosed };
  /// `item` is unchanged unless the answer is kOk.
  [[nodiscard]] Push push(T&& item) {
    const std::lock_guard lock(mutex_);
    if (closed_) return Push::kClosed;
    if (items_.size() >= capacity_) return Push::kFull;
    items_.push_back(std::move(item));
    return Push::kOk;
  }

  /// From now on nothing is taken in; what was stays for take_all().
  void close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }

  /// Replaces the content of `out` with everything pushed since the last call, in order.
  void take_all(std::vector<T>& out) {
    out.clear();
    const std::lock_guard lock(mutex_);
    items_.swap(out);
  }

 private:
  const size_t capacity_;
  std::mutex mutex_;
  std::vector<T> items_;  // Guarded by mutex_, as is closed_.
  bool closed_ = false;
};

}  // namespace volley
