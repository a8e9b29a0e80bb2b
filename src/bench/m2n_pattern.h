#pragma once

#include "volley/bench/m2n_system.h"

namespace volley::bench {

/// What sender `index` does: opens its links, warms up, waits until all senders have, and measures.
/// Errors: M2nRun::check()'s and the system's.
Status run_m2n_sender(const M2nSystem& system, const M2nRun& run, uint32_t index);
/// Answers until all senders are done. Errors: as above.
Status run_m2n_receiver(const M2nSystem& system, const M2nRun& run, uint32_t index);

}  // namespace volley::bench
