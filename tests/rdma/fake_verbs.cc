#include "rdma/fake_verbs.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <utility>
#include <vector>

#include "volley/base/check.h"
#include "volley/base/fd.h"
#include "volley/base/random.h"

namespace volley::rdma {
namespace fake {
namespace {

constexpr uint32_t kFirstQueuePair = 17;  // As on Soft-RoCE: equal numbers on different devices.
constexpr uint32_t kMessageBytesMax = uint32_t{1} << 31;
constexpr uint32_t kInlineGranule = 64;  // Real devices round up what was asked for, too.
constexpr uint8_t kForever = 7;

class EventFd {
 public:
  explicit EventFd(int flags) : fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC | flags)) {
    VOLLEY_CHECK(fd_);
  }
  int get() const { return fd_.get(); }
  void signal() {
    const uint64_t one = 1;
    VOLLEY_CHECK(write(fd_.get(), &one, sizeof(one)) == sizeof(one));
  }
  void take() {
    uint64_t count = 0;
    VOLLEY_CHECK(read(fd_.get(), &count, sizeof(count)) == sizeof(count) || errno == EAGAIN);
  }

 private:
  UniqueFd fd_;
};

}  // namespace

class FakeQueuePair;

/// What one GID names: one numbering of queue pairs, whichever process they belong to.
struct Port {
  Gid gid{};
  size_t index = 0;
  LinkLayer link_layer = LinkLayer::kEthernet;
  uint16_t lid = 0;
  bool up = true;
  std::vector<FakeQueuePair*> queue_pairs;  ///< By number less kFirstQueuePair; null when gone.

  FakeQueuePair* find(uint32_t number) const {
    const size_t at = size_t{number} - kFirstQueuePair;
    return number >= kFirstQueuePair && at < queue_pairs.size() ? queue_pairs[at] : nullptr;
  }
};

class FakeDevice;
class FakeRegion;
class FakeCompletionQueue;
class FakeSharedReceiveQueue;

enum class Step : uint8_t {
  kMoved,
  kBlocked,  ///< Has work, which only a call of somebody can set free.
  kIdle,
};

/// All state that is shared. Everything but `mutex` is guarded by it.
class Net {
 public:
  explicit Net(const FakeNetworkOptions& network)
      : options(network), faults(network.faults), rng(network.seed) {}

  Port& port(const FakeDeviceOptions& device);
  Port* find_port(const Gid& gid);
  bool passes(const Port& from, const Port& to) const {
    return from.up && to.up &&
           std::find(cuts.begin(), cuts.end(), std::pair(from.index, to.index)) == cuts.end();
  }
  void cut(const Gid& from, const Gid& to, bool is_cut);
  FakeRegion* region(uint32_t key) const {
    const size_t at = key >> 8;
    return at < regions.size() ? regions[at] : nullptr;
  }

  void add(FakeQueuePair& queue_pair);
  void remove(FakeQueuePair& queue_pair);
  /// It has work. Called as well when a blocked one can move again.
  void activate(FakeQueuePair& queue_pair);
  void deactivate(FakeQueuePair& queue_pair);

  /// Part of every call: moves what the options say.
  void progress();
  bool step();
  void drain() {
    movable_ = active_.size();
    while (step()) {
    }
  }

  std::mutex mutex;
  std::condition_variable connects;  ///< Some may go on.
  std::vector<Gid> holding;
  uint32_t held = 0;  ///< Threads that wait for `connects`.
  const FakeNetworkOptions options;
  FakeFaults faults;
  SplitMix64 rng;
  uint32_t armed = 0;  ///< Completion queues.
  std::vector<std::unique_ptr<Port>> ports;
  std::vector<std::pair<size_t, size_t>> cuts;
  std::vector<FakeDevice*> devices;
  std::vector<FakeRegion*> regions;  ///< By key >> 8; null when gone. Keys are never used again.
  std::vector<FakeQueuePair*> queue_pairs;

 private:
  void place(FakeQueuePair& queue_pair, size_t position);
  void exchange(size_t a, size_t b);

  // The first `movable_` of them may move; the others were found blocked since the last call.
  std::vector<FakeQueuePair*> active_;
  size_t movable_ = 0;
};

class FakeDevice final : public Device {
 public:
  FakeDevice(std::shared_ptr<Net> net, const FakeDeviceOptions& options);
  ~FakeDevice() override;
  const DeviceAttributes& attributes() const override { return attributes_; }
  Result<std::unique_ptr<ProtectionDomain>> create_protection_domain() override;
  Result<std::unique_ptr<MemoryRegion>> register_memory(std::span<std::byte> memory,
                                                        bool remote_write,
                                                        ProtectionDomain* domain) override;
  Result<std::unique_ptr<CompletionQueue>> create_completion_queue(uint32_t depth) override;
  Result<std::unique_ptr<SharedReceiveQueue>> create_shared_receive_queue(uint32_t depth) override;
  Result<std::unique_ptr<QueuePair>> create_queue_pair(const QueuePairOptions& options,
                                                       CompletionQueue& completions,
                                                       SharedReceiveQueue* receives) override;
  int async_fd() const override { return async_fd_.get(); }
  std::optional<AsyncEvent> next_event() override;

