#pragma once

// What attention and expert processes of the simulation share: an engine thread that handles what
// has arrived in turns, is deaf while it computes, can be frozen and can die.

#include <deque>
#include <map>
#include <string>

#include "sim/checkers/checkers.h"
#include "sim/network.h"
#include "sim/world.h"

namespace volley::sim {

struct ProcessOptions {
  ModelShape shape;
  protocol::LinkGeometry geometry;
  Nanos compute = 30 * kMicrosecond;  ///< T_a or T_e, before jitter.
  double slow_kernel = 0;             ///< Share of computations that take 100 times longer.
  double bad_numbers = 0;  ///< Share of computations that meet a value that is not finite.
  Nanos link_timeout = 5 * kMillisecond;
  Bug bug = Bug::kNone;
};

class Process : public Endpoint {
 public:
  Process(World& world, Network& network, Checkers& checkers, const ProcessOptions& options,
          std::string name, uint64_t incarnation);

  const std::string& name() const { return name_; }
  uint64_t incarnation() const override { return incarnation_; }
  void arrive(const Arrival& arrival) override;
  void pulse_from(uint32_t link) override { heard_[link] = world_.now(); }
  /// As SIGSTOP: nothing happens, no sign of life is given, what arrives is kept.
  void freeze(Nanos duration);
  /// As SIGKILL. The object stays, for events that still name it.
  void die(bool silently);
  bool alive() const { return alive_; }
  void set_calm() { options_.slow_kernel = options_.bad_numbers = 0; }

 protected:
  /// Handles what has arrived and starts to compute, if there is something.
  virtual void turn() = 0;
  /// Once a millisecond: timeouts.
  virtual void tick() = 0;

  void wake();
  /// Computes for `time`, then calls `done`, then takes the next turn.
  void compute(Nanos time, std::function<void()> done);
  Nanos jittered(Nanos time);
  Nanos heard(uint32_t link) { return heard_[link]; }
  void opened(uint32_t link) { heard_[link] = world_.now(); }
  void forget(uint32_t link) { heard_.erase(link); }
  bool busy() const { return busy_; }
  bool planted(Bug bug, double chance) {
    return options_.bug == bug && world_.random().chance(chance);
  }

  World& world_;
  Network& network_;
  Checkers& checkers_;
  ProcessOptions options_;
  std::deque<Arrival> inbox_;

 private:
  void run_turn();
  void run_tick();

  std::string name_;
  uint64_t incarnation_;
  bool alive_ = true, busy_ = false, woken_ = false, tick_due_ = false;
  Nanos frozen_until_ = 0;
  std::map<uint32_t, Nanos> heard_;
};

}  // namespace volley::sim
