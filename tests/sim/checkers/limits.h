#pragma once

// LIMIT-1  queues stay within their bounds: waiting and running sequences, rows of a step, links of
// a node.

#include <cstdint>

#include "sim/checkers/violations.h"
#include "volley/scheduler/batch_scheduler.h"

namespace volley::sim {

class LimitChecker {
 public:
  explicit LimitChecker(Violations& violations) : violations_(violations) {}

  void scheduler(const scheduler::BatchScheduler::Stats& stats,
                 const scheduler::SchedulerOptions& options) {
    // A preempted sequence waits too, beyond the queue of those that never ran.
    at_most("waiting sequences", stats.waiting, options.waiting_max + options.sequences_max);
    at_most("running sequences", stats.running, options.sequences_max);
  }
  void step(uint32_t rows, const scheduler::SchedulerOptions& options) {
    at_most("rows of a step", rows, options.tokens_per_step_max);
  }
  void at_most(const char* what, uint64_t value, uint64_t limit) {
    if (value > limit) violations_.add("LIMIT-1", "{} {}, the limit is {}", value, what, limit);
  }

 private:
  Violations& violations_;
};

}  // namespace volley::sim
