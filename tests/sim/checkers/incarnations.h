#pragma once

// EPOCH-1  a machine is given nothing that another link, or another life of the peer, has sent.

#include <cstdint>

#include "sim/checkers/violations.h"

namespace volley::sim {

class IncarnationChecker {
 public:
  explicit IncarnationChecker(Violations& violations) : violations_(violations) {}

  /// A message of `origin_link`, sent by the process `origin`, is handed on as one of `link` to
  /// `peer`.
  void accepted(uint32_t link, uint64_t peer, uint32_t origin_link, uint64_t origin) {
    if (link != origin_link || peer != origin) {
      violations_.add("EPOCH-1",
                      "link {} to incarnation {} takes a message of link {} and incarnation {}",
                      link, peer, origin_link, origin);
    }
  }

 private:
  Violations& violations_;
};

}  // namespace volley::sim
