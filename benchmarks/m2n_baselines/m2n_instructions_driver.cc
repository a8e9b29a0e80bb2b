// What benchmarks/m2n_instructions counts: two nodes of one process on one thread that exchange a
// dispatch and an answer, again and again. The payload is not touched, so that only the transport's
// own work is there.

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <memory>
#include <string_view>

#include "volley/base/clock.h"
#include "volley/transport/fabric.h"

namespace volley::benchmarks {
namespace {

using transport::EventKind;
using transport::FabricEvent;

constexpr uint32_t kRowBytes = 2048;
constexpr Nanos kTimeout = 60 * kSecond;  // Valgrind is slow.

class Node {
 public:
  static Result<Node> create(const std::string& fabric, const std::string& name, uint32_t rows,
                             const std::string& listen) {
    Node node;
    node.options_.self = {.name = name, .incarnation = Incarnation{random_u64()}};
    node.options_.geometry = protocol::LinkGeometry::make(1, std::max(1u, rows), 1, kRowBytes);
    node.options_.links_max = 1;
    node.options_.layers = 1;
    node.options_.dtype = 1;
    node.options_.listen = listen;
    node.options_.connect_timeout = kTimeout;
    VOLLEY_ASSIGN_OR_RETURN(node.fabric_, transport::make_fabric(fabric, node.options_));
    return node;
  }
  transport::Fabric& fabric() { return *fabric_; }
  LinkId link() const { return link_; }

  /// Whether an event of `kind` has come.
  Result<bool> poll(EventKind kind) {
    FabricEvent events[4];
    const size_t count = fabric_->poll(events);
    for (size_t i = 0; i < count; ++i) {
      if (events[i].kind == EventKind::kClosed) return unavailable("the link ended");
      link_ = events[i].link;
      if (events[i].kind == kind) return true;
    }
    return false;
  }

  void send(protocol::MessageKind kind, uint64_t sequence, uint32_t rows) {
    protocol::MessageHeader header;
    header.kind = kind;
    header.dtype = options_.dtype;
    header.incarnation = options_.self.incarnation.value;
    header.sequence = sequence;
    header.link = fabric_->wire_link(link_);
    header.fragment_count = 1;
    header.row_count = rows;
    header.row_bytes = kRowBytes;
    protocol::header_of(fabric_->send_slot(link_, 0)) = header;
    fabric_->post(link_, 0);
  }

 private:
  Node() = default;
  transport::FabricOptions options_;
  std::unique_ptr<transport::Fabric> fabric_;
  LinkId link_;
};

/// Polls both until `node` has an event of `kind`.
Status await(Node& node, Node& other, EventKind kind) {
  const Nanos deadline = monotonic_now() + kTimeout;
  while (true) {
    VOLLEY_ASSIGN_OR_RETURN(const bool come, node.poll(kind));
    if (come) return ok_status();
    // While messages travel the other end has nothing to say.
    if (kind == EventKind::kOpened) VOLLEY_RETURN_IF_ERROR(other.poll(kind).status());
    if (monotonic_now() >= deadline) {
      return make_status(StatusCode::kDeadlineExceeded, "no event within {} s", kTimeout / kSecond);
    }
  }
}

Status run(const std::string& fabric, uint32_t bytes, uint64_t exchanges) {
  const uint32_t rows = bytes / kRowBytes;
  VOLLEY_ASSIGN_OR_RETURN(
      Node expert, Node::create(fabric, "expert", rows, fabric == "tcp" ? "127.0.0.1:0" : "auto"));
  VOLLEY_ASSIGN_OR_RETURN(Node attention, Node::create(fabric, "attention", rows, ""));
  VOLLEY_RETURN_IF_ERROR(attention.fabric().connect(expert.fabric().address(), {}).status());
  VOLLEY_RETURN_IF_ERROR(await(attention, expert, EventKind::kOpened));
  VOLLEY_RETURN_IF_ERROR(expert.poll(EventKind::kOpened).status());
  for (uint64_t sequence = 1; sequence <= exchanges; ++sequence) {
    attention.send(protocol::MessageKind::kDispatch, sequence, rows);
    VOLLEY_RETURN_IF_ERROR(await(expert, attention, EventKind::kMessage));
    expert.send(protocol::MessageKind::kAnswer, sequence, rows);
    VOLLEY_RETURN_IF_ERROR(await(attention, expert, EventKind::kMessage));
  }
  return ok_status();
}

}  // namespace
}  // namespace volley::benchmarks

int main(int argc, char** argv) {
  uint32_t bytes = 0;
  uint64_t exchanges = 0;
  const auto number = [](std::string_view text, auto& value) {
    const auto end = text.data() + text.size();
    return std::from_chars(text.data(), end, value).ptr == end;
  };
  if (argc != 4 || !number(argv[2], bytes) || !number(argv[3], exchanges)) {
    std::fprintf(stderr, "usage: m2n_instructions_driver FABRIC BYTES EXCHANGES\n");
    return 2;
  }
  const volley::Status status = volley::benchmarks::run(argv[1], bytes, exchanges);
  if (status.ok()) return 0;
  std::fprintf(stderr, "m2n_instructions_driver: %s\n", volley::message_of(status).c_str());
  return 1;
}
