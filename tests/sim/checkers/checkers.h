#pragma once

#include "sim/checkers/incarnations.h"
#include "sim/checkers/kv_blocks.h"
#include "sim/checkers/limits.h"
#include "sim/checkers/links.h"
#include "sim/checkers/sequences.h"
#include "sim/checkers/violations.h"

namespace volley::sim {

/// What the nodes of one cluster report to. The network has the checker of slots.
struct Checkers {
  explicit Checkers(ModelShape shape)
      : sequences(shape, violations),
        links(violations),
        incarnations(violations),
        limits(violations) {}

  Violations violations;
  SequenceChecker sequences;
  LinkChecker links;
  IncarnationChecker incarnations;
  LimitChecker limits;
};

}  // namespace volley::sim
