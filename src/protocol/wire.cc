#include "volley/protocol/wire.h"

namespace volley::protocol {
namespace {

template <class Value>
Status field_error(const char* field, Value value, const std::string& allowed) {
  return data_loss("header.{} is {}, allowed: {}", field, value, allowed);
}

Status check_kind(const MessageHeader& header, const Expectation& expected) {
  const auto kind = static_cast<uint32_t>(header.kind);
  const auto refusal = static_cast<uint32_t>(header.refusal);
  const bool is_refusal = header.kind == MessageKind::kRefusal;
  const bool admitted =
      header.kind == expected.kind || (is_refusal && expected.kind == MessageKind::kAnswer);
  if (!admitted) {
    return field_error(
        "kind", kind,
        expected.kind == MessageKind::kDispatch ? "1 (dispatch)" : "2 (answer), 3 (refusal)");
  }
  if (!is_refusal && header.refusal != Refusal::kNone) {
    return field_error("refusal", refusal, "0 unless kind is 3 (refusal)");
  }
  if (is_refusal && (header.refusal < Refusal::kStaleMap || header.refusal > Refusal::kNotFinite)) {
    return field_error("refusal", refusal, "1 to 3 when kind is 3 (refusal)");
  }
  return ok_status();
}

Status check_sizes(const MessageHeader& header, const Expectation& expected) {
  const bool is_refusal = header.kind == MessageKind::kRefusal;
  const uint32_t rows_max = is_refusal ? 0 : expected.layout.rows_max;
  if (header.row_count > rows_max) {
    return field_error("row_count", header.row_count, fmt::format("0 to {}", rows_max));
  }
  // An entry names a row, so a dispatch without rows has none; answers never have any.
  const uint32_t entries_max = header.kind == MessageKind::kDispatch && header.row_count > 0
                                   ? expected.layout.entries_max
                                   : 0;
  if (header.entry_count > entries_max) {
    return field_error("entry_count", header.entry_count, fmt::format("0 to {}", entries_max));
  }
  // Each row of such a dispatch is answered with a row: one that no entry names would be work that
  // the gather's bound does not count.
  if (expected.layout.weight_bytes != 0 && header.row_count > header.entry_count) {
    return field_error("row_count", header.row_count,
                       fmt::format("0 to {}, the entries", header.entry_count));
  }
  if (header.row_bytes != expected.layout.row_bytes) {
    return field_error("row_bytes", header.row_bytes, std::to_string(expected.layout.row_bytes));
  }
  return ok_status();
}

Status check_place(const MessageHeader& header, const Expectation& expected) {
  if (header.slot != expected.slot || header.slot >= 2 * expected.micro_batches) {
    return field_error("slot", header.slot,
                       fmt::format("{}, below {}", expected.slot, 2 * expected.micro_batches));
  }
  if (header.micro_batch >= expected.micro_batches) {
    return field_error("micro_batch", header.micro_batch,
                       fmt::format("below {}", expected.micro_batches));
  }
  if (header.slot < expected.micro_batches && header.micro_batch != header.slot) {
    return field_error("micro_batch", header.micro_batch,
                       fmt::format("{}, whose own slot this is", header.slot));
  }
  if (header.layer >= expected.layers) {
    return field_error("layer", header.layer, fmt::format("below {}", expected.layers));
  }
  if (header.fragment_count == 0) {
    return field_error("fragment_count", header.fragment_count, "1 or more");
  }
  if (header.fragment >= header.fragment_count) {
    return field_error("fragment", header.fragment, fmt::format("below {}", header.fragment_count));
  }
  return ok_status();
}

}  // namespace

// The sequence, the map version and an answer's times have no wrong values of their own: the link
// and the map judge the first two, and the times change nothing but what is measured. Nor have
// weights: one that is not finite gives a row that is not, and this is looked for in any case.
Status validate_header(const MessageHeader& header, const Expectation& expected) {
  if (header.magic != kWireMagic) {
    return field_error("magic", fmt::format("{:#010x}", header.magic),
                       fmt::format("{:#010x}", kWireMagic));
  }
  if (header.wire_version != kWireVersion) {
    return field_error("wire_version", header.wire_version, std::to_string(kWireVersion));
  }
  VOLLEY_RETURN_IF_ERROR(check_kind(header, expected));
  if (header.dtype != expected.dtype) {
    return field_error("dtype", header.dtype, std::to_string(expected.dtype));
  }
  if (header.incarnation != expected.incarnation) {
    return field_error("incarnation", fmt::format("{:016x}", header.incarnation),
                       fmt::format("{:016x}", expected.incarnation));
  }
  if (header.link != expected.link) {
    return field_error("link", header.link, std::to_string(expected.link));
  }
  VOLLEY_RETURN_IF_ERROR(check_place(header, expected));
  return check_sizes(header, expected);
}

Status validate_entries(std::span<const Entry> entries, uint32_t row_count, uint32_t experts) {
  for (size_t i = 0; i < entries.size(); ++i) {
    const Entry& entry = entries[i];
    if (entry.row >= row_count) {
      return data_loss("entry {} names row {}, allowed: below {}", i, entry.row, row_count);
    }
    if (entry.expert >= experts) {
      return data_loss("entry {} names expert {}, allowed: below {}", i, entry.expert, experts);
    }
    if (i == 0) continue;
    const Entry& previous = entries[i - 1];
    const bool ascends = entry.expert > previous.expert ||
                         (entry.expert == previous.expert && entry.row > previous.row);
    if (!ascends) {
      return data_loss("entry {} (expert {}, row {}) does not follow (expert {}, row {})", i,
                       entry.expert, entry.row, previous.expert, previous.row);
    }
  }
  return ok_status();
}

Status validate_message(std::span<const std::byte> slot, const Expectation& expected) {
  if (slot.size() < expected.layout.slot_bytes()) {
    return data_loss("the slot has {} bytes, its layout needs {}", slot.size(),
                     expected.layout.slot_bytes());
  }
  const MessageHeader& header = header_of(slot.data());
  VOLLEY_RETURN_IF_ERROR(validate_header(header, expected));
  return validate_entries(entries_of(slot.data(), expected.layout, header.entry_count),
                          header.row_count, expected.experts);
}

}  // namespace volley::protocol
