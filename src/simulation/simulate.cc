#include "volley/simulation/simulate.h"

#include <time.h>

#include <algorithm>
#include <chrono>
#include <memory>

#include "cluster.h"

namespace volley::simulation {
namespace {

void add(CallCost& to, const CallCost& from) {
  to.calls += from.calls;
  to.seconds += from.seconds;
}

void add_costs(ProductionCosts& to, const ProductionCosts& from) {
  add(to.core_message, from.core_message);
  add(to.core_next_work, from.core_next_work);
  add(to.core_route, from.core_route);
  add(to.core_finish, from.core_finish);
  add(to.gather_dispatch, from.gather_dispatch);
  add(to.gather_decide, from.gather_decide);
  add(to.gather_answered, from.gather_answered);
  add(to.control, from.control);
}

double thread_cpu_s() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

/// One replica into the sum, where it stands for `weight` replicas.
void merge(Report& sum, const Report& one, double weight) {
  const auto add_number = [&](double Report::*member) { sum.*member += one.*member * weight; };
  for (double Report::*member : {&Report::attention_nodes,
                                 &Report::expert_nodes,
                                 &Report::tokens,
                                 &Report::prefill_tokens,
                                 &Report::accepted,
                                 &Report::finished,
                                 &Report::failed,
                                 &Report::rejected,
                                 &Report::in_flight_at_end,
                                 &Report::preemptions,
                                 &Report::failed_attention_died,
                                 &Report::failed_unavailable,
                                 &Report::gather_runs,
                                 &Report::gather_dispatches,
                                 &Report::mergeable_runs,
                                 &Report::merged_runs,
                                 &Report::messages,
                                 &Report::dispatch_bytes,
                                 &Report::answer_bytes,
                                 &Report::layers_computed}) {
    add_number(member);
  }
  for (double AttentionTime::*member :
       {&AttentionTime::computing, &AttentionTime::network, &AttentionTime::expert_queue,
        &AttentionTime::expert_compute, &AttentionTime::no_work}) {
    sum.attention.*member += one.attention.*member * weight;
  }
  for (double ExpertTime::*member :
       {&ExpertTime::computing, &ExpertTime::gather_window, &ExpertTime::network,
        &ExpertTime::attention, &ExpertTime::no_work}) {
    sum.expert.*member += one.expert.*member * weight;
  }
  sum.ttft.merge(one.ttft, weight);
  sum.tpot.merge(one.tpot, weight);
  sum.inter_token.merge(one.inter_token, weight);
  sum.map_versions = std::max(sum.map_versions, one.map_versions);
  // Means over replicas.
  sum.batch_rows += one.batch_rows * weight / sum.replicas;
  sum.micro_batches += one.micro_batches * weight / sum.replicas;
  add_costs(sum.costs, one.costs);
  sum.events += one.events;
}

}  // namespace

Result<Report> simulate(const SimulationOptions& options, const perf::StageTimes& times) {
  VOLLEY_RETURN_IF_ERROR(options.validate());
  const auto started = std::chrono::steady_clock::now();
  const double cpu_started = thread_cpu_s();
  auto sum = std::make_unique<Report>();
  sum->counted_s = options.duration_s - options.warm_up_s;
  sum->replicas = options.replicas;
  sum->costs.measured = options.measure_costs;

  // Replicas that changes name are like no other.
  std::vector<std::vector<ChangeOptions>> changes(options.replicas);
  for (const ChangeOptions& change : options.changes) changes[change.replica].push_back(change);
  const auto alike = static_cast<uint32_t>(
      std::count_if(changes.begin(), changes.end(), [](const auto& own) { return own.empty(); }));
  const uint32_t chosen = options.simulated == 0 ? alike : std::min(options.simulated, alike);
  uint32_t done = 0;
  for (uint32_t replica = 0; replica < options.replicas; ++replica) {
    double weight = 1;
    if (changes[replica].empty()) {
      if (done == chosen) continue;
      ++done;
      weight = static_cast<double>(alike) / chosen;
    }
    auto one = std::make_unique<Report>();
    one->costs.measured = options.measure_costs;
    Cluster cluster(options, times, replica, changes[replica], *one);
    VOLLEY_RETURN_IF_ERROR(cluster.run());
    merge(*sum, *one, weight);
    if (replica == 0) {
      sum->trace = std::move(one->trace);
      sum->expert_load = std::move(one->expert_load);
    }
    ++sum->simulated_replicas;
  }
  sum->gpus = sum->attention_nodes * options.cluster.attention_gpus +
              sum->expert_nodes * options.cluster.expert_gpus;
  sum->tokens_per_s = sum->tokens / sum->counted_s;
  sum->tokens_per_s_per_gpu = sum->gpus > 0 ? sum->tokens_per_s / sum->gpus : 0;
  const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - started;
  sum->wall_s = wall.count();
  sum->cpu_s = thread_cpu_s() - cpu_started;
  // Calls were timed by the wall clock, which is cheap to read. Other processes interrupt all code
  // alike.
  if (sum->wall_s > 0) {
    const double own = sum->cpu_s / sum->wall_s;
    for (CallCost ProductionCosts::*member :
         {&ProductionCosts::core_message, &ProductionCosts::core_next_work,
          &ProductionCosts::core_route, &ProductionCosts::core_finish,
          &ProductionCosts::gather_dispatch, &ProductionCosts::gather_decide,
          &ProductionCosts::gather_answered, &ProductionCosts::control}) {
      (sum->costs.*member).seconds *= own;
    }
  }
  return std::move(*sum);
}

}  // namespace volley::simulation
