// Runs seeds of the cluster simulation by hand:
//   cluster_sim --seed 17            one seed, with its numbers
//   cluster_sim --from 1 --count N   a long run; prints the first seed that fails and stops
#include <fmt/format.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "sim/abort_seed.h"
#include "sim/random_run.h"

int main(int argc, char** argv) {
  uint64_t from = 1, count = 1;
  for (int i = 1; i + 1 < argc; i += 2) {
    const uint64_t value = std::strtoull(argv[i + 1], nullptr, 10);
    if (std::strcmp(argv[i], "--seed") == 0 || std::strcmp(argv[i], "--from") == 0) {
      from = value;
    } else if (std::strcmp(argv[i], "--count") == 0) {
      count = value;
    } else {
      fmt::print(stderr, "usage: cluster_sim [--seed S | --from S --count N]\n");
      return 2;
    }
  }
  volley::sim::RunResult total;
  for (uint64_t seed = from; seed < from + count; ++seed) {
    volley::sim::announce_seed(seed);
    const auto result = volley::sim::run_seed(seed);
    if (!result.violations.empty()) {
      fmt::print(stderr, "seed {}: {}\n{}\n", seed, result.options, result.violations);
      return 1;
    }
    if (count == 1) fmt::print("seed {}: {}\n", seed, result.options);
    total.events += result.events;
    total.dispatches += result.dispatches;
    total.finished += result.finished;
    total.failed += result.failed;
    total.lost += result.lost;
    total.landed_after_failure += result.landed_after_failure;
    total.hash ^= result.hash;
  }
  fmt::print(
      "{} seeds: {} events, {} dispatches, {} landed after a failure; sequences: {} finished, {} "
      "ended with "
      "a status, {} lost with their node; hash {:016x}\n",
      count, total.events, total.dispatches, total.landed_after_failure, total.finished,
      total.failed, total.lost, total.hash);
  return 0;
}
