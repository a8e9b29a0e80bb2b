#pragma once

// The ping-pong pipeline in closed form: formulas (1) to (6) of MegaScale-Infer, section 4, with
// the term for few micro-batches that the paper leaves out. docs/planning.md derives them.

#include <cstdint>

#include "volley/perf/device.h"

namespace volley::planner {

/// One phase of communication between two pools, for one micro-batch and layer; seconds.
struct PhaseTime {
  double total = 0;  ///< From the first byte sent to the last one usable: T_c.
  double wire = 0;   ///< Of it, the time for which the slower end's NIC is busy.
};

/// What one layer takes for one micro-batch; seconds. Four resources that each take one micro-batch
/// after the other: attention nodes, the way there, expert nodes, the way back.
struct LayerTimes {
  double attention = 0;  ///< T_a, with the layer's share of the step's head and sampling.
  double expert = 0;     ///< T_e.
  PhaseTime dispatch;
  PhaseTime combine;
  /// Attention and experts are computed by the same devices: one resource, not two.
  bool colocated = false;

  /// X = T_a + T_e + 2 T_c: one micro-batch through one layer, alone.
  double round_trip() const;
  /// What the busiest resource spends on a micro-batch. T_f, unless the network is slower.
  double busiest() const;
};

/// The time of a whole batch of m micro-batches through `layers` layers and out, formula (5) with
/// its correction: max(X + T_f (m L - 1), L X + (m - 1) T_f).
double batch_time(const LayerTimes& times, uint32_t micro_batches, uint32_t layers);
/// The time between two tokens of a sequence while steps follow each other: L max(m T_f, X).
double token_period(const LayerTimes& times, uint32_t micro_batches, uint32_t layers);

/// Formula (4): bounds of the time of one micro-batch, where m T_f >= X.
struct IterationBounds {
  double least = 0;
  double most = 0;
};
IterationBounds iteration_bounds(const LayerTimes& times, uint32_t micro_batches, uint32_t layers);

/// Formula (3): the micro-batches that hide communication, ceil(2 (1 + T_c / T_f)).
uint32_t micro_batches_min(double transfer_over_compute);

/// Bytes between one device of an attention node and one device of an expert node that holds one
/// expert: rows * top_k / experts rows of `row_bytes`, sliced over the tp devices of the sender.
double pair_bytes(double rows, double top_k, double experts, double row_bytes, uint32_t tp);

/// Formula (6): T_c of a phase in which each sending device sends `send_bytes` in total and each
/// receiving one gets `receive_bytes`. Util is Efficiency::network, at each end's own bytes; the
/// latency is the larger message_s of both. No bytes: no time.
PhaseTime phase_time(const perf::Device& sender, double send_bytes, const perf::Device& receiver,
                     double receive_bytes);

}  // namespace volley::planner
