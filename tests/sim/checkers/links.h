#pragma once

// LINK-1  every posted dispatch ends exactly once: accepted answer, or lost with the link;
// LINK-2  at most one dispatch per slot is outstanding, and at most slot_count per link;
// LINK-3  sequence numbers of a link ascend; only the outstanding one is answered;
// LINK-4  a dispatch is computed at most once.

#include <cstdint>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "sim/checkers/violations.h"

namespace volley::sim {

class LinkChecker {
 public:
  explicit LinkChecker(Violations& violations) : violations_(violations) {}

  void posted(uint32_t link, uint32_t slot, uint64_t sequence) {
    Link& entry = links_[link];
    if (!entry.outstanding.emplace(slot, sequence).second) {
      violations_.add("LINK-2", "link {} slot {}: {} posted while {} is outstanding", link, slot,
                      sequence, entry.outstanding[slot]);
    }
    if (sequence <= entry.last) {
      violations_.add("LINK-3", "link {}: sequence {} after {}", link, sequence, entry.last);
    }
    entry.last = sequence;
    ++posted_;
  }
  /// The answer was handed to the machine under the number `claimed`; `truth` is what the wire
  /// carried.
  void answered(uint32_t link, uint32_t slot, uint64_t claimed, uint64_t truth) {
    Link& entry = links_[link];
    const auto found = entry.outstanding.find(slot);
    if (found == entry.outstanding.end() || found->second != claimed)
      return;  // The machine drops it.
    if (claimed != truth) {
      violations_.add("LINK-3", "link {} slot {}: answer {} is taken for {}", link, slot, truth,
                      claimed);
    }
    entry.outstanding.erase(found);
    ++ended_;
  }
  void closed(uint32_t link) {
    ended_ += links_[link].outstanding.size();
    links_[link].outstanding.clear();
  }
  void computed(uint32_t link, uint32_t slot, uint64_t sequence) {
    if (!computed_.emplace(link, slot, sequence).second) {
      violations_.add("LINK-4", "link {} slot {}: dispatch {} is computed twice", link, slot,
                      sequence);
    }
  }
  void at_rest() {
    if (posted_ != ended_)
      violations_.add("LINK-1", "{} dispatches posted, {} ended", posted_, ended_);
  }
  uint64_t posted_count() const { return posted_; }

 private:
  struct Link {
    std::map<uint32_t, uint64_t> outstanding;  ///< Slot -> sequence.
    uint64_t last = 0;
  };
  Violations& violations_;
  std::map<uint32_t, Link> links_;
  std::set<std::tuple<uint32_t, uint32_t, uint64_t>> computed_;
  uint64_t posted_ = 0, ended_ = 0;
};

}  // namespace volley::sim
