#pragma once

#include "volley/engine/attention_engine.h"
#include "volley/engine/expert_engine.h"

namespace volley::engine {

/// The body of the engine thread of a process that is attention node and expert node at once: runs
/// both engines in turn, in place of their run(). They share their cores, so a thread each would
/// only hand the cores to and fro; their options should name one pool. The engines are linked by
/// the `local` fabric, and by nothing else: what comes over another one is seen late. Returns when
/// both have been stopped; a stop of the expert engine alone is seen within 100 ms.
void run_colocated(AttentionEngine& attention, ExpertEngine& expert);

}  // namespace volley::engine
