#pragma once

// Helpers of the transport tests: nodes driven by the test's own thread, and messages whose content
// is a function of their header.

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "volley/base/clock.h"
#include "volley/base/digest.h"
#include "volley/base/random.h"
#include "volley/transport/fabric.h"
#include "volley/transport/fault_fabric.h"

namespace volley::transport {

inline constexpr uint32_t kLayers = 7;
inline constexpr uint8_t kDtype = 1;
inline constexpr LinkKey kKey = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

inline FabricOptions node_options(const std::string& name, const std::string& listen = "") {
  FabricOptions options;
  options.self = {.name = name, .incarnation = Incarnation{random_u64()}};
  options.geometry = protocol::LinkGeometry::make(3, 5, 2, 48);
  options.links_max = 4;
  options.layers = kLayers;
  options.dtype = kDtype;
  options.key = kKey;
  options.listen = listen;
  return options;
}

struct Node {
  FabricOptions options;
  std::unique_ptr<Fabric> fabric;
  std::vector<FabricEvent> events;

  void poll() {
    FabricEvent buffer[3];  // Small, so that poll() has to go on where it stopped.
    const size_t count = fabric->poll(buffer);
    events.insert(events.end(), buffer, buffer + count);
  }
  /// Takes the first event of `kind` out, if there is one.
  bool take(EventKind kind, FabricEvent& out) {
    for (auto event = events.begin(); event != events.end(); ++event) {
      if (event->kind != kind) continue;
      out = *event;
      events.erase(event);
      return true;
    }
    return false;
  }
};

/// Polls all nodes until `done`. The limit ends a test that hangs: an emulated machine on a busy host
/// may need seconds for what takes milliseconds elsewhere.
inline bool pump(std::initializer_list<Node*> nodes, const std::function<bool()>& done) {
  const Nanos end = monotonic_now() + 30 * kSecond;
  while (true) {
    for (Node* node : nodes) node->poll();
    if (done()) return true;
    if (monotonic_now() > end) return false;
    (*nodes.begin())->fabric->wait(monotonic_now() + 50 * kMicrosecond);
  }
}
inline FabricEvent pump_for(std::initializer_list<Node*> nodes, Node& node, EventKind kind) {
  FabricEvent event;
  EXPECT_TRUE(pump(nodes, [&] { return node.take(kind, event); }))
      << "event kind " << static_cast<int>(kind) << " did not come";
  return event;
}

/// Entries and rows drawn from the sequence number.
inline void fill(std::byte* slot, const protocol::SlotLayout& layout,
                 const protocol::MessageHeader& header) {
  protocol::header_of(slot) = header;
  SplitMix64 random(header.sequence * 977 + header.slot);
  auto* entries = reinterpret_cast<uint8_t*>(slot + layout.entries_offset());
  for (size_t i = 0; i < layout.entries_bytes(header.entry_count); ++i) {
    entries[i] = static_cast<uint8_t>(random.next());
  }
  auto* rows = reinterpret_cast<uint64_t*>(slot + layout.rows_offset());
  for (size_t i = 0; i < size_t{header.row_count} * layout.row_bytes / 8; ++i)
    rows[i] = random.next();
}
inline uint64_t digest(const std::byte* slot, const protocol::SlotLayout& layout,
                       const protocol::MessageHeader& header) {
  const uint64_t entries =
      digest64({slot + layout.entries_offset(), layout.entries_bytes(header.entry_count)});
  return digest64({slot + layout.rows_offset(), size_t{header.row_count} * layout.row_bytes},
                  entries);
}
/// What digest() gives for the content that fill() writes.
inline uint64_t expected_digest(const protocol::SlotLayout& layout,
                                const protocol::MessageHeader& header) {
  std::vector<uint64_t> slot(layout.slot_bytes() / 8);
  auto* bytes = reinterpret_cast<std::byte*>(slot.data());
  fill(bytes, layout, header);
  return digest(bytes, layout, header);
}

inline protocol::MessageHeader make_header(const Node& from, LinkId link, uint32_t slot,
                                           bool dispatch, uint64_t sequence, uint32_t rows,
                                           uint32_t entries) {
  const protocol::LinkGeometry& geometry = from.options.geometry;
  protocol::MessageHeader header;
  header.kind = dispatch ? protocol::MessageKind::kDispatch : protocol::MessageKind::kAnswer;
  header.dtype = kDtype;
  header.incarnation = from.options.self.incarnation.value;
  header.sequence = sequence;
  header.link = from.fabric->wire_link(link);
  header.slot = static_cast<uint16_t>(slot);
  header.micro_batch = static_cast<uint16_t>(slot % geometry.micro_batches);
  header.layer = static_cast<uint32_t>(sequence % kLayers);
  header.fragment_count = 1;
  header.row_count = rows;
  header.entry_count = entries;
  header.row_bytes = (dispatch ? geometry.dispatch : geometry.answer).row_bytes;
  return header;
}

}  // namespace volley::transport
