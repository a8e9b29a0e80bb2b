#include "m2n_peer.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

namespace volley::bench {
namespace {

using protocol::MessageHeader;
using protocol::MessageKind;
using transport::EventKind;
using transport::FabricEvent;

constexpr uint8_t kDtypeBf16 = 1;
/// How long a peer that has nothing to do sleeps before it looks at deadline and abort again.
constexpr Nanos kLookAgain = 20 * kMillisecond;

void copy_text(const std::string& text, char (&out)[M2nControl::kTextMax]) {
  out[text.copy(out, sizeof out - 1)] = '\0';
}

/// One end of the data plane with the checks that keep a peer from waiting for ever.
class Peer {
 public:
  static Result<Peer> create(const M2nRun& run, const std::string& name, const std::string& listen,
                             uint32_t links) {
    transport::FabricOptions options;
    options.self = {.name = name, .incarnation = Incarnation{random_u64()}};
    const auto rows = static_cast<uint32_t>(run.bytes / kM2nRowBytes);
    const auto answer_rows = static_cast<uint32_t>(run.options.answer_bytes / kM2nRowBytes);
    options.geometry = {
        .micro_batches = 1,
        .dispatch = {.rows_max = rows, .entries_max = answer_rows, .row_bytes = kM2nRowBytes},
        .answer = {.rows_max = answer_rows, .entries_max = 0, .row_bytes = kM2nRowBytes}};
    options.links_max = links;
    options.layers = 1;
    options.dtype = kDtypeBf16;
    options.key = run.key;
    options.listen = listen;
    VOLLEY_ASSIGN_OR_RETURN(auto fabric, transport::make_fabric(run.options.fabric, options));
    return Peer(run, options, std::move(fabric));
  }

  transport::Fabric& fabric() { return *fabric_; }

  /// Writes rows, and for a dispatch entries, into the link's only slot in use, and sends them.
  void send(LinkId link, MessageKind kind, uint64_t sequence, std::span<const std::byte> rows) {
    const bool dispatch = kind == MessageKind::kDispatch;
    const protocol::SlotLayout& layout =
        dispatch ? options_.geometry.dispatch : options_.geometry.answer;
    std::byte* const slot = fabric_->send_slot(link, 0);
    MessageHeader header;
    header.kind = kind;
    header.dtype = options_.dtype;
    header.incarnation = options_.self.incarnation.value;
    header.sequence = sequence;
    header.link = fabric_->wire_link(link);
    header.fragment_count = 1;
    header.row_count = static_cast<uint32_t>(rows.size() / kM2nRowBytes);
    // An answer has a row per entry of its dispatch: the entries ask for as many as it will have.
    header.entry_count = layout.entries_max;
    header.row_bytes = kM2nRowBytes;
    protocol::header_of(slot) = header;
    uint32_t index = 0;
    for (protocol::Entry& entry : protocol::entries_of(slot, layout, header.entry_count)) {
      entry = {.row = index % header.row_count, .expert = index / header.row_count};
      ++index;
    }
    std::memcpy(protocol::row_of(slot, layout, 0), rows.data(), rows.size());
    fabric_->post(link, 0);
  }

  /// Reads the rows of the message that has arrived, as a kernel would; returns its sequence.
  uint64_t receive(LinkId link, std::span<std::byte> rows) {
    const MessageHeader& header = fabric_->recv_header(link, 0);
    const protocol::SlotLayout& layout = header.kind == MessageKind::kDispatch
                                             ? options_.geometry.dispatch
                                             : options_.geometry.answer;
    const size_t bytes = std::min(size_t{header.row_count} * kM2nRowBytes, rows.size());
    std::memcpy(rows.data(), protocol::row_of(fabric_->recv_slot(link, 0), layout, 0), bytes);
    return header.sequence;
  }

  /// Calls handle(event), which returns a Status, for what has happened; when nothing has, waits a
  /// moment. Errors: those of `handle`, the deadline's, the abort's.
  template <class Handle>
  Status step(Handle handle) {
    FabricEvent events[2 * kM2nPeersMax];
    const size_t count = fabric_->poll(events);
    for (const FabricEvent& event : std::span(events, count)) {
      VOLLEY_RETURN_IF_ERROR(handle(event));
    }
    if (count > 0) return ok_status();
    VOLLEY_RETURN_IF_ERROR(check());
    switch (run_.wait) {
      case M2nWait::kSleep:
        fabric_->wait(std::min(run_.deadline, monotonic_now() + kLookAgain));
        break;
      case M2nWait::kYield:
        std::this_thread::yield();
        break;
      case M2nWait::kPoll:
        break;
    }
    return ok_status();
  }

  /// Whether there is a reason to give up.
  Status check() const {
    if (run_.control.abort.load(std::memory_order_relaxed)) {
      return unavailable("another peer has failed");
    }
    if (monotonic_now() < run_.deadline) return ok_status();
    return make_status(StatusCode::kDeadlineExceeded, "not done within {} ms",
                       run_.options.timeout_ms);
  }

  /// Waits until `counter` reaches `value`; nothing is measured meanwhile.
  Status wait_for(const std::atomic<uint32_t>& counter, uint32_t value) const {
    while (counter.load(std::memory_order_acquire) < value) {
      VOLLEY_RETURN_IF_ERROR(check());
      std::this_thread::yield();
    }
    return ok_status();
  }

 private:
  Peer(const M2nRun& run, const transport::FabricOptions& options,
       std::unique_ptr<transport::Fabric> fabric)
      : run_(run), options_(options), fabric_(std::move(fabric)) {}

