#include "volley/bench/m2n_bench.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <thread>

#include "m2n_peer.h"
#include "m2n_steps.h"
#include "peer_processes.h"
#include "volley/bench/statistics.h"

namespace volley::bench {
namespace {

Status check_size(const char* name, uint64_t bytes) {
  if (bytes > 0 && bytes % kM2nRowBytes == 0 && bytes <= kM2nBytesMax) return ok_status();
  return invalid_argument("{} is {}, allowed: multiples of {} up to {}", name, bytes, kM2nRowBytes,
                          kM2nBytesMax);
}

Status check(const M2nBenchOptions& options) {
  if (options.fabric != "shm" && options.fabric != "tcp" && options.fabric != "local") {
    return invalid_argument("fabric is '{}', allowed: shm, tcp, local", options.fabric);
  }
  for (const auto& [name, count] :
       {std::pair("senders", options.senders), std::pair("receivers", options.receivers)}) {
    if (count == 0 || count > kM2nPeersMax) {
      return invalid_argument("{} is {}, allowed: 1 to {}", name, count, kM2nPeersMax);
    }
  }
  if (options.bytes.empty()) return invalid_argument("bytes is empty");
  for (const uint64_t bytes : options.bytes) VOLLEY_RETURN_IF_ERROR(check_size("bytes", bytes));
  VOLLEY_RETURN_IF_ERROR(check_size("answer_bytes", options.answer_bytes));
  if (options.wait != "poll" && options.wait != "sleep") {
    return invalid_argument("wait is '{}', allowed: sleep, poll", options.wait);
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

/// Runs a peer, and leaves word where the others and the parent look for it.
Status run_peer(const M2nRun& run, uint32_t peer) {
  const uint32_t senders = run.options.senders;
  const Status status =
      peer < senders ? run_m2n_sender(run, peer) : run_m2n_receiver(run, peer - senders);
  // What the others report after the first failure follows from it.
  if (!status.ok()) {
    if (run.control.abort.exchange(true)) return ok_status();
    char(&error)[M2nControl::kTextMax] = run.control.error[peer];
    error[message_of(status).copy(error, sizeof error - 1)] = '\0';
  }
  return status;
}

std::string peer_name(const M2nBenchOptions& options, uint32_t peer) {
  return peer < options.senders ? fmt::format("sender-{}", peer)
                                : fmt::format("receiver-{}", peer - options.senders);
}

Status run_processes(const M2nRun& run) {
  PeerProcesses processes;
  // Receivers first: senders wait for them.
  std::vector<uint32_t> order;
  for (uint32_t i = 0; i < run.options.receivers; ++i) order.push_back(run.options.senders + i);
  for (uint32_t i = 0; i < run.options.senders; ++i) order.push_back(i);
  for (const uint32_t peer : order) {
    VOLLEY_RETURN_IF_ERROR(processes.start(peer_name(run.options, peer),
                                           [&run, peer] { return run_peer(run, peer); }));
  }
  // The peers tell themselves that the time is over; this deadline is for those that cannot.
  return processes.wait(run.deadline + kSecond,
                        [&](size_t child) { return std::string(run.control.error[order[child]]); });
}

Status run_threads(const M2nRun& run) {
  const uint32_t count = run.options.senders + run.options.receivers;
  std::vector<Status> status(count);
  {
    std::vector<std::jthread> threads;
    for (uint32_t peer = 0; peer < count; ++peer) {
      threads.emplace_back([&, peer] {
        status[peer] = annotate(run_peer(run, peer), peer_name(run.options, peer));
      });
    }
  }
  for (const Status& one : status) VOLLEY_RETURN_IF_ERROR(one);
  return ok_status();
}

Result<M2nResult> measure_size(const M2nBenchOptions& options, const Machine& machine,
                               uint64_t bytes) {
  const uint32_t cores = core_count(options, machine);
  // Two cores that the peers have, so that the two ends never share one unless they must.
  const std::vector<uint32_t>& places = options.cores.empty() ? machine.cores : options.cores;
  const PlainPlaces plain{
      .near_core = places.front(),
      .far_core =
          places[options.cores.empty() ? 1 % places.size() : options.senders % places.size()]};
  VOLLEY_ASSIGN_OR_RETURN(const M2nSteps steps, measure_m2n_steps(options, plain, bytes));
  const size_t samples = size_t{options.senders} * options.iterations;
  VOLLEY_ASSIGN_OR_RETURN(const Mapping memory,
                          shared_memory(sizeof(M2nControl) + samples * sizeof(double)));
  std::byte* const base = memory.bytes().data();
  const M2nRun run{
      .options = options,
      .bytes = bytes,
      .wait = options.wait == "sleep"                        ? M2nWait::kSleep
              : options.senders + options.receivers <= cores ? M2nWait::kPoll
                                                             : M2nWait::kYield,
      .deadline = monotonic_now() + Nanos{options.timeout_ms} * kMillisecond,
      .key = {},
      .control = *new (base) M2nControl,
      .seconds = {reinterpret_cast<double*>(base + sizeof(M2nControl)), samples},
  };
  VOLLEY_RETURN_IF_ERROR(annotate(options.fabric == "local" ? run_threads(run) : run_processes(run),
                                  fmt::format("{} bytes on {}", bytes, options.fabric)));

  M2nResult result{.bytes = bytes, .answer_bytes = options.answer_bytes};
  result.plain_seconds = steps.plain_round_trip;
  result.best_seconds = quantile(run.seconds, 0);
  result.median_seconds = quantile(run.seconds, 0.5);
  result.p99_seconds = quantile(run.seconds, 0.99);
  result.p999_seconds = quantile(run.seconds, 0.999);
  for (uint32_t sender = 0; sender < options.senders; ++sender) {
    const double messages = 1.0 * options.iterations * options.receivers;
    const double seconds = run.control.elapsed_seconds[sender];
    result.dispatch_gbps += messages * static_cast<double>(bytes) / seconds / 1e9;
    result.answer_gbps += messages * static_cast<double>(options.answer_bytes) / seconds / 1e9;
  }
  result.bound_seconds = m2n_bound_seconds(steps, options.senders, options.receivers, cores);
  return result;
}

}  // namespace

double m2n_bound_seconds(const M2nSteps& steps, uint32_t senders, uint32_t receivers,
                         uint32_t core_count) {
  const double links = 1.0 * senders * receivers;
  const double cores = std::min(core_count, senders + receivers);
  if (steps.copy_dispatch == 0) {
    return std::max(steps.plain_round_trip, links * steps.plain_round_trip / cores);
  }
  const double dispatch = steps.copy_dispatch;
  const double answer = steps.copy_answer;
  // A sender writes one dispatch after the other; the last is then read, answered and read again.
  const double by_sender = receivers * dispatch + dispatch + 2 * answer;
  // A receiver reads and answers one dispatch after the other, once the first has been written.
  const double by_receiver = dispatch + senders * (dispatch + answer) + answer;
  const double by_cores = links * 2 * (dispatch + answer) / cores;
  return std::max({by_sender, by_receiver, by_cores});
}

Result<M2nReport> run_m2n_bench(const M2nBenchOptions& options,
                                const std::function<void(const std::string&)>& progress) {
  VOLLEY_RETURN_IF_ERROR(check(options));
  VOLLEY_ASSIGN_OR_RETURN(Machine machine, inspect_machine());
  const uint32_t cores = core_count(options, machine);
  M2nReport report{.machine = std::move(machine),
                   .date = utc_date(),
                   .fabric = options.fabric,
                   .senders = options.senders,
                   .receivers = options.receivers,
                   .iterations = options.iterations,
                   .cores = options.cores,
                   .polling = options.wait == "poll",
                   .core_count = cores,
                   .results = {}};
  for (const uint64_t bytes : options.bytes) {
    progress(fmt::format("{}x{} on {}: {} bytes", options.senders, options.receivers,
                         options.fabric, bytes));
    VOLLEY_ASSIGN_OR_RETURN(const M2nResult result, measure_size(options, report.machine, bytes));
    report.results.push_back(result);
  }
  return report;
}

}  // namespace volley::bench
