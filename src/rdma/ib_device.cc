// The verbs seam over libibverbs.

#include <arpa/inet.h>
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <net/if.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <vector>

#include "volley/base/check.h"
#include "volley/base/clock.h"
#include "volley/base/fd.h"
#include "volley/rdma/device.h"

namespace volley::rdma {
namespace {

template <class T, int (*destroy)(T*)>
struct Destroy {
  void operator()(T* object) const {
    // Fails only with EBUSY when a dependent object is alive, which Device's contract rules out.
    [[maybe_unused]] const int error = destroy(object);
  }
};
template <class T, int (*destroy)(T*)>
using Handle = std::unique_ptr<T, Destroy<T, destroy>>;

using ContextHandle = Handle<ibv_context, ibv_close_device>;
using DomainHandle = Handle<ibv_pd, ibv_dealloc_pd>;
using RegionHandle = Handle<ibv_mr, ibv_dereg_mr>;
using ChannelHandle = Handle<ibv_comp_channel, ibv_destroy_comp_channel>;
using CompletionsHandle = Handle<ibv_cq, ibv_destroy_cq>;
using ReceivesHandle = Handle<ibv_srq, ibv_destroy_srq>;
using QueuePairHandle = Handle<ibv_qp, ibv_destroy_qp>;

void make_non_blocking(int fd) {
  ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
}

// Whether the kernel lets this process lock as much as it likes, which not every root may.
bool may_lock_any_memory() {
  constexpr int kIpcLock = 14;  // CAP_IPC_LOCK
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (!line.starts_with("CapEff:")) continue;
    return (std::strtoull(line.c_str() + sizeof "CapEff:", nullptr, 16) >> kIpcLock & 1) != 0;
  }
  return false;
}

// What to do about ENOMEM: most often it is the limit of locked memory, which all registered memory
// and all queues count towards.
std::string locked_memory_hint() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY ||
      may_lock_any_memory()) {
    return "";
  }
  return fmt::format(
      "; this process may lock {} bytes in all: run `ulimit -l unlimited` before the start, or set "
      "LimitMEMLOCK=infinity in the systemd unit",
      static_cast<uint64_t>(limit.rlim_cur));
}

uint64_t pack(WorkId work) {
  return uint64_t{work.owner} << 32 | uint64_t{work.index} << 16 | uint64_t{work.kind} << 8 |
         work.rail;
}
// The wr_id of receives. No write has it: `kind` is never 255.
constexpr uint64_t kReceiveId = ~uint64_t{0};

WorkId unpack(uint64_t id) {
  return {.owner = static_cast<uint32_t>(id >> 32),
          .index = static_cast<uint16_t>(id >> 16),
          .kind = static_cast<uint8_t>(id >> 8),
          .rail = static_cast<uint8_t>(id)};
}

CompletionStatus status_of(ibv_wc_status status) {
  switch (status) {
    case IBV_WC_SUCCESS:
      return CompletionStatus::kOk;
    case IBV_WC_WR_FLUSH_ERR:
      return CompletionStatus::kFlushed;
    case IBV_WC_RETRY_EXC_ERR:
    case IBV_WC_RESP_TIMEOUT_ERR:
      return CompletionStatus::kRetryExceeded;
    case IBV_WC_RNR_RETRY_EXC_ERR:
      return CompletionStatus::kReceiverNotReady;
    case IBV_WC_REM_ACCESS_ERR:
      return CompletionStatus::kRemoteAccess;
    case IBV_WC_REM_INV_REQ_ERR:
    case IBV_WC_REM_OP_ERR:
    case IBV_WC_REM_ABORT_ERR:
    case IBV_WC_BAD_RESP_ERR:
      return CompletionStatus::kRemoteError;
    default:
      return CompletionStatus::kLocalError;
  }
}

uint16_t mtu_bytes(ibv_mtu mtu) {
  return static_cast<uint16_t>(128u << static_cast<unsigned>(mtu));
}
ibv_mtu mtu_code(uint16_t bytes) {
  for (const ibv_mtu mtu : {IBV_MTU_4096, IBV_MTU_2048, IBV_MTU_1024, IBV_MTU_512}) {
    if (bytes >= mtu_bytes(mtu)) return mtu;
  }
  return IBV_MTU_256;
}

