#pragma once

// `volley bench m2n`: M senders and N receivers over the real transport. The harness is the same
// for every system under test: volley/bench/m2n_system.h.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "volley/bench/machine.h"

namespace volley::bench {

inline constexpr uint32_t kM2nPeersMax = 32;  ///< Senders, and receivers.
/// The row of a shape that says nothing else: that of a bf16 model with hidden size 1024.
inline constexpr uint32_t kM2nRowBytes = 2048;
inline constexpr uint64_t kM2nBytesMax = uint64_t{16} << 20;
inline constexpr uint32_t kM2nWindowMax = 16;

/// One line of a report.
struct M2nShape {
  uint32_t senders = 1;    ///< 1 to kM2nPeersMax.
  uint32_t receivers = 1;  ///< 1 to kM2nPeersMax.
  uint32_t row_bytes = kM2nRowBytes;
  /// Rows of one dispatch to one receiver: a multiple of row_bytes, at most kM2nBytesMax.
  uint64_t bytes = kM2nRowBytes;
  /// Rows of one answer: likewise. Only round trips use it; see M2nPattern.
  uint64_t answer_bytes = kM2nRowBytes;
};

enum class M2nPattern : uint8_t {
  kRoundTrip,  ///< A dispatch to every receiver, then all answers, then the next.
  kOneWay,     ///< `window` dispatches under way on every link; answers carry nothing.
  kBoth,       ///< The same with answers as large as the dispatches: both directions at once.
};

struct M2nBenchOptions {
  /// "shm", "tcp", "rdma" (peers are processes) or "local" (threads).
  std::string fabric = "shm";
  /// Of rdma: "mlx5_0" or "mlx5_0:2", one or two. Senders use the first, receivers the last; empty:
  /// both use the first active port.
  std::vector<std::string> rdma_ports;
  uint32_t queue_pairs = 1;  ///< Of rdma: of a link.
  std::vector<M2nShape> shapes;
  M2nPattern pattern = M2nPattern::kRoundTrip;
  uint32_t window = 2;         ///< Slots of a link, 1 to kM2nWindowMax; a round trip uses one.
  uint32_t iterations = 1000;  ///< Dispatches that are measured, per link.
  uint32_t warmup = 100;       ///< Dispatches before these.
  /// Bytes after which a link is done, though never before kM2nIterationsMin dispatches: large
  /// messages need fewer. The warm-up shrinks in proportion. 0: only `iterations` counts.
  uint64_t link_bytes_max = 0;
  /// Peer i, senders first, stays on core i % size; empty: the kernel places them.
  std::vector<uint32_t> cores;
  /// How a peer waits: "sleep" is Fabric::wait(), as the engines do it: it polls for a moment and
  /// then sleeps; "poll" never sleeps, and yields after each look when peers share cores.
  std::string wait = "sleep";
  bool busy = false;             ///< Keeps every core busy with a process of the lowest priority.
  uint32_t timeout_ms = 60'000;  ///< For all of one shape; then the run fails.
};

inline constexpr uint32_t kM2nIterationsMin = 30;
/// What options.link_bytes_max leaves of options.iterations.
uint32_t m2n_iterations(const M2nBenchOptions& options, const M2nShape& shape);

/// The shapes of a publication; `senders` and `receivers` apply where the name leaves them open:
///   paper     MegaScale-Infer, figure 10: 2 KB to 8 MB
///   paper-mn  figure 11: 256 KB over M = N = 4, 8, 16, 32
///   deepep    128 tokens of 7168 bf16, top-8 spread evenly over the receivers; a row goes once to
///   a
///             receiver and comes back once per chosen expert
///   stepmesh  one sender, one receiver, 128 tokens of 7168 bf16 there and back
/// Errors: kInvalidArgument.
Result<std::vector<M2nShape>> m2n_preset(const std::string& name, uint32_t senders,
                                         uint32_t receivers);

/// Seconds that one step takes when nothing is in the way, the best of many in the same run.
struct M2nSteps {
  double copy_dispatch = 0;  ///< memcpy of a dispatch; 0 on tcp.
  double copy_answer = 0;    ///< memcpy of an answer; 0 on tcp.
  /// Dispatch and answer between two threads: on tcp over two plain sockets, else through two
  /// buffers and two flags that both poll (0: not measured, there is no core for each).
  double plain_round_trip = 0;
  /// tcp: a dispatch in a stream of them over a plain socket, one direction.
  double plain_stream = 0;
};

/// What a round trip cannot beat: see docs/benchmarks.md. `core_count` is what the peers share.
double m2n_round_trip_bound_seconds(const M2nSteps& steps, const M2nShape& shape,
                                    uint32_t core_count);
/// What one dispatch on every link cannot beat when they stream; `both`: with answers as large.
double m2n_stream_bound_seconds(const M2nSteps& steps, const M2nShape& shape, uint32_t core_count,
                                bool both);

struct M2nResult {
  M2nShape shape;
  uint32_t iterations = 0;
  /// From the first byte written to the last answer read, over all senders. Streams: of each
  /// dispatch, from its first byte written to the answer that frees its slot.
  double best_seconds = 0, median_seconds = 0, p99_seconds = 0, p999_seconds = 0;
  /// Time of a sender for a dispatch on each of its links, one after the other: elapsed time by
  /// iterations, the mean over the senders.
  double mean_seconds = 0;
  /// Row bytes per second of all links together, in units of 10^9.
  double dispatch_gbps = 0, answer_gbps = 0;
  double bound_seconds = 0;  ///< 0: no bound was measured.
  double plain_seconds = 0;  ///< M2nSteps: one sender and one receiver without Volley.
  /// Round trips: bound / best and bound / median; streams: bound / mean. 0 without a bound.
  double best_share = 0, median_share = 0;
};

struct M2nReport {
  Machine machine;
  std::string date;  ///< UTC, ISO 8601.
  std::string system;
  M2nPattern pattern = M2nPattern::kRoundTrip;
  uint32_t window = 1;
  std::vector<uint32_t> cores;  ///< What the peers were pinned to.
  bool polling = false;         ///< How the peers waited.
  bool busy = false;
  uint32_t core_count = 0;  ///< The cores that the peers shared.
  std::vector<M2nResult> results;
};

using M2nProgress = std::function<void(const std::string&)>;

/// Measures all shapes, one after the other. Blocks. Forks, except on local without `busy`: no
/// other thread may run in this process. When it returns no peer is left. Errors: kInvalidArgument
/// (an option, named), kNotFound or kFailedPrecondition (the RDMA port: what there is),
/// kUnavailable or kDeadlineExceeded (a peer ended early, or the time was over: who and how),
/// kResourceExhausted (memory).
Result<M2nReport> run_m2n_bench(const M2nBenchOptions& options, const M2nProgress& progress);

/// "round-trip", "one-way", "both".
const char* m2n_pattern_name(M2nPattern pattern);

/// For people; docs/benchmarks.md explains the columns.
std::string format_m2n_report(const M2nReport& report);
/// The same data as a JSON object.
std::string m2n_report_json(const M2nReport& report);

}  // namespace volley::bench