  void raise(AsyncEventKind kind, uint32_t queue_pair = 0) {
    if (dead) return;
    events_.push_back({.kind = kind, .queue_pair = queue_pair});
    async_fd_.signal();
  }
  /// As the kernel does when a queue pair is destroyed.
  void forget_events_of(uint32_t queue_pair);
  void forget(const FakeSharedReceiveQueue& receives);
  void die();
  Status alive() const {
    return dead ? internal_error("{}: the device is gone", attributes_.name) : ok_status();
  }

  const std::shared_ptr<Net> net;
  Port& port;
  bool dead = false;
  uint32_t objects = 0;  ///< Made and not yet destroyed.
  uint64_t registered_bytes = 0;
  std::vector<FakeCompletionQueue*> completion_queues;

 private:
  DeviceAttributes attributes_;
  uint32_t inline_bytes_max_ = 0;
  std::deque<AsyncEvent> events_;
  EventFd async_fd_{EFD_SEMAPHORE};
};

class FakeRegion final : public MemoryRegion {
 public:
  FakeRegion(FakeDevice& device, std::span<std::byte> memory, bool remote_write,
             const ProtectionDomain* domain);
  ~FakeRegion() override;
  uint32_t lkey() const override { return lkey_; }
  uint32_t rkey() const override { return rkey_; }

  bool covers(uint64_t address, uint64_t bytes) const {
    const auto begin = reinterpret_cast<uintptr_t>(memory_.data());
    return address >= begin && bytes <= memory_.size() && address - begin <= memory_.size() - bytes;
  }

  FakeDevice& device;
  const bool remote_write;
  const ProtectionDomain* const domain;

 private:
  std::span<std::byte> memory_;
  uint32_t lkey_ = 0;
  uint32_t rkey_ = 0;
};

class FakeSharedReceiveQueue final : public SharedReceiveQueue {
 public:
  FakeSharedReceiveQueue(FakeDevice& device, uint32_t depth);
  ~FakeSharedReceiveQueue() override;
  Status post(uint32_t count) override;

  FakeDevice& device;
  const uint32_t depth;
  uint32_t available = 0;  ///< Posted and not consumed.
  uint32_t occupied = 0;   ///< Posted, and no completion polled.
  uint32_t users = 0;      ///< Queue pairs.
};

class FakeCompletionQueue final : public CompletionQueue {
 public:
  FakeCompletionQueue(FakeDevice& device, uint32_t depth);
  ~FakeCompletionQueue() override;
  Result<size_t> poll(std::span<Completion> completions) override;
  Status arm() override;
  int event_fd() const override { return event_fd_.get(); }
  void clear_events() override { event_fd_.take(); }

  struct Entry {
    Completion completion;
    FakeQueuePair* queue_pair = nullptr;  ///< Null when it is gone.
    uint64_t send_end = 0;                ///< A write: the places before this one are free again.
    FakeSharedReceiveQueue* receives = nullptr;  ///< A receive: whose place is free again.
  };
  void push(const Entry& entry);
  /// The queue pair dies: takes its completions out, or forgets whose they are.
  void forget(const FakeQueuePair& queue_pair, bool remove);
  void forget(const FakeSharedReceiveQueue& receives);
  void disarm() {
    if (std::exchange(armed_, false)) --device.net->armed;
  }

  FakeDevice& device;
  uint32_t users = 0;  ///< Queue pairs.

 private:
  Status usable() const;

  std::vector<Entry> ring_;
  size_t first_ = 0;
  size_t count_ = 0;
  bool armed_ = false;
  bool overrun_ = false;
  EventFd event_fd_{0};
};

class FakeQueuePair final : public QueuePair {
 public:
  FakeQueuePair(FakeDevice& device, const QueuePairOptions& options, uint32_t inline_bytes,
                FakeCompletionQueue& completions, FakeSharedReceiveQueue* receives);
  ~FakeQueuePair() override;
  const Endpoint& endpoint() const override { return endpoint_; }
  uint32_t inline_bytes() const override { return inline_bytes_; }
  Status connect(const Endpoint& peer, const ConnectionOptions& options) override;
  Status post(std::span<const WriteRequest> requests) override;
  void fail() override;

  Step step();
  void free_places_before(uint64_t send_end) { freed_ = std::max(freed_, send_end); }
  /// Goes to the error state; what is outstanding will complete as kFlushed.
  void flush();
  bool uses(const FakeCompletionQueue& completions) const { return &completions == &completions_; }

  FakeDevice& device;
  const ProtectionDomain* const domain;
  static constexpr size_t kInactive = ~size_t{0};
  size_t active_position = kInactive;  ///< Owned by Net.

 private:
  enum class State : uint8_t { kIdle, kConnected, kBroken };
  struct Place {
    WriteRequest request;
    uint32_t landed_bytes = 0;
    uint32_t delay_steps = 0;
    CompletionStatus status = CompletionStatus::kOk;
  };