LinkLayer link_layer_of(const ibv_port_attr& port) {
  return port.link_layer == IBV_LINK_LAYER_ETHERNET ? LinkLayer::kEthernet : LinkLayer::kInfiniBand;
}

// Lanes times rate of a lane; the codes are those of the InfiniBand specification.
double rate_gbps(const ibv_port_attr& port) {
  const double lanes = [&] {
    switch (port.active_width) {
      case 1:
        return 1;
      case 2:
        return 4;
      case 4:
        return 8;
      case 8:
        return 12;
      case 16:
        return 2;
      default:
        return 0;
    }
  }();
  const double lane = [&] {
    switch (port.active_speed) {
      case 1:
        return 2.5;
      case 2:
        return 5.0;
      case 4:
      case 8:
        return 10.0;
      case 16:
        return 14.0;
      case 32:
        return 25.0;
      case 64:
        return 50.0;
      case 128:
        return 100.0;
      default:
        return 0.0;
    }
  }();
  return lanes * lane;
}

Status registration_error(int error, uint64_t bytes) {
  if (error == ENOMEM) {
    return resource_exhausted("registering {} bytes: {}{}", bytes, errno_text(error),
                              locked_memory_hint());
  }
  return invalid_argument("registering {} bytes: {}", bytes, errno_text(error));
}

class IbProtectionDomain final : public ProtectionDomain {
 public:
  explicit IbProtectionDomain(ibv_pd* domain) : domain_(domain) {}
  ibv_pd* raw() const { return domain_.get(); }

 private:
  DomainHandle domain_;
};

class IbMemoryRegion final : public MemoryRegion {
 public:
  explicit IbMemoryRegion(ibv_mr* region) : region_(region) {}
  uint32_t lkey() const override { return region_->lkey; }
  uint32_t rkey() const override { return region_->rkey; }

 private:
  RegionHandle region_;
};

class IbCompletionQueue final : public CompletionQueue {
 public:
  IbCompletionQueue(ChannelHandle channel, ibv_cq* queue)
      : channel_(std::move(channel)), queue_(queue) {}
  // Destroying a queue waits for the acknowledgement of its events.
  ~IbCompletionQueue() override { clear_events(); }

  Result<size_t> poll(std::span<Completion> completions) override {
    ibv_wc raw[kPollBatch];
    size_t count = 0;
    while (count < completions.size()) {
      const auto wanted = static_cast<int>(std::min(kPollBatch, completions.size() - count));
      const int taken = ::ibv_poll_cq(queue_.get(), wanted, raw);
      if (taken < 0) return internal_error("ibv_poll_cq: {}", errno_text(-taken));
      for (int i = 0; i < taken; ++i) completions[count++] = translate(raw[i]);
      if (taken < wanted) break;
    }
    return count;
  }
  Status arm() override {
    const int error = ::ibv_req_notify_cq(queue_.get(), 0);
    ++arms_;
    return error == 0 ? ok_status() : internal_error("ibv_req_notify_cq: {}", errno_text(error));
  }
  int event_fd() const override { return channel_->fd; }
  void clear_events() override {
    ibv_cq* queue = nullptr;
    void* context = nullptr;
    unsigned count = 0;
    // Each arming is good for one event at most: usually one look is enough.
    do {
      if (::ibv_get_cq_event(channel_.get(), &queue, &context) != 0) break;
      ++count;
    } while (count < arms_);
    arms_ = 0;
    if (count != 0) ::ibv_ack_cq_events(queue_.get(), count);
  }

  ibv_cq* raw() const { return queue_.get(); }

 private:
  static constexpr size_t kPollBatch = 16;

