#pragma once

#include "volley/bench/m2n_system.h"

namespace volley::benchmarks {

/// A send and a receive buffer for every link and slot of a peer, touched beforehand, aligned to
/// pages like Volley's slots.
class MessageBuffers {
 public:
  static Result<MessageBuffers> create(const bench::M2nRun& run, uint32_t peer);

  uint32_t link_count() const { return links_; }
  uint32_t slot_count() const { return slots_; }
  uint32_t index(uint32_t link, uint32_t slot) const { return link * slots_ + slot; }
  size_t receive_bytes() const { return receive_bytes_; }
  std::byte* send(uint32_t link, uint32_t slot) {
    return memory_.bytes().data() + index(link, slot) * stride_;
  }
  std::byte* receive(uint32_t link, uint32_t slot) {
    return memory_.bytes().data() + (links_ * slots_ + index(link, slot)) * stride_;
  }

 private:
  MessageBuffers() = default;

  uint32_t links_ = 0, slots_ = 0;
  size_t receive_bytes_ = 0, stride_ = 0;
  Mapping memory_;
};

}  // namespace volley::benchmarks
