#pragma once

// The M2N wire format: what lies in a slot and, byte for byte, what `tcp` and `rdma` carry.
// Little endian, natural alignment, no padding. docs/protocol.md draws it.

#include <cstddef>
#include <cstdint>
#include <span>

#include "volley/base/status.h"

namespace volley::protocol {

inline constexpr uint32_t kWireMagic = 0x31594c56;  // "VLY1"
inline constexpr uint16_t kWireVersion = 4;

/// What a row holds: MessageHeader::dtype. The first two are kernels::DType.
enum class RowDType : uint8_t {
  kBf16 = 1,
  kF32 = 2,
  kE4m3 = 3,  ///< Dispatches only. One byte per element and one scale for the row, see below.
};

enum class MessageKind : uint8_t {
  kDispatch = 1,  ///< Attention to expert: entries and one row per token.
  kAnswer = 2,    ///< Expert to attention: rows as Combine says.
  kRefusal = 3,   ///< Expert to attention: no rows; `refusal` says why.
};

/// Where the sum over a row's experts is made, the same on every link of a cluster. It is a part of
/// the geometry and not of the header, because the layout of a slot follows from it.
enum class Combine : uint8_t {
  /// On the attention node. An answer has one row per entry, in the dispatch's entry order.
  kExact = 0,
  /// As far as possible on the expert nodes. A dispatch has a weight per entry, and an answer one
  /// row per row of the dispatch: the sum of weight * expert(row) over the entries that name it, in
  /// ascending expert order. The sums depend on which expert lies where.
  kPreReduce = 1,
};

/// Why an expert node did not compute a dispatch.
enum class Refusal : uint32_t {
  kNone = 0,
  kStaleMap = 1,   ///< The dispatch names a map version that is too old.
  kNotHeld = 2,    ///< An entry names an expert that this node does not hold.
  kNotFinite = 3,  ///< A result has a NaN or an infinity.
};

/// A version of the expert map. Versions are ordered and never go back: the term is persisted.
struct MapVersion {
  uint32_t term = 0;
  uint32_t number = 0;
  auto operator<=>(const MapVersion&) const = default;
};

/// What the expert node measured of the gather that an answer is from.
struct AnswerTimes {
  /// As `queue_ns`: the node was computing when the dispatch came, and cannot tell for how long it lay.
  static constexpr uint32_t kUnknown = 0xffffffff;
  uint32_t compute_ns;  ///< T_e of the gather; 2^32 - 1 when longer.
  uint32_t queue_ns;    ///< From the dispatch's arrival to the gather's start; at most 2^32 - 2.
  auto operator<=>(const AnswerTimes&) const = default;

  /// `queue` < 0: unknown.
  static constexpr AnswerTimes make(int64_t compute, int64_t queue) {
    return {.compute_ns = compute < 0xffffffff ? static_cast<uint32_t>(compute) : 0xffffffff,
            .queue_ns = queue < 0            ? kUnknown
                        : queue < 0xfffffffe ? static_cast<uint32_t>(queue)
                                             : 0xfffffffe};
  }
};

struct MessageHeader {
  uint32_t magic = kWireMagic;            // 0
  uint16_t wire_version = kWireVersion;   // 4
  MessageKind kind = MessageKind::kDispatch;  // 6
  uint8_t dtype = 0;                      // 7   RowDType of the rows
  uint64_t incarnation = 0;               // 8   the sender's
  uint64_t sequence = 0;                  // 16  per link, ascending; an answer repeats its dispatch's
  uint32_t link = 0;                      // 24  agreed in the handshake
  uint16_t slot = 0;                      // 28
  uint16_t micro_batch = 0;               // 30
  uint32_t layer = 0;                     // 32
  union {
    MapVersion map = {};                  // 36  8 bytes: dispatches
    AnswerTimes times;                    //     answers; not meant in refusals
  };
  uint16_t fragment = 0;                  // 44
  uint16_t fragment_count = 0;            // 46
  uint32_t row_count = 0;                 // 48
  uint32_t entry_count = 0;               // 52  0 in answers
  uint32_t row_bytes = 0;                 // 56
  Refusal refusal = Refusal::kNone;       // 60
};
static_assert(sizeof(MessageHeader) == 64);
static_assert(sizeof(AnswerTimes) == 8 && offsetof(MessageHeader, times) == 36);
static_assert(offsetof(MessageHeader, map) == 36 && offsetof(MessageHeader, refusal) == 60);

/// Row `row` of the dispatch is to be computed by `expert`. Entries are sorted by (expert, row).
struct Entry {
  uint32_t row = 0;
  uint32_t expert = 0;
  auto operator<=>(const Entry&) const = default;
};
static_assert(sizeof(Entry) == 8);

/// Of an entry's weight, an f32, where there are weights.
inline constexpr uint32_t kWeightBytes = sizeof(float);

/// Bytes of one slot, as the sender, the NIC and the reader all see it:
///   header   64 B
///   entries  [entry_count] Entry, then [entry_count] weights of weight_bytes; room for entries_max
///   rows     [rows_max][row_bytes], at a multiple of 64
/// Entries and weights in use lie together, so that they travel as one piece.
struct SlotLayout {
  uint32_t rows_max = 0;
  uint32_t entries_max = 0;
  uint32_t row_bytes = 0;
  uint32_t weight_bytes = 0;  ///< 0: entries have no weights; 4: an f32 for each.