  static Completion translate(const ibv_wc& raw) {
    Completion completion;
    completion.status = status_of(raw.status);
    completion.queue_pair = raw.qp_num;
    completion.vendor_error = raw.vendor_err;
    // Of a failed request only wr_id, status, qp_num and vendor_err are defined: receives are known
    // by their id.
    if (raw.status == IBV_WC_SUCCESS) {
      completion.received = (raw.opcode & IBV_WC_RECV) != 0;
      if (raw.opcode == IBV_WC_RECV_RDMA_WITH_IMM) {
        completion.immediate = ntohl(raw.imm_data);
      } else if (completion.received) {
        completion.status = CompletionStatus::kRemoteError;  // Nobody here sends anything else.
      }
    } else {
      completion.received = raw.wr_id == kReceiveId;
    }
    if (!completion.received) completion.work = unpack(raw.wr_id);
    return completion;
  }

  ChannelHandle channel_;  // Outlives the queue.
  CompletionsHandle queue_;
  unsigned arms_ = 0;  // Since the last look at the events.
};

class IbSharedReceiveQueue final : public SharedReceiveQueue {
 public:
  explicit IbSharedReceiveQueue(ibv_srq* queue) : queue_(queue) {}

  Status post(uint32_t count) override {
    std::array<ibv_recv_wr, kBatch> requests;
    // Most calls are for a few.
    for (size_t i = 0; i < std::min<size_t>(count, kBatch); ++i) {
      requests[i] = {};
      requests[i].wr_id = kReceiveId;
      requests[i].next = i + 1 < kBatch ? &requests[i + 1] : nullptr;
    }
    while (count != 0) {
      const uint32_t batch = std::min<uint32_t>(count, kBatch);
      requests[batch - 1].next = nullptr;
      ibv_recv_wr* bad = nullptr;
      const int error = ::ibv_post_srq_recv(queue_.get(), requests.data(), &bad);
      if (error == ENOMEM) return resource_exhausted("the shared receive queue is full");
      if (error != 0) return internal_error("ibv_post_srq_recv: {}", errno_text(error));
      if (batch < kBatch) requests[batch - 1].next = &requests[batch];
      count -= batch;
    }
    return ok_status();
  }

  ibv_srq* raw() const { return queue_.get(); }

 private:
  static constexpr uint32_t kBatch = 32;
  ReceivesHandle queue_;
};

class IbQueuePair final : public QueuePair {
 public:
  IbQueuePair(ibv_qp* queue_pair, const Endpoint& endpoint, const DeviceAttributes& port,
              uint32_t inline_bytes)
      : queue_pair_(queue_pair), endpoint_(endpoint), port_(port), inline_bytes_(inline_bytes) {}

  const Endpoint& endpoint() const override { return endpoint_; }
  uint32_t inline_bytes() const override { return inline_bytes_; }

  Status connect(const Endpoint& peer, const ConnectionOptions& options) override {
    if (peer.link_layer != endpoint_.link_layer) {
      return failed_precondition("{}:{} is {} and the peer's port is {}", port_.name, port_.port,
                                 name_of(endpoint_.link_layer), name_of(peer.link_layer));
    }
    ibv_qp_attr attributes{};
    attributes.qp_state = IBV_QPS_INIT;
    attributes.port_num = port_.port;
    attributes.qp_access_flags = IBV_ACCESS_REMOTE_WRITE;
    VOLLEY_RETURN_IF_ERROR(modify(
        attributes, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS, "INIT"));

    attributes = {};
    attributes.qp_state = IBV_QPS_RTR;
    attributes.path_mtu = mtu_code(std::min(peer.mtu, endpoint_.mtu));
    attributes.dest_qp_num = peer.queue_pair;
    attributes.rq_psn = peer.packet_sequence;
    // Neither side reads remotely; one is what every device grants.
    attributes.max_dest_rd_atomic = 1;
    attributes.min_rnr_timer = options.receiver_not_ready_timer;
    attributes.ah_attr.dlid = peer.lid;
    attributes.ah_attr.sl = options.service_level;
    attributes.ah_attr.port_num = port_.port;
    if (peer.link_layer == LinkLayer::kEthernet || peer.lid == 0) {
      attributes.ah_attr.is_global = 1;
      std::memcpy(attributes.ah_attr.grh.dgid.raw, peer.gid.data(), peer.gid.size());
      attributes.ah_attr.grh.sgid_index = static_cast<uint8_t>(port_.gid_index);
      attributes.ah_attr.grh.hop_limit = options.hop_limit;
      attributes.ah_attr.grh.traffic_class = options.traffic_class;
    }
    VOLLEY_RETURN_IF_ERROR(modify(attributes,
                                  IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
                                      IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC |
                                      IBV_QP_MIN_RNR_TIMER,
                                  "RTR"));

    attributes = {};
    attributes.qp_state = IBV_QPS_RTS;
    attributes.timeout = options.ack_timeout;
    attributes.retry_cnt = options.retries;
    attributes.rnr_retry = options.receiver_not_ready_retries;
    attributes.sq_psn = endpoint_.packet_sequence;
    attributes.max_rd_atomic = 1;
    return modify(attributes,
                  IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                      IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC,
                  "RTS");
  }

