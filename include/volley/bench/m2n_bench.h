#pragma once

// `volley bench m2n`: M senders and N receivers over the real transport.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "volley/bench/machine.h"

namespace volley::bench {

inline constexpr uint32_t kM2nPeersMax = 8;  ///< Senders, and receivers.
/// Messages consist of rows of this size: those of a bf16 model with hidden size 1024.
inline constexpr uint32_t kM2nRowBytes = 2048;
inline constexpr uint64_t kM2nBytesMax = uint64_t{8} << 20;

struct M2nBenchOptions {
  std::string fabric = "shm";  ///< "shm", "tcp" (peers are processes) or "local" (threads).
  uint32_t senders = 1;        ///< 1 to kM2nPeersMax.
  uint32_t receivers = 1;      ///< 1 to kM2nPeersMax.
  /// Rows of one dispatch to one receiver, each measured on its own: a multiple of kM2nRowBytes, at
  /// most kM2nBytesMax.
  std::vector<uint64_t> bytes = {2048, 16'384, 131'072, 1'048'576};
  uint64_t answer_bytes = kM2nRowBytes;  ///< Rows of one answer: as above.
  uint32_t iterations = 1000;            ///< Round trips that are measured, per sender.
  uint32_t warmup = 100;                 ///< Round trips before these.
  /// Peer i, senders first, stays on core i % size; empty: the kernel places them.
  std::vector<uint32_t> cores;
  /// How a peer waits: "sleep" is Fabric::wait(), as the engines do it: it polls for a moment and
  /// then sleeps; "poll" never sleeps, and yields after each look when peers share cores.
  std::string wait = "sleep";
  uint32_t timeout_ms = 60'000;  ///< For all of one size; then the run fails.
};

/// Seconds that one step takes when nothing is in the way, the best of many in the same run.
struct M2nSteps {
  double copy_dispatch = 0;  ///< memcpy of a dispatch; 0 on tcp.
  double copy_answer = 0;    ///< memcpy of an answer; 0 on tcp.
  /// Dispatch and answer between two threads: on tcp over two plain sockets, else through two
  /// buffers and two flags that both poll (0: not measured, there is no core for each).
  double plain_round_trip = 0;
};

/// What a round trip cannot beat: see docs/benchmarks.md. `core_count` is what the peers share.
double m2n_bound_seconds(const M2nSteps& steps, uint32_t senders, uint32_t receivers,
                         uint32_t core_count);

struct M2nResult {
  uint64_t bytes = 0;
  uint64_t answer_bytes = 0;
  /// Of a round trip: from the first byte written to the last answer read, over all senders.
  double best_seconds = 0, median_seconds = 0, p99_seconds = 0, p999_seconds = 0;
  /// Row bytes per second of all links together, in units of 10^9.
  double dispatch_gbps = 0, answer_gbps = 0;
  double bound_seconds = 0;
  double plain_seconds = 0;  ///< M2nSteps::plain_round_trip: one sender and one receiver.

  double best_share() const { return bound_seconds / best_seconds; }
  double median_share() const { return bound_seconds / median_seconds; }
};

struct M2nReport {
  Machine machine;
  std::string date;  ///< UTC, ISO 8601.
  std::string fabric;
  uint32_t senders = 0, receivers = 0;
  uint32_t iterations = 0;
  std::vector<uint32_t> cores;  ///< What the peers were pinned to.
  bool polling = false;         ///< How the peers waited.
  uint32_t core_count = 0;      ///< The cores that the peers shared.
  std::vector<M2nResult> results;
};

/// Measures all sizes, one after the other. Blocks. Forks, except on local: no other thread may run
/// in this process. When it returns no peer is left. Errors: kInvalidArgument (an option, named),
/// kUnavailable or kDeadlineExceeded (a peer ended early, or the time was over: who and how),
/// kResourceExhausted (memory).
Result<M2nReport> run_m2n_bench(const M2nBenchOptions& options,
                                const std::function<void(const std::string&)>& progress);

/// For people; docs/benchmarks.md explains the columns.
std::string format_m2n_report(const M2nReport& report);
/// The same data as a JSON object.
std::string m2n_report_json(const M2nReport& report);

}  // namespace volley::bench
