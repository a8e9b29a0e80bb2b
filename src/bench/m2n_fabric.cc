#include "m2n_fabric.h"

#include <algorithm>
#include <charconv>

#include "m2n_steps.h"
#include "volley/base/clock.h"
#include "volley/transport/fabric.h"

namespace volley::bench {
namespace {

using protocol::MessageHeader;
using protocol::MessageKind;
using transport::EventKind;
using transport::FabricEvent;

constexpr uint8_t kDtypeBf16 = 1;
// The two ends belong to one run; the key guards nothing here.
constexpr transport::LinkKey kKey{};
constexpr uint32_t kNoLink = ~0u;

class FabricEndpoint final : public M2nEndpoint {
 public:
  static Result<std::unique_ptr<M2nEndpoint>> create(const std::string& fabric, const M2nRun& run,
                                                     uint32_t peer) {
    const M2nShape& shape = run.shape;
    const bool sends = peer < shape.senders;
    const auto rows = static_cast<uint32_t>(shape.bytes / shape.row_bytes);
    // An answer without rows still has a slot.
    const auto answer_rows =
        std::max(1u, static_cast<uint32_t>(run.answer_bytes / shape.row_bytes));
    transport::FabricOptions options;
    options.self = {.name = std::to_string(peer), .incarnation = Incarnation{random_u64()}};
    options.geometry = {
        .micro_batches = run.slots,
        .dispatch = {.rows_max = rows, .entries_max = answer_rows, .row_bytes = shape.row_bytes},
        .answer = {.rows_max = answer_rows, .entries_max = 0, .row_bytes = shape.row_bytes}};
    options.links_max = sends ? shape.receivers : shape.senders;
    options.layers = 1;
    options.dtype = kDtypeBf16;
    options.key = kKey;
    // Peers share processors here: an acknowledgement that is late, 0.5 s, is not lost.
    options.rdma.data.ack_timeout = options.rdma.control.ack_timeout = 17;
    if (!sends) options.listen = fabric == "tcp" || fabric == "rdma" ? "127.0.0.1:0" : "auto";
    options.rdma.ports = {m2n_rdma_port(run.options, sends)};
    options.rdma.queue_pairs = run.options.queue_pairs;
    VOLLEY_ASSIGN_OR_RETURN(auto made, transport::make_fabric(fabric, options));
    auto endpoint =
        std::unique_ptr<FabricEndpoint>(new FabricEndpoint(run, peer, options, std::move(made)));
    if (!sends) {
      VOLLEY_RETURN_IF_ERROR(run.publish(peer, endpoint->fabric_->address()));
    } else {
      VOLLEY_RETURN_IF_ERROR(endpoint->connect());
    }
    return std::unique_ptr<M2nEndpoint>(std::move(endpoint));
  }

  std::byte* send_buffer(uint32_t link, uint32_t slot) override {
    return protocol::row_of(fabric_->send_slot(links_[link], slot), send_layout(), 0);
  }

  Status post(uint32_t link, uint32_t slot, size_t bytes) override {
    const LinkId id = links_[link];
    const protocol::SlotLayout& layout = send_layout();
    std::byte* const memory = fabric_->send_slot(id, slot);
    MessageHeader header;
    header.kind = sends_ ? MessageKind::kDispatch : MessageKind::kAnswer;
    header.dtype = kDtypeBf16;
    header.incarnation = options_.self.incarnation.value;
    header.sequence = sends_ ? ++sequence_ : fabric_->recv_header(id, slot).sequence;
    header.link = fabric_->wire_link(id);
    header.slot = header.micro_batch = static_cast<uint16_t>(slot);
    header.fragment_count = 1;
    header.row_count = static_cast<uint32_t>(bytes / layout.row_bytes);
    // An answer has a row per entry of its dispatch: the entries ask for as many as it will have.
    header.entry_count = sends_ ? static_cast<uint32_t>(run_.answer_bytes / layout.row_bytes) : 0;
    header.row_bytes = layout.row_bytes;
    protocol::header_of(memory) = header;
    uint32_t index = 0;
    for (protocol::Entry& entry : protocol::entries_of(memory, layout, header.entry_count)) {
      entry = {.row = index % header.row_count, .expert = index / header.row_count};
      ++index;
    }
    fabric_->post(id, slot);
    return ok_status();
  }

  Status poll(std::vector<M2nArrival>& arrived) override {
    FabricEvent events[64];
    const size_t count = fabric_->poll(events);
    for (const FabricEvent& event : std::span(events, count)) {
      VOLLEY_RETURN_IF_ERROR(take(event, arrived));
    }
    return ok_status();
  }