  Place& at(uint64_t index) { return places_[index % places_.size()]; }
  Status take(const WriteRequest& request);
  Step transfer();
  Step land(Place& place, FakeQueuePair& peer);
  Step finish(Place& place, FakeQueuePair& peer);
  Step complete_oldest();
  Step lose(uint64_t index);
  void break_at(uint64_t index, CompletionStatus status);
  void enter_broken();
  FakeQueuePair* find_peer() const;
  const std::byte* source(const Place& place) const;
  bool local_memory_allows(const WriteRequest& request) const;
  bool remote_memory_allows(const WriteRequest& request, const FakeQueuePair& peer) const;
  void push_receive(CompletionStatus status, uint32_t immediate);
  uint32_t draw_delay() {
    Net& net = *device.net;
    return net.faults.completion_delay_max == 0
               ? 0
               : static_cast<uint32_t>(net.rng.below(net.faults.completion_delay_max + 1));
  }

  FakeCompletionQueue& completions_;
  FakeSharedReceiveQueue* const receives_;
  const uint32_t inline_bytes_;
  Endpoint endpoint_;
  State state_ = State::kIdle;
  Endpoint peer_;
  Port* peer_port_ = nullptr;
  ConnectionOptions options_;
  uint32_t piece_bytes_ = 0;
  uint32_t attempts_lost_ = 0;     ///< In a row.
  uint32_t attempts_refused_ = 0;  ///< In a row, for want of a receive.
  bool last_receive_pending_ = false;

  // Counts of requests: freed_ <= completed_ <= executed_ <= posted_. What is executed has landed,
  // with its receive; what is completed is known to the sender; what is freed has been polled.
  std::vector<Place> places_;
  std::vector<std::byte> inlined_;
  uint64_t freed_ = 0, completed_ = 0, executed_ = 0, posted_ = 0;
};

// ---- The network

Port& Net::port(const FakeDeviceOptions& device) {
  if (Port* known = find_port(device.gid)) {
    VOLLEY_CHECK(known->link_layer == device.link_layer && known->lid == device.lid);
    return *known;
  }
  ports.push_back(std::make_unique<Port>());
  Port& made = *ports.back();
  made.gid = device.gid;
  made.index = ports.size() - 1;
  made.link_layer = device.link_layer;
  made.lid = device.lid;
  return made;
}

Port* Net::find_port(const Gid& gid) {
  for (const auto& candidate : ports) {
    if (candidate->gid == gid) return candidate.get();
  }
  return nullptr;
}

void Net::cut(const Gid& from, const Gid& to, bool is_cut) {
  const Port* a = find_port(from);
  const Port* b = find_port(to);
  VOLLEY_CHECK(a != nullptr && b != nullptr);
  const std::pair pair(a->index, b->index);
  std::erase(cuts, pair);
  if (is_cut) cuts.push_back(pair);
}

void Net::add(FakeQueuePair& queue_pair) {
  queue_pairs.push_back(&queue_pair);
  active_.reserve(queue_pairs.size());
}

void Net::remove(FakeQueuePair& queue_pair) {
  deactivate(queue_pair);
  std::erase(queue_pairs, &queue_pair);
}

void Net::place(FakeQueuePair& queue_pair, size_t position) {
  active_[position] = &queue_pair;
  queue_pair.active_position = position;
}

void Net::exchange(size_t a, size_t b) {
  FakeQueuePair& first = *active_[a];
  place(*active_[b], a);
  place(first, b);
}

void Net::activate(FakeQueuePair& queue_pair) {
  if (queue_pair.device.dead) return;
  if (queue_pair.active_position == FakeQueuePair::kInactive) {
    active_.push_back(nullptr);
    place(queue_pair, active_.size() - 1);
  }
  if (queue_pair.active_position >= movable_) exchange(queue_pair.active_position, movable_++);
}

void Net::deactivate(FakeQueuePair& queue_pair) {
  if (queue_pair.active_position == FakeQueuePair::kInactive) return;
  if (queue_pair.active_position < movable_) exchange(queue_pair.active_position, --movable_);
  exchange(queue_pair.active_position, active_.size() - 1);
  active_.pop_back();
  queue_pair.active_position = FakeQueuePair::kInactive;
}

bool Net::step() {
  while (movable_ > 0) {
    FakeQueuePair& chosen = *active_[rng.below(movable_)];
    switch (chosen.step()) {
      case Step::kMoved:
        return true;
      case Step::kBlocked:
        exchange(chosen.active_position, --movable_);
        break;
      case Step::kIdle:
        deactivate(chosen);
        break;
    }
  }
  return false;
}

void Net::progress() {
  movable_ = active_.size();
  if (options.manual) return;
  if (armed > 0) return drain();
  for (uint64_t steps = rng.below(options.steps_per_call_max + 1); steps > 0 && step(); --steps) {
  }
}

// ---- Devices and regions

FakeDevice::FakeDevice(std::shared_ptr<Net> network, const FakeDeviceOptions& options)
    : net(std::move(network)), port(net->port(options)) {
  attributes_.name = options.name;
  attributes_.link_layer = options.link_layer;
  attributes_.lid = options.lid;
  attributes_.mtu = options.mtu;
  attributes_.gid = options.gid;
  attributes_.rate_gbps = options.rate_gbps;
  attributes_.completion_depth_max = options.completion_depth_max;
  attributes_.shared_receives_max = options.shared_receives_max;
  attributes_.sends_max = options.sends_max;
  attributes_.registration_max = options.registration_max;
  inline_bytes_max_ = options.inline_bytes_max;
  net->devices.push_back(this);
}

