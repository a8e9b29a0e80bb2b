// Goal: no byte stream makes the TCP receive path write outside its slots or report a message
// twice. Method: the input is what a peer sends, cut into reads by its own bytes; the link answers
// now and then, which gives credit back.

#include <algorithm>
#include <cstring>
#include <vector>

#include "../../src/transport/stream.h"
#include "volley/base/check.h"

using namespace volley;
using namespace volley::transport;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr auto kGeometry = protocol::LinkGeometry::make(2, 4, 2, 40);
  constexpr protocol::SlotLayout kLayout = kGeometry.dispatch;
  // A heap block of exactly the slots' size, so that the sanitizer sees every step beyond it.
  std::vector<std::byte> slots(kGeometry.slot_count() * kLayout.slot_bytes());
  Inbox inbox;
  inbox.open({.incarnation = 9,
              .link = 5,
              .layers = 2,
              .dtype = 1,
              .layout = kLayout,
              .micro_batches = kGeometry.micro_batches},
             true);
  StreamParser parser;
  parser.open(&inbox, slots.data());

  uint32_t unanswered = 0;
  while (size > 1) {
    // One byte says how much the next read yields, and whether an answer goes out before it.
    const uint8_t control = *data++;
    --size;
    if ((control & 0x80) != 0 && unanswered != 0) {
      const auto slot = static_cast<uint32_t>(__builtin_ctz(unanswered));
      unanswered &= unanswered - 1;
      inbox.grant(slot);
    }
    // 127: all that is left, so that one read can take several frames.
    const size_t asked = size_t{control & 0x7fu} + 1;
    size_t piece = asked == 0x80 ? size : std::min(size, asked);
    StreamParser::Buffers buffers;
    const size_t count = parser.buffers(buffers);
    VOLLEY_CHECK(count > 0);
    size_t moved = 0;
    for (size_t i = 0; i < count && piece > 0; ++i) {
      VOLLEY_CHECK(buffers[i].iov_len > 0);
      const size_t n = std::min(buffers[i].iov_len, piece);
      std::memcpy(buffers[i].iov_base, data, n);
      data += n;
      size -= n;
      piece -= n;
      moved += n;
    }
    Result<StreamParser::Progress> progress = parser.advance(moved);
    for (; progress.ok() && *progress != StreamParser::Progress::kPartial;
         progress = parser.advance(0)) {
      if (*progress != StreamParser::Progress::kMessage) continue;
      const uint32_t slot = parser.slot();
      VOLLEY_CHECK(slot < kGeometry.slot_count());
      VOLLEY_CHECK((unanswered & (1u << slot)) == 0);
      unanswered |= 1u << slot;
      const protocol::MessageHeader& header = inbox.header(slot);
      VOLLEY_CHECK(header.row_count <= kLayout.rows_max &&
                   header.entry_count <= kLayout.entries_max);
    }
    if (!progress.ok()) return 0;
  }
  return 0;
}
