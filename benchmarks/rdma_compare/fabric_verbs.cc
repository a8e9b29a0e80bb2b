// The rdma fabric in the patterns of raw_verbs, with its options, clock and report, to be held
// beside it. A message is a header, an entry per row and rows of the size asked for; nobody fills
// or reads the rows, as in raw_verbs. What the protocol demands is done: every message gets its
// header, every arrival is checked by the fabric, and in a stream an empty answer frees a slot.

#include <sched.h>

#include <algorithm>
#include <chrono>

#include "fail.h"
#include "program.h"
#include "volley/base/clock.h"
#include "volley/transport/fabric.h"

namespace raw_verbs {
namespace {

using std::chrono::nanoseconds;
using std::chrono::steady_clock;
using volley::LinkId;
using volley::Nanos;
using volley::protocol::MessageHeader;
using volley::protocol::MessageKind;
using volley::protocol::SlotLayout;
using volley::transport::EventKind;
using volley::transport::FabricEvent;

constexpr uint32_t kLooksBetweenClocks = 1024;
// A size is a whole number of rows; of large messages a row is so long.
constexpr uint64_t kRowBytesMax = 64 << 10;
constexpr volley::transport::LinkKey kKey{};  // The two ends are one run; it guards nothing here.

void require(const volley::Status& status) {
  if (!status.ok()) fail("{}", volley::message_of(status));
}

volley::rdma::PortSelector selector(const EndpointOptions& options) {
  volley::rdma::PortSelector port;
  port.device = fmt::format("{}:{}", options.device, options.port);
  port.gid_index = static_cast<int>(options.gid_index);
  return port;
}

class FabricSide final : public Side {
 public:
  FabricSide(const EndpointOptions& options, const Area& area, Rendezvous& peer,
             std::string peer_host)
      : options_(options), slots_(area.slots), rendezvous_(peer), peer_host_(std::move(peer_host)) {
    // Half of a link's slots belong to micro-batches; the others serve here as well.
    if (slots_ > 2 * volley::protocol::kMicroBatchesMax) {
      fail("a window of {} is more than the {} slots of a link", slots_,
           2 * volley::protocol::kMicroBatchesMax);
    }
  }

  std::vector<int64_t> ping(const Plan& plan) override {
    open(plan.size_bytes);
    std::vector<int64_t> round_trips_ns;
    round_trips_ns.reserve(plan.messages);
    for (uint32_t i = 0; i < plan.messages; ++i) {
      const auto begin = steady_clock::now();
      post(0, rows_);
      take_arrival();
      round_trips_ns.push_back(nanoseconds(steady_clock::now() - begin).count());
      expect(0, rows_);
    }
    return round_trips_ns;
  }

  void pong(const Plan& plan) override {
    open(plan.size_bytes);
    for (uint32_t i = 0; i < plan.messages; ++i) {
      const uint32_t slot = take_arrival();
      expect(slot, rows_);
      post(slot, rows_);
    }
  }

  double stream(const Plan& plan) override {
    open(plan.size_bytes);
    const auto begin = steady_clock::now();
    uint32_t posted = 0;
    for (; posted < std::min(plan.messages, plan.window); ++posted) post(posted, rows_);
    for (uint32_t done = 0; done < plan.messages; ++done) {
      const uint32_t slot = take_arrival();
      expect(slot, 0);
      if (posted == plan.messages) continue;
      post(slot, rows_);
      ++posted;
    }
    return std::chrono::duration<double>(steady_clock::now() - begin).count();
  }

  void drain(const Plan& plan) override {
    open(plan.size_bytes);
    for (uint32_t i = 0; i < plan.messages; ++i) {
      const uint32_t slot = take_arrival();
      expect(slot, rows_);
      post(slot, 0);
    }
  }

  nlohmann::json facts() const override {
    return {
        {"message_bytes", geometry_.dispatch.rows_offset() + rows_ * geometry_.dispatch.row_bytes}};
  }

 private:
  bool active() const { return !peer_host_.empty(); }
  const SlotLayout& send_layout() const { return active() ? geometry_.dispatch : geometry_.answer; }