  Status post(std::span<const WriteRequest> requests) override {
    std::array<ibv_send_wr, kBatch> raw;
    std::array<ibv_sge, kBatch> pieces;
    VOLLEY_CHECK(!requests.empty() && requests.size() <= kBatch);
    for (size_t i = 0; i < requests.size(); ++i) {
      const WriteRequest& request = requests[i];
      pieces[i] = {.addr = reinterpret_cast<uint64_t>(request.local),
                   .length = request.bytes,
                   .lkey = request.lkey};
      ibv_send_wr& out = raw[i];
      out = {};
      out.wr_id = pack(request.work);
      out.next = i + 1 < requests.size() ? &raw[i + 1] : nullptr;
      out.sg_list = &pieces[i];
      out.num_sge = request.bytes == 0 ? 0 : 1;
      out.opcode = request.immediate ? IBV_WR_RDMA_WRITE_WITH_IMM : IBV_WR_RDMA_WRITE;
      if (request.immediate) out.imm_data = htonl(*request.immediate);
      if (request.signalled) out.send_flags |= IBV_SEND_SIGNALED;
      if (request.inlined) out.send_flags |= IBV_SEND_INLINE;
      out.wr.rdma.remote_addr = request.remote_address;
      out.wr.rdma.rkey = request.rkey;
    }
    ibv_send_wr* bad = nullptr;
    const int error = ::ibv_post_send(queue_pair_.get(), raw.data(), &bad);
    if (error == 0) return ok_status();
    if (error == ENOMEM) {
      return resource_exhausted("the send queue of queue pair {} is full", endpoint_.queue_pair);
    }
    return internal_error("ibv_post_send: {}", errno_text(error));
  }

  void fail() override {
    ibv_qp_attr attributes{};
    attributes.qp_state = IBV_QPS_ERR;
    ::ibv_modify_qp(queue_pair_.get(), &attributes, IBV_QP_STATE);
  }

 private:
  static constexpr size_t kBatch = 32;

  static const char* name_of(LinkLayer layer) {
    return layer == LinkLayer::kEthernet ? "Ethernet" : "InfiniBand";
  }

  Status modify(ibv_qp_attr& attributes, int mask, const char* state) {
    const int error = ::ibv_modify_qp(queue_pair_.get(), &attributes, mask);
    if (error == 0) return ok_status();
    const std::string what = fmt::format("{}:{} gid {}: queue pair to {}: {}", port_.name,
                                         port_.port, port_.gid_index, state, errno_text(error));
    // To RTR the kernel looks up the peer's address.
    if (error == ENETUNREACH || error == EHOSTUNREACH || error == ETIMEDOUT) {
      return unavailable("{}", what);
    }
    return internal_error("{}", what);
  }

  QueuePairHandle queue_pair_;
  Endpoint endpoint_;
  const DeviceAttributes& port_;  // Of the device, which outlives us.
  uint32_t inline_bytes_;
};