FakeDevice::~FakeDevice() {
  const std::lock_guard lock(net->mutex);
  VOLLEY_CHECK(objects == 0);  // The contract: they die before their device.
  std::erase(net->devices, this);
}

void FakeDevice::die() {
  dead = true;
  for (FakeQueuePair* queue_pair : net->queue_pairs) {
    if (&queue_pair->device == this) net->deactivate(*queue_pair);
  }
  for (FakeCompletionQueue* completions : completion_queues) completions->disarm();
}

void FakeDevice::forget(const FakeSharedReceiveQueue& receives) {
  for (FakeCompletionQueue* completions : completion_queues) completions->forget(receives);
}

void FakeDevice::forget_events_of(uint32_t queue_pair) {
  std::erase_if(events_, [&](const AsyncEvent& event) {
    const bool its = event.queue_pair == queue_pair;
    if (its) async_fd_.take();
    return its;
  });
}

std::optional<AsyncEvent> FakeDevice::next_event() {
  const std::lock_guard lock(net->mutex);
  net->progress();
  if (events_.empty()) return std::nullopt;
  const AsyncEvent event = events_.front();
  events_.pop_front();
  async_fd_.take();
  return event;
}

Result<std::unique_ptr<ProtectionDomain>> FakeDevice::create_protection_domain() {
  const std::lock_guard lock(net->mutex);
  VOLLEY_RETURN_IF_ERROR(alive());
  return std::make_unique<ProtectionDomain>();
}

Result<std::unique_ptr<MemoryRegion>> FakeDevice::register_memory(std::span<std::byte> memory,
                                                                  bool remote_write,
                                                                  ProtectionDomain* domain) {
  const std::lock_guard lock(net->mutex);
  VOLLEY_RETURN_IF_ERROR(alive());
  if (memory.empty()) return invalid_argument("{}: a region of 0 bytes", attributes_.name);
  if (memory.size() > attributes_.registration_max - registered_bytes) {
    return resource_exhausted(
        "{}: {} bytes more than the {} registered would exceed registration_max {}; register less "
        "or open the device with more",
        attributes_.name, memory.size(), registered_bytes, attributes_.registration_max);
  }
  return std::make_unique<FakeRegion>(*this, memory, remote_write, domain);
}

Result<std::unique_ptr<CompletionQueue>> FakeDevice::create_completion_queue(uint32_t depth) {
  const std::lock_guard lock(net->mutex);
  VOLLEY_RETURN_IF_ERROR(alive());
  if (depth == 0 || depth > attributes_.completion_depth_max) {
    return invalid_argument("{}: completion queue depth {} is not in 1..{}", attributes_.name,
                            depth, attributes_.completion_depth_max);
  }
  return std::make_unique<FakeCompletionQueue>(*this, depth);
}

Result<std::unique_ptr<SharedReceiveQueue>> FakeDevice::create_shared_receive_queue(
    uint32_t depth) {
  const std::lock_guard lock(net->mutex);
  VOLLEY_RETURN_IF_ERROR(alive());
  if (depth == 0 || depth > attributes_.shared_receives_max) {
    return invalid_argument("{}: shared receive queue depth {} is not in 1..{}", attributes_.name,
                            depth, attributes_.shared_receives_max);
  }
  return std::make_unique<FakeSharedReceiveQueue>(*this, depth);
}

Result<std::unique_ptr<QueuePair>> FakeDevice::create_queue_pair(const QueuePairOptions& options,
                                                                 CompletionQueue& completions,
                                                                 SharedReceiveQueue* receives) {
  const std::lock_guard lock(net->mutex);
  VOLLEY_RETURN_IF_ERROR(alive());
  if (options.sends == 0 || options.sends > attributes_.sends_max) {
    return invalid_argument("{}: {} sends of a queue pair are not in 1..{}", attributes_.name,
                            options.sends, attributes_.sends_max);
  }
  auto& queue = static_cast<FakeCompletionQueue&>(completions);
  auto* shared = static_cast<FakeSharedReceiveQueue*>(receives);
  if (&queue.device != this || (shared != nullptr && &shared->device != this)) {
    return invalid_argument("{}: a queue of another device", attributes_.name);
  }
  const uint32_t inline_bytes =
      std::min((options.inline_bytes + kInlineGranule - 1) / kInlineGranule * kInlineGranule,
               inline_bytes_max_);
  return std::make_unique<FakeQueuePair>(*this, options, inline_bytes, queue, shared);
}

FakeRegion::FakeRegion(FakeDevice& made_by, std::span<std::byte> memory, bool is_remote_write,
                       const ProtectionDomain* of_domain)
    : device(made_by), remote_write(is_remote_write), domain(of_domain), memory_(memory) {
  Net& net = *device.net;
  const auto index = static_cast<uint32_t>(net.regions.size());
  net.regions.push_back(this);
  // The two keys differ, so that a test finds out who takes one for the other.
  const auto tag = static_cast<uint32_t>(net.rng.below(256));
  lkey_ = index << 8 | tag;
  rkey_ = index << 8 | (tag ^ 0x5a);
  device.registered_bytes += memory_.size();
  ++device.objects;
}

