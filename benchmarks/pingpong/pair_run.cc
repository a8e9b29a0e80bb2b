#include "pair_run.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <type_traits>

#include "common/children.h"
#include "common/nodes.h"
#include "common/streams.h"
#include "volley/base/clock.h"
#include "volley/transport/fault_fabric.h"

namespace volley::benchmarks {
namespace {

constexpr uint32_t kSlots = 2 * protocol::kMicroBatchesMax;
// Enough rows that a prompt of a few tokens is prefilled in few steps, but never fewer than decode.
constexpr uint32_t kPrefillRowsMin = 256;
// A step is about ten spans a layer on the busier node; the trace must reach back to the first one.
constexpr size_t kSpansPerLayer = 16;

/// When the last message of each slot was posted, per direction; in memory of both processes.
struct WireClock {
  std::atomic<Nanos> from_attention[kSlots];
  std::atomic<Nanos> from_expert[kSlots];
};
static_assert(std::atomic<Nanos>::is_always_lock_free, "else it could not be shared");

class SharedWireClock {
 public:
  static Result<SharedWireClock> create() {
    void* memory = ::mmap(nullptr, sizeof(WireClock), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return resource_exhausted("mmap: {}", errno_text(errno));
    return SharedWireClock(new (memory) WireClock());
  }
  SharedWireClock(SharedWireClock&& other) noexcept
      : clock_(std::exchange(other.clock_, nullptr)) {}
  ~SharedWireClock() {
    if (clock_ != nullptr) ::munmap(clock_, sizeof(WireClock));
  }
  WireClock& operator*() const { return *clock_; }

 private:
  explicit SharedWireClock(WireClock* clock) : clock_(clock) {}
  WireClock* clock_;
};

NodeOptions node_options(const PairOptions& pair, const model::Checkpoint& checkpoint,
                         uint32_t slack) {
  const uint32_t sequences = pair.micro_batches * pair.rows;
  const uint32_t tokens = pair.prompt_tokens + 1 + pair.steps + slack;
  const uint64_t steps = uint64_t{tokens} * pair.micro_batches;
  return {.fabric = pair.fabric,
          .isa = pair.isa,
          .threads = 1,
          .cores = {},
          .micro_batches = pair.micro_batches,
          .step_tokens_max = std::max(pair.rows, kPrefillRowsMin),
          .sequences_max = sequences,
          .sequence_tokens_max = tokens,
          .trace_capacity = kSpansPerLayer * steps * checkpoint.spec.layer_count()};
}

std::function<std::unique_ptr<transport::Fabric>(std::unique_ptr<transport::Fabric>)> delayed_by(
    Nanos delay, std::span<std::atomic<Nanos>> here, std::span<std::atomic<Nanos>> there) {
  if (delay == 0) return {};
  return [=](std::unique_ptr<transport::Fabric> inner) -> std::unique_ptr<transport::Fabric> {
    return transport::make_fault_fabric(
        std::move(inner),
        {.delay_min = delay, .delay_max = delay, .posted_here = here, .posted_there = there});
  };
}

static_assert(std::is_trivially_copyable_v<engine::SpanRecord>);

std::string trace_to_message(const Trace& trace) {
  return {reinterpret_cast<const char*>(trace.data()), trace.size() * sizeof(trace.front())};
}

Trace trace_from_message(const std::string& message) {
  Trace trace(message.size() / sizeof(engine::SpanRecord));
  std::memcpy(trace.data(), message.data(), trace.size() * sizeof(engine::SpanRecord));
  return trace;
}

Status run_expert(Channel& channel, const model::Checkpoint& checkpoint, const NodeOptions& options,
                  Nanos deadline) {
  VOLLEY_ASSIGN_OR_RETURN(ExpertNode node, start_expert_node(checkpoint, options));
  VOLLEY_RETURN_IF_ERROR(channel.send(peer_to_message(node.self()), deadline));
  // The attention node is done.
  VOLLEY_RETURN_IF_ERROR(channel.receive(deadline).status());
  node.stop();
  return channel.send(trace_to_message(node->take_trace()), deadline);
}

Status run_attention(Channel& channel, const model::Checkpoint& checkpoint,
                     const NodeOptions& options, const PairOptions& pair, uint32_t slack,
                     Nanos deadline) {
  VOLLEY_ASSIGN_OR_RETURN(AttentionNode node, start_attention_node(checkpoint, options));
  VOLLEY_ASSIGN_OR_RETURN(const std::string message, channel.receive(deadline));
  VOLLEY_ASSIGN_OR_RETURN(const engine::ExpertPeer peer, peer_from_message(message));
  VOLLEY_RETURN_IF_ERROR(link_nodes(*node, peer, checkpoint.spec, deadline));
  std::string window(2 * sizeof(Nanos), '\0');
  {
    Streams streams(*node, checkpoint.spec.vocab,
                    {.streams = pair.micro_batches * pair.rows,
                     .prompt_tokens = pair.prompt_tokens,
                     .decode_tokens = pair.steps,
                     .slack_tokens = slack});
    VOLLEY_RETURN_IF_ERROR(streams.wait(deadline));
    const Nanos times[2] = {streams.all_started(), streams.round_over()};
    std::memcpy(window.data(), times, sizeof times);
  }
  node.stop();
  VOLLEY_RETURN_IF_ERROR(channel.send(window, deadline));
  return channel.send(trace_to_message(node->take_trace()), deadline);
}

}  // namespace

Result<RunTrace> run_pair(const model::Checkpoint& checkpoint, const PairOptions& options) {
  const Nanos deadline = monotonic_now() + options.timeout;
  // The first sequences decode while the others' prompts are computed, and while this process, on
  // the same core as its engine, still submits them.
  const uint32_t slack =
      64 + 2 * options.micro_batches * options.rows * options.prompt_tokens / kPrefillRowsMin;
  VOLLEY_ASSIGN_OR_RETURN(const SharedWireClock clock, SharedWireClock::create());
  NodeOptions attention_node = node_options(options, checkpoint, slack);
  NodeOptions expert_node = attention_node;
  attention_node.cores = {options.attention_core};
  expert_node.cores = {options.expert_core};
  attention_node.decorate =
      delayed_by(options.wire_delay, (*clock).from_attention, (*clock).from_expert);
  expert_node.decorate =
      delayed_by(options.wire_delay, (*clock).from_expert, (*clock).from_attention);

  Children children;
  VOLLEY_ASSIGN_OR_RETURN(const size_t expert,
                          children.start({.name = "expert node", .cores = {options.expert_core}},
                                         [&](Channel& channel) {
                                           return run_expert(channel, checkpoint, expert_node,
                                                             deadline);
                                         }));
  VOLLEY_ASSIGN_OR_RETURN(
      const size_t attention,
      children.start(
          {.name = "attention node", .cores = {options.attention_core}}, [&](Channel& channel) {
            return run_attention(channel, checkpoint, attention_node, options, slack, deadline);
          }));
  VOLLEY_ASSIGN_OR_RETURN(const std::string peer, children.receive(expert, deadline));
  VOLLEY_RETURN_IF_ERROR(children.send(attention, peer, deadline));
  VOLLEY_ASSIGN_OR_RETURN(const std::string window, children.receive(attention, deadline));
  VOLLEY_ASSIGN_OR_RETURN(const std::string attention_trace, children.receive(attention, deadline));
  VOLLEY_RETURN_IF_ERROR(children.send(expert, "stop", deadline));
  VOLLEY_ASSIGN_OR_RETURN(const std::string expert_trace, children.receive(expert, deadline));
  VOLLEY_RETURN_IF_ERROR(children.finish(deadline));

  Nanos times[2] = {};
  if (window.size() != sizeof times) return internal_error("a window of {} bytes", window.size());
  std::memcpy(times, window.data(), sizeof times);
  return RunTrace{.micro_batches = options.micro_batches,
                  .rows = options.rows,
                  .layers = checkpoint.spec.layer_count(),
                  .begin = times[0],
                  .end = times[1],
                  .attention = trace_from_message(attention_trace),
                  .expert = trace_from_message(expert_trace)};
}

}  // namespace volley::benchmarks
