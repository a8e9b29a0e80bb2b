#pragma once

// The peers of `volley bench m2n`, each run by a process or a thread of its own.

#include <atomic>
#include <span>

#include "volley/base/clock.h"
#include "volley/bench/m2n_bench.h"
#include "volley/transport/fabric.h"

namespace volley::bench {

/// What the peers of one size share; it lies in memory that all their processes map.
struct M2nControl {
  static constexpr size_t kTextMax = 256;

  std::atomic<uint32_t> receivers_ready{0};
  std::atomic<uint32_t> senders_warm{0};
  std::atomic<uint32_t> senders_done{0};
  std::atomic<bool> abort{false};
  char address[kM2nPeersMax][kTextMax] = {};    ///< Of each receiver, once it is ready.
  char error[2 * kM2nPeersMax][kTextMax] = {};  ///< Of each peer that failed, senders first.
  double elapsed_seconds[kM2nPeersMax] = {};    ///< Of each sender's measured round trips.
};
static_assert(std::atomic<uint32_t>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

/// What a peer does that has nothing to do.
enum class M2nWait { kSleep, kPoll, kYield };

/// One size of one run.
struct M2nRun {
  const M2nBenchOptions& options;
  uint64_t bytes;
  M2nWait wait;
  Nanos deadline;
  transport::LinkKey key;
  M2nControl& control;
  std::span<double> seconds;  ///< [senders][iterations], shared like `control`.
};

/// Connects to every receiver, warms up, waits until all senders have, and measures.
/// Errors: kUnavailable (a link ended, the run was aborted), kDeadlineExceeded, and the fabric's.
Status run_m2n_sender(const M2nRun& run, uint32_t index);
/// Answers until all senders are done. Errors: as above.
Status run_m2n_receiver(const M2nRun& run, uint32_t index);

}  // namespace volley::bench