FakeRegion::~FakeRegion() {
  Net& net = *device.net;
  const std::lock_guard lock(net.mutex);
  net.regions[lkey_ >> 8] = nullptr;
  device.registered_bytes -= memory_.size();
  --device.objects;
  net.progress();
}

// ---- Shared receive queues

FakeSharedReceiveQueue::FakeSharedReceiveQueue(FakeDevice& made_by, uint32_t queue_depth)
    : device(made_by), depth(queue_depth) {
  ++device.objects;
}

FakeSharedReceiveQueue::~FakeSharedReceiveQueue() {
  const std::lock_guard lock(device.net->mutex);
  VOLLEY_CHECK(users == 0);  // The contract: a queue pair dies before its queues.
  device.forget(*this);
  --device.objects;
}

Status FakeSharedReceiveQueue::post(uint32_t count) {
  const std::lock_guard lock(device.net->mutex);
  VOLLEY_RETURN_IF_ERROR(device.alive());
  const uint32_t taken = std::min(count, depth - occupied);
  occupied += taken;
  available += taken;
  device.net->progress();
  if (taken == count) return ok_status();
  return resource_exhausted("{}: {} of {} receives fit a shared receive queue of {}",
                            device.attributes().name, taken, count, depth);
}

// ---- Completion queues

FakeCompletionQueue::FakeCompletionQueue(FakeDevice& made_by, uint32_t depth)
    : device(made_by), ring_(depth) {
  device.completion_queues.push_back(this);
  ++device.objects;
}

FakeCompletionQueue::~FakeCompletionQueue() {
  const std::lock_guard lock(device.net->mutex);
  VOLLEY_CHECK(users == 0);  // The contract: a queue pair dies before its queues.
  disarm();
  std::erase(device.completion_queues, this);
  --device.objects;
}

Status FakeCompletionQueue::usable() const {
  VOLLEY_RETURN_IF_ERROR(device.alive());
  if (!overrun_) return ok_status();
  return internal_error("{}: a completion queue of {} has overrun", device.attributes().name,
                        ring_.size());
}

Result<size_t> FakeCompletionQueue::poll(std::span<Completion> completions) {
  const std::lock_guard lock(device.net->mutex);
  device.net->progress();
  VOLLEY_RETURN_IF_ERROR(usable());
  const size_t taken = std::min(completions.size(), count_);
  for (size_t i = 0; i < taken; ++i) {
    const Entry& entry = ring_[(first_ + i) % ring_.size()];
    completions[i] = entry.completion;
    if (entry.receives != nullptr) {
      --entry.receives->occupied;
    } else if (entry.queue_pair != nullptr) {
      entry.queue_pair->free_places_before(entry.send_end);
    }
  }
  first_ = (first_ + taken) % ring_.size();
  count_ -= taken;
  return taken;
}

Status FakeCompletionQueue::arm() {
  const std::lock_guard lock(device.net->mutex);
  VOLLEY_RETURN_IF_ERROR(usable());
  if (!std::exchange(armed_, true)) ++device.net->armed;
  device.net->progress();
  return ok_status();
}

void FakeCompletionQueue::push(const Entry& entry) {
  if (overrun_) return;
  if (count_ == ring_.size()) {
    overrun_ = true;
    disarm();
    device.raise(AsyncEventKind::kQueueError);
    for (FakeQueuePair* queue_pair : device.net->queue_pairs) {
      if (queue_pair->uses(*this)) queue_pair->flush();
    }
    return;
  }
  ring_[(first_ + count_++) % ring_.size()] = entry;
  if (armed_) {
    disarm();
    event_fd_.signal();
  }
}

void FakeCompletionQueue::forget(const FakeQueuePair& queue_pair, bool remove) {
  size_t kept = 0;
  for (size_t i = 0; i < count_; ++i) {
    Entry entry = ring_[(first_ + i) % ring_.size()];
    if (entry.queue_pair == &queue_pair) {
      entry.queue_pair = nullptr;
      if (remove) {
        if (entry.receives != nullptr) --entry.receives->occupied;
        continue;
      }
    }
    ring_[(first_ + kept++) % ring_.size()] = entry;
  }
  count_ = kept;
}

void FakeCompletionQueue::forget(const FakeSharedReceiveQueue& receives) {
  for (Entry& entry : ring_) {
    if (entry.receives == &receives) entry.receives = nullptr;
  }
}

// ---- Queue pairs

FakeQueuePair::FakeQueuePair(FakeDevice& made_by, const QueuePairOptions& options,
                             uint32_t inline_bytes, FakeCompletionQueue& completions,
                             FakeSharedReceiveQueue* receives)
    : device(made_by),
      domain(options.domain),
      completions_(completions),
      receives_(receives),
      inline_bytes_(inline_bytes),
      places_(options.sends),
      inlined_(size_t{options.sends} * inline_bytes) {
  Net& net = *device.net;
  Port& port = device.port;
  endpoint_.gid = port.gid;
  endpoint_.queue_pair = kFirstQueuePair + static_cast<uint32_t>(port.queue_pairs.size());
  endpoint_.packet_sequence = static_cast<uint32_t>(net.rng.below(1 << 24));
  endpoint_.lid = port.lid;
  endpoint_.link_layer = port.link_layer;
  endpoint_.mtu = device.attributes().mtu;
  port.queue_pairs.push_back(this);
  net.add(*this);
  ++completions_.users;
  if (receives_ != nullptr) ++receives_->users;
  ++device.objects;
}

