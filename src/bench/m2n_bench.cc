#include "volley/bench/m2n_bench.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>
#include <numeric>
#include <thread>

#include "m2n_fabric.h"
#include "m2n_pattern.h"
#include "peer_processes.h"
#include "volley/base/check.h"
#include "volley/base/clock.h"
#include "volley/bench/m2n_system.h"
#include "volley/bench/statistics.h"
#include "volley/transport/rdma_options.h"

namespace volley::bench {
namespace {

Status check_size(const char* name, uint64_t bytes, uint32_t row_bytes) {
  if (bytes > 0 && bytes % row_bytes == 0 && bytes <= kM2nBytesMax) return ok_status();
  return invalid_argument("{} is {}, allowed: multiples of {} up to {}", name, bytes, row_bytes,
                          kM2nBytesMax);
}

Status check(const M2nShape& shape) {
  for (const auto& [name, count] :
       {std::pair("senders", shape.senders), std::pair("receivers", shape.receivers)}) {
    if (count == 0 || count > kM2nPeersMax) {
      return invalid_argument("{} is {}, allowed: 1 to {}", name, count, kM2nPeersMax);
    }
  }
  if (shape.row_bytes == 0 || shape.row_bytes % sizeof(uint64_t) != 0) {
    return invalid_argument("row_bytes is {}, allowed: multiples of {}", shape.row_bytes,
                            sizeof(uint64_t));
  }
  VOLLEY_RETURN_IF_ERROR(check_size("bytes", shape.bytes, shape.row_bytes));
  return check_size("answer_bytes", shape.answer_bytes, shape.row_bytes);
}

Status check(const M2nBenchOptions& options) {
  if (options.shapes.empty()) return invalid_argument("shapes is empty");
  for (const M2nShape& shape : options.shapes) VOLLEY_RETURN_IF_ERROR(check(shape));
  if (options.wait != "poll" && options.wait != "sleep") {
    return invalid_argument("wait is '{}', allowed: sleep, poll", options.wait);
  }
  if (options.window == 0 || options.window > kM2nWindowMax) {
    return invalid_argument("window is {}, allowed: 1 to {}", options.window, kM2nWindowMax);
  }
  if (options.iterations == 0) return invalid_argument("iterations is 0");
  if (options.timeout_ms == 0) return invalid_argument("timeout_ms is 0");
  VOLLEY_ASSIGN_OR_RETURN(const std::vector<uint32_t> allowed, allowed_processors());
  for (const uint32_t core : options.cores) {
    if (std::find(allowed.begin(), allowed.end(), core) == allowed.end()) {
      return invalid_argument("core {} is not one that this process may use", core);
    }
  }
  return ok_status();
}

/// The cores that the peers share.
uint32_t core_count(const M2nBenchOptions& options, const Machine& machine) {
  std::vector<uint32_t> cores = options.cores.empty() ? machine.cores : options.cores;
  std::sort(cores.begin(), cores.end());
  return static_cast<uint32_t>(std::unique(cores.begin(), cores.end()) - cores.begin());
}

/// Zeroed memory that stays common to this process and its children.
Result<Mapping> shared_memory(size_t bytes) {
  const UniqueFd fd(::memfd_create("volley-bench", MFD_CLOEXEC));
  if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    return resource_exhausted("{} bytes of shared memory: {}", bytes, errno_text(errno));
  }
  return Mapping::map_shared(fd.get(), bytes);
}

std::string peer_name(const M2nShape& shape, uint32_t peer) {
  return peer < shape.senders ? fmt::format("sender-{}", peer)
                              : fmt::format("receiver-{}", peer - shape.senders);
}

Status play_peer(const M2nSystem& system, const M2nRun& run, uint32_t peer) {
  const std::vector<uint32_t>& cores = run.options.cores;
  if (!cores.empty()) VOLLEY_RETURN_IF_ERROR(pin_this_thread(cores[peer % cores.size()]));
  if (system.run_peer) return system.run_peer(run, peer);
  const uint32_t senders = run.shape.senders;
  return peer < senders ? run_m2n_sender(system, run, peer)
                        : run_m2n_receiver(system, run, peer - senders);
}

/// Plays a peer, and leaves word where the others and the parent look for it.
Status run_peer(const M2nSystem& system, const M2nRun& run, uint32_t peer) {
  const Status status = play_peer(system, run, peer);
  // What the others report after the first failure follows from it.
  if (!status.ok()) {
    if (run.control.abort.exchange(true)) return ok_status();
    char(&error)[M2nControl::kTextMax] = run.control.error[peer];
    error[message_of(status).copy(error, sizeof error - 1)] = '\0';
  }
  return status;
}

Status run_processes(const M2nSystem& system, const M2nRun& run) {
  PeerProcesses processes;
  // Receivers first: senders wait for them.
  std::vector<uint32_t> order;
  for (uint32_t i = 0; i < run.shape.receivers; ++i) order.push_back(run.shape.senders + i);
  for (uint32_t i = 0; i < run.shape.senders; ++i) order.push_back(i);
  for (const uint32_t peer : order) {
    VOLLEY_RETURN_IF_ERROR(processes.start(peer_name(run.shape, peer),
                                           [&, peer] { return run_peer(system, run, peer); }));
  }
  // The peers tell themselves that the time is over; this deadline is for those that cannot.
  return processes.wait(run.deadline + kSecond,
                        [&](size_t child) { return std::string(run.control.error[order[child]]); });
}

Status run_threads(const M2nSystem& system, const M2nRun& run) {
  std::vector<Status> status(run.peer_count());
  {
    std::vector<std::jthread> threads;
    for (uint32_t peer = 0; peer < run.peer_count(); ++peer) {
      threads.emplace_back([&, peer] {
        status[peer] = annotate(run_peer(system, run, peer), peer_name(run.shape, peer));
      });
    }
  }
  for (const Status& one : status) VOLLEY_RETURN_IF_ERROR(one);
  return ok_status();
}

Status spin_for_ever(uint32_t core) {
  constexpr int kLowestPriority = 19;
  VOLLEY_RETURN_IF_ERROR(pin_this_thread(core));
  if (::setpriority(PRIO_PROCESS, 0, kLowestPriority) != 0) {
    return unavailable("setpriority: {}", errno_text(errno));
  }
  for (volatile uint64_t turns = 0;;) turns = turns + 1;
}

/// A spinning process of the lowest priority on each core, as long as `processes` lives.
Status keep_cores_busy(PeerProcesses& processes, const std::vector<uint32_t>& cores) {
  for (const uint32_t core : cores) {
    VOLLEY_RETURN_IF_ERROR(
        processes.start(fmt::format("busy-{}", core), [core] { return spin_for_ever(core); }));
  }
  return ok_status();
}

double mean_of(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

M2nResult summarize(const M2nRun& run, const M2nSteps& steps, uint32_t cores) {
  const M2nShape& shape = run.shape;
  M2nResult result{.shape = shape, .iterations = run.iterations};
  result.shape.answer_bytes = run.answer_bytes;
  result.best_seconds = quantile(run.seconds, 0);
  result.median_seconds = quantile(run.seconds, 0.5);
  result.p99_seconds = quantile(run.seconds, 0.99);
  result.p999_seconds = quantile(run.seconds, 0.999);
  const std::span<const double> elapsed(run.control.elapsed_seconds, shape.senders);
  result.mean_seconds = mean_of(elapsed) / run.iterations;
  for (const double seconds : elapsed) {
    const double messages = 1.0 * run.iterations * shape.receivers;
    result.dispatch_gbps += messages * static_cast<double>(shape.bytes) / seconds / 1e9;
    result.answer_gbps += messages * static_cast<double>(run.answer_bytes) / seconds / 1e9;
  }
  const M2nPattern pattern = run.options.pattern;
  if (pattern == M2nPattern::kRoundTrip) {
    result.plain_seconds = steps.plain_round_trip;
    result.bound_seconds = m2n_round_trip_bound_seconds(steps, shape, cores);
    result.best_share = result.bound_seconds / result.best_seconds;
    result.median_share = result.bound_seconds / result.median_seconds;
  } else {
    result.plain_seconds = steps.plain_stream;
    result.bound_seconds =
        m2n_stream_bound_seconds(steps, shape, cores, pattern == M2nPattern::kBoth);
    result.best_share = result.median_share = result.bound_seconds / result.mean_seconds;
  }
  return result;
}

uint64_t pattern_answer_bytes(M2nPattern pattern, const M2nShape& shape) {
  switch (pattern) {
    case M2nPattern::kRoundTrip:
      return shape.answer_bytes;
    case M2nPattern::kOneWay:
      return 0;
    case M2nPattern::kBoth:
      return shape.bytes;
  }
  return 0;
}

Result<M2nResult> measure_shape(const M2nSystem& system, const M2nBenchOptions& options,
                                const Machine& machine, const M2nShape& shape) {
  const uint32_t cores = core_count(options, machine);
  const bool round_trip = options.pattern == M2nPattern::kRoundTrip;
  const uint32_t iterations = m2n_iterations(options, shape);
  const size_t samples = size_t{shape.senders} * iterations * (round_trip ? 1 : shape.receivers);
  const size_t bytes = sizeof(M2nControl) + samples * sizeof(double);
  Mapping mapping;
  std::span<std::byte> memory;
  if (system.world) {
    VOLLEY_ASSIGN_OR_RETURN(memory, system.world->share(bytes));
  } else {
    VOLLEY_ASSIGN_OR_RETURN(mapping, shared_memory(bytes));
    memory = mapping.bytes();
  }
  const bool reports = !system.world || system.world->self == 0;
  if (reports) new (memory.data()) M2nControl;
  if (system.world) system.world->meet();
  M2nRun run{
      .options = options,
      .shape = shape,
      .iterations = iterations,
      .warmup = static_cast<uint32_t>(uint64_t{options.warmup} * iterations / options.iterations),
      .slots = round_trip ? 1 : options.window,
      .answer_bytes = pattern_answer_bytes(options.pattern, shape),
      .wait = options.wait == "sleep"                    ? M2nWait::kSleep
              : shape.senders + shape.receivers <= cores ? M2nWait::kPoll
                                                         : M2nWait::kYield,
      .control = *std::launder(reinterpret_cast<M2nControl*>(memory.data())),
      .seconds = {reinterpret_cast<double*>(memory.data() + sizeof(M2nControl)), samples},
  };
  M2nSteps steps;
  if (system.steps) {
    // Two cores that the peers have, so that the two ends never share one unless they must.
    const std::vector<uint32_t>& places = options.cores.empty() ? machine.cores : options.cores;
    const size_t far = options.cores.empty() ? 1 : shape.senders;
    VOLLEY_ASSIGN_OR_RETURN(steps, system.steps(run, places.front(), places[far % places.size()]));
  }
  run.deadline = monotonic_now() + Nanos{options.timeout_ms} * kMillisecond;
  const Status status = system.world     ? run_peer(system, run, system.world->self)
                        : system.threads ? run_threads(system, run)
                                         : run_processes(system, run);
  VOLLEY_RETURN_IF_ERROR(annotate(status, fmt::format("{} bytes on {}", shape.bytes, system.name)));
  if (system.world) {
    system.world->meet();
    if (run.control.abort) return unavailable("another peer has failed");
  }
  return reports ? summarize(run, steps, cores) : M2nResult{};
}

/// Before any peer starts: one clear error rather than one of each peer.
Status check_rdma(const M2nBenchOptions& options) {
  if (options.rdma_ports.size() > 2) {
    return invalid_argument(
        "rdma_ports has {} ports, allowed: one, or one for the senders and one "
        "for the receivers",
        options.rdma_ports.size());
  }
  if (options.queue_pairs == 0 || options.queue_pairs > transport::kRailsMax) {
    return invalid_argument("queue_pairs is {}, allowed: 1 to {}", options.queue_pairs,
                            transport::kRailsMax);
  }
  VOLLEY_ASSIGN_OR_RETURN(const auto ports, rdma::list_ports());
  for (const bool sends : {true, false}) {
    VOLLEY_RETURN_IF_ERROR(rdma::choose_port(ports, m2n_rdma_port(options, sends), "").status());
  }
  return ok_status();
}

}  // namespace

Status M2nRun::check() const {
  if (control.abort.load(std::memory_order_relaxed)) {
    return unavailable("another peer has failed");
  }
  if (monotonic_now() < deadline) return ok_status();
  return make_status(StatusCode::kDeadlineExceeded, "not done within {} ms", options.timeout_ms);
}

Status M2nRun::publish(uint32_t peer, std::string_view address) const {
  M2nControl::Address& place = control.address[peer];
  if (address.empty() || address.size() > sizeof place.data) {
    return resource_exhausted("an address has {} bytes, allowed: 1 to {}", address.size(),
                              sizeof place.data);
  }
  address.copy(place.data, address.size());
  place.bytes.store(static_cast<uint32_t>(address.size()), std::memory_order_release);
  return ok_status();
}

Result<std::string> M2nRun::address_of(uint32_t peer) const {
  const M2nControl::Address& place = control.address[peer];
  while (true) {
    const uint32_t bytes = place.bytes.load(std::memory_order_acquire);
    if (bytes > 0) return std::string(place.data, bytes);
    VOLLEY_RETURN_IF_ERROR(check());
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

uint32_t m2n_iterations(const M2nBenchOptions& options, const M2nShape& shape) {
  if (options.link_bytes_max == 0) return options.iterations;
  const uint64_t fit = std::max<uint64_t>(kM2nIterationsMin, options.link_bytes_max / shape.bytes);
  return static_cast<uint32_t>(std::min<uint64_t>(options.iterations, fit));
}

double m2n_round_trip_bound_seconds(const M2nSteps& steps, const M2nShape& shape,
                                    uint32_t core_count) {
  const double links = 1.0 * shape.senders * shape.receivers;
  const double cores = std::min(core_count, shape.senders + shape.receivers);
  if (steps.copy_dispatch == 0) {
    return std::max(steps.plain_round_trip, links * steps.plain_round_trip / cores);
  }
  const double dispatch = steps.copy_dispatch;
  const double answer = steps.copy_answer;
  // A sender writes one dispatch after the other; the last is then read, answered and read again.
  const double by_sender = shape.receivers * dispatch + dispatch + 2 * answer;
  // A receiver reads and answers one dispatch after the other, once the first has been written.
  const double by_receiver = dispatch + shape.senders * (dispatch + answer) + answer;
  const double by_cores = links * 2 * (dispatch + answer) / cores;
  return std::max({by_sender, by_receiver, by_cores});
}

double m2n_stream_bound_seconds(const M2nSteps& steps, const M2nShape& shape, uint32_t core_count,
                                bool both) {
  const double links = 1.0 * shape.senders * shape.receivers;
  const double cores = std::min(core_count, shape.senders + shape.receivers);
  const double directions = both ? 2 : 1;
  if (steps.copy_dispatch == 0) {
    // Both ends of a socket work for every message at the same time.
    const double pairs = std::max(1.0, cores / 2);
    return directions * steps.plain_stream * std::max(1.0, links / pairs);
  }
  const double each = directions * steps.copy_dispatch;
  return std::max({shape.receivers * each, shape.senders * each, links * 2 * each / cores});
}

const char* m2n_pattern_name(M2nPattern pattern) {
  switch (pattern) {
    case M2nPattern::kRoundTrip:
      return "round-trip";
    case M2nPattern::kOneWay:
      return "one-way";
    case M2nPattern::kBoth:
      return "both";
  }
  return "";
}

Result<M2nReport> run_m2n_system(const M2nSystem& system, const M2nBenchOptions& options,
                                 const M2nProgress& progress) {
  VOLLEY_RETURN_IF_ERROR(check(options));
  VOLLEY_ASSIGN_OR_RETURN(Machine machine, inspect_machine());
  const uint32_t cores = core_count(options, machine);
  M2nReport report{.machine = std::move(machine),
                   .date = utc_date(),
                   .system = system.name,
                   .pattern = options.pattern,
                   .window = options.pattern == M2nPattern::kRoundTrip ? 1 : options.window,
                   .cores = options.cores,
                   .polling = options.wait == "poll",
                   .busy = options.busy,
                   .core_count = cores,
                   .results = {}};
  PeerProcesses busy;
  if (options.busy && (!system.world || system.world->self == 0)) {
    VOLLEY_RETURN_IF_ERROR(keep_cores_busy(busy, report.machine.cores));
  }
  for (const M2nShape& shape : options.shapes) {
    progress(fmt::format("{}x{} on {}: {} bytes", shape.senders, shape.receivers, system.name,
                         shape.bytes));
    VOLLEY_ASSIGN_OR_RETURN(const M2nResult result,
                            measure_shape(system, options, report.machine, shape));
    report.results.push_back(result);
  }
  return report;
}

Result<M2nReport> run_m2n_bench(const M2nBenchOptions& options, const M2nProgress& progress) {
  const std::string& fabric = options.fabric;
  if (fabric != "shm" && fabric != "tcp" && fabric != "local" && fabric != "rdma") {
    return invalid_argument("fabric is '{}', allowed: shm, tcp, local, rdma", fabric);
  }
  if (fabric == "rdma") VOLLEY_RETURN_IF_ERROR(check_rdma(options));
  return run_m2n_system(m2n_fabric_system(options.fabric), options, progress);
}

}  // namespace volley::bench
