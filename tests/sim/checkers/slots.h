#pragma once

// SLOT-1  a send slot stays as it is from post() until its message is answered;
// SLOT-2  a receive slot is not written while its reader may read it: from the message until the
// next
//         post in the other direction;
// SLOT-3  memory of a closed link is not written: no stale write reaches what a later link uses.
// The network calls these; it knows every byte that moves.

#include <cstdint>
#include <map>
#include <tuple>

#include "sim/checkers/violations.h"

namespace volley::sim {

class SlotChecker {
 public:
  explicit SlotChecker(Violations& violations) : violations_(violations) {}

  void delivered(uint32_t link, bool to_attention, uint32_t slot) {
    bool& readable = readable_[{link, to_attention, slot}];
    if (readable) {
      violations_.add("SLOT-2", "link {} slot {}: written while the {} node may read it", link,
                      slot, to_attention ? "attention" : "expert");
    }
    readable = true;
  }
  void posted(uint32_t link, bool from_attention, uint32_t slot) {
    readable_[{link, from_attention, slot}] = false;
  }
  void unchanged(uint32_t link, uint32_t slot, bool same) {
    if (!same)
      violations_.add("SLOT-1", "link {} slot {}: the message changed after post()", link, slot);
  }
  void region_owner(uint32_t link, uint32_t owner) {
    if (link != owner) {
      violations_.add("SLOT-3", "a write of link {} landed in the memory of link {}", link, owner);
    }
  }

 private:
  Violations& violations_;
  std::map<std::tuple<uint32_t, bool, uint32_t>, bool> readable_;
};

}  // namespace volley::sim
