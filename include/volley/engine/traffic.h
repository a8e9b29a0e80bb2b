#pragma once

// What a node's data plane carried, and what it did not have to carry.

#include <cstdint>

#include "volley/protocol/wire.h"
#include "volley/transport/fabric.h"

namespace volley::engine {

/// Totals since the node's start. Bytes are those of the messages as docs/protocol.md lays them
/// out: header, entries and rows in use, the same on every fabric, whether it moves them or shares
/// the memory. Handshakes and heartbeats are not counted.
struct Traffic {
  uint64_t messages_sent = 0, messages_received = 0;
  uint64_t bytes_sent = 0, bytes_received = 0;
  /// Bytes that this node's messages would have had more if each row went once to every expert that
  /// is to compute it, in place of once to the expert's node, as rows of the model's dtype. Only
  /// attention nodes save these.
  uint64_t saved_sharing_bytes = 0;
  /// Bytes by which the rows sent are smaller than rows of the model's dtype.
  uint64_t saved_fp8_bytes = 0;
  /// Bytes that this node's answers would have had more if each entry had its row, in place of each
  /// row of the dispatch. Only expert nodes save these; the weights that this needs are in what the
  /// attention nodes have sent.
  uint64_t saved_pre_reduce_bytes = 0;

  /// Counts what one dispatch saves: it has `header` and goes over a link of `geometry`, whose
  /// answers have rows of the model's dtype, and whose dispatches have none that are larger.
  void count_saved(const protocol::MessageHeader& header, const protocol::LinkGeometry& geometry) {
    // Every row is named by at least one entry.
    const uint64_t shared = header.entry_count - header.row_count;
    const uint64_t model_row_bytes = geometry.answer.row_bytes;
    saved_sharing_bytes += shared * model_row_bytes;
    saved_fp8_bytes += header.row_count * (model_row_bytes - geometry.dispatch.row_bytes);
  }

  /// Counts what the answer to the dispatch with this header saves.
  void count_saved_by_answer(const protocol::MessageHeader& dispatch,
                             const protocol::LinkGeometry& geometry) {
    const uint32_t rows = geometry.answer_rows(dispatch.row_count, dispatch.entry_count);
    saved_pre_reduce_bytes += uint64_t{dispatch.entry_count - rows} * geometry.answer.row_bytes;
  }

  void set_counters(const transport::Fabric::Counters& counters) {
    messages_sent = counters.messages_sent;
    messages_received = counters.messages_received;
    bytes_sent = counters.bytes_sent;
    bytes_received = counters.bytes_received;
  }
};

}  // namespace volley::engine
