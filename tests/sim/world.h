#pragma once

// Virtual time: one queue of events, one seed, one hash over all that happens.

#include <cstdint>
#include <functional>
#include <queue>
#include <string>
#include <vector>

#include "volley/base/ids.h"
#include "volley/base/random.h"

namespace volley::sim {

constexpr uint64_t mix(uint64_t a, uint64_t b) {
  uint64_t x = a * 0x9e3779b97f4a7c15ULL ^ (b + 0x7f4a7c159e3779b9ULL + (a << 6) + (a >> 2));
  x ^= x >> 31;
  x *= 0xbf58476d1ce4e5b9ULL;
  return x ^ (x >> 29);
}

class World {
 public:
  explicit World(uint64_t seed) : random_(seed) {}

  Nanos now() const { return now_; }
  SplitMix64& random() { return random_; }
  /// Uniform in [low, high].
  Nanos between(Nanos low, Nanos high) {
    return low + static_cast<Nanos>(random_.below(static_cast<uint64_t>(high - low + 1)));
  }

  void after(Nanos delay, std::function<void()> action) {
    events_.push({now_ + delay, ++order_, std::move(action)});
  }
  /// Runs the next event, if it is due by `until`; else time stops there.
  bool step(Nanos until) {
    if (events_.empty() || events_.top().at > until) {
      now_ = until;
      return false;
    }
    const Event event = events_.top();
    events_.pop();
    now_ = event.at;
    ++executed_;
    event.action();
    return true;
  }

  /// Makes the fact part of the event hash.
  void note(uint64_t what, uint64_t a = 0, uint64_t b = 0) {
    hash_ = mix(mix(mix(mix(hash_, static_cast<uint64_t>(now_)), what), a), b);
  }
  uint64_t hash() const { return hash_; }
  uint64_t executed() const { return executed_; }

 private:
  struct Event {
    Nanos at;
    uint64_t order;
    std::function<void()> action;
    bool operator<(const Event& other) const {  // std::priority_queue gives the largest first.
      return at != other.at ? at > other.at : order > other.order;
    }
  };
  Nanos now_ = 0;
  uint64_t order_ = 0, executed_ = 0, hash_ = 0;
  SplitMix64 random_;
  std::priority_queue<Event> events_;
};

}  // namespace volley::sim