class IbDevice final : public Device {
 public:
  static Result<std::shared_ptr<Device>> open(ibv_device* device, const PortChoice& choice) {
    auto out = std::shared_ptr<IbDevice>(new IbDevice());
    out->context_.reset(::ibv_open_device(device));
    if (!out->context_) {
      return unavailable("{}: ibv_open_device: {} (may this user open /dev/infiniband/uverbs*?)",
                         choice.device, errno_text(errno));
    }
    ibv_context* context = out->context_.get();
    out->domain_.reset(::ibv_alloc_pd(context));
    if (!out->domain_) return unavailable("{}: ibv_alloc_pd: {}", choice.device, errno_text(errno));
    ibv_device_attr attributes{};
    ibv_port_attr port{};
    if (::ibv_query_device(context, &attributes) != 0 ||
        ::ibv_query_port(context, choice.port, &port) != 0) {
      return unavailable("{}:{}: it cannot be queried", choice.device, choice.port);
    }
    ibv_gid_entry gid{};
    if (::ibv_query_gid_ex(context, choice.port, static_cast<uint32_t>(choice.gid_index), &gid,
                           0) != 0) {
      return unavailable("{}:{}: GID {} cannot be read", choice.device, choice.port,
                         choice.gid_index);
    }
    DeviceAttributes& a = out->attributes_;
    a.name = choice.device;
    a.port = choice.port;
    a.link_layer = link_layer_of(port);
    a.lid = port.lid;
    a.mtu = mtu_bytes(port.active_mtu);
    a.gid_index = choice.gid_index;
    std::memcpy(a.gid.data(), gid.gid.raw, a.gid.size());
    char interface[IF_NAMESIZE];
    if (gid.ndev_ifindex != 0 && ::if_indextoname(gid.ndev_ifindex, interface) != nullptr) {
      a.interface = interface;
    }
    a.rate_gbps = rate_gbps(port);
    a.completion_depth_max = static_cast<uint32_t>(attributes.max_cqe);
    a.shared_receives_max = static_cast<uint32_t>(attributes.max_srq_wr);
    a.sends_max = static_cast<uint32_t>(attributes.max_qp_wr);
    a.registration_max = attributes.max_mr_size;
    make_non_blocking(context->async_fd);
    return std::shared_ptr<Device>(out);
  }

  const DeviceAttributes& attributes() const override { return attributes_; }

  Result<std::unique_ptr<ProtectionDomain>> create_protection_domain() override {
    ibv_pd* domain = ::ibv_alloc_pd(context_.get());
    if (domain == nullptr) return create_error("protection domain", errno);
    return std::make_unique<IbProtectionDomain>(domain);
  }

  Result<std::unique_ptr<MemoryRegion>> register_memory(std::span<std::byte> memory,
                                                        bool remote_write,
                                                        ProtectionDomain* domain) override {
    const int access =
        IBV_ACCESS_LOCAL_WRITE | (remote_write ? static_cast<int>(IBV_ACCESS_REMOTE_WRITE) : 0);
    ibv_mr* region = ::ibv_reg_mr(raw_domain(domain), memory.data(), memory.size(), access);
    if (region == nullptr) return registration_error(errno, memory.size());
    return std::make_unique<IbMemoryRegion>(region);
  }

  Result<std::unique_ptr<CompletionQueue>> create_completion_queue(uint32_t depth) override {
    VOLLEY_RETURN_IF_ERROR(check("completion queue", depth, attributes_.completion_depth_max));
    ChannelHandle channel(::ibv_create_comp_channel(context_.get()));
    if (!channel) return create_error("completion channel", errno);
    make_non_blocking(channel->fd);
    ibv_cq* queue =
        ::ibv_create_cq(context_.get(), static_cast<int>(depth), nullptr, channel.get(), 0);
    if (queue == nullptr) return create_error("completion queue", errno);
    return std::make_unique<IbCompletionQueue>(std::move(channel), queue);
  }

  Result<std::unique_ptr<SharedReceiveQueue>> create_shared_receive_queue(uint32_t depth) override {
    VOLLEY_RETURN_IF_ERROR(check("shared receive queue", depth, attributes_.shared_receives_max));
    ibv_srq_init_attr init{};
    init.attr.max_wr = depth;
    init.attr.max_sge = 1;
    ibv_srq* queue = ::ibv_create_srq(domain_.get(), &init);
    if (queue == nullptr) return create_error("shared receive queue", errno);
    return std::make_unique<IbSharedReceiveQueue>(queue);
  }

