#pragma once

// The command line, the order of the runs and the report of raw_verbs, and of every program that is
// to be held beside it: only what carries the messages differs.

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "plan.h"
#include "rendezvous.h"

namespace raw_verbs {

/// One end of a connection. Every error ends the program.
class Side {
 public:
  virtual ~Side() = default;

  /// Ping-pong with one message each way per turn. Returns the round trips in ns, in their order.
  virtual std::vector<int64_t> ping(const Plan& plan) = 0;
  virtual void pong(const Plan& plan) = 0;

  /// A stream of messages to the slots in turn. Returns the seconds until all have arrived, by the
  /// word of the peer's device or, with plan.acknowledge, of its program.
  virtual double stream(const Plan& plan) = 0;
  virtual void drain(const Plan& plan) = 0;

  /// What the report says of the connection besides the options.
  virtual nlohmann::json facts() const = 0;
};

struct Program {
  const char* name;
  const char* description;
  bool bare = false;  ///< It knows --check, --acknowledge and --inline-max.
  /// Ends the program when the device cannot be used.
  std::function<void(const EndpointOptions&)> require_device;
  /// Connects. `peer_host` is empty on the passive side.
  std::function<std::unique_ptr<Side>(const EndpointOptions&, const Area&, Rendezvous&,
                                      const std::string& peer_host)>
      connect;
};

/// main().
int run_program(const Program& program, int argc, char** argv);

}  // namespace raw_verbs