  static constexpr size_t align(size_t value, size_t alignment) {
    return (value + alignment - 1) / alignment * alignment;
  }
  constexpr size_t entries_offset() const { return sizeof(MessageHeader); }
  /// Of so many entries with their weights.
  constexpr size_t entries_bytes(uint32_t count) const {
    return count * (sizeof(Entry) + size_t{weight_bytes});
  }
  constexpr size_t rows_offset() const {
    return align(entries_offset() + entries_bytes(entries_max), 64);
  }
  constexpr size_t slot_bytes() const {
    return align(rows_offset() + size_t{rows_max} * row_bytes, 4096);
  }
  auto operator<=>(const SlotLayout&) const = default;
};
static_assert(SlotLayout{.rows_max = 128, .entries_max = 1024, .row_bytes = 14'336}.slot_bytes() ==
              1'847'296);

/// Bytes of a row of kE4m3:
///   codes  [width]   E4M3 (volley/base/e4m3.h), one byte per element
///   zeros            up to the scale
///   scale  f32       the last 4 bytes; an element is code * scale
/// A multiple of 16, so that every row starts at one, and the scale at a multiple of 4.
constexpr uint32_t e4m3_row_bytes(uint32_t width) {
  return static_cast<uint32_t>(SlotLayout::align(size_t{width} + sizeof(float), 16));
}
static_assert(e4m3_row_bytes(7168) == 7184 && e4m3_row_bytes(12) == 16 && e4m3_row_bytes(13) == 32);

/// What both ends of a link must agree on. Slots [0, micro_batches) are the micro-batches' own, slots
/// [micro_batches, 2 * micro_batches) are takeover slots.
struct LinkGeometry {
  uint32_t micro_batches = 0;  ///< At most kMicroBatchesMax.
  SlotLayout dispatch;
  SlotLayout answer;           ///< rows_max is answer_rows_max(); no entries.

  constexpr Combine combine() const {
    return dispatch.weight_bytes != 0 ? Combine::kPreReduce : Combine::kExact;
  }
  /// Rows of the answer to a dispatch with so many rows and entries.
  constexpr uint32_t answer_rows(uint32_t rows, uint32_t entries) const {
    return combine() == Combine::kPreReduce ? rows : entries;
  }
  constexpr uint32_t answer_rows_max() const {
    return answer_rows(dispatch.rows_max, dispatch.entries_max);
  }
  constexpr uint32_t slot_count() const { return 2 * micro_batches; }
  constexpr size_t region_bytes() const {
    return slot_count() * (dispatch.slot_bytes() + answer.slot_bytes());
  }
  auto operator<=>(const LinkGeometry&) const = default;

  /// `rows_max` tokens a fragment, each to at most `experts_per_row` experts of one node. Answers
  /// have rows of `answer_row_bytes`.
  static constexpr LinkGeometry make(uint32_t micro_batches, uint32_t rows_max,
                                     uint32_t experts_per_row, uint32_t row_bytes,
                                     uint32_t answer_row_bytes,
                                     Combine combine = Combine::kExact) {
    LinkGeometry geometry;
    geometry.micro_batches = micro_batches;
    geometry.dispatch = {.rows_max = rows_max,
                         .entries_max = rows_max * experts_per_row,
                         .row_bytes = row_bytes,
                         .weight_bytes = combine == Combine::kPreReduce ? kWeightBytes : 0};
    geometry.answer = {
        .rows_max = geometry.answer_rows_max(), .entries_max = 0, .row_bytes = answer_row_bytes};
    return geometry;
  }
  /// Rows of `row_bytes` both ways.
  static constexpr LinkGeometry make(uint32_t micro_batches, uint32_t rows_max,
                                     uint32_t experts_per_row, uint32_t row_bytes) {
    return make(micro_batches, rows_max, experts_per_row, row_bytes, row_bytes);
  }
};
inline constexpr uint32_t kMicroBatchesMax = 16;

inline MessageHeader& header_of(std::byte* slot) { return *reinterpret_cast<MessageHeader*>(slot); }
inline const MessageHeader& header_of(const std::byte* slot) {
  return *reinterpret_cast<const MessageHeader*>(slot);
}
inline std::span<Entry> entries_of(std::byte* slot, const SlotLayout& layout, uint32_t count) {
  return {reinterpret_cast<Entry*>(slot + layout.entries_offset()), count};
}
inline std::span<const Entry> entries_of(const std::byte* slot, const SlotLayout& layout,
                                         uint32_t count) {
  return {reinterpret_cast<const Entry*>(slot + layout.entries_offset()), count};
}
/// The weights of a slot whose layout has them; `count` is the message's entry_count.
inline std::span<float> weights_of(std::byte* slot, const SlotLayout& layout, uint32_t count) {
  return {reinterpret_cast<float*>(slot + layout.entries_offset() + count * sizeof(Entry)), count};
}
inline std::span<const float> weights_of(const std::byte* slot, const SlotLayout& layout,
                                         uint32_t count) {
  return {reinterpret_cast<const float*>(slot + layout.entries_offset() + count * sizeof(Entry)),
          count};
}
inline std::byte* row_of(std::byte* slot, const SlotLayout& layout, uint32_t row) {
  return slot + layout.rows_offset() + size_t{row} * layout.row_bytes;
}
inline const std::byte* row_of(const std::byte* slot, const SlotLayout& layout, uint32_t row) {
  return slot + layout.rows_offset() + size_t{row} * layout.row_bytes;
}

/// What the receiver of a message knows about the link it came on.
struct Expectation {
  MessageKind kind = MessageKind::kDispatch;  ///< kAnswer also admits kRefusal.
  uint64_t incarnation = 0;
  uint32_t link = 0;
  uint32_t slot = 0;
  uint32_t layers = 0;
  uint32_t experts = 0;   ///< Checked for dispatches.
  uint8_t dtype = 0;
  SlotLayout layout;
  uint32_t micro_batches = 0;
};

/// Checks every field of the header alone, so that a transport may trust its sizes. A dispatch whose
/// entries have weights has at most as many rows as entries.
/// Errors: kDataLoss naming the field, its value and what was allowed.
Status validate_header(const MessageHeader& header, const Expectation& expected);

/// Checks that every entry names a row and an expert that exist, sorted by (expert, row) without duplicates.
/// Errors: kDataLoss as above.
Status validate_entries(std::span<const Entry> entries, uint32_t row_count, uint32_t experts);

/// Checks header and entries of a message that nobody else can write to any more. `slot` has
/// layout.slot_bytes() bytes. Errors: kDataLoss as above.
Status validate_message(std::span<const std::byte> slot, const Expectation& expected);

}  // namespace volley::protocol