  void wait(Nanos deadline) override { fabric_->wait(deadline); }

 private:
  FabricEndpoint(const M2nRun& run, uint32_t peer, const transport::FabricOptions& options,
                 std::unique_ptr<transport::Fabric> fabric)
      : run_(run),
        sends_(peer < run.shape.senders),
        options_(options),
        fabric_(std::move(fabric)),
        links_(options.links_max),
        link_of_(options.links_max, kNoLink) {}

  const protocol::SlotLayout& send_layout() const {
    return sends_ ? options_.geometry.dispatch : options_.geometry.answer;
  }
  const protocol::SlotLayout& recv_layout() const {
    return sends_ ? options_.geometry.answer : options_.geometry.dispatch;
  }

  Status connect() {
    for (uint32_t i = 0; i < run_.shape.receivers; ++i) {
      VOLLEY_ASSIGN_OR_RETURN(const std::string address, run_.address_of(run_.shape.senders + i));
      VOLLEY_ASSIGN_OR_RETURN(links_[i], fabric_->connect(address, kKey));
    }
    std::vector<M2nArrival> none;
    while (opened_ < links_.size()) {
      VOLLEY_RETURN_IF_ERROR(poll(none));
      VOLLEY_RETURN_IF_ERROR(run_.check());
      fabric_->wait(monotonic_now() + kMillisecond);
    }
    return ok_status();
  }

  /// The number that a peer has as its name, as an index of our links.
  Result<uint32_t> index_of(LinkId link) const {
    const std::string& name = fabric_->peer(link).name;
    uint32_t peer = 0;
    std::from_chars(name.data(), name.data() + name.size(), peer);
    const uint32_t index = sends_ ? peer - run_.shape.senders : peer;
    if (index < links_.size()) return index;
    return data_loss("a stranger called '{}' has connected", name);
  }

  Status take(const FabricEvent& event, std::vector<M2nArrival>& arrived) {
    const size_t place = event.link.value % link_of_.size();
    if (event.kind == EventKind::kOpened) {
      VOLLEY_ASSIGN_OR_RETURN(const uint32_t index, index_of(event.link));
      links_[index] = event.link;
      link_of_[place] = index;
      ++opened_;
      return ok_status();
    }
    if (event.kind == EventKind::kClosed) {
      // Its sender is done, or whoever started it tells why not.
      if (!sends_) return ok_status();
      const auto found = std::find(links_.begin(), links_.end(), event.link);
      return Status(event.code,
                    fmt::format("the link to receiver-{} ended: {}", found - links_.begin(),
                                fabric_->close_reason(event.link)));
    }
    const MessageHeader& header = fabric_->recv_header(event.link, event.slot);
    const std::byte* const rows =
        protocol::row_of(fabric_->recv_slot(event.link, event.slot), recv_layout(), 0);
    arrived.push_back({.link = link_of_[place],
                       .slot = event.slot,
                       .payload = {rows, size_t{header.row_count} * header.row_bytes}});
    return ok_status();
  }

  const M2nRun& run_;
  const bool sends_;
  transport::FabricOptions options_;
  std::unique_ptr<transport::Fabric> fabric_;
  std::vector<LinkId> links_;      // Of each receiver or sender.
  std::vector<uint32_t> link_of_;  // The other way round, by LinkId::value % links_max.
  size_t opened_ = 0;
  uint64_t sequence_ = 0;
};

}  // namespace

rdma::PortSelector m2n_rdma_port(const M2nBenchOptions& options, bool sends) {
  rdma::PortSelector port;
  const std::vector<std::string>& ports = options.rdma_ports;
  if (!ports.empty()) port.device = sends ? ports.front() : ports.back();
  return port;
}

M2nSystem m2n_fabric_system(const std::string& fabric) {
  M2nSystem system;
  system.name = fabric;
  system.threads = fabric == "local";
  system.endpoint = [fabric](const M2nRun& run, uint32_t peer) {
    return FabricEndpoint::create(fabric, run, peer);
  };
  // What a NIC can do at best is not for its own fabric to say: benchmarks/rdma_compare.
  if (fabric == "rdma") return system;
  system.steps = [fabric](const M2nRun& run, uint32_t near_core, uint32_t far_core) {
    return measure_m2n_steps({.near_core = near_core,
                              .far_core = far_core,
                              .sockets = fabric == "tcp",
                              .bytes = run.shape.bytes,
                              .answer_bytes = run.answer_bytes,
                              .stream = run.options.pattern != M2nPattern::kRoundTrip});
  };
  return system;
}

}  // namespace volley::bench