FakeQueuePair::~FakeQueuePair() {
  Net& net = *device.net;
  const std::lock_guard lock(net.mutex);
  net.remove(*this);
  device.port.queue_pairs[endpoint_.queue_pair - kFirstQueuePair] = nullptr;
  completions_.forget(*this, net.rng.below(2) == 0);
  device.forget_events_of(endpoint_.queue_pair);
  --completions_.users;
  if (receives_ != nullptr) --receives_->users;
  --device.objects;
  net.progress();
}

Status FakeQueuePair::connect(const Endpoint& peer, const ConnectionOptions& options) {
  Net& net = *device.net;
  std::unique_lock lock(net.mutex);
  ++net.held;
  net.connects.wait(lock, [&] {
    return std::find(net.holding.begin(), net.holding.end(), endpoint_.gid) == net.holding.end();
  });
  --net.held;
  VOLLEY_RETURN_IF_ERROR(device.alive());
  const std::string& name = device.attributes().name;
  if (state_ != State::kIdle) {
    return internal_error("{}: queue pair {} was connected or has failed before", name,
                          endpoint_.queue_pair);
  }
  if (peer.link_layer != endpoint_.link_layer) {
    return failed_precondition("{}: link layer {} here, {} at the peer", name,
                               static_cast<int>(endpoint_.link_layer),
                               static_cast<int>(peer.link_layer));
  }
  const bool mtu_valid = peer.mtu >= 256 && peer.mtu <= 4096 && (peer.mtu & (peer.mtu - 1)) == 0;
  if (!mtu_valid || peer.queue_pair >> 24 != 0 || peer.packet_sequence >> 24 != 0) {
    return internal_error("{}: bad endpoint: mtu {}, queue pair {}, packet sequence {}", name,
                          peer.mtu, peer.queue_pair, peer.packet_sequence);
  }
  if (options.ack_timeout < 1 || options.ack_timeout > 31 || options.retries > 6 ||
      options.receiver_not_ready_retries > kForever || options.receiver_not_ready_timer > 31 ||
      options.service_level > 15) {
    return internal_error(
        "{}: bad options: ack_timeout {}, retries {}, receiver_not_ready_retries {}, timer {}, "
        "service_level {}",
        name, options.ack_timeout, options.retries, options.receiver_not_ready_retries,
        options.receiver_not_ready_timer, options.service_level);
  }
  Port* port = net.find_port(peer.gid);
  if (port == nullptr || port->lid != peer.lid || !device.port.up) {
    return unavailable("{}: no route to the peer of queue pair {}", name, endpoint_.queue_pair);
  }
  peer_ = peer;
  peer_port_ = port;
  options_ = options;
  piece_bytes_ = std::min(endpoint_.mtu, peer.mtu);
  state_ = State::kConnected;
  net.progress();
  return ok_status();
}

Status FakeQueuePair::take(const WriteRequest& request) {
  if (posted_ - freed_ == places_.size()) {
    return resource_exhausted("{}: queue pair {} has {} requests whose completion was not polled",
                              device.attributes().name, endpoint_.queue_pair, places_.size());
  }
  if (request.inlined && request.bytes > inline_bytes_) {
    return internal_error("{}: queue pair {} inlines {} bytes, not {}", device.attributes().name,
                          endpoint_.queue_pair, inline_bytes_, request.bytes);
  }
  Place& place = at(posted_);
  place = Place{.request = request};
  if (request.inlined && request.bytes > 0) {
    std::byte* copy = inlined_.data() + posted_ % places_.size() * inline_bytes_;
    std::memcpy(copy, request.local, request.bytes);
  }
  ++posted_;
  if (state_ == State::kBroken) {
    place.status = CompletionStatus::kFlushed;
    executed_ = posted_;
  }
  return ok_status();
}

Status FakeQueuePair::post(std::span<const WriteRequest> requests) {
  Net& net = *device.net;
  const std::lock_guard lock(net.mutex);
  VOLLEY_RETURN_IF_ERROR(device.alive());
  if (state_ == State::kIdle) {
    return internal_error("{}: queue pair {} is not connected", device.attributes().name,
                          endpoint_.queue_pair);
  }
  Status status = ok_status();
  for (const WriteRequest& request : requests) {
    status = take(request);
    if (!status.ok()) break;
  }
  if (completed_ != posted_) net.activate(*this);
  net.progress();
  return status;
}

void FakeQueuePair::fail() {
  Net& net = *device.net;
  const std::lock_guard lock(net.mutex);
  if (device.dead) return;
  flush();
  net.progress();
}