  const M2nRun& run_;
  transport::FabricOptions options_;
  std::unique_ptr<transport::Fabric> fabric_;
};

std::vector<std::byte> filled(uint64_t bytes) {
  return std::vector<std::byte>(bytes, std::byte{0x3c});
}

class Sender {
 public:
  Sender(const M2nRun& run, uint32_t index, Peer peer)
      : run_(run),
        index_(index),
        peer_(std::move(peer)),
        rows_(filled(run.bytes)),
        answer_(filled(run.options.answer_bytes)) {}

  Status connect() {
    VOLLEY_RETURN_IF_ERROR(peer_.wait_for(run_.control.receivers_ready, run_.options.receivers));
    for (uint32_t i = 0; i < run_.options.receivers; ++i) {
      VOLLEY_ASSIGN_OR_RETURN(const LinkId link,
                              peer_.fabric().connect(run_.control.address[i], run_.key));
      links_.push_back(link);
    }
    uint32_t opened = 0;
    while (opened < links_.size()) {
      VOLLEY_RETURN_IF_ERROR(peer_.step([&](const FabricEvent& event) {
        if (event.kind == EventKind::kOpened) ++opened;
        return closed(event);
      }));
    }
    return ok_status();
  }

  /// Sends to all receivers, each sender beginning with another one, and waits for all answers.
  Status round_trip() {
    ++sequence_;
    for (size_t i = 0; i < links_.size(); ++i) {
      peer_.send(links_[(index_ + i) % links_.size()], MessageKind::kDispatch, sequence_, rows_);
    }
    size_t outstanding = links_.size();
    while (outstanding > 0) {
      VOLLEY_RETURN_IF_ERROR(peer_.step([&](const FabricEvent& event) {
        if (event.kind != EventKind::kMessage) return closed(event);
        const uint64_t sequence = peer_.receive(event.link, answer_);
        if (sequence != sequence_) {
          return data_loss("an answer has sequence {}, expected {}", sequence, sequence_);
        }
        --outstanding;
        return ok_status();
      }));
    }
    return ok_status();
  }

  Status measure() {
    for (uint32_t i = 0; i < run_.options.warmup; ++i) VOLLEY_RETURN_IF_ERROR(round_trip());
    run_.control.senders_warm.fetch_add(1, std::memory_order_release);
    VOLLEY_RETURN_IF_ERROR(peer_.wait_for(run_.control.senders_warm, run_.options.senders));
    const std::span<double> seconds =
        run_.seconds.subspan(size_t{index_} * run_.options.iterations, run_.options.iterations);
    const Nanos start = monotonic_now();
    Nanos now = start;
    for (double& one : seconds) {
      const Nanos begin = now;
      VOLLEY_RETURN_IF_ERROR(round_trip());
      now = monotonic_now();
      one = static_cast<double>(now - begin) / kSecond;
    }
    run_.control.elapsed_seconds[index_] = static_cast<double>(now - start) / kSecond;
    run_.control.senders_done.fetch_add(1, std::memory_order_release);
    return ok_status();
  }

 private:
  Status closed(const FabricEvent& event) {
    if (event.kind != EventKind::kClosed) return ok_status();
    const auto found = std::find(links_.begin(), links_.end(), event.link);
    return Status(event.code,
                  fmt::format("the link to receiver-{} ended: {}", found - links_.begin(),
                              peer_.fabric().close_reason(event.link)));
  }

  const M2nRun& run_;
  uint32_t index_;
  Peer peer_;
  std::vector<std::byte> rows_, answer_;
  std::vector<LinkId> links_;
  uint64_t sequence_ = 0;
};

Status pin(const M2nRun& run, uint32_t peer) {
  const std::vector<uint32_t>& cores = run.options.cores;
  return cores.empty() ? ok_status() : pin_this_thread(cores[peer % cores.size()]);
}

}  // namespace

Status run_m2n_sender(const M2nRun& run, uint32_t index) {
  VOLLEY_RETURN_IF_ERROR(pin(run, index));
  VOLLEY_ASSIGN_OR_RETURN(
      Peer peer, Peer::create(run, fmt::format("sender-{}", index), "", run.options.receivers));
  Sender sender(run, index, std::move(peer));
  VOLLEY_RETURN_IF_ERROR(sender.connect());
  return sender.measure();
}

Status run_m2n_receiver(const M2nRun& run, uint32_t index) {
  VOLLEY_RETURN_IF_ERROR(pin(run, run.options.senders + index));
  const char* const listen = run.options.fabric == "tcp" ? "127.0.0.1:0" : "auto";
  VOLLEY_ASSIGN_OR_RETURN(
      Peer peer, Peer::create(run, fmt::format("receiver-{}", index), listen, run.options.senders));
  std::vector<std::byte> rows = filled(run.bytes);
  const std::vector<std::byte> answer = filled(run.options.answer_bytes);
  copy_text(peer.fabric().address(), run.control.address[index]);
  run.control.receivers_ready.fetch_add(1, std::memory_order_release);
  while (run.control.senders_done.load(std::memory_order_acquire) < run.options.senders) {
    // A link that closes is no error here: its sender is done, or whoever started it tells why not.
    VOLLEY_RETURN_IF_ERROR(peer.step([&](const FabricEvent& event) {
      if (event.kind != EventKind::kMessage) return ok_status();
      const uint64_t sequence = peer.receive(event.link, rows);
      peer.send(event.link, MessageKind::kAnswer, sequence, answer);
      return ok_status();
    }));
  }
  return ok_status();
}

}  // namespace volley::bench
