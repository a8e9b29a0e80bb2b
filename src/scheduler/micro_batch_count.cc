#include "volley/scheduler/micro_batch_count.h"

#include <algorithm>

#include "volley/base/check.h"

namespace volley::scheduler {

uint32_t micro_batches_for(const PhaseTimes& times, uint32_t max) {
  VOLLEY_CHECK(max >= 1);
  const Nanos slower = std::max(times.attention, times.expert);
  if (slower <= 0) return 1;  // Nothing was measured yet.
  const Nanos round = times.attention + times.expert + 2 * times.transfer;
  const Nanos count = (round + slower - 1) / slower;
  return static_cast<uint32_t>(std::clamp<Nanos>(count, 1, max));
}

}  // namespace volley::scheduler