Step FakeQueuePair::step() {
  if (state_ == State::kBroken) {
    if (completed_ != posted_) return complete_oldest();
    if (!last_receive_pending_) return Step::kIdle;
    last_receive_pending_ = false;
    device.raise(AsyncEventKind::kLastReceiveReached, endpoint_.queue_pair);
    return Step::kMoved;
  }
  const bool unacknowledged = completed_ != executed_;
  const bool untransferred = executed_ != posted_;
  if (!unacknowledged && !untransferred) return Step::kIdle;
  if (unacknowledged && (!untransferred || device.net->rng.below(2) == 0)) return complete_oldest();
  const Step result = transfer();
  return result == Step::kBlocked && unacknowledged ? complete_oldest() : result;
}

FakeQueuePair* FakeQueuePair::find_peer() const {
  FakeQueuePair* peer = peer_port_->find(peer_.queue_pair);
  if (peer == nullptr || peer->device.dead || peer->state_ != State::kConnected) return nullptr;
  const bool knows_us = peer->peer_port_ == &device.port &&
                        peer->peer_.queue_pair == endpoint_.queue_pair &&
                        peer->peer_.packet_sequence == endpoint_.packet_sequence;
  return knows_us && peer->endpoint_.packet_sequence == peer_.packet_sequence ? peer : nullptr;
}

Step FakeQueuePair::transfer() {
  Net& net = *device.net;
  Place& place = at(executed_);
  if (place.landed_bytes < place.request.bytes && !local_memory_allows(place.request)) {
    break_at(executed_, CompletionStatus::kLocalError);
    return Step::kMoved;
  }
  const bool answers_pass = net.passes(*peer_port_, device.port);
  FakeQueuePair* peer = find_peer();
  if (peer == nullptr || !net.passes(device.port, *peer_port_) ||
      net.rng.chance(net.faults.drop_rate)) {
    // What was acknowledged before is known to have landed, unless that got lost too.
    return lose(answers_pass ? executed_ : completed_);
  }
  if (answers_pass) attempts_lost_ = 0;
  return place.landed_bytes < place.request.bytes ? land(place, *peer) : finish(place, *peer);
}

// Real cards move an aligned word as one, which is what makes counters in shared memory work.
void move(const std::byte* from, std::byte* to, size_t bytes) {
  constexpr size_t kWord = sizeof(uint64_t);
  const auto address = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to);
  if (bytes != kWord || address % kWord != 0) {
    std::memmove(to, from, bytes);
    return;
  }
  // The source is only read; atomic_ref has no form for const objects.
  auto& word = *reinterpret_cast<uint64_t*>(const_cast<std::byte*>(from));
  std::atomic_ref(*reinterpret_cast<uint64_t*>(to))
      .store(std::atomic_ref(word).load(std::memory_order_relaxed), std::memory_order_relaxed);
}

Step FakeQueuePair::land(Place& place, FakeQueuePair& peer) {
  Net& net = *device.net;
  const WriteRequest& request = place.request;
  if (!remote_memory_allows(request, peer)) {
    break_at(executed_, CompletionStatus::kRemoteAccess);
    peer.flush();
    peer.device.raise(AsyncEventKind::kQueuePairError, peer.endpoint_.queue_pair);
    return Step::kMoved;
  }
  const uint64_t pieces = 1 + net.rng.below(std::max(1U, net.options.pieces_per_step_max));
  const auto bytes = static_cast<uint32_t>(
      std::min<uint64_t>(pieces * piece_bytes_, request.bytes - place.landed_bytes));
  move(source(place) + place.landed_bytes,
       reinterpret_cast<std::byte*>(request.remote_address) + place.landed_bytes, bytes);
  place.landed_bytes += bytes;
  if (place.landed_bytes == request.bytes) place.delay_steps = draw_delay();
  return Step::kMoved;
}

Step FakeQueuePair::finish(Place& place, FakeQueuePair& peer) {
  if (place.delay_steps > 0) {
    --place.delay_steps;
    return Step::kMoved;
  }
  if (place.request.immediate.has_value()) {
    if (peer.receives_ == nullptr || peer.receives_->available == 0) {
      if (!device.net->passes(*peer_port_, device.port)) return lose(completed_);
      if (options_.receiver_not_ready_retries == kForever) return Step::kBlocked;
      if (attempts_refused_++ == options_.receiver_not_ready_retries) {
        break_at(executed_, CompletionStatus::kReceiverNotReady);
      }
      return Step::kMoved;
    }
    peer.push_receive(CompletionStatus::kOk, *place.request.immediate);
  }
  attempts_refused_ = 0;
  place.delay_steps = draw_delay();
  // The receive may have overrun a queue that is ours as well, which broke us.
  if (state_ == State::kConnected) ++executed_;
  return Step::kMoved;
}

Step FakeQueuePair::complete_oldest() {
  Place& place = at(completed_);
  if (state_ == State::kConnected) {
    if (!device.net->passes(*peer_port_, device.port)) return lose(completed_);
    attempts_lost_ = 0;
  }
  if (place.delay_steps > 0) {
    --place.delay_steps;
    return Step::kMoved;
  }
  ++completed_;
  if (place.status != CompletionStatus::kOk || place.request.signalled) {
    completions_.push({.completion = {.work = place.request.work,
                                      .status = place.status,
                                      .queue_pair = endpoint_.queue_pair},
                       .queue_pair = this,
                       .send_end = completed_});
  }
  return Step::kMoved;
}

