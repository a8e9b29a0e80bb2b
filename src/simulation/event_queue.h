#pragma once

#include <cstdint>
#include <vector>

#include "volley/base/ids.h"

namespace volley::simulation {

/// What happens, to whom. Plain data: an event costs no allocation and no indirect call.
struct Event {
  enum class Kind : uint8_t {
    kDispatchArrives,  ///< `a`: link, `b`: slot. The first byte is at the receiver's NIC.
    kAnswerArrives,    ///< Likewise.
    kAttentionDone,    ///< `a`: attention node. Its computation ends.
    kExpertDone,       ///< `a`: expert node.
    kAttentionWakes,   ///< `a`: attention node.
    kExpertWakes,      ///< `a`: expert node.
    kRequest,          ///< The next open-loop arrival.
    kClient,           ///< `a`: client. It asks again.
    kChange,           ///< `a`: index of the change.
    kNoticed,          ///< `a`: index of the change: peers and controller know of it.
    kMapArrives,       ///< `a`: attention node.
    kDrift,
    kWarm,  ///< The warm-up is over.
  };

  Nanos at = 0;
  uint64_t key =
      0;  ///< Order of pushing << 8 | kind: events of one time are handled in that order.
  uint32_t a = 0;
  uint32_t b = 0;

  Kind kind() const { return static_cast<Kind>(key & 0xff); }
  bool before(const Event& other) const { return at != other.at ? at < other.at : key < other.key; }
};

/// A heap with four children per node: fewer cache misses than a binary one.
class EventQueue {
 public:
  void push(Nanos at, Event::Kind kind, uint32_t a = 0, uint32_t b = 0) {
    const Event event{
        .at = at, .key = ++pushed_ << 8 | static_cast<uint64_t>(kind), .a = a, .b = b};
    size_t hole = heap_.size();
    heap_.push_back(event);
    while (hole > 0) {
      const size_t parent = (hole - 1) / 4;
      if (!event.before(heap_[parent])) break;
      heap_[hole] = heap_[parent];
      hole = parent;
    }
    heap_[hole] = event;
  }

  bool empty() const { return heap_.empty(); }
  const Event& top() const { return heap_.front(); }

  Event pop() {
    const Event first = heap_.front();
    const Event last = heap_.back();
    heap_.pop_back();
    const size_t size = heap_.size();
    if (size == 0) return first;
    size_t hole = 0;
    while (true) {
      const size_t child = 4 * hole + 1;
      if (child >= size) break;
      size_t least = child;
      const size_t end = child + 4 < size ? child + 4 : size;
      for (size_t each = child + 1; each < end; ++each) {
        if (heap_[each].before(heap_[least])) least = each;
      }
      if (!heap_[least].before(last)) break;
      heap_[hole] = heap_[least];
      hole = least;
    }
    heap_[hole] = last;
    return first;
  }

  uint64_t pushed() const { return pushed_; }

 private:
  std::vector<Event> heap_;
  uint64_t pushed_ = 0;
};

}  // namespace volley::simulation
