#include "sim/process.h"

#include <utility>

namespace volley::sim {

namespace {
constexpr Nanos kTurn = 500;  ///< From an event to the engine thread's reaction.
}

Process::Process(World& world, Network& network, Checkers& checkers, const ProcessOptions& options,
                 std::string name, uint64_t incarnation)
    : world_(world),
      network_(network),
      checkers_(checkers),
      options_(options),
      name_(std::move(name)),
      incarnation_(incarnation) {
  world_.after(kMillisecond, [this] { run_tick(); });
}

void Process::arrive(const Arrival& arrival) {
  if (!alive_) return;
  inbox_.push_back(arrival);
  wake();
}

void Process::wake() {
  if (woken_ || busy_ || !alive_) return;
  woken_ = true;
  world_.after(kTurn, [this] { run_turn(); });
}

void Process::run_turn() {
  if (!alive_) return;
  if (world_.now() < frozen_until_) {
    world_.after(frozen_until_ - world_.now(), [this] { run_turn(); });
    return;
  }
  woken_ = false;
  if (busy_) return;
  if (tick_due_) {
    tick_due_ = false;
    tick();
  }
  if (!busy_) turn();
}

void Process::run_tick() {
  if (!alive_) return;
  world_.after(kMillisecond, [this] { run_tick(); });
  if (world_.now() < frozen_until_) return;
  network_.pulse(*this);  // The daemon's pulse thread: computing does not stop it.
  tick_due_ = true;
  wake();
}

void Process::compute(Nanos time, std::function<void()> done) {
  busy_ = true;
  if (world_.random().chance(options_.slow_kernel)) time *= 100;
  world_.after(jittered(time), [this, done = std::move(done)] {
    if (!alive_) return;
    const Nanos frozen = frozen_until_ - world_.now();
    const auto finish = [this, done] {
      if (!alive_) return;
      busy_ = false;
      done();
      wake();
    };
    if (frozen > 0) {
      world_.after(frozen, finish);
    } else {
      finish();
    }
  });
}

Nanos Process::jittered(Nanos time) {
  return time - time / 10 + world_.between(0, time / 5);
}

void Process::freeze(Nanos duration) {
  frozen_until_ = world_.now() + duration;
}

void Process::die(bool silently) {
  alive_ = false;
  world_.note(10, incarnation_);
  network_.died(*this, silently);
}

}  // namespace volley::sim