  /// A link for messages of `size_bytes`, unless the last one was for the same.
  void open(uint64_t size_bytes) {
    if (fabric_ && size_bytes == size_bytes_) return;
    fabric_.reset();
    size_bytes_ = size_bytes;
    const auto row_bytes = static_cast<uint32_t>(std::min(size_bytes, kRowBytesMax));
    rows_ = static_cast<uint32_t>(size_bytes / row_bytes);
    if (size_bytes % row_bytes != 0 || row_bytes % 2 != 0) {
      fail("messages of {} bytes: allowed are even sizes, above {} multiples of it", size_bytes,
           kRowBytesMax);
    }
    geometry_ = {.micro_batches = static_cast<uint32_t>((slots_ + 1) / 2),
                 .dispatch = {.rows_max = rows_, .entries_max = rows_, .row_bytes = row_bytes},
                 .answer = {.rows_max = rows_, .entries_max = 0, .row_bytes = row_bytes}};
    volley::transport::FabricOptions fabric_options;
    fabric_options.self = {.name = active() ? "active" : "passive",
                           .incarnation = volley::Incarnation{volley::random_u64()}};
    incarnation_ = fabric_options.self.incarnation.value;
    fabric_options.geometry = geometry_;
    fabric_options.links_max = 1;
    fabric_options.layers = 1;
    fabric_options.key = kKey;
    if (!active()) fabric_options.listen = "0.0.0.0:0";
    fabric_options.connect_timeout = static_cast<Nanos>(options_.deadline_s * 1e9);
    fabric_options.rdma.ports = {selector(options_)};
    fabric_options.rdma.data.ack_timeout = static_cast<uint8_t>(options_.timeout_exponent);
    fabric_options.rdma.data.retries = static_cast<uint8_t>(options_.retries);
    auto made = volley::transport::make_fabric("rdma", fabric_options);
    require(made.status());
    fabric_ = std::move(*made);
    meet();
    for (uint32_t slot = 0; slot < geometry_.slot_count(); ++slot) {
      uint32_t row = 0;
      for (auto& entry : volley::protocol::entries_of(fabric_->send_slot(link_, slot),
                                                      send_layout(), send_layout().entries_max)) {
        entry = {.row = row++, .expert = 0};
      }
    }
  }

  /// The passive side listens on every address and tells its port.
  void meet() {
    const auto mine = active() ? uint32_t{0}
                               : static_cast<uint32_t>(std::stoul(
                                     fabric_->address().substr(fabric_->address().rfind(':') + 1)));
    const uint32_t theirs = rendezvous_.swap(mine);
    if (active()) {
      const auto link = fabric_->connect(fmt::format("{}:{}", peer_host_, theirs), kKey);
      require(link.status());
    }
    link_ = next_event(EventKind::kOpened).link;
  }

  void post(uint32_t slot, uint32_t rows) {
    std::byte* const memory = fabric_->send_slot(link_, slot);
    MessageHeader header;
    header.kind = active() ? MessageKind::kDispatch : MessageKind::kAnswer;
    header.incarnation = incarnation_;
    header.sequence = active() ? ++sequence_ : fabric_->recv_header(link_, slot).sequence;
    header.link = fabric_->wire_link(link_);
    header.slot = static_cast<uint16_t>(slot);
    header.micro_batch = static_cast<uint16_t>(slot % geometry_.micro_batches);
    header.fragment_count = 1;
    header.row_count = rows;
    header.entry_count = active() ? rows : 0;
    header.row_bytes = send_layout().row_bytes;
    volley::protocol::header_of(memory) = header;
    fabric_->post(link_, slot);
  }

  /// The slot of the next message.
  uint32_t take_arrival() { return next_event(EventKind::kMessage).slot; }

  FabricEvent next_event(EventKind kind) {
    steady_clock::time_point begin{};
    for (uint32_t looks = 1; next_ == count_; ++looks) {
      next_ = 0;
      count_ = fabric_->poll(events_);
      if (count_ != 0) break;
      wait_for_work();
      // As raw_verbs: rarely, but after each sleep.
      if (options_.wait != Wait::kEvent && looks % kLooksBetweenClocks != 0) continue;
      const auto now = steady_clock::now();
      if (begin == steady_clock::time_point{}) begin = now;
      if (now - begin > std::chrono::duration<double>(options_.deadline_s)) {
        fail("no message within {} s", options_.deadline_s);
      }
    }
    const FabricEvent event = events_[next_++];
    if (event.kind == EventKind::kClosed) fail("{}", fabric_->close_reason(event.link));
    if (event.kind != kind) fail("an event of kind {} is not expected here", int(event.kind));
    return event;
  }

  void wait_for_work() {
    if (options_.wait == Wait::kYield) ::sched_yield();
    if (options_.wait == Wait::kEvent) {
      fabric_->wait(volley::monotonic_now() + static_cast<Nanos>(options_.deadline_s * 1e9));
    }
  }

  void expect(uint32_t slot, uint32_t rows) const {
    const MessageHeader& header = fabric_->recv_header(link_, slot);
    if (header.row_count == rows) return;
    fail("message {} has {} rows, expected {}", header.sequence, header.row_count, rows);
  }

  EndpointOptions options_;
  size_t slots_;
  Rendezvous& rendezvous_;
  std::string peer_host_;
  std::unique_ptr<volley::transport::Fabric> fabric_;
  volley::protocol::LinkGeometry geometry_;
  LinkId link_;
  uint64_t size_bytes_ = 0;
  uint32_t rows_ = 0;
  uint64_t incarnation_ = 0;
  uint64_t sequence_ = 0;
  std::array<FabricEvent, 64> events_;
  size_t next_ = 0, count_ = 0;
};

}  // namespace
}  // namespace raw_verbs

int main(int argc, char** argv) {
  using namespace raw_verbs;
  const Program program{
      .name = "fabric_verbs",
      .description = "Volley's rdma fabric between two processes, as raw_verbs measures verbs",
      .require_device =
          [](const EndpointOptions& options) {
            require(volley::rdma::open_device(selector(options)).status());
          },
      .connect =
          [](const EndpointOptions& options, const Area& area, Rendezvous& peer,
             const std::string& peer_host) {
            return std::make_unique<FabricSide>(options, area, peer, peer_host);
          }};
  return run_program(program, argc, argv);
}
