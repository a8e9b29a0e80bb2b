#pragma once

#include <infiniband/verbs.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

#include "plan.h"
#include "rendezvous.h"

namespace raw_verbs {

/// So many writes in a row may be unsignalled.
inline constexpr uint32_t kUnsignalledMax = 32;

/// One reliable connection: a device, a queue pair, one completion queue, an area to send from and
/// an area that the peer writes to, both of `slots` slots. Every error ends the program. One
/// thread.
class Endpoint {
 public:
  Endpoint(const EndpointOptions& options, Area area);

  static void require_device(const std::string& name) { open_device(name); }

  /// Connects the queue pair to that of the peer; when it returns, both sides can receive.
  void connect(Rendezvous& peer);

  /// A message: RDMA WRITE WITH IMMEDIATE of `bytes` bytes of the same slot here and there. Without
  /// `signalled` its completion is not counted, but a later signalled one covers it.
  void write(size_t slot, size_t bytes, uint32_t immediate, bool signalled);
  /// What arrived: the immediate and the length. Posts a receive in its place.
  struct Arrival {
    uint32_t immediate = 0;
    size_t bytes = 0;
  };
  Arrival wait_arrival();
  /// One signalled write has been acknowledged by the peer's device.
  void wait_written();

  uint8_t* outgoing(size_t slot) { return outgoing_.get() + slot * area_.slot_bytes; }
  const uint8_t* incoming(size_t slot) const { return incoming_.get() + slot * area_.slot_bytes; }
  uint32_t mtu_bytes() const { return 128u << attributes_.active_mtu; }
  uint32_t inline_bytes_max() const { return inline_bytes_max_; }

 private:
  struct Free {
    void operator()(ibv_context* c) const { ibv_close_device(c); }
    void operator()(ibv_pd* p) const { ibv_dealloc_pd(p); }
    void operator()(ibv_comp_channel* c) const { ibv_destroy_comp_channel(c); }
    void operator()(ibv_cq* c) const { ibv_destroy_cq(c); }
    void operator()(ibv_mr* m) const { ibv_dereg_mr(m); }
    void operator()(ibv_qp* q) const { ibv_destroy_qp(q); }
    void operator()(uint8_t* bytes) const { std::free(bytes); }
  };
  template <class T>
  using Owned = std::unique_ptr<T, Free>;

  static Owned<ibv_context> open_device(const std::string& name);
  static Owned<uint8_t> allocate(size_t bytes);
  void make_queue_pair();
  void post_receive();
  void take_completion();
  void wait_for_work(uint32_t looks);

  EndpointOptions options_;
  Area area_;
  // In the order in which they depend on each other; destroyed in the reverse order.
  Owned<ibv_context> context_;
  ibv_port_attr attributes_{};
  Owned<ibv_pd> domain_;
  Owned<ibv_comp_channel> channel_;
  Owned<ibv_cq> completions_;
  Owned<uint8_t> outgoing_, incoming_;
  Owned<ibv_mr> outgoing_region_, incoming_region_;
  Owned<ibv_qp> queue_pair_;
  uint32_t inline_bytes_max_ = 0;
  uint64_t remote_address_ = 0;
  uint32_t remote_key_ = 0;

  // An arrival may come before the completion of an own write and the other way round.
  size_t written_ = 0;
  std::unique_ptr<Arrival[]> arrivals_;
  size_t arrivals_begin_ = 0, arrivals_end_ = 0;
};

}  // namespace raw_verbs
