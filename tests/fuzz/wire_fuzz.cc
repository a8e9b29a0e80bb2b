// Goal: no bytes make the wire decoder read outside its slot, and what it accepts can be indexed.
// Method: the input is one slot as a peer could have written it, after a byte that chooses kind and
// combine; a message that passes is walked.

#include <cstdlib>
#include <cstring>
#include <vector>

#include "volley/base/check.h"
#include "volley/protocol/wire.h"

using namespace volley::protocol;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr LinkGeometry kExact = LinkGeometry::make(2, 4, 2, 32);
  constexpr LinkGeometry kSums = LinkGeometry::make(2, 4, 2, 32, 32, Combine::kPreReduce);
  const bool answer = size > 0 && (data[0] & 1) != 0;
  const LinkGeometry& geometry = size > 0 && (data[0] & 2) != 0 ? kSums : kExact;
  const SlotLayout& layout = answer ? geometry.answer : geometry.dispatch;
  if (size > 0) {
    ++data;
    --size;
  }
  // A heap block of exactly the slot's size, so that the sanitizer sees every step beyond it.
  std::vector<std::byte> slot(layout.slot_bytes());
  std::memcpy(slot.data(), data, std::min(size, slot.size()));
  const Expectation expected{.kind = answer ? MessageKind::kAnswer : MessageKind::kDispatch,
                             .incarnation = 11,
                             .link = 12,
                             .slot = 1,
                             .layers = 3,
                             .experts = 8,
                             .dtype = 1,
                             .layout = layout,
                             .micro_batches = geometry.micro_batches};
  if (!validate_message(slot, expected).ok()) return 0;
  const MessageHeader& header = header_of(slot.data());
  VOLLEY_CHECK(header.layer < expected.layers && header.micro_batch < expected.micro_batches);
  unsigned sum = 0;
  for (const Entry& entry : entries_of(slot.data(), layout, header.entry_count)) {
    VOLLEY_CHECK(entry.expert < expected.experts);
    sum += static_cast<unsigned>(*row_of(slot.data(), layout, entry.row));
  }
  if (layout.weight_bytes != 0) {
    VOLLEY_CHECK(header.row_count <= header.entry_count);
    for (const float& weight : weights_of(slot.data(), layout, header.entry_count)) {
      sum += static_cast<unsigned>(*reinterpret_cast<const std::byte*>(&weight));
    }
  }
  for (uint32_t row = 0; row < header.row_count; ++row) {
    sum += static_cast<unsigned>(row_of(slot.data(), layout, row)[layout.row_bytes - 1]);
  }
  volatile unsigned keep = sum;
  static_cast<void>(keep);
  return 0;
}
