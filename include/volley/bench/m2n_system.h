#pragma once

// What `volley bench m2n` measures, and what benchmarks/m2n_baselines measures in its place. The
// pattern, the fill and the read of every payload, the clock, the statistics and the report are the
// harness's and the same for all; a system only moves messages.

#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "volley/base/fd.h"
#include "volley/base/ids.h"
#include "volley/bench/m2n_bench.h"

namespace volley::bench {

/// What the peers of one run share; it lies in memory that all their processes map.
struct M2nControl {
  static constexpr size_t kAddressMax = 4096;
  static constexpr size_t kTextMax = 256;
  static constexpr size_t kAllPeersMax = 2 * kM2nPeersMax;

  struct Address {
    std::atomic<uint32_t> bytes{0};  ///< 0: not published.
    char data[kAddressMax] = {};
  };
  std::atomic<uint32_t> senders_warm{0};
  std::atomic<uint32_t> senders_done{0};
  std::atomic<bool> abort{false};
  Address address[kAllPeersMax];              ///< Of each peer, senders first.
  char error[kAllPeersMax][kTextMax] = {};    ///< Of each peer that failed.
  double elapsed_seconds[kM2nPeersMax] = {};  ///< Of each sender's measured dispatches.
};
static_assert(std::atomic<uint32_t>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

/// What a peer does that has nothing to do.
enum class M2nWait { kSleep, kPoll, kYield };

/// One shape of one run.
struct M2nRun {
  const M2nBenchOptions& options;
  const M2nShape& shape;
  uint32_t iterations = 0, warmup = 0;  ///< Dispatches per link.
  uint32_t slots = 1;                   ///< Messages that a link may have under way.
  uint64_t answer_bytes = 0;            ///< What the pattern makes of shape.answer_bytes.
  M2nWait wait = M2nWait::kSleep;
  Nanos deadline = 0;
  M2nControl& control;
  /// [senders][samples per sender], shared like `control`.
  std::span<double> seconds;

  uint32_t peer_count() const { return shape.senders + shape.receivers; }
  std::span<double> samples_of(uint32_t sender) const {
    const size_t each = seconds.size() / shape.senders;
    return seconds.subspan(each * sender, each);
  }
  /// Why to give up: kUnavailable (another peer failed), kDeadlineExceeded.
  Status check() const;
  /// Leaves the address of `peer` (a number, senders first) where the others look for it.
  Status publish(uint32_t peer, std::string_view address) const;
  /// Waits for the address of `peer`. Errors: those of check().
  Result<std::string> address_of(uint32_t peer) const;
};

/// A message that has come; the payload stays until the next post() on that link and slot.
struct M2nArrival {
  uint32_t link = 0;
  uint32_t slot = 0;
  std::span<const std::byte> payload;
};

/// One peer's end of the system under test. Link i of a sender leads to receiver i and the other
/// way round. On a link and slot dispatches and answers alternate. One thread.
class M2nEndpoint {
 public:
  virtual ~M2nEndpoint() = default;
  /// Where the payload of the next message is to be written; free since the last one was answered.
  virtual std::byte* send_buffer(uint32_t link, uint32_t slot) = 0;
  /// Sends `bytes` of that buffer, maybe none.
  virtual Status post(uint32_t link, uint32_t slot, size_t bytes) = 0;
  /// Moves what can be moved and appends what has come.
  virtual Status poll(std::vector<M2nArrival>& arrived) = 0;
  /// Sleeps until poll() may have something, or `deadline`; may return at once.
  virtual void wait(Nanos deadline) = 0;
};

struct M2nSystem {
  std::string name;
  bool threads = false;  ///< Peers are threads of this process.
  /// Makes the end of `peer` (a number, senders first). A sender's links are open on return; a
  /// receiver's open while it polls.
  std::function<Result<std::unique_ptr<M2nEndpoint>>(const M2nRun&, uint32_t peer)> endpoint;
  /// In place of endpoint(), for what cannot be seen as messages: the whole loop of a peer.
  std::function<Status(const M2nRun&, uint32_t peer)> run_peer;
  /// What a lone sender and receiver need at least; nothing: no bound.
  std::function<Result<M2nSteps>(const M2nRun&, uint32_t near_core, uint32_t far_core)> steps;

  /// Set when the peers are processes that something else has started (mpirun): this process is
  /// `self` of them, and all call run_m2n_system() with the same options. `share` gives zeroed
  /// memory that all of them map, the same in each; `meet` returns when all have called it.
  struct World {
    uint32_t self = 0;
    std::function<Result<std::span<std::byte>>(size_t bytes)> share;
    std::function<void()> meet;
  };
  std::unique_ptr<World> world;
};

/// run_m2n_bench() of any system; options.fabric does not matter. In a world the report is whole in
/// process 0 only.
Result<M2nReport> run_m2n_system(const M2nSystem& system, const M2nBenchOptions& options,
                                 const M2nProgress& progress);

/// Writes the payload of a message as the kernel that makes it would, every byte once; the sequence
/// number comes first.
void fill_m2n_payload(std::span<const std::byte> rows, uint64_t sequence, std::byte* out);
/// Reads every byte once, as a kernel would. Errors: kDataLoss (another sequence number).
Status read_m2n_payload(std::span<const std::byte> payload, size_t bytes, uint64_t sequence,
                        std::span<std::byte> rows);

}  // namespace volley::bench
