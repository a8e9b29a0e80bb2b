#include "volley/engine/colocated.h"

#include <algorithm>
#include <limits>

#include "engine_loop.h"

namespace volley::engine {
namespace {

// Messages of a link that is being opened come to either engine, and only one is waited for: until
// both have a link, the other one is looked at this often.
constexpr Nanos kLinkingWait = 2 * kMillisecond;

}  // namespace

void run_colocated(AttentionEngine& attention, ExpertEngine& expert) {
  using Kind = EngineLoop::Turn::Kind;
  struct Engine {
    EngineLoop& loop;
    bool ended = false;
  };
  Engine engines[] = {{attention.loop()}, {expert.loop()}};
  for (const Engine& engine : engines) engine.loop.begin();
  while (true) {
    bool worked = false;
    bool linked = true;
    EngineLoop* waiter = nullptr;
    Nanos wake_at = std::numeric_limits<Nanos>::max();
    for (Engine& engine : engines) {
      if (engine.ended) continue;
      engine.loop.rested();
      const EngineLoop::Turn turn = engine.loop.turn();
      if (turn.kind == Kind::kEnded) {
        engine.loop.finish();
        engine.ended = true;
        // What it had open has closed; the other engine should see that now.
        worked = true;
        continue;
      }
      worked = worked || turn.kind == Kind::kWorked;
      wake_at = std::min(wake_at, turn.wake_at);
      linked = linked && engine.loop.linked();
      // Of two, the attention engine: requests and everything else from outside come to it.
      if (waiter == nullptr) waiter = &engine.loop;
    }
    if (waiter == nullptr && !worked) return;
    if (worked) continue;
    waiter->wait(linked ? wake_at : std::min(wake_at, monotonic_now() + kLinkingWait));
  }
}

}  // namespace volley::engine
