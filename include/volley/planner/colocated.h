#pragma once

// The alternatives: attention and experts on the same devices. Times, memory, stragglers and SLO
// are those of plan.h; what differs is who computes what, and what is communicated.
//
//   layout   attention              experts                          per layer
//   kTp      sliced over t devices  each sliced over t               all-reduce after both
//   kEp      sliced over t          E / t whole ones per device      all-reduce after both
//   kTpEp    sliced over t          sliced over tp_e, t / tp_e sets  all-reduce after both
//   kDpEp    groups of tp, each     E / devices whole ones per       all-reduce in groups,
//   all-to-all
//            its own sequences      device, over all groups          before and after the experts
//
// The first three stay within a server; s pipeline stages over s servers hold L / s layers each and
// have s micro-batches in flight. kDpEp spans servers: what goes to devices of the same server
// takes the link, the rest the network, and with two micro-batches (dual batch overlap)
// communication of one hides behind computation of the other. No layout is charged for overlap it
// would not get.

#include <cstdint>
#include <functional>

#include "volley/planner/plan.h"

namespace volley::planner {

struct SearchSpace;

/// Every colocated plan of the space, without rows; `visit` returns nothing.
void for_each_colocated(const PlanModel& model, const SearchSpace& space,
                        const std::function<void(const Plan&)>& visit);

}  // namespace volley::planner