  Result<std::unique_ptr<QueuePair>> create_queue_pair(const QueuePairOptions& options,
                                                       CompletionQueue& completions,
                                                       SharedReceiveQueue* receives) override {
    VOLLEY_RETURN_IF_ERROR(check("send queue", options.sends, attributes_.sends_max));
    ibv_cq* queue = static_cast<IbCompletionQueue&>(completions).raw();
    ibv_qp_init_attr init{};
    init.send_cq = init.recv_cq = queue;
    init.srq = receives == nullptr ? nullptr : static_cast<IbSharedReceiveQueue*>(receives)->raw();
    init.cap.max_send_wr = options.sends;
    init.cap.max_send_sge = 1;
    init.cap.max_recv_sge = 1;
    init.cap.max_recv_wr = receives == nullptr ? 1 : 0;
    init.cap.max_inline_data = options.inline_bytes;
    init.qp_type = IBV_QPT_RC;
    ibv_qp* raw = ::ibv_create_qp(raw_domain(options.domain), &init);
    if (raw == nullptr && options.inline_bytes != 0) {
      // How much may go inline is not to be asked for beforehand; without it all devices work.
      init.cap.max_inline_data = 0;
      raw = ::ibv_create_qp(raw_domain(options.domain), &init);
    }
    if (raw == nullptr) return create_error("queue pair", errno);
    const Endpoint endpoint{.gid = attributes_.gid,
                            .queue_pair = raw->qp_num,
                            .packet_sequence = static_cast<uint32_t>(random_u64()) & 0xffffff,
                            .lid = attributes_.lid,
                            .link_layer = attributes_.link_layer,
                            .mtu = attributes_.mtu};
    return std::make_unique<IbQueuePair>(raw, endpoint, attributes_, init.cap.max_inline_data);
  }

  int async_fd() const override { return context_->async_fd; }
  std::optional<AsyncEvent> next_event() override {
    ibv_async_event raw{};
    if (::ibv_get_async_event(context_.get(), &raw) != 0) return std::nullopt;
    AsyncEvent event;
    switch (raw.event_type) {
      case IBV_EVENT_QP_LAST_WQE_REACHED:
        event = {AsyncEventKind::kLastReceiveReached, raw.element.qp->qp_num};
        break;
      case IBV_EVENT_QP_FATAL:
      case IBV_EVENT_QP_REQ_ERR:
      case IBV_EVENT_QP_ACCESS_ERR:
        event = {AsyncEventKind::kQueuePairError, raw.element.qp->qp_num};
        break;
      case IBV_EVENT_PORT_ERR:
        event.kind = AsyncEventKind::kPortDown;
        break;
      case IBV_EVENT_PORT_ACTIVE:
        event.kind = AsyncEventKind::kPortUp;
        break;
      case IBV_EVENT_DEVICE_FATAL:
        event.kind = AsyncEventKind::kDeviceFatal;
        break;
      case IBV_EVENT_SRQ_ERR:
      case IBV_EVENT_CQ_ERR:
        event.kind = AsyncEventKind::kQueueError;
        break;
      default:
        break;
    }
    ::ibv_ack_async_event(&raw);
    return event;
  }

 private:
  IbDevice() = default;

  ibv_pd* raw_domain(ProtectionDomain* domain) const {
    return domain == nullptr ? domain_.get() : static_cast<IbProtectionDomain*>(domain)->raw();
  }

  Status check(const char* what, uint32_t asked, uint32_t allowed) const {
    if (asked <= allowed) return ok_status();
    return invalid_argument("a {} of {} was asked of {}, which allows {}", what, asked,
                            attributes_.name, allowed);
  }
  Status create_error(const char* what, int error) const {
    return resource_exhausted("{}: creating a {}: {}{}", attributes_.name, what, errno_text(error),
                              error == ENOMEM ? locked_memory_hint() : "");
  }

  ContextHandle context_;
  DomainHandle domain_;
  DeviceAttributes attributes_;
};

struct FreeList {
  void operator()(ibv_device** list) const { ::ibv_free_device_list(list); }
};
using DeviceList = std::unique_ptr<ibv_device*, FreeList>;

Result<std::pair<DeviceList, int>> list_devices() {
  int count = 0;
  DeviceList list(::ibv_get_device_list(&count));
  // Without the kernel module there is no list at all: as good as an empty one.
  if (!list && errno != ENOSYS) return unavailable("ibv_get_device_list: {}", errno_text(errno));
  return std::pair{std::move(list), list ? count : 0};
}

