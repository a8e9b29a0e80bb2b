#include "endpoint.h"

#include <arpa/inet.h>
#include <poll.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "fail.h"

namespace raw_verbs {
namespace {

using std::chrono::steady_clock;

constexpr size_t kPage = 4096;
constexpr uint32_t kLooksBetweenClocks = 1024;

// Far more than can be outstanding: a receiver whose process is not running for a moment must not
// answer "not ready", after which the sender waits for most of a millisecond.
size_t receives_for(size_t slots) {
  return 2 * slots + 512;
}

// Besides a window of writes, those that wait for the next signalled one.
size_t writes_for(size_t slots) {
  return 2 * slots + kUnsignalledMax;
}

/// What the other side must know of a queue pair.
struct Introduction {
  uint32_t queue_pair = 0;
  uint32_t packet_number = 0;
  uint32_t key = 0;
  uint32_t mtu = 0;
  uint64_t address = 0;
  ibv_gid gid{};
};

}  // namespace

Endpoint::Owned<ibv_context> Endpoint::open_device(const std::string& name) {
  int count = 0;
  ibv_device** devices = ibv_get_device_list(&count);
  if (devices == nullptr) fail("cannot list the RDMA devices: {}", std::strerror(errno));
  Owned<ibv_context> context;
  std::string names;
  for (int i = 0; i < count; ++i) {
    names += fmt::format(" {}", ibv_get_device_name(devices[i]));
    if (name == ibv_get_device_name(devices[i])) context.reset(ibv_open_device(devices[i]));
  }
  ibv_free_device_list(devices);
  if (!context) fail("cannot open the RDMA device '{}'; there are:{}", name, names);
  return context;
}

Endpoint::Owned<uint8_t> Endpoint::allocate(size_t bytes) {
  const size_t whole = (bytes + kPage - 1) / kPage * kPage;
  Owned<uint8_t> memory(static_cast<uint8_t*>(std::aligned_alloc(kPage, whole)));
  if (!memory) fail("no memory for {} bytes", whole);
  std::memset(memory.get(), 0, whole);
  return memory;
}

Endpoint::Endpoint(const EndpointOptions& options, Area area)
    : options_(options), area_(area), context_(open_device(options.device)) {
  if (ibv_query_port(context_.get(), static_cast<uint8_t>(options.port), &attributes_) != 0) {
    fail("{} has no port {}", options.device, options.port);
  }
  if (attributes_.state != IBV_PORT_ACTIVE) {
    fail("port {} of {} is {}, not active", options.port, options.device,
         ibv_port_state_str(attributes_.state));
  }
  domain_.reset(ibv_alloc_pd(context_.get()));
  channel_.reset(ibv_create_comp_channel(context_.get()));
  if (!domain_ || !channel_) fail("{}: {}", options.device, std::strerror(errno));
  // Every write and every receive may be complete at once.
  const size_t receives = receives_for(area.slots);
  const int depth = static_cast<int>(writes_for(area.slots) + receives);
  completions_.reset(ibv_create_cq(context_.get(), depth, nullptr, channel_.get(), 0));
  if (!completions_) fail("a completion queue of {} entries: {}", depth, std::strerror(errno));
  arrivals_ = std::make_unique<Arrival[]>(receives + 1);

  const size_t bytes = area.slots * area.slot_bytes;
  outgoing_ = allocate(bytes);
  incoming_ = allocate(bytes);
  outgoing_region_.reset(ibv_reg_mr(domain_.get(), outgoing_.get(), bytes, 0));
  incoming_region_.reset(ibv_reg_mr(domain_.get(), incoming_.get(), bytes,
                                    IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE));
  if (!outgoing_region_ || !incoming_region_) {
    fail("cannot register {} bytes: {} (see ulimit -l)", bytes, std::strerror(errno));
  }
  make_queue_pair();
}

void Endpoint::make_queue_pair() {
  ibv_qp_init_attr wanted{};
  wanted.send_cq = completions_.get();
  wanted.recv_cq = completions_.get();
  wanted.qp_type = IBV_QPT_RC;
  wanted.cap.max_send_wr = static_cast<uint32_t>(writes_for(area_.slots));
  wanted.cap.max_recv_wr = static_cast<uint32_t>(receives_for(area_.slots));
  wanted.cap.max_send_sge = 1;
  wanted.cap.max_recv_sge = 1;
  wanted.cap.max_inline_data = options_.inline_bytes_max;
  queue_pair_.reset(ibv_create_qp(domain_.get(), &wanted));
  if (!queue_pair_) fail("cannot make a queue pair: {}", std::strerror(errno));
  inline_bytes_max_ = std::min(options_.inline_bytes_max, wanted.cap.max_inline_data);

  ibv_qp_attr init{};
  init.qp_state = IBV_QPS_INIT;
  init.port_num = static_cast<uint8_t>(options_.port);
  init.qp_access_flags = IBV_ACCESS_REMOTE_WRITE;
  if (const int error =
          ibv_modify_qp(queue_pair_.get(), &init,
                        IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
      error != 0) {
    fail("the queue pair cannot go to INIT: {}", std::strerror(error));
  }
  for (size_t i = 0; i < receives_for(area_.slots); ++i) post_receive();
}

void Endpoint::connect(Rendezvous& peer) {
  Introduction mine;
  mine.queue_pair = queue_pair_->qp_num;
  mine.packet_number = (static_cast<uint32_t>(::getpid()) * 7919u) & 0xff'ffffu;
  mine.key = incoming_region_->rkey;
  mine.mtu = attributes_.active_mtu;
  mine.address = reinterpret_cast<uintptr_t>(incoming_.get());
  if (ibv_query_gid(context_.get(), static_cast<uint8_t>(options_.port),
                    static_cast<int>(options_.gid_index), &mine.gid) != 0) {
    fail("{} has no GID with index {}", options_.device, options_.gid_index);
  }
  const auto theirs = peer.swap(mine);
  remote_address_ = theirs.address;
  remote_key_ = theirs.key;

  ibv_qp_attr receive{};
  receive.qp_state = IBV_QPS_RTR;
  receive.path_mtu = static_cast<ibv_mtu>(std::min(mine.mtu, theirs.mtu));
  receive.dest_qp_num = theirs.queue_pair;
  receive.rq_psn = theirs.packet_number;
  receive.max_dest_rd_atomic = 1;
  receive.min_rnr_timer = 12;  // 0.64 ms
  receive.ah_attr.is_global = 1;
  receive.ah_attr.port_num = static_cast<uint8_t>(options_.port);
  receive.ah_attr.grh.dgid = theirs.gid;
  receive.ah_attr.grh.sgid_index = static_cast<uint8_t>(options_.gid_index);
  receive.ah_attr.grh.hop_limit = 64;
  if (const int error =
          ibv_modify_qp(queue_pair_.get(), &receive,
                        IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
                            IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
      error != 0) {
    fail("the queue pair cannot go to RTR: {}", std::strerror(error));
  }

  ibv_qp_attr send{};
  send.qp_state = IBV_QPS_RTS;
  send.timeout = static_cast<uint8_t>(options_.timeout_exponent);
  send.retry_cnt = static_cast<uint8_t>(options_.retries);
  send.rnr_retry = 7;  // For ever: a slow receiver is no error here, and the deadline bounds it.
  send.sq_psn = mine.packet_number;
  send.max_rd_atomic = 1;
  if (const int error =
          ibv_modify_qp(queue_pair_.get(), &send,
                        IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                            IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
      error != 0) {
    fail("the queue pair cannot go to RTS: {}", std::strerror(error));
  }
  peer.meet();
}

void Endpoint::post_receive() {
  ibv_recv_wr request{};
  ibv_recv_wr* refused = nullptr;
  if (const int error = ibv_post_recv(queue_pair_.get(), &request, &refused); error != 0) {
    fail("cannot post a receive: {}", std::strerror(error));
  }
}

void Endpoint::write(size_t slot, size_t bytes, uint32_t immediate, bool signalled) {
  ibv_sge piece{};
  piece.addr = reinterpret_cast<uintptr_t>(outgoing(slot));
  piece.length = static_cast<uint32_t>(bytes);
  piece.lkey = outgoing_region_->lkey;
  ibv_send_wr request{};
  request.sg_list = &piece;
  request.num_sge = bytes > 0 ? 1 : 0;
  request.opcode = IBV_WR_RDMA_WRITE_WITH_IMM;
  request.imm_data = htonl(immediate);
  request.wr.rdma.remote_addr = remote_address_ + slot * area_.slot_bytes;
  request.wr.rdma.rkey = remote_key_;
  if (signalled) request.send_flags |= IBV_SEND_SIGNALED;
  if (bytes > 0 && bytes <= inline_bytes_max_) request.send_flags |= IBV_SEND_INLINE;
  ibv_send_wr* refused = nullptr;
  if (const int error = ibv_post_send(queue_pair_.get(), &request, &refused); error != 0) {
    fail("cannot post a write of {} bytes: {}", bytes, std::strerror(error));
  }
}

Endpoint::Arrival Endpoint::wait_arrival() {
  while (arrivals_begin_ == arrivals_end_) take_completion();
  const Arrival arrival = arrivals_[arrivals_begin_];
  arrivals_begin_ = (arrivals_begin_ + 1) % (receives_for(area_.slots) + 1);
  post_receive();
  return arrival;
}

void Endpoint::wait_written() {
  while (written_ == 0) take_completion();
  --written_;
}

void Endpoint::take_completion() {
  ibv_wc completion{};
  steady_clock::time_point begin{};
  for (uint32_t looks = 1;; ++looks) {
    const int count = ibv_poll_cq(completions_.get(), 1, &completion);
    if (count < 0) fail("the completion queue: error {}", count);
    if (count == 1) break;
    wait_for_work(looks);
    // Rarely: some clocks take longer than a look at the queue.
    if (options_.wait != Wait::kEvent && looks % kLooksBetweenClocks != 0) continue;
    const auto now = steady_clock::now();
    if (begin == steady_clock::time_point{}) begin = now;
    if (now - begin > std::chrono::duration<double>(options_.deadline_s)) {
      fail("nothing completed within {} s", options_.deadline_s);
    }
  }
  if (completion.status != IBV_WC_SUCCESS) {
    fail("a work request failed: {} (vendor error {:#x})", ibv_wc_status_str(completion.status),
         completion.vendor_err);
  }
  if (completion.opcode == IBV_WC_RDMA_WRITE) {
    ++written_;
  } else if (completion.opcode == IBV_WC_RECV_RDMA_WITH_IMM) {
    arrivals_[arrivals_end_] = {.immediate = ntohl(completion.imm_data),
                                .bytes = completion.byte_len};
    arrivals_end_ = (arrivals_end_ + 1) % (receives_for(area_.slots) + 1);
  } else {
    fail("a completion of kind {} that nothing here posts", static_cast<int>(completion.opcode));
  }
}

void Endpoint::wait_for_work(uint32_t looks) {
  if (options_.wait == Wait::kPoll) return;
  if (options_.wait == Wait::kYield) {
    ::sched_yield();
    return;
  }
  // Every second time: after the queue was armed it must be looked at once more, because what came
  // before that raises no event.
  if (looks % 2 == 1) {
    if (ibv_req_notify_cq(completions_.get(), 0) != 0) fail("cannot arm the completion queue");
    return;
  }
  pollfd waiting{.fd = channel_->fd, .events = POLLIN, .revents = 0};
  const int ready = ::poll(&waiting, 1, static_cast<int>(options_.deadline_s * 1e3));
  if (ready < 0 && errno != EINTR) fail("poll: {}", std::strerror(errno));
  if (ready <= 0) return;
  ibv_cq* queue = nullptr;
  void* context = nullptr;
  if (ibv_get_cq_event(channel_.get(), &queue, &context) != 0) fail("the completion channel");
  ibv_ack_cq_events(queue, 1);
}

}  // namespace raw_verbs