Step FakeQueuePair::lose(uint64_t index) {
  if (attempts_lost_++ == options_.retries) break_at(index, CompletionStatus::kRetryExceeded);
  return Step::kMoved;
}

void FakeQueuePair::break_at(uint64_t index, CompletionStatus status) {
  at(index).status = status;
  for (uint64_t i = index + 1; i < posted_; ++i) at(i).status = CompletionStatus::kFlushed;
  enter_broken();
}

void FakeQueuePair::flush() {
  if (state_ == State::kBroken) return;
  for (uint64_t i = completed_; i < posted_; ++i) at(i).status = CompletionStatus::kFlushed;
  enter_broken();
}

void FakeQueuePair::enter_broken() {
  Net& net = *device.net;
  state_ = State::kBroken;
  executed_ = posted_;
  net.activate(*this);
  if (receives_ == nullptr) return;
  last_receive_pending_ = true;
  if (receives_->available > 0 && net.rng.chance(net.faults.flushed_receive_rate)) {
    push_receive(CompletionStatus::kFlushed, 0);
  }
}

void FakeQueuePair::push_receive(CompletionStatus status, uint32_t immediate) {
  --receives_->available;
  completions_.push({.completion = {.work = {},
                                    .status = status,
                                    .received = true,
                                    .queue_pair = endpoint_.queue_pair,
                                    .immediate = immediate},
                     .queue_pair = this,
                     .receives = receives_});
}

const std::byte* FakeQueuePair::source(const Place& place) const {
  if (!place.request.inlined) return place.request.local;
  return inlined_.data() + static_cast<size_t>(&place - places_.data()) * inline_bytes_;
}

bool FakeQueuePair::local_memory_allows(const WriteRequest& request) const {
  if (request.bytes > kMessageBytesMax) return false;
  if (request.inlined || request.bytes == 0) return true;
  const FakeRegion* region = device.net->region(request.lkey);
  return region != nullptr && &region->device == &device && region->domain == domain &&
         region->lkey() == request.lkey &&
         region->covers(reinterpret_cast<uintptr_t>(request.local), request.bytes);
}

bool FakeQueuePair::remote_memory_allows(const WriteRequest& request,
                                         const FakeQueuePair& peer) const {
  const FakeRegion* region = device.net->region(request.rkey);
  return region != nullptr && &region->device == &peer.device && region->domain == peer.domain &&
         region->rkey() == request.rkey && region->remote_write &&
         region->covers(request.remote_address, request.bytes);
}

}  // namespace fake

// ---- The test's handle

namespace {
fake::FakeDevice& fake_of(Device& device) {
  return static_cast<fake::FakeDevice&>(device);
}
}  // namespace

FakeNetwork::FakeNetwork(const FakeNetworkOptions& options)
    : net_(std::make_shared<fake::Net>(options)) {}
FakeNetwork::~FakeNetwork() = default;

std::shared_ptr<Device> FakeNetwork::open(const FakeDeviceOptions& options) {
  const std::lock_guard lock(net_->mutex);
  return std::make_shared<fake::FakeDevice>(net_, options);
}

void FakeNetwork::set_faults(const FakeFaults& faults) {
  const std::lock_guard lock(net_->mutex);
  net_->faults = faults;
}

void FakeNetwork::partition(const Gid& a, const Gid& b, bool cut) {
  const std::lock_guard lock(net_->mutex);
  net_->cut(a, b, cut);
  net_->cut(b, a, cut);
  net_->progress();
}

void FakeNetwork::partition_one_way(const Gid& from, const Gid& to, bool cut) {
  const std::lock_guard lock(net_->mutex);
  net_->cut(from, to, cut);
  net_->progress();
}

void FakeNetwork::kill(Device& device) {
  const std::lock_guard lock(net_->mutex);
  fake_of(device).die();
  net_->progress();
}

void FakeNetwork::break_device(Device& device) {
  const std::lock_guard lock(net_->mutex);
  fake_of(device).raise(AsyncEventKind::kDeviceFatal);
  fake_of(device).die();
  net_->progress();
}

void FakeNetwork::hold_connects(const Gid& gid, bool held) {
  const std::lock_guard lock(net_->mutex);
  std::erase(net_->holding, gid);
  if (held) net_->holding.push_back(gid);
  net_->connects.notify_all();
}

uint32_t FakeNetwork::held_connects() const {
  const std::lock_guard lock(net_->mutex);
  return net_->held;
}

void FakeNetwork::set_port(const Gid& gid, bool up) {
  const std::lock_guard lock(net_->mutex);
  fake::Port* port = net_->find_port(gid);
  VOLLEY_CHECK(port != nullptr);
  port->up = up;
  for (fake::FakeDevice* device : net_->devices) {
    if (&device->port != port) continue;
    device->raise(up ? AsyncEventKind::kPortUp : AsyncEventKind::kPortDown);
  }
  net_->progress();
}

bool FakeNetwork::step() {
  const std::lock_guard lock(net_->mutex);
  return net_->step();
}

void FakeNetwork::drain() {
  const std::lock_guard lock(net_->mutex);
  net_->drain();
}

}  // namespace volley::rdma