std::string resolved(const std::string& path) {
  char* text = ::realpath(path.c_str(), nullptr);
  if (text == nullptr) return "";
  std::string out = text;
  std::free(text);
  return out;
}

GidType type_of(uint32_t type) {
  switch (type) {
    case IBV_GID_TYPE_IB:
      return GidType::kInfiniBand;
    case IBV_GID_TYPE_ROCE_V1:
      return GidType::kRoceV1;
    default:
      return GidType::kRoceV2;
  }
}

void describe_ports(ibv_device* device, std::vector<PortDescription>& out) {
  const ContextHandle context(::ibv_open_device(device));
  ibv_device_attr attributes{};
  if (!context || ::ibv_query_device(context.get(), &attributes) != 0) return;
  std::vector<ibv_gid_entry> gids(1024);
  const ssize_t gid_count = ::ibv_query_gid_table(context.get(), gids.data(), gids.size(), 0);
  gids.resize(static_cast<size_t>(std::max<ssize_t>(gid_count, 0)));
  for (int number = 1; number <= attributes.phys_port_cnt; ++number) {
    ibv_port_attr port{};
    if (::ibv_query_port(context.get(), static_cast<uint8_t>(number), &port) != 0) continue;
    PortDescription& description = out.emplace_back();
    description.device = ::ibv_get_device_name(device);
    description.port = static_cast<uint8_t>(number);
    description.link_layer = link_layer_of(port);
    description.active = port.state == IBV_PORT_ACTIVE;
    description.state = ::ibv_port_state_str(port.state);
    description.pci_path = resolved(std::string(device->ibdev_path) + "/device");
    for (const ibv_gid_entry& gid : gids) {
      if (gid.port_num != static_cast<uint32_t>(number)) continue;
      GidEntry& entry = description.gids.emplace_back();
      entry.index = static_cast<int>(gid.gid_index);
      entry.type = type_of(gid.gid_type);
      std::memcpy(entry.bytes.data(), gid.gid.raw, entry.bytes.size());
    }
  }
}

}  // namespace

const char* completion_status_name(CompletionStatus status) {
  switch (status) {
    case CompletionStatus::kOk:
      return "ok";
    case CompletionStatus::kFlushed:
      return "flushed";
    case CompletionStatus::kRetryExceeded:
      return "no acknowledgement";
    case CompletionStatus::kReceiverNotReady:
      return "receiver not ready";
    case CompletionStatus::kRemoteAccess:
      return "access refused by the peer's memory region";
    case CompletionStatus::kRemoteError:
      return "error at the peer";
    case CompletionStatus::kLocalError:
      return "local error";
  }
  return "unknown";
}

Result<std::vector<PortDescription>> list_ports() {
  VOLLEY_ASSIGN_OR_RETURN(const auto devices, list_devices());
  std::vector<PortDescription> ports;
  for (int i = 0; i < devices.second; ++i) describe_ports(devices.first.get()[i], ports);
  std::sort(ports.begin(), ports.end(), [](const auto& a, const auto& b) {
    return std::pair(a.device, a.port) < std::pair(b.device, b.port);
  });
  return ports;
}

Result<std::shared_ptr<Device>> open_device(const PortSelector& selector) {
  std::string near_path;
  if (!selector.near.empty()) {
    near_path = resolved("/sys/bus/pci/devices/" + selector.near);
    if (near_path.empty()) {
      return not_found("near is '{}': there is no PCI device with this address", selector.near);
    }
  }
  VOLLEY_ASSIGN_OR_RETURN(const std::vector<PortDescription> ports, list_ports());
  VOLLEY_ASSIGN_OR_RETURN(const PortChoice choice, choose_port(ports, selector, near_path));
  VOLLEY_ASSIGN_OR_RETURN(const auto devices, list_devices());
  for (int i = 0; i < devices.second; ++i) {
    ibv_device* device = devices.first.get()[i];
    if (choice.device == ::ibv_get_device_name(device)) return IbDevice::open(device, choice);
  }
  return unavailable("RDMA device {} has gone", choice.device);
}

}  // namespace volley::rdma
